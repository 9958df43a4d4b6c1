//! The names of the raft log's metrics.

/// Histogram, seconds: one sync of the raft log, an artificial delay included. The name is etcd's.
pub const SYNC_SECONDS: &str = "etcd_disk_wal_fsync_duration_seconds";
/// Counter, bytes: written to the raft log, marks and headers included.
pub const WRITTEN_BYTES: &str = "tailwater_raft_log_written_bytes_total";
/// Gauge, bytes: entries in memory, because they are not written or not yet applied here and held by all live peers.
pub const RECENT_BYTES: &str = "tailwater_raft_log_recent_bytes";
/// Histogram, entries: made durable by one sync.
pub const ENTRIES_PER_SYNC: &str = "tailwater_raft_log_entries_per_sync";
