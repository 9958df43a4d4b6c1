//! The log thread: appends what came, then one sync for all of it, while the next batch gathers.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::core::Append;
use super::queue::Receiver;
use super::shared::Shared;
use crate::PeerTransport;
use crate::peers::send_all;
use crate::raft_log::RaftLog;

/// Appends taken together before a sync.
const APPENDS_MAX: usize = 64;

/// Work of the log thread.
pub(crate) enum LogJob {
    /// Make durable, then report.
    Append(Append),
    /// Let go of entries up to an index.
    Trim(u64),
    /// Nothing was lost by what was cut when the log was opened.
    Settle,
    /// The group goes on without this member, and knows it.
    NoteRemoved,
}

/// The thread's state.
pub(crate) struct LogWriter {
    pub(crate) shared: Arc<Shared>,
    pub(crate) log: RaftLog,
    pub(crate) jobs: Receiver<LogJob>,
    pub(crate) peers: Arc<dyn PeerTransport>,
}

impl LogWriter {
    /// Runs until all senders are gone; then syncs and closes the log.
    pub(crate) fn run(mut self) -> Result<(), String> {
        while let Ok(first) = self.jobs.recv() {
            self.round(first)?;
        }
        self.log.close().map_err(|error| error.to_string())
    }

    /// Does what waits; `false` when nothing did.
    pub(crate) fn step(&mut self) -> Result<bool, String> {
        let Ok(first) = self.jobs.try_recv() else { return Ok(false) };
        self.round(first)?;
        Ok(true)
    }

    fn round(&mut self, first: LogJob) -> Result<(), String> {
        let mut number = 0;
        let mut messages = Vec::new();
        let mut sync = false;
        for job in std::iter::once(first).chain(self.jobs.try_iter().take(APPENDS_MAX)) {
            match job {
                LogJob::Append(append) => {
                    if let Some(point) = append.reset {
                        self.log.reset_to_snapshot(point).map_err(|error| error.to_string())?;
                    }
                    self.log.append(&append.entries, append.hard_state.as_ref()).map_err(|error| error.to_string())?;
                    number = append.number;
                    sync |= append.sync;
                    messages.extend(append.messages);
                }
                LogJob::Settle => self.log.settle().map_err(|error| error.to_string())?,
                LogJob::NoteRemoved => self.log.note_removed().map_err(|error| error.to_string())?,
                LogJob::Trim(index) => self.log.trim_to(index).map_err(|error| error.to_string())?,
            }
        }
        if sync {
            let began = Instant::now();
            self.log.sync().map_err(|error| error.to_string())?;
            let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.shared.sync_micros.store(micros, Ordering::Relaxed);
            self.shared.syncs.fetch_add(1, Ordering::Relaxed);
        }
        if number > 0 && self.shared.persisted.raise(number) {
            self.shared.wake();
        }
        // Votes and acknowledgements: promises that rest on what was just synced.
        send_all(&*self.peers, messages);
        Ok(())
    }
}
