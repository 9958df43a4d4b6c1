//! Gathering a copy of another member's state in the next generation, and switching to it.
//!
//! How far the copy got is a row of the copy itself, written in the same batch as the rows that it counts. So after a
//! crash the copy goes on with what reached the disk, and never with less than it believes to have.
//!
//! Invariants: rows of base are at or below the fold point; rows of the log follow each other without a gap from the
//! fold point on; records up to `complete` are whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use rocksdb::WriteBatch;

use super::copy::{CopyPoint, StateRow};
use super::engine::{Engine, Family};
use super::generations::{self, Marker};
use super::open::open_generation;
use super::{EventLog, EventLogConfig, Generation, Installed, LogState, StorageError, base, files, format};
use crate::{Event, KeyIndex, Revision, RowError};

/// What a copy needs next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyStep {
    /// Rows of base behind this key.
    Base {
        /// The last key that is there.
        after: Option<Bytes>,
    },
    /// Rows of the log behind this place, as [`EventLog::copy_log`] takes it.
    Log {
        /// The last place that is there.
        after: (Revision, u32),
    },
}

impl CopyStep {
    /// Whether a copy that is based at `own` and needs this next can go on at a source that stands at `source`.
    #[must_use]
    pub fn goes_on_at(&self, own: CopyPoint, source: CopyPoint) -> bool {
        own.history == source.history
            && own.compacted <= source.compacted
            && match self {
                Self::Base { .. } => own.fold_point == source.fold_point,
                Self::Log { after: (revision, u32::MAX) } => source.fold_point <= *revision,
                Self::Log { after: (revision, _) } => source.fold_point < *revision,
            }
    }
}

/// How far a copy got; stored with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) point: CopyPoint,
    pub(super) base_last: Option<Bytes>,
    pub(super) base_done: bool,
    pub(super) log_last: Option<(Revision, u32)>,
    pub(super) complete: Revision,
}

/// A copy on its way. One per [`EventLog`] at a time. What was added is durable after each
/// [`EventLogConfig::memtable_bytes`], and found again by the next [`EventLog::staging`].
pub struct Staging {
    engine: Engine,
    /// Of the directory.
    config: EventLogConfig,
    number: u64,
    progress: Progress,
    /// Of the machine's rows that were added last.
    state: Option<LogState>,
    claim: Claim,
}

/// A whole copy, opened: what [`EventLog::replace`] takes.
pub struct Staged {
    generation: Generation,
    index: KeyIndex,
    number: u64,
    claim: Claim,
}

/// That this is the one copy of its [`EventLog`]; let go when dropped.
struct Claim(Arc<AtomicBool>);

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl EventLog {
    /// Opens the place where a copy of another member's state is gathered. Goes on with a copy that was interrupted;
    /// one that can't be read is thrown away.
    ///
    /// # Errors
    /// The storage failed, or another copy is under way.
    pub fn staging(&self) -> Result<Staging, StorageError> {
        if self.home.is_staging.swap(true, Ordering::AcqRel) {
            return Err(StorageError::Inconsistent("a copy of a state is under way already".into()));
        }
        let claim = Claim(Arc::clone(&self.home.is_staging));
        let number = self.home.marker.lock().number + 1;
        let config = generations::config_of(&self.home.config, number);
        let (engine, progress) = match open_staging(&config) {
            Ok(opened) => opened,
            Err(error) => {
                tracing::warn!(%error, "a copy of a state that was interrupted can't be read; it starts over");
                remove(&config)?;
                open_staging(&config)?
            }
        };
        Ok(Staging { engine, config, number, progress, state: None, claim })
    }

    /// Removes a copy that was interrupted, once the member has come up without it.
    ///
    /// # Errors
    /// The storage failed, or the copy is still under way.
    pub fn discard_staging(&self) -> Result<(), StorageError> {
        let staging = self.staging()?;
        let config = staging.config.clone();
        drop(staging.engine);
        remove(&config)
    }

    /// Switches to a copy; durable when it returns, together with the note that [`EventLog::installed`] tells. Every
    /// clone of this handle sees the new state from then on; what is being read finishes on the old one. Returns the
    /// index for the apply thread, which must be the one that calls this.
    ///
    /// # Errors
    /// The switch could not be written: the member must stop, since it does not know which state the next start finds.
    ///
    /// # Panics
    /// When the copy is of another history or would let a number go back.
    pub fn replace(&self, staged: Staged) -> Result<KeyIndex, StorageError> {
        let Staged { generation, index, number, claim } = staged;
        let (before, after) = (self.state(), generation.state());
        assert!(
            before.history == after.history || before.history.0 == 0,
            "a copy of history {:x} replaces {:x}",
            after.history.0,
            before.history.0
        );
        assert!(
            after.revision >= before.revision && after.compacted >= before.compacted && after.applied >= before.applied,
            "a number goes back: {before:?} then {after:?}"
        );
        let mut marker = self.home.marker.lock();
        assert_eq!(number, marker.number + 1, "a copy is made for the generation that it replaces");
        let installed = Installed { applied: after.applied, term: after.applied_term };
        let next = Marker { number, installed: Some(installed) };
        generations::write(&self.home.config.path, &next)?;
        *marker = next;
        let old = self.current.swap(Arc::new(generation));
        old.directory.is_replaced.store(true, Ordering::Release);
        drop(marker);
        drop(claim);
        Ok(index)
    }

    /// Where the state was installed by a copy, until [`EventLog::installed_settled`]: the raft log may end below it,
    /// and must then be reset to it.
    #[must_use]
    pub fn installed(&self) -> Option<Installed> {
        self.home.marker.lock().installed
    }

    /// To be called when the raft log was reset to [`EventLog::installed`], durably: a raft log that ends below the
    /// state is an error again.
    ///
    /// # Errors
    /// The storage failed.
    pub fn installed_settled(&self) -> Result<(), StorageError> {
        let mut marker = self.home.marker.lock();
        if marker.installed.is_some() {
            let next = Marker { installed: None, ..*marker };
            generations::write(&self.home.config.path, &next)?;
            *marker = next;
        }
        Ok(())
    }
}

impl Staging {
    /// What the copy needs next from a source that stands at `point`. When what is there can't go on at that source,
    /// the copy starts over.
    ///
    /// # Errors
    /// The storage failed.
    pub fn begin(&mut self, point: CopyPoint) -> Result<CopyStep, StorageError> {
        if !self.next_step().goes_on_at(self.point(), point) {
            self.start_over(point)?;
        }
        if !self.progress.base_done {
            // Rows of this source's base follow, which may lack more; noted with the first of them.
            self.progress.point.compacted = point.compacted;
        }
        Ok(self.next_step())
    }

    /// What comes next at the same source.
    #[must_use]
    pub fn next_step(&self) -> CopyStep {
        let Progress { point, base_last, base_done, log_last, complete } = &self.progress;
        match log_last {
            _ if !base_done => CopyStep::Base { after: base_last.clone() },
            // A fresh store stands at revision 1, without a record of it.
            None => CopyStep::Log { after: (point.fold_point.max(Revision(1)), u32::MAX) },
            Some((revision, _)) if complete >= revision => CopyStep::Log { after: (*revision, u32::MAX) },
            Some(last) => CopyStep::Log { after: *last },
        }
    }

    /// Where base stands.
    #[must_use]
    pub fn point(&self) -> CopyPoint {
        self.progress.point
    }

    /// Records up to here are whole.
    #[must_use]
    pub fn complete(&self) -> Revision {
        self.progress.complete
    }

    /// Adds rows of base, in key order; `is_end` with the last of them.
    ///
    /// # Errors
    /// The storage failed, or a row is corrupt or does not belong here: it is named, and nothing is added.
    pub fn add_base(&mut self, rows: &[Bytes], is_end: bool) -> Result<(), StorageError> {
        let mut progress = self.progress.clone();
        let mut batch = WriteBatch::default();
        for row in rows {
            let event = Event::from_row(row.clone())
                .map_err(|source| row_error(format!("base row copied after key {}", shown(&progress)), source))?;
            let place = || format!("base row copied for key {}", event.key().escape_ascii());
            format::read_base_row(event.key(), row.clone())?;
            if progress.base_done || progress.base_last.as_ref().is_some_and(|last| last.as_ref() >= event.key()) {
                return Err(row_error(place(), RowError::Malformed("out of order")));
            }
            if event.revision() > progress.point.fold_point {
                return Err(row_error(place(), RowError::Malformed("above the fold point")));
            }
            base::put(&self.engine, &mut batch, &event, row);
            progress.base_last = Some(Bytes::copy_from_slice(event.key()));
        }
        progress.base_done |= is_end;
        self.write(batch, progress)
    }

    /// Adds rows of the log, in order, as [`EventLog::copy_log`] gave them together with `complete`.
    ///
    /// # Errors
    /// The storage failed, or a row is corrupt or does not belong here: it is named, and nothing is added.
    pub fn add_log(&mut self, rows: &[Bytes], complete: Revision) -> Result<(), StorageError> {
        let CopyStep::Log { after } = self.next_step() else {
            return Err(StorageError::Inconsistent("log rows are copied before base is whole".into()));
        };
        let mut batch = WriteBatch::default();
        let mut last = after;
        for row in rows {
            let event = Event::from_row(row.clone()).map_err(|source| {
                row_error(format!("log row copied after {}", format::place_of_log(last.0, last.1)), source)
            })?;
            let place = (event.revision(), event.sub());
            if !format::comes_after(last, place) {
                let place = format!("copied {}", format::place_of_log(place.0, place.1));
                return Err(row_error(place, RowError::Malformed("out of order")));
            }
            batch.put_cf(self.engine.family(Family::Log), format::log_key(place.0, place.1), row);
            last = place;
        }
        if complete > last.0 {
            let last = last.0;
            return Err(StorageError::Inconsistent(format!(
                "records are said to be copied up to revision {complete}, but they end at {last}"
            )));
        }
        let mut progress = Progress { complete: self.progress.complete.max(complete), ..self.progress.clone() };
        if last != after {
            progress.log_last = Some(last);
        }
        self.write(batch, progress)
    }

    /// The machine's own state follows, as of `state`; what was added of another moment is forgotten.
    ///
    /// # Errors
    /// The storage failed, or the state is not one that this copy can end with.
    pub fn begin_state(&mut self, state: LogState) -> Result<(), StorageError> {
        let point = self.progress.point;
        let fits =
            state.history == point.history && point.compacted <= state.compacted && state.compacted <= state.revision;
        if !fits {
            return Err(StorageError::Inconsistent(format!("a copy based at {point:?} can't end at {state:?}")));
        }
        let mut batch = WriteBatch::default();
        let end = [format::STATE_PREFIX[0] + 1];
        batch.delete_range_cf(self.engine.family(Family::State), format::STATE_PREFIX, &end);
        self.state = Some(state);
        self.write(batch, self.progress.clone())
    }

    /// Adds rows of the machine's own state.
    ///
    /// # Errors
    /// The storage failed, or a row is corrupt or not the machine's: it is named, and nothing is added.
    pub fn add_state(&mut self, rows: &[StateRow]) -> Result<(), StorageError> {
        let mut batch = WriteBatch::default();
        for StateRow { key, value } in rows {
            if !key.starts_with(format::STATE_PREFIX) {
                let place = format!("copied state key {}", key.escape_ascii());
                return Err(row_error(place, RowError::Malformed("not the machine's")));
            }
            format::unsealed(key, value.clone())?;
            batch.put_cf(self.engine.family(Family::State), key, value);
        }
        self.write(batch, self.progress.clone())
    }

    /// Ends the copy with the state that was added: drops events above its revision, makes everything durable, and
    /// opens it as a start would. Reads the whole copy.
    ///
    /// # Errors
    /// The storage failed, or the copy is not whole. One that can't be opened is thrown away.
    pub fn finish(self) -> Result<Staged, StorageError> {
        let Some(state) = self.state.filter(|state| self.progress.base_done && self.complete() >= state.revision)
        else {
            let (complete, state) = (self.complete(), self.state);
            return Err(StorageError::Inconsistent(format!("a copy up to revision {complete} can't end at {state:?}")));
        };
        let Self { engine, config, number, progress, claim, .. } = self;
        let kept = (state.revision, u32::MAX);
        let log_last = progress.log_last.map(|last| if last > kept { kept } else { last });
        let complete = progress.complete.min(state.revision);
        let progress = Progress { log_last, complete, ..progress };
        let state = LogState { fold_point: progress.point.fold_point, ..state };
        let mut batch = WriteBatch::default();
        let (start, end) = (format::log_key(state.revision.next(), 0), format::log_key(Revision(i64::MAX), u32::MAX));
        batch.delete_range_cf(engine.family(Family::Log), start, end);
        put_number(&engine, &mut batch, format::NUMBERS_KEY, format::encode_numbers(&state));
        put_number(&engine, &mut batch, format::FOLD_KEY, format::encode_fold_point(state.fold_point));
        put_number(&engine, &mut batch, format::STAGING_KEY, format::encode_progress(&progress));
        engine.write(batch)?;
        engine.flush()?;
        files::write_flushed(&config.path, &state)?;
        drop(engine);
        let opened = open_generation(&config).and_then(|opened| base::check(&opened.0.engine).map(|()| opened));
        let (generation, index) = opened.inspect_err(|_| {
            // A copy that can't be opened would fail again if the next one went on with it.
            if let Err(error) = remove(&config) {
                tracing::warn!(%error, "a copy of a state that can't be opened can't be removed");
            }
        })?;
        assert_eq!(generation.state(), state, "what was written is found");
        Ok(Staged { generation, index, number, claim })
    }

    /// Throws away what is there.
    fn start_over(&mut self, point: CopyPoint) -> Result<(), StorageError> {
        let mut batch = WriteBatch::default();
        let (start, end) = (format::log_key(Revision(0), 0), format::log_key(Revision(i64::MAX), u32::MAX));
        batch.delete_range_cf(self.engine.family(Family::Log), start, end);
        let state = self.engine.family(Family::State);
        batch.delete_range_cf(state, &[][..], &[format::STATE_PREFIX[0] + 1][..]);
        base::clear(&self.engine, &mut batch)?;
        self.state = None;
        self.write(batch, Progress { point, ..Progress::default() })
    }

    fn write(&mut self, mut batch: WriteBatch, progress: Progress) -> Result<(), StorageError> {
        put_number(&self.engine, &mut batch, format::STAGING_KEY, format::encode_progress(&progress));
        self.engine.write(batch)?;
        self.progress = progress;
        let unflushed = self.engine.property_sum("rocksdb.cur-size-all-mem-tables");
        if usize::try_from(unflushed).unwrap_or(usize::MAX) >= self.config.memtable_bytes {
            self.engine.flush()?;
        }
        Ok(())
    }
}

impl Staged {
    /// The numbers of the copied state.
    #[must_use]
    pub fn state(&self) -> LogState {
        self.generation.state()
    }
}

fn open_staging(config: &EventLogConfig) -> Result<(Engine, Progress), StorageError> {
    files::check_format(&config.path)?;
    let engine = Engine::open(config)?;
    let progress = match engine.get(Family::State, format::STAGING_KEY)? {
        Some(value) => format::decode_progress(&format::unsealed(format::STAGING_KEY, value)?)?,
        None => Progress::default(),
    };
    Ok((engine, progress))
}

fn remove(config: &EventLogConfig) -> Result<(), StorageError> {
    std::fs::remove_dir_all(&config.path).map_err(|error| files::failed(&config.path, &error))
}

fn put_number(engine: &Engine, batch: &mut WriteBatch, key: &[u8], value: Vec<u8>) {
    batch.put_cf(engine.family(Family::State), key, format::sealed(key, value));
}

fn row_error(place: String, source: RowError) -> StorageError {
    StorageError::Row { place, source }
}

fn shown(progress: &Progress) -> String {
    progress.base_last.as_deref().unwrap_or_default().escape_ascii().to_string()
}
