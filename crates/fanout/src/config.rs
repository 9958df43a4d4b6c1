//! Bounds of the read plane.

use std::time::Duration;

use tailwater_eventlog::KeyRange;

/// How a fanout runs.
#[derive(Clone, Debug)]
pub struct FanoutConfig {
    /// Of this node's answers.
    pub cluster_id: u64,
    /// Of this node's answers.
    pub member_id: u64,
    /// Bytes of recent events (superseded versions included) kept in memory for reads and watches at older
    /// revisions; beyond it they are read through from the source. `--window-bytes`, default 256 MiB, 64 MiB on a member.
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
    /// What this fanout holds and answers; none: every key. `--prefixes`.
    pub ranges: Vec<KeyRange>,
    /// Bytes of frames kept for readers that follow this fanout ([`crate::Fanout::source`]) and are close behind; others
    /// read the window. 0 where nobody does, or nearly so. Default 0.
    pub relay_bytes_max: usize,
    /// Values of at least so many bytes that their keys were created with are given up when they leave the window, until
    /// somebody asks: the first read goes to the source, as does the first watch that wants them as previous values. For a
    /// fanout beside its source's storage, whose memory then grows with what is read. `None`: all are held. Default `None`.
    pub unread_value_bytes_min: Option<usize>,
    /// Whether this process also writes the log: then streams that are far behind take what writes leave. Default no.
    pub is_beside_writes: bool,
    /// Bytes of history that was read from the source and is kept for others who want the same. Default 16 MiB.
    pub history_bytes_max: usize,
}

impl Default for FanoutConfig {
    fn default() -> Self {
        Self {
            cluster_id: 0,
            member_id: 0,
            window_bytes_max: 256 << 20,
            stream_chunk_bytes: 64 << 10,
            list_memory_bytes_max: 256 << 20,
            watch_memory_bytes_max: 256 << 20,
            response_bytes_max: 1 << 20,
            fragment_bytes_max: 2 << 20,
            progress_interval: Duration::from_secs(600),
            ranges: Vec::new(),
            relay_bytes_max: 0,
            unread_value_bytes_min: None,
            is_beside_writes: false,
            history_bytes_max: 16 << 20,
        }
    }
}
