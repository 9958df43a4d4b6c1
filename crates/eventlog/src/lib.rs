//! The event log: revisions, events and their one encoding; the durable log and base; the key index; compaction; and
//! the tail that fanouts follow.
//!
//! It knows nothing of Raft, clients or watchers. Start at [`EventLog`] (what is on disk) and [`Tail`] (what readers
//! follow). The apply thread owns the [`KeyIndex`] and is the only writer: it builds a [`WriteBatch`] per raft entry
//! batch, writes it, and publishes the same events as [`Frame`]s to the tail.
//!
//! Invariants: a revision grows by exactly 1 per write that changes something; `fold_point < compacted <= revision`
//! once anything was compacted; at and above the compacted revision records are whole and byte-identical on every
//! member; positions and revisions of a tail never go back.

mod cursor;
mod event;
mod fact;
mod history;
mod index;
mod log;
pub mod metrics;
mod range;
mod revision;
mod source;
mod tail;
mod tree;

pub use cursor::Cursor;
pub use event::{Envelope, Event, EventKind, RowError};
pub use fact::{Alarm, AlarmKind, AuthFacts, Fact, Member};
pub use history::{History, HistoryChunk, HistoryError, HistoryEvent, HistoryPoint};
pub use index::{KeyIndex, KeyMeta};
pub use log::{EventLog, EventLogConfig, FoldProgress, LiveChunk, LogState, StorageError, WriteBatch};
pub use range::KeyRange;
pub use revision::{HistoryId, LeaseId, MemberId, Position, Revision, Term};
pub use source::{LocalSource, Source};
pub use tail::{Frame, Tail, TailConfig, TailError};
pub use tree::{CountedTree, TreeIter};
