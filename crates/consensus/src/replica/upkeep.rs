//! The upkeep thread: flushes the state, lets entries go from memory and trims the raft log below it, folds compacted
//! history.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam::channel::{self, RecvTimeoutError};
use tailwater_eventlog::{EventLog, FoldProgress};

use super::apply::ApplyJob;
use super::log::LogJob;
use super::queue::Sender;
use super::shared::Shared;
use crate::raft_log::RaftLogView;

/// How often it looks.
const PERIOD: Duration = Duration::from_millis(20);
/// Events folded in one step.
const FOLD_EVENTS: usize = 1000;
/// So many times the bytes that the raft log may hold are held for a peer that is slow.
const SLOW_PEER_FACTOR: u64 = 4;
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
    pub(crate) end: channel::Receiver<()>,
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
            events.measure_disk();
        }
        self.rounds = self.rounds.wrapping_add(1);
        // What is applied here and held by all peers that are heard from is read again only by one that comes back.
        view.release(shared.applied.get().min(shared.replicated.load(Ordering::Relaxed)));
        let log_is_long = view.held_bytes() > shared.config.raft_log_bytes;
        if events.unflushed_bytes() >= shared.config.memtable_bytes || log_is_long && trimmable(shared, view) {
            let durable = events.flush().map_err(|error| error.to_string())?;
            if log_is_long {
                // The log thread is gone only when everything stops.
                let _ = self.log.send(LogJob::Trim(durable.0.min(trim_to(shared, view))));
            }
        }
        if !shared.fold_wanted.swap(false, Ordering::AcqRel) {
            return Ok(PERIOD);
        }
        let progress = if events.is_merging_behind() { Ok(FoldProgress::Held) } else { events.fold_step(FOLD_EVENTS) };
        match progress.map_err(|error| error.to_string())? {
            FoldProgress::More => {
                shared.fold_wanted.store(true, Ordering::Release);
                Ok(Duration::from_millis(1))
            }
            // A member copies the state from here, or RocksDB is behind.
            FoldProgress::Held => {
                shared.fold_wanted.store(true, Ordering::Release);
                Ok(PERIOD)
            }
            FoldProgress::Done => {
                let _ = self.apply.send(ApplyJob::Folded);
                Ok(PERIOD)
            }
        }
    }
}

/// The index up to which the log may go once it is long: the newer half of what it may hold stays, for a peer that was
/// briefly away, and what a peer that is heard from lacks stays as well, up to a bound: a slow one is no reason to fill the
/// disk.
fn trim_to(shared: &Shared, view: &RaftLogView) -> u64 {
    let bytes_max = shared.config.raft_log_bytes;
    let kept = view.index_below(bytes_max / 2);
    match view.held_bytes() > bytes_max.saturating_mul(SLOW_PEER_FACTOR) {
        true => kept,
        false => kept.min(shared.replicated.load(Ordering::Relaxed)),
    }
}

/// Whether a flush would let at least a quarter of the log go.
fn trimmable(shared: &Shared, view: &RaftLogView) -> bool {
    let held = (view.last_index() + 1).saturating_sub(view.first_index());
    let index = shared.applied.get().min(trim_to(shared, view));
    (index + 1).saturating_sub(view.first_index()) > held / 4
}
