//! Reading uncompacted events from storage, for readers whose memory no longer holds them.

use std::sync::Arc;

use bytes::Bytes;

use crate::{Event, KeyRange, Revision, StorageError};

/// A place between two events: the next event to read is the first at or after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HistoryPoint {
    /// Revision of the next event.
    pub revision: Revision,
    /// Sub-revision of the next event.
    pub sub: u32,
}

/// An event and, when asked for, the version before its revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryEvent {
    /// The event.
    pub event: Arc<Event>,
    /// The key's version below the event's revision. `None` when not asked for, when the key was not live, and when
    /// that version lies below the compacted revision and is gone.
    pub prev: Option<Arc<Event>>,
}

/// A piece of history, in revision order.
#[derive(Clone, Debug)]
pub struct HistoryChunk {
    /// The matching events.
    pub events: Vec<HistoryEvent>,
    /// Where to go on; `None` when everything up to `to` was read.
    pub next: Option<HistoryPoint>,
    /// The source's compacted revision *after* the read: what was read is whole only if `from` is not below it.
    pub compacted: Revision,
}

/// Which part of an older state is wanted.
#[derive(Clone, Debug)]
pub struct StateQuery {
    /// The keys.
    pub range: KeyRange,
    /// Only keys behind this one.
    pub after: Option<Bytes>,
    /// The state is that of this revision.
    pub at: Revision,
    /// At most so many keys.
    pub keys_max: usize,
    /// About so many bytes of events; at least one key comes, however large.
    pub bytes_max: usize,
    /// Whether to count the keys behind those that come.
    pub count: bool,
}

/// A piece of the state at a revision, in key order.
#[derive(Clone, Debug, Default)]
pub struct StateChunk {
    /// The versions that were live at the revision: one put per key.
    pub events: Vec<Arc<Event>>,
    /// There are more keys behind this one; `None` when there are none.
    pub resume_after: Option<Bytes>,
    /// How many more; 0 when not asked for.
    pub rest: usize,
}

/// History can't be read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// `from` lies below the compacted revision.
    #[error("required revision has been compacted (compacted at {0})")]
    Compacted(Revision),
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The source can't be reached now.
    #[error("history source unavailable: {0}")]
    Unavailable(String),
}

/// A source of history. Calls block; they run on threads where that is allowed.
pub trait History: Send + Sync {
    /// Events from `from` on, up to and including revision `to`, whose key lies in one of `ranges` (none: every
    /// key). Returns when about `bytes_max` bytes of events were found or scanned enough; a record may be split
    /// between two chunks, and [`HistoryChunk::next`] then points into it.
    ///
    /// # Errors
    /// [`HistoryError::Compacted`] when `from.revision` is below the compacted revision before or after the read.
    fn read(
        &self,
        ranges: &[KeyRange],
        from: HistoryPoint,
        to: Revision,
        with_prev: bool,
        bytes_max: usize,
    ) -> Result<HistoryChunk, HistoryError>;

    /// What was live at `query.at`, which the source has reached. It costs by the keys that come (and that are counted),
    /// however many events lie above the revision.
    ///
    /// # Errors
    /// [`HistoryError::Compacted`] when the revision is below the compacted revision before or after the read.
    fn state_at(&self, query: &StateQuery) -> Result<StateChunk, HistoryError>;
}
