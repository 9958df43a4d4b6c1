//! What the page is told in one second.

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use crate::status::{Prefix, Range};
use crate::survey::{Survey, Surveyed, Unanswered};

/// Slow streams, prefixes and nodes without an answer that are shown.
const STREAMS_SHOWN_MAX: usize = 10;
const PREFIXES_SHOWN_MAX: usize = 10;
const ERRORS_SHOWN_MAX: usize = 8;
/// Letters of a key that are shown.
const KEY_LETTERS_MAX: usize = 256;

/// A survey as the page wants it.
#[derive(Serialize)]
pub(super) struct Frame<'a> {
    /// Milliseconds by this node's clock, from anywhere: rates are differences.
    at_ms: u64,
    served_by: &'a str,
    cluster_id: &'a str,
    leader: &'a str,
    term: u64,
    revision: i64,
    nodes: Vec<NodeView<'a>>,
    slowest: Vec<StreamView<'a>>,
    /// Not there for who may not see keys.
    prefixes: Option<Vec<Prefix>>,
    errors: &'a [Unanswered],
}

/// A node; a parent before its children.
#[derive(Serialize)]
struct NodeView<'a> {
    id: &'a str,
    name: &'a str,
    kind: &'static str,
    state: &'static str,
    is_leader: bool,
    depth: usize,
    revision: i64,
    lag_revisions: i64,
    core_age_ms: u64,
    streams: u64,
    watchers: u64,
    watchers_behind: u64,
    stream_lag_revisions: u64,
    events: u64,
    held_bytes: u64,
    held_bytes_max: u64,
    keys: u64,
    resident_bytes: u64,
    is_partial: bool,
    client_url: &'a str,
    version: &'a str,
}

/// A slow watch stream; who and what only for who may see keys.
#[derive(Serialize)]
struct StreamView<'a> {
    node: &'a str,
    backlog_revisions: i64,
    held_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    range: Option<String>,
}

impl<'a> Frame<'a> {
    pub(super) fn new(survey: &'a Survey, served_by: &'a str, at: Duration, with_keys: bool) -> Self {
        let slowest = survey.slowest(STREAMS_SHOWN_MAX).into_iter().map(|(surveyed, stream)| StreamView {
            node: &surveyed.node.name,
            backlog_revisions: stream.backlog_revisions,
            held_bytes: stream.held_bytes,
            peer: with_keys.then_some(&*stream.peer),
            range: with_keys.then(|| range(&stream.range)),
        });
        Self {
            at_ms: u64::try_from(at.as_millis()).unwrap_or(u64::MAX),
            served_by,
            cluster_id: &survey.cluster_id,
            leader: &survey.leader,
            term: survey.term,
            revision: survey.revision,
            nodes: survey.nodes.iter().map(NodeView::new).collect(),
            slowest: slowest.collect(),
            prefixes: with_keys.then(|| survey.prefixes(PREFIXES_SHOWN_MAX)),
            errors: &survey.errors[..survey.errors.len().min(ERRORS_SHOWN_MAX)],
        }
    }

    /// As one server-sent event.
    pub(super) fn encode(&self) -> Bytes {
        // JSON has no line ends outside of its strings, and escapes those inside.
        let json = serde_json::to_string(self).expect("numbers and strings are JSON");
        format!("data: {json}\n\n").into()
    }
}

impl<'a> NodeView<'a> {
    fn new(surveyed: &'a Surveyed) -> Self {
        let (node, load) = (&surveyed.node, &surveyed.node.load);
        Self {
            id: &node.id,
            name: &node.name,
            kind: match (surveyed.is_member, node.peer_urls.is_empty()) {
                (true, _) => "member",
                (false, true) => "fanout",
                (false, false) => "relay",
            },
            state: surveyed.state(),
            is_leader: surveyed.is_leader,
            depth: surveyed.depth,
            revision: node.revision,
            lag_revisions: surveyed.lag_revisions,
            core_age_ms: node.core_age_ms,
            streams: load.streams,
            watchers: load.watchers,
            watchers_behind: load.watchers_behind,
            stream_lag_revisions: load.lag_revisions,
            events: load.events,
            held_bytes: load.held_bytes,
            held_bytes_max: load.held_bytes_max,
            keys: load.keys,
            resident_bytes: load.resident_bytes,
            is_partial: node.is_partial,
            client_url: node.client_urls.first().map_or("", String::as_str),
            version: &node.version,
        }
    }
}

fn range(range: &Range) -> String {
    let text = match (&*range.start, &*range.end) {
        ("", "\\x00") => "every key".into(),
        (start, "\\x00") => format!("{start} and above"),
        (start, "") => start.to_owned(),
        (start, end) if is_prefix(start, end) => format!("{start}…"),
        (start, end) => format!("{start} to {end}"),
    };
    match text.char_indices().nth(KEY_LETTERS_MAX) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// Whether a range is every key that begins with its start, as far as that shows in text: the end is the start with its
/// last letter incremented.
fn is_prefix(start: &str, end: &str) -> bool {
    match (start.as_bytes().split_last(), end.as_bytes().split_last()) {
        (Some((last, head)), Some((next, tail))) => head == tail && last.checked_add(1) == Some(*next),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_short_and_said_in_words() {
        let said = |start: &str, end: &str| range(&Range { start: start.into(), end: end.into() });
        assert_eq!(said("a", ""), "a");
        assert_eq!(said("/a/", "/a0"), "/a/…");
        assert_eq!(said("/a/", "/a1"), "/a/ to /a1");
        assert_eq!(said("a", "\\x00"), "a and above");
        assert_eq!(said("", "\\x00"), "every key");
        assert_eq!(said(&"ü".repeat(1000), "").chars().count(), KEY_LETTERS_MAX + 1);
    }
}
