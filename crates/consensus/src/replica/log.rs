//! The log thread: appends what came, then one sync for all of it, while the next batch gathers.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam::channel::Receiver;

use super::Transport;
use super::core::Append;
use super::shared::Shared;
use crate::raft_log::RaftLog;

/// Appends taken together before a sync.
const APPENDS_MAX: usize = 64;

/// Work of the log thread.
pub(crate) enum LogJob {
    /// Make durable, then report.
    Append(Append),
    /// Let go of entries up to an index.
    Trim(u64),
}

/// Runs until all senders are gone; then syncs and closes the log.
pub(crate) fn run(
    shared: &Arc<Shared>,
    mut log: RaftLog,
    jobs: &Receiver<LogJob>,
    transport: &dyn Transport,
) -> Result<(), String> {
    while let Ok(first) = jobs.recv() {
        let mut number = 0;
        let mut messages = Vec::new();
        let mut sync = false;
        for job in std::iter::once(first).chain(jobs.try_iter().take(APPENDS_MAX)) {
            match job {
                LogJob::Append(append) => {
                    log.append(&append.entries, append.hard_state.as_ref()).map_err(|error| error.to_string())?;
                    number = append.number;
                    sync |= append.sync;
                    messages.extend(append.messages);
                }
                LogJob::Trim(index) => log.trim_to(index).map_err(|error| error.to_string())?,
            }
        }
        if sync {
            log.sync().map_err(|error| error.to_string())?;
            shared.syncs.fetch_add(1, Ordering::Relaxed);
        }
        if number > 0 {
            shared.persisted.store(number, Ordering::Release);
            shared.wake();
        }
        // Votes and acknowledgements: promises that rest on what was just synced.
        if !messages.is_empty() {
            transport.send(messages);
        }
    }
    log.close().map_err(|error| error.to_string())
}
