//! Names of the metrics, and where they are set. Labels never hold keys or client addresses.

use metrics::{counter, gauge};

/// Gauge: watchers on this node. etcd's name.
pub const WATCHER_TOTAL: &str = "etcd_debugging_mvcc_watcher_total";
/// Gauge: watchers that are catching up. etcd's name.
pub const SLOW_WATCHER_TOTAL: &str = "etcd_debugging_mvcc_slow_watcher_total";
/// Gauge: open watch streams. etcd's name.
pub const WATCH_STREAM_TOTAL: &str = "etcd_debugging_mvcc_watch_stream_total";
/// Gauge: events that wait in queues; always 0, since nothing is queued per watcher. etcd's name.
pub const PENDING_EVENTS_TOTAL: &str = "etcd_debugging_mvcc_pending_events_total";
/// Gauge: watchers by `state`: `live` (future ones included) or `catching_up`.
pub const WATCHERS: &str = "tailwater_fanout_watchers";
/// Gauge: bytes of the window, bookkeeping included.
pub const WINDOW_BYTES: &str = "tailwater_fanout_window_bytes";
/// Gauge: bytes that streams hold for their clients.
pub const STREAM_BYTES: &str = "tailwater_fanout_stream_bytes";
/// Gauge: the bound of [`STREAM_BYTES`] (`--watch-memory-bytes`).
pub const STREAM_BYTES_MAX: &str = "tailwater_fanout_stream_bytes_max";
/// Gauge: lists that are sent in pieces (RangeStream); what they hold counts in [`STREAM_BYTES`].
pub const LIST_STREAM_TOTAL: &str = "tailwater_fanout_list_streams";
/// Gauge: bytes that big lists in one message hold while they are sent.
pub const LIST_BYTES: &str = "tailwater_fanout_list_bytes";
/// Gauge: the bound of [`LIST_BYTES`] (`--list-memory-bytes`).
pub const LIST_BYTES_MAX: &str = "tailwater_fanout_list_bytes_max";
/// Counter: lists refused because others held the memory.
pub const LISTS_REFUSED_TOTAL: &str = "tailwater_fanout_lists_refused_total";
/// Gauge: groups of equal watchers.
pub const GROUPS: &str = "tailwater_fanout_groups";
/// Gauge: the newest published revision.
pub const REVISION: &str = "tailwater_fanout_revision";
/// Counter: events taken from the tail.
pub const TAIL_EVENTS_TOTAL: &str = "tailwater_fanout_tail_events_total";
/// Counter: pairs of an event and a group that it concerns; divided by [`TAIL_EVENTS_TOTAL`]: matches per event.
pub const MATCHES_TOTAL: &str = "tailwater_fanout_matches_total";
/// Counter: steps of history read through from the source.
pub const HISTORY_READS_TOTAL: &str = "tailwater_fanout_history_reads_total";

/// Counts grow by small numbers; a gauge holds them exactly up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn set(name: &'static str, value: usize) {
    gauge!(name).set(value as f64);
}

pub(crate) fn batch(events: usize, pairs: usize) {
    counter!(TAIL_EVENTS_TOTAL).increment(events as u64);
    counter!(MATCHES_TOTAL).increment(pairs as u64);
}

#[expect(clippy::cast_precision_loss, reason = "revisions stay far below 2^53 within a process's life")]
pub(crate) fn window(bytes: usize, revision: i64) {
    set(WINDOW_BYTES, bytes);
    gauge!(REVISION).set(revision as f64);
}

pub(crate) fn history_read() {
    counter!(HISTORY_READS_TOTAL).increment(1);
}

/// What the delivery worker reports at each tick.
pub(crate) struct Streams {
    pub(crate) streams: usize,
    pub(crate) watchers: usize,
    pub(crate) catching_up: usize,
    pub(crate) held: usize,
    pub(crate) held_max: usize,
    pub(crate) groups: usize,
    pub(crate) list_streams: usize,
    pub(crate) list_bytes: usize,
    pub(crate) list_bytes_max: usize,
    pub(crate) lists_refused: usize,
}

pub(crate) fn streams(now: &Streams) {
    set(WATCH_STREAM_TOTAL, now.streams);
    set(WATCHER_TOTAL, now.watchers);
    set(SLOW_WATCHER_TOTAL, now.catching_up);
    set(PENDING_EVENTS_TOTAL, 0);
    set(STREAM_BYTES, now.held);
    set(STREAM_BYTES_MAX, now.held_max);
    set(GROUPS, now.groups);
    set(LIST_STREAM_TOTAL, now.list_streams);
    set(LIST_BYTES, now.list_bytes);
    set(LIST_BYTES_MAX, now.list_bytes_max);
    counter!(LISTS_REFUSED_TOTAL).absolute(now.lists_refused as u64);
    gauge!(WATCHERS, "state" => "catching_up").set(u32::try_from(now.catching_up).unwrap_or(u32::MAX));
    gauge!(WATCHERS, "state" => "live")
        .set(u32::try_from(now.watchers.saturating_sub(now.catching_up)).unwrap_or(u32::MAX));
}
