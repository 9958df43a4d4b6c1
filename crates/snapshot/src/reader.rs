//! Keys with history, leases and the rest, from a snapshot or from the database of a data directory.

use prost::Message;
use sha2::{Digest, Sha256};
use tailwater_api::leasepb::Lease;
use tailwater_api::mvccpb::KeyValue;

use crate::bolt::{BoltFile, Limits, ReadAt, ReadError, Rows};
use crate::schema::{Facts, FactsReader, RowError, RowKey, RowRevision, bucket};
use crate::writer::TRAILER_BYTES;

/// What facts may take in memory; users, roles and members of any cluster are far less.
const FACTS_BYTES_MAX: usize = 256 << 20;
/// etcd tells a snapshot from a database by this: pages are multiples of 512 bytes.
const SECTOR_BYTES: u64 = 512;

/// Why a snapshot can't be read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The database is broken or the file fails.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A row is not what etcd writes.
    #[error(transparent)]
    Row(#[from] RowError),
    /// The database has not the bucket that every etcd has.
    #[error("no bucket {0:?}: this is not a database of etcd")]
    NoBucket(&'static str),
    /// Users, roles, members and alarms take more memory than any cluster has.
    #[error("users, roles, members and alarms take more than {FACTS_BYTES_MAX} bytes")]
    FactsTooLong,
    /// The file has no trailer: it was copied from a data directory, or cut off.
    #[error("no SHA-256 behind the database: the file was not made by a snapshot, or is cut off")]
    NoTrailer,
    /// The trailer does not fit the file.
    #[error("the SHA-256 behind the database does not fit it: the file is damaged")]
    Checksum,
}

/// An open snapshot, or the database of a data directory.
#[derive(Debug)]
pub struct SnapshotReader<R> {
    bolt: BoltFile<R>,
    bytes: u64,
}

impl<R: ReadAt> SnapshotReader<R> {
    /// Opens it. Neither the trailer nor the pages are looked through yet.
    ///
    /// # Errors
    /// As [`BoltFile::open`], and [`SnapshotError::NoBucket`] when it is another program's database.
    pub fn open(source: R, limits: Limits) -> Result<Self, SnapshotError> {
        let bytes = source.bytes().map_err(ReadError::Source)?;
        let bolt = BoltFile::open(source, limits)?;
        for name in [bucket::KEY, bucket::META] {
            bolt.bucket(name.as_bytes())?.ok_or(SnapshotError::NoBucket(name))?;
        }
        Ok(Self { bolt, bytes })
    }

    /// The database below the schema.
    #[must_use]
    pub fn bolt(&self) -> &BoltFile<R> {
        &self.bolt
    }

    /// Whether the file's length is that of a snapshot with its trailer.
    #[must_use]
    pub fn has_trailer(&self) -> bool {
        self.bytes % SECTOR_BYTES == TRAILER_BYTES
    }

    /// Reads the file once, and compares its SHA-256 with the trailer.
    ///
    /// # Errors
    /// [`SnapshotError::NoTrailer`], [`SnapshotError::Checksum`] and [`ReadError::Source`].
    pub fn verify_trailer(&self) -> Result<(), SnapshotError> {
        if !self.has_trailer() {
            return Err(SnapshotError::NoTrailer);
        }
        let database_bytes = self.bytes - TRAILER_BYTES;
        let mut digest = Sha256::new();
        let mut piece = vec![0; 1 << 16];
        let mut at = 0;
        while at < database_bytes {
            let left = usize::try_from(database_bytes - at).unwrap_or(usize::MAX);
            let piece = &mut piece[..left.min(1 << 16)];
            self.bolt.source.read_exact_at(piece, at).map_err(ReadError::Source)?;
            digest.update(&*piece);
            at += piece.len() as u64;
        }
        let mut trailer = [0; 32];
        self.bolt.source.read_exact_at(&mut trailer, database_bytes).map_err(ReadError::Source)?;
        let found: [u8; 32] = digest.finalize().into();
        if found == trailer { Ok(()) } else { Err(SnapshotError::Checksum) }
    }

    /// Everything but keys and leases.
    ///
    /// # Errors
    /// [`SnapshotError::Read`], [`SnapshotError::Row`] and [`SnapshotError::FactsTooLong`].
    pub fn facts(&self) -> Result<Facts, SnapshotError> {
        let mut reader = FactsReader::default();
        let mut held_bytes = 0;
        for name in bucket::FACTS {
            let Some(bucket) = self.bolt.bucket(name.as_bytes())? else { continue };
            let mut rows = self.bolt.rows(&bucket);
            while let Some(row) = rows.next()? {
                held_bytes += row.key.len() + row.value.len();
                if held_bytes > FACTS_BYTES_MAX {
                    return Err(SnapshotError::FactsTooLong);
                }
                reader.row(name, row.key, row.value)?;
            }
        }
        Ok(reader.finish())
    }

    /// The history, in the order of revisions. The current revision is that of the last row, or
    /// [`Facts::compacted`] when that is above, and never below 1.
    ///
    /// At and below the compacted revision there may be rows that were superseded or deleted: etcd removes them in the
    /// background, and a file may hold what it had not removed yet. They are no longer part of the history; what is
    /// live at the compacted revision is each key's newest row up to it, if that is no delete.
    ///
    /// # Errors
    /// [`SnapshotError::Read`].
    pub fn history(&self) -> Result<History<'_, R>, SnapshotError> {
        let bucket = self.bolt.bucket(bucket::KEY.as_bytes())?.ok_or(SnapshotError::NoBucket(bucket::KEY))?;
        Ok(History { rows: self.bolt.rows(&bucket) })
    }

    /// The leases, in the order of their ids.
    ///
    /// # Errors
    /// [`SnapshotError::Read`].
    pub fn leases(&self) -> Result<Leases<'_, R>, SnapshotError> {
        let bucket = self.bolt.bucket(bucket::LEASE.as_bytes())?;
        Ok(Leases { rows: bucket.map(|bucket| self.bolt.rows(&bucket)) })
    }
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq)]
pub enum Change<'a> {
    /// The key got a value.
    Put {
        /// The message, decoded.
        key_value: KeyValue,
        /// Its bytes as they are stored.
        encoded: &'a [u8],
    },
    /// The key was deleted.
    Delete {
        /// The key.
        key: Vec<u8>,
    },
    /// No change: the revision was raised to this one.
    Bump,
}

/// The rows of the history.
#[derive(Debug)]
pub struct History<'f, R> {
    rows: Rows<'f, R>,
}

impl<R: ReadAt> History<'_, R> {
    /// The next row; none behind the last.
    ///
    /// # Errors
    /// [`SnapshotError::Read`], and [`SnapshotError::Row`] for a row that etcd would not write: one without a key, or
    /// one whose revisions don't fit its place.
    #[expect(clippy::should_implement_trait, reason = "a row borrows from the walk, which an iterator's item can't")]
    pub fn next(&mut self) -> Result<Option<(RowRevision, Change<'_>)>, SnapshotError> {
        let Some(row) = self.rows.next()? else { return Ok(None) };
        let key = RowKey::decode(row.key)?;
        let wrong = |what: &str| RowError::new(bucket::KEY, row.key, what);
        if row.value.is_empty() && !key.is_tombstone {
            return Ok(Some((key.revision, Change::Bump)));
        }
        let key_value = KeyValue::decode(row.value).map_err(|error| RowError::new(bucket::KEY, row.key, error))?;
        if key_value.key.is_empty() {
            return Err(wrong("without a key").into());
        }
        if key.is_tombstone {
            return Ok(Some((key.revision, Change::Delete { key: key_value.key.to_vec() })));
        }
        let is_sound = key_value.mod_revision == key.revision.main
            && (1..=key_value.mod_revision).contains(&key_value.create_revision)
            && key_value.version >= 1;
        if !is_sound {
            return Err(wrong("whose revisions don't fit").into());
        }
        Ok(Some((key.revision, Change::Put { key_value, encoded: row.value })))
    }
}

/// The leases.
#[derive(Debug)]
pub struct Leases<'f, R> {
    rows: Option<Rows<'f, R>>,
}

impl<R: ReadAt> Leases<'_, R> {
    /// The next lease; none behind the last.
    ///
    /// # Errors
    /// [`SnapshotError::Read`] and [`SnapshotError::Row`].
    #[expect(clippy::should_implement_trait, reason = "the walk fails, and ends when it has failed")]
    pub fn next(&mut self) -> Result<Option<Lease>, SnapshotError> {
        let Some(rows) = &mut self.rows else { return Ok(None) };
        let Some(row) = rows.next()? else { return Ok(None) };
        let lease = Lease::decode(row.value).map_err(|error| RowError::new(bucket::LEASE, row.key, error))?;
        if lease.id.to_be_bytes() != row.key {
            return Err(RowError::new(bucket::LEASE, row.key, "of another lease").into());
        }
        Ok(Some(lease))
    }
}
