//! Key → its revisions, in memory, for the apply thread.
//!
//! The tree stands behind a mutex that the apply thread takes for each call, without contention, so that a transfer
//! on another thread can take a snapshot (one reference) whenever it needs one. Only while a snapshot is held does a
//! write copy tree nodes.
//!
//! Invariants: the versions of a key grow by (revision, sub); an entry of the tree is live when the key's newest
//! version is a put.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::{CountedTree, Event, EventKind, KeyRange, LeaseId, Revision};

mod history;

pub(crate) use history::{KeyHistory, Version};

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

/// The index as other threads see it.
pub(crate) type SharedTree = Arc<Mutex<CountedTree<KeyHistory>>>;

/// All keys with their uncompacted revisions, ordered, with counts. One owner: the apply thread.
#[derive(Debug, Default)]
pub struct KeyIndex {
    tree: SharedTree,
    newest: Revision,
    sweep: Option<Sweep>,
}

/// A compaction that has not visited every key yet.
#[derive(Debug)]
struct Sweep {
    compacted: Revision,
    /// The last key visited.
    after: Option<Bytes>,
}

impl KeyIndex {
    /// Adds an event; events must come in (revision, sub) order.
    ///
    /// # Panics
    /// When the key has an event at or above this one's (revision, sub).
    pub fn insert(&mut self, event: &Event) {
        self.newest = self.newest.max(event.revision());
        let version = Version::of(event);
        let live = event.kind() == EventKind::Put;
        self.tree.lock().upsert(event.key(), |history| match history {
            None => (Some(KeyHistory::new(version)), live),
            Some(history) => {
                history.push(version);
                (None, live)
            }
        });
    }

    /// The live version of `key` at `at` (inclusive). `at` must not be below the compacted revision.
    #[must_use]
    pub fn get(&self, key: &[u8], at: Revision) -> Option<KeyMeta> {
        self.tree.lock().get(key)?.live_at(at).map(|version| version.meta(key.to_vec()))
    }

    /// The newest live version, with what was written in this very revision included.
    #[must_use]
    pub fn latest(&self, key: &[u8]) -> Option<KeyMeta> {
        self.get(key, Revision(i64::MAX))
    }

    /// Live keys of `range` at `at` in key order, at most `limit` (0: all).
    #[must_use]
    pub fn range(&self, range: &KeyRange, at: Revision, limit: usize) -> Vec<KeyMeta> {
        let tree = self.tree.lock();
        let entries = if at >= self.newest { tree.live_range_after(range, None) } else { tree.range(range) };
        let live =
            entries.filter_map(|(key, history, _)| history.live_at(at).map(|version| version.meta(key.to_vec())));
        live.take(if limit == 0 { usize::MAX } else { limit }).collect()
    }

    /// Live keys of `range` at `at`. At the newest revision it costs O(log keys).
    #[must_use]
    pub fn count(&self, range: &KeyRange, at: Revision) -> usize {
        let tree = self.tree.lock();
        if at >= self.newest {
            return tree.count_live(range);
        }
        tree.range(range).filter(|(_, history, _)| history.live_at(at).is_some()).count()
    }

    /// Forgets versions that no read at or above `compacted` can see, looking at no more than `keys_max` keys from
    /// where the last call of the same compaction stopped. `true` when done.
    pub fn compact_step(&mut self, compacted: Revision, keys_max: usize) -> bool {
        let mut sweep = self.sweep.take().filter(|sweep| sweep.compacted == compacted);
        let after = sweep.as_mut().and_then(|sweep| sweep.after.take());
        let mut tree = self.tree.lock();
        let mut visited = 0;
        let mut last = None;
        let mut outdated = Vec::new();
        for (key, history, _) in tree.range_after(&KeyRange::all(), after.as_deref()).take(keys_max.max(1)) {
            visited += 1;
            last = Some(key);
            if history.has_outdated(compacted) {
                outdated.push(key.to_vec());
            }
        }
        let after = last.map(|last| Bytes::from(last.to_vec()));
        for key in outdated {
            let emptied = tree.get_mut(&key).is_some_and(|history| history.compact(compacted));
            if emptied {
                tree.remove(&key);
            }
        }
        let done = visited < keys_max.max(1);
        self.sweep = (!done).then_some(Sweep { compacted, after });
        done
    }

    /// Keys with at least one revision, live or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tree.lock().len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tree, for snapshots on other threads.
    pub(crate) fn shared_tree(&self) -> SharedTree {
        Arc::clone(&self.tree)
    }
}

#[cfg(test)]
mod tests;
