//! One open directory of the state.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::engine::{Engine, Family};
use super::sparse::Places;
use super::{LogState, Scan, StorageError, format};
use crate::index::SharedTree;
use crate::{Event, HistoryPoint, KeyRange, Revision, StateChunk, StateQuery};

/// What a read of several steps keeps to. The files are closed with the last reference.
pub(crate) struct Generation {
    pub(super) engine: Engine,
    /// The numbers after the last write and the last fold step. Guards a copy; never held during IO.
    pub(super) state: Mutex<LogState>,
    /// The key index's tree; see the documentation of `log.rs`.
    pub(super) tree: SharedTree,
    /// Held during a fold step, so that the fold point has one writer. Where the last step was going: with the fold point
    /// there or above, base is exactly what was live at it.
    pub(super) folding: Mutex<Revision>,
    /// Held while all files are merged.
    pub(super) defragmenting: Mutex<()>,
    /// Held during a flush, so that its marker has one writer.
    pub(super) flushing: Mutex<()>,
    /// Dropped after the engine, which by then has let go of the files.
    pub(super) directory: Directory,
}

impl Generation {
    /// The directory.
    pub(super) fn path(&self) -> &Path {
        &self.directory.path
    }

    /// The numbers after the last write.
    pub(crate) fn state(&self) -> LogState {
        *self.state.lock()
    }

    /// What was live at an older revision; the caller looks for a compaction past it afterwards.
    pub(crate) fn state_at(&self, query: &StateQuery) -> Result<StateChunk, StorageError> {
        super::live::read_at(self, query)
    }

    /// See [`super::sparse::places`].
    pub(crate) fn places(&self, ranges: &[KeyRange], from: HistoryPoint, to: Revision) -> Option<Places> {
        super::sparse::places(self, ranges, from, to)
    }

    /// See [`super::EventLog::event`].
    pub(crate) fn event(&self, key: &[u8], revision: Revision, sub: u32) -> Result<Option<Arc<Event>>, StorageError> {
        // The log first: a fold moves rows from log to base in one batch, never back.
        let (engine, is_folded) = (&self.engine, revision <= self.state().fold_point);
        if !is_folded && let Some(row) = engine.get(Family::Log, &format::log_key(revision, sub))? {
            let event = format::read_log_row(revision, sub, row)?;
            if event.key() != key {
                let found = format::place_of_log(revision, sub);
                return Err(StorageError::Inconsistent(format!("{found} belongs to another key than the index says")));
            }
            return Ok(Some(Arc::new(event)));
        }
        let Some(row) = engine.get(Family::Base, key)? else { return Ok(None) };
        let event = format::read_base_row(key, row)?;
        Ok((event.revision() == revision && event.sub() == sub).then(|| Arc::new(event)))
    }

    /// Log rows from (revision, sub) on, up to and including revision `to`.
    pub(crate) fn scan(&self, from: (Revision, u32), to: Revision) -> Scan<'_> {
        Scan::new(&self.engine, from, to)
    }
}

/// The directory of a generation. One that was replaced is removed when nobody reads it any more.
pub(super) struct Directory {
    pub(super) path: PathBuf,
    pub(super) is_replaced: AtomicBool,
}

impl Directory {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, is_replaced: AtomicBool::new(false) }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.is_replaced.load(Ordering::Acquire)
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            // The next start tries again.
            tracing::warn!(path = %self.path.display(), %error, "a replaced state can't be removed");
        }
    }
}
