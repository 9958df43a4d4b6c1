//! The metrics of this crate. None has labels.

/// Gauge, bytes: frames that the tail holds in memory for readers close behind.
pub const TAIL_HOT_BYTES: &str = "tailwater_eventlog_tail_hot_bytes";
