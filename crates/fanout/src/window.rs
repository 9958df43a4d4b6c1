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
use crate::version::{KeyNode, Version};

/// What a key's version, window entry and tree node cost beside the event's own bytes, roughly.
const ENTRY_BYTES: usize = 192;
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

    /// Matching events from `query.from` on, or `None` when memory does not reach back that far.
    pub(crate) fn read(&self, query: &WindowQuery<'_>) -> Option<Piece> {
        let piece = self.scan(query);
        // Checked after the scan: what was read under a floor that is still low enough is whole.
        (self.floor() < query.from.revision).then_some(piece)
    }

    fn scan(&self, query: &WindowQuery<'_>) -> Piece {
        let mut piece = Piece { events: Vec::new(), next: None };
        let (mut bytes, mut scanned) = (0, 0);
        let mut from = query.from;
        while let Some(segment) = self.segment_at(from.revision) {
            let begin = segment.events.partition_point(|e| point(&e.version) < from);
            for event in &segment.events[begin..] {
                let at = point(&event.version);
                if at.revision > query.to {
                    return piece;
                }
                if bytes >= query.bytes_max || scanned >= SCAN_EVENTS_MAX {
                    piece.next = Some(at);
                    return piece;
                }
                scanned += 1;
                let version = &event.version;
                let key = version.event().key();
                if !query.filter.wants(version.event()) || !query.ranges.iter().any(|range| range.contains(key)) {
                    continue;
                }
                let prev = if query.with_prev { version.before() } else { None };
                bytes += event_field_len(version.event(), prev.as_deref());
                piece.events.push(HistoryEvent { event: version.event().clone(), prev });
            }
            from = HistoryPoint { revision: segment.last.next(), sub: 0 };
        }
        piece
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

fn point(version: &Version) -> HistoryPoint {
    let envelope = version.event().envelope();
    HistoryPoint { revision: envelope.revision, sub: envelope.sub }
}
