//! What a fanout follows: state at B, then the tail from B+1, and history behind it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::{
    Cursor, EventLog, Fact, Frame, History, HistoryChunk, HistoryError, HistoryPoint, KeyRange, LiveChunk, Revision,
    StorageError, Tail, TailError,
};

/// A place to bootstrap from and to follow. Calls block; they run on threads of their own.
pub trait Source: History {
    /// B: where a transfer that begins now stands, and the facts at B.
    fn transfer_begin(&self) -> (Cursor, Vec<Fact>);

    /// Live keys after `resume_after`; rows may be newer than B (see [`EventLog::live`]).
    ///
    /// # Errors
    /// The storage failed.
    fn transfer(
        &self,
        range: &KeyRange,
        resume_after: Option<&Bytes>,
        bytes_max: usize,
    ) -> Result<LiveChunk, StorageError>;

    /// Frames after `cursor`, waiting up to `timeout` for the first; from memory, else from the log as long as its
    /// history reaches back. An empty answer means that none came.
    ///
    /// # Errors
    /// [`TailError::Behind`] when the log was compacted past the cursor: transfer again.
    fn follow(&self, cursor: Cursor, bytes_max: usize, timeout: Duration) -> Result<Vec<Arc<Frame>>, TailError>;
}

/// The source inside the process that holds the log.
#[derive(Clone)]
pub struct LocalSource {
    /// Storage.
    pub log: EventLog,
    /// Its hot end.
    pub tail: Tail,
}

impl History for LocalSource {
    fn read(
        &self,
        _ranges: &[KeyRange],
        _from: HistoryPoint,
        _to: Revision,
        _with_prev: bool,
        _bytes_max: usize,
    ) -> Result<HistoryChunk, HistoryError> {
        todo!()
    }
}

impl Source for LocalSource {
    fn transfer_begin(&self) -> (Cursor, Vec<Fact>) {
        todo!()
    }

    fn transfer(
        &self,
        _range: &KeyRange,
        _resume_after: Option<&Bytes>,
        _bytes_max: usize,
    ) -> Result<LiveChunk, StorageError> {
        todo!()
    }

    fn follow(&self, _cursor: Cursor, _bytes_max: usize, _timeout: Duration) -> Result<Vec<Arc<Frame>>, TailError> {
        todo!()
    }
}
