//! Key → its revisions, in memory, for the apply thread.

use bytes::Bytes;

use crate::{Event, KeyRange, LeaseId, Revision};

/// What the index knows of one live version of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyMeta {
    /// The key.
    pub key: Bytes,
    /// Revision of this version.
    pub mod_revision: Revision,
    /// Its sub-revision.
    pub sub: u32,
    /// Revision at which the key was created.
    pub create_revision: Revision,
    /// Puts since creation.
    pub version: i64,
    /// Attached lease, 0 for none.
    pub lease: LeaseId,
}

/// All keys with their uncompacted revisions, ordered, with counts. One owner: the apply thread.
#[derive(Debug, Default)]
pub struct KeyIndex {}

impl KeyIndex {
    /// Adds an event; events must come in (revision, sub) order.
    pub fn insert(&mut self, _event: &Event) {
        todo!()
    }

    /// The live version of `key` at `at` (inclusive). `at` must not be below the compacted revision.
    #[must_use]
    pub fn get(&self, _key: &[u8], _at: Revision) -> Option<KeyMeta> {
        todo!()
    }

    /// The newest live version, with what was written in this very revision included.
    #[must_use]
    pub fn latest(&self, _key: &[u8]) -> Option<KeyMeta> {
        todo!()
    }

    /// Live keys of `range` at `at` in key order, at most `limit` (0: all).
    #[must_use]
    pub fn range(&self, _range: &KeyRange, _at: Revision, _limit: usize) -> Vec<KeyMeta> {
        todo!()
    }

    /// Live keys of `range` at `at`. At the newest revision it costs O(log keys).
    #[must_use]
    pub fn count(&self, _range: &KeyRange, _at: Revision) -> usize {
        todo!()
    }

    /// Forgets versions that no read at or above `compacted` can see, looking at no more than `keys_max` keys from
    /// where the last call of the same compaction stopped. `true` when done.
    pub fn compact_step(&mut self, _compacted: Revision, _keys_max: usize) -> bool {
        todo!()
    }

    /// Keys with at least one revision, live or not.
    #[must_use]
    pub fn len(&self) -> usize {
        todo!()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
