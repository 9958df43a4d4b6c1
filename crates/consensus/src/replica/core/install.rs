//! Taking over a copied state: the state is in place already, and raft follows. The log is reset to the position that the
//! state has reached, and only when that is durable do the others hear of it.

use raft::StateRole;
use raft::eraftpb::{Message, MessageType, Snapshot, SnapshotMetadata};

use super::ReplicaCore;
use crate::machine::Group;

/// A state that this member has switched to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Install {
    /// The applied index, and the term of the entry there.
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) group: Group,
}

impl ReplicaCore {
    /// The apply thread goes on at this state from now on.
    pub(crate) fn install(&mut self, install: Install) {
        self.install = Some(install);
    }

    /// Takes over a state that waits for it. Its index is committed, as any state's is; raft believes that from the leader
    /// only, so it waits until it knows one that is not older than the state.
    pub(super) fn take_over(&mut self) {
        let raft = &self.node.raft;
        let Some(Install { index, term, .. }) = self.install else { return };
        let is_behind = raft.raft_log.committed < index;
        let has_leader = raft.state == StateRole::Follower && raft.leader_id != raft::INVALID_ID && raft.term >= term;
        if is_behind && !has_leader {
            return;
        }
        let Some(Install { group, .. }) = self.install.take() else { return };
        if is_behind {
            let metadata = SnapshotMetadata { conf_state: Some(group.conf_state.clone()), index, term };
            let snapshot = Snapshot { metadata: Some(metadata), ..Default::default() };
            let mut message = Message { to: raft.id, from: raft.leader_id, term: raft.term, ..Default::default() };
            message.set_msg_type(MessageType::MsgSnapshot);
            message.set_snapshot(snapshot);
            if let Err(error) = self.node.step(message) {
                tracing::warn!(%error, "a copied state was not taken over");
            }
        }
        self.installing = Some(index);
        self.reconfigure(index, group);
        self.advance_raft();
    }

    /// `true` once, when the log holds, durably, what the state that was taken over stands on.
    pub(super) fn is_installed(&mut self) -> bool {
        let log = &self.node.raft.raft_log;
        let reached = log.committed.min(log.persisted);
        self.installing.take_if(|index| *index <= reached).is_some()
    }

    /// Raft learns what is applied as far as its log goes: a state that was taken over is ahead of it for a moment.
    pub(super) fn advance_raft(&mut self) {
        let log = &self.node.raft.raft_log;
        let reached = self.applied.0.min(log.committed).min(log.persisted);
        if reached > log.applied {
            self.node.advance_apply_to(reached);
        }
    }
}
