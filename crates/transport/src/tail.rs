//! The tail between processes: any [`Source`](tailwater_eventlog::Source) served over gRPC, and a source that reads it
//! there.
//!
//! [`TailService`] serves followers, transfers, history and the copies of members; [`RemoteSource`] is the other end of
//! the first three, [`copy_member_state`] of the last. What travels is described in `proto/tailwater/tail.proto`: rows as
//! they are stored, each with its checksum, which the receiver checks again.
//!
//! A reader costs its source a cursor and a thread that waits; what was read for it is one message. A reader that does
//! not take it costs nothing more: nothing is read for it until there is room.

mod codec;
mod copy;
mod describe;
mod description;
pub(crate) mod fuzzing;
mod hash;
pub mod metrics;
mod pieces;
mod rate;
mod remote;
mod server;
mod serving;
mod topology;
mod uplink;

pub use codec::CodecError;
pub use copy::{CopyConfig, CopyFailed, copy_member_state};
pub use describe::{DescribeFailed, describe};
pub use description::{Description, NodeDescription, NodeLoad, PrefixLoad, SlowStream};
pub use hash::{HashFailed, fetch_hash, fetch_snapshot};
pub use remote::{RemoteSource, RemoteSourceConfig};
pub use server::{
    CoreWord, CoreWordTeller, DescriptionTeller, HashForwarder, SnapshotMessages, SnapshotOpener, SourceFactory,
    TailService, TailServiceConfig,
};
pub use topology::{Reader, Topology};

#[cfg(test)]
mod tests;
