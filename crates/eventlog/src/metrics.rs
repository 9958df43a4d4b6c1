//! The metrics of this crate. None has labels.

/// Gauge, bytes: frames that the tail holds in memory for readers close behind.
pub const TAIL_HOT_BYTES: &str = "tailwater_eventlog_tail_hot_bytes";

/// Counter, rows: events written to the log.
pub const ROWS_WRITTEN: &str = "tailwater_eventlog_rows_written_total";

/// Counter, rows: events folded from the log into base.
pub const ROWS_FOLDED: &str = "tailwater_eventlog_rows_folded_total";

/// Gauge, revisions: compacted but not folded yet; 0 when folding has caught up.
pub const FOLD_LAG_REVISIONS: &str = "tailwater_eventlog_fold_lag_revisions";

/// Histogram, seconds: one flush of the memtables to files, its sync included.
pub const FLUSH_SECONDS: &str = "tailwater_eventlog_flush_seconds";

/// A number for a gauge.
#[expect(clippy::cast_precision_loss, reason = "a gauge may be off by a few at 2^53")]
pub(crate) fn gauge(value: u64) -> f64 {
    value as f64
}
