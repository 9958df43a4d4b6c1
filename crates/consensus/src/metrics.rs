//! Names of the metrics of the write plane. None has labels.

/// Gauge, 0 or 1: whether a leader is known.
pub const HAS_LEADER: &str = "etcd_server_has_leader";
/// Gauge, 0 or 1: whether this member leads.
pub const IS_LEADER: &str = "etcd_server_is_leader";
/// Counter of changes of the leader that this member saw.
pub const LEADER_CHANGES: &str = "etcd_server_leader_changes_seen_total";
/// Gauge: the committed raft index.
pub const PROPOSALS_COMMITTED: &str = "etcd_server_proposals_committed_total";
/// Gauge: the applied raft index.
pub const PROPOSALS_APPLIED: &str = "etcd_server_proposals_applied_total";
/// Gauge: commands that wait for their answer.
pub const PROPOSALS_PENDING: &str = "etcd_server_proposals_pending";
/// Counter: values that were put, as this member applied them.
pub const PUTS: &str = "etcd_mvcc_put_total";
/// Counter: keys that were deleted, as this member applied it.
pub const DELETES: &str = "etcd_mvcc_delete_total";
/// Counter: writes of several changes, as this member applied them.
pub const TXNS: &str = "etcd_mvcc_txn_total";
/// Counter: leases that were granted, as this member applied it.
pub const LEASES_GRANTED: &str = "etcd_debugging_lease_granted_total";
/// Counter: leases that were revoked or have expired, as this member applied it.
pub const LEASES_REVOKED: &str = "etcd_debugging_lease_revoked_total";
/// Histogram, seconds: one write to the event log.
pub const COMMIT_SECONDS: &str = "etcd_disk_backend_commit_duration_seconds";
/// Histogram: commands in one raft entry.
pub const COMMANDS_PER_ENTRY: &str = "tailwater_commands_per_entry";
/// Histogram, seconds: applying what waited, its write included.
pub const APPLY_SECONDS: &str = "tailwater_apply_seconds";
