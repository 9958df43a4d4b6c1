//! The tail: frames in position order, the newest of them in memory.

use std::sync::Arc;
use std::time::Duration;

use crate::{Cursor, Event, Fact, Position, Revision};

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

/// Bounds of the hot end.
#[derive(Clone, Copy, Debug)]
pub struct TailConfig {
    /// Bytes of events kept in memory for readers that are close behind.
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
    /// The tail has ended: the process stops.
    #[error("tail closed")]
    Closed,
}

/// The in-memory hot end of the log; clones share it. The apply thread publishes; readers pull by cursor and cost the
/// publisher nothing but the wake-up.
#[derive(Clone)]
pub struct Tail {}

impl Tail {
    /// An empty tail at `start`.
    #[must_use]
    pub fn new(_config: TailConfig, _start: Cursor, _facts: Vec<Fact>) -> Self {
        todo!()
    }

    /// Appends frames and wakes readers. Positions must grow and revisions must not go back.
    pub fn publish(&self, _frames: Vec<Arc<Frame>>) {
        todo!()
    }

    /// The newest cursor.
    #[must_use]
    pub fn end(&self) -> Cursor {
        todo!()
    }

    /// The newest cursor, and the newest fact of each kind that was published up to it.
    #[must_use]
    pub fn snapshot(&self) -> (Cursor, Vec<Fact>) {
        todo!()
    }

    /// Frames after `cursor`, about `bytes_max` bytes of them, at least one if there is any.
    ///
    /// # Errors
    /// See [`TailError`].
    pub fn read(&self, _cursor: Cursor, _bytes_max: usize) -> Result<Vec<Arc<Frame>>, TailError> {
        todo!()
    }

    /// As [`Tail::read`], but blocks up to `timeout` for the first frame; an empty answer means that none came.
    ///
    /// # Errors
    /// See [`TailError`].
    pub fn wait(&self, _cursor: Cursor, _bytes_max: usize, _timeout: Duration) -> Result<Vec<Arc<Frame>>, TailError> {
        todo!()
    }

    /// Ends it: readers get [`TailError::Closed`] once they have read everything.
    pub fn close(&self) {
        todo!()
    }
}
