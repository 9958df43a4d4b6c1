//! Which groups an event concerns. Matching costs by what matches, not by how many watch.
//!
//! A single key and a range of prefix shape are looked up in one hash table, prefixes by one lookup per prefix *length*
//! in use; any other range in an interval tree.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use hashbrown::HashTable;
use tailwater_eventlog::{Event, Revision};

use crate::group::{Chunk, ChunkBuilder, GroupKey, Kind, SharedGroup};
use crate::inbox::Inbox;
use crate::interval::IntervalTree;
use crate::window::WindowEvent;

/// The chunks of one group that a batch made.
#[derive(Debug)]
pub(crate) struct Matched {
    pub(crate) group: SharedGroup,
    pub(crate) chunks: Vec<Chunk>,
    pub(crate) dropped: Option<(Revision, Revision)>,
}

/// How much groups may share of one batch; the rest is read from the window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShareBounds {
    /// Of one chunk.
    pub(crate) chunk_bytes: usize,
    /// Of all groups together; shrinks while the batch is matched.
    pub(crate) batch_bytes: usize,
}

/// A batch that is to be matched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batch<'a> {
    pub(crate) events: &'a [WindowEvent],
    /// Its last revision.
    pub(crate) last: Revision,
    /// Previous versions below it are not given out.
    pub(crate) compacted: Revision,
    /// When it was applied, by this process's clock.
    pub(crate) committed: Instant,
}

/// All groups and their index.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    slots: Vec<Option<SharedGroup>>,
    free: Vec<u32>,
    /// Slots by kind and range of their groups.
    index: HashTable<u32>,
    hasher: RandomState,
    /// Length of prefixes in use → how many groups have one.
    prefix_lengths: BTreeMap<usize, usize>,
    odd: IntervalTree,
    /// Every batch up to here has been matched.
    matched: Revision,
    hits: Vec<usize>,
}

impl Registry {
    /// The group for a new watcher. One that is made has it as its only member; in any other it must be joined, without
    /// the registry's lock. Each call is paired with a [`Registry::release`].
    pub(crate) fn acquire(&mut self, key: GroupKey, watch_id: i64, inbox: &Arc<Inbox>) -> (SharedGroup, bool) {
        let hash = self.hash(key.view().kind(), key.view().written());
        let slots = &self.slots;
        let known = self.index.find(hash, |&at| group(slots, at).key() == key.view());
        if let Some(&at) = known {
            let group = group(&self.slots, at).clone();
            group.watchers.fetch_add(1, Ordering::Relaxed);
            return (group, false);
        }
        let made = SharedGroup::new(&key, self.matched, watch_id, inbox);
        let at = self.free.pop().unwrap_or_else(|| {
            // By an eighth rather than by doubling: half of the memory would lie idle.
            if self.slots.len() == self.slots.capacity() {
                self.slots.reserve_exact(64 + self.slots.len() / 8);
            }
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).expect("memory ends long before 2^32 groups")
        });
        self.slots[at as usize] = Some(made.clone());
        let (slots, hasher) = (&self.slots, &self.hasher);
        self.index.insert_unique(hash, at, |&at| hash_of(hasher, group(slots, at)));
        let key = made.key();
        let (start, end) = key.ends();
        match key.kind() {
            Kind::Exact => {}
            Kind::Prefix => *self.prefix_lengths.entry(start.len()).or_default() += 1,
            Kind::From | Kind::Span => {
                self.odd.insert(Bytes::copy_from_slice(start), end.map(Bytes::copy_from_slice), at as usize);
            }
        }
        (made, true)
    }

    /// A watcher of the group is gone; whether it was the last, and the group with it.
    pub(crate) fn release(&mut self, released: &SharedGroup) -> bool {
        if released.watchers.fetch_sub(1, Ordering::Relaxed) > 1 {
            return false;
        }
        let hash = hash_of(&self.hasher, released);
        let slots = &self.slots;
        let entry = self.index.find_entry(hash, |&at| group(slots, at).is(released));
        let (at, _) = entry.expect("a group lives as long as its watchers").remove();
        self.slots[at as usize] = None;
        self.free.push(at);
        let (start, _) = released.key().ends();
        match released.key().kind() {
            Kind::Exact => {}
            Kind::Prefix => {
                let count = self.prefix_lengths.get_mut(&start.len()).expect("the length was counted");
                *count -= 1;
                if *count == 0 {
                    self.prefix_lengths.remove(&start.len());
                }
            }
            Kind::From | Kind::Span => self.odd.remove(start, at as usize),
        }
        true
    }

    fn hash(&self, kind: Kind, written: &[u8]) -> u64 {
        self.hasher.hash_one((kind, written))
    }

    /// Number of groups.
    pub(crate) fn groups(&self) -> usize {
        self.index.len()
    }

    /// Every group, in the order of their slots.
    pub(crate) fn all(&self) -> impl Iterator<Item = &SharedGroup> {
        self.slots.iter().flatten()
    }

    /// Takes the groups of the next `slots_max` slots, from `next` on; `true` when these were the last.
    pub(crate) fn part(&self, next: &mut usize, slots_max: usize, groups: &mut Vec<SharedGroup>) -> bool {
        let end = self.slots.len().min(next.saturating_add(slots_max));
        groups.extend(self.slots.get(*next..end).unwrap_or_default().iter().flatten().cloned());
        *next = end;
        end == self.slots.len()
    }

    /// Batches up to `revision` count as matched; groups made from now on start behind it.
    pub(crate) fn set_matched(&mut self, revision: Revision) {
        self.matched = revision;
    }

    /// Every batch up to here has been matched.
    pub(crate) fn matched(&self) -> Revision {
        self.matched
    }

    /// Appends the slots whose range contains `key`; returns how many places were looked at.
    pub(crate) fn find(&self, key: &[u8], hits: &mut Vec<usize>) -> usize {
        let begin = hits.len();
        let mut looked = 1;
        self.find_written(Kind::Exact, key, hits);
        for &length in self.prefix_lengths.range(..=key.len()).map(|(length, _)| length) {
            looked += 1;
            self.find_written(Kind::Prefix, &key[..length], hits);
        }
        looked += self.odd.stab(key, &mut |at| hits.push(at));
        // The table's order is by chance.
        hits[begin..].sort_unstable();
        looked
    }

    fn find_written(&self, kind: Kind, written: &[u8], hits: &mut Vec<usize>) {
        for &at in self.index.iter_hash(self.hash(kind, written)) {
            let key = group(&self.slots, at).key();
            if key.kind() == kind && key.written() == written {
                hits.push(at as usize);
            }
        }
    }

    /// Matches a batch, and encodes each group's events once. Also returns the number of (event, group) pairs.
    pub(crate) fn match_batch(&mut self, batch: Batch<'_>, mut bounds: ShareBounds) -> (Vec<Matched>, usize) {
        let mut hits = std::mem::take(&mut self.hits);
        let mut builders: BTreeMap<usize, ChunkBuilder> = BTreeMap::new();
        let mut pairs = 0;
        for event in batch.events {
            hits.clear();
            self.find(event.version.event().key(), &mut hits);
            pairs += hits.len();
            for &at in &hits {
                let key = self.slots[at].as_ref().expect("an indexed slot is in use").key();
                if !key.filter().wants(event.version.event()) {
                    continue;
                }
                let with_prev = key.prev_kv() && prev_is_visible(event.version.event(), batch.compacted);
                let prev = if with_prev { event.version.before() } else { None };
                let builder = builders.entry(at).or_default();
                if prev.as_ref().is_some_and(|prev| !prev.is_whole()) {
                    // This thread waits for no disk: whoever watches reads it where that is allowed.
                    event.node.ask();
                    builder.drop_from(event.version.revision());
                    continue;
                }
                builder.push(event.version.event(), prev.as_deref(), &mut bounds);
            }
        }
        self.hits = hits;
        self.matched = batch.last;
        let finish = |(at, builder): (usize, ChunkBuilder)| {
            let (chunks, dropped) = builder.finish(batch.last, batch.committed);
            let group = self.slots[at].as_ref().expect("an indexed slot is in use").clone();
            Matched { group, chunks, dropped }
        };
        (builders.into_iter().map(finish).collect(), pairs)
    }
}

fn group(slots: &[Option<SharedGroup>], at: u32) -> &SharedGroup {
    slots[at as usize].as_ref().expect("an indexed slot is in use")
}

fn hash_of(hasher: &RandomState, group: &SharedGroup) -> u64 {
    hasher.hash_one((group.key().kind(), group.key().written()))
}

/// etcd reads the previous version at one below the event's revision, and finds nothing when that is compacted.
pub(crate) fn prev_is_visible(event: &Event, compacted: Revision) -> bool {
    event.revision() > compacted
}

#[cfg(test)]
mod tests;
