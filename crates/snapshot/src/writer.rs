//! A snapshot from rows in the order of their revisions.

use std::io::Write;

use prost::Message;
use tailwater_api::leasepb::Lease;

use crate::bolt::{BoltPlan, BoltPlanner, BoltWriter, Pass, Value, WriteError};
use crate::schema::{FactRows, Facts, RowKey, RowRevision, bucket};

/// Bytes of the trailer: SHA-256 of all before it.
pub const TRAILER_BYTES: u64 = 32;

/// What the first pass has found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotPlan(BoltPlan);

impl SnapshotPlan {
    /// Bytes of the database, which come first. Their SHA-256 follows.
    #[must_use]
    pub fn database_bytes(&self) -> u64 {
        self.0.file_bytes()
    }

    /// Bytes of database and trailer.
    #[must_use]
    pub fn snapshot_bytes(&self) -> u64 {
        self.database_bytes() + TRAILER_BYTES
    }
}

/// The first pass: lengths in, [`SnapshotPlan`] out. Takes the same calls in the same order as [`SnapshotWriter`]; see
/// there.
#[derive(Debug)]
pub struct SnapshotPlanner(Snapshot<BoltPlanner>);

impl SnapshotPlanner {
    /// Begins.
    ///
    /// # Errors
    /// As [`SnapshotWriter::new`].
    pub fn new(facts: &Facts) -> Result<Self, WriteError> {
        Ok(Self(Snapshot::new(BoltPlanner::default(), facts)?))
    }

    /// A key got a value; its encoded `mvccpb.KeyValue` has `key_value_bytes`.
    ///
    /// # Errors
    /// As [`SnapshotWriter::put`].
    pub fn put(&mut self, at: RowRevision, key_value_bytes: usize) -> Result<(), WriteError> {
        self.0.event(RowKey { revision: at, is_tombstone: false }, Value::Length(key_value_bytes))
    }

    /// A key of `key_bytes` was deleted.
    ///
    /// # Errors
    /// As [`SnapshotWriter::delete`].
    pub fn delete(&mut self, at: RowRevision, key_bytes: usize) -> Result<(), WriteError> {
        self.0.event(RowKey { revision: at, is_tombstone: true }, Value::Length(tombstone_bytes(key_bytes)))
    }

    /// Ends the history.
    ///
    /// # Errors
    /// As [`SnapshotWriter::end_history`].
    pub fn end_history(&mut self, revision: i64) -> Result<(), WriteError> {
        self.0.end_history(revision, Value::Length(0))
    }

    /// A lease.
    ///
    /// # Errors
    /// As [`SnapshotWriter::lease`].
    pub fn lease(&mut self, lease: &Lease) -> Result<(), WriteError> {
        self.0.lease(lease)
    }

    /// Ends the pass.
    ///
    /// # Errors
    /// As [`SnapshotWriter::finish`].
    pub fn finish(self) -> Result<SnapshotPlan, WriteError> {
        Ok(SnapshotPlan(self.0.finish()?.finish()?))
    }
}

/// Writes a snapshot that etcd and its tools take, in one stream and with the memory of a few pages.
///
/// Calls come in this order, first to a [`SnapshotPlanner`] and then, with the plan, here; both times for the same
/// state, so the caller holds a snapshot of its own store meanwhile:
///
/// 1. [`put`](Self::put) and [`delete`](Self::delete) for each row of history, in the order of revisions;
/// 2. [`end_history`](Self::end_history) with the current revision;
/// 3. [`lease`](Self::lease) for each lease, in the order of ids;
/// 4. [`finish`](Self::finish).
///
/// Which rows of history: for a compacted revision C, each key's newest row at or below C unless that is a delete below
/// C, under its own revision, and everything above C. Rows below C that are superseded do no harm but are never served.
/// With `finished_compaction` and `scheduled_compaction` of the [`Facts`] both at C, etcd serves what is above.
#[derive(Debug)]
pub struct SnapshotWriter<W>(Snapshot<BoltWriter<W>>);

impl<W: Write> SnapshotWriter<W> {
    /// Begins: the first pages go to `sink`.
    ///
    /// # Errors
    /// [`WriteError::Sink`].
    pub fn new(sink: W, plan: SnapshotPlan, facts: &Facts) -> Result<Self, WriteError> {
        Ok(Self(Snapshot::new(BoltWriter::new(sink, plan.0)?, facts)?))
    }

    /// A key got a value: the bytes of its `mvccpb.KeyValue`, whole.
    ///
    /// # Errors
    /// [`WriteError::OutOfOrder`], [`WriteError::ValueLength`], [`WriteError::Sink`], and [`WriteError::NotAsPlanned`]
    /// as soon as the rows exceed the plan.
    ///
    /// # Panics
    /// After [`end_history`](Self::end_history).
    pub fn put(&mut self, at: RowRevision, key_value: &[u8]) -> Result<(), WriteError> {
        self.0.event(RowKey { revision: at, is_tombstone: false }, Value::Bytes(key_value))
    }

    /// A key was deleted.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    ///
    /// # Panics
    /// After [`end_history`](Self::end_history).
    pub fn delete(&mut self, at: RowRevision, key: &[u8]) -> Result<(), WriteError> {
        self.0.tombstone(at, key)
    }

    /// Ends the history at `revision`. etcd takes its revision from the newest row or the compaction; when neither
    /// reaches `revision`, a row without a change is written there, as `etcdutl` does when it bumps a revision.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    ///
    /// # Panics
    /// When it was called before, or `revision` is below a row.
    pub fn end_history(&mut self, revision: i64) -> Result<(), WriteError> {
        self.0.end_history(revision, Value::Bytes(&[]))
    }

    /// A lease.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    ///
    /// # Panics
    /// Before [`end_history`](Self::end_history).
    pub fn lease(&mut self, lease: &Lease) -> Result<(), WriteError> {
        self.0.lease(lease)
    }

    /// Writes the rest and the trailer. The sink is not flushed.
    ///
    /// # Errors
    /// [`WriteError::Sink`], and [`WriteError::NotAsPlanned`] when the rows were others than those of the plan.
    ///
    /// # Panics
    /// Before [`end_history`](Self::end_history).
    pub fn finish(self) -> Result<W, WriteError> {
        let (mut sink, digest) = self.0.finish()?.finish()?;
        sink.write_all(&digest)?;
        Ok(sink)
    }
}

/// What both passes do.
#[derive(Debug)]
struct Snapshot<P> {
    pass: P,
    facts: FactRows,
    compacted: i64,
    /// Up to where the rows have come; none when the history has ended.
    reached: Option<i64>,
    row: Vec<u8>,
}

impl<P: Pass> Snapshot<P> {
    fn new(mut pass: P, facts: &Facts) -> Result<Self, WriteError> {
        pass.bucket(bucket::KEY.as_bytes())?;
        // A store without a row is at revision 1.
        let compacted = facts.compacted().unwrap_or(0);
        Ok(Self { pass, facts: facts.rows(), compacted, reached: Some(1), row: Vec::new() })
    }

    fn event(&mut self, key: RowKey, value: Value<'_>) -> Result<(), WriteError> {
        assert!(self.reached.is_some(), "the history has ended; {} comes too late", key.revision);
        self.pass.row(key.encode().as_slice(), value)?;
        self.reached = Some(key.revision.main);
        Ok(())
    }

    fn tombstone(&mut self, at: RowRevision, key: &[u8]) -> Result<(), WriteError> {
        let mut row = std::mem::take(&mut self.row);
        row.clear();
        tailwater_api::wire::put_bytes_field(&mut row, KV_KEY, key);
        let put = self.event(RowKey { revision: at, is_tombstone: true }, Value::Bytes(&row));
        self.row = row;
        put
    }

    fn end_history(&mut self, revision: i64, nothing: Value<'_>) -> Result<(), WriteError> {
        let reached = self.reached.expect("a history ends once");
        assert!(revision >= reached, "the history ends at {revision}, but has rows up to {reached}");
        if revision > reached.max(self.compacted) {
            self.event(RowKey { revision: RowRevision { main: revision, sub: 0 }, is_tombstone: false }, nothing)?;
        }
        self.reached = None;
        self.pass.bucket(bucket::LEASE.as_bytes())
    }

    fn lease(&mut self, lease: &Lease) -> Result<(), WriteError> {
        assert!(self.reached.is_none(), "leases come behind the history");
        self.pass.row(&lease.id.to_be_bytes(), Value::Bytes(&lease.encode_to_vec()))
    }

    fn finish(mut self) -> Result<P, WriteError> {
        assert!(self.reached.is_none(), "a snapshot ends behind its history");
        for (bucket, rows) in &self.facts {
            self.pass.bucket(bucket.as_bytes())?;
            for (key, value) in rows {
                self.pass.row(key, Value::Bytes(value))?;
            }
        }
        Ok(self.pass)
    }
}

/// Field `key` of `mvccpb.KeyValue`, the only one of a tombstone.
const KV_KEY: u32 = 1;

fn tombstone_bytes(key_bytes: usize) -> usize {
    if key_bytes == 0 { 0 } else { tailwater_api::wire::bytes_field_len(KV_KEY, key_bytes) }
}
