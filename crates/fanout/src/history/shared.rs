//! One read of the source for all who want the same history at about the same place.
//!
//! After a fanout has died its watchers resume on another, thousands at nearly the same revision of the same range. The
//! first to read gets a large piece, which is kept for a while; whoever stands within it takes a slice. Reads that go
//! nowhere near each other cost one read of the source each, one at a time for equal ranges.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use tailwater_eventlog::{History, HistoryChunk, HistoryError, HistoryEvent, HistoryPoint, KeyRange, Revision, Source};

/// Bytes of events in one read of the source.
const READ_BYTES: usize = 1 << 20;
/// Pieces kept at most, however small.
const PIECES_MAX: usize = 64;
/// What an event costs beside its bytes, roughly.
const EVENT_OVERHEAD_BYTES: usize = 192;

/// What reads must have in common to be shared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ReadKey {
    pub(crate) ranges: Vec<KeyRange>,
    pub(crate) with_prev: bool,
    /// See [`super::HistoryRequest`]. Reads of both kinds don't wait for each other: others are made by threads that
    /// seldom get a turn.
    pub(crate) is_recent: bool,
}

/// A piece of history that somebody wants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadSpan {
    pub(crate) from: HistoryPoint,
    /// Inclusive; the source has reached it.
    pub(crate) to: Revision,
    pub(crate) bytes_max: usize,
}

/// What was read: all events of the key in `from..end`.
struct Kept {
    key: Arc<ReadKey>,
    from: HistoryPoint,
    end: HistoryPoint,
    events: Vec<HistoryEvent>,
    /// As the source said after the read.
    compacted: Revision,
    bytes: usize,
}

impl Kept {
    fn slice(&self, span: ReadSpan, compacted: Revision) -> HistoryChunk {
        let mut chunk = HistoryChunk { events: Vec::new(), next: None, compacted: self.compacted.max(compacted) };
        let begin = self.events.partition_point(|found| point(found) < span.from);
        let mut bytes = 0;
        for found in &self.events[begin..] {
            let at = point(found);
            if at.revision > span.to {
                return chunk;
            }
            if bytes >= span.bytes_max && !chunk.events.is_empty() {
                chunk.next = Some(at);
                return chunk;
            }
            bytes += bytes_of(found);
            chunk.events.push(found.clone());
        }
        chunk.next = (self.end.revision <= span.to).then_some(self.end);
        chunk
    }
}

fn point(found: &HistoryEvent) -> HistoryPoint {
    HistoryPoint { revision: found.event.revision(), sub: found.event.sub() }
}

fn bytes_of(found: &HistoryEvent) -> usize {
    found.event.bytes().len() + found.prev.as_ref().map_or(0, |prev| prev.bytes().len())
}

#[derive(Default)]
struct State {
    /// Keys of which a read is under way.
    under_way: BTreeSet<Arc<ReadKey>>,
    /// The oldest first.
    kept: VecDeque<Arc<Kept>>,
    bytes: usize,
    /// Pieces were taken or added since the last [`SharedReads::forget_idle`].
    used: bool,
}

impl State {
    fn find(&self, key: &ReadKey, from: HistoryPoint) -> Option<Arc<Kept>> {
        // The newest reach furthest.
        let found = self.kept.iter().rev().find(|kept| kept.from <= from && from < kept.end && *kept.key == *key);
        found.cloned()
    }

    fn keep(&mut self, kept: Arc<Kept>, bytes_max: usize) {
        self.bytes += kept.bytes;
        self.kept.push_back(kept);
        while self.bytes > bytes_max || self.kept.len() > PIECES_MAX {
            let Some(oldest) = self.kept.pop_front() else { break };
            self.bytes -= oldest.bytes;
        }
    }
}

/// The reads of the source; any thread that may block.
pub(crate) struct SharedReads {
    state: Mutex<State>,
    ended: Condvar,
    bytes_max: usize,
}

/// A read that is under way, whatever becomes of it.
struct UnderWay<'a>(&'a SharedReads, Arc<ReadKey>);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.state.lock().under_way.remove(&self.1);
        self.0.ended.notify_all();
    }
}

impl SharedReads {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { state: Mutex::default(), ended: Condvar::new(), bytes_max }
    }

    /// What is kept, if `span` begins within it. `compacted`: as this fanout knows.
    pub(crate) fn kept(
        &self,
        key: &ReadKey,
        span: ReadSpan,
        compacted: Revision,
    ) -> Option<Result<HistoryChunk, HistoryError>> {
        if span.from.revision < compacted {
            return Some(Err(HistoryError::Compacted(compacted)));
        }
        let mut state = self.state.lock();
        let kept = state.find(key, span.from)?;
        state.used = true;
        drop(state);
        Some(Ok(kept.slice(span, compacted)))
    }

    /// Reads what is not kept; waits while the same is being read by another.
    pub(crate) fn read(
        &self,
        source: &dyn Source,
        key: &Arc<ReadKey>,
        span: ReadSpan,
        compacted: impl Fn() -> Revision,
    ) -> Result<HistoryChunk, HistoryError> {
        let under_way = loop {
            if let Some(answer) = self.kept(key, span, compacted()) {
                return answer;
            }
            let mut state = self.state.lock();
            if state.under_way.insert(key.clone()) {
                break UnderWay(self, key.clone());
            }
            self.ended.wait(&mut state);
        };
        let ReadSpan { from, to, bytes_max } = span;
        let chunk = History::read(source, &key.ranges, from, to, key.with_prev, bytes_max.max(READ_BYTES))?;
        let end = chunk.next.unwrap_or(HistoryPoint { revision: to.next(), sub: 0 });
        let bytes = chunk.events.iter().map(|found| bytes_of(found) + EVENT_OVERHEAD_BYTES).sum();
        let kept = Kept { key: key.clone(), from, end, events: chunk.events, compacted: chunk.compacted, bytes };
        let kept = Arc::new(kept);
        {
            let mut state = self.state.lock();
            state.used = true;
            state.keep(kept.clone(), self.bytes_max);
        }
        drop(under_way);
        Ok(kept.slice(span, compacted()))
    }

    /// Called now and then while nobody reads: frees what nobody has used since the last call.
    pub(crate) fn forget_idle(&self) {
        let mut state = self.state.lock();
        if !std::mem::take(&mut state.used) {
            state.kept.clear();
            state.bytes = 0;
        }
    }

    /// History of before does not count any more.
    pub(crate) fn forget(&self) {
        let mut state = self.state.lock();
        state.kept.clear();
        state.bytes = 0;
    }
}

#[cfg(test)]
mod tests;
