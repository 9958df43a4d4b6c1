//! The sans-IO core: inputs are proposals, messages, ticks and progress reports; outputs are what to append, send and
//! apply, and answered barriers.
//!
//! Invariants: at most one appended batch of proposals waits for its sync; a barrier joins only a confirmation that
//! starts after it arrived.

mod doubt;
mod install;
mod membership;
mod peers;
mod store;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use prost::Message as _;
use raft::eraftpb::{Entry, EntryType, HardState, Message};
use raft::{Config, RawNode, StateRole};
use tailwater_api::{wire, write};
use tailwater_eventlog::{Member, MemberId, Position, Term};
use tokio::sync::oneshot;

use crate::ProposeError;
use crate::machine::Group;
use crate::raft_log::{LogPoint, RaftLogView};
use doubt::Doubt;
pub(crate) use install::Install;
pub(crate) use membership::Change;
pub use peers::CatchUp;
use store::RaftStore;

/// First byte of a normal entry's data: an encoded `CommandBatch` follows.
pub(crate) const ENTRY_FORMAT: u8 = 1;
/// Bytes of one append message.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;
/// Append messages on their way to one peer: as many full ones as it may be behind in bytes. One entry may be larger than
/// a message, by as much as a batch of commands is.
const INFLIGHT_MESSAGES_MAX: usize = 32;
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
    /// What it changes in the group, if it does: then it is an entry of its own.
    pub(crate) change: Option<Change>,
}

/// Who waits for a barrier.
pub(crate) type BarrierWaiter = oneshot::Sender<Result<Position, ProposeError>>;

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
    /// Tells this run of the member from others.
    pub(crate) run_id: u64,
    /// Whether its log was cut, and nothing shows yet that the group lost nothing by it.
    pub(crate) doubtful: bool,
    /// Whether changes of membership are refused that could cost the quorum.
    pub(crate) strict_reconfig_check: bool,
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
    /// Where the log begins anew, before the entries.
    pub(crate) reset: Option<LogPoint>,
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
    /// Proposals that were not proposed, and why.
    pub(crate) refused: Vec<(u64, ProposeError)>,
    /// Whether the doubt about the log has ended: to the log thread.
    pub(crate) settled: bool,
    /// Whether the log now stands behind a state that was taken over: to the apply thread.
    pub(crate) installed: bool,
}

/// The core. One owner: the replica thread.
pub(crate) struct ReplicaCore {
    node: RawNode<RaftStore>,
    config: CoreConfig,
    queue: VecDeque<Pending>,
    /// Changes of membership; one at a time is proposed.
    changes: VecDeque<Pending>,
    refused: Vec<(u64, ProposeError)>,
    /// The group as it is applied here, and the index of the entry that made it so.
    members: Vec<Member>,
    group_index: u64,
    /// Tick at which a member was last heard.
    heard: BTreeMap<u64, u64>,
    /// Tick at which a member that needs a snapshot was last told so.
    snapshots: BTreeMap<u64, u64>,
    /// While this member can't be sure of its log.
    doubt: Option<Doubt>,
    /// Questions of members in doubt that wait for a confirmation of leadership.
    doubters: Vec<Message>,
    doubters_in_flight: Vec<Message>,
    /// Messages that are not raft's, to be sent now.
    own_messages: Vec<Message>,
    /// A copied state that raft has not yet taken over, and the index of one whose log is being reset.
    install: Option<Install>,
    installing: Option<u64>,
    /// Committed entries, from a change of the group on, that wait until it is durable that they are committed; each
    /// with the append that makes it so.
    committed: VecDeque<(u64, Vec<Entry>)>,
    /// Whether the group, as it is applied here, has removed this member.
    removed: bool,
    /// Why this member must stop.
    failure: Option<String>,
    /// What the leader wants this member to copy before it can go on.
    catch_up: Option<CatchUp>,
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
    /// A replica at what was recovered, the group being what it was at the applied position. A member that is alone in its
    /// group campaigns at once; one without a configuration waits for what a leader sends.
    pub(crate) fn new(
        config: CoreConfig,
        view: RaftLogView,
        mut hard_state: HardState,
        group: Group,
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
        let alone = group.conf_state.voters == [config.member_id.0];
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let store = RaftStore { view, hard_state, conf_state: group.conf_state, applied: config.applied.0 };
        let node = RawNode::new(&raft_config, store, &logger)?;
        let mut core = Self {
            node,
            queue: VecDeque::new(),
            changes: VecDeque::new(),
            refused: Vec::new(),
            members: group.members,
            group_index: config.applied.0,
            removed: group.removed.contains(&config.member_id),
            heard: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            doubt: None,
            doubters: Vec::new(),
            doubters_in_flight: Vec::new(),
            own_messages: Vec::new(),
            install: None,
            installing: None,
            committed: VecDeque::new(),
            failure: None,
            catch_up: None,
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
        } else if core.config.doubtful {
            core.doubt = Some(Doubt::new());
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

    /// Whether the leader has applied the first entry of its term and the history was founded.
    pub(crate) fn serves(&self) -> bool {
        self.bootstrapped && self.caught_up()
    }

    /// Whether it serves and nobody else votes. What is applied here is then all that was acknowledged anywhere: another
    /// leader needs a group with other voters first, which this member would have applied.
    pub(crate) fn serves_alone(&self) -> bool {
        self.serves() && self.node.raft.prs().is_singleton()
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
        self.retry_snapshots();
        self.ask_leader();
        self.ask_whether_removed();
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

    /// Queues a command; it is proposed once this member leads and serves.
    pub(crate) fn propose(&mut self, pending: Pending) {
        match pending.change {
            Some(_) => self.changes.push_back(pending),
            None => self.queue.push_back(pending),
        }
    }

    /// Where commands wait to be proposed, the append that is to come tells the others what is committed: an empty one of
    /// its own, and an answer to it, would be half of all messages under load. Heartbeats tell it in any case.
    pub(crate) fn spare_commit_messages(&mut self) {
        let about_to_propose = !self.queue.is_empty() && !self.held_back && self.node.raft.lead_transferee.is_none();
        self.node.skip_bcast_commit(about_to_propose);
    }

    /// Proposes a command that founds the history; everything else waits for it.
    pub(crate) fn propose_bootstrap(&mut self, command: Bytes) {
        let pending = Pending { proposal_id: 0, command, change: None };
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
            self.advance_raft();
        }
    }

    /// Everything up to this position is applied.
    pub(crate) fn on_applied(&mut self, applied: Position, bootstrapped: bool) {
        self.bootstrapped |= bootstrapped;
        if applied > self.applied {
            self.applied = applied;
            let store = self.node.mut_store();
            store.applied = store.applied.max(applied.0);
            self.advance_raft();
        }
        self.answer_confirmed();
    }

    /// Number of the newest append that is durable, as far as it was told.
    pub(crate) fn persisted(&self) -> u64 {
        self.persisted
    }

    /// Whether something goes on only once more is durable. A follower's acknowledgements leave without this thread.
    pub(crate) fn awaits_persisted(&self) -> bool {
        let raft = &self.node.raft;
        let copies = self.install.is_some() || self.installing.is_some();
        let commits = raft.raft_log.committed > raft.raft_log.persisted || !self.committed.is_empty();
        raft.state != StateRole::Follower || commits || copies || self.doubt.is_some()
    }

    /// What is applied, as far as it was told.
    pub(crate) fn applied(&self) -> Position {
        self.applied
    }

    /// Whether something goes on only once more is applied.
    pub(crate) fn awaits_applied(&self) -> bool {
        let leads = self.node.raft.state == StateRole::Leader;
        leads && !self.serves() || !self.confirmed.is_empty() || !self.changes.is_empty() || self.doubt.is_some()
    }

    /// What is to be done now; `None` when nothing is left.
    pub(crate) fn take_ready(&mut self) -> Option<Outputs> {
        self.take_over();
        self.propose_queued();
        self.start_confirmation();
        let (settled, installed) = (self.settle(), self.is_installed());
        let committed = self.durably_committed();
        let own = !self.refused.is_empty() || !self.own_messages.is_empty() || !committed.is_empty();
        if !self.node.has_ready() && !own && !settled && !installed {
            return None;
        }
        let messages = std::mem::take(&mut self.own_messages);
        let refused = std::mem::take(&mut self.refused);
        let mut outputs = Outputs { messages, refused, committed, settled, installed, ..Default::default() };
        if !self.node.has_ready() {
            return Some(outputs);
        }
        let mut ready = self.node.ready();
        outputs.messages.extend(ready.take_messages());
        let committed = ready.take_committed_entries();
        let read_states = ready.take_read_states();
        let messages = ready.take_persisted_messages();
        let entries = ready.take_entries();
        let (number, mut sync, mut hard_state) = (ready.number(), ready.must_sync(), ready.hs().cloned());
        if committed.iter().any(|entry| entry.entry_type() != EntryType::EntryNormal) {
            // The commit may have been seen earlier, and not been written.
            (sync, hard_state) = (true, Some(self.node.raft.hard_state()));
        }
        let snapshot = ready.snapshot().get_metadata();
        let reset =
            Some(LogPoint { index: snapshot.index, term: snapshot.term }).filter(|point| *point != LogPoint::default());
        if let Some(point) = reset {
            self.node.store().view.stage_snapshot(point);
        }
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
            outputs.append = Some(Append { number, reset, entries, hard_state, sync, messages });
        }
        self.hold_changes(number, committed, &mut outputs.committed);
        for state in read_states {
            self.on_read_index(&state.request_ctx, state.index);
        }
        Some(outputs)
    }

    /// Committed entries go on to be applied, up to the first that changes the group: that one, and what comes after it,
    /// waits until it is durable that it is committed. A group that has changed must not be forgotten by all who stay,
    /// since who has left can't be asked any more.
    fn hold_changes(&mut self, number: u64, mut committed: Vec<Entry>, free: &mut Vec<Entry>) {
        if self.committed.is_empty() {
            let is_change = |entry: &Entry| entry.entry_type() != EntryType::EntryNormal;
            let held = committed.iter().position(is_change).unwrap_or(committed.len());
            free.extend(committed.drain(..held));
        }
        if !committed.is_empty() {
            self.committed.push_back((number, committed));
        }
    }

    /// What no longer waits.
    fn durably_committed(&mut self) -> Vec<Entry> {
        let mut committed = Vec::new();
        while let Some((_, entries)) = self.committed.pop_front_if(|(number, _)| *number <= self.persisted) {
            committed.extend(entries);
        }
        committed
    }

    /// Takes back queued commands up to this proposal; nobody waits for them any more.
    pub(crate) fn withdraw(&mut self, proposal_id: u64) {
        let wanted = |pending: &Pending| pending.proposal_id == 0 || pending.proposal_id > proposal_id;
        self.queue.retain(wanted);
        self.changes.retain(wanted);
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
    /// Confirmed reads stay: they were confirmed before, and are answered once applied. Returns the queued proposals,
    /// which never had an effect.
    pub(crate) fn abandon(&mut self) -> Vec<u64> {
        self.doubters.clear();
        self.doubters_in_flight.clear();
        let in_flight = self.in_flight.take().map(|(_, _, waiters)| waiters).unwrap_or_default();
        for waiter in in_flight {
            // Whoever no longer waits needs no answer.
            let _ = waiter.send(Err(ProposeError::LeaderChanged));
        }
        for waiter in self.barriers.drain(..) {
            let _ = waiter.send(Err(ProposeError::NoLeader));
        }
        self.queue.drain(..).chain(self.changes.drain(..)).map(|pending| pending.proposal_id).collect()
    }

    /// One batch at a time: what comes while it is synced becomes the next. While leadership is being handed over raft
    /// takes nothing, and what is queued waits for the outcome.
    fn propose_queued(&mut self) {
        let nothing = self.queue.is_empty() && self.changes.is_empty();
        let handing_over = self.node.raft.lead_transferee.is_some();
        if nothing || handing_over || self.held_back || !self.serves() || self.persisted < self.appended {
            return;
        }
        self.propose_batch();
        self.propose_change();
    }

    fn propose_batch(&mut self) {
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
        if batch.is_empty() {
            return;
        }
        metrics::histogram!(crate::metrics::COMMANDS_PER_ENTRY).record(batch.len() as f64);
        if let Err(error) = self.node.propose(Vec::new(), entry_data(&batch)) {
            tracing::debug!(%error, "proposals were not taken");
            self.refused.extend(batch.iter().map(|pending| (pending.proposal_id, ProposeError::TooManyRequests)));
        }
    }

    fn start_confirmation(&mut self) {
        let asked = !self.barriers.is_empty() || !self.doubters.is_empty();
        if self.in_flight.is_none() && asked && self.serves() {
            let waiters = std::mem::take(&mut self.barriers);
            self.ask(waiters);
        }
    }

    fn ask(&mut self, waiters: Vec<BarrierWaiter>) {
        if self.node.raft.state != StateRole::Leader {
            // Raft would pass the question on to a leader, under a number that is not that leader's own. The change of
            // leader, which is about to be seen, ends these waits.
            self.barriers.extend(waiters);
            return;
        }
        self.barrier_seq += 1;
        self.doubters_in_flight.append(&mut self.doubters);
        self.in_flight = Some((self.barrier_seq, self.ticks, waiters));
        self.node.read_index(self.barrier_seq.to_be_bytes().to_vec());
    }

    /// Raft drops a read silently around an election, so one without an answer is asked again, with who came since.
    fn ask_again(&mut self) {
        let Some((_, _, mut waiters)) = self.in_flight.take() else { return };
        waiters.append(&mut self.barriers);
        waiters.retain(|waiter| !waiter.is_closed());
        if !waiters.is_empty() || !self.doubters.is_empty() || !self.doubters_in_flight.is_empty() {
            self.ask(waiters);
        }
    }

    fn on_read_index(&mut self, context: &[u8], index: u64) {
        let asked = self.in_flight.as_ref().is_some_and(|(seq, _, _)| seq.to_be_bytes() == context);
        if let Some((_, _, waiters)) = self.in_flight.take_if(|_| asked) {
            self.confirmed.push_back((index, waiters));
            self.answer_confirmed();
            let doubters = std::mem::take(&mut self.doubters_in_flight);
            self.answer_doubters(doubters);
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

/// The data of an entry that holds one command.
pub(crate) fn one_command(command: &write::Command) -> Vec<u8> {
    entry_data(&[Pending { proposal_id: 0, command: command.encode_to_vec().into(), change: None }])
}

#[cfg(test)]
mod tests;
