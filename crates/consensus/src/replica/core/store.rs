//! What raft reads: its log, and where the applied state stands.

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata};
use raft::{GetEntriesContext, RaftState, Storage};

use crate::raft_log::{RaftLogError, RaftLogView};

/// The log and the applied configuration.
pub(super) struct RaftStore {
    pub(super) view: RaftLogView,
    /// As recovered; read once.
    pub(super) hard_state: HardState,
    /// As of `applied`.
    pub(super) conf_state: ConfState,
    /// The applied index, or that of a newer change of configuration.
    pub(super) applied: u64,
}

fn store_error(error: RaftLogError) -> raft::Error {
    match error {
        RaftLogError::Compacted { .. } => raft::Error::Store(raft::StorageError::Compacted),
        RaftLogError::Unavailable { .. } => raft::Error::Store(raft::StorageError::Unavailable),
        other => raft::Error::Store(raft::StorageError::Other(Box::new(other))),
    }
}

impl Storage for RaftStore {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState { hard_state: self.hard_state.clone(), conf_state: self.conf_state.clone() })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        self.view.entries(low, high, max_size.into()).map_err(store_error)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        self.view.term(index).map_err(store_error)
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.view.first_index())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.view.last_index())
    }

    /// Where the state stands, without the state: who needs it copies it from any member that is there or beyond.
    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        let unavailable = raft::Error::Store(raft::StorageError::SnapshotTemporarilyUnavailable);
        if self.applied == 0 || self.applied < request_index {
            return Err(unavailable);
        }
        // Trimmed above the applied index: only while a state that was taken over is being loaded.
        let Ok(term) = self.view.term(self.applied) else { return Err(unavailable) };
        let metadata = SnapshotMetadata { conf_state: Some(self.conf_state.clone()), index: self.applied, term };
        Ok(Snapshot { metadata: Some(metadata), ..Default::default() })
    }
}
