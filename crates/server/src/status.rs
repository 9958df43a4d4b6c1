//! `/status`: what a node says of itself, as JSON. Ids are hex as in logs, keys are escaped as text, and clients and what
//! they watch are left out for who may not know them.

use serde::{Deserialize, Serialize};
use tailwater_eventlog::{KeyRange, Member};
use tailwater_transport::{Description, NodeDescription, NodeLoad, PrefixLoad, SlowStream};

/// A node, who reads from it, and the group as it knows that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) node: Node,
    pub(crate) readers: Vec<Node>,
    pub(crate) members: Vec<MemberStatus>,
    /// Empty: nobody is known to lead.
    pub(crate) leader: String,
    pub(crate) term: u64,
}

/// One node, by itself or, in parts, by whom it reads from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) roles: Vec<String>,
    pub(crate) ready: bool,
    pub(crate) revision: i64,
    pub(crate) position: u64,
    pub(crate) history_id: String,
    /// From the core down to this node, which is the last.
    pub(crate) path: Vec<String>,
    pub(crate) core_age_ms: u64,
    pub(crate) client_urls: Vec<String>,
    pub(crate) peer_urls: Vec<String>,
    /// What it holds; empty: every key, or, where `is_partial`, not told.
    pub(crate) ranges: Vec<Range>,
    /// Whether there are keys that it does not hold.
    #[serde(default)]
    pub(crate) is_partial: bool,
    pub(crate) version: String,
    pub(crate) cluster_id: String,
    pub(crate) load: Load,
}

/// Half open; `end` empty: one key, or, as "\0", every key from `start` on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Range {
    pub(crate) start: String,
    pub(crate) end: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Load {
    pub(crate) streams: u64,
    pub(crate) watchers: u64,
    pub(crate) watchers_behind: u64,
    pub(crate) held_bytes: u64,
    pub(crate) held_bytes_max: u64,
    pub(crate) window_bytes: u64,
    pub(crate) lag_revisions: u64,
    pub(crate) keys: u64,
    pub(crate) resident_bytes: u64,
    pub(crate) slowest: Vec<Slow>,
    /// Sent to watchers since the process began.
    #[serde(default)]
    pub(crate) events: u64,
    #[serde(default)]
    pub(crate) prefixes: Vec<Prefix>,
}

/// Watchers whose keys all begin alike.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Prefix {
    pub(crate) prefix: String,
    pub(crate) watchers: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Slow {
    pub(crate) peer: String,
    pub(crate) range: Range,
    pub(crate) backlog_revisions: i64,
    pub(crate) held_bytes: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemberStatus {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) peer_urls: Vec<String>,
    pub(crate) client_urls: Vec<String>,
    pub(crate) is_learner: bool,
}

impl Status {
    /// What may be told to who may not read keys: neither keys nor clients, as in metrics.
    pub(crate) fn without_keys(mut self) -> Self {
        for node in self.readers.iter_mut().chain([&mut self.node]) {
            node.ranges.clear();
            node.load.prefixes.clear();
            for stream in &mut node.load.slowest {
                (stream.peer, stream.range) = (String::new(), Range::default());
            }
        }
        self
    }
}

fn hex(id: u64) -> String {
    format!("{id:x}")
}

fn text(key: &[u8]) -> String {
    key.escape_ascii().to_string()
}

impl From<Description> for Status {
    fn from(description: Description) -> Self {
        Self {
            node: description.node.into(),
            readers: description.readers.into_iter().map(Node::from).collect(),
            members: description.members.into_iter().map(MemberStatus::from).collect(),
            leader: description.leader.map(|leader| hex(leader.0)).unwrap_or_default(),
            term: description.term.0,
        }
    }
}

impl From<NodeDescription> for Node {
    fn from(node: NodeDescription) -> Self {
        Self {
            id: hex(node.id.0),
            name: node.name,
            roles: node.roles,
            ready: node.ready,
            revision: node.reached.revision.0,
            position: node.reached.position.0,
            history_id: hex(node.reached.history.0),
            path: node.path.into_iter().map(hex).collect(),
            core_age_ms: u64::try_from(node.core_age.as_millis()).unwrap_or(u64::MAX),
            client_urls: node.client_urls,
            peer_urls: node.peer_urls,
            is_partial: !node.ranges.is_empty(),
            ranges: node.ranges.into_iter().map(Range::from).collect(),
            version: node.version,
            cluster_id: hex(node.cluster_id),
            load: node.load.into(),
        }
    }
}

impl From<KeyRange> for Range {
    fn from(range: KeyRange) -> Self {
        match range {
            KeyRange::Key(key) => Self { start: text(&key), end: String::new() },
            KeyRange::Span(start, end) => Self { start: text(&start), end: text(&end) },
            KeyRange::From(start) => Self { start: text(&start), end: text(&[0]) },
        }
    }
}

impl From<NodeLoad> for Load {
    fn from(load: NodeLoad) -> Self {
        Self {
            streams: load.streams,
            watchers: load.watchers,
            watchers_behind: load.watchers_behind,
            held_bytes: load.held_bytes,
            held_bytes_max: load.held_bytes_max,
            window_bytes: load.window_bytes,
            lag_revisions: load.lag_revisions,
            keys: load.keys,
            resident_bytes: load.resident_bytes,
            slowest: load.slowest.into_iter().map(Slow::from).collect(),
            events: load.events,
            prefixes: load.prefixes.into_iter().map(Prefix::from).collect(),
        }
    }
}

impl From<SlowStream> for Slow {
    fn from(stream: SlowStream) -> Self {
        Self {
            peer: stream.peer,
            range: Range { start: text(&stream.range_start), end: text(&stream.range_end) },
            backlog_revisions: stream.backlog_revisions,
            held_bytes: stream.held_bytes,
        }
    }
}

impl From<PrefixLoad> for Prefix {
    fn from(load: PrefixLoad) -> Self {
        Self { prefix: text(&load.prefix), watchers: load.watchers }
    }
}

impl From<Member> for MemberStatus {
    fn from(member: Member) -> Self {
        let Member { id, name, peer_urls, client_urls, is_learner } = member;
        Self { id: hex(id.0), name, peer_urls, client_urls, is_learner }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tailwater_eventlog::{Cursor, HistoryId, MemberId, Position, Revision, Term};

    use super::*;

    #[test]
    fn a_description_is_json_that_can_be_read_back() {
        let node = NodeDescription {
            id: MemberId(0xab),
            name: "one".into(),
            reached: Cursor { history: HistoryId(1), revision: Revision(2), position: Position(3) },
            path: vec![0xcd, 0xab],
            core_age: Duration::from_millis(7),
            ranges: vec![KeyRange::Span("/a/".into(), "/a0".into())],
            ..Default::default()
        };
        let description = Description {
            node: node.clone(),
            readers: vec![node],
            members: vec![Member { id: MemberId(0xcd), ..Default::default() }],
            leader: Some(MemberId(0xcd)),
            term: Term(4),
        };
        let status = Status::from(description);
        let json = serde_json::to_string(&status).expect("plain fields");
        assert!(json.starts_with("{\"node\":{\"id\":\"ab\",\"name\":\"one\""), "{json}");
        assert!(json.contains("\"ranges\":[{\"start\":\"/a/\",\"end\":\"/a0\"}],\"is_partial\":true"), "{json}");
        assert!(json.contains("\"leader\":\"cd\",\"term\":4"), "{json}");
        assert_eq!(serde_json::from_str::<Status>(&json).expect("its own"), status);
    }

    #[test]
    fn who_may_not_read_keys_is_told_neither_keys_nor_clients() {
        let slow = SlowStream { peer: "10.9.9.9:7".into(), range_start: "secret".into(), ..Default::default() };
        let prefixes = vec![PrefixLoad { prefix: "secret".into(), watchers: 3 }];
        let load = NodeLoad { watchers: 3, slowest: vec![slow], prefixes, ..Default::default() };
        let ranges = vec![KeyRange::Key("secret".into())];
        let node = NodeDescription { name: "one".into(), ranges, load, ..Default::default() };
        let description = Description { node: node.clone(), readers: vec![node], ..Default::default() };
        let status = Status::from(description).without_keys();
        let json = serde_json::to_string(&status).expect("plain fields");
        assert!(!json.contains("secret") && !json.contains("10.9.9.9"), "{json}");
        assert!(status.node.is_partial && status.node.load.slowest.len() == 1 && status.node.load.watchers == 3);
    }

    #[test]
    fn what_an_older_node_says_can_be_read() {
        let mut json = serde_json::to_value(Status::default()).expect("plain fields");
        json["node"].as_object_mut().expect("a node").remove("is_partial");
        let load = json["node"]["load"].as_object_mut().expect("a load");
        for later in ["events", "prefixes"] {
            load.remove(later);
        }
        assert_eq!(serde_json::from_value::<Status>(json).expect("still a status"), Status::default());
    }
}
