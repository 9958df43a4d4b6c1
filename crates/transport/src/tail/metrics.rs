//! Names of the metrics of the tail between processes.

/// Gauge, label kind (follow, transfer, history, copy): streams that this node serves now.
pub const STREAMS: &str = "tailwater_tail_streams";
/// Counter, bytes of rows, label kind (follow, transfer, history, copy): sent to readers.
pub const SENT_BYTES: &str = "tailwater_tail_sent_bytes_total";
/// Counter: sources that this node left for another, or for a new attempt at the same.
pub const SOURCES_LEFT: &str = "tailwater_tail_sources_left_total";
/// Gauge, seconds: how long ago the core was last heard at the head of the path to this node.
pub const CORE_AGE_SECONDS: &str = "tailwater_tail_core_age_seconds";
/// Counter, bytes of rows: received of another member's state.
pub const COPIED_BYTES: &str = "tailwater_tail_member_copy_bytes_total";
/// Gauge: rows of the state that have come in the transfer that was begun last.
pub const TRANSFERRED_ROWS: &str = "tailwater_tail_transfer_rows";
/// Gauge: their bytes.
pub const TRANSFERRED_BYTES: &str = "tailwater_tail_transfer_bytes";
