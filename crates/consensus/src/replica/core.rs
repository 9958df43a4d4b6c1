//! The sans-IO core: inputs are proposals, messages, ticks and progress reports; outputs are what to append, send and
//! apply, and answered barriers.
//!
//! Invariants: at most one appended batch of proposals waits for its sync; a barrier joins only a confirmation that
//! starts after it arrived.

use std::collections::VecDeque;

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, HardState, Message, MessageType, Snapshot};
use raft::{Config, GetEntriesContext, RaftState, RawNode, StateRole, Storage};
use tailwater_api::wire;
use tailwater_eventlog::{MemberId, Position, Term};
use tokio::sync::oneshot;

use crate::ProposeError;
use crate::raft_log::{RaftLogError, RaftLogView};

/// First byte of a normal entry's data: an encoded `CommandBatch` follows.
pub(crate) const ENTRY_FORMAT: u8 = 1;
/// Bytes of one append message.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;
/// Append messages on their way to one peer.
const INFLIGHT_MESSAGES_MAX: usize = 64;
/// Fewer queued commands than these are never kept waiting for more.
const GATHERED_MIN: usize = 64;
/// Bytes of committed entries handed to apply at once.
const COMMITTED_BYTES_MAX: u64 = 16 << 20;

/// An encoded command that waits to be proposed.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    /// 0: nobody waits.
    pub(crate) proposal_id: u64,
    /// Encoded `Command`.
    pub(crate) command: Bytes,
}

/// Who waits for a barrier.
pub(crate) type BarrierWaiter = oneshot::Sender<Result<Position, ProposeError>>;

/// What raft reads of its log.
pub(crate) struct RaftStore {
    view: RaftLogView,
    hard_state: HardState,
    conf_state: ConfState,
}

fn store_error(error: RaftLogError) -> raft::Error {
    match error {
        RaftLogError::Compacted { .. } => raft::Error::Store(raft::StorageError::Compacted),
        RaftLogError::Unavailable { .. } => raft::Error::Store(raft::StorageError::Unavailable),
        other => raft::Error::Store(raft::StorageError::Other(Box::new(other))),
    }
}

impl Storage for RaftStore {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState { hard_state: self.hard_state.clone(), conf_state: self.conf_state.clone() })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        self.view.entries(low, high, max_size.into()).map_err(store_error)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        self.view.term(index).map_err(store_error)
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.view.first_index())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.view.last_index())
    }

    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        Err(raft::Error::Store(raft::StorageError::SnapshotTemporarilyUnavailable))
    }
}

/// How the core is set up.
pub(crate) struct CoreConfig {
    pub(crate) member_id: MemberId,
    pub(crate) election_ticks: usize,
    pub(crate) batch_bytes_max: usize,
    /// After so many ticks an unanswered read index is asked again.
    pub(crate) barrier_retry_ticks: u64,
    pub(crate) applied: Position,
    pub(crate) bootstrapped: bool,
    /// Of election timeouts.
    pub(crate) seed: u64,
}

/// Where raft stands, as others see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) leader: MemberId,
    pub(crate) term: Term,
    pub(crate) is_leader: bool,
}

/// What is to be made durable, in the order given.
#[derive(Debug)]
pub(crate) struct Append {
    /// Reported back through [`ReplicaCore::on_persisted`].
    pub(crate) number: u64,
    pub(crate) entries: Vec<Entry>,
    pub(crate) hard_state: Option<HardState>,
    /// Whether it needs a sync.
    pub(crate) sync: bool,
    /// To be sent only once it is durable.
    pub(crate) messages: Vec<Message>,
}

/// What the driver has to do, in the order of the fields.
#[derive(Debug, Default)]
pub(crate) struct Outputs {
    /// To be sent now.
    pub(crate) messages: Vec<Message>,
    /// To the log thread.
    pub(crate) append: Option<Append>,
    /// To the apply thread.
    pub(crate) committed: Vec<Entry>,
    /// Proposals that raft did not take.
    pub(crate) dropped: Vec<u64>,
}

/// The core. One owner: the replica thread.
pub(crate) struct ReplicaCore {
    node: RawNode<RaftStore>,
    config: CoreConfig,
    queue: VecDeque<Pending>,
    dropped: Vec<u64>,
    /// Number of the last append that needs a sync, and of the last that has it.
    appended: u64,
    persisted: u64,
    applied: Position,
    bootstrapped: bool,
    held_back: bool,
    gathering: bool,
    ticks: u64,
    barriers: Vec<BarrierWaiter>,
    in_flight: Option<(u64, u64, Vec<BarrierWaiter>)>,
    barrier_seq: u64,
    confirmed: VecDeque<(u64, Vec<BarrierWaiter>)>,
}

impl ReplicaCore {
    /// A replica at what was recovered. A member that is alone in its group campaigns at once.
    pub(crate) fn new(
        config: CoreConfig,
        view: RaftLogView,
        mut hard_state: HardState,
        conf_state: ConfState,
    ) -> raft::Result<Self> {
        hard_state.commit = hard_state.commit.max(config.applied.0);
        let raft_config = Config {
            id: config.member_id.0,
            election_tick: config.election_ticks,
            heartbeat_tick: 1,
            applied: config.applied.0,
            max_size_per_msg: MESSAGE_BYTES_MAX,
            max_inflight_msgs: INFLIGHT_MESSAGES_MAX,
            check_quorum: true,
            pre_vote: true,
            max_committed_size_per_ready: COMMITTED_BYTES_MAX,
            ..Default::default()
        };
        let alone = conf_state.voters == [config.member_id.0] && conf_state.voters_outgoing.is_empty();
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&raft_config, RaftStore { view, hard_state, conf_state }, &logger)?;
        let mut core = Self {
            node,
            queue: VecDeque::new(),
            dropped: Vec::new(),
            appended: 0,
            persisted: 0,
            applied: config.applied,
            bootstrapped: config.bootstrapped,
            config,
            held_back: false,
            gathering: false,
            ticks: 0,
            barriers: Vec::new(),
            in_flight: None,
            barrier_seq: 0,
            confirmed: VecDeque::new(),
        };
        if alone {
            core.node.campaign()?;
        }
        Ok(core)
    }

    /// Leader, term and role.
    pub(crate) fn standing(&self) -> Standing {
        let raft = &self.node.raft;
        Standing { leader: MemberId(raft.leader_id), term: Term(raft.term), is_leader: raft.state == StateRole::Leader }
    }

    /// The committed index.
    pub(crate) fn committed(&self) -> u64 {
        self.node.raft.raft_log.committed
    }

    /// The highest index that every member is known to hold; this member's own last one in a group of one.
    pub(crate) fn replicated(&self) -> u64 {
        let raft = &self.node.raft;
        if raft.state != StateRole::Leader {
            return raft.raft_log.last_index();
        }
        raft.prs().iter().map(|(_, progress)| progress.matched).min().unwrap_or(0)
    }

    /// Whether the leader has applied the first entry of its term and the history was founded.
    pub(crate) fn serves(&self) -> bool {
        self.bootstrapped && self.caught_up()
    }

    /// Whether it leads, has applied an entry of its term, and found no history.
    pub(crate) fn needs_bootstrap(&self) -> bool {
        !self.bootstrapped && self.caught_up()
    }

    fn caught_up(&self) -> bool {
        let raft = &self.node.raft;
        raft.state == StateRole::Leader && raft.raft_log.term(self.applied.0).is_ok_and(|term| term == raft.term)
    }

    /// One tick of the clock.
    pub(crate) fn tick(&mut self) {
        self.ticks += 1;
        self.choose_election_timeout();
        self.node.tick();
        if self.in_flight.as_ref().is_some_and(|(_, asked, _)| self.ticks - asked >= self.config.barrier_retry_ticks) {
            self.ask_again();
        }
    }

    /// Between one and two election timeouts, as raft wants it, but from the member's own seed rather than from a global
    /// generator: a simulation repeats it.
    fn choose_election_timeout(&mut self) {
        let raft = &mut self.node.raft;
        let spread = self.config.seed ^ raft.term.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let spread = usize::try_from((spread ^ spread >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93) >> 40).unwrap_or(0);
        let ticks = self.config.election_ticks;
        raft.set_randomized_election_timeout(ticks + spread % ticks);
    }

    /// A message of another member. Errors mean that it does not concern this member now.
    pub(crate) fn step(&mut self, message: Message) {
        if self.held_back && message.msg_type() == MessageType::MsgAppend {
            // As if it were lost: the leader sends it again.
            return;
        }
        if let Err(error) = self.node.step(message) {
            tracing::debug!(%error, "raft message passed over");
        }
    }

    /// A message to this member was lost.
    pub(crate) fn report_unreachable(&mut self, member: MemberId) {
        self.node.report_unreachable(member.0);
    }

    /// Lets another voter take over, if this member leads.
    pub(crate) fn move_leader(&mut self, to: MemberId) {
        self.node.transfer_leader(to.0);
    }

    /// Queues a command; it is proposed once this member leads and serves.
    pub(crate) fn propose(&mut self, pending: Pending) {
        self.queue.push_back(pending);
    }

    /// Proposes a command that founds the history; everything else waits for it.
    pub(crate) fn propose_bootstrap(&mut self, command: Bytes) {
        let pending = Pending { proposal_id: 0, command };
        // A drop shows as a history that is still missing, and is repeated.
        if let Err(error) = self.node.propose(Vec::new(), entry_data(std::slice::from_ref(&pending))) {
            tracing::warn!(%error, "bootstrap was not proposed");
        }
    }

    /// Asks for a position that a linearizable read must have reached.
    pub(crate) fn barrier(&mut self, waiter: BarrierWaiter) {
        self.barriers.push(waiter);
    }

    /// Everything up to this append is durable.
    pub(crate) fn on_persisted(&mut self, number: u64) {
        if number > self.persisted {
            self.persisted = number;
            self.node.on_persist_ready(number);
        }
    }

    /// Everything up to this position is applied.
    pub(crate) fn on_applied(&mut self, applied: Position, bootstrapped: bool) {
        self.bootstrapped |= bootstrapped;
        if applied > self.applied {
            self.applied = applied;
            self.node.advance_apply_to(applied.0);
        }
        self.answer_confirmed();
    }

    /// What is to be done now; `None` when nothing is left.
    pub(crate) fn take_ready(&mut self) -> Option<Outputs> {
        self.propose_queued();
        self.start_confirmation();
        if !self.node.has_ready() && self.dropped.is_empty() {
            return None;
        }
        let mut outputs = Outputs { dropped: std::mem::take(&mut self.dropped), ..Default::default() };
        if !self.node.has_ready() {
            return Some(outputs);
        }
        let mut ready = self.node.ready();
        outputs.messages = ready.take_messages();
        outputs.committed = ready.take_committed_entries();
        let read_states = ready.take_read_states();
        let messages = ready.take_persisted_messages();
        let entries = ready.take_entries();
        let (number, sync, hard_state) = (ready.number(), ready.must_sync(), ready.hs().cloned());
        // Raft must be able to read the entries before it is told that they are on their way.
        self.node.store().view.stage(&entries);
        self.node.advance_append_async(ready);
        let idle = self.persisted >= self.appended;
        if !sync && idle {
            // Nothing that a promise rests on, and nothing before it to wait for.
            outputs.messages.extend(messages);
            self.persisted = number;
            self.appended = number;
            self.node.on_persist_ready(number);
        } else {
            self.appended = number;
            outputs.append = Some(Append { number, entries, hard_state, sync, messages });
        }
        for state in read_states {
            self.on_read_index(&state.request_ctx, state.index);
        }
        Some(outputs)
    }

    /// Takes back queued commands up to this proposal; nobody waits for them any more.
    pub(crate) fn withdraw(&mut self, proposal_id: u64) {
        self.queue.retain(|pending| pending.proposal_id == 0 || pending.proposal_id > proposal_id);
    }

    /// While apply is behind, nothing is proposed or taken from a leader, and committed entries come out singly. What
    /// keeps terms and leadership alive goes on.
    pub(crate) fn hold_back(&mut self, held_back: bool) {
        if std::mem::replace(&mut self.held_back, held_back) != held_back {
            let bytes = if held_back { 0 } else { COMMITTED_BYTES_MAX };
            self.node.raft.set_max_committed_size_per_ready(bytes);
        }
    }

    /// While it gathers, a batch that is worth it waits for more commands.
    pub(crate) fn gather(&mut self, gathering: bool) {
        self.gathering = gathering;
    }

    /// Leadership is lost or has changed: what is queued is not proposed, and reads whose confirmation is open fail.
    /// Confirmed reads stay: they were confirmed before, and are answered once applied.
    pub(crate) fn abandon(&mut self) {
        let in_flight = self.in_flight.take().map(|(_, _, waiters)| waiters).unwrap_or_default();
        for waiter in in_flight.into_iter().chain(self.barriers.drain(..)) {
            let _ = waiter.send(Err(ProposeError::LeaderChanged));
        }
        self.queue.clear();
    }

    /// One batch at a time: what comes while it is synced becomes the next.
    fn propose_queued(&mut self) {
        if self.held_back || self.queue.is_empty() || !self.serves() || self.persisted < self.appended {
            return;
        }
        if self.gathering && self.queue.len() >= GATHERED_MIN {
            return;
        }
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some(next) = self.queue.front() {
            if !batch.is_empty() && bytes + next.command.len() > self.config.batch_bytes_max {
                break;
            }
            bytes += next.command.len();
            batch.extend(self.queue.pop_front());
        }
        metrics::histogram!(crate::metrics::COMMANDS_PER_ENTRY).record(batch.len() as f64);
        if let Err(error) = self.node.propose(Vec::new(), entry_data(&batch)) {
            tracing::debug!(%error, "proposals were not taken");
            self.dropped.extend(batch.iter().map(|pending| pending.proposal_id));
        }
    }

    fn start_confirmation(&mut self) {
        if self.in_flight.is_none() && !self.barriers.is_empty() && self.serves() {
            let waiters = std::mem::take(&mut self.barriers);
            self.ask(waiters);
        }
    }

    fn ask(&mut self, waiters: Vec<BarrierWaiter>) {
        self.barrier_seq += 1;
        self.in_flight = Some((self.barrier_seq, self.ticks, waiters));
        self.node.read_index(self.barrier_seq.to_be_bytes().to_vec());
    }

    /// Raft drops a read silently around an election, so one without an answer is asked again, with who came since.
    fn ask_again(&mut self) {
        let Some((_, _, mut waiters)) = self.in_flight.take() else { return };
        waiters.append(&mut self.barriers);
        waiters.retain(|waiter| !waiter.is_closed());
        if !waiters.is_empty() {
            self.ask(waiters);
        }
    }

    fn on_read_index(&mut self, context: &[u8], index: u64) {
        let asked = self.in_flight.as_ref().is_some_and(|(seq, _, _)| seq.to_be_bytes() == context);
        if let Some((_, _, waiters)) = self.in_flight.take_if(|_| asked) {
            self.confirmed.push_back((index, waiters));
            self.answer_confirmed();
        }
    }

    fn answer_confirmed(&mut self) {
        while self.confirmed.front().is_some_and(|(index, _)| *index <= self.applied.0) {
            let (index, waiters) = self.confirmed.pop_front().expect("just seen");
            for waiter in waiters {
                // Whoever no longer waits needs no answer.
                let _ = waiter.send(Ok(Position(index)));
            }
        }
    }
}

/// The data of an entry: format byte, then an encoded `CommandBatch` of commands that are encoded already.
fn entry_data(batch: &[Pending]) -> Vec<u8> {
    let bytes: usize = batch.iter().map(|pending| wire::bytes_field_len(1, pending.command.len())).sum();
    let mut data = Vec::with_capacity(1 + bytes);
    data.push(ENTRY_FORMAT);
    for pending in batch {
        wire::put_bytes_header(&mut data, 1, pending.command.len());
        data.extend_from_slice(&pending.command);
    }
    data
}

#[cfg(test)]
mod tests;
