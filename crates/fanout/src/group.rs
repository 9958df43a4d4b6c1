//! Watchers with equal range and options: matched once, encoded once.
//!
//! Most groups have one watcher and nothing to say, and there may be a million of them: such a group is one small
//! allocation and its range, and whatever it needs beyond comes and goes with events.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tailwater_eventlog::{Event, Revision};
use triomphe::ThinArc;

use crate::encode::{event_field_len, put_event_field};
use crate::inbox::Inbox;
use crate::registry::ShareBounds;

mod key;

pub(crate) use key::{GroupKey, KeyView, Kind};

/// Ranges of revisions that a group remembers to have dropped; beyond it neighbours are merged, which costs a late
/// watcher only a longer scan.
const DROPPED_MAX: usize = 4;
/// What a chunk costs beside its bytes, about.
const CHUNK_OVERHEAD_BYTES: usize = 192;

/// Matching events of some whole revisions, encoded as fields of a watch response.
#[derive(Debug)]
pub(crate) struct Chunk {
    bytes: Bytes,
    marks: Vec<Mark>,
    /// When the oldest of it was applied, by this process's clock.
    committed: Instant,
}

/// The end of a revision in a chunk.
#[derive(Clone, Copy, Debug)]
struct Mark {
    revision: Revision,
    /// Offset at which its events end.
    end: u32,
    /// Events of the chunk up to here.
    events: u32,
}

impl Chunk {
    fn first(&self) -> Revision {
        self.marks[0].revision
    }

    /// Its last revision.
    pub(crate) fn last(&self) -> Revision {
        self.marks[self.marks.len() - 1].revision
    }

    /// Bytes held.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.bytes.len() + CHUNK_OVERHEAD_BYTES
    }
}

/// What a live watcher finds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Take {
    /// Everything up to the asked revision was handed out.
    Drained,
    /// Something was appended.
    Taken(Taken),
    /// The next events are no longer shared: read them from this revision on.
    Missed(Revision),
    /// The next revision alone is larger than asked for.
    TooLarge(Revision),
}

/// What was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) bytes: usize,
    pub(crate) events: usize,
    /// Everything up to here is in it.
    pub(crate) last: Revision,
    /// When the oldest of it was applied.
    pub(crate) committed: Instant,
}

/// The length of a revision's matching events, found by one watcher for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Measured {
    pub(crate) revision: Revision,
    pub(crate) with_prev: bool,
    pub(crate) bytes: usize,
}

/// What a group has only while there is something to say.
#[derive(Debug, Default)]
struct Recent {
    chunks: VecDeque<Chunk>,
    /// Revisions (first, last) whose matches are no longer, or never were, among the chunks; ascending.
    dropped: Vec<(Revision, Revision)>,
    measured: Option<Measured>,
}

/// Members by stream and watch id.
type Crowd = BTreeMap<(u64, i64), Arc<Inbox>>;

/// Who is woken.
#[derive(Clone, Debug)]
enum Members {
    One(Arc<Inbox>, i64),
    /// A lock of its own, so that the tail thread never waits while thousands are woken.
    Many(Arc<Mutex<Crowd>>),
}

#[derive(Debug)]
struct State {
    members: Members,
    /// Batches above it were matched against this group, and what matched is among the recent chunks or noted as dropped.
    since: Revision,
    recent: Option<Box<Recent>>,
}

/// A reference to a group and, behind it in the same allocation, the bytes of its key; its watchers and the registry share
/// it.
#[derive(Clone, Debug)]
pub(crate) struct SharedGroup(ThinArc<Group, u8>);

impl SharedGroup {
    /// A group of one.
    pub(crate) fn new(key: &GroupKey, since: Revision, watch_id: i64, inbox: &Arc<Inbox>) -> Self {
        Self(ThinArc::from_header_and_slice(Group::new(key.flags, since, watch_id, inbox), &key.bytes))
    }

    pub(crate) fn key(&self) -> KeyView<'_> {
        KeyView { bytes: &self.0.slice, flags: self.flags }
    }

    /// Whether both are the same group.
    pub(crate) fn is(&self, other: &Self) -> bool {
        std::ptr::eq(self.0.ptr(), other.0.ptr())
    }
}

impl Deref for SharedGroup {
    type Target = Group;

    fn deref(&self) -> &Group {
        &self.0.header.header
    }
}

/// What watchers of the same range and options share, but for the key.
#[derive(Debug)]
pub(crate) struct Group {
    /// A leaf lock, held for a few instructions or one copy of references.
    state: Mutex<State>,
    /// Changed under the registry's lock.
    pub(crate) watchers: AtomicU32,
    flags: u8,
    /// Set while it is in the delivery worker's list.
    marked: AtomicBool,
}

impl Group {
    fn new(flags: u8, since: Revision, watch_id: i64, inbox: &Arc<Inbox>) -> Self {
        let members = Members::One(inbox.clone(), watch_id);
        Self {
            state: Mutex::new(State { members, since, recent: None }),
            watchers: AtomicU32::new(1),
            flags,
            marked: AtomicBool::new(false),
        }
    }

    /// Another watcher.
    pub(crate) fn join(&self, watch_id: i64, inbox: &Arc<Inbox>) {
        let mut state = self.state.lock();
        if let Members::One(first, first_id) = &state.members {
            let first = ((first.stream(), *first_id), first.clone());
            state.members = Members::Many(Arc::new(Mutex::new(BTreeMap::from([first]))));
        }
        let Members::Many(members) = &state.members else { unreachable!("made so above") };
        let members = members.clone();
        drop(state);
        members.lock().insert((inbox.stream(), watch_id), inbox.clone());
    }

    /// A watcher is gone, but not the last.
    pub(crate) fn leave(&self, watch_id: i64, inbox: &Inbox) {
        let members = {
            let mut state = self.state.lock();
            match &state.members {
                Members::Many(members) => members.clone(),
                // Another comes, but has not joined yet.
                Members::One(..) => {
                    state.members = Members::Many(Arc::default());
                    return;
                }
            }
        };
        members.lock().remove(&(inbox.stream(), watch_id));
    }

    fn members(&self) -> Members {
        self.state.lock().members.clone()
    }

    /// Whether the caller is the first to mark it since the last [`Group::wake`].
    pub(crate) fn mark(&self) -> bool {
        !self.marked.swap(true, Ordering::SeqCst)
    }

    /// Marks the watchers as ready for what was published up to `revision` and wakes their streams.
    pub(crate) fn wake(&self, revision: Revision) {
        // Cleared first: what is published from here on marks it again.
        self.marked.store(false, Ordering::SeqCst);
        match self.members() {
            Members::One(inbox, watch_id) => inbox.ready(watch_id, revision),
            Members::Many(members) => {
                for ((_, watch_id), inbox) in &*members.lock() {
                    inbox.ready(*watch_id, revision);
                }
            }
        }
    }

    /// Appends shared chunks; by the tail thread, before the revision is published.
    pub(crate) fn append(&self, chunks: Vec<Chunk>, dropped: Option<(Revision, Revision)>) {
        if chunks.is_empty() && dropped.is_none() {
            return;
        }
        let mut state = self.state.lock();
        let recent = state.recent.get_or_insert_default();
        recent.chunks.extend(chunks);
        if let Some(range) = dropped {
            recent.drop_range(range);
        }
    }

    /// Drops the chunks that end at or below `last`; late watchers read them from the window.
    pub(crate) fn drop_until(&self, last: Revision) {
        let mut state = self.state.lock();
        let Some(recent) = &mut state.recent else { return };
        while let Some(chunk) = recent.chunks.pop_front_if(|chunk| chunk.last() <= last) {
            recent.drop_range((chunk.first(), chunk.last()));
        }
        if recent.chunks.is_empty() {
            recent.chunks = VecDeque::new();
        }
    }

    /// Forgets all chunks: nothing up to `to` can be had from here.
    pub(crate) fn reset(&self, from: Revision, to: Revision) {
        let mut state = self.state.lock();
        let recent = state.recent.get_or_insert_default();
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
        let mut state = self.state.lock();
        if next <= state.since {
            return Take::Missed(next);
        }
        let Some(recent) = &state.recent else { return Take::Drained };
        let take = recent.take(next, to, bytes_max, slices);
        if let Take::Taken(Taken { last, .. }) = take {
            state.forget(last.next());
        } else {
            state.forget(next);
        }
        take
    }

    /// Whether everything up to `to`, which is published, was handed to a watcher at `next`.
    pub(crate) fn is_drained(&self, next: Revision, to: Revision) -> bool {
        // Nothing fits zero bytes, so this only looks.
        self.take(next, to, 0, &mut Vec::new()) == Take::Drained
    }

    pub(crate) fn measured(&self, revision: Revision, with_prev: bool) -> Option<usize> {
        let measured = self.state.lock().recent.as_ref()?.measured;
        measured.filter(|m| m.revision == revision && m.with_prev == with_prev).map(|m| m.bytes)
    }

    pub(crate) fn set_measured(&self, measured: Measured) {
        self.state.lock().recent.get_or_insert_default().measured = Some(measured);
    }
}

impl State {
    /// A group's only watcher needs nothing below `next` any more.
    fn forget(&mut self, next: Revision) {
        let (Members::One(..), Some(recent)) = (&self.members, &self.recent) else { return };
        // Dropped ranges are sorted by where they begin, and may overlap.
        let last = recent.dropped.iter().map(|(_, last)| *last).chain(recent.chunks.back().map(Chunk::last)).max();
        let last = last.max(recent.measured.map(|measured| measured.revision));
        if last.is_none_or(|last| last < next) {
            // A second watcher that begins further back finds nothing here, and reads the window.
            self.since = self.since.max(last.unwrap_or(self.since));
            self.recent = None;
        }
    }
}

impl Recent {
    fn take(&self, next: Revision, to: Revision, bytes_max: usize, slices: &mut Vec<Bytes>) -> Take {
        let dropped = self.dropped.iter().find(|(_, last)| *last >= next).map(|(first, _)| (*first).max(next));
        let end = dropped.filter(|first| *first <= to).map_or(to, |first| Revision(first.0 - 1));
        let mut taken: Option<Taken> = None;
        let begin = self.chunks.partition_point(|c| c.last() < next);
        for chunk in self.chunks.iter().skip(begin) {
            let before = taken.map_or(0, |taken| taken.bytes);
            let from = chunk.marks.partition_point(|m| m.revision < next);
            let upto = chunk.marks.partition_point(|m| m.revision <= end);
            let (start, skipped) = from.checked_sub(1).map_or((0, 0), |i| (chunk.marks[i].end, chunk.marks[i].events));
            let fits = |m: &Mark| before + (m.end - start.min(m.end)) as usize <= bytes_max;
            let fitting = chunk.marks[..upto].partition_point(fits);
            if from >= upto {
                break;
            }
            if fitting <= from {
                return taken.map_or(Take::TooLarge(chunk.marks[from].revision), Take::Taken);
            }
            let mark = chunk.marks[fitting - 1];
            slices.push(chunk.bytes.slice(start as usize..mark.end as usize));
            taken = Some(Taken {
                bytes: before + (mark.end - start) as usize,
                events: taken.map_or(0, |taken| taken.events) + (mark.events - skipped) as usize,
                last: mark.revision,
                committed: taken.map_or(chunk.committed, |taken| taken.committed),
            });
            if fitting < chunk.marks.len() {
                break;
            }
        }
        match (taken, dropped) {
            (Some(taken), _) => Take::Taken(taken),
            (None, Some(first)) if first <= to => Take::Missed(first),
            (None, _) => Take::Drained,
        }
    }

    fn drop_range(&mut self, range: (Revision, Revision)) {
        self.dropped.push(range);
        self.dropped.sort_unstable();
        if self.dropped.len() > DROPPED_MAX {
            // The smallest gap goes: a long silence must stay one, lest a watcher that slept through it is taken
            // for one that fell behind the compacted revision.
            let gap = |i: &usize| self.dropped[*i].0.0 - self.dropped[*i - 1].1.0;
            let at = (1..self.dropped.len()).min_by_key(gap).expect("there are several");
            let (_, last) = self.dropped.remove(at);
            self.dropped[at - 1].1 = self.dropped[at - 1].1.max(last);
        }
    }
}

/// A group's chunks of the batch that is being matched.
#[derive(Debug, Default)]
pub(crate) struct ChunkBuilder {
    done: Vec<(Bytes, Vec<Mark>)>,
    buffer: BytesMut,
    marks: Vec<Mark>,
    /// Set when one revision was larger than a chunk, or a previous value is not in memory: from there on the batch is
    /// read from the window.
    dropped_from: Option<Revision>,
}

impl ChunkBuilder {
    /// Adds an event; events come in order.
    pub(crate) fn push(&mut self, event: &Event, prev: Option<&Event>, bounds: &mut ShareBounds) {
        // Offsets are kept in 32 bits.
        let chunk_bytes = bounds.chunk_bytes.min(1 << 30);
        if self.dropped_from.is_some() {
            return;
        }
        let revision = event.revision();
        let len = event_field_len(event, prev);
        let whole = self.marks.iter().rev().find(|m| m.revision < revision).map_or(0, |m| m.end as usize);
        if self.buffer.len() - whole + len > chunk_bytes || len > bounds.batch_bytes {
            self.drop_from(revision);
            return;
        }
        let mut carried = 0;
        if self.buffer.len() + len > chunk_bytes {
            let rest = self.buffer.split_off(whole);
            let total = self.marks.last().map_or(0, |m| m.events);
            self.marks.retain(|m| m.revision < revision);
            carried = total - self.marks.last().map_or(0, |m| m.events);
            self.close();
            self.buffer = rest;
        }
        bounds.batch_bytes -= len;
        put_event_field(&mut self.buffer, event, prev);
        let end = u32::try_from(self.buffer.len()).expect("a chunk is bounded by 1 GiB");
        match self.marks.last_mut() {
            Some(mark) if mark.revision == revision => (mark.end, mark.events) = (end, mark.events + 1),
            last => {
                let events = last.map_or(carried, |mark| mark.events) + 1;
                self.marks.push(Mark { revision, end, events });
            }
        }
    }

    /// From this revision on the batch is read from the window.
    pub(crate) fn drop_from(&mut self, revision: Revision) {
        if self.dropped_from.is_none() {
            let whole = self.marks.iter().rev().find(|m| m.revision < revision).map_or(0, |m| m.end as usize);
            self.buffer.truncate(whole);
            self.marks.retain(|m| m.revision < revision);
            self.dropped_from = Some(revision);
        }
    }

    fn close(&mut self) {
        if !self.marks.is_empty() {
            self.done.push((std::mem::take(&mut self.buffer).freeze(), std::mem::take(&mut self.marks)));
        }
    }

    /// The chunks, and the revisions of the batch that are not in them. `committed`: when the batch was applied.
    pub(crate) fn finish(
        mut self,
        batch_last: Revision,
        committed: Instant,
    ) -> (Vec<Chunk>, Option<(Revision, Revision)>) {
        self.close();
        let chunks = self.done.into_iter().map(|(bytes, marks)| Chunk { bytes, marks, committed }).collect();
        (chunks, self.dropped_from.map(|from| (from, batch_last)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: i64, last: i64) -> Option<(Revision, Revision)> {
        Some((Revision(first), Revision(last)))
    }

    fn take(group: &Group, next: i64, to: i64) -> Take {
        group.take(Revision(next), Revision(to), 1000, &mut Vec::new())
    }

    #[test]
    fn a_group_of_one_forgets_only_what_its_watcher_has() {
        let key = GroupKey::new(&tailwater_eventlog::KeyRange::Key("k".into()), crate::WatchFilter::default(), false);
        let group = SharedGroup::new(&key, Revision(10), 0, &Arc::new(Inbox::new(1)));
        assert_eq!(take(&group, 11, 20), Take::Drained);
        // Ranges may overlap: the one that begins last ends before another.
        group.append(Vec::new(), range(15, 30));
        group.append(Vec::new(), range(18, 18));
        assert_eq!(take(&group, 20, 30), Take::Missed(Revision(20)));
        assert_eq!(take(&group, 31, 40), Take::Drained);
        assert!(group.state.lock().recent.is_none());
        // What it has forgotten, another watcher reads elsewhere.
        assert_eq!(take(&group, 30, 40), Take::Missed(Revision(30)));
        assert_eq!(take(&group, 31, 40), Take::Drained);
    }

    #[test]
    fn a_group_of_one_is_small() {
        // With the reference count and the key's length in front of the key, 72 bytes.
        assert!(size_of::<Group>() <= 56, "{}", size_of::<Group>());
        assert_eq!(size_of::<SharedGroup>(), 8);
        assert_eq!(size_of::<Members>(), 16);
    }
}
