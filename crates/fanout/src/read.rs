//! Reads at a revision.

use std::sync::Arc;

use tailwater_eventlog::{Event, HistoryError, KeyRange, Revision};

pub use crate::admission::ListPermit;

/// What to read; etcd's RangeRequest after its checks.
#[derive(Clone, Debug)]
pub struct RangeQuery {
    /// The keys.
    pub range: KeyRange,
    /// At this revision; `None`: the newest.
    pub revision: Option<Revision>,
    /// At most so many keys; 0: all.
    pub limit: usize,
    /// Order; `None` is by key, ascending.
    pub sort: Option<(SortBy, bool)>,
    /// Only the number of keys.
    pub count_only: bool,
    /// The caller wants no values: what the answer holds is counted without them.
    pub keys_only: bool,
    /// Bounds of mod_revision and create_revision, inclusive; 0: none. (min_mod, max_mod, min_create, max_create)
    pub revision_bounds: (i64, i64, i64, i64),
}

/// The field to sort by; the flag beside it says descending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "etcd's sort targets")]
pub enum SortBy {
    Key,
    Version,
    Create,
    Mod,
    Value,
}

/// What was read.
#[derive(Clone, Debug)]
pub struct RangeAnswer {
    /// The newest revision of the snapshot that was read: the header's revision.
    pub header_revision: Revision,
    /// The live versions, shared with the store; where only keys are wanted perhaps without their values.
    pub events: Vec<Arc<Event>>,
    /// Whether the limit cut something off.
    pub more: bool,
    /// Keys alive in the range at the revision, before limit and bounds.
    pub count: i64,
    /// Its part of what all big lists may hold; kept until the answer has left.
    pub permit: Arc<ListPermit>,
}

/// A read can't be answered.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Above the newest revision.
    #[error("future revision")]
    FutureRevision,
    /// Below the compacted revision.
    #[error("revision compacted")]
    Compacted,
    /// Other big lists hold all the memory that lists may.
    #[error("too many big lists at once")]
    TooManyRequests,
    /// The source of history failed.
    #[error(transparent)]
    History(HistoryError),
    /// Not within [`crate::FanoutConfig::ranges`].
    #[error("no replica here covers the range")]
    OutOfScope,
    /// The fanout stops, has lost its tail, or transfers another history.
    #[error("stopped")]
    Stopped,
}
