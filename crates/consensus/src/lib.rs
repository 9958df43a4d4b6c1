//! The write plane: the raft replica, the deterministic apply machine, the raft log and the read index.
//!
//! It serves no watch and no client's list, and does no work that grows with the number of watchers. Start at
//! [`Consensus`]. Its threads: *replica* (drives raft-rs), *log* (appends and syncs the raft log), *apply* (runs the
//! machine, writes the event log, publishes to the tail, answers), *upkeep* (flush, trim, fold). A simulation gives each of
//! them its turns through [`Parts`] instead.
//!
//! With several members, whoever runs one
//!
//! * carries messages ([`PeerTransport`], [`Consensus::receive`], [`Consensus::report_unreachable`]), refuses those of members
//!   that are gone for good ([`Consensus::is_removed`]), and reports when it is refused itself ([`Consensus::report_removed`]);
//! * sends commands and barriers to the leader: a member that does not lead answers `NoLeader`, and has done nothing;
//! * watches [`Consensus::catch_up_wanted`]: when it names a position, the leader's log no longer reaches this member, which
//!   copies the state of any member that has reached that position and hands it to [`Consensus::install`];
//! * ends the process when [`Consensus::stopped`] gives a reason: a member that can't persist, or was removed.

mod alone;
mod answer;
mod auth;
mod handle;
mod machine;
pub mod metrics;
mod peers;
#[doc(hidden)]
pub mod raft_log;
mod reach;
mod replica;
mod start;
mod stored;
mod write_plane;

pub use answer::{Answer, Applied, ApplyError, ProposeError};
pub use auth::{Auth, AuthError, LeaseKeys, ROOT, Right};
pub use handle::{Consensus, ConsensusConfig, ConsensusStatus, InstallError, LeaseInfo, StartError};
#[doc(hidden)]
pub use machine::{fuzzing, measuring};
pub use peers::{NoPeers, PeerTransport};
pub use replica::CatchUp;
pub use start::{Chosen, Parts, SourceReady, assemble};
pub use stored::{RestoredState, StoredLease, StoredRow, StoredState};
pub use write_plane::{Reply, WritePlane};
