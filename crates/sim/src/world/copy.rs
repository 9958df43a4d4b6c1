//! A member that the leader's log no longer reaches copies the state of another, piece by piece, and takes it over.

use std::ops::ControlFlow;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tailwater_eventlog::{
    CopyError, CopyStep, EventLog, FoldHold, LogState, Position, Staging, StateRow, StorageError,
};

use super::{Event, World};
use crate::member::{At, Thread};
use crate::plan::Bug;
use crate::violation::{Checked, Guarantee, broken};

/// A fold is held at the source while a copy runs; it is let go when the copy ends, not by the time, which is real here.
const HOLD: Duration = Duration::from_secs(3600);

/// A copy under way.
pub(crate) struct Copy {
    from: At,
    source: EventLog,
    staging: Staging,
    hold: FoldHold,
    /// The numbers at which the machine's own rows were taken.
    state: Option<LogState>,
    /// Rows that were taken at the beginning, for a planted bug.
    early: Vec<StateRow>,
}

impl Copy {
    /// Whether it is read from this member, whose files it then holds open.
    pub(super) fn comes_from(&self, member: usize) -> bool {
        self.from.member == member
    }
}

/// What a step came to.
enum Step {
    More,
    Whole,
    /// The source can't go on with it.
    Moved,
}

impl World {
    /// Begins a copy if the leader wants one.
    pub(super) fn look_for_copy(&mut self, at: At) -> Checked {
        let Some(running) = &self.members[at.member].running else { return Ok(()) };
        let wanted = *running.consensus.catch_up_wanted().borrow();
        let Some(wanted) = wanted.filter(|_| running.copy.is_none() && running.installing.is_none()) else {
            return Ok(());
        };
        let own = running.consensus.event_log();
        let able: Vec<usize> =
            (0..self.members.len()).filter(|from| self.can_give(*from, at.member, wanted.position)).collect();
        if able.is_empty() {
            return Ok(());
        }
        let from = able[self.random.index(able.len())];
        let source_at = At { member: from, run: self.members[from].run };
        let Some(source) = self.members[from].running.as_ref().map(|running| running.consensus.event_log()) else {
            return Ok(());
        };
        let copy = begin(source_at, source, &own, self.config.bug).map_err(|error| broken_copy(at, &error))?;
        self.trace.step(self.now, "copy", &[at.member as u64, from as u64, wanted.position.0]);
        if let Some(running) = &mut self.members[at.member].running {
            running.copy = Some(copy);
        }
        self.schedule(1000, Event::Copy(at));
        Ok(())
    }

    fn can_give(&self, from: usize, to: usize, position: Position) -> bool {
        let reachable = from != to && !self.network.is_cut(from, to) && !self.network.is_cut(to, from);
        let running = self.members[from].running.as_ref();
        reachable
            && running.is_some_and(|running| running.source.is_some() && running.consensus.status().applied >= position)
    }

    /// The next piece.
    pub(super) fn copy(&mut self, at: At) -> Checked {
        if !self.is_running(at) {
            return Ok(());
        }
        let Some(mut copy) = self.members[at.member].running.as_mut().and_then(|running| running.copy.take()) else {
            return Ok(());
        };
        let from = copy.from;
        if !self.is_running(from) || self.network.is_cut(from.member, at.member) {
            // What is staged stays; another source may go on with it.
            return Ok(());
        }
        let wait = self.members[from.member].paused_until.max(self.members[at.member].paused_until);
        let delay = wait.saturating_sub(self.now) + self.between(200, 20_000);
        let early = self.config.bug == Some(Bug::StateBeforeNumbers);
        match step(&mut copy, self.plan.copy_bytes, early) {
            Ok(Step::More) => {
                if let Some(running) = &mut self.members[at.member].running {
                    running.copy = Some(copy);
                }
                self.schedule(delay, Event::Copy(at));
                Ok(())
            }
            Ok(Step::Moved) => Ok(()),
            Ok(Step::Whole) => self.install(at, copy),
            Err(error) => Err(broken_copy(at, &error)),
        }
    }

    fn install(&mut self, at: At, copy: Copy) -> Checked {
        let Copy { staging, hold, .. } = copy;
        let staged = staging.finish().map_err(|error| broken_copy(at, &error))?;
        drop(hold);
        self.trace.step(self.now, "install", &[at.member as u64, staged.state().applied.0]);
        let member = &mut self.members[at.member];
        if let Some(running) = &mut member.running {
            let consensus = running.consensus.clone();
            running.installing = Some(Box::pin(async move { consensus.install(staged).await }));
        }
        self.poll_install(at)?;
        self.wake_soon(at, Thread::Apply);
        Ok(())
    }

    /// Looks whether the state was taken over.
    pub(super) fn poll_install(&mut self, at: At) -> Checked {
        let _entered = self.runtime.enter();
        let Some(running) = &mut self.members[at.member].running else { return Ok(()) };
        let Some(installing) = &mut running.installing else { return Ok(()) };
        let Poll::Ready(end) = installing.as_mut().poll(&mut Context::from_waker(Waker::noop())) else { return Ok(()) };
        running.installing = None;
        self.copies += u64::from(end.is_ok());
        match end {
            Ok(())
            | Err(tailwater_consensus::InstallError::Behind { .. } | tailwater_consensus::InstallError::Stopped) => {
                Ok(())
            }
            Err(error) => broken(Guarantee::Sound, format!("member {}: {error}", at.member)),
        }
    }
}

fn broken_copy(at: At, error: &StorageError) -> crate::violation::Violation {
    crate::violation::Violation {
        guarantee: Guarantee::Sound,
        what: format!("the copy of member {}: {error}", at.member),
    }
}

fn begin(from: At, source: EventLog, own: &EventLog, bug: Option<Bug>) -> Result<Copy, StorageError> {
    let mut staging = own.staging()?;
    let hold = source.copy_begin(HOLD);
    staging.begin(hold.point())?;
    let mut early = Vec::new();
    if bug == Some(Bug::StateBeforeNumbers) {
        source.copy_state(usize::MAX, |_, rows| {
            early.extend(rows);
            ControlFlow::Continue(())
        })?;
    }
    Ok(Copy { from, source, staging, hold, state: None, early })
}

/// One piece: base, then the log to its end, then the machine's own rows, then the log up to where those were taken.
fn step(copy: &mut Copy, bytes_max: usize, early: bool) -> Result<Step, StorageError> {
    let moved = |error| match error {
        CopyError::Moved(_) => Ok(Step::Moved),
        CopyError::Storage(error) => Err(error),
    };
    match copy.staging.next_step() {
        CopyStep::Base { after } => {
            match copy.source.copy_base(copy.staging.point(), after.as_ref(), bytes_max) {
                Ok(rows) => copy.staging.add_base(&rows, rows.is_empty())?,
                Err(error) => return moved(error),
            }
            Ok(Step::More)
        }
        CopyStep::Log { after } => {
            let read = match copy.source.copy_log(copy.staging.point().history, after, bytes_max) {
                Ok(read) => read,
                Err(error) => return moved(error),
            };
            copy.staging.add_log(&read.rows, read.complete)?;
            if read.is_end && copy.state.is_none() {
                take_state(copy, early)?;
            }
            let whole = copy.state.is_some_and(|state| copy.staging.complete() >= state.revision);
            Ok(if whole { Step::Whole } else { Step::More })
        }
    }
}

fn take_state(copy: &mut Copy, early: bool) -> Result<(), StorageError> {
    let (mut state, mut all) = (None, Vec::new());
    copy.source.copy_state(usize::MAX, |numbers, rows| {
        state = Some(*numbers);
        all.extend(rows);
        ControlFlow::Continue(())
    })?;
    let state = state.expect("there is at least one piece");
    copy.staging.begin_state(state)?;
    copy.staging.add_state(if early { &copy.early } else { &all })?;
    copy.state = Some(state);
    Ok(())
}
