//! The handle through which the gateway reads and watches.

use std::sync::Arc;

use tailwater_eventlog::{Alarm, AuthFacts, Cursor, Member, MemberId, Position, Revision, Source, Term};

use crate::{FanoutConfig, RangeAnswer, RangeQuery, ReadError, WatchControl, WatchStream};

/// The facts of one moment, published together with the store's root.
#[derive(Clone, Debug, Default)]
pub struct ReadSnapshot {
    /// Everything up to here is visible.
    pub cursor: Cursor,
    /// Readers see nothing below it; 0 before the first compaction.
    pub compacted: Revision,
    /// The leader and term as the tail says.
    pub leader: Option<MemberId>,
    /// The term.
    pub term: Term,
    /// The members, sorted by id.
    pub members: Vec<Member>,
    /// The alarms that are raised.
    pub alarms: Vec<Alarm>,
    /// Users and roles.
    pub auth: AuthFacts,
    /// "major.minor.0", empty until decided.
    pub cluster_version: String,
}

/// Handle on a running fanout; clones share it.
#[derive(Clone)]
pub struct Fanout {}

impl Fanout {
    /// Starts the tail thread, which first transfers the state and then follows. Returns at once;
    /// [`Fanout::ready`] resolves when reads are possible.
    #[must_use]
    pub fn start(_config: FanoutConfig, _source: Arc<dyn Source>) -> Self {
        todo!()
    }

    /// Waits until the state is transferred.
    pub async fn ready(&self) {
        todo!()
    }

    /// What is visible now. Cheap: no lock, no copy.
    #[must_use]
    pub fn snapshot(&self) -> Arc<ReadSnapshot> {
        todo!()
    }

    /// Waits until everything up to `position` is visible. Cancel safe.
    ///
    /// # Errors
    /// [`ReadError::Stopped`].
    pub async fn reach(&self, _position: Position) -> Result<(), ReadError> {
        todo!()
    }

    /// Reads a range from one snapshot. Large or old reads run where blocking is allowed.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn range(&self, _query: RangeQuery) -> Result<RangeAnswer, ReadError> {
        todo!()
    }

    /// Opens a watch stream: the control half takes requests, the stream half yields gRPC frames. Dropping either
    /// ends it and frees everything that it held.
    #[must_use]
    pub fn open_stream(&self) -> (WatchControl, WatchStream) {
        todo!()
    }

    /// Stops following and ends every stream.
    pub fn stop(&self) {
        todo!()
    }
}
