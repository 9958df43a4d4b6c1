//! The tail: frames in position order, the newest of them in memory.
//!
//! A *notice* is a frame that only holds facts and stands at the position of the frame before it: it tells what this
//! source learned without a raft entry, as that its leader is gone. Notices are numbered, because a cursor can't tell
//! one from the frame it follows; a later notice at the same position takes the earlier one in.
//!
//! A relay's tail passes on what the relay received, also frames that a source read from its log: those keep the position
//! of the reader's cursor and move its revision only. So a place in a tail is a position *and* a revision.
//!
//! Invariants: `begin <= place of the oldest frame kept`; places of the frames kept grow, notices aside, of which there is
//! at most one at a place; a reader whose cursor is at or above `begin` misses nothing by reading from here.

use std::cmp::Ordering;
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
#[derive(Clone, Debug, Default)]
pub struct Frame {
    /// The applied position that is reached with this frame.
    pub position: Position,
    /// The revision that is reached with this frame.
    pub revision: Revision,
    /// Events in (revision, sub) order, whole records.
    pub events: Vec<Arc<Event>>,
    /// Facts, in order, that hold from this position on.
    pub facts: Vec<Fact>,
    /// When the source applied it, by its own wall clock, in milliseconds since 1970; 0: not known. A hint to measure
    /// delays by, never to decide by.
    pub applied_at_ms: u64,
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

struct Slot {
    frame: Arc<Frame>,
    bytes: usize,
    /// Number of a notice; 0 for any other frame.
    notice: u64,
}

/// How far a reader is.
type Place = (Position, Revision);

struct Hot {
    /// Oldest first.
    frames: VecDeque<Slot>,
    /// Number of the newest notice.
    notices: u64,
    bytes: usize,
    /// The place before the oldest frame kept: a reader there or above continues from memory.
    begin: Place,
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
        let hot = Hot {
            frames: VecDeque::new(),
            notices: 0,
            bytes: 0,
            begin: place(start),
            end: start,
            facts: latest,
            closed: false,
        };
        Self { shared: Arc::new(Shared { config, hot: Mutex::new(hot), grown: Condvar::new() }) }
    }

    /// Appends frames and wakes readers once. Positions must grow, except that of a frame that holds nothing but facts:
    /// it may stand at the newest position, and then reaches readers that follow with [`Tail::wait_noticing`]. Revisions
    /// must not go back. Does nothing after [`Tail::close`].
    ///
    /// # Panics
    /// When a position does not grow or a revision goes back: a reader would miss what the frame holds.
    pub fn publish(&self, frames: Vec<Arc<Frame>>) {
        self.append(frames, false);
    }

    /// As [`Tail::publish`], of frames that another source gave: one that it read from its log may stand at the newest
    /// position with a newer revision.
    ///
    /// # Panics
    /// When a position or a revision goes back.
    pub fn pass_on(&self, frames: Vec<Arc<Frame>>) {
        self.append(frames, true);
    }

    fn append(&self, frames: Vec<Arc<Frame>>, is_passed_on: bool) {
        if frames.is_empty() {
            return;
        }
        let sized: Vec<_> = frames.into_iter().map(|frame| (frame.memory_bytes(), frame)).collect();
        let mut hot = self.shared.hot.lock();
        if hot.closed {
            return;
        }
        for (bytes, frame) in sized {
            hot.append(frame, bytes, is_passed_on);
        }
        let dropped = hot.trim(self.shared.config.hot_bytes_max);
        if !is_passed_on {
            metrics::gauge!(crate::metrics::TAIL_HOT_BYTES).set(crate::metrics::gauge(hot.bytes as u64));
        }
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

    /// As [`Tail::snapshot`], with the number of the newest notice, to go on with in [`Tail::wait_noticing`].
    #[must_use]
    pub fn snapshot_noticing(&self) -> (Cursor, Vec<Fact>, u64) {
        let hot = self.shared.hot.lock();
        (hot.end, hot.facts.to_vec(), hot.notices)
    }

    /// Frames after `cursor`, about `bytes_max` bytes of them, at least one if there is any. A cursor ahead of this
    /// tail (its reader came from a faster source) gets nothing until the tail has passed it.
    ///
    /// # Errors
    /// See [`TailError`].
    pub fn read(&self, cursor: Cursor, bytes_max: usize) -> Result<Vec<Arc<Frame>>, TailError> {
        self.shared.hot.lock().read(cursor, u64::MAX, bytes_max).map(|(frames, _)| frames)
    }

    /// As [`Tail::read`], but blocks up to `timeout` for the first frame; an empty answer means that none came.
    ///
    /// # Errors
    /// See [`TailError`].
    pub fn wait(&self, cursor: Cursor, bytes_max: usize, timeout: Duration) -> Result<Vec<Arc<Frame>>, TailError> {
        self.wait_for(cursor, u64::MAX, bytes_max, timeout).map(|(frames, _)| frames)
    }

    /// As [`Tail::wait`], and also gives out a notice at the cursor's own position that is newer than number `noticed`.
    /// Returns the number to go on with; a reader begins with 0.
    ///
    /// # Errors
    /// See [`TailError`].
    pub fn wait_noticing(
        &self,
        cursor: Cursor,
        noticed: u64,
        bytes_max: usize,
        timeout: Duration,
    ) -> Result<(Vec<Arc<Frame>>, u64), TailError> {
        self.wait_for(cursor, noticed, bytes_max, timeout)
    }

    fn wait_for(
        &self,
        cursor: Cursor,
        noticed: u64,
        bytes_max: usize,
        timeout: Duration,
    ) -> Result<(Vec<Arc<Frame>>, u64), TailError> {
        let mut hot: MutexGuard<'_, Hot> = self.shared.hot.lock();
        // Whether it timed out does not matter: the read below answers with what is there.
        let _ = self.shared.grown.wait_while_for(
            &mut hot,
            |hot| hot.end.history == cursor.history && !hot.is_ahead_of(cursor, noticed) && !hot.closed,
            timeout,
        );
        hot.read(cursor, noticed, bytes_max)
    }

    /// Goes on at `start`, after this member has taken over a later state: nothing is known of what lies between. A
    /// reader that is not there yet gets [`TailError::Behind`]. Does nothing after [`Tail::close`].
    ///
    /// # Panics
    /// When `start` lies behind the end.
    pub fn restart(&self, start: Cursor, facts: &[Fact]) {
        let mut hot = self.shared.hot.lock();
        if hot.closed {
            return;
        }
        assert!(
            start.position >= hot.end.position && start.revision >= hot.end.revision,
            "a tail never goes back: {start:?} after {:?}",
            hot.end
        );
        let dropped = std::mem::take(&mut hot.frames);
        hot.bytes = 0;
        hot.begin = place(start);
        hot.end = start;
        hot.facts = LatestFacts::default();
        hot.facts.apply(facts);
        drop(hot);
        self.shared.grown.notify_all();
        drop(dropped);
    }

    /// Ends it: readers get [`TailError::Closed`] once they have read everything.
    pub fn close(&self) {
        self.shared.hot.lock().closed = true;
        self.shared.grown.notify_all();
    }
}

impl Slot {
    /// Whether a reader there has this frame or what is before it. One that another source read from its log has more
    /// revisions than its position says, so both count.
    fn is_behind(&self, cursor: Cursor, noticed: u64) -> bool {
        let has_facts = match self.frame.position.cmp(&cursor.position) {
            Ordering::Less => true,
            // The frame that a notice follows belongs to the cursor.
            Ordering::Equal => self.notice <= noticed,
            Ordering::Greater => false,
        };
        has_facts && self.frame.revision <= cursor.revision
    }
}

impl Hot {
    /// Whether there is something for a reader there.
    fn is_ahead_of(&self, cursor: Cursor, noticed: u64) -> bool {
        place(self.end) > place(cursor) || self.frames.back().is_some_and(|slot| !slot.is_behind(cursor, noticed))
    }

    fn append(&mut self, mut frame: Arc<Frame>, mut bytes: usize, is_passed_on: bool) {
        let is_notice =
            frame.position == self.end.position && frame.events.is_empty() && frame.revision == self.end.revision;
        let is_of_a_log = is_passed_on && frame.position == self.end.position && frame.revision > self.end.revision;
        assert!(
            is_notice || is_of_a_log || frame.position > self.end.position,
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
        if is_notice {
            self.notices += 1;
            let before = self.frames.pop_back_if(|slot| slot.notice > 0 && slot.frame.position == frame.position);
            if let Some(before) = before {
                self.bytes -= before.bytes;
                let mut latest = LatestFacts::default();
                latest.apply(&before.frame.facts);
                latest.apply(&frame.facts);
                frame = Arc::new(Frame { facts: latest.to_vec(), ..Frame::clone(&frame) });
                bytes = frame.memory_bytes();
            }
        }
        self.bytes += bytes;
        self.frames.push_back(Slot { frame, bytes, notice: if is_notice { self.notices } else { 0 } });
    }

    /// Takes out the oldest frames until the rest fits; the newest stays.
    fn trim(&mut self, bytes_max: usize) -> Vec<Arc<Frame>> {
        let mut dropped = Vec::new();
        while self.bytes > bytes_max && self.frames.len() > 1 {
            let slot = self.frames.pop_front().expect("there are at least two");
            self.bytes -= slot.bytes;
            self.begin = (slot.frame.position, slot.frame.revision);
            dropped.push(slot.frame);
        }
        dropped
    }

    /// Frames for a reader there, and the number of the newest notice that it has with them.
    fn read(&self, cursor: Cursor, noticed: u64, bytes_max: usize) -> Result<(Vec<Arc<Frame>>, u64), TailError> {
        if cursor.history != self.end.history {
            return Err(TailError::OtherHistory);
        }
        if cursor.position < self.begin.0 || cursor.revision < self.begin.1 {
            return Err(TailError::Behind(cursor));
        }
        let first = self.frames.partition_point(|slot| slot.is_behind(cursor, noticed));
        let mut answer = Vec::new();
        let mut total = 0;
        let mut reached = noticed;
        for slot in self.frames.range(first..) {
            total += slot.bytes;
            if !answer.is_empty() && total > bytes_max {
                break;
            }
            answer.push(behind(&slot.frame, cursor));
            reached = reached.max(slot.notice);
        }
        if answer.is_empty() && self.closed { Err(TailError::Closed) } else { Ok((answer, reached)) }
    }
}

fn place(cursor: Cursor) -> Place {
    (cursor.position, cursor.revision)
}

/// The frame without what a reader has that is there: one that read a part of a log has more revisions than its position
/// says, and a frame that was read from a log has, too, and no facts but at the end.
fn behind(frame: &Arc<Frame>, cursor: Cursor) -> Arc<Frame> {
    let Cursor { revision, position, .. } = cursor;
    let is_new = frame.events.first().is_none_or(|event| event.revision() > revision);
    if frame.position >= position && frame.revision >= revision && is_new {
        return Arc::clone(frame);
    }
    let first = frame.events.partition_point(|event| event.revision() <= revision);
    let facts = if frame.position < position { Vec::new() } else { frame.facts.clone() };
    Arc::new(Frame {
        events: frame.events[first..].to_vec(),
        facts,
        revision: frame.revision.max(revision),
        position: frame.position.max(position),
        ..Frame::clone(frame)
    })
}

#[cfg(test)]
mod tests;
