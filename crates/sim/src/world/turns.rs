//! Turns of the members' threads.

use std::sync::Arc;
use std::time::Duration;

use tailwater_consensus::Parts;
use tailwater_eventlog::{Fact, History, HistoryPoint, Revision, TailError};

use super::{Event, World};
use crate::member::{At, Thread};
use crate::node::{Place, Spot};
use crate::plan::Bug;
use crate::violation::{Checked, Guarantee, broken};

/// Turns of the replica after which the log must have one, however slow its disk is: its queue is bounded, and a thread
/// that waits for room would wait for ever here.
const BEHIND_MAX: u32 = 40;

impl World {
    /// Gives a thread a turn, unless it waits for one.
    pub(super) fn wake(&mut self, at: At, thread: Thread, delay: u64) {
        let Some(running) = &mut self.members[at.member].running else { return };
        if !std::mem::replace(&mut running.due[thread as usize], true) {
            self.schedule(delay, Event::Turn(at, thread));
        }
    }

    /// As [`World::wake`], after as long as such a thread may take.
    pub(super) fn wake_soon(&mut self, at: At, thread: Thread) {
        let delay = match thread {
            Thread::Log if self.members[at.member].slow_until > self.now => self.between(20_000, 250_000),
            Thread::Log => self.between(100, 2_000),
            Thread::History => self.between(100, 3_000),
            Thread::Upkeep => 20_000,
            Thread::Replica | Thread::Apply | Thread::Tail | Thread::Deliver => self.between(10, 400),
        };
        self.wake(at, thread, delay);
    }

    pub(super) fn tick(&mut self, at: At) -> Checked {
        if !self.is_running(at) {
            return Ok(());
        }
        let member = &mut self.members[at.member];
        if member.paused_until > self.now {
            // What was missed is not made up for.
            let delay = member.paused_until - self.now + 1;
            self.schedule(delay, Event::Tick(at));
            return Ok(());
        }
        member.ticks += 1;
        let tick = member.tick;
        self.trace.step(self.now, "tick", &[at.member as u64]);
        self.advance();
        self.with_parts(at, |parts| parts.step_replica(true).map(|()| true))?;
        self.after_replica(at)?;
        self.schedule(tick, Event::Tick(at));
        self.look_for_copy(at)
    }

    pub(super) fn turn(&mut self, at: At, thread: Thread) -> Checked {
        if !self.is_running(at) {
            return Ok(());
        }
        let member = &mut self.members[at.member];
        if member.paused_until > self.now {
            let delay = member.paused_until - self.now;
            self.schedule(delay, Event::Turn(at, thread));
            return Ok(());
        }
        if let Some(running) = &mut member.running {
            running.due[thread as usize] = false;
        }
        match thread {
            Thread::Replica => {
                self.trace.step(self.now, "replica", &[at.member as u64]);
                self.with_parts(at, |parts| parts.step_replica(false).map(|()| true))?;
                self.after_replica(at)
            }
            Thread::Log => self.turn_log(at),
            Thread::Apply => self.turn_apply(at),
            Thread::Upkeep => {
                self.with_parts(at, |parts| parts.step_upkeep().map(|()| true))?;
                self.wake_soon(at, Thread::Log);
                self.wake_soon(at, Thread::Apply);
                self.wake_soon(at, Thread::Upkeep);
                Ok(())
            }
            Thread::Tail => self.turn_tail(at),
            Thread::Deliver => {
                self.trace.step(self.now, "deliver", &[at.member as u64]);
                if let Some((_, fanout)) = self.running(at).and_then(|running| running.fanout.as_ref()) {
                    fanout.step_deliver();
                }
                self.wake_watchers(Spot { place: Place::Member(at.member), run: at.run });
                Ok(())
            }
            Thread::History => {
                let fanout = self.running(at).and_then(|running| running.fanout.as_ref());
                if fanout.is_some_and(|(_, fanout)| fanout.step_history()) {
                    self.trace.step(self.now, "history", &[at.member as u64]);
                    self.wake_soon(at, Thread::History);
                    self.wake_watchers(Spot { place: Place::Member(at.member), run: at.run });
                }
                Ok(())
            }
        }
    }

    fn running(&self, at: At) -> Option<&crate::member::Running> {
        self.members[at.member].running.as_ref()
    }

    /// A step of a member; one that fails ends the process.
    fn with_parts(&mut self, at: At, step: impl FnOnce(&mut Parts) -> Result<bool, String>) -> Checked<bool> {
        let member = &mut self.members[at.member];
        let Some(running) = &mut member.running else { return Ok(false) };
        match step(&mut running.parts) {
            Ok(did) => Ok(did),
            Err(reason) if reason.contains("no power") => {
                // Its disk has failed, as the world wanted it: a member that can't persist stops.
                self.crash(at.member, Some(1));
                let delay = self.between(1000, 1_000_000);
                self.schedule(delay, Event::Start(at.member));
                Ok(false)
            }
            Err(reason) if reason.contains("removed") => {
                self.left(at.member)?;
                Ok(false)
            }
            Err(reason) => broken(Guarantee::Sound, format!("member {} stopped: {reason}", at.member)),
        }
    }

    fn after_replica(&mut self, at: At) -> Checked {
        let Some(running) = &mut self.members[at.member].running else { return Ok(()) };
        running.behind += 1;
        if running.behind >= BEHIND_MAX {
            self.turn_log(at)?;
        }
        self.wake_soon(at, Thread::Log);
        self.wake_soon(at, Thread::Apply);
        self.poll_served(at)
    }

    fn turn_log(&mut self, at: At) -> Checked {
        if let Some(running) = &mut self.members[at.member].running {
            running.behind = 0;
        }
        if self.with_parts(at, Parts::step_log)? {
            if self.config.bug == Some(Bug::AnswerBeforeQuorum) {
                self.members[at.member].remember_disk(self.now);
            }
            self.trace.step(self.now, "log", &[at.member as u64]);
            self.wake_soon(at, Thread::Replica);
            self.wake_soon(at, Thread::Log);
        }
        Ok(())
    }

    fn turn_apply(&mut self, at: At) -> Checked {
        if !self.with_parts(at, Parts::step_apply)? {
            return Ok(());
        }
        let applied = self.running(at).map_or(0, |running| running.consensus.status().applied.0);
        self.trace.step(self.now, "apply", &[at.member as u64, applied]);
        self.poll_install(at)?;
        self.look_for_source(at)?;
        self.observe(at)?;
        self.wake_soon(at, Thread::Replica);
        self.wake_soon(at, Thread::Apply);
        self.wake_soon(at, Thread::Tail);
        self.feed_readers(Place::Member(at.member));
        self.poll_served(at)
    }

    /// Begins the fanout once there is a history to follow.
    pub(super) fn look_for_source(&mut self, at: At) -> Checked {
        let member = &mut self.members[at.member];
        let id = member.id;
        let Some(running) = &mut member.running else { return Ok(()) };
        if running.look_for_source(&self.plan, id, &self.clock) {
            self.first_sight(at)?;
            self.wake_soon(at, Thread::Tail);
        }
        Ok(())
    }

    /// A member that starts shows what it has applied; a first tail begins behind the commands that it was founded with.
    fn first_sight(&mut self, at: At) -> Checked {
        let Some(source) = self.running(at).and_then(|running| running.source.clone()) else { return Ok(()) };
        let state = source.log.state();
        self.oracle.truth.compact(state.compacted);
        let mut next = Some(HistoryPoint { revision: state.compacted.max(Revision(2)), sub: 0 });
        let mut events = Vec::new();
        while let Some(from) = next {
            let chunk = source.read(&[], from, state.revision, false, 1 << 20);
            let chunk = chunk.map_err(|error| crate::violation::Violation {
                guarantee: Guarantee::Sound,
                what: format!("member {} can't read its history: {error}", at.member),
            })?;
            events.extend(chunk.events.into_iter().map(|found| found.event));
            next = chunk.next;
        }
        let ticks = self.all_ticks();
        for record in events.chunk_by(|a: &Arc<_>, b| a.revision() == b.revision()) {
            self.oracle.record(at.member, record, &ticks)?;
        }
        Ok(())
    }

    /// Ticks that members have processed, by member.
    pub(super) fn all_ticks(&self) -> Vec<u64> {
        self.members.iter().map(|member| member.ticks).collect()
    }

    /// Shows the oracle what the member's tail brought.
    fn observe(&mut self, at: At) -> Checked {
        let Some(running) = self.running(at) else { return Ok(()) };
        let mut observed = running.observed;
        let frames = match running.new_frames() {
            Ok(frames) => frames,
            Err(TailError::Behind(_)) => {
                // It has taken over a copied state: what lies between is in its log.
                let end = running.source.as_ref().map_or(observed, |source| source.tail.end());
                if let Some(running) = &mut self.members[at.member].running {
                    running.observed = end;
                }
                return self.first_sight(at);
            }
            Err(error) => return broken(Guarantee::Sound, format!("the tail of member {}: {error}", at.member)),
        };
        let ticks = self.all_ticks();
        for frame in frames {
            self.oracle.frame(at.member, observed.revision, &frame, &ticks)?;
            (observed.revision, observed.position) = (frame.revision, frame.position);
            let group = frame.facts.iter().rev().find_map(|fact| match fact {
                Fact::Members(members) => Some(members),
                _ => None,
            });
            if let Some(members) = group {
                self.admin.group_is(frame.position, members);
            }
        }
        self.trace.step(self.now, "observe", &[at.member as u64, u64::try_from(observed.revision.0).unwrap_or(0)]);
        if let Some(running) = &mut self.members[at.member].running {
            running.observed = observed;
        }
        Ok(())
    }

    fn turn_tail(&mut self, at: At) -> Checked {
        let Some(running) = &mut self.members[at.member].running else { return Ok(()) };
        let Some((fanout, parts)) = &mut running.fanout else { return Ok(()) };
        if !parts.step_tail(Duration::ZERO) {
            return broken(Guarantee::Sound, format!("the fanout of member {} has ended", at.member));
        }
        let reached = fanout.snapshot().cursor.position.0;
        self.trace.step(self.now, "tail", &[at.member as u64, reached]);
        let behind = running.fanout_is_behind();
        self.wake_soon(at, Thread::Deliver);
        if behind {
            self.wake_soon(at, Thread::Tail);
        }
        self.reads(at)
    }
}
