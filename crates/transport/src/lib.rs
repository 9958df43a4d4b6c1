//! What travels between nodes on the peer URLs: raft messages (*peer*), proposals and barriers (*write plane*), and the
//! log itself (*tail*).
//!
//! It decides nothing: raft messages go to the replica, proposals to the leader's, frames to whoever follows.
//!
//! Start at [`Peers`] (how a replica reaches the other members), [`Router`] (how a gateway reaches the leader) and
//! [`PeerPort`] (what is served on the peer URLs).

mod backoff;
mod directory;
mod endpoint;
#[doc(hidden)]
pub mod fuzzing;
mod hello;
mod http_client;
pub mod metrics;
mod peer;
mod port;
mod tail;
mod write;

pub use backoff::Backoff;
pub use directory::Directory;
pub use endpoint::{ConnectError, LinkConfig, connect};
pub use hello::{Greeter, PROTOCOL_VERSION, RefusalReason};
pub use http_client::{FetchError, MemberList, fetch_members, fetch_text};
pub use peer::{PeerService, PeerSink, Peers, PeersConfig};
pub use port::{PeerPort, PortInfo, PortServer};
pub use tail::metrics as tail_metrics;
pub use tail::{
    CodecError, CopyConfig, CopyFailed, CoreWord, CoreWordTeller, DescribeFailed, Description, DescriptionTeller,
    HashFailed, HashForwarder, NodeDescription, NodeLoad, PrefixLoad, Reader, RemoteSource, RemoteSourceConfig,
    SlowStream, SnapshotMessages, SnapshotOpener, SourceFactory, TailService, TailServiceConfig, Topology,
    copy_member_state, describe, fetch_hash, fetch_snapshot,
};
pub use write::{Router, RouterConfig, WriteService, WriteServiceConfig};
