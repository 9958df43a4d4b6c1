//! Who goes first on a busy core.
//!
//! What somebody's write waits for runs at the process's own priority. A flush comes next: while none gets its turn,
//! memtables fill until writes must wait. Then come the state for a reader that begins and what catches up on history,
//! of which few may run at a time, since there may be thousands of such readers; then compactions, which can wait long.
//! What catches up in the process that also writes comes last and takes what is left (*watch-lag* in docs/BENCHMARKS.md).

use rustix::process::nice;

/// Work of a thread that nobody's write waits for at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Background {
    /// Writing a full memtable.
    Flush,
    /// The state for a new member, a new fanout, or a backup.
    Transfer,
    /// Merging files.
    Compaction,
    /// Events for readers that are far behind.
    History,
    /// The same in a process that writes.
    HistoryBesideWrites,
}

impl Background {
    /// As in nice(2), above the process's own.
    fn nicer_by(self) -> i32 {
        match self {
            Self::Flush => 2,
            Self::Transfer | Self::History => 5,
            Self::Compaction => 10,
            Self::HistoryBesideWrites => 15,
        }
    }

    /// Lowers the calling thread, and the threads that it starts from now on.
    pub fn lower_this_thread(self) {
        // On Linux the value is the thread's own. A lower priority is never refused; elsewhere it is only a wish.
        if let Err(error) = nice(self.nicer_by()) {
            tracing::debug!(?self, %error, "a thread keeps its priority");
        }
    }
}
