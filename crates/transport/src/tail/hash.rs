//! Asking another member for its hash, or its snapshot.

use std::time::Duration;

use tailwater_api::etcdserverpb as pb;
use tailwater_api::tail as wire;
use tailwater_eventlog::{Revision, StoreHash};
use tonic::Code;

use super::codec::PROTOCOL_VERSION;
use super::uplink;
use crate::{ConnectError, LinkConfig, connect};

/// Another member's hash could not be had.
#[derive(Debug, thiserror::Error)]
pub enum HashFailed {
    /// It can't be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It has compacted the revision: there is nothing to compare.
    #[error("no hash at that revision: {0}")]
    Compacted(String),
    /// It has not reached the revision.
    #[error("no hash at that revision: {0}")]
    NotReached(String),
    /// It refused or failed.
    #[error("{0}")]
    Failed(tonic::Status),
    /// It took too long.
    #[error("no answer in time")]
    Silent,
}

/// The hash of what the member at a peer URL holds up to `revision`, or, if that is 0, up to its newest.
///
/// # Errors
/// See [`HashFailed`].
pub async fn fetch_hash(
    url: &str,
    cluster_id: u64,
    revision: Revision,
    timeout: Duration,
    link: &LinkConfig,
) -> Result<StoreHash, HashFailed> {
    let channel = connect(url, link).await?;
    let request = wire::HashRequest { protocol_version: PROTOCOL_VERSION, cluster_id, revision: revision.0 };
    let mut client = uplink::client(channel);
    let answer = tokio::time::timeout(timeout, client.hash(request)).await.map_err(|_| HashFailed::Silent)?;
    let answer = answer.map_err(|status| match status.code() {
        Code::OutOfRange => HashFailed::Compacted(status.message().to_owned()),
        Code::NotFound => HashFailed::NotReached(status.message().to_owned()),
        _ => HashFailed::Failed(status),
    })?;
    let answer = answer.into_inner();
    let (compacted, revision) = (Revision(answer.compacted_revision), Revision(answer.revision));
    Ok(StoreHash { hash: answer.hash, compacted, revision })
}

/// Begins the snapshot of the node at a peer URL, which may hand it on from another.
///
/// # Errors
/// It can't be reached, or refuses.
pub async fn fetch_snapshot(
    url: &str,
    cluster_id: u64,
    link: &LinkConfig,
) -> Result<tonic::Streaming<pb::SnapshotResponse>, HashFailed> {
    let channel = connect(url, link).await?;
    let request = wire::SnapshotRequest { protocol_version: PROTOCOL_VERSION, cluster_id };
    let begun = uplink::client(channel).snapshot(request).await;
    Ok(begun.map_err(HashFailed::Failed)?.into_inner())
}
