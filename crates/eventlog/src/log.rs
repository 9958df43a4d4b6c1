//! What is on disk: log, base and state, in one RocksDB without a write-ahead log of its own.
//!
//! Column families:
//! * `log`: (revision, sub), both big endian → the event's row; every event above the fold point.
//! * `base`: user key → the row of the version live at the fold point.
//! * `heads`: user key → the same without the value, which is what a start reads.
//! * `state`: the apply machine's own keys (leases, members, alarms, …) and what [`LogState`] holds, each value
//!   checksummed. The bytes are described in `log/format.rs`.
//!
//! All of them are written in one batch per call and flushed atomically, so that after a crash the applied position
//! that is found belongs to exactly the events and state that are found. The raft log replays the rest.
//!
//! Each part of the state has one writer: [`EventLog::write`] (the apply thread) everything but the fold point,
//! [`EventLog::fold_step`] the fold point, `base` and `heads`. A fold's batch moves the fold point, changes these and removes
//! the folded log rows at once, so a reader that looks into `log` first and then into `base` misses nothing.
//!
//! Live keys are read in key order through the key index: its tree is shared with the apply thread, a reader takes a
//! snapshot of it (one reference), and reads the rows by (revision, sub). Writers pay for it only while a snapshot is
//! held, by copying the tree nodes that they change.
//!
//! A directory like this is one *generation* of the state. A member that is too far behind copies another member's
//! state into the next generation ([`Staging`]) and switches to it ([`EventLog::replace`]); what reads the old one at
//! that moment finishes on it. `log/generations.rs` says which directory is which.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::Bytes;

use crate::{Event, HistoryId, KeyIndex, KeyRange, Position, Revision, Term};

mod backup;
mod base;
mod copy;
mod engine;
mod files;
mod fold;
mod format;
mod found;
#[doc(hidden)]
pub mod fuzzing;
mod generation;
mod generations;
mod hash;
mod hold;
mod live;
mod open;
mod scan;
mod sparse;
mod staging;

pub use backup::{Backup, BackupConfig, BackupEvents};
pub use copy::{CopyError, CopyPoint, LogCopy, StateRow};
use engine::Family;
pub use found::{Founder, RestoredPut};
pub(crate) use generation::Generation;
use generations::Home;
pub use generations::Installed;
pub use hash::{HashError, StoreHash};
pub use hold::FoldHold;
pub(crate) use scan::Scan;
pub(crate) use sparse::Places;
pub use staging::{CopyStep, Staged, Staging};

/// Bytes of base to be merged from which on folding had better wait.
const UNMERGED_BYTES_MAX: u64 = 512 << 20;

/// How storage is opened.
#[derive(Clone, Debug)]
pub struct EventLogConfig {
    /// Directory of the RocksDB; made if missing. Later generations stand beside it, with its name and a number.
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
    /// Everything at or below it is folded into base; `fold_point < compacted` once anything was compacted, or equal to it
    /// in a store that was restored and lacks the record at that revision.
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
    /// A copy of the state reads base as it is: call again later.
    Held,
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
pub struct EventLog {
    /// The generation in use; only [`EventLog::replace`] changes it.
    current: Arc<ArcSwap<Generation>>,
    home: Arc<Home>,
}

impl EventLog {
    /// Opens or creates it, checks the format, and builds the key index by reading base and log.
    ///
    /// # Errors
    /// [`StorageError`], naming file, offset and reason for what is corrupt.
    pub fn open(config: &EventLogConfig) -> Result<(Self, KeyIndex), StorageError> {
        open::open(config)
    }

    /// The numbers after the last write.
    #[must_use]
    pub fn state(&self) -> LogState {
        self.current.load().state()
    }

    /// Writes a batch. Returns when it is applied: visible to readers, durable only after a flush (the raft log
    /// holds it until then).
    ///
    /// # Errors
    /// The storage failed; nothing of the batch is visible.
    ///
    /// # Panics
    /// When the batch breaks the order of revisions or lets a number go back.
    pub fn write(&self, batch: &WriteBatch) -> Result<(), StorageError> {
        let current = self.current.load();
        check_batch(&current.state(), batch);
        let engine = &current.engine;
        let mut rows = rocksdb::WriteBatch::default();
        for event in &batch.events {
            let key = format::log_key(event.revision(), event.sub());
            rows.put_cf(engine.family(Family::Log), key, event.to_row());
        }
        for (key, value) in &batch.state {
            let key = format::state_key(key);
            match value {
                Some(value) => {
                    let value = format::sealed(&key, value.clone());
                    rows.put_cf(engine.family(Family::State), &key, value);
                }
                None => rows.delete_cf(engine.family(Family::State), &key),
            }
        }
        let numbers = format::sealed(format::NUMBERS_KEY, format::encode_numbers(&batch.log_state));
        rows.put_cf(engine.family(Family::State), format::NUMBERS_KEY, numbers);
        engine.write(rows)?;
        metrics::counter!(crate::metrics::ROWS_WRITTEN).increment(batch.events.len() as u64);
        let mut state = current.state.lock();
        *state = LogState { fold_point: state.fold_point, ..batch.log_state };
        Ok(())
    }

    /// The event at (revision, sub) of `key`, from the log, or from base when it was folded and is still live there.
    ///
    /// # Errors
    /// The storage failed or the row is corrupt.
    pub fn event(&self, key: &[u8], revision: Revision, sub: u32) -> Result<Option<Arc<Event>>, StorageError> {
        self.current.load().event(key, revision, sub)
    }

    /// Live keys of `range` after `resume_after`, about `bytes_max` bytes of them, as of the moment of the call or
    /// newer. The first call's `state()` is B; a reader is ready when its tail has passed the highest revision seen.
    ///
    /// With `unread_bytes_min`, values of at least so many bytes that keys were created with may be left out
    /// ([`Event::is_whole`]), where that saves reading them.
    ///
    /// # Errors
    /// The storage failed or a row is corrupt.
    pub fn live(
        &self,
        range: &KeyRange,
        resume_after: Option<&Bytes>,
        bytes_max: usize,
        unread_bytes_min: Option<usize>,
    ) -> Result<LiveChunk, StorageError> {
        live::read(&self.current.load(), range, resume_after, bytes_max, unread_bytes_min)
    }

    /// A value of the machine's own state.
    ///
    /// # Errors
    /// The storage failed or the value is corrupt.
    pub fn state_get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let key = format::state_key(key);
        let value = self.current.load().engine.get(Family::State, &key)?;
        value.map(|value| format::unsealed(&key, value)).transpose()
    }

    /// All of the machine's own state whose key begins with `prefix`, in key order.
    ///
    /// # Errors
    /// The storage failed or a value is corrupt.
    pub fn state_scan(&self, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, StorageError> {
        let prefix = format::state_key(prefix);
        let mut found = Vec::new();
        let current = self.current.load();
        let mut rows = current.engine.rows(Family::State, &prefix, None);
        while let Some((key, value)) = rows.next_row()? {
            if !key.starts_with(&prefix) {
                break;
            }
            let value = format::unsealed(&key, value)?;
            found.push((key.slice(format::STATE_PREFIX.len()..), value));
        }
        Ok(found)
    }

    /// Folds about `events_max` more events below `LogState::compacted` into base, in one write batch with the new
    /// fold point, and drops what lies below it. Resumes by itself after a crash. A record is never split, so one
    /// that is larger is folded in one step.
    ///
    /// # Errors
    /// The storage failed or a row is corrupt.
    pub fn fold_step(&self, events_max: usize) -> Result<FoldProgress, StorageError> {
        fold::step(&self.current(), &self.home.holds, events_max)
    }

    /// Whether what was folded waits to be merged by RocksDB, so that more of it had better wait: long before RocksDB slows
    /// down every write (its `soft_pending_compaction_bytes_limit`, 64 GiB), and because the more waits, the more each merge
    /// has to read.
    #[must_use]
    pub fn is_merging_behind(&self) -> bool {
        self.current.load().engine.unmerged_bytes(Family::Base) >= UNMERGED_BYTES_MAX
    }

    /// Makes everything written so far durable. Returns the applied position that is then durable; the raft log may
    /// be trimmed up to it.
    ///
    /// # Errors
    /// The storage failed.
    pub fn flush(&self) -> Result<Position, StorageError> {
        let current = self.current();
        let _one_at_a_time = current.flushing.lock();
        // The numbers are read before the flush begins: what is flushed includes at least these.
        let flushed = current.state();
        let begin = Instant::now();
        current.engine.flush()?;
        metrics::histogram!(crate::metrics::FLUSH_SECONDS).record(begin.elapsed());
        files::write_flushed(current.path(), &flushed)?;
        // Only now: a crash before the flush would bring back a fold point below rows whose files are gone.
        fold::drop_files(&current.engine, flushed.fold_point)?;
        Ok(flushed.applied)
    }

    /// Bytes on disk and in memtables, and an estimate of those in use by live data, when they were measured last. Cheap.
    #[must_use]
    pub fn disk_bytes(&self) -> (u64, u64) {
        let (bytes, in_use) = &self.home.disk_bytes;
        (bytes.load(Ordering::Relaxed), in_use.load(Ordering::Relaxed))
    }

    /// Measures [`EventLog::disk_bytes`] anew.
    pub fn measure_disk(&self) {
        let engine = &self.current.load().engine;
        let memtables = engine.property_sum("rocksdb.cur-size-all-mem-tables");
        let files = engine.property_sum("rocksdb.total-sst-files-size");
        let in_use = engine.property_sum("rocksdb.estimate-live-data-size");
        let (bytes, bytes_in_use) = &self.home.disk_bytes;
        bytes.store(files + memtables, Ordering::Relaxed);
        bytes_in_use.store(in_use + memtables, Ordering::Relaxed);
    }

    /// Merges all files, so that what was overwritten, deleted and folded takes no room any more. Reads and writes go on;
    /// it may take long, and is done when it returns. One at a time.
    ///
    /// # Errors
    /// The storage failed.
    pub fn defragment(&self) -> Result<(), StorageError> {
        let current = self.current();
        let _one_at_a_time = current.defragmenting.lock();
        self.flush()?;
        current.engine.merge_all_files();
        // Who asked for room writes next, and shall not be refused for what is gone.
        self.measure_disk();
        Ok(())
    }

    /// Bytes written since the last flush, in memtables.
    #[must_use]
    pub fn unflushed_bytes(&self) -> usize {
        let bytes = self.current.load().engine.property_sum("rocksdb.cur-size-all-mem-tables");
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// The generation in use now; a read of several steps keeps to one.
    pub(crate) fn current(&self) -> Arc<Generation> {
        self.current.load_full()
    }
}

/// Gives flushes and compactions of this process, whose threads RocksDB shares between all that is open, their places
/// behind the threads that somebody waits for: see [`crate::Background`]. To be called before anything is opened.
///
/// # Errors
/// RocksDB has no environment to offer.
pub fn prioritize_background() -> Result<(), StorageError> {
    engine::prioritize_background()
}

/// The order of revisions is what everything above relies on, so a batch that breaks it stops the member.
fn check_batch(before: &LogState, batch: &WriteBatch) {
    let after = &batch.log_state;
    assert!(
        after.revision >= before.revision && after.compacted >= before.compacted && after.applied >= before.applied,
        "a number goes back: {before:?} then {after:?}"
    );
    assert!(after.compacted <= after.revision, "compacted above the newest revision: {after:?}");
    let mut last = None;
    for event in &batch.events {
        let next = (event.revision(), event.sub());
        let fits = match last {
            None => next.0 > before.revision && next.1 == 0,
            Some(last) => format::follows(last, next),
        };
        assert!(fits, "event {next:?} after {last:?} in a store at revision {}", before.revision);
        last = Some(next);
    }
    assert!(last.is_none_or(|(revision, _)| revision == after.revision), "events end at {last:?}, not at {after:?}");
}

#[cfg(test)]
pub(crate) mod tests;
