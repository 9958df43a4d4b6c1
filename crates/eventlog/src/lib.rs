//! The event log: revisions, events and their one encoding; the durable log and base; the key index; compaction; and
//! the tail that fanouts follow.
//!
//! It knows nothing of Raft, clients or watchers. Start at [`EventLog`] (what is on disk) and [`Tail`] (what readers
//! follow).
//!
//! The apply thread owns the [`KeyIndex`] and is the only writer. Per batch of raft entries it
//!
//! 1. encodes each change as an [`Event`], with [`Envelope::prev`] from [`KeyIndex::get`] at the revision before,
//! 2. calls [`KeyIndex::insert`] with it, so that what follows in the batch sees it,
//! 3. calls [`EventLog::write`] with all of them, its own state and the new [`LogState`],
//! 4. and calls [`Tail::publish`] with the same events as [`Frame`]s.
//!
//! The order is part of the contract: an event is in the index before it is written, and written before it is
//! published; a reader of the tail may look for it in the log at once.
//!
//! Another thread calls [`EventLog::flush`] when [`EventLog::unflushed_bytes`] asks for it and [`EventLog::fold_step`]
//! after a compaction. Readers use a [`Source`]: a [`Source::transfer`] of the live keys, then [`Source::follow`], and
//! [`History::read`] for what their memory no longer holds. [`LocalSource`] is the source inside this process.
//!
//! Invariants: a revision grows by exactly 1 per write that changes something; `fold_point < compacted <= revision`
//! once anything was compacted (a restored store may begin with `fold_point == compacted`); at and above the compacted revision records are whole and byte-identical on every
//! member; positions and revisions of a tail never go back.

mod cursor;
mod event;
mod fact;
mod history;
mod index;
mod log;
pub mod metrics;
mod priority;
mod range;
mod revision;
mod scope;
mod source;
mod tail;
mod tree;

pub use cursor::Cursor;
pub use event::{Envelope, Event, EventKind, RowError};
pub use fact::{Alarm, AlarmKind, AuthFacts, Fact, Member};
pub use history::{History, HistoryChunk, HistoryError, HistoryEvent, HistoryPoint, StateChunk, StateQuery};
pub use index::{KeyIndex, KeyMeta};
#[doc(hidden)]
pub use log::fuzzing;
pub use log::{
    Backup, BackupConfig, BackupEvents, CopyError, CopyPoint, CopyStep, EventLog, EventLogConfig, FoldHold,
    FoldProgress, Founder, HashError, Installed, LiveChunk, LogCopy, LogState, RestoredPut, Staged, Staging, StateRow,
    StorageError, StoreHash, WriteBatch, prioritize_background,
};
pub use priority::Background;
pub use range::KeyRange;
pub use revision::{HistoryId, LeaseId, MemberId, Position, Revision, Term};
pub use scope::Scope;
pub use source::{LocalSource, Source, SourceError};
pub use tail::{Frame, Tail, TailConfig, TailError};
pub use tree::{CountedTree, TreeIter, TreeKey};
