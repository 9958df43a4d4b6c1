//! Watchers with equal range and options: matched once, encoded once.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tailwater_eventlog::{Event, KeyRange, Revision};

use crate::WatchFilter;
use crate::encode::{event_field_len, put_event_field};
use crate::inbox::Inbox;
use crate::registry::ShareBounds;

/// Ranges of revisions that a group remembers to have dropped; beyond it neighbours are merged, which costs a late
/// watcher only a longer scan.
const DROPPED_MAX: usize = 4;

/// What makes watchers equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct GroupKey {
    pub(crate) range: KeyRange,
    pub(crate) filter: WatchFilter,
    pub(crate) prev_kv: bool,
}

/// Matching events of some whole revisions, encoded as fields of a watch response.
#[derive(Debug)]
pub(crate) struct Chunk {
    bytes: Bytes,
    /// Each revision with the offset at which its events end.
    marks: Vec<(Revision, usize)>,
}

impl Chunk {
    fn first(&self) -> Revision {
        self.marks[0].0
    }

    fn last(&self) -> Revision {
        self.marks[self.marks.len() - 1].0
    }

    /// Bytes held.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }
}

#[derive(Debug, Default)]
struct Recent {
    chunks: VecDeque<Chunk>,
    /// Revisions (first, last) whose matches are no longer, or never were, among the chunks; ascending.
    dropped: VecDeque<(Revision, Revision)>,
}

/// What a live watcher finds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Take {
    /// Everything up to the asked revision was handed out.
    Drained,
    /// So many bytes were appended; everything up to the revision is in them.
    Taken(usize, Revision),
    /// The next events are no longer shared: read them from this revision on.
    Missed(Revision),
    /// The next revision alone is larger than asked for.
    TooLarge(Revision),
}

/// The length of a revision's matching events, found by one watcher for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Measured {
    pub(crate) revision: Revision,
    pub(crate) with_prev: bool,
    pub(crate) bytes: usize,
}

/// A group; its watchers and the registry share it.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) key: GroupKey,
    /// Batches above it were matched against this group.
    since: Revision,
    recent: Mutex<Recent>,
    /// Streams to wake, by (stream, watch id). Never locked by the tail thread.
    members: Mutex<BTreeMap<(u64, i64), Arc<Inbox>>>,
    /// Set while it is in the delivery worker's list.
    marked: AtomicBool,
    measured: Mutex<Option<Measured>>,
}

impl Group {
    pub(crate) fn new(key: GroupKey, since: Revision) -> Self {
        Self {
            key,
            since,
            recent: Mutex::default(),
            members: Mutex::default(),
            marked: AtomicBool::new(false),
            measured: Mutex::default(),
        }
    }

    pub(crate) fn join(&self, stream: u64, watch_id: i64, inbox: &Arc<Inbox>) {
        self.members.lock().insert((stream, watch_id), inbox.clone());
    }

    pub(crate) fn leave(&self, stream: u64, watch_id: i64) {
        self.members.lock().remove(&(stream, watch_id));
    }

    /// Whether the caller is the first to mark it since the last [`Group::wake`].
    pub(crate) fn mark(&self) -> bool {
        !self.marked.swap(true, Ordering::SeqCst)
    }

    /// Marks the watchers as ready for what was published up to `revision` and wakes their streams.
    pub(crate) fn wake(&self, revision: Revision) {
        // Cleared first: what is published from here on marks it again.
        self.marked.store(false, Ordering::SeqCst);
        for ((_, watch_id), inbox) in &*self.members.lock() {
            inbox.ready(*watch_id, revision);
        }
    }

    /// Appends shared chunks; by the tail thread, before the revision is published.
    pub(crate) fn append(&self, chunks: Vec<Chunk>, dropped: Option<(Revision, Revision)>) {
        let mut recent = self.recent.lock();
        recent.chunks.extend(chunks);
        if let Some(range) = dropped {
            recent.drop_range(range);
        }
    }

    /// Drops the oldest chunk; late watchers read it from the window.
    pub(crate) fn drop_oldest(&self) {
        let mut recent = self.recent.lock();
        if let Some(chunk) = recent.chunks.pop_front() {
            recent.drop_range((chunk.first(), chunk.last()));
            if recent.chunks.is_empty() {
                recent.chunks = VecDeque::new();
            }
        }
    }

    /// Forgets all chunks: nothing up to `to` can be had from here.
    pub(crate) fn reset(&self, from: Revision, to: Revision) {
        let mut recent = self.recent.lock();
        let first = recent.chunks.front().map_or(from, Chunk::first).min(from);
        recent.chunks.clear();
        if first <= to {
            recent.drop_range((first, to));
        }
    }

    /// What a watcher at `next` gets out of the shared chunks, up to and including revision `to`, which is published;
    /// at most `bytes_max` bytes, whole revisions, appended to `slices` by reference.
    pub(crate) fn take(&self, next: Revision, to: Revision, bytes_max: usize, slices: &mut Vec<Bytes>) -> Take {
        if next > to {
            return Take::Drained;
        }
        if next <= self.since {
            return Take::Missed(next);
        }
        let recent = self.recent.lock();
        let dropped = recent.dropped.iter().find(|(_, last)| *last >= next).map(|(first, _)| (*first).max(next));
        let end = dropped.filter(|first| *first <= to).map_or(to, |first| Revision(first.0 - 1));
        let (mut bytes, mut taken) = (0, None);
        let begin = recent.chunks.partition_point(|c| c.last() < next);
        for chunk in recent.chunks.iter().skip(begin) {
            let (from, upto) =
                (chunk.marks.partition_point(|m| m.0 < next), chunk.marks.partition_point(|m| m.0 <= end));
            let start = from.checked_sub(1).map_or(0, |i| chunk.marks[i].1);
            let fitting = chunk.marks[..upto].partition_point(|m| bytes + (m.1 - start.min(m.1)) <= bytes_max);
            if from >= upto {
                break;
            }
            if fitting <= from {
                return taken.map_or(Take::TooLarge(chunk.marks[from].0), |last| Take::Taken(bytes, last));
            }
            let (last, stop) = chunk.marks[fitting - 1];
            slices.push(chunk.bytes.slice(start..stop));
            bytes += stop - start;
            taken = Some(last);
            if fitting < chunk.marks.len() {
                break;
            }
        }
        match (taken, dropped) {
            (Some(last), _) => Take::Taken(bytes, last),
            (None, Some(first)) if first <= to => Take::Missed(first),
            (None, _) => Take::Drained,
        }
    }

    /// Whether everything up to `to`, which is published, was handed to a watcher at `next`.
    pub(crate) fn is_drained(&self, next: Revision, to: Revision) -> bool {
        // Nothing fits zero bytes, so this only looks.
        self.take(next, to, 0, &mut Vec::new()) == Take::Drained
    }

    pub(crate) fn measured(&self, revision: Revision, with_prev: bool) -> Option<usize> {
        self.measured.lock().filter(|m| m.revision == revision && m.with_prev == with_prev).map(|m| m.bytes)
    }

    pub(crate) fn set_measured(&self, measured: Measured) {
        *self.measured.lock() = Some(measured);
    }
}

impl Recent {
    fn drop_range(&mut self, range: (Revision, Revision)) {
        self.dropped.push_back(range);
        self.dropped.make_contiguous().sort_unstable();
        if self.dropped.len() > DROPPED_MAX {
            // The smallest gap goes: a long silence must stay one, lest a watcher that slept through it is taken
            // for one that fell behind the compacted revision.
            let gap = |i: &usize| self.dropped[*i].0.0 - self.dropped[*i - 1].1.0;
            let at = (1..self.dropped.len()).min_by_key(gap).expect("there are several");
            let (_, last) = self.dropped.remove(at).expect("it is in bounds");
            self.dropped[at - 1].1 = self.dropped[at - 1].1.max(last);
        }
    }
}

/// A group's chunks of the batch that is being matched.
#[derive(Debug, Default)]
pub(crate) struct ChunkBuilder {
    done: Vec<Chunk>,
    buffer: BytesMut,
    marks: Vec<(Revision, usize)>,
    /// Set when one revision was larger than a chunk: from there on the batch is read from the window.
    dropped_from: Option<Revision>,
}

impl ChunkBuilder {
    /// Adds an event; events come in order.
    pub(crate) fn push(&mut self, event: &Event, prev: Option<&Event>, bounds: &mut ShareBounds) {
        let chunk_bytes = bounds.chunk_bytes;
        if self.dropped_from.is_some() {
            return;
        }
        let revision = event.revision();
        let len = event_field_len(event, prev);
        let whole = self.marks.iter().rev().find(|m| m.0 < revision).map_or(0, |m| m.1);
        if self.buffer.len() - whole + len > chunk_bytes || len > bounds.batch_bytes {
            self.buffer.truncate(whole);
            self.marks.retain(|m| m.0 < revision);
            self.dropped_from = Some(revision);
            return;
        }
        if self.buffer.len() + len > chunk_bytes {
            let rest = self.buffer.split_off(whole);
            self.marks.retain(|m| m.0 < revision);
            self.close();
            self.buffer = rest;
        }
        bounds.batch_bytes -= len;
        put_event_field(&mut self.buffer, event, prev);
        let end = self.buffer.len();
        match self.marks.last_mut() {
            Some(mark) if mark.0 == revision => mark.1 = end,
            _ => self.marks.push((revision, end)),
        }
    }

    fn close(&mut self) {
        if !self.marks.is_empty() {
            let bytes = std::mem::take(&mut self.buffer).freeze();
            self.done.push(Chunk { bytes, marks: std::mem::take(&mut self.marks) });
        }
    }

    /// The chunks, and the revisions of the batch that are not in them.
    pub(crate) fn finish(mut self, batch_last: Revision) -> (Vec<Chunk>, Option<(Revision, Revision)>) {
        self.close();
        (self.done, self.dropped_from.map(|from| (from, batch_last)))
    }
}
