//! A fanout as the source of others: a relay.
//!
//! Its readers get the state from what is published, frames from a ring of those that the fanout itself received, and
//! history from its window; what lies behind is read through from its own source. Nobody waits for a reader: it clones
//! references, and the ring goes on without it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tailwater_eventlog::{
    Cursor, Event, EventKind, Fact, Frame, History, HistoryChunk, HistoryError, HistoryPoint, KeyRange, LiveChunk,
    Position, Revision, Source, SourceError, StateChunk, StateQuery, Tail, TailError,
};

use crate::WatchFilter;
use crate::core::Core;
use crate::history::shared::{ReadKey, ReadSpan};
use crate::range::{count_rest, nodes};
use crate::registry::prev_is_visible;
use crate::store::Published;
use crate::window::WindowQuery;

/// Keys looked at in one step of a transfer, live or not.
const KEYS_MAX: usize = 8192;
/// A reader that can't be given anything now is asked to come again after this.
const PAUSE: Duration = Duration::from_millis(20);

/// The fanout's memory as one reader sees it.
pub(crate) struct RelaySource {
    core: Arc<Core>,
    /// Number of the newest notice given out.
    noticed: AtomicU64,
    /// The history that a transfer began in.
    history: AtomicU64,
    /// The newest revision of any key that was looked at for a transfer: versions are in memory before they are published.
    seen: AtomicI64,
}

impl RelaySource {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core, noticed: AtomicU64::new(0), history: AtomicU64::new(0), seen: AtomicI64::new(0) }
    }

    /// The ring, while what is published counts.
    fn ring(&self) -> Option<Arc<Tail>> {
        self.core.is_serving().then(|| self.core.ring.load_full()).flatten()
    }

    fn snapshot(&self, ring: &Tail) -> (Cursor, Vec<Fact>) {
        let (end, facts, noticed) = ring.snapshot_noticing();
        self.noticed.store(noticed, Ordering::Relaxed);
        (end, facts)
    }

    /// For a reader behind the ring: the records after `cursor`, whole, as one frame. As of a log, a frame that does not
    /// reach the end of the ring keeps the cursor's position; the last one carries the end's, and all facts.
    fn follow_history(&self, ring: &Tail, cursor: Cursor, bytes_max: usize) -> Result<Vec<Arc<Frame>>, TailError> {
        let (end, facts) = self.snapshot(ring);
        if cursor.revision > end.revision {
            // It came from a source that is ahead.
            return Ok(Vec::new());
        }
        let mut events: Vec<Arc<Event>> = Vec::new();
        let mut next = HistoryPoint { revision: cursor.revision.next(), sub: 0 };
        let mut bytes = 0;
        while next.revision <= end.revision {
            let chunk = self.read_all(next, end.revision, bytes_max).map_err(|error| match error {
                HistoryError::Compacted(_) => TailError::Behind(cursor),
                error => TailError::Storage(error.to_string()),
            })?;
            bytes += chunk.events.iter().map(|found| found.event.bytes().len()).sum::<usize>();
            events.extend(chunk.events.into_iter().map(|found| found.event));
            let Some(after) = chunk.next else { break };
            next = after;
            let is_whole = events.last().is_none_or(|last| last.revision() < next.revision);
            if is_whole && bytes >= bytes_max {
                let revision = Revision(next.revision.0 - 1);
                return Ok(vec![Arc::new(Frame { position: cursor.position, revision, events, ..Frame::default() })]);
            }
        }
        let revision = end.revision;
        // A reader may come from a source that knows of a later position: then it has these facts, or newer ones.
        let (position, facts) = match end.position < cursor.position {
            true => (cursor.position, Vec::new()),
            false => (end.position, facts),
        };
        Ok(vec![Arc::new(Frame { position, revision, events, facts, ..Frame::default() })])
    }

    /// Whether this fanout can read up to `to` in these ranges; its compacted revision.
    fn check_read(&self, ranges: &[KeyRange], to: Revision) -> Result<Revision, HistoryError> {
        let unavailable = |reason: &str| Err(HistoryError::Unavailable(reason.to_owned()));
        if !self.core.is_serving() {
            return unavailable("the relay has no state yet");
        }
        if !self.core.scope.covers_all(ranges) {
            return unavailable("the relay does not hold the range");
        }
        let published = self.core.published.load();
        if to > published.revision() {
            return unavailable("the relay has not reached the end of what is asked");
        }
        Ok(published.snapshot.compacted)
    }

    /// Rows of a transfer whose values are not in memory.
    fn transfer_of_source(
        &self,
        range: &KeyRange,
        resume_after: Option<&Bytes>,
        bytes_max: usize,
    ) -> Result<LiveChunk, SourceError> {
        let mut chunk = self.core.source.transfer(range, resume_after, bytes_max)?;
        chunk.events.retain(|event| self.core.scope.contains(event.key()));
        // The source may be ahead of what is published here.
        self.seen.fetch_max(self.core.source.transfer_end().0, Ordering::Relaxed);
        Ok(chunk)
    }

    /// History of everything that this fanout holds.
    fn read_all(&self, from: HistoryPoint, to: Revision, bytes_max: usize) -> Result<HistoryChunk, HistoryError> {
        self.read_history(self.core.scope.spans(), from, to, false, bytes_max)
    }

    /// From the window, else read through.
    fn read_history(
        &self,
        ranges: &[KeyRange],
        from: HistoryPoint,
        to: Revision,
        with_prev: bool,
        bytes_max: usize,
    ) -> Result<HistoryChunk, HistoryError> {
        let core = &*self.core;
        let compacted = || core.published.load().snapshot.compacted;
        let filter = WatchFilter::default();
        let query = WindowQuery { ranges, filter, from, to, with_prev, bytes_max };
        let Some(piece) = core.window.read(&core.published.load().keys, &query) else {
            let key = Arc::new(ReadKey { ranges: ranges.to_vec(), with_prev, is_recent: false });
            return core.reads.read(&*core.source, &key, ReadSpan { from, to, bytes_max }, compacted);
        };
        let compacted = compacted();
        if from.revision < compacted {
            return Err(HistoryError::Compacted(compacted));
        }
        let mut events = piece.events;
        for found in &mut events {
            if !prev_is_visible(&found.event, compacted) {
                found.prev = None;
            }
        }
        Ok(HistoryChunk { events, next: piece.next, compacted })
    }
}

impl History for RelaySource {
    fn read(
        &self,
        ranges: &[KeyRange],
        from: HistoryPoint,
        to: Revision,
        with_prev: bool,
        bytes_max: usize,
    ) -> Result<HistoryChunk, HistoryError> {
        let compacted = self.check_read(ranges, to)?;
        if from.revision < compacted {
            return Err(HistoryError::Compacted(compacted));
        }
        let ranges = if ranges.is_empty() { self.core.scope.spans() } else { ranges };
        self.read_history(ranges, from, to, with_prev, bytes_max)
    }

    fn state_at(&self, query: &StateQuery) -> Result<StateChunk, HistoryError> {
        let compacted = self.check_read(std::slice::from_ref(&query.range), query.at)?;
        let published = self.core.published.load_full();
        if query.at < compacted {
            return Err(HistoryError::Compacted(compacted));
        }
        if self.core.window.floor() <= query.at {
            let chunk = walk_state(&self.core, &published, query);
            // Checked after the walk: what was read under a floor that is still low enough is true.
            if self.core.window.floor() <= query.at && chunk.events.iter().all(|event| event.is_whole()) {
                return Ok(chunk);
            }
        }
        let chunk = self.core.source.state_at(query)?;
        let compacted = self.core.published.load().snapshot.compacted;
        if query.at < compacted { Err(HistoryError::Compacted(compacted)) } else { Ok(chunk) }
    }
}

/// What was live, where memory reaches back to the revision.
fn walk_state(core: &Core, published: &Published, query: &StateQuery) -> StateChunk {
    let after = query.after.as_ref().map(Bytes::as_ref);
    let nodes = nodes(published, &query.range, after, query.at);
    let mut live = nodes.filter_map(|node| node.live_at(query.at)).peekable();
    let (mut chunk, mut bytes) = (StateChunk::default(), 0);
    while chunk.events.len() < query.keys_max && bytes < query.bytes_max {
        let Some(event) = live.next() else { break };
        bytes += event.bytes().len();
        chunk.events.push(event);
    }
    if live.peek().is_some() {
        let last = chunk.events.last().map(|event| Bytes::copy_from_slice(event.key()));
        chunk.resume_after = last.or_else(|| query.after.clone());
        if query.count {
            let counted = count_rest(core, published, &query.range, chunk.resume_after.as_ref(), query.at);
            chunk.rest = counted.unwrap_or_else(|| live.count());
        }
    }
    chunk
}

impl Source for RelaySource {
    fn ranges(&self) -> &[KeyRange] {
        self.core.scope.ranges()
    }

    /// Of the ring: what is published is never behind it.
    fn transfer_begin(&self) -> Result<(Cursor, Vec<Fact>), SourceError> {
        let ring = self.ring().ok_or_else(|| SourceError::Unavailable("the relay has no state yet".into()))?;
        let (end, facts) = self.snapshot(&ring);
        self.history.store(end.history.0, Ordering::Relaxed);
        Ok((end, facts))
    }

    fn transfer_end(&self) -> Revision {
        let published = self.core.published.load().revision();
        published.max(Revision(self.seen.load(Ordering::Relaxed)))
    }

    /// Takes of each key the newest version, published or not: its reader waits until its tail has passed the newest
    /// that was seen, tombstones included, so nothing depends on how far the window reaches back.
    fn transfer(
        &self,
        range: &KeyRange,
        resume_after: Option<&Bytes>,
        bytes_max: usize,
    ) -> Result<LiveChunk, SourceError> {
        if !self.core.is_serving() {
            return Err(SourceError::Unavailable("the relay has no state yet".into()));
        }
        let published = self.core.published.load_full();
        let history = published.snapshot.cursor.history.0;
        if self.history.load(Ordering::Relaxed) != history {
            return Err(SourceError::Restart("the relay has another history".into()));
        }
        let (mut chunk, mut bytes, mut seen) = (LiveChunk::default(), 0, self.seen.load(Ordering::Relaxed));
        let scope = &self.core.scope;
        for (looked, node) in published.keys.range_after(range, resume_after.map(Bytes::as_ref)).enumerate() {
            let event = node.newest();
            seen = seen.max(event.revision().0);
            if !event.is_whole() {
                if chunk.events.is_empty() {
                    self.seen.fetch_max(seen, Ordering::Relaxed);
                    return self.transfer_of_source(range, resume_after, bytes_max);
                }
                chunk.resume_after = chunk.events.last().map(|last| Bytes::copy_from_slice(last.key()));
                break;
            }
            if event.kind() == EventKind::Put && scope.contains(event.key()) {
                bytes += event.bytes().len();
                chunk.events.push(event.clone());
            }
            if bytes >= bytes_max || looked + 1 >= KEYS_MAX {
                chunk.resume_after = Some(Bytes::copy_from_slice(event.key()));
                break;
            }
        }
        self.seen.fetch_max(seen, Ordering::Relaxed);
        Ok(chunk)
    }

    fn follow(&self, cursor: Cursor, bytes_max: usize, timeout: Duration) -> Result<Vec<Arc<Frame>>, TailError> {
        let wait = || {
            std::thread::sleep(timeout.min(PAUSE));
            Ok(Vec::new())
        };
        if self.core.is_stopped() {
            return Err(TailError::Closed);
        }
        let Some(ring) = self.ring() else { return wait() };
        match ring.wait_noticing(cursor, self.noticed.load(Ordering::Relaxed), bytes_max, timeout) {
            Ok((frames, noticed)) => {
                self.noticed.store(noticed, Ordering::Relaxed);
                Ok(frames)
            }
            Err(TailError::Behind(cursor)) => match self.follow_history(&ring, cursor, bytes_max) {
                Ok(frames) if frames.is_empty() => wait(),
                // The source of what memory lacks may be back soon; what matters is that nothing is left out.
                Err(TailError::Storage(reason)) => {
                    tracing::debug!(reason, "history for a reader of the tail can't be read now");
                    wait()
                }
                answer => answer,
            },
            // Another history has begun; the next call says so.
            Err(TailError::Closed) if !self.core.is_stopped() => wait(),
            Err(error) => Err(error),
        }
    }

    fn is_awaited(&self, position: Position) {
        self.core.awaited.fetch_max(position.0, Ordering::Relaxed);
    }
}
