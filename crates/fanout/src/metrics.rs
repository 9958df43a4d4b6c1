//! Names of the metrics, and where they are set. Labels never hold keys or client addresses.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metrics::{counter, gauge};

use crate::StreamEnd;
use crate::core::{Core, WatcherState};
use crate::delivery::UNAVAILABLE;

/// Gauge: watchers on this node. etcd's name.
pub const WATCHER_TOTAL: &str = "etcd_debugging_mvcc_watcher_total";
/// Gauge: watchers that are catching up. etcd's name.
pub const SLOW_WATCHER_TOTAL: &str = "etcd_debugging_mvcc_slow_watcher_total";
/// Gauge: open watch streams. etcd's name.
pub const WATCH_STREAM_TOTAL: &str = "etcd_debugging_mvcc_watch_stream_total";
/// Gauge: events that wait in queues; always 0, since nothing is queued per watcher. etcd's name.
pub const PENDING_EVENTS_TOTAL: &str = "etcd_debugging_mvcc_pending_events_total";
/// Counter: events sent to watchers. etcd's name.
pub const EVENTS_TOTAL: &str = "etcd_debugging_mvcc_events_total";
/// Gauge: watchers by `state`: `future`, `catching_up`, `live` or `slow` (catching up after it was live).
pub const WATCHERS: &str = "tailwater_fanout_watchers";
/// Counter: watchers that ended, by `reason`: `cancelled` or `closed` (by the client), `compacted`, `refused`, `drained`,
/// `no_leader` or `overrun` (too many requests).
pub const WATCHERS_ENDED_TOTAL: &str = "tailwater_fanout_watchers_ended_total";
/// Gauge: revisions that the slowest stream has yet to be given.
pub const LAG_REVISIONS: &str = "tailwater_fanout_watch_lag_revisions";
/// Gauge: seconds since the first revision was applied that the slowest stream has yet to be given.
pub const LAG_SECONDS: &str = "tailwater_fanout_watch_lag_seconds";
/// Gauge: streams that have yet to be given something.
pub const STREAMS_BEHIND: &str = "tailwater_fanout_streams_behind";
/// Histogram as Prometheus reads it (`_bucket` with `le`, `_sum`, `_count`): seconds from the apply of a live watcher's
/// response to its being handed to the connection. Kept in a few counters of fixed size, whatever is sent.
pub const DELIVERY_SECONDS: &str = "tailwater_fanout_delivery_seconds";
/// Counter: events sent to watchers that were catching up; its rate is the catch-up rate.
pub const CATCH_UP_EVENTS_TOTAL: &str = "tailwater_fanout_catch_up_events_total";
/// Counter: bytes of [`CATCH_UP_EVENTS_TOTAL`].
pub const CATCH_UP_BYTES_TOTAL: &str = "tailwater_fanout_catch_up_bytes_total";
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
/// Gauge: bytes that the operating system may hold for connections of clients; a part of the bound.
pub const SOCKET_BYTES: &str = "tailwater_fanout_socket_bytes";
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

/// Why a watcher ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Cancelled,
    Closed,
    Compacted,
    Refused,
    Drained,
    NoLeader,
    Overrun,
}

impl Ended {
    const ALL: [Self; 7] =
        [Self::Cancelled, Self::Closed, Self::Compacted, Self::Refused, Self::Drained, Self::NoLeader, Self::Overrun];

    /// What a stream's end means for its watchers.
    pub(crate) fn by(end: &StreamEnd) -> Self {
        match end {
            StreamEnd::ClientClosed => Self::Closed,
            StreamEnd::Status(UNAVAILABLE, _) => Self::Drained,
            StreamEnd::Status(..) => Self::Overrun,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::Closed => "closed",
            Self::Compacted => "compacted",
            Self::Refused => "refused",
            Self::Drained => "drained",
            Self::NoLeader => "no_leader",
            Self::Overrun => "overrun",
        }
    }
}

/// Upper ends of the histogram's buckets, in microseconds, and their labels.
const BUCKETS: [(u64, &str); 14] = [
    (500, "0.0005"),
    (1_000, "0.001"),
    (2_000, "0.002"),
    (4_000, "0.004"),
    (8_000, "0.008"),
    (16_000, "0.016"),
    (32_000, "0.032"),
    (64_000, "0.064"),
    (128_000, "0.128"),
    (256_000, "0.256"),
    (512_000, "0.512"),
    (1_024_000, "1.024"),
    (4_096_000, "4.096"),
    (16_384_000, "16.384"),
];

/// What streams count as they go.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    live_events: AtomicU64,
    /// Responses by delay; the last is for those beyond all buckets.
    delays: [AtomicU64; BUCKETS.len() + 1],
    delay_micros: AtomicU64,
    catch_up_events: AtomicU64,
    catch_up_bytes: AtomicU64,
    ended: [AtomicU64; Ended::ALL.len()],
}

impl Flow {
    /// A response of a live watcher.
    pub(crate) fn live(&self, events: usize, delay: Duration) {
        let micros = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        self.live_events.fetch_add(events as u64, Ordering::Relaxed);
        self.delays[BUCKETS.partition_point(|(end, _)| *end < micros)].fetch_add(1, Ordering::Relaxed);
        self.delay_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// A response of a watcher that is catching up.
    pub(crate) fn caught_up(&self, events: usize, bytes: usize) {
        self.catch_up_events.fetch_add(events as u64, Ordering::Relaxed);
        self.catch_up_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn ended(&self, reason: Ended, watchers: usize) {
        self.ended[reason as usize].fetch_add(watchers as u64, Ordering::Relaxed);
    }

    /// Events that were sent, to live watchers and to those that caught up.
    pub(crate) fn events(&self) -> u64 {
        self.live_events.load(Ordering::Relaxed) + self.catch_up_events.load(Ordering::Relaxed)
    }

    fn report(&self) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let caught_up = count(&self.catch_up_events);
        counter!(EVENTS_TOTAL).absolute(self.events());
        counter!(CATCH_UP_EVENTS_TOTAL).absolute(caught_up);
        counter!(CATCH_UP_BYTES_TOTAL).absolute(count(&self.catch_up_bytes));
        for reason in Ended::ALL {
            counter!(WATCHERS_ENDED_TOTAL, "reason" => reason.name()).absolute(count(&self.ended[reason as usize]));
        }
        let labels = BUCKETS.iter().map(|(_, label)| *label).chain(["+Inf"]);
        let mut sum = 0;
        for (bucket, label) in self.delays.iter().zip(labels) {
            sum += count(bucket);
            counter!(format!("{DELIVERY_SECONDS}_bucket"), "le" => label).absolute(sum);
        }
        counter!(format!("{DELIVERY_SECONDS}_count")).absolute(sum);
        gauge!(format!("{DELIVERY_SECONDS}_sum")).set(Duration::from_micros(count(&self.delay_micros)).as_secs_f64());
    }
}

/// What the delivery worker reports once a second.
pub(crate) fn report(core: &Core) {
    let load = core.load(0);
    set(WATCH_STREAM_TOTAL, load.streams);
    set(WATCHER_TOTAL, load.watchers);
    set(SLOW_WATCHER_TOTAL, load.watchers_behind);
    set(PENDING_EVENTS_TOTAL, 0);
    set(STREAM_BYTES, load.held_bytes);
    set(STREAM_BYTES_MAX, load.held_bytes_max);
    set(SOCKET_BYTES, core.memory.sockets.load(Ordering::Relaxed));
    set(STREAMS_BEHIND, load.streams_behind);
    set(GROUPS, core.registry.lock().groups());
    gauge!(LAG_REVISIONS).set(u32::try_from(load.lag_revisions).unwrap_or(u32::MAX));
    gauge!(LAG_SECONDS).set(load.lag.as_secs_f64());
    for state in WatcherState::ALL {
        let watchers = u32::try_from(core.memory.watchers_in(state)).unwrap_or(u32::MAX);
        gauge!(WATCHERS, "state" => state.name()).set(watchers);
    }
    core.flow.report();
    set(LIST_STREAM_TOTAL, core.memory.lists.load(Ordering::Relaxed));
    set(LIST_BYTES, core.lists.held());
    set(LIST_BYTES_MAX, core.config.list_memory_bytes_max);
    counter!(LISTS_REFUSED_TOTAL).absolute(core.lists.refused() as u64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_counted_in_the_first_bucket_that_holds_it() {
        let flow = Flow::default();
        for (micros, bucket) in [(0, 0), (500, 0), (501, 1), (16_384_000, 13), (16_384_001, 14)] {
            flow.live(1, Duration::from_micros(micros));
            assert!(flow.delays[bucket].swap(0, Ordering::Relaxed) > 0, "{micros}");
        }
    }
}
