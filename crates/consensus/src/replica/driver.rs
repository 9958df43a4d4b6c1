//! The replica thread: waits for one input, steps the core, performs what it asks.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use crossbeam::channel::{Receiver, Sender};
use prost::Message;
use tailwater_api::write::{self, command::Command};
use tailwater_eventlog::{MemberId, Position};

use super::Transport;
use super::apply::ApplyJob;
use super::core::{Outputs, Pending, ReplicaCore, Standing};
use super::log::LogJob;
use super::shared::Shared;
use crate::ProposeError;

/// The thread's state.
pub(crate) struct Driver {
    pub(crate) shared: Arc<Shared>,
    pub(crate) core: ReplicaCore,
    pub(crate) wake: Receiver<()>,
    pub(crate) log: Sender<LogJob>,
    pub(crate) apply: Sender<ApplyJob>,
    pub(crate) transport: Arc<dyn Transport>,
    /// Encoded command that founds the history, should that be needed.
    pub(crate) bootstrap: Bytes,
    pub(crate) standing: Standing,
    /// Term in which bootstrap was proposed, and in which the lessor was promoted.
    pub(crate) bootstrap_term: u64,
    pub(crate) promoted_term: u64,
}

impl Driver {
    /// Runs until it is asked to stop.
    pub(crate) fn run(mut self) -> Result<(), String> {
        let interval = self.shared.config.heartbeat_interval;
        let mut next_tick = Instant::now() + interval;
        loop {
            self.perform()?;
            // A timeout is a tick; a wake token that is gone can only mean the end, which `stopping` tells.
            let _ = self.wake.recv_deadline(next_tick);
            if self.shared.stopping() {
                break;
            }
            let now = Instant::now();
            if now >= next_tick {
                self.tick();
                // After a pause the ticks that were missed are not made up for: nothing may expire by them.
                next_tick = (next_tick + interval).max(now);
            }
            self.take_inputs();
        }
        self.core.abandon();
        self.shared.fail_waiters(|_| true, || ProposeError::Stopped);
        Ok(())
    }

    fn tick(&mut self) {
        self.core.tick();
        let ticks = self.shared.ticks.fetch_add(1, Ordering::Relaxed) + 1;
        let no_leader = self.standing.leader == MemberId(0);
        self.shared.fail_waiters(
            |waiter| waiter.deadline <= ticks,
            || if no_leader { ProposeError::NoLeader } else { ProposeError::Timeout },
        );
        let retry_ticks = self.shared.config.election_ticks as u64;
        let expired = {
            let mut lessor = self.shared.lessor.lock();
            lessor.tick();
            lessor.take_expired(retry_ticks)
        };
        if !expired.is_empty() {
            let expire = Command::LeaseExpire(write::LeaseExpire { ids: expired });
            let command = write::Command { command: Some(expire), ..Default::default() };
            self.core.propose(Pending { proposal_id: 0, command: command.encode_to_vec().into() });
        }
        metrics::gauge!(crate::metrics::PROPOSALS_PENDING).set(self.shared.waiters.lock().len() as f64);
    }

    fn take_inputs(&mut self) {
        let inbox = std::mem::take(&mut *self.shared.inbox.lock());
        self.core.on_persisted(self.shared.persisted.load(Ordering::Acquire));
        // Read after the position: a founded history must not be seen later than what founded it.
        let applied = Position(self.shared.applied.load(Ordering::Acquire));
        self.core.on_applied(applied, self.shared.bootstrapped.load(Ordering::Acquire));
        inbox.messages.into_iter().for_each(|message| self.core.step(message));
        // Held back while no leader is known; another leader's are the gateway's to route.
        let elsewhere = self.standing.leader != MemberId(0) && !self.standing.is_leader;
        for pending in inbox.proposals {
            match elsewhere {
                true => self.shared.fail_waiter(pending.proposal_id, ProposeError::NoLeader),
                false => self.core.propose(pending),
            }
        }
        for waiter in inbox.barriers {
            match elsewhere {
                true => drop(waiter.send(Err(ProposeError::NoLeader))),
                false => self.core.barrier(waiter),
            }
        }
    }

    /// Does what the core asks until nothing is left.
    fn perform(&mut self) -> Result<(), String> {
        loop {
            let term = self.core.standing().term.0;
            if self.core.needs_bootstrap() && self.bootstrap_term != term {
                self.bootstrap_term = term;
                self.core.propose_bootstrap(self.bootstrap.clone());
            }
            if self.core.serves() && self.promoted_term != term {
                self.promoted_term = term;
                self.send_apply(ApplyJob::Promote)?;
            }
            let Some(outputs) = self.core.take_ready() else { break };
            self.standing_changed()?;
            self.carry_out(outputs)?;
        }
        self.publish_status();
        Ok(())
    }

    fn carry_out(&mut self, outputs: Outputs) -> Result<(), String> {
        // 1. What rests on nothing unsynced: the leader replicates while it syncs.
        if !outputs.messages.is_empty() {
            self.transport.send(outputs.messages);
        }
        // 2. What must be durable.
        if let Some(append) = outputs.append {
            self.log.send(LogJob::Append(append)).map_err(|_| "the log thread is gone".to_owned())?;
        }
        // 3. What is committed.
        if !outputs.committed.is_empty() {
            self.send_apply(ApplyJob::Entries(outputs.committed))?;
        }
        // 4. What raft refused.
        for proposal in outputs.dropped {
            self.shared.fail_waiter(proposal, ProposeError::TooManyRequests);
        }
        Ok(())
    }

    fn send_apply(&self, job: ApplyJob) -> Result<(), String> {
        self.apply.send(job).map_err(|_| "the apply thread is gone".to_owned())
    }

    fn standing_changed(&mut self) -> Result<(), String> {
        let standing = self.core.standing();
        let before = std::mem::replace(&mut self.standing, standing);
        if (before.leader, before.term) == (standing.leader, standing.term) {
            return Ok(());
        }
        if before.is_leader {
            self.shared.lessor.lock().demote();
            self.core.abandon();
            self.shared.fail_waiters(|_| true, || ProposeError::LeaderChanged);
        }
        if before.leader != standing.leader {
            tracing::info!(leader = standing.leader.0, term = standing.term.0, "leader changed");
            metrics::counter!(crate::metrics::LEADER_CHANGES).increment(1);
        }
        metrics::gauge!(crate::metrics::HAS_LEADER).set(if standing.leader == MemberId(0) { 0.0 } else { 1.0 });
        metrics::gauge!(crate::metrics::IS_LEADER).set(if standing.is_leader { 1.0 } else { 0.0 });
        let leader = Some(standing.leader).filter(|leader| *leader != MemberId(0));
        self.send_apply(ApplyJob::Leader(leader, standing.term))
    }

    fn publish_status(&self) {
        let committed = self.core.committed();
        self.shared.committed.store(committed, Ordering::Relaxed);
        self.shared.replicated.store(self.core.replicated(), Ordering::Relaxed);
        metrics::gauge!(crate::metrics::PROPOSALS_COMMITTED).set(committed as f64);
        let mut status = self.shared.status.lock();
        status.leader = self.standing.leader;
        status.term = self.standing.term;
        status.committed = committed;
    }
}
