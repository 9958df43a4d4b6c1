//! The write plane: the raft replica, the deterministic apply machine, the raft log and the read index.
//!
//! It serves no watch and no client's list, and does no work that grows with the number of watchers. Start at
//! [`Consensus`]. Its threads: *replica* (drives raft-rs), *log* (appends and syncs the raft log), *apply* (runs the
//! machine, writes the event log, publishes to the tail, answers), *upkeep* (flush, trim, fold). A simulation gives each of
//! them its turns through [`Parts`] instead.

mod answer;
mod handle;
mod machine;
pub mod metrics;
mod peers;
#[doc(hidden)]
pub mod raft_log;
mod replica;
mod start;
mod write_plane;

pub use answer::{Answer, Applied, ApplyError, ProposeError};
pub use handle::{Consensus, ConsensusConfig, ConsensusStatus, LeaseInfo, StartError};
pub use peers::{NoPeers, PeerTransport};
pub use start::{Chosen, Parts, SourceReady, assemble};
pub use write_plane::{Reply, WritePlane};
