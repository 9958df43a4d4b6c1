//! The upkeep thread: flushes the state, trims the raft log below it, folds compacted history.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender};
use tailwater_eventlog::{EventLog, FoldProgress};

use super::apply::ApplyJob;
use super::log::LogJob;
use super::shared::Shared;
use crate::raft_log::RaftLogView;

/// How often it looks.
const PERIOD: Duration = Duration::from_millis(20);
/// Events folded in one step.
const FOLD_EVENTS: usize = 1000;
/// Looks between two measurements of the disk.
const DISK_PERIODS: u32 = 25;

/// The thread's state.
pub(crate) struct Upkeep {
    pub(crate) shared: Arc<Shared>,
    pub(crate) events: EventLog,
    pub(crate) view: RaftLogView,
    pub(crate) log: Sender<LogJob>,
    pub(crate) apply: Sender<ApplyJob>,
    /// Disconnected when it is to end.
    pub(crate) end: Receiver<()>,
    pub(crate) rounds: u32,
}

impl Upkeep {
    /// Runs until it is to end.
    pub(crate) fn run(mut self) -> Result<(), String> {
        let mut wait = PERIOD;
        loop {
            if let Err(RecvTimeoutError::Disconnected) = self.end.recv_timeout(wait) {
                return Ok(());
            }
            wait = self.step()?;
        }
    }

    /// One look; returns how long to wait for the next.
    pub(crate) fn step(&mut self) -> Result<Duration, String> {
        let Self { shared, events, view, .. } = self;
        if self.rounds.is_multiple_of(DISK_PERIODS) {
            let (bytes, in_use) = events.disk_bytes();
            let unflushed = events.unflushed_bytes() as u64;
            shared.disk_bytes.store(bytes + unflushed, Ordering::Relaxed);
            shared.disk_bytes_in_use.store(in_use + unflushed, Ordering::Relaxed);
        }
        self.rounds = self.rounds.wrapping_add(1);
        let log_is_long = view.bytes() > shared.config.raft_log_bytes;
        if events.unflushed_bytes() >= shared.config.memtable_bytes || log_is_long && trimmable(shared, view) {
            let durable = events.flush().map_err(|error| error.to_string())?;
            if log_is_long {
                let index = durable.0.min(shared.replicated.load(Ordering::Relaxed));
                // The log thread is gone only when everything stops.
                let _ = self.log.send(LogJob::Trim(index));
            }
        }
        if !shared.fold_wanted.swap(false, Ordering::AcqRel) {
            return Ok(PERIOD);
        }
        match events.fold_step(FOLD_EVENTS).map_err(|error| error.to_string())? {
            FoldProgress::More => {
                shared.fold_wanted.store(true, Ordering::Release);
                Ok(Duration::from_millis(1))
            }
            FoldProgress::Done => {
                let _ = self.apply.send(ApplyJob::Folded);
                Ok(PERIOD)
            }
        }
    }
}

/// Whether a flush would let at least half of the log go.
fn trimmable(shared: &Shared, view: &RaftLogView) -> bool {
    let held = (view.last_index() + 1).saturating_sub(view.first_index());
    let applied = shared.applied.load(Ordering::Relaxed).min(shared.replicated.load(Ordering::Relaxed));
    (applied + 1).saturating_sub(view.first_index()) > held / 2
}
