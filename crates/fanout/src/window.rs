//! Recent events in revision order, bounded in bytes.
//!
//! The window holds every event above its floor, and for each of their keys what was visible at the floor. So reads
//! at or above the floor, and watches that continue above it, need nothing but memory. Events live in *segments* of
//! whole revisions; a reader takes a reference to one segment under a short lock and then works without it.
//!
//! Invariant: `floor <= first revision of the oldest segment - 1`, and the floor is raised before anything below it
//! is forgotten, so that a reader who finds the floor still low after reading has read the truth.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use parking_lot::RwLock;
use tailwater_eventlog::{HistoryEvent, HistoryPoint, KeyRange, Revision};

use crate::WatchFilter;
use crate::encode::event_field_len;
use crate::keys::KeyTree;
use crate::version::{KeyNode, Version};

/// What a key's version, window entry and tree node cost beside the event's own bytes, roughly.
const ENTRY_BYTES: usize = 192;
/// Events of a scan that cost about as much as one key or one of its versions.
const EVENTS_PER_KEY: usize = 8;
/// Events looked at in one step of a scan, matching or not.
const SCAN_EVENTS_MAX: usize = 8192;

/// An event in the window.
#[derive(Debug)]
pub(crate) struct WindowEvent {
    pub(crate) version: Arc<Version>,
    /// Where it belongs.
    pub(crate) node: Arc<KeyNode>,
    /// What it did to the number of live keys: 1, 0 or -1.
    pub(crate) live_change: i8,
}

/// Some whole revisions.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) events: Vec<WindowEvent>,
    last: Revision,
    bytes: usize,
}

/// A piece of history: events, and where to go on (`None`: all were seen).
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) events: Vec<HistoryEvent>,
    pub(crate) next: Option<HistoryPoint>,
}

impl Piece {
    /// As far as `at`, which is not in memory; `None` when that is nothing.
    fn up_to(self, at: HistoryPoint, query: &WindowQuery<'_>) -> Option<Self> {
        (at > query.from).then_some(Self { next: Some(at), ..self })
    }
}

/// What to take out of the window.
pub(crate) struct WindowQuery<'a> {
    /// Not none.
    pub(crate) ranges: &'a [KeyRange],
    pub(crate) filter: WatchFilter,
    pub(crate) from: HistoryPoint,
    /// Inclusive; must be published.
    pub(crate) to: Revision,
    pub(crate) with_prev: bool,
    pub(crate) bytes_max: usize,
}

/// The window; one thread appends and evicts, any thread reads.
#[derive(Debug, Default)]
pub(crate) struct Window {
    segments: RwLock<VecDeque<Arc<Segment>>>,
    floor: AtomicI64,
    bytes: AtomicUsize,
}

impl Window {
    /// History is complete in memory for revisions at or above it.
    pub(crate) fn floor(&self) -> Revision {
        Revision(self.floor.load(Ordering::SeqCst))
    }

    /// Bytes held, bookkeeping included.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Appends whole revisions, in order.
    pub(crate) fn append(&self, events: Vec<WindowEvent>, segment_bytes: usize) {
        let mut segments = Vec::new();
        let mut current: Option<Segment> = None;
        for event in events {
            let revision = event.version.revision();
            let bytes = event.version.event().bytes().len() + ENTRY_BYTES;
            if let Some(full) = current.take_if(|s| s.last < revision && s.bytes >= segment_bytes) {
                segments.push(Arc::new(full));
            }
            let segment = current.get_or_insert_with(|| Segment { events: Vec::new(), last: revision, bytes: 0 });
            segment.last = revision;
            segment.bytes += bytes;
            segment.events.push(event);
        }
        segments.extend(current.map(Arc::new));
        let bytes: usize = segments.iter().map(|s| s.bytes).sum();
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.segments.write().extend(segments);
    }

    /// Takes the oldest segment out if the window holds more than `bytes_max` or the segment lies below `below`, and
    /// cuts the versions that only readers below the new floor could want. The caller removes keys whose newest
    /// version is a tombstone of the segment.
    pub(crate) fn evict(&self, bytes_max: usize, below: Revision) -> Option<Arc<Segment>> {
        let segment = {
            let segments = self.segments.read();
            let oldest = segments.front()?;
            if self.bytes() <= bytes_max && oldest.last >= below {
                return None;
            }
            oldest.clone()
        };
        self.floor.store(segment.last.0, Ordering::SeqCst);
        self.segments.write().pop_front();
        self.bytes.fetch_sub(segment.bytes, Ordering::Relaxed);
        for event in &segment.events {
            event.version.cut();
        }
        Some(segment)
    }

    /// Forgets everything; history begins at `floor`.
    pub(crate) fn reset(&self, floor: Revision) {
        self.floor.store(floor.0, Ordering::SeqCst);
        self.segments.write().clear();
        self.bytes.store(0, Ordering::Relaxed);
    }

    /// Matching events from `query.from` on, or `None` when memory does not reach back that far, or lacks the first one's
    /// previous value. `keys` are published, and not before `query.to` was.
    pub(crate) fn read(&self, keys: &KeyTree, query: &WindowQuery<'_>) -> Option<Piece> {
        let piece = match self.collect(keys, query) {
            Some(versions) => pick(keys, versions, query),
            None => self.scan(query),
        };
        // Checked after the scan: what was read under a floor that is still low enough is whole.
        piece.filter(|_| self.floor() < query.from.revision)
    }

    /// The versions of the keys in the ranges, in order; `None` when to look at every event, or at as many as in one step of
    /// a scan, is about as cheap. Whoever comes back after a minute watches a few of the keys that were written meanwhile.
    /// But where a piece is full before they all are in it, each would begin with all that are left.
    fn collect(&self, keys: &KeyTree, query: &WindowQuery<'_>) -> Option<Vec<Arc<Version>>> {
        let mut left = self.events_from(query.from.revision).min(SCAN_EVENTS_MAX) / EVENTS_PER_KEY;
        let live: usize = query.ranges.iter().map(|range| keys.count(range)).sum();
        if live >= left {
            return None;
        }
        let mut versions = Vec::new();
        for node in query.ranges.iter().flat_map(|range| keys.range_after(range, None)) {
            left = left.checked_sub(1)?;
            node.collect(query.from, query.to, &mut left, &mut versions)?;
        }
        versions.sort_unstable_by_key(|version| point(version));
        // Ranges may overlap.
        versions.dedup_by_key(|version| point(version));
        Some(versions)
    }

    /// How many events there are in the segments from `revision` on.
    fn events_from(&self, revision: Revision) -> usize {
        let segments = self.segments.read();
        let at = segments.partition_point(|segment| segment.last < revision);
        segments.range(at..).map(|segment| segment.events.len()).sum()
    }

    fn scan(&self, query: &WindowQuery<'_>) -> Option<Piece> {
        let mut piece = Piece { events: Vec::new(), next: None };
        let (mut bytes, mut scanned) = (0, 0);
        let mut from = query.from;
        while let Some(segment) = self.segment_at(from.revision) {
            let begin = segment.events.partition_point(|e| point(&e.version) < from);
            for event in &segment.events[begin..] {
                let at = point(&event.version);
                if at.revision > query.to {
                    return Some(piece);
                }
                if bytes >= query.bytes_max || scanned >= SCAN_EVENTS_MAX {
                    piece.next = Some(at);
                    return Some(piece);
                }
                scanned += 1;
                let version = &event.version;
                let key = version.event().key();
                if !query.filter.wants(version.event()) || !query.ranges.iter().any(|range| range.contains(key)) {
                    continue;
                }
                let prev = if query.with_prev { version.before() } else { None };
                if prev.as_ref().is_some_and(|prev| !prev.is_whole()) {
                    event.node.ask();
                    return piece.up_to(at, query);
                }
                bytes += event_field_len(version.event(), prev.as_deref());
                piece.events.push(HistoryEvent { event: version.event().clone(), prev });
            }
            from = HistoryPoint { revision: segment.last.next(), sub: 0 };
        }
        Some(piece)
    }

    /// The changes of the number of live keys in `range` within (after, to], summed; `None` when that would look at
    /// more than `events_max` events.
    pub(crate) fn live_change(
        &self,
        range: &KeyRange,
        after: Revision,
        to: Revision,
        events_max: usize,
    ) -> Option<i64> {
        let (mut sum, mut seen) = (0, 0);
        let mut from = after.next();
        while let Some(segment) = self.segment_at(from) {
            seen += segment.events.len();
            if seen > events_max {
                return None;
            }
            let begin = segment.events.partition_point(|e| e.version.revision() < from);
            for event in &segment.events[begin..] {
                if event.version.revision() > to {
                    return Some(sum);
                }
                if event.live_change != 0 && range.contains(event.version.event().key()) {
                    sum += i64::from(event.live_change);
                }
            }
            from = segment.last.next();
        }
        Some(sum)
    }

    /// The segment that holds `revision`, or the first after it.
    fn segment_at(&self, revision: Revision) -> Option<Arc<Segment>> {
        let segments = self.segments.read();
        let at = segments.partition_point(|s| s.last < revision);
        segments.get(at).cloned()
    }
}

/// Of these versions, what is asked for.
fn pick(keys: &KeyTree, versions: Vec<Arc<Version>>, query: &WindowQuery<'_>) -> Option<Piece> {
    let mut piece = Piece { events: Vec::new(), next: None };
    let mut bytes = 0;
    for version in versions.iter().filter(|version| query.filter.wants(version.event())) {
        if bytes >= query.bytes_max {
            piece.next = Some(point(version));
            return Some(piece);
        }
        let prev = if query.with_prev { version.before() } else { None };
        if prev.as_ref().is_some_and(|prev| !prev.is_whole()) {
            if let Some(node) = keys.get(version.event().key()) {
                node.ask();
            }
            return piece.up_to(point(version), query);
        }
        bytes += event_field_len(version.event(), prev.as_deref());
        piece.events.push(HistoryEvent { event: version.event().clone(), prev });
    }
    Some(piece)
}

pub(crate) fn point(version: &Version) -> HistoryPoint {
    let event = version.event();
    HistoryPoint { revision: event.revision(), sub: event.sub() }
}

#[cfg(test)]
mod tests {
    use tailwater_eventlog::{Cursor, Envelope, Event, EventKind, LeaseId};

    use super::*;
    use crate::store::Store;
    use crate::version::UnreadValues;

    /// A store and a window after so many revisions of a busy range of so many keys and, seldom, of rare keys that come and go.
    fn written(revisions: i64, busy: i64, window_bytes: usize) -> (Store, Window) {
        let (mut store, window) = (Store::at(Cursor::default(), &[], None, UnreadValues::default()), Window::default());
        for number in 2..revisions {
            let revision = Revision(number);
            let key = |name: &str, count: i64| format!("{name}/{:03}", number * 7 % count);
            let put = |key: &str, sub| {
                let create_revision = match store.publish().keys.get(key.as_bytes()) {
                    Some(node) if node.newest().kind() == EventKind::Put => node.newest().envelope().create_revision,
                    _ => revision,
                };
                let envelope = Envelope {
                    kind: EventKind::Put,
                    revision,
                    sub,
                    create_revision,
                    version: 1,
                    lease: LeaseId(0),
                    prev: None,
                };
                Arc::new(Event::put(envelope, key.as_bytes(), b"value"))
            };
            let mut events = vec![put(&key("busy", busy), 0)];
            if number % 40 == 0 {
                events.push(put(&key("rare", 5), 1));
            } else if number % 40 == 20 {
                events.push(Arc::new(Event::delete(revision, 1, key("rare", 5).as_bytes(), None)));
            }
            let events = events.into_iter().map(|event| store.apply(event)).collect();
            window.append(events, 4000);
            store.evict(&window, window_bytes);
        }
        (store, window)
    }

    #[test]
    fn few_keys_are_found_without_a_scan_as_a_scan_finds_them() {
        let (store, window) = written(6000, 150, 800_000);
        let keys = store.publish().keys;
        assert!(window.floor() > Revision(100), "some was evicted");
        let few = [KeyRange::Span("rare/001".into(), "rare/004".into()), KeyRange::Key("rare/002".into())];
        let begin = window.floor().next().0;
        for (from, sub) in [(begin, 0), (begin + 33, 1), (5000, 0), (5960, 0)] {
            for filter in [WatchFilter::default(), WatchFilter { no_put: true, no_delete: false }] {
                for with_prev in [false, true] {
                    let query = |ranges, from, bytes_max| WindowQuery {
                        ranges,
                        filter,
                        from,
                        to: Revision(5990),
                        with_prev,
                        bytes_max,
                    };
                    let from = HistoryPoint { revision: Revision(from), sub };
                    let whole = query(&few, from, usize::MAX);
                    if from.revision.0 < 5000 {
                        assert!(window.collect(&keys, &whole).is_some(), "few of many are looked up");
                    }
                    let (mut expected, mut next) = (Vec::new(), Some(from));
                    while let Some(from) = next {
                        let piece = window.scan(&query(&few, from, usize::MAX)).expect("all is in memory");
                        expected.extend(piece.events);
                        next = piece.next;
                    }
                    let (mut found, mut next) = (Vec::new(), Some(from));
                    while let Some(from) = next {
                        let piece = window.read(&keys, &query(&few, from, 100)).expect("memory reaches back");
                        found.extend(piece.events);
                        next = piece.next;
                    }
                    assert_eq!(found, expected, "from {from:?} {filter:?} {with_prev}");
                }
            }
        }
        let busy = [KeyRange::Span("busy/".into(), "z".into())];
        let from = HistoryPoint { revision: Revision(5000), sub: 0 };
        let all = WindowQuery {
            ranges: &busy,
            filter: WatchFilter::default(),
            from,
            to: Revision(5990),
            with_prev: false,
            bytes_max: 1,
        };
        assert!(window.collect(&keys, &all).is_none(), "many are scanned for");
    }

    #[test]
    fn more_versions_than_a_step_looks_at_are_scanned_for() {
        let (store, window) = written(10_000, 8, usize::MAX);
        let keys = store.publish().keys;
        let ranges = [KeyRange::Key("busy/000".into())];
        let query = |from| WindowQuery {
            ranges: &ranges,
            filter: WatchFilter::default(),
            from,
            to: Revision(9999),
            with_prev: false,
            bytes_max: 1000,
        };
        let (mut found, mut next) = (0, Some(HistoryPoint { revision: Revision(2), sub: 0 }));
        while let Some(from) = next {
            // Else each piece would cost as much as all that are left.
            let few = window.collect(&keys, &query(from)).is_some();
            assert!(few || from.revision.0 < 5000, "625 of 5000 are few: {from:?}");
            assert!(!few || from.revision.0 > 1800, "1025 are not, of however many: {from:?}");
            let piece = window.read(&keys, &query(from)).expect("all is in memory");
            (found, next) = (found + piece.events.len(), piece.next);
        }
        assert_eq!(found, 1249);
    }
}
