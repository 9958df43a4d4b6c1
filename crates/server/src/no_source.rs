//! What a member serves as its tail before it knows a history: nothing yet.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tailwater_eventlog::{
    Cursor, Fact, Frame, History, HistoryChunk, HistoryError, HistoryPoint, KeyRange, LiveChunk, Revision, Source,
    SourceError, StateChunk, StateQuery, TailError,
};

const REASON: &str = "this member does not know the history yet";

/// Sends every reader elsewhere.
pub(crate) struct NoSource;

impl History for NoSource {
    fn read(
        &self,
        _ranges: &[KeyRange],
        _from: HistoryPoint,
        _to: Revision,
        _with_prev: bool,
        _bytes_max: usize,
    ) -> Result<HistoryChunk, HistoryError> {
        Err(HistoryError::Unavailable(REASON.to_owned()))
    }

    fn state_at(&self, _query: &StateQuery) -> Result<StateChunk, HistoryError> {
        Err(HistoryError::Unavailable(REASON.to_owned()))
    }
}

impl Source for NoSource {
    fn transfer_begin(&self) -> Result<(Cursor, Vec<Fact>), SourceError> {
        Err(SourceError::Unavailable(REASON.to_owned()))
    }

    fn transfer_end(&self) -> Revision {
        Revision(0)
    }

    fn transfer(
        &self,
        _range: &KeyRange,
        _resume_after: Option<&Bytes>,
        _bytes_max: usize,
    ) -> Result<LiveChunk, SourceError> {
        Err(SourceError::Unavailable(REASON.to_owned()))
    }

    fn follow(&self, _cursor: Cursor, _bytes_max: usize, _timeout: Duration) -> Result<Vec<Arc<Frame>>, TailError> {
        Err(TailError::Closed)
    }
}
