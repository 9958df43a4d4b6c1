//! What the replica needs of the network: a place to leave messages for other members.

use std::time::Duration;

use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::Message;
use tailwater_eventlog::{Member, MemberId};

/// Carries raft messages to other members. It may lose, delay, repeat or reorder them: raft mends that. It must not
/// block, and what waits for one peer is bounded in bytes: a peer that does not read costs what is sent to it, and
/// nothing else.
pub trait PeerTransport: Send + Sync {
    /// Takes an encoded raft message for `to`. One for a peer that is not known, or behind too much, is dropped.
    fn send(&self, to: MemberId, message: Bytes);

    /// The members of the group from now on, this one included: whom to reach, and where.
    fn set_members(&self, members: &[Member]);

    /// How long the peer has been within reach without a break; `None` when it is not. A transport that knows no
    /// connections says that it always was.
    fn connected_for(&self, _to: MemberId) -> Option<Duration> {
        Some(Duration::MAX)
    }
}

/// For a group of one.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPeers;

impl PeerTransport for NoPeers {
    fn send(&self, _to: MemberId, _message: Bytes) {}

    fn set_members(&self, _members: &[Member]) {}
}

/// Encodes and hands over.
pub(crate) fn send_all(peers: &dyn PeerTransport, messages: Vec<Message>) {
    for message in messages {
        match message.write_to_bytes() {
            Ok(bytes) => peers.send(MemberId(message.to), bytes.into()),
            // As if it were lost on the way.
            Err(error) => tracing::error!(%error, "a raft message can't be encoded"),
        }
    }
}
