//! The apply thread: runs the machine over committed entries, writes the event log, publishes to the tail, answers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use crossbeam::channel::{self, TryRecvError};
use prost::Message;
use raft::eraftpb::{Entry, EntryType};
use tailwater_api::write::{self, Caller, CommandBatch, command::Command};
use tailwater_eventlog::{
    Cursor, EventKind, EventLog, Fact, Frame, LeaseId, LogState, MemberId, Position, Revision, Staged, StorageError,
    Tail, TailConfig, Term,
};
use tokio::sync::oneshot;

use super::core::{ENTRY_FORMAT, Install};
use super::queue::Receiver;
use super::shared::{Shared, Waiter};
use crate::machine::{Group, LeaseChange, Machine, MachineError, Output, quota};
use crate::{Answer, Applied, ApplyError, InstallError, PeerTransport, ProposeError, Right};

/// Bytes of events gathered from several entries into one write.
const WRITE_BYTES_MAX: usize = 4 << 20;
/// Commands gathered into one write.
const ANSWERS_MAX: usize = 4096;
/// Index keys looked at between two batches while a compaction is under way.
const INDEX_KEYS: usize = 1000;

/// Work of the apply thread.
pub(crate) enum ApplyJob {
    /// Committed entries, in order.
    Entries(Vec<Entry>),
    /// What this member knows of the leader, in the tail's order.
    Leader(Option<MemberId>, Term),
    /// Keys attached to a lease.
    LeaseKeys(LeaseId, oneshot::Sender<Option<Vec<Bytes>>>),
    /// Whether a client has a right to the keys of a lease, or of all.
    CheckLease(Caller, Right, Option<LeaseId>, oneshot::Sender<Result<(), ApplyError>>),
    /// Folding has caught up with the compacted revision.
    Folded,
    /// Go on at a copied state; answered when that is durable.
    Install(Box<Staged>, oneshot::Sender<Result<(), InstallError>>),
    /// The raft log stands behind the copied state.
    Installed,
}

type Answered = (Waiter, Position, Result<Answer, ApplyError>);

/// The thread's state.
pub(crate) struct Applier {
    pub(crate) shared: Arc<Shared>,
    pub(crate) machine: Machine,
    pub(crate) events: EventLog,
    /// Made once the history is known.
    pub(crate) tail: Option<Tail>,
    /// Told of the tail when it is made.
    pub(crate) tail_made: channel::Sender<Tail>,
    /// Told of the members.
    pub(crate) peers: Arc<dyn PeerTransport>,
    /// Entries up to here are in a state that was taken over, should they still come.
    installed: Position,
    /// What the tail was told of the leader last.
    leader: Option<Fact>,
    /// Changes of the group in entries not yet written.
    groups: Vec<(u64, Group)>,
    /// Facts that wait for the end of the round.
    facts: Vec<Fact>,
    answers: Vec<Answered>,
    /// Physical compactions by the fold point that answers them, which grows.
    physical: VecDeque<(Revision, Answered)>,
    /// Entries applied and not yet written, and their bytes.
    entries: usize,
    entry_bytes: usize,
}

impl Applier {
    /// At what was loaded. The tail of a founded history is made at once.
    pub(crate) fn new(
        shared: Arc<Shared>,
        machine: Machine,
        events: EventLog,
        tail_made: channel::Sender<Tail>,
        peers: Arc<dyn PeerTransport>,
    ) -> Self {
        let mut applier = Self {
            shared,
            machine,
            events,
            tail: None,
            tail_made,
            peers,
            installed: Position(0),
            leader: None,
            groups: Vec::new(),
            facts: Vec::new(),
            answers: Vec::new(),
            physical: VecDeque::new(),
            entries: 0,
            entry_bytes: 0,
        };
        applier.make_tail();
        applier
    }

    fn make_tail(&mut self) {
        let state = self.machine.state();
        if self.tail.is_some() || !self.machine.bootstrapped() {
            return;
        }
        let config = TailConfig { hot_bytes_max: self.shared.config.tail_hot_bytes_max };
        let mut facts = self.machine.facts();
        facts.append(&mut self.facts);
        let tail = Tail::new(config, cursor(state), facts);
        // Nobody waits for it any more only when the start was given up.
        let _ = self.tail_made.send(tail.clone());
        self.tail = Some(tail);
    }

    /// Runs until all senders are gone.
    pub(crate) fn run(mut self, jobs: &Receiver<ApplyJob>) -> Result<(), String> {
        let end = loop {
            let first = match jobs.try_recv() {
                Ok(job) => job,
                Err(TryRecvError::Disconnected) => break Ok(()),
                // A compaction's work in the index fills the pauses, a bounded step at a time.
                Err(TryRecvError::Empty) if !self.machine.index_step(INDEX_KEYS) => continue,
                Err(TryRecvError::Empty) => match jobs.recv() {
                    Ok(job) => job,
                    Err(_) => break Ok(()),
                },
            };
            if let Err(error) = self.round(first, jobs) {
                break Err(error.to_string());
            }
        };
        if let Some(tail) = &self.tail {
            tail.close();
        }
        end
    }

    /// One turn; `false` when there was nothing to do.
    pub(crate) fn step(&mut self, jobs: &Receiver<ApplyJob>) -> Result<bool, String> {
        match jobs.try_recv() {
            Ok(first) => self.round(first, jobs).map_err(|error| error.to_string()).map(|()| true),
            Err(_) => Ok(!self.machine.index_step(INDEX_KEYS)),
        }
    }

    /// Applies what waits, bounded, and finishes it with one write.
    fn round(&mut self, first: ApplyJob, jobs: &Receiver<ApplyJob>) -> Result<(), MachineError> {
        let began = Instant::now();
        self.job(first)?;
        while self.machine.output_bytes() < WRITE_BYTES_MAX && self.answers.len() < ANSWERS_MAX {
            let Ok(job) = jobs.try_recv() else { break };
            self.job(job)?;
        }
        self.finish()?;
        self.machine.index_step(INDEX_KEYS);
        metrics::histogram!(crate::metrics::APPLY_SECONDS).record(began.elapsed().as_secs_f64());
        Ok(())
    }

    fn job(&mut self, job: ApplyJob) -> Result<(), MachineError> {
        match job {
            ApplyJob::Entries(entries) => {
                self.entry_bytes += entry_bytes(&entries);
                for entry in entries {
                    self.entry(&entry)?;
                }
            }
            ApplyJob::Leader(leader, term) => {
                self.leader = Some(Fact::Leader(leader, term));
                self.facts.push(Fact::Leader(leader, term));
            }
            ApplyJob::LeaseKeys(id, reply) => {
                // Whoever no longer waits needs no answer.
                let _ = reply.send(self.machine.lease_keys(id));
            }
            ApplyJob::CheckLease(caller, right, lease, reply) => {
                let _ = reply.send(self.machine.check_lease_caller(&caller, right, lease));
            }
            ApplyJob::Folded => self.answer_physical(),
            ApplyJob::Install(staged, reply) => {
                let installed = self.install(*staged)?;
                // The switch is made, whoever waits for it.
                let _ = reply.send(installed);
            }
            ApplyJob::Installed => self.events.installed_settled()?,
        }
        Ok(())
    }

    fn entry(&mut self, entry: &Entry) -> Result<(), MachineError> {
        if entry.index <= self.installed.0 {
            return Ok(());
        }
        self.machine.advance(Position(entry.index), Term(entry.term));
        self.entries += 1;
        for command in commands(entry)? {
            self.command(Position(entry.index), command)?;
        }
        if self.machine.take_group_changed() {
            self.groups.push((entry.index, self.machine.group()));
        }
        Ok(())
    }

    fn command(&mut self, position: Position, command: write::Command) -> Result<(), MachineError> {
        let write::Command { proposal_id, proposer_id, caller, command } = command;
        let own = proposer_id == self.shared.proposer_id;
        let waiter = if own { self.shared.take_waiter(proposal_id) } else { None };
        let fold_wanted = match &command {
            Some(Command::Compact(request)) if request.physical => Some(Revision(request.revision.saturating_sub(1))),
            _ => None,
        };
        let cost = command.as_ref().map_or(0, quota::cost);
        let mut answer = match self.machine.apply(&self.events, caller.as_ref(), command, waiter.is_some()) {
            Ok(answer) => Ok(answer),
            Err(MachineError::Refused(refused)) => Err(refused),
            Err(error) => return Err(error),
        };
        let Some(waiter) = waiter else { return Ok(()) };
        // Members differ in how full they are, so the one command that overran is applied, and only its answer says so.
        if cost > 0 && answer.is_ok() && crate::handle::over_quota(&self.events, self.shared.config.quota_bytes, cost) {
            crate::handle::raise_no_space(&self.shared);
            answer = Err(ApplyError::NoSpace);
        }
        let answered = (waiter, position, answer);
        match fold_wanted.filter(|_| answered.2.is_ok()) {
            Some(fold_point) => self.physical.push_back((fold_point, answered)),
            None => self.answers.push(answered),
        }
        Ok(())
    }

    /// Write, publish, answer: in this order, so that whoever has an answer finds what it tells.
    fn finish(&mut self) -> Result<(), StorageError> {
        let output = self.machine.take_output();
        let entry_bytes = std::mem::take(&mut self.entry_bytes);
        if std::mem::take(&mut self.entries) > 0 {
            let began = Instant::now();
            self.events.write(&output.write)?;
            metrics::histogram!(crate::metrics::COMMIT_SECONDS).record(began.elapsed().as_secs_f64());
            let state = output.write.log_state;
            count(&output);
            if let Some((_, group)) = self.groups.last() {
                self.peers.set_members(&group.members);
            }
            let mut facts = output.facts;
            facts.append(&mut self.facts);
            match &self.tail {
                Some(tail) => tail.publish(vec![Arc::new(Frame {
                    position: state.applied,
                    revision: state.revision,
                    events: output.write.events,
                    facts,
                    applied_at_ms: wall_clock_ms(),
                })]),
                None => {
                    self.facts = facts.into_iter().filter(|fact| matches!(fact, Fact::Leader(..))).collect();
                    self.make_tail();
                }
            }
            {
                let mut lessor = self.shared.lessor.lock();
                output.leases.into_iter().for_each(|change| lessor.apply(change));
            }
            if output.compacted {
                self.shared.fold_wanted.store(true, Ordering::Release);
            }
            metrics::gauge!(crate::metrics::PROPOSALS_APPLIED).set(state.applied.0 as f64);
            self.shared.bootstrapped.store(self.machine.bootstrapped(), Ordering::Release);
            let has_groups = !self.groups.is_empty();
            if has_groups {
                // Before the position, which tells raft that it has heard of them.
                self.shared.inbox.lock().groups.append(&mut self.groups);
            }
            if self.shared.applied.raise(state.applied.0) || has_groups {
                self.shared.wake();
            }
        } else if let Some(tail) = self.tail.as_ref().filter(|_| !self.facts.is_empty()) {
            // A leader that is gone shows no entry to travel with, and who follows must know now.
            let (state, facts) = (self.machine.state(), std::mem::take(&mut self.facts));
            let (position, revision) = (state.applied, state.revision);
            tail.publish(vec![Arc::new(Frame { position, revision, facts, ..Frame::default() })]);
        }
        self.shared.applying_bytes.fetch_sub(entry_bytes, Ordering::Relaxed);
        for (waiter, position, answer) in self.answers.drain(..) {
            answer_waiter(waiter, position, answer);
        }
        // One that had nothing to fold.
        self.answer_physical();
        Ok(())
    }

    /// Switches to a copied state that is ahead of this one, with everything that rests on it.
    fn install(&mut self, staged: Staged) -> Result<Result<(), InstallError>, MachineError> {
        // What was applied so far belongs to the old state.
        self.finish()?;
        let (own, copied) = (self.machine.state(), staged.state());
        if copied.applied <= own.applied {
            return Ok(Err(InstallError::Behind { own: own.applied, copied: copied.applied }));
        }
        if self.machine.bootstrapped() && copied.history != own.history {
            return Ok(Err(InstallError::OtherHistory));
        }
        let index = self.events.replace(staged)?;
        self.machine = Machine::open(&self.events, index)?;
        self.installed = copied.applied;
        let group = self.machine.group();
        self.peers.set_members(&group.members);
        self.shared.lessor.lock().replace(self.machine.lease_times());
        match &self.tail {
            Some(tail) => {
                let mut facts = self.machine.facts();
                facts.extend(self.leader.clone());
                tail.restart(cursor(copied), &facts);
            }
            None => self.make_tail(),
        }
        self.shared.fold_wanted.store(true, Ordering::Release);
        self.shared.bootstrapped.store(self.machine.bootstrapped(), Ordering::Release);
        let install = Install { index: copied.applied.0, term: copied.applied_term.0, group };
        self.shared.inbox.lock().install = Some(install);
        let _ = self.shared.applied.raise(copied.applied.0);
        // For what was installed, whoever waits for the position.
        self.shared.wake();
        tracing::info!(position = copied.applied.0, revision = copied.revision.0, "took over a copied state");
        Ok(Ok(()))
    }

    /// Answers the physical compactions whose history is folded: a later one may have been accepted since.
    fn answer_physical(&mut self) {
        let fold_point = self.events.state().fold_point;
        while let Some((_, (waiter, position, answer))) =
            self.physical.pop_front_if(|(wanted, _)| *wanted <= fold_point)
        {
            answer_waiter(waiter, position, answer);
        }
    }
}

/// What a batch of commands did.
fn count(output: &Output) {
    let events = &output.write.events;
    let puts = events.iter().filter(|event| event.kind() == EventKind::Put).count();
    // The second event of a revision tells that it has several.
    let txns = events.iter().filter(|event| event.sub() == 1).count();
    let granted = output.leases.iter().filter(|change| matches!(change, LeaseChange::Granted(..))).count();
    let gone = output.leases.iter().filter(|change| matches!(change, LeaseChange::Gone(_))).count();
    for (name, number) in [
        (crate::metrics::PUTS, puts),
        (crate::metrics::DELETES, events.len() - puts),
        (crate::metrics::TXNS, txns),
        (crate::metrics::LEASES_GRANTED, granted),
        (crate::metrics::LEASES_REVOKED, gone),
    ] {
        metrics::counter!(name).increment(number as u64);
    }
}

/// What an entry says is to be applied, in order. A change of raft's configuration is one command, in its context: raft is
/// told of its effect.
pub(crate) fn commands(entry: &Entry) -> Result<Vec<write::Command>, MachineError> {
    match entry.entry_type() {
        EntryType::EntryNormal => {
            // A new leader's first entry is empty.
            let Some((format, batch)) = entry.data.split_first() else { return Ok(Vec::new()) };
            if *format != ENTRY_FORMAT {
                return Err(MachineError::Unknown);
            }
            // Keys and values are slices of one copy of the entry.
            let batch = CommandBatch::decode(Bytes::copy_from_slice(batch)).map_err(|_| MachineError::Unknown)?;
            Ok(batch.commands)
        }
        EntryType::EntryConfChange => {
            let command = write::Command::decode(entry.context.as_slice()).map_err(|_| MachineError::Unknown)?;
            Ok(vec![command])
        }
        EntryType::EntryConfChangeV2 => Err(MachineError::Unknown),
    }
}

fn answer_waiter(waiter: Waiter, position: Position, answer: Result<Answer, ApplyError>) {
    let answer = answer.map(|answer| Applied { position, answer }).map_err(ProposeError::Refused);
    // Whoever no longer waits needs no answer.
    let _ = waiter.answer.send(answer);
}

/// Bytes of the entries' data, and a little for each.
pub(crate) fn entry_bytes(entries: &[Entry]) -> usize {
    entries.iter().map(|entry| entry.data.len() + size_of::<Entry>()).sum()
}

/// Where a reader of everything stands.
pub(crate) fn cursor(state: LogState) -> Cursor {
    Cursor { history: state.history, revision: state.revision, position: state.applied }
}

/// Milliseconds since 1970; a hint for whoever measures delays, never part of what is decided.
fn wall_clock_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
