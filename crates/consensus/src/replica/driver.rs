//! The replica thread: waits for one input, steps the core, performs what it asks.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam::channel::TrySendError;
use crossbeam::sync::Parker;
use prost::Message;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::write::{self, command::Command};
use tailwater_eventlog::{LeaseId, MemberId, Position};

use super::apply::{ApplyJob, entry_bytes};
use super::core::{Outputs, Pending, ReplicaCore, Standing};
use super::log::LogJob;
use super::queue::Sender;
use super::shared::Shared;
use crate::machine::Group;
use crate::peers::send_all;
use crate::{PeerTransport, ProposeError};

/// A disk whose syncs take at least this long is slow: what was just answered is worth waiting for.
const SLOW_SYNC: Duration = Duration::from_millis(4);
/// After a slow sync the next batch gathers for this part of the sync's duration. Else clients fall into two groups that
/// take turns, and no batch ever holds more than half of them.
const GATHERING_PART: u32 = 4;
/// Bytes of committed entries that wait to be applied; beyond it nothing is proposed.
const APPLYING_BYTES_MAX: usize = 64 << 20;

/// Election timeouts for which a member that was removed waits to hear that the others know it.
const REMOVED_TIMEOUTS_MAX: usize = 300;

/// Why a member stops that has left the group.
pub(crate) const REMOVED: &str = "this member was removed from the cluster";

/// The thread's state.
pub(crate) struct Driver {
    pub(crate) shared: Arc<Shared>,
    pub(crate) core: ReplicaCore,
    pub(crate) wake: Parker,
    pub(crate) log: Sender<LogJob>,
    pub(crate) apply: Sender<ApplyJob>,
    /// Jobs for which the apply thread's queue had no room, oldest first.
    pub(crate) backlog: VecDeque<ApplyJob>,
    pub(crate) peers: Arc<dyn PeerTransport>,
    /// Encoded command that founds the history, should that be needed.
    pub(crate) bootstrap: Bytes,
    pub(crate) standing: Standing,
    /// Term in which bootstrap was proposed, and in which the lessor was promoted.
    pub(crate) bootstrap_term: u64,
    pub(crate) promoted_term: u64,
    /// Ticks since this member learned from its log that it was removed.
    pub(crate) removed_ticks: Option<usize>,
    /// Whether it was noted, for the next start, that the others know it.
    pub(crate) removal_noted: bool,
}

impl Driver {
    /// Runs until it is asked to stop.
    pub(crate) fn run(mut self) -> Result<(), String> {
        let interval = self.shared.config.heartbeat_interval;
        let mut next_tick = Instant::now() + interval;
        let (mut persisted, mut gather_until) = (0, Instant::now());
        self.perform()?;
        loop {
            let gathering = Instant::now() < gather_until;
            // A timeout is a tick.
            self.wake.park_deadline(if gathering { gather_until.min(next_tick) } else { next_tick });
            if self.shared.stopping() {
                break;
            }
            let now = Instant::now();
            let is_tick = now >= next_tick;
            if is_tick {
                // After a pause the ticks that were missed are not made up for: nothing may expire by them.
                next_tick = (next_tick + interval).max(now);
            }
            let newest = self.shared.persisted.get();
            let sync = Duration::from_micros(self.shared.sync_micros.load(Ordering::Relaxed));
            if std::mem::replace(&mut persisted, newest) != newest && sync >= SLOW_SYNC {
                gather_until = now + sync / GATHERING_PART;
            }
            self.core.gather(now < gather_until);
            self.step(is_tick)?;
            self.await_progress();
        }
        Ok(())
    }

    /// Tells the log and apply threads whether they have to wake this one.
    fn await_progress(&self) {
        let awaits_applied = self.core.awaits_applied() || self.apply_is_behind();
        let applied = self.shared.applied.set_awaited(awaits_applied, self.core.applied().0);
        let persisted = self.shared.persisted.set_awaited(self.core.awaits_persisted(), self.core.persisted());
        if applied || persisted {
            self.shared.wake();
        }
    }

    /// One turn: the tick if it is time for one, what came, and what follows from it.
    pub(crate) fn step(&mut self, is_tick: bool) -> Result<(), String> {
        if is_tick {
            self.tick();
        }
        self.take_inputs();
        if let Some(reason) = self.core.failure() {
            return Err(reason);
        }
        self.perform()?;
        match self.has_left() {
            true => Err(REMOVED.to_owned()),
            false => Ok(()),
        }
    }

    /// Whether this member was removed and may stop: for an election timeout it tells the others what is committed and
    /// answers its clients; and it does not go before another one knows that the group can do without it.
    fn has_left(&mut self) -> bool {
        let timeout = self.shared.config.election_ticks;
        let told = self.shared.told_removed.load(Ordering::Acquire);
        if told && !std::mem::replace(&mut self.removal_noted, true) {
            // Where the log thread is gone, everything stops anyway.
            let _ = self.log.send(LogJob::NoteRemoved);
        }
        match self.removed_ticks {
            Some(ticks) => ticks >= if told { timeout } else { REMOVED_TIMEOUTS_MAX * timeout },
            None => told,
        }
    }

    fn tick(&mut self) {
        self.removed_ticks = self.removed_ticks.map(|ticks| ticks + 1);
        self.core.tick();
        let ticks = self.shared.ticks.fetch_add(1, Ordering::Relaxed) + 1;
        let no_leader = self.standing.leader == MemberId(0);
        let failed = self.shared.fail_waiters(
            |waiter| waiter.deadline <= ticks,
            || if no_leader { ProposeError::NoLeader } else { ProposeError::Timeout },
        );
        // What was told that it failed is not proposed after that.
        self.core.withdraw(failed);
        let retry_ticks = self.shared.config.election_ticks as u64;
        let (expired, checkpoints) = {
            let mut lessor = self.shared.lessor.lock();
            lessor.tick();
            (lessor.take_expired(retry_ticks), lessor.take_checkpoints())
        };
        if !expired.is_empty() {
            self.propose_own(Command::LeaseExpire(write::LeaseExpire { ids: expired }));
        }
        if !checkpoints.is_empty() {
            self.propose_own(Command::LeaseCheckpoint(checkpoint_request(checkpoints)));
        }
        metrics::gauge!(crate::metrics::PROPOSALS_PENDING).set(self.shared.waiters.lock().len() as f64);
    }

    /// Proposes what nobody waits for. If it is lost, the clock names the lease again, or does without its checkpoint.
    fn propose_own(&mut self, command: Command) {
        let command = write::Command { command: Some(command), ..Default::default() };
        self.core.propose(Pending { proposal_id: 0, command: command.encode_to_vec().into(), change: None });
    }

    fn take_inputs(&mut self) {
        // Read before the inbox: raft must know of each change of the group up to there.
        let applied = Position(self.shared.applied.get());
        let mut inbox = std::mem::take(&mut *self.shared.inbox.lock());
        // Held back while no leader is known; another leader's are the gateway's to route.
        let elsewhere = self.standing.leader != MemberId(0) && !self.standing.is_leader;
        // First, so that the next batch tells what the messages below commit.
        self.take_proposals(inbox.proposals, elsewhere);
        self.core.on_persisted(self.shared.persisted.get());
        let install = inbox.install.take();
        let installed = install.as_ref().map_or(u64::MAX, |install| install.index);
        let after = inbox.groups.partition_point(|(index, _)| *index < installed);
        let after = inbox.groups.split_off(after);
        self.reconfigure(std::mem::take(&mut inbox.groups));
        if let Some(install) = install {
            self.note_group(&install.group);
            self.core.install(install);
        }
        self.reconfigure(after);
        // Read after the position: a founded history must not be seen later than what founded it.
        self.core.on_applied(applied, self.shared.bootstrapped.load(Ordering::Acquire));
        inbox.messages.into_iter().for_each(|message| self.core.step(message));
        inbox.unreachable.into_iter().for_each(|member| self.core.report_unreachable(member));
        inbox.move_leader.into_iter().for_each(|member| self.core.move_leader(member));
        for waiter in inbox.barriers {
            match elsewhere {
                true => drop(waiter.send(Err(ProposeError::NoLeader))),
                false => self.core.barrier(waiter),
            }
        }
    }

    fn take_proposals(&mut self, mut proposals: Vec<Pending>, elsewhere: bool) {
        if !proposals.is_empty() {
            let waiters = self.shared.waiters.lock();
            proposals.retain(|pending| waiters.contains_key(&pending.proposal_id));
        }
        for pending in proposals {
            match elsewhere {
                true => self.shared.fail_waiter(pending.proposal_id, ProposeError::NoLeader),
                false => self.core.propose(pending),
            }
        }
        self.core.spare_commit_messages();
    }

    fn reconfigure(&mut self, groups: Vec<(u64, Group)>) {
        for (index, group) in groups {
            self.note_group(&group);
            self.core.reconfigure(index, group);
        }
    }

    fn note_group(&mut self, group: &Group) {
        let own = self.shared.config.member_id;
        let member = group.members.iter().find(|member| member.id == own);
        self.shared.status.lock().is_learner = member.is_some_and(|member| member.is_learner);
        if group.removed.contains(&own) && self.removed_ticks.is_none() {
            tracing::warn!("this member was removed from the cluster and will stop");
            self.removed_ticks = Some(0);
        }
        self.shared.group.lock().clone_from(group);
    }

    /// Does what the core asks until nothing is left.
    fn perform(&mut self) -> Result<(), String> {
        // Before anything leaves that may help another member to lead.
        if !self.core.serves_alone() {
            self.shared.serves_alone.store(false, Ordering::SeqCst);
        }
        loop {
            // First, so that what a lost leadership ends is not what a new one has begun.
            self.standing_changed()?;
            self.send_backlog()?;
            let term = self.standing.term.0;
            if self.core.needs_bootstrap() && self.bootstrap_term != term {
                self.bootstrap_term = term;
                self.core.propose_bootstrap(self.bootstrap.clone());
            }
            if self.core.serves() && self.promoted_term != term {
                self.promoted_term = term;
                // Before any barrier of this term is confirmed, so a keepalive finds a clock that counts.
                self.shared.lessor.lock().promote(self.shared.config.election_ticks as u64);
            }
            let behind = self.apply_is_behind();
            self.core.hold_back(behind);
            let Some(outputs) = self.core.take_ready() else { break };
            self.carry_out(outputs)?;
            if behind {
                // One entry per input is still taken, since raft gives it out with what keeps the leadership alive.
                break;
            }
        }
        self.publish_status();
        Ok(())
    }

    fn carry_out(&mut self, outputs: Outputs) -> Result<(), String> {
        // 1. What rests on nothing unsynced: the leader replicates while it syncs.
        send_all(&*self.peers, outputs.messages);
        // 2. What must be durable.
        if let Some(append) = outputs.append {
            self.log.send(LogJob::Append(append)).map_err(|_| "the log thread is gone".to_owned())?;
        }
        // 3. What is committed.
        if !outputs.committed.is_empty() {
            let bytes = entry_bytes(&outputs.committed);
            self.shared.applying_bytes.fetch_add(bytes, Ordering::Relaxed);
            self.send_apply(ApplyJob::Entries(outputs.committed))?;
        }
        if outputs.settled {
            self.log.send(LogJob::Settle).map_err(|_| "the log thread is gone".to_owned())?;
        }
        if outputs.installed {
            self.send_apply(ApplyJob::Installed)?;
        }
        // 4. What was not proposed.
        for (proposal, error) in outputs.refused {
            self.shared.fail_waiter(proposal, error);
        }
        Ok(())
    }

    /// Hands a job to the apply thread, behind those that wait already; never blocks.
    fn send_apply(&mut self, job: ApplyJob) -> Result<(), String> {
        self.backlog.push_back(job);
        self.send_backlog()
    }

    fn send_backlog(&mut self) -> Result<(), String> {
        while let Some(job) = self.backlog.pop_front() {
            match self.apply.try_send(job) {
                Ok(()) => {}
                Err(TrySendError::Full(job)) => {
                    self.backlog.push_front(job);
                    break;
                }
                Err(TrySendError::Disconnected(_)) => return Err("the apply thread is gone".to_owned()),
            }
        }
        Ok(())
    }

    /// Whether the apply thread has so much to do that nothing is to be added.
    fn apply_is_behind(&self) -> bool {
        !self.backlog.is_empty() || self.shared.applying_bytes.load(Ordering::Relaxed) > APPLYING_BYTES_MAX
    }

    fn standing_changed(&mut self) -> Result<(), String> {
        let standing = self.core.standing();
        let before = std::mem::replace(&mut self.standing, standing);
        if (before.leader, before.term) == (standing.leader, standing.term) {
            return Ok(());
        }
        let elsewhere = standing.leader != MemberId(0) && !standing.is_leader;
        if before.is_leader {
            self.shared.lessor.lock().demote();
        }
        if before.is_leader || elsewhere {
            for proposal in self.core.abandon() {
                self.shared.fail_waiter(proposal, ProposeError::NoLeader);
            }
            self.shared.fail_waiters(|_| true, || ProposeError::LeaderChanged);
        }
        if before.leader != standing.leader {
            tracing::info!(leader = standing.leader.0, term = standing.term.0, "leader changed");
            // As etcd counts: an election is one change, though there is no leader in between.
            if standing.leader != MemberId(0) {
                metrics::counter!(crate::metrics::LEADER_CHANGES).increment(1);
            }
        }
        metrics::gauge!(crate::metrics::HAS_LEADER).set(if standing.leader == MemberId(0) { 0.0 } else { 1.0 });
        metrics::gauge!(crate::metrics::IS_LEADER).set(if standing.is_leader { 1.0 } else { 0.0 });
        let leader = Some(standing.leader).filter(|leader| *leader != MemberId(0));
        self.send_apply(ApplyJob::Leader(leader, standing.term))
    }

    fn publish_status(&mut self) {
        let catch_up = self.core.catch_up();
        self.shared.catch_up.send_if_modified(|told| std::mem::replace(told, catch_up) != catch_up);
        let committed = self.core.committed();
        self.shared.serves_alone.store(self.core.serves_alone(), Ordering::SeqCst);
        self.shared.committed.store(committed, Ordering::Relaxed);
        self.shared.replicated.store(self.core.replicated(), Ordering::Relaxed);
        metrics::gauge!(crate::metrics::PROPOSALS_COMMITTED).set(committed as f64);
        let mut status = self.shared.status.lock();
        status.leader = self.standing.leader;
        status.term = self.standing.term;
        status.committed = committed;
    }
}

/// However the thread ends, an error and a panic included, nobody waits for it any more.
impl Drop for Driver {
    fn drop(&mut self) {
        // Before the inbox is emptied: what comes later is refused.
        self.shared.stop();
        drop(std::mem::take(&mut *self.shared.inbox.lock()));
        self.shared.lessor.lock().demote();
        self.shared.fail_waiters(|_| true, || ProposeError::Stopped);
    }
}

/// The command that records how many seconds leases have left.
pub(crate) fn checkpoint_request(left: impl IntoIterator<Item = (LeaseId, i64)>) -> pb::LeaseCheckpointRequest {
    let checkpoint = |(id, remaining_ttl): (LeaseId, i64)| pb::LeaseCheckpoint { id: id.0, remaining_ttl };
    pb::LeaseCheckpointRequest { checkpoints: left.into_iter().map(checkpoint).collect() }
}
