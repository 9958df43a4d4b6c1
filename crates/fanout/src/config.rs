//! Bounds of the read plane.

use std::time::Duration;

/// How a fanout runs.
#[derive(Clone, Debug)]
pub struct FanoutConfig {
    /// Of this node's answers.
    pub cluster_id: u64,
    /// Of this node's answers.
    pub member_id: u64,
    /// Bytes of recent events (superseded versions included) kept in memory for reads and watches at older
    /// revisions; beyond it they are read through from the source. `--window-bytes`, default 256 MiB.
    pub window_bytes_max: usize,
    /// Bytes that one watch stream holds ready for its client. `--stream-chunk-bytes`, default 64 KiB.
    pub stream_chunk_bytes: usize,
    /// Bytes that big lists in one message hold together while they are sent; a list beyond it is refused, unless it is
    /// alone. `--list-memory-bytes`, default 256 MiB.
    pub list_memory_bytes_max: usize,
    /// Bytes that all streams together may hold, of watches and of lists in pieces; above half of it chunks get smaller.
    /// `--watch-memory-bytes`, default 256 MiB.
    pub watch_memory_bytes_max: usize,
    /// Bytes of events in one watch response when a watcher lags; one revision is never split. Default 1 MiB.
    pub response_bytes_max: usize,
    /// A watch that asked for fragments gets responses of at most this: max-request-bytes + 512 KiB.
    pub fragment_bytes_max: usize,
    /// Interval of progress notifications for watchers that asked. `--watch-progress-notify-interval`, 10 min.
    pub progress_interval: Duration,
}
