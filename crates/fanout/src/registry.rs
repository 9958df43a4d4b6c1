//! Which groups an event concerns. Matching costs by what matches, not by how many watch.
//!
//! A single key is looked up in a hash map; a range of prefix shape by one lookup per prefix *length* in use; any
//! other range in an interval tree.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use tailwater_eventlog::{Event, KeyRange, Revision};

use crate::group::{Chunk, ChunkBuilder, Group, GroupKey};
use crate::interval::IntervalTree;
use crate::window::WindowEvent;

#[derive(Debug)]
struct Slot {
    group: Arc<Group>,
    watchers: usize,
    /// Filled while a batch is matched.
    builder: Option<Box<ChunkBuilder>>,
}

/// The chunks of one group that a batch made.
#[derive(Debug)]
pub(crate) struct Matched {
    pub(crate) group: Arc<Group>,
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

/// All groups and their index.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    by_key: HashMap<GroupKey, usize>,
    exact: HashMap<Bytes, Vec<usize>>,
    prefixes: HashMap<Bytes, Vec<usize>>,
    /// Length of prefixes in use → how many of them.
    prefix_lengths: BTreeMap<usize, usize>,
    odd: IntervalTree,
    /// Every batch up to here has been matched.
    matched: Revision,
    touched: Vec<usize>,
    hits: Vec<usize>,
}

/// Where a range is indexed.
enum Place {
    Exact(Bytes),
    Prefix(Bytes),
    Odd(Bytes, Option<Bytes>),
}

impl Registry {
    /// The group for a new watcher, made if there is none. Each call is paired with a [`Registry::release`].
    pub(crate) fn acquire(&mut self, key: &GroupKey) -> Arc<Group> {
        if let Some(&at) = self.by_key.get(key) {
            let slot = self.slots[at].as_mut().expect("an indexed slot is in use");
            slot.watchers += 1;
            return slot.group.clone();
        }
        let group = Arc::new(Group::new(key.clone(), self.matched));
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[at] = Some(Slot { group: group.clone(), watchers: 1, builder: None });
        self.by_key.insert(key.clone(), at);
        match place(&key.range) {
            Place::Exact(key) => self.exact.entry(key).or_default().push(at),
            Place::Prefix(prefix) => {
                let length = prefix.len();
                let groups = self.prefixes.entry(prefix).or_default();
                if groups.is_empty() {
                    *self.prefix_lengths.entry(length).or_default() += 1;
                }
                groups.push(at);
            }
            Place::Odd(start, end) => self.odd.insert(start, end, at),
        }
        group
    }

    /// A watcher of the group is gone.
    pub(crate) fn release(&mut self, key: &GroupKey) {
        let at = *self.by_key.get(key).expect("a group lives as long as its watchers");
        let slot = self.slots[at].as_mut().expect("an indexed slot is in use");
        slot.watchers -= 1;
        if slot.watchers > 0 {
            return;
        }
        self.slots[at] = None;
        self.free.push(at);
        self.by_key.remove(key);
        match place(&key.range) {
            Place::Exact(key) => remove_value(&mut self.exact, &key, at),
            Place::Prefix(prefix) => {
                remove_value(&mut self.prefixes, &prefix, at);
                if !self.prefixes.contains_key(&prefix) {
                    let count = self.prefix_lengths.get_mut(&prefix.len()).expect("the length was counted");
                    *count -= 1;
                    if *count == 0 {
                        self.prefix_lengths.remove(&prefix.len());
                    }
                }
            }
            Place::Odd(start, _) => self.odd.remove(&start, at),
        }
    }

    /// Number of groups.
    pub(crate) fn groups(&self) -> usize {
        self.by_key.len()
    }

    /// Every group, in the order of their slots.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Group>> {
        self.slots.iter().flatten().map(|slot| &slot.group)
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
    fn find(&self, key: &[u8], hits: &mut Vec<usize>) -> usize {
        let mut looked = 1;
        if let Some(groups) = self.exact.get(key) {
            hits.extend_from_slice(groups);
        }
        for &length in self.prefix_lengths.range(..=key.len()).map(|(length, _)| length) {
            looked += 1;
            if let Some(groups) = self.prefixes.get(&key[..length]) {
                hits.extend_from_slice(groups);
            }
        }
        looked + self.odd.stab(key, &mut |at| hits.push(at))
    }

    /// Matches a batch that ends with revision `last`, and encodes each group's events once. `compacted`: previous
    /// versions below it are not given out. Also returns the number of (event, group) pairs.
    pub(crate) fn match_batch(
        &mut self,
        events: &[WindowEvent],
        last: Revision,
        compacted: Revision,
        mut bounds: ShareBounds,
    ) -> (Vec<Matched>, usize) {
        let mut hits = std::mem::take(&mut self.hits);
        let mut pairs = 0;
        for event in events {
            hits.clear();
            self.find(event.version.event().key(), &mut hits);
            pairs += hits.len();
            for &at in &hits {
                self.offer(at, event, compacted, &mut bounds);
            }
        }
        self.hits = hits;
        self.matched = last;
        let touched = std::mem::take(&mut self.touched);
        let matched = touched.iter().map(|&at| self.finish(at, last)).collect();
        self.touched = touched;
        self.touched.clear();
        (matched, pairs)
    }

    fn offer(&mut self, at: usize, event: &WindowEvent, compacted: Revision, bounds: &mut ShareBounds) {
        let slot = self.slots[at].as_mut().expect("an indexed slot is in use");
        let key = &slot.group.key;
        if !key.filter.wants(event.version.event()) {
            return;
        }
        let with_prev = key.prev_kv && prev_is_visible(event.version.event(), compacted);
        let prev = if with_prev { event.version.before() } else { None };
        let builder = slot.builder.get_or_insert_with(|| {
            self.touched.push(at);
            Box::default()
        });
        builder.push(event.version.event(), prev.as_deref(), bounds);
    }

    fn finish(&mut self, at: usize, last: Revision) -> Matched {
        let slot = self.slots[at].as_mut().expect("a touched slot is in use");
        let builder = slot.builder.take().expect("a touched slot has a builder");
        let (chunks, dropped) = builder.finish(last);
        Matched { group: slot.group.clone(), chunks, dropped }
    }
}

/// etcd reads the previous version at one below the event's revision, and finds nothing when that is compacted.
pub(crate) fn prev_is_visible(event: &Event, compacted: Revision) -> bool {
    event.revision() > compacted
}

fn place(range: &KeyRange) -> Place {
    match range {
        KeyRange::Key(key) => Place::Exact(key.clone()),
        KeyRange::From(start) if start.is_empty() => Place::Prefix(Bytes::new()),
        KeyRange::From(start) => Place::Odd(start.clone(), None),
        KeyRange::Span(start, end) if is_prefix(start, end) => Place::Prefix(start.clone()),
        KeyRange::Span(start, end) => Place::Odd(start.clone(), Some(end.clone())),
    }
}

/// Whether [start, end) are exactly the keys that begin with `start`: the end is the start with its last byte
/// incremented. (A start that ends in 0xff has an end that is shorter; it is rare, and the interval tree serves it.)
fn is_prefix(start: &[u8], end: &[u8]) -> bool {
    match (start.split_last(), end.split_last()) {
        (Some((a, head)), Some((b, tail))) => head == tail && a.checked_add(1) == Some(*b),
        _ => false,
    }
}

fn remove_value(map: &mut HashMap<Bytes, Vec<usize>>, key: &Bytes, value: usize) {
    let values = map.get_mut(key).expect("the range was indexed");
    values.retain(|v| *v != value);
    if values.is_empty() {
        map.remove(key);
    }
}

#[cfg(test)]
mod tests;
