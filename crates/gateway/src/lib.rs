//! The etcd v3 API in front of the write plane and the read plane.
//!
//! [`Gateway::serve`] answers one HTTP request: gRPC calls, and health, version and metrics on the same port. Writes
//! and barriers go to the consensus crate, lists and watches to the fanout crate; each failure becomes etcd's code and
//! text in one table ([`Fault`]). It holds nothing that a restart would lose.
//!
//! Calls are read from gRPC's framing without a codec in between, so that their limits and texts are etcd's. Lists and
//! watches are bytes that exist already: no `mvccpb` message is built for them.
//!
//! Invariants: no read, created header or watch "from now on" goes behind the highest position that this gateway has
//! answered; nothing is read from a stream before there is room for its answer.

mod access;
mod admin;
mod auth;
mod body;
mod caller;
mod checks;
mod compactor;
mod config;
mod election;
#[doc(hidden)]
pub mod fuzzing;
mod gateway;
mod http;
mod json;
mod kv;
mod lease;
mod lock;
mod maintenance;
mod members;
mod methods;
mod metrics;
mod range;
mod route;
mod rpc;
mod snapshot;
mod status;
mod txn;
mod watch;

pub use access::{AccessControl, OverTls};
pub use auth::{AuthConfig, AuthConfigError, JwtConfig, PeerIdentity, TokenConfig};
pub use compactor::run_auto_compaction;
pub use config::{AutoCompaction, GatewayConfig};
pub use gateway::{Gateway, HashForwarder, SnapshotForwarder};
pub use metrics::tell_whether_ready;
pub use route::{Forwarder, ReplicaInfo};
pub use snapshot::{RestoreError, Restored, Restoring, SnapshotPieces, Snapshots, restore};
pub use status::{Code, Fault};
