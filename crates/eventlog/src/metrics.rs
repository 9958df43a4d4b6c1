//! The metrics of this crate. None has labels.

/// Gauge, bytes: frames that the tail holds in memory for readers close behind.
pub const TAIL_HOT_BYTES: &str = "tailwater_eventlog_tail_hot_bytes";

/// Counter, rows: events written to the log.
pub const ROWS_WRITTEN: &str = "tailwater_eventlog_rows_written_total";

/// Counter, rows: events folded from the log into base.
pub const ROWS_FOLDED: &str = "tailwater_eventlog_rows_folded_total";
