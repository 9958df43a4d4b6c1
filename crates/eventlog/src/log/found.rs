//! A store that begins with content: what a backup restores.
//!
//! Events come in the order of revisions. Those up to the fold point make base; those above make the log, where no
//! revision may be missing. Nobody's history exists yet: its id is 0 until the group that starts on the store has
//! chosen one.
//!
//! The store is as if it had been installed at [`POSITION`]: a raft log without entries is set to that place by the first
//! start, so that a member that joins later, and would find a log from its first entry on, copies the state instead.

use std::path::Path;

use rocksdb::WriteBatch;

use super::engine::{Engine, Family};
use super::generations::{self, Marker};
use super::open::open_generation;
use super::{EventLogConfig, Installed, LogState, StorageError, base, files, format};
use crate::{Envelope, Event, EventKind, KeyIndex, LeaseId, Position, Revision, Term};

/// A write batch is about this large.
const BATCH_BYTES: usize = 4 << 20;
/// Flushed and cached like this.
const MEMTABLE_BYTES: usize = 64 << 20;
const BLOCK_CACHE_BYTES: usize = 8 << 20;
/// Where a restored store stands, in the term of the same number.
const POSITION: u64 = 1;

/// A put as it is restored.
#[derive(Clone, Copy, Debug)]
pub struct RestoredPut<'a> {
    /// The key.
    pub key: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
    /// Revision at which the key was created.
    pub create_revision: Revision,
    /// Puts since then.
    pub version: i64,
    /// The attached lease; 0: none.
    pub lease: LeaseId,
}

/// A store in the making.
pub struct Founder {
    engine: Engine,
    config: EventLogConfig,
    fold_point: Revision,
    last: (Revision, u32),
    index: KeyIndex,
    batch: WriteBatch,
}

impl Founder {
    /// Begins a store in the directory `path`, which must not exist. Events up to and including `fold_point` come first.
    ///
    /// # Errors
    /// The directory is there, or can't be written.
    pub fn new(path: &Path, fold_point: Revision) -> Result<Self, StorageError> {
        if path.exists() {
            return Err(StorageError::Engine(format!("{}: exists already", path.display())));
        }
        let config = EventLogConfig {
            path: path.to_owned(),
            memtable_bytes: MEMTABLE_BYTES,
            block_cache_bytes: BLOCK_CACHE_BYTES,
        };
        files::check_format(path)?;
        let engine = Engine::open(&config)?;
        let last = (Revision(0), 0);
        Ok(Self { engine, config, fold_point, last, index: KeyIndex::default(), batch: WriteBatch::default() })
    }

    /// A key got a value.
    ///
    /// # Errors
    /// The storage failed, or events are not in order; above the fold point also when one is missing before it.
    pub fn put(&mut self, revision: Revision, sub: u32, put: &RestoredPut<'_>) -> Result<(), StorageError> {
        let envelope = Envelope {
            kind: EventKind::Put,
            revision,
            sub,
            create_revision: put.create_revision,
            version: put.version,
            lease: put.lease,
            prev: self.prev(put.key, revision),
        };
        self.add(&Event::put(envelope, put.key, put.value))
    }

    /// A key was deleted.
    ///
    /// # Errors
    /// As [`Founder::put`].
    pub fn delete(&mut self, revision: Revision, sub: u32, key: &[u8]) -> Result<(), StorageError> {
        self.add(&Event::delete(revision, sub, key, self.prev(key, revision)))
    }

    /// Ends with the machine's own state: keys and values. Durable when it returns, and looked through as a start would.
    ///
    /// # Errors
    /// The storage failed, or the numbers don't fit the events.
    pub fn finish(
        mut self,
        revision: Revision,
        compacted: Revision,
        state: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<LogState, StorageError> {
        let numbers = LogState {
            revision,
            compacted,
            fold_point: self.fold_point,
            applied: Position(POSITION),
            applied_term: Term(POSITION),
            ..LogState::default()
        };
        for (key, value) in state {
            let key = format::state_key(key);
            let value = format::sealed(&key, value.clone());
            self.batch.put_cf(self.engine.family(Family::State), &key, value);
        }
        for (key, value) in [
            (format::NUMBERS_KEY, format::encode_numbers(&numbers)),
            (format::FOLD_KEY, format::encode_fold_point(self.fold_point)),
        ] {
            self.batch.put_cf(self.engine.family(Family::State), key, format::sealed(key, value));
        }
        self.write()?;
        let Self { engine, config, .. } = self;
        engine.flush()?;
        files::write_flushed(&config.path, &numbers)?;
        drop(engine);
        let (generation, _) = open_generation(&config)?;
        base::check(&generation.engine)?;
        assert_eq!(generation.state(), numbers, "what was written is found");
        let installed = Some(Installed { applied: numbers.applied, term: numbers.applied_term });
        generations::write(&config.path, &Marker { number: 0, installed })?;
        Ok(numbers)
    }

    /// Where the key's newest version below `revision` stands, if it was live.
    fn prev(&self, key: &[u8], revision: Revision) -> Option<(Revision, u32)> {
        // What lies at or below the fold point is never asked for its predecessor.
        let is_asked = revision > self.fold_point;
        let prev = is_asked.then(|| self.index.get(key, Revision(revision.0 - 1))).flatten();
        prev.map(|prev| (prev.mod_revision, prev.sub))
    }

    fn add(&mut self, event: &Event) -> Result<(), StorageError> {
        let place = (event.revision(), event.sub());
        let wrong = |what: &str| {
            let place = format::place_of_log(place.0, place.1);
            Err(StorageError::Inconsistent(format!("{place} {what}")))
        };
        if place <= self.last && self.last != (Revision(0), 0) {
            return wrong("is out of order");
        }
        if place.0 > self.fold_point {
            let before =
                if self.last.0 > self.fold_point { self.last } else { (self.fold_point.max(Revision(1)), u32::MAX) };
            if !format::comes_after(before, place) {
                return wrong("leaves a hole before it");
            }
            self.batch.put_cf(self.engine.family(Family::Log), format::log_key(place.0, place.1), event.to_row());
        } else if event.kind() == EventKind::Put {
            base::put(&self.engine, &mut self.batch, event, &event.to_row());
        } else {
            base::delete(&self.engine, &mut self.batch, event.key());
        }
        self.index.insert(event);
        self.last = place;
        if self.batch.size_in_bytes() >= BATCH_BYTES { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<(), StorageError> {
        self.engine.write(std::mem::take(&mut self.batch))?;
        let unflushed = self.engine.property_sum("rocksdb.cur-size-all-mem-tables");
        if usize::try_from(unflushed).unwrap_or(usize::MAX) >= MEMTABLE_BYTES {
            self.engine.flush()?;
        }
        Ok(())
    }
}
