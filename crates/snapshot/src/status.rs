//! What `etcdutl snapshot status` tells of a file.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use prost::Message;
use tailwater_api::mvccpb::KeyValue;

use crate::bolt::ReadAt;
use crate::reader::{SnapshotError, SnapshotReader};
use crate::schema::{RowError, RowKey, bucket};

/// A summary of a snapshot, number for number that of `etcdutl snapshot status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotStatus {
    /// CRC-32C over all buckets: name, then keys and values.
    pub hash: u32,
    /// The revision of the last row; 0 without one.
    pub revision: i64,
    /// Keys that are live at that revision.
    pub keys: u64,
    /// Bytes of the database, free pages included, without the trailer.
    pub database_bytes: u64,
    /// The schema's version; etcd 3.5 has none.
    pub storage_version: Option<String>,
}

impl<R: ReadAt> SnapshotReader<R> {
    /// Looks through the file, and sums it up. Takes 16 bytes of memory per live key, and one bit per page.
    ///
    /// # Errors
    /// Those of [`BoltFile::check`](crate::bolt::BoltFile::check), and [`SnapshotError::Row`].
    pub fn status(&self) -> Result<SnapshotStatus, SnapshotError> {
        self.bolt().check()?;
        let mut sum = Sum::default();
        let root = self.bolt().root();
        let mut buckets = self.bolt().rows(&root);
        while let Some(row) = buckets.next()? {
            let Some(bucket) = row.bucket() else { continue };
            let is_history = row.key == bucket::KEY.as_bytes();
            sum.add(row.key);
            let mut rows = self.bolt().rows(&bucket);
            while let Some(row) = rows.next()? {
                sum.add(row.key);
                // A bucket within the bucket has no value for whoever lists it.
                sum.add(if row.is_bucket { &[] } else { row.value });
                if is_history {
                    sum.event(row.key, row.value)?;
                }
            }
        }
        Ok(SnapshotStatus {
            hash: sum.hash,
            revision: sum.revision,
            keys: sum.live.len() as u64,
            database_bytes: self.bolt().file_bytes(),
            storage_version: self.facts()?.storage_version,
        })
    }
}

#[derive(Debug, Default)]
struct Sum {
    hash: u32,
    revision: i64,
    /// Fingerprints of the live keys.
    live: HashSet<[u64; 2]>,
}

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        self.hash = crc32c::crc32c_append(self.hash, bytes);
    }

    fn event(&mut self, key: &[u8], value: &[u8]) -> Result<(), RowError> {
        let row = RowKey::decode(key)?;
        self.revision = row.revision.main;
        let event = KeyValue::decode(value).map_err(|error| RowError::new(bucket::KEY, key, error))?;
        if row.is_tombstone {
            self.live.remove(&fingerprint(&event.key));
        } else {
            self.live.insert(fingerprint(&event.key));
        }
        Ok(())
    }
}

/// 128 bits of a key, so that two of a billion keys fall together once in 10^20 files.
fn fingerprint(key: &[u8]) -> [u64; 2] {
    [0_u8, 1].map(|half| {
        let mut hasher = DefaultHasher::new();
        (half, key).hash(&mut hasher);
        hasher.finish()
    })
}
