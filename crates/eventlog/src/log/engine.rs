//! RocksDB as it is used here: four column families, no write-ahead log, atomic flushes.

use bytes::Bytes;
use rocksdb::{
    BlockBasedOptions, BottommostLevelCompaction, Cache, ColumnFamily, ColumnFamilyDescriptor, CompactOptions, DB,
    DBCompressionType, DBPinnableSlice, DBRawIterator, Env, FlushOptions, IteratorMode, Options, ReadOptions,
    WriteBatch, WriteOptions,
};

use super::{EventLogConfig, StorageError};
use crate::Background;

/// Files kept open; above it the least recently used is closed.
const OPEN_FILES_MAX: i32 = 1024;
/// Memtables of one column family in memory, the ones being flushed included; writes wait above it.
const MEMTABLES_MAX: i32 = 4;
/// At a time.
const FLUSHES: i32 = 1;
const COMPACTIONS: i32 = 1;
/// A scan reads ahead this much, so that it costs few reads.
const SCAN_READAHEAD_BYTES: usize = 256 << 10;
/// Rows that are passed one by one, before it is cheaper to look for a key from the top.
const STEPS_BEFORE_SEEK: usize = 8;
/// Bytes written to a file after which the kernel is asked to begin writing them out, so that a sync has little left.
const BYTES_PER_SYNC: u64 = 1 << 20;
const INFO_LOG_BYTES_MAX: usize = 4 << 20;
/// Allocated ahead for the file that lists the files; RocksDB's own number is 4 MiB, to be made at each start.
const MANIFEST_BYTES: usize = 64 << 10;
/// What is not flushed when the last handle goes is in the raft log: only [`Engine::flush`] writes files. The binding has
/// no setter for this one.
const NO_FLUSH_AT_CLOSE: &str = "avoid_flush_during_shutdown=true";

/// A column family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Log,
    Base,
    Heads,
    State,
}

impl Family {
    const ALL: [Self; 4] = [Self::Log, Self::Base, Self::Heads, Self::State];

    fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Base => "base",
            Self::Heads => "heads",
            Self::State => "state",
        }
    }
}

pub(super) struct Engine {
    db: DB,
}

impl From<rocksdb::Error> for StorageError {
    fn from(error: rocksdb::Error) -> Self {
        // The message names file and offset where RocksDB knows them.
        Self::Engine(error.into_string())
    }
}

impl Engine {
    pub(super) fn open(config: &EventLogConfig) -> Result<Self, StorageError> {
        let cache = Cache::new_lru_cache(config.block_cache_bytes);
        let families = Family::ALL.map(|family| {
            ColumnFamilyDescriptor::new(family.name(), family_options(family, config.memtable_bytes, &cache))
        });
        // RocksDB opens one more of its own, which stays empty, and would make it a cache of its own.
        let unused = ColumnFamilyDescriptor::new("default", unused_options(&cache));
        let families = families.into_iter().chain([unused]);
        // Not every message of a failed start names the directory.
        let db = DB::open_cf_descriptors(&database_options()?, &config.path, families)
            .map_err(|error| StorageError::Engine(format!("{}: {error}", config.path.display())))?;
        Ok(Self { db })
    }

    pub(super) fn family(&self, family: Family) -> &ColumnFamily {
        self.db.cf_handle(family.name()).expect("the column families were opened by name")
    }

    pub(super) fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        Ok(self.db.get_cf(self.family(family), key)?.map(Bytes::from))
    }

    /// Values of several keys, in the order of the keys.
    pub(super) fn multi_get(
        &self,
        family: Family,
        keys: &[[u8; 12]],
    ) -> Result<Vec<Option<DBPinnableSlice<'_>>>, StorageError> {
        let found = self.db.batched_multi_get_cf(self.family(family), keys, false);
        Ok(found.into_iter().collect::<Result<_, _>>()?)
    }

    /// All or nothing, without a sync: the raft log holds what a crash takes.
    pub(super) fn write(&self, batch: WriteBatch) -> Result<(), StorageError> {
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        Ok(self.db.write_opt(batch, &options)?)
    }

    /// Rows from `start` on, below `end`, as of now.
    pub(super) fn rows(&self, family: Family, start: &[u8], end: Option<&[u8]>) -> Rows<'_> {
        let mut options = ReadOptions::default();
        if let Some(end) = end {
            options.set_iterate_upper_bound(end);
        }
        options.set_readahead_size(SCAN_READAHEAD_BYTES);
        // What is read once and in order must not push out what is read again and again.
        options.fill_cache(false);
        let mut iter = self.db.raw_iterator_cf_opt(self.family(family), options);
        iter.seek(start);
        Rows { iter }
    }

    /// Whether `family` has a row.
    pub(super) fn is_empty(&self, family: Family) -> Result<bool, StorageError> {
        Ok(self.db.iterator_cf(self.family(family), IteratorMode::Start).next().transpose()?.is_none())
    }

    /// The last key of `family`.
    pub(super) fn last_key(&self, family: Family) -> Result<Option<Bytes>, StorageError> {
        let last = self.db.iterator_cf(self.family(family), IteratorMode::End).next().transpose()?;
        Ok(last.map(|(key, _)| Bytes::from(key)))
    }

    /// Writes all memtables to files, those of all families up to the same write.
    pub(super) fn flush(&self) -> Result<(), StorageError> {
        let mut options = FlushOptions::default();
        options.set_wait(true);
        Ok(self.db.flush_cfs_opt(&Family::ALL.map(|family| self.family(family)), &options)?)
    }

    /// Drops the files of `family` whose keys all lie in the range, its end included, as RocksDB has it. A file may hold
    /// the tombstones of rows in an older file that stays, and these rows are back then: they must mean nothing.
    pub(super) fn drop_files(&self, family: Family, start: &[u8], last: &[u8]) -> Result<(), StorageError> {
        Ok(self.db.delete_file_in_range_cf(self.family(family), start, last)?)
    }

    /// Merges the files of every family, in the background of everything else; waits for it.
    pub(super) fn merge_all_files(&self) {
        for family in Family::ALL {
            self.merge_files(family);
        }
    }

    /// Merges the files of `family` into one, as RocksDB does by itself at times of its own.
    pub(super) fn merge_files(&self, family: Family) {
        let mut options = CompactOptions::default();
        // What RocksDB merges by itself goes on meanwhile, or writes would have to wait for room.
        options.set_exclusive_manual_compaction(false);
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        self.db.compact_range_cf_opt(self.family(family), None::<&[u8]>, None::<&[u8]>, &options);
    }

    /// Bytes of `family` that RocksDB has still to merge, by its estimate.
    pub(super) fn unmerged_bytes(&self, family: Family) -> u64 {
        let bytes = self.db.property_int_value_cf(self.family(family), "rocksdb.estimate-pending-compaction-bytes");
        bytes.ok().flatten().unwrap_or(0)
    }

    /// A property of all families together; 0 where RocksDB has none.
    pub(super) fn property_sum(&self, name: &str) -> u64 {
        let value = |family| self.db.property_int_value_cf(self.family(family), name).ok().flatten();
        Family::ALL.into_iter().filter_map(value).sum()
    }
}

/// Key and value.
type Row<'a> = (&'a [u8], &'a [u8]);

/// Rows in key order, of one moment.
pub(super) struct Rows<'a> {
    iter: DBRawIterator<'a>,
}

impl Rows<'_> {
    /// The next row. An error is never taken for the end.
    pub(super) fn next_row(&mut self) -> Result<Option<(Bytes, Bytes)>, StorageError> {
        let row = self.row()?.map(|(key, value)| (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        if row.is_some() {
            self.step();
        }
        Ok(row)
    }

    /// The row that is next, until the [`Rows::step`].
    pub(super) fn row(&self) -> Result<Option<Row<'_>>, StorageError> {
        let row = self.iter.item();
        if row.is_none() {
            self.iter.status()?;
        }
        Ok(row)
    }

    pub(super) fn step(&mut self) {
        self.iter.next();
    }

    /// The value at `key`, which must lie behind every key that was asked for before. Cheap when few rows lie between.
    pub(super) fn find(&mut self, key: &[u8]) -> Result<Option<&[u8]>, StorageError> {
        let mut steps = 0;
        while self.iter.key().is_some_and(|found| found < key) {
            if steps < STEPS_BEFORE_SEEK {
                self.iter.next();
            } else {
                self.iter.seek(key);
            }
            steps += 1;
        }
        self.iter.status()?;
        Ok(self.iter.item().filter(|(found, _)| *found == key).map(|(_, value)| value))
    }
}

/// See [`super::prioritize_background`].
pub(super) fn prioritize_background() -> Result<(), StorageError> {
    let env = Env::new()?;
    // RocksDB lowers its threads to the least priority or not at all. So they are started here, by threads that are as
    // nice as they shall be: a thread inherits that.
    let start = |background: Background, start: fn(&mut Env)| {
        let mut env = env.clone();
        let starter = std::thread::spawn(move || {
            background.lower_this_thread();
            start(&mut env);
        });
        starter.join().expect("nothing panics there");
    };
    start(Background::Flush, |env| env.set_high_priority_background_threads(FLUSHES));
    start(Background::Compaction, |env| env.set_background_threads(COMPACTIONS));
    Ok(())
}

fn database_options() -> Result<Options, StorageError> {
    let mut options = Options::default().get_options_from_string(NO_FLUSH_AT_CLOSE)?;
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    // The families must never be found at different writes.
    options.set_atomic_flush(true);
    options.set_paranoid_checks(true);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_max_background_jobs(FLUSHES + COMPACTIONS);
    options.set_bytes_per_sync(BYTES_PER_SYNC);
    options.set_max_log_file_size(INFO_LOG_BYTES_MAX);
    options.set_manifest_preallocation_size(MANIFEST_BYTES);
    options.set_keep_log_file_num(2);
    Ok(options)
}

fn unused_options(cache: &Cache) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    let mut options = Options::default();
    options.set_block_based_table_factory(&blocks);
    options
}

fn family_options(family: Family, memtable_bytes: usize, cache: &Cache) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    // Index and filter blocks count against the cache's bound too.
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    if matches!(family, Family::Base | Family::State) {
        // A miss there is common and should cost no read; a row of the log is asked for when it is there, and heads are
        // read in order.
        blocks.set_bloom_filter(10.0, false);
    }
    let mut options = Options::default();
    options.set_block_based_table_factory(&blocks);
    // The caller flushes at `memtable_bytes`; RocksDB by itself only when the caller falls behind.
    options.set_write_buffer_size(memtable_bytes.saturating_mul(2).max(64 << 10));
    options.set_max_write_buffer_number(MEMTABLES_MAX);
    let (hot, cold) = (DBCompressionType::None, DBCompressionType::Lz4);
    // Heads are mostly zeros.
    let new = if family == Family::Heads { cold } else { hot };
    options.set_compression_per_level(&[new, new, cold, cold, cold, cold, cold]);
    options
}
