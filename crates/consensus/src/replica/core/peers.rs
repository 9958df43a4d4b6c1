//! What comes from other members, and what the leader knows of how far they are.

use raft::eraftpb::{Message, MessageType, SnapshotMetadata};
use raft::{ProgressState, SnapshotStatus, StateRole};
use tailwater_eventlog::{MemberId, Position, Term};

use super::ReplicaCore;

/// Election timeouts after which a peer that was told to copy the state, and has not come back with it, is told again.
const SNAPSHOT_TIMEOUTS: u64 = 2;

/// The leader no longer has what this member's log needs: the member must copy the state of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CatchUp {
    /// The copied state must have reached this position at least.
    pub position: Position,
    /// The leader's term.
    pub term: Term,
    /// The leader.
    pub from: MemberId,
}

impl ReplicaCore {
    /// A message of another member. Errors mean that it does not concern this member now.
    pub(crate) fn step(&mut self, message: Message) {
        if self.held_back && message.msg_type() == MessageType::MsgAppend {
            // As if it were lost: the leader sends it again.
            return;
        }
        match message.msg_type() {
            // Raft's own ways to reach the leader; here the write plane's streams do that.
            MessageType::MsgPropose | MessageType::MsgTransferLeader => return,
            MessageType::MsgReadIndex => return self.on_doubter(message),
            MessageType::MsgReadIndexResp => return self.on_doubt_answer(&message),
            _ => {}
        }
        if self.node.raft.prs().get(message.from).is_some() {
            self.heard.insert(message.from, self.ticks);
        }
        if message.msg_type() == MessageType::MsgSnapshot && (self.install.is_some() || self.needs_copy(&message)) {
            return;
        }
        self.recount(&message);
        let Some(message) = self.doubted(message) else { return };
        if message.msg_type() == MessageType::MsgHeartbeat && self.has_lost(&message) {
            return;
        }
        let from = message.from;
        if let Err(error) = self.node.step(message) {
            tracing::debug!(%error, "raft message passed over");
        }
        self.resume(from);
    }

    /// A leader's heartbeat names what this member has acknowledged of what is committed. One whose log ends below that has
    /// lost it: its directory was emptied, or put back to what it was earlier. Its vote is worth nothing, so it stops.
    fn has_lost(&mut self, heartbeat: &Message) -> bool {
        let raft = &self.node.raft;
        let last = raft.raft_log.last_index();
        // One that knows that it may have lost something gets it back before it votes.
        let lost = self.doubt.is_none() && heartbeat.term >= raft.term && heartbeat.commit > last;
        if lost {
            let commit = heartbeat.commit;
            self.failure = Some(format!(
                "this member acknowledged entry {commit} to its leader, but its log ends at {last}: its data was lost; \
                 remove the member and add it as a new one"
            ));
        }
        lost
    }

    /// Why this member must stop, if it must.
    pub(crate) fn failure(&mut self) -> Option<String> {
        self.failure.take()
    }

    /// A peer that was told to copy the state, and says that the log it has committed reaches into this one, is sent entries
    /// again: it may have come by it otherwise. Raft would wait for the very position that it named.
    fn resume(&mut self, id: u64) {
        let (committed, first) = (self.committed(), self.node.store().view.first_index());
        let raft = &mut self.node.raft;
        let is_leader = raft.state == StateRole::Leader;
        let Some(peer) = raft.mut_prs().get_mut(id).filter(|_| is_leader) else { return };
        let reached = peer.committed_index.min(committed);
        if peer.state == ProgressState::Snapshot && reached + 1 >= first {
            // What is committed is the same everywhere.
            peer.maybe_update(reached);
            self.node.report_snapshot(id, SnapshotStatus::Failure);
        }
    }

    /// A peer that refuses what it had acknowledged has lost it: it counts for what it says that it has. One that only
    /// refuses late is asked once more than needed.
    fn recount(&mut self, message: &Message) {
        if message.msg_type() != MessageType::MsgAppendResponse
            || !message.reject
            || message.term != self.node.raft.term
        {
            return;
        }
        if self.node.raft.state == StateRole::Leader
            && let Some(peer) = self.node.raft.mut_prs().get_mut(message.from)
            && message.reject_hint < peer.matched
        {
            peer.matched = message.reject_hint;
        }
    }

    /// Keeps a snapshot that raft would take over: the state comes first.
    fn needs_copy(&mut self, message: &Message) -> bool {
        let raft = &self.node.raft;
        let SnapshotMetadata { index, term, conf_state } = message.get_snapshot().get_metadata().clone();
        let conf_state = conf_state.unwrap_or_default();
        let named = conf_state.voters.contains(&raft.id) || conf_state.learners.contains(&raft.id);
        let known = self.node.store().view.term(index).is_ok_and(|known| known == term);
        if message.term < raft.term || raft.state == StateRole::Leader || !named || known || index <= self.committed() {
            return false;
        }
        self.catch_up =
            Some(CatchUp { position: Position(index), term: Term(message.term), from: MemberId(message.from) });
        true
    }

    /// The copy that this member needs; `None` while its log goes on.
    pub(crate) fn catch_up(&mut self) -> Option<CatchUp> {
        // It was copied, or a leader that still has the entries has come since.
        let reached = self.committed().max(self.applied.0);
        self.catch_up.take_if(|wanted| wanted.position.0 <= reached);
        self.catch_up
    }

    /// A peer that was told to copy the state may have lost the message, or itself.
    pub(super) fn retry_snapshots(&mut self) {
        if self.node.raft.state != StateRole::Leader {
            self.snapshots.clear();
            return;
        }
        let copying = |(id, peer): (&u64, &raft::Progress)| (peer.state == ProgressState::Snapshot).then_some(*id);
        let copying: Vec<u64> = self.node.raft.prs().iter().filter_map(copying).collect();
        self.snapshots.retain(|id, _| copying.contains(id));
        let timeout = SNAPSHOT_TIMEOUTS * self.config.election_ticks as u64;
        for id in copying {
            let since = *self.snapshots.entry(id).or_insert(self.ticks);
            if self.ticks - since >= timeout {
                self.snapshots.remove(&id);
                self.node.report_snapshot(id, SnapshotStatus::Failure);
            }
        }
    }

    /// A message to this member was lost.
    pub(crate) fn report_unreachable(&mut self, member: MemberId) {
        self.node.report_unreachable(member.0);
    }

    /// Lets another voter take over, if this member leads.
    pub(crate) fn move_leader(&mut self, to: MemberId) {
        if self.node.raft.state == StateRole::Leader {
            self.node.transfer_leader(to.0);
        }
    }

    /// The highest index that every peer is known to hold that was heard lately; this member's own last one if it does
    /// not lead, or leads alone. A peer that copies the state needs what comes after that.
    pub(crate) fn replicated(&self) -> u64 {
        let raft = &self.node.raft;
        let last = raft.raft_log.last_index();
        if raft.state != StateRole::Leader {
            return last;
        }
        let live = raft.prs().iter().filter(|(id, _)| self.is_active(MemberId(**id)));
        live.map(|(_, peer)| peer.matched.max(peer.pending_snapshot)).min().unwrap_or(last)
    }
}
