//! Asking a node what it is, and who reads from it.

use std::time::Duration;

use tailwater_api::tail as wire;
use tonic::Code;

use super::codec::PROTOCOL_VERSION;
use super::description::Description;
use super::uplink;
use crate::{ConnectError, LinkConfig, connect};

/// A node did not describe itself.
#[derive(Debug, thiserror::Error)]
pub enum DescribeFailed {
    /// It can't be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It belongs to another cluster, or speaks another version of the protocol.
    #[error("{0}")]
    Refused(String),
    /// It has no such service.
    #[error("{0} serves clients, not other nodes: name a URL of --listen-peer-urls")]
    ClientUrl(String),
    /// It failed.
    #[error("{}", .0.message())]
    Failed(tonic::Status),
    /// It took too long.
    #[error("no answer in time")]
    Silent,
}

/// What the node at a peer URL is. `cluster_id` 0: whichever cluster it belongs to.
///
/// # Errors
/// See [`DescribeFailed`].
pub async fn describe(
    url: &str,
    cluster_id: u64,
    timeout: Duration,
    link: &LinkConfig,
) -> Result<Description, DescribeFailed> {
    let asking = async {
        let mut client = uplink::client(connect(url, link).await?);
        let request = wire::DescribeRequest { protocol_version: PROTOCOL_VERSION, cluster_id };
        client.describe(request).await.map_err(|status| match status.code() {
            Code::FailedPrecondition => DescribeFailed::Refused(status.message().to_owned()),
            Code::Unimplemented => DescribeFailed::ClientUrl(url.to_owned()),
            _ => DescribeFailed::Failed(status),
        })
    };
    let answer = tokio::time::timeout(timeout, asking).await.map_err(|_| DescribeFailed::Silent)??;
    Ok(Description::from_wire(answer.into_inner()))
}
