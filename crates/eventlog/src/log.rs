//! What is on disk: log, base and state, in one RocksDB without a write-ahead log of its own.
//!
//! Column families:
//! * `log`: (revision, sub), both big endian → the event's row; every event above the fold point.
//! * `base`: user key → the row of the version live at the fold point.
//! * `state`: the apply machine's own keys (leases, members, alarms, …) and what [`LogState`] holds, each value
//!   checksummed.
//!
//! All of them are written in one batch per call and flushed atomically, so that after a crash the applied position
//! that is found belongs to exactly the events and state that are found. The raft log replays the rest.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use crate::{Event, HistoryId, KeyIndex, KeyRange, Position, Revision, Term};

/// How storage is opened.
#[derive(Clone, Debug)]
pub struct EventLogConfig {
    /// Directory of the RocksDB; made if missing.
    pub path: PathBuf,
    /// Bytes of memtables at which a flush is due.
    pub memtable_bytes: usize,
    /// Bytes of block cache.
    pub block_cache_bytes: usize,
}

/// Storage failed; the member must stop with this reason.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// RocksDB reported an error: I/O, no space, or corruption with file and offset.
    #[error("event log: {0}")]
    Engine(String),
    /// A row that was once synced can't be read.
    #[error("event log: {place}: {source}")]
    Row {
        /// Column family and key.
        place: String,
        /// What is wrong with it.
        source: crate::RowError,
    },
    /// The directory was written by a format that this build does not know.
    #[error("event log: {path} has format {found}, this build reads {supported}; use the version that wrote it")]
    Format {
        /// The directory.
        path: String,
        /// As found.
        found: u32,
        /// Of this build.
        supported: u32,
    },
    /// An invariant of the stored state does not hold.
    #[error("event log: {0}")]
    Inconsistent(String),
}

/// The numbers that describe the stored state; stored with it, never derived from rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// Random id of this history; 0 before bootstrap.
    pub history: HistoryId,
    /// The newest revision; 1 in a fresh store.
    pub revision: Revision,
    /// Readers see nothing below it; 0 before the first compaction.
    pub compacted: Revision,
    /// Everything at or below it is folded into base; `fold_point < compacted` once anything was compacted.
    pub fold_point: Revision,
    /// The applied raft index, and that entry's term.
    pub applied: Position,
    /// Term of the entry at `applied`.
    pub applied_term: Term,
}

/// What one apply writes, all or nothing.
#[derive(Debug, Default)]
pub struct WriteBatch {
    /// New events, in order.
    pub events: Vec<Arc<Event>>,
    /// Changes of the machine's own state: `None` deletes.
    pub state: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// The numbers after this batch; `fold_point` is ignored, since folding owns it.
    pub log_state: LogState,
}

/// How far folding got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoldProgress {
    /// Call again.
    More,
    /// `fold_point == compacted - 1`.
    Done,
}

/// A piece of the live keys, in key order.
#[derive(Debug, Default)]
pub struct LiveChunk {
    /// One event (a put) per live key.
    pub events: Vec<Arc<Event>>,
    /// Go on after this key; `None` at the end.
    pub resume_after: Option<Bytes>,
}

/// Handle on the stored state; clones share it. One thread writes; any thread reads; one thread folds and flushes.
#[derive(Clone)]
pub struct EventLog {}

impl EventLog {
    /// Opens or creates it, checks the format, and builds the key index by reading base and log.
    ///
    /// # Errors
    /// [`StorageError`], naming file, offset and reason for what is corrupt.
    pub fn open(_config: &EventLogConfig) -> Result<(Self, KeyIndex), StorageError> {
        todo!()
    }

    /// The numbers after the last write.
    #[must_use]
    pub fn state(&self) -> LogState {
        todo!()
    }

    /// Writes a batch. Returns when it is applied: visible to readers, durable only after a flush (the raft log
    /// holds it until then).
    ///
    /// # Errors
    /// The storage failed; nothing of the batch is visible.
    pub fn write(&self, _batch: &WriteBatch) -> Result<(), StorageError> {
        todo!()
    }

    /// The event at (revision, sub) of `key`, from the log, or from base when it was folded and is still live there.
    ///
    /// # Errors
    /// The storage failed or the row is corrupt.
    pub fn event(&self, _key: &[u8], _revision: Revision, _sub: u32) -> Result<Option<Arc<Event>>, StorageError> {
        todo!()
    }

    /// Live keys of `range` after `resume_after`, about `bytes_max` bytes of them, as of the moment of the call or
    /// newer. The first call's `state()` is B; a reader is ready when its tail has passed the highest revision seen.
    ///
    /// # Errors
    /// The storage failed or a row is corrupt.
    pub fn live(
        &self,
        _range: &KeyRange,
        _resume_after: Option<&Bytes>,
        _bytes_max: usize,
    ) -> Result<LiveChunk, StorageError> {
        todo!()
    }

    /// A value of the machine's own state.
    ///
    /// # Errors
    /// The storage failed or the value is corrupt.
    pub fn state_get(&self, _key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        todo!()
    }

    /// All of the machine's own state whose key begins with `prefix`, in key order.
    ///
    /// # Errors
    /// The storage failed or a value is corrupt.
    pub fn state_scan(&self, _prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, StorageError> {
        todo!()
    }

    /// Folds about `events_max` more events below `LogState::compacted` into base, in one write batch with the new
    /// fold point, and drops what lies below it. Resumes by itself after a crash.
    ///
    /// # Errors
    /// The storage failed or a row is corrupt.
    pub fn fold_step(&self, _events_max: usize) -> Result<FoldProgress, StorageError> {
        todo!()
    }

    /// Makes everything written so far durable. Returns the applied position that is then durable; the raft log may
    /// be trimmed up to it.
    ///
    /// # Errors
    /// The storage failed.
    pub fn flush(&self) -> Result<Position, StorageError> {
        todo!()
    }

    /// Bytes on disk, and an estimate of those in use by live data.
    #[must_use]
    pub fn disk_bytes(&self) -> (u64, u64) {
        todo!()
    }

    /// Bytes written since the last flush, in memtables.
    #[must_use]
    pub fn unflushed_bytes(&self) -> usize {
        todo!()
    }
}
