//! The tail: frames in position order, the newest of them in memory.
//!
//! Invariants: `begin <= position of the oldest frame kept`; positions of the frames kept grow; a reader whose cursor
//! is at or above `begin` misses nothing by reading from here.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::fact::LatestFacts;
use crate::{Cursor, Event, Fact, Position, Revision};

/// What a frame and each of its events cost in memory beside the event bytes: the structs, reference counts and
/// allocator overhead, rounded up.
const FRAME_OVERHEAD_BYTES: usize = 128;
const EVENT_OVERHEAD_BYTES: usize = 160;

/// What happened at one position, or at several when they were applied together.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The applied position that is reached with this frame.
    pub position: Position,
    /// The revision that is reached with this frame.
    pub revision: Revision,
    /// Events in (revision, sub) order, whole records.
    pub events: Vec<Arc<Event>>,
    /// Facts, in order, that hold from this position on.
    pub facts: Vec<Fact>,
}

impl Frame {
    /// Bytes of memory that the frame holds, about.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let events: usize = self.events.iter().map(|event| event.bytes().len() + EVENT_OVERHEAD_BYTES).sum();
        let facts: usize = self.facts.iter().map(Fact::memory_bytes).sum();
        FRAME_OVERHEAD_BYTES + events + facts
    }
}

/// Bounds of the hot end.
#[derive(Clone, Copy, Debug)]
pub struct TailConfig {
    /// Bytes of frames kept in memory for readers that are close behind. The newest frame stays, however large.
    pub hot_bytes_max: usize,
}

/// A reader can't continue from memory.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TailError {
    /// The cursor lies before what memory holds: read the log, or transfer state.
    #[error("cursor at revision {} lies before the hot end", .0.revision)]
    Behind(Cursor),
    /// Another history.
    #[error("cursor of another history")]
    OtherHistory,
    /// What memory no longer holds can't be read from storage, for this reason.
    #[error("{0}")]
    Storage(String),
    /// The tail has ended: the process stops.
    #[error("tail closed")]
    Closed,
}

/// The in-memory hot end of the log; clones share it. The apply thread publishes; readers pull by cursor and cost the
/// publisher nothing but the wake-up.
#[derive(Clone)]
pub struct Tail {
    shared: Arc<Shared>,
}

struct Shared {
    config: TailConfig,
    /// Guards the hot end; held to append, or to clone references of at most one answer's frames.
    hot: Mutex<Hot>,
    grown: Condvar,
}

struct Hot {
    /// Frames and their bytes, oldest first.
    frames: VecDeque<(Arc<Frame>, usize)>,
    bytes: usize,
    /// The position before the oldest frame kept: a reader there or above continues from memory.
    begin: Position,
    end: Cursor,
    facts: LatestFacts,
    closed: bool,
}

impl Tail {
    /// An empty tail at `start`.
    #[must_use]
    pub fn new(config: TailConfig, start: Cursor, facts: Vec<Fact>) -> Self {
        let mut latest = LatestFacts::default();
        latest.apply(&facts);
        let hot =
            Hot { frames: VecDeque::new(), bytes: 0, begin: start.position, end: start, facts: latest, closed: false };
        Self { shared: Arc::new(Shared { config, hot: Mutex::new(hot), grown: Condvar::new() }) }
    }

    /// Appends frames and wakes readers once. Positions must grow and revisions must not go back. Does nothing after
    /// [`Tail::close`].
    ///
    /// # Panics
    /// When a position does not grow or a revision goes back: a reader would miss what the frame holds.
    pub fn publish(&self, frames: Vec<Arc<Frame>>) {
        if frames.is_empty() {
            return;
        }
        let sized: Vec<_> = frames.into_iter().map(|frame| (frame.memory_bytes(), frame)).collect();
        let mut hot = self.shared.hot.lock();
        if hot.closed {
            return;
        }
        for (bytes, frame) in sized {
            hot.append(frame, bytes);
        }
        let dropped = hot.trim(self.shared.config.hot_bytes_max);
        metrics::gauge!(crate::metrics::TAIL_HOT_BYTES).set(crate::metrics::gauge(hot.bytes as u64));
        drop(hot);
        self.shared.grown.notify_all();
        // Freed here, so that no reader waits for the lock while millions of events are returned to the allocator.
        drop(dropped);
    }

    /// The newest cursor.
    #[must_use]
    pub fn end(&self) -> Cursor {
        self.shared.hot.lock().end
    }

    /// The newest cursor, and the newest fact of each kind that was published up to it.
    #[must_use]
    pub fn snapshot(&self) -> (Cursor, Vec<Fact>) {
        let hot = self.shared.hot.lock();
        (hot.end, hot.facts.to_vec())
    }

    /// Frames after `cursor`, about `bytes_max` bytes of them, at least one if there is any. A cursor ahead of this
    /// tail (its reader came from a faster source) gets nothing until the tail has passed it.
    ///
    /// # Errors
    /// See [`TailError`].
    pub fn read(&self, cursor: Cursor, bytes_max: usize) -> Result<Vec<Arc<Frame>>, TailError> {
        self.shared.hot.lock().read(cursor, bytes_max)
    }

    /// As [`Tail::read`], but blocks up to `timeout` for the first frame; an empty answer means that none came.
    ///
    /// # Errors
    /// See [`TailError`].
    pub fn wait(&self, cursor: Cursor, bytes_max: usize, timeout: Duration) -> Result<Vec<Arc<Frame>>, TailError> {
        let mut hot: MutexGuard<'_, Hot> = self.shared.hot.lock();
        // Whether it timed out does not matter: the read below answers with what is there.
        let _ = self.shared.grown.wait_while_for(
            &mut hot,
            |hot| hot.end.history == cursor.history && hot.end.position <= cursor.position && !hot.closed,
            timeout,
        );
        hot.read(cursor, bytes_max)
    }

    /// Ends it: readers get [`TailError::Closed`] once they have read everything.
    pub fn close(&self) {
        self.shared.hot.lock().closed = true;
        self.shared.grown.notify_all();
    }
}

impl Hot {
    fn append(&mut self, frame: Arc<Frame>, bytes: usize) {
        assert!(
            frame.position > self.end.position,
            "a frame at position {} follows one at {}",
            frame.position,
            self.end.position
        );
        assert!(
            frame.revision >= self.end.revision,
            "a frame at revision {} follows one at {}",
            frame.revision,
            self.end.revision
        );
        self.end.position = frame.position;
        self.end.revision = frame.revision;
        self.facts.apply(&frame.facts);
        self.bytes += bytes;
        self.frames.push_back((frame, bytes));
    }

    /// Takes out the oldest frames until the rest fits; the newest stays.
    fn trim(&mut self, bytes_max: usize) -> Vec<Arc<Frame>> {
        let mut dropped = Vec::new();
        while self.bytes > bytes_max && self.frames.len() > 1 {
            let (frame, bytes) = self.frames.pop_front().expect("there are at least two");
            self.bytes -= bytes;
            self.begin = frame.position;
            dropped.push(frame);
        }
        dropped
    }

    fn read(&self, cursor: Cursor, bytes_max: usize) -> Result<Vec<Arc<Frame>>, TailError> {
        if cursor.history != self.end.history {
            return Err(TailError::OtherHistory);
        }
        if cursor.position < self.begin {
            return Err(TailError::Behind(cursor));
        }
        let first = self.frames.partition_point(|(frame, _)| frame.position <= cursor.position);
        let mut answer = Vec::new();
        let mut total = 0;
        for (frame, bytes) in self.frames.range(first..) {
            total += bytes;
            if !answer.is_empty() && total > bytes_max {
                break;
            }
            answer.push(Arc::clone(frame));
        }
        if answer.is_empty() && self.closed { Err(TailError::Closed) } else { Ok(answer) }
    }
}

#[cfg(test)]
mod tests;
