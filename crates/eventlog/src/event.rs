//! One change of one key, encoded once.
//!
//! The bytes are those of etcd's `mvccpb.Event` message without `prev_kv`. For a put the field `kv` (number 2) is
//! the whole message, and byte for byte a `RangeResponse.kvs` field (number 2 as well). A watch event with prev_kv is
//! these bytes, then tag 3, a length and the previous event's [`Event::key_value`].

use bytes::Bytes;

use crate::{LeaseId, Revision};

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
    /// Its place among the events of that revision, from 0.
    pub sub: u32,
    /// Revision at which the key was created; 0 for a delete.
    pub create_revision: Revision,
    /// 1 at creation, then counting puts; 0 for a delete.
    pub version: i64,
    /// The lease that the key is attached to; 0 for none and for a delete.
    pub lease: LeaseId,
    /// Where the newest version of the key *below this revision* is stored, if the key was live then: what prev_kv
    /// is read from. An earlier event of the same revision is never meant.
    pub prev: Option<(Revision, u32)>,
}

/// One change of one key. Clones share the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    envelope: Envelope,
    bytes: Bytes,
    key: (u32, u32),
    value: (u32, u32),
}

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
    #[must_use]
    pub fn put(_envelope: Envelope, _key: &[u8], _value: &[u8]) -> Self {
        todo!()
    }

    /// Encodes a delete; the message holds the key and its mod_revision.
    #[must_use]
    pub fn delete(_revision: Revision, _sub: u32, _key: &[u8], _prev: Option<(Revision, u32)>) -> Self {
        todo!()
    }

    /// What is known without decoding.
    #[must_use]
    pub fn envelope(&self) -> &Envelope {
        &self.envelope
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
        todo!()
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.bytes[self.key.0 as usize..(self.key.0 + self.key.1) as usize]
    }

    /// The value; empty for a delete.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        &self.bytes[self.value.0 as usize..(self.value.0 + self.value.1) as usize]
    }

    /// The stored form: versioned, checksummed envelope, then the event bytes.
    #[must_use]
    pub fn to_row(&self) -> Vec<u8> {
        todo!()
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// See [`RowError`]; nothing is returned of a row that is not whole.
    pub fn from_row(_row: Bytes) -> Result<Self, RowError> {
        todo!()
    }
}
