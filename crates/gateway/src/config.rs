//! Settings of the gateway.

use std::time::Duration;

use crate::{AccessControl, AuthConfig};

/// How the gateway serves.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// Of this node's answers.
    pub cluster_id: u64,
    /// Of this node's answers.
    pub member_id: u64,
    /// A request whose raft form would be larger is refused, as etcd counts it. Default 1.5 MiB.
    pub request_bytes_max: usize,
    /// Operations in a txn, counted as etcd does. Default 128.
    pub txn_ops_max: usize,
    /// A read that waits longer for its position fails. Default 5 s + 2 × election timeout.
    pub request_timeout: Duration,
    /// Streams that require a leader end after three of these without one.
    pub election_timeout: Duration,
    /// A unary call that takes longer is logged. Default 300 ms.
    pub slow_request: Duration,
    /// The etcd version that is reported; its line decides what clients expect.
    pub reported_version: String,
    /// The quota that Status tells, in bytes.
    pub quota_bytes: u64,
    /// Who may ask over plain HTTP.
    pub access: AccessControl,
    /// Whether the API is served as JSON too.
    pub json_gateway: bool,
    /// Whether the duration of every call is recorded.
    pub extensive_metrics: bool,
    /// When old history is compacted without a client's asking.
    pub auto_compaction: AutoCompaction,
    /// How clients show who they are.
    pub auth: AuthConfig,
}

impl GatewayConfig {
    /// Largest message that is read at all; above it the transport refuses, as etcd's does.
    #[must_use]
    pub fn message_bytes_max(&self) -> usize {
        self.request_bytes_max + 512 * 1024
    }

    /// "major.minor.0" of the reported version.
    #[must_use]
    pub fn storage_version(&self) -> String {
        let mut parts = self.reported_version.split('.');
        match (parts.next(), parts.next()) {
            (Some(major), Some(minor)) => format!("{major}.{minor}.0"),
            _ => self.reported_version.clone(),
        }
    }
}

/// etcd's two modes of automatic compaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoCompaction {
    /// None.
    Off,
    /// History of this duration is kept.
    Periodic(Duration),
    /// So many revisions are kept.
    Revisions(i64),
}
