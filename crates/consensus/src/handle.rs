//! The handle through which everything else reaches the write plane.

use std::path::PathBuf;
use std::time::Duration;

use tailwater_api::write::command::Command;
use tailwater_eventlog::{LeaseId, LocalSource, Member, MemberId, Position, StorageError, Term};

use crate::{Applied, ProposeError};

/// How a replica runs. Validated by [`Consensus::start`].
#[derive(Clone, Debug)]
pub struct ConsensusConfig {
    /// Holds `raft/` and `state/`; made if missing.
    pub data_dir: PathBuf,
    /// This member.
    pub member_id: MemberId,
    /// The group.
    pub cluster_id: u64,
    /// The founding members; used when the data directory is empty.
    pub initial_members: Vec<Member>,
    /// Duration of one raft tick; the leader's heartbeat interval. Default 100 ms.
    pub heartbeat_interval: Duration,
    /// Ticks without a leader before an election. Default 10.
    pub election_ticks: usize,
    /// A larger encoded command is refused. Default 1.5 MiB.
    pub request_bytes_max: usize,
    /// Commands gathered into one raft entry, in bytes. Default 4 MiB.
    pub batch_bytes_max: usize,
    /// Bytes of proposals that may wait; beyond it they are refused. Default 256 MiB.
    pub proposal_queue_bytes_max: usize,
    /// Committed entries that may wait to be applied; beyond it proposals are refused. Default 5000.
    pub apply_lag_max: u64,
    /// A proposal without an answer fails after this. Default 5 s + 2 × election timeout.
    pub request_timeout: Duration,
    /// Shortest TTL of a lease, in seconds: ceil(3 × election ticks ÷ 2 × heartbeat). 2 with the defaults.
    pub lease_ttl_min: i64,
    /// Bytes of storage above which NOSPACE is raised; 0: no quota.
    pub quota_bytes: u64,
    /// Bytes of memtables at which the state is flushed.
    pub memtable_bytes: usize,
    /// Bytes of RocksDB block cache.
    pub block_cache_bytes: usize,
    /// Bytes of raft log kept above the durable position for peers that were briefly away.
    pub raft_log_bytes: u64,
    /// Bytes of frames kept in memory for tail readers.
    pub tail_hot_bytes_max: usize,
    /// Added to each sync of the raft log; only tests and experiments set it.
    pub sync_delay: Duration,
}

/// What `Maintenance.Status` and the metrics tell of the write plane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsensusStatus {
    /// 0: none known.
    pub leader: MemberId,
    /// The current term.
    pub term: Term,
    /// The committed raft index.
    pub committed: u64,
    /// The applied raft index.
    pub applied: Position,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Of these, bytes of live data (an estimate).
    pub disk_bytes_in_use: u64,
    /// Whether this member has no vote.
    pub is_learner: bool,
}

/// A lease as the leader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseInfo {
    /// Its id.
    pub id: LeaseId,
    /// As granted, seconds.
    pub granted_ttl: i64,
    /// Left, whole seconds, rounded down.
    pub remaining_ttl: i64,
    /// Attached keys, sorted; empty unless asked for.
    pub keys: Vec<bytes::Bytes>,
}

/// The replica can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The config contradicts itself or the data directory.
    #[error("{0}")]
    Config(String),
    /// The event log can't be opened.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The raft log can't be opened: file, offset and reason.
    #[error("raft log: {0}")]
    RaftLog(String),
}

/// Handle on the running replica; clones share it.
#[derive(Clone)]
pub struct Consensus {}

impl Consensus {
    /// Opens the data directory, recovers, and starts the threads. The source is what fanouts in this process
    /// follow. Returns once the stored state is loaded; what the raft log holds above it is applied in the
    /// background and reaches followers through the tail.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(_config: ConsensusConfig) -> Result<(Self, LocalSource), StartError> {
        todo!()
    }

    /// Proposes a command and waits until it is committed *and applied* here. Cancel safe: a dropped wait does not
    /// withdraw the command.
    ///
    /// # Errors
    /// See [`ProposeError`]; after `LeaderChanged`, `Timeout` and `Stopped` the command may have taken effect.
    pub async fn propose(&self, _command: Command) -> Result<Applied, ProposeError> {
        todo!()
    }

    /// The position that a linearizable read which arrived before this call must have reached. Shared by all that
    /// wait: a call joins only a confirmation of leadership that starts after it.
    ///
    /// # Errors
    /// `NoLeader`, `Timeout`, `LeaderChanged`, `Stopped`.
    pub async fn barrier(&self) -> Result<Position, ProposeError> {
        todo!()
    }

    /// Renews a lease in the leader's memory after its leadership was confirmed; no raft entry. Returns the granted
    /// TTL in seconds, `None` when the lease does not exist.
    ///
    /// # Errors
    /// As [`Consensus::barrier`].
    pub async fn lease_keep_alive(&self, _id: LeaseId) -> Result<Option<i64>, ProposeError> {
        todo!()
    }

    /// What the leader knows of a lease.
    ///
    /// # Errors
    /// As [`Consensus::barrier`].
    pub async fn lease_time_to_live(&self, _id: LeaseId, _keys: bool) -> Result<Option<LeaseInfo>, ProposeError> {
        todo!()
    }

    /// Leases known here, the first to expire first. A local read.
    #[must_use]
    pub fn leases(&self) -> Vec<LeaseId> {
        todo!()
    }

    /// What this member knows of itself now. Cheap.
    #[must_use]
    pub fn status(&self) -> ConsensusStatus {
        todo!()
    }

    /// Resolves when the replica has stopped, with the reason when it stopped by itself (a failed disk, a broken
    /// log); `None` after [`Consensus::stop`].
    pub async fn stopped(&self) -> Option<String> {
        todo!()
    }

    /// Stops the threads after what is queued was synced, flushes, and closes the files. Blocks.
    pub fn stop(&self) {
        todo!()
    }
}
