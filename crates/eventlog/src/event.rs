//! One change of one key, encoded once.
//!
//! The bytes are those of etcd's `mvccpb.Event` message without `prev_kv`. For a put the field `kv` (number 2) is
//! the whole message, and byte for byte a `RangeResponse.kvs` field (number 2 as well). A watch event with prev_kv is
//! these bytes, then tag 3, a length and the previous event's [`Event::key_value`].
//!
//! # The stored row, format 1
//!
//! ```text
//! offset  bytes  content
//!      0      1  format: 1
//!      1      1  kind: 0 put, 1 delete
//!      2      4  sub-revision, little endian
//!      6      8  revision of the key's previous version, little endian; 0: none
//!     14      4  sub-revision of that version, little endian; 0 when there is none
//!     18      n  the event bytes
//!   18+n      4  CRC-32C (Castagnoli) of everything before it, little endian
//! ```
//!
//! Everything else that the envelope tells (key, revision, create revision, version, lease, value) stands in the event
//! bytes at places that follow from their one encoding, so it is not stored twice. A reader refuses a row whose bytes
//! are not exactly what [`Event::put`] or [`Event::delete`] writes.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use tailwater_api::wire;

use crate::{LeaseId, Revision};

mod layout;

use layout::Layout;

/// Format of the rows that this build writes, and the only one that it reads.
const ROW_FORMAT: u8 = 1;
/// Bytes of a row before the event bytes.
const ROW_HEAD_BYTES: usize = 18;
/// Bytes of a row behind the event bytes.
const ROW_CHECKSUM_BYTES: usize = 4;

/// Field numbers of `mvccpb.Event`.
const EVENT_TYPE: u32 = 1;
const EVENT_KV: u32 = 2;
/// Field numbers of `mvccpb.KeyValue`.
const KV_KEY: u32 = 1;
const KV_CREATE_REVISION: u32 = 2;
const KV_MOD_REVISION: u32 = 3;
const KV_VERSION: u32 = 4;
const KV_VALUE: u32 = 5;
const KV_LEASE: u32 = 6;

/// What happened to the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The key has a new value.
    Put,
    /// The key is gone.
    Delete,
}

/// What is known of an event without decoding its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Put or delete.
    pub kind: EventKind,
    /// The revision it belongs to; the event's mod_revision.
    pub revision: Revision,
    /// Its place among the events of that revision, from 0; below 2^31.
    pub sub: u32,
    /// Revision at which the key was created; 0 for a delete.
    pub create_revision: Revision,
    /// 1 at creation, then counting puts; 0 for a delete.
    pub version: i64,
    /// The lease that the key is attached to; 0 for none and for a delete.
    pub lease: LeaseId,
    /// Where the newest version of the key *below this revision* is stored, if the key was live then: what prev_kv
    /// is read from. An earlier event of the same revision is never meant, and a put that creates the key has none.
    pub prev: Option<(Revision, u32)>,
}

/// One change of one key. Clones share the bytes.
///
/// The struct is kept small because readers hold one per live key: 56 bytes, which with reference counts make 80 of an
/// allocator. What stands in the bytes is read from there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    bytes: Bytes,
    revision: Revision,
    /// 0: none.
    prev_revision: Revision,
    prev_sub: u32,
    /// Its highest bit says that the value is left out, see [`Event::without_value`].
    sub: u32,
}

/// The bit of an event without its value; no revision has so many events.
const WITHOUT_VALUE: u32 = 1 << 31;

const _: () = assert!(size_of::<Event>() <= 56, "an event is held for each live key");

/// A stored row that can't be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RowError {
    /// The checksum does not fit the bytes.
    #[error("checksum mismatch: stored {stored:08x}, computed {computed:08x}")]
    Checksum {
        /// As found in the row.
        stored: u32,
        /// Of the bytes found.
        computed: u32,
    },
    /// The row was written by a version of the format that is not known here.
    #[error("unknown row format {0}")]
    Format(u8),
    /// The row's parts don't fit its length.
    #[error("malformed row: {0}")]
    Malformed(&'static str),
}

impl Event {
    /// Encodes a put. The envelope's `kind` must be [`EventKind::Put`].
    ///
    /// # Panics
    /// When the envelope is that of a delete, when its `sub` is out of range, or when key and value are together above 4 GiB.
    #[must_use]
    pub fn put(envelope: Envelope, key: &[u8], value: &[u8]) -> Self {
        assert_eq!(envelope.kind, EventKind::Put, "a put is encoded from a put's envelope");
        assert!(u32::try_from(key.len() + value.len()).is_ok(), "requests are bounded far below 4 GiB");
        let key_value_len = bytes_field_len_or_none(KV_KEY, key.len())
            + wire::int_field_len(KV_CREATE_REVISION, envelope.create_revision.0)
            + wire::int_field_len(KV_MOD_REVISION, envelope.revision.0)
            + wire::int_field_len(KV_VERSION, envelope.version)
            + bytes_field_len_or_none(KV_VALUE, value.len())
            + wire::int_field_len(KV_LEASE, envelope.lease.0);
        let mut out = BytesMut::with_capacity(wire::bytes_field_len(EVENT_KV, key_value_len));
        wire::put_bytes_header(&mut out, EVENT_KV, key_value_len);
        put_key(&mut out, key);
        wire::put_int_field(&mut out, KV_CREATE_REVISION, envelope.create_revision.0);
        wire::put_int_field(&mut out, KV_MOD_REVISION, envelope.revision.0);
        wire::put_int_field(&mut out, KV_VERSION, envelope.version);
        wire::put_bytes_field(&mut out, KV_VALUE, value);
        wire::put_int_field(&mut out, KV_LEASE, envelope.lease.0);
        Self::from_parts(out.freeze(), envelope.revision, envelope.sub, envelope.prev)
    }

    /// Encodes a delete; the message holds the key and its mod_revision.
    ///
    /// # Panics
    /// When the key is above 4 GiB or `sub` out of range.
    #[must_use]
    pub fn delete(revision: Revision, sub: u32, key: &[u8], prev: Option<(Revision, u32)>) -> Self {
        let key_value_len =
            bytes_field_len_or_none(KV_KEY, key.len()) + wire::int_field_len(KV_MOD_REVISION, revision.0);
        let type_len = wire::uint_field_len(EVENT_TYPE, 1);
        let mut out = BytesMut::with_capacity(type_len + wire::bytes_field_len(EVENT_KV, key_value_len));
        wire::put_uint_field(&mut out, EVENT_TYPE, 1);
        wire::put_bytes_header(&mut out, EVENT_KV, key_value_len);
        put_key(&mut out, key);
        wire::put_int_field(&mut out, KV_MOD_REVISION, revision.0);
        Self::from_parts(out.freeze(), revision, sub, prev)
    }

    /// Takes over bytes that came from [`Event::bytes`] of another process, with what stands beside them.
    ///
    /// # Errors
    /// [`RowError::Malformed`] when the bytes are not what this type encodes.
    pub fn from_encoded(bytes: Bytes, sub: u32, prev: Option<(Revision, u32)>) -> Result<Self, RowError> {
        if sub & WITHOUT_VALUE != 0 {
            return Err(RowError::Malformed("sub-revision out of range"));
        }
        let mod_revision = Layout::parse(&bytes).map_err(RowError::Malformed)?.mod_revision;
        Ok(Self::from_parts(bytes, Revision(mod_revision), sub, prev))
    }

    /// What is left of a put when its value is given up: everything else of it can be asked as before, and its bytes are
    /// those of a put of an empty value. Whoever holds one must know it by [`Event::is_whole`].
    #[must_use]
    pub fn without_value(&self) -> Self {
        Self::put_without_value(self.envelope(), self.key()).expect("its place was checked")
    }

    /// What [`Event::without_value`] leaves of a put.
    ///
    /// # Errors
    /// [`RowError::Malformed`] when the sub-revision is out of range.
    pub(crate) fn put_without_value(envelope: Envelope, key: &[u8]) -> Result<Self, RowError> {
        if envelope.sub & WITHOUT_VALUE != 0 {
            return Err(RowError::Malformed("sub-revision out of range"));
        }
        let rest = Self::put(envelope, key, b"");
        Ok(Self { sub: envelope.sub | WITHOUT_VALUE, ..rest })
    }

    /// Whether [`Event::bytes`] are those of the event as it was stored.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.sub & WITHOUT_VALUE == 0
    }

    fn from_parts(bytes: Bytes, revision: Revision, sub: u32, prev: Option<(Revision, u32)>) -> Self {
        assert!(sub & WITHOUT_VALUE == 0, "no revision has so many events");
        let (prev_revision, prev_sub) = prev.unwrap_or_default();
        Self { bytes, revision, prev_revision, prev_sub, sub }
    }

    /// With bytes of its own: what came in a large buffer of many would hold all of it in memory.
    #[must_use]
    pub fn detached(self) -> Self {
        Self { bytes: Bytes::copy_from_slice(&self.bytes), ..self }
    }

    /// What is known without decoding. Put together from fields and from the bytes; the single getters are cheaper.
    #[must_use]
    pub fn envelope(&self) -> Envelope {
        let fields = Layout::of(&self.bytes);
        Envelope {
            kind: self.kind(),
            revision: self.revision,
            sub: self.sub(),
            create_revision: Revision(fields.create_revision),
            version: fields.version,
            lease: LeaseId(fields.lease),
            prev: self.prev(),
        }
    }

    /// Put or delete.
    #[must_use]
    pub fn kind(&self) -> EventKind {
        layout::kind(&self.bytes)
    }

    /// The revision it belongs to.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Its place among the events of its revision.
    #[must_use]
    pub fn sub(&self) -> u32 {
        self.sub & !WITHOUT_VALUE
    }

    /// See [`Envelope::prev`].
    #[must_use]
    pub fn prev(&self) -> Option<(Revision, u32)> {
        (self.prev_revision != Revision(0)).then_some((self.prev_revision, self.prev_sub))
    }

    /// See [`Envelope::lease`].
    #[must_use]
    pub fn lease(&self) -> LeaseId {
        LeaseId(Layout::of(&self.bytes).lease)
    }

    /// The encoded `mvccpb.Event` (without prev_kv). For a put: also a `RangeResponse.kvs` field, tag and length
    /// included.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The encoded `mvccpb.KeyValue` inside [`Event::bytes`], without tag and length.
    #[must_use]
    pub fn key_value(&self) -> Bytes {
        self.bytes.slice(layout::key_value_start(&self.bytes)..)
    }

    /// The encoded `mvccpb.KeyValue` without its value: these two parts, one behind the other.
    #[must_use]
    pub fn key_value_without_value(&self) -> [&[u8]; 2] {
        let (before, behind) = layout::around_value(&self.bytes);
        [&self.bytes[before], &self.bytes[behind]]
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.bytes[layout::key(&self.bytes)]
    }

    /// The value; empty for a delete.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        &self.bytes[Layout::of(&self.bytes).value]
    }

    /// The stored form: versioned, checksummed envelope, then the event bytes.
    ///
    /// # Panics
    /// When the value was left out.
    #[must_use]
    pub fn to_row(&self) -> Vec<u8> {
        assert!(self.is_whole(), "an event is stored with its value");
        let mut row = Vec::with_capacity(ROW_HEAD_BYTES + self.bytes.len() + ROW_CHECKSUM_BYTES);
        row.put_u8(ROW_FORMAT);
        row.put_u8(match self.kind() {
            EventKind::Put => 0,
            EventKind::Delete => 1,
        });
        row.put_u32_le(self.sub);
        row.put_i64_le(self.prev_revision.0);
        row.put_u32_le(self.prev_sub);
        row.put_slice(&self.bytes);
        let checksum = crc32c::crc32c(&row);
        row.put_u32_le(checksum);
        row
    }

    /// Reads the stored form. The event shares the row's memory.
    ///
    /// # Errors
    /// See [`RowError`]; nothing is returned of a row that is not whole.
    pub fn from_row(row: Bytes) -> Result<Self, RowError> {
        Self::from_row_with(&row, |body| row.slice(body))
    }

    /// As [`Event::from_row`], of a row that is about to go: the event has bytes of its own.
    ///
    /// # Errors
    /// The same.
    pub(crate) fn copied_from_row(row: &[u8]) -> Result<Self, RowError> {
        Self::from_row_with(row, |body| Bytes::copy_from_slice(&row[body]))
    }

    fn from_row_with(row: &[u8], take: impl FnOnce(Range<usize>) -> Bytes) -> Result<Self, RowError> {
        let body_len = row
            .len()
            .checked_sub(ROW_CHECKSUM_BYTES)
            .filter(|len| *len >= ROW_HEAD_BYTES)
            .ok_or(RowError::Malformed("shorter than head and checksum"))?;
        let stored = u32::from_le_bytes(array_at(row, body_len));
        let computed = crc32c::crc32c(&row[..body_len]);
        if stored != computed {
            return Err(RowError::Checksum { stored, computed });
        }
        if row[0] != ROW_FORMAT {
            return Err(RowError::Format(row[0]));
        }
        let sub = u32::from_le_bytes(array_at(row, 2));
        let prev_revision = Revision(i64::from_le_bytes(array_at(row, 6)));
        let prev_sub = u32::from_le_bytes(array_at(row, 14));
        let prev = (prev_revision != Revision(0)).then_some((prev_revision, prev_sub));
        let event = Self::from_encoded(take(ROW_HEAD_BYTES..body_len), sub, prev)?;
        match (row[1], event.kind()) {
            (0, EventKind::Put) | (1, EventKind::Delete) => Ok(event),
            _ => Err(RowError::Malformed("kind differs from the event's type")),
        }
    }
}

/// The `N` bytes of `row` at `at`; the caller has checked the length.
fn array_at<const N: usize>(row: &[u8], at: usize) -> [u8; N] {
    row[at..at + N].try_into().expect("the slice has N bytes")
}

/// Bytes of a length-delimited field that proto3 leaves out when it is empty.
fn bytes_field_len_or_none(field: u32, len: usize) -> usize {
    if len == 0 { 0 } else { wire::bytes_field_len(field, len) }
}

fn put_key(out: &mut BytesMut, key: &[u8]) {
    wire::put_bytes_field(out, KV_KEY, key);
}

#[cfg(test)]
mod tests;
