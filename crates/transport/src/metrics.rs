//! Names of the metrics of what travels between nodes. Names and labels are etcd's where etcd has them; ids are hex.

/// Counter, label To: bytes of raft messages handed to a peer.
pub const SENT_BYTES: &str = "etcd_network_peer_sent_bytes_total";
/// Counter, label From: bytes of raft messages taken from a peer.
pub const RECEIVED_BYTES: &str = "etcd_network_peer_received_bytes_total";
/// Counter, label To: messages dropped because there is no room for them, and links that broke or did not come about.
pub const SENT_FAILURES: &str = "etcd_network_peer_sent_failures_total";
/// Counter, label From: streams of a peer that ended with an error.
pub const RECEIVED_FAILURES: &str = "etcd_network_peer_received_failures_total";
/// Gauge, 0 or 1, labels Local and Remote: whether a link to the peer is up.
pub const ACTIVE_PEERS: &str = "etcd_network_active_peers";
/// Counter, labels Local and Remote: links to the peer that were up and broke.
pub const DISCONNECTED_PEERS: &str = "etcd_network_disconnected_peers_total";
/// Gauge, 0 or 1, labels Local and Remote: whether the peer is a member.
pub const KNOWN_PEERS: &str = "etcd_network_known_peers";
/// Histogram, seconds, label To: from a small message to its acknowledgement.
pub const ROUND_TRIP_SECONDS: &str = "etcd_network_peer_round_trip_time_seconds";
/// Gauge, labels To and lane (urgent, append): bytes that wait for a peer or are on their way to it.
pub const PEER_QUEUE_BYTES: &str = "tailwater_peer_queue_bytes";
/// Counter: requests that this node sent to a leader elsewhere.
pub const ROUTED_REQUESTS: &str = "tailwater_write_routed_requests_total";
/// Counter: messages that these requests travelled in.
pub const ROUTED_BATCHES: &str = "tailwater_write_routed_batches_total";
/// Counter: streams to leaders that broke with requests on them.
pub const ROUTED_BREAKS: &str = "tailwater_write_stream_breaks_total";
/// Gauge: requests of this node that wait for a leader elsewhere.
pub const ROUTED_PENDING: &str = "tailwater_write_routed_pending";
