//! What a node is, as it tells others: to gateways, which route by it, and to operators, who look at the tree.

use std::time::Duration;

use bytes::Bytes;
use tailwater_api::tail as wire;
use tailwater_eventlog::{Cursor, KeyRange, Member, MemberId, Term};

use super::codec::{cursor_in, cursor_out, member_in, member_out, range_in, range_out};

/// A node as it describes itself, or as its source knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeDescription {
    /// Of the node: a member's id, or the random one of a process that is none.
    pub id: MemberId,
    /// `--name`.
    pub name: String,
    /// "consensus", "fanout", "gateway".
    pub roles: Vec<String>,
    /// Where clients reach it; empty when they don't.
    pub client_urls: Vec<String>,
    /// Where it serves the tail and the write plane; empty when it doesn't.
    pub peer_urls: Vec<String>,
    /// What it holds; empty: every key.
    pub ranges: Vec<KeyRange>,
    /// Up to where it can be read. Of a reader, told by its source: what was sent to it.
    pub reached: Cursor,
    /// Node ids from the core down to this node, which is the last.
    pub path: Vec<u64>,
    /// Since the core was last heard at the head of that path.
    pub core_age: Duration,
    /// Of the program, "major.minor.patch".
    pub version: String,
    /// The group.
    pub cluster_id: u64,
    /// Whether it answers reads: caught up, and hearing from the core.
    pub ready: bool,
    /// What its read plane carries.
    pub load: NodeLoad,
}

/// What a node's read plane carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeLoad {
    /// Open watch streams.
    pub streams: u64,
    /// Watchers on them.
    pub watchers: u64,
    /// Those that are catching up.
    pub watchers_behind: u64,
    /// Bytes that streams hold for their clients.
    pub held_bytes: u64,
    /// The bound of `held_bytes`.
    pub held_bytes_max: u64,
    /// Bytes of recent events in memory.
    pub window_bytes: u64,
    /// Revisions that the slowest watcher has yet to be sent.
    pub lag_revisions: u64,
    /// Live keys.
    pub keys: u64,
    /// Of the process.
    pub resident_bytes: u64,
    /// A few streams, the furthest behind first.
    pub slowest: Vec<SlowStream>,
    /// Sent to watchers since the process began.
    pub events: u64,
    /// Where most watchers look, the most first.
    pub prefixes: Vec<PrefixLoad>,
}

/// Watchers whose keys all begin alike.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefixLoad {
    /// What they begin with.
    pub prefix: Bytes,
    /// How many watchers.
    pub watchers: u64,
}

/// A watch stream that is behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlowStream {
    /// The client's address and port.
    pub peer: String,
    /// Of its watcher that is furthest behind, as in a watch request.
    pub range_start: Bytes,
    /// See `range_start`.
    pub range_end: Bytes,
    /// Revisions that it has yet to be sent.
    pub backlog_revisions: i64,
    /// Bytes held for it.
    pub held_bytes: u64,
}

/// What a node answers when it is asked what it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// The node.
    pub node: NodeDescription,
    /// Who follows it now.
    pub readers: Vec<NodeDescription>,
    /// The members of the group, as it knows them.
    pub members: Vec<Member>,
    /// Who leads, as it knows; `None`: nobody.
    pub leader: Option<MemberId>,
    /// The term.
    pub term: Term,
}

impl NodeDescription {
    pub(super) fn to_wire(&self) -> wire::Node {
        wire::Node {
            id: self.id.0,
            name: self.name.clone(),
            roles: self.roles.clone(),
            client_urls: self.client_urls.clone(),
            peer_urls: self.peer_urls.clone(),
            ranges: self.ranges.iter().map(range_out).collect(),
            reached: Some(cursor_out(self.reached)),
            path: self.path.clone(),
            core_age_ms: u64::try_from(self.core_age.as_millis()).unwrap_or(u64::MAX),
            version: self.version.clone(),
            cluster_id: self.cluster_id,
            ready: self.ready,
            load: Some(self.load.to_wire()),
        }
    }

    pub(super) fn from_wire(node: wire::Node) -> Self {
        Self {
            id: MemberId(node.id),
            name: node.name,
            roles: node.roles,
            client_urls: node.client_urls,
            peer_urls: node.peer_urls,
            ranges: node.ranges.into_iter().map(range_in).collect(),
            reached: node.reached.as_ref().map(cursor_in).unwrap_or_default(),
            path: node.path,
            core_age: Duration::from_millis(node.core_age_ms),
            version: node.version,
            cluster_id: node.cluster_id,
            ready: node.ready,
            load: node.load.map(NodeLoad::from_wire).unwrap_or_default(),
        }
    }
}

impl NodeLoad {
    fn to_wire(&self) -> wire::NodeLoad {
        let slow = |stream: &SlowStream| wire::SlowStream {
            peer: stream.peer.clone(),
            range_start: stream.range_start.clone(),
            range_end: stream.range_end.clone(),
            backlog_revisions: stream.backlog_revisions,
            held_bytes: stream.held_bytes,
        };
        let prefix = |load: &PrefixLoad| wire::PrefixLoad { prefix: load.prefix.clone(), watchers: load.watchers };
        wire::NodeLoad {
            streams: self.streams,
            watchers: self.watchers,
            watchers_behind: self.watchers_behind,
            held_bytes: self.held_bytes,
            held_bytes_max: self.held_bytes_max,
            window_bytes: self.window_bytes,
            lag_revisions: self.lag_revisions,
            keys: self.keys,
            resident_bytes: self.resident_bytes,
            slowest: self.slowest.iter().map(slow).collect(),
            events: self.events,
            prefixes: self.prefixes.iter().map(prefix).collect(),
        }
    }

    fn from_wire(load: wire::NodeLoad) -> Self {
        let slow = |stream: wire::SlowStream| SlowStream {
            peer: stream.peer,
            range_start: stream.range_start,
            range_end: stream.range_end,
            backlog_revisions: stream.backlog_revisions,
            held_bytes: stream.held_bytes,
        };
        let prefix = |load: wire::PrefixLoad| PrefixLoad { prefix: load.prefix, watchers: load.watchers };
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
            slowest: load.slowest.into_iter().map(slow).collect(),
            events: load.events,
            prefixes: load.prefixes.into_iter().map(prefix).collect(),
        }
    }
}

impl Description {
    pub(super) fn to_wire(&self) -> wire::DescribeResponse {
        let leader = wire::Leader { member_id: self.leader.map_or(0, |leader| leader.0), term: self.term.0 };
        wire::DescribeResponse {
            self_: Some(self.node.to_wire()),
            readers: self.readers.iter().map(NodeDescription::to_wire).collect(),
            members: Some(wire::Members { members: self.members.iter().map(member_out).collect() }),
            leader: Some(leader),
        }
    }

    pub(super) fn from_wire(answer: wire::DescribeResponse) -> Self {
        let leader = answer.leader.unwrap_or_default();
        let members = answer.members.unwrap_or_default().members;
        Self {
            node: answer.self_.map(NodeDescription::from_wire).unwrap_or_default(),
            readers: answer.readers.into_iter().map(NodeDescription::from_wire).collect(),
            members: members.into_iter().map(member_in).collect(),
            leader: (leader.member_id != 0).then_some(MemberId(leader.member_id)),
            term: Term(leader.term),
        }
    }
}

#[cfg(test)]
mod tests {
    use tailwater_eventlog::{HistoryId, Position, Revision};

    use super::*;

    fn node() -> NodeDescription {
        let slow = SlowStream {
            peer: "10.0.0.1:7".into(),
            range_start: "a".into(),
            range_end: "b".into(),
            backlog_revisions: 5,
            held_bytes: 6,
        };
        NodeDescription {
            id: MemberId(1),
            name: "one".into(),
            roles: vec!["fanout".into(), "gateway".into()],
            client_urls: vec!["http://c:1".into()],
            peer_urls: vec!["http://p:1".into()],
            ranges: vec![KeyRange::Span("a".into(), "b".into())],
            reached: Cursor { history: HistoryId(2), revision: Revision(3), position: Position(4) },
            path: vec![9, 1],
            core_age: Duration::from_millis(5),
            version: "0.1.0".into(),
            cluster_id: 7,
            ready: true,
            load: NodeLoad {
                streams: 1,
                watchers: 2,
                keys: 3,
                slowest: vec![slow],
                events: 4,
                prefixes: vec![PrefixLoad { prefix: "/a/".into(), watchers: 2 }],
                ..Default::default()
            },
        }
    }

    #[test]
    fn a_description_survives_the_wire() {
        let description = Description {
            node: node(),
            readers: vec![node(), NodeDescription::default()],
            members: vec![Member { id: MemberId(9), name: "m".into(), ..Default::default() }],
            leader: Some(MemberId(9)),
            term: Term(4),
        };
        assert_eq!(Description::from_wire(description.to_wire()), description);
        let nobody = Description { leader: None, ..description };
        assert_eq!(Description::from_wire(nobody.to_wire()), nobody);
    }

    #[test]
    fn what_is_left_out_is_unknown() {
        assert_eq!(Description::from_wire(wire::DescribeResponse::default()), Description::default());
    }
}
