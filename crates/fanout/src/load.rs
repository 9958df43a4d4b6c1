//! What a fanout carries now, for whoever looks at it.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tailwater_eventlog::{KeyRange, Revision};

use crate::PrefixLoad;
use crate::core::Core;
use crate::watch::Shared;

/// What a fanout carries. Each figure is right for a moment of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FanoutLoad {
    /// Open watch streams.
    pub streams: usize,
    /// Watchers on them.
    pub watchers: usize,
    /// Those that read the window or history of their own.
    pub watchers_behind: usize,
    /// Bytes that streams hold for their clients.
    pub held_bytes: usize,
    /// The bound of `held_bytes`.
    pub held_bytes_max: usize,
    /// Bytes of recent events in memory.
    pub window_bytes: usize,
    /// Streams that have yet to be given something.
    pub streams_behind: usize,
    /// Revisions that the slowest stream has yet to be given.
    pub lag_revisions: u64,
    /// How long ago the first of them was applied, about.
    pub lag: Duration,
    /// Live keys.
    pub keys: usize,
    /// Events that were sent to watchers since the start.
    pub events: u64,
    /// The streams that are furthest behind, the furthest first.
    pub slowest: Vec<StreamLoad>,
    /// Where most watchers look, the most first: at most 16 prefixes.
    pub prefixes: Vec<PrefixLoad>,
}

/// A watch stream that is behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamLoad {
    /// The client, where it is known.
    pub peer: Option<SocketAddr>,
    /// Of its watcher that is furthest behind.
    pub range: KeyRange,
    /// Revisions that it has yet to be given.
    pub backlog_revisions: u64,
    /// Bytes held for it.
    pub held_bytes: usize,
}

/// Revisions from `oldest`, the first that is still needed, up to `published`.
pub(crate) fn backlog(oldest: Revision, published: Revision) -> u64 {
    u64::try_from(published.0 - oldest.0 + 1).unwrap_or(0)
}

impl Core {
    /// What is carried now, with at most `slowest_max` streams one by one.
    pub(crate) fn load(&self, slowest_max: usize) -> FanoutLoad {
        let published = self.published.load_full();
        let mut behind = self.wakeups.behind();
        behind.sort_unstable_by_key(|(oldest, _)| *oldest);
        let lag_revisions = behind.first().map_or(0, |(oldest, _)| backlog(*oldest, published.revision()));
        let (watchers, watchers_behind) = self.memory.watchers();
        let one = |(oldest, shared): &(Revision, _)| stream_load(*oldest, published.revision(), shared);
        FanoutLoad {
            streams: self.memory.streams.load(Ordering::Relaxed),
            watchers,
            watchers_behind,
            held_bytes: self.memory.bytes(),
            held_bytes_max: self.config.watch_memory_bytes_max,
            window_bytes: self.window.bytes(),
            streams_behind: behind.len(),
            lag_revisions,
            lag: behind.first().map_or(Duration::ZERO, |(oldest, _)| self.times.since(*oldest, self.now())),
            keys: published.keys.live_len(),
            events: self.flow.events(),
            slowest: behind.iter().filter_map(one).take(slowest_max).collect(),
            // The gauges, which are set every second, show none and ask for none.
            prefixes: if slowest_max == 0 { Vec::new() } else { self.census.prefixes() },
        }
    }
}

/// `None` when the stream has caught up or ended meanwhile.
fn stream_load(oldest: Revision, published: Revision, shared: &std::sync::Weak<Shared>) -> Option<StreamLoad> {
    let shared = shared.upgrade()?;
    let range = shared.furthest_behind()?;
    let (peer, held_bytes) = (shared.peer, shared.held_bytes());
    Some(StreamLoad { peer, range, backlog_revisions: backlog(oldest, published), held_bytes })
}
