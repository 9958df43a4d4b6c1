//! What the threads and streams of one fanout share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use tailwater_eventlog::{Scope, Source, Tail};

use crate::admission::ListMemory;
use crate::census::Census;
use crate::commit_times::CommitTimes;
use crate::delivery::{UNAVAILABLE, text};
use crate::encode::NodeIds;
use crate::history::shared::SharedReads;
use crate::history::{HistoryQueue, HistoryRequest, HistorySlot};
use crate::inbox::Inbox;
use crate::metrics::Flow;
use crate::pages::Pages;
use crate::registry::Registry;
use crate::store::Published;
use crate::wakeups::Wakeups;
use crate::window::Window;
use crate::{FanoutConfig, StreamEnd};

/// The smallest piece that a stream hands out under memory pressure.
const CHUNK_BYTES_MIN: usize = 1 << 10;

/// Shared by reference; each part says who writes it.
pub(crate) struct Core {
    pub(crate) config: FanoutConfig,
    pub(crate) source: Arc<dyn Source>,
    /// Written by the tail thread.
    pub(crate) published: ArcSwap<Published>,
    /// Written by the tail thread.
    pub(crate) window: Window,
    /// Locked by the tail thread while it matches, by streams while a watcher comes or goes.
    pub(crate) registry: Mutex<Registry>,
    pub(crate) wakeups: Wakeups,
    /// Reads for streams that are behind the window.
    pub(crate) history: HistoryQueue,
    /// Reads for streams within it, which lack no more than previous values.
    pub(crate) recent: HistoryQueue,
    /// What both have read.
    pub(crate) reads: SharedReads,
    pub(crate) memory: StreamMemory,
    pub(crate) flow: Flow,
    /// Noted by the tail thread.
    pub(crate) times: CommitTimes,
    pub(crate) lists: ListMemory,
    pub(crate) pages: Pages,
    /// Written by a thread of its own.
    pub(crate) census: Census,
    /// What this fanout holds.
    pub(crate) scope: Scope,
    /// What readers of this fanout follow; written by the tail thread, there once history has begun.
    pub(crate) ring: ArcSwapOption<Tail>,
    /// The highest position that a read has waited for.
    pub(crate) awaited: AtomicU64,
    pub(crate) stopped: AtomicBool,
    clock: Clock,
}

/// Where the time comes from: the operating system, or a simulation.
pub type Clock = Box<dyn Fn() -> Instant + Send + Sync>;

impl Core {
    pub(crate) fn new(config: FanoutConfig, source: Arc<dyn Source>, clock: Clock) -> Self {
        Self {
            history: HistoryQueue::default(),
            recent: HistoryQueue::default(),
            reads: SharedReads::new(config.history_bytes_max),
            scope: Scope::new(&config.ranges),
            ring: ArcSwapOption::empty(),
            awaited: AtomicU64::new(0),
            source,
            published: ArcSwap::default(),
            window: Window::default(),
            registry: Mutex::default(),
            wakeups: Wakeups::default(),
            memory: StreamMemory::default(),
            flow: Flow::default(),
            times: CommitTimes::default(),
            census: Census::default(),
            lists: ListMemory::new(config.list_memory_bytes_max),
            pages: Pages::default(),
            stopped: AtomicBool::new(false),
            clock,
            config,
        }
    }

    pub(crate) fn now(&self) -> Instant {
        (self.clock)()
    }

    /// Interval of progress notifications.
    pub(crate) fn progress_interval(&self) -> Duration {
        self.config.progress_interval.max(Duration::from_millis(100))
    }

    pub(crate) fn ids(&self) -> NodeIds {
        NodeIds { cluster_id: self.config.cluster_id, member_id: self.config.member_id }
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Whether reads and streams are answered.
    pub(crate) fn is_serving(&self) -> bool {
        self.published.load().serves && !self.is_stopped()
    }

    /// Queues a read of history; see [`HistoryQueue::submit`].
    pub(crate) fn read_history(&self, request: HistoryRequest, inbox: &Arc<Inbox>) -> Arc<HistorySlot> {
        if request.is_recent { self.recent.submit(request, inbox) } else { self.history.submit(request, inbox) }
    }

    /// Ends every stream and thread.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.wakeups.end(StreamEnd::Status(UNAVAILABLE, text::STOPPED.into()));
        self.wakeups.stop();
        self.history.stop();
        self.recent.stop();
        if let Some(ring) = &*self.ring.load() {
            ring.close();
        }
    }

    /// Bytes of the next piece of a stream.
    pub(crate) fn chunk_bytes(&self) -> usize {
        let most = self.config.stream_chunk_bytes.max(CHUNK_BYTES_MIN);
        let quarter =
            self.config.watch_memory_bytes_max.saturating_sub(self.memory.sockets.load(Ordering::Relaxed)) / 4;
        let held = self.memory.held.load(Ordering::Relaxed);
        if held <= quarter {
            return most;
        }
        // A part of what is left, so that however many take theirs and stall, it is not used up. Shared chunks have the
        // last quarter.
        let streams = self.memory.streams.load(Ordering::Relaxed) + self.memory.lists.load(Ordering::Relaxed);
        let streams = streams.max(1);
        ((3 * quarter).saturating_sub(held) / streams).clamp(CHUNK_BYTES_MIN, most)
    }
}

/// What watch streams and lists in pieces hold for their clients.
#[derive(Debug, Default)]
pub(crate) struct StreamMemory {
    pub(crate) streams: AtomicUsize,
    /// Lists that are sent in pieces.
    pub(crate) lists: AtomicUsize,
    /// The pieces that streams handed out last, and those that must follow.
    pub(crate) held: AtomicUsize,
    /// Chunks that groups share; written by the tail thread.
    pub(crate) shared: AtomicUsize,
    /// What the operating system may hold for connections of clients.
    pub(crate) sockets: AtomicUsize,
    /// By [`WatcherState`].
    watchers: [AtomicUsize; WatcherState::ALL.len()],
}

/// Where a watcher stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WatcherState {
    /// It waits until its start is published.
    Future,
    /// It reads the window or history of its own and has not been live yet.
    CatchingUp,
    /// It has everything that is published, or gets it from what its group shares.
    Live,
    /// It was live, but its client reads too slowly: it catches up again.
    Slow,
}

impl WatcherState {
    pub(crate) const ALL: [Self; 4] = [Self::Future, Self::CatchingUp, Self::Live, Self::Slow];

    /// As a label.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Future => "future",
            Self::CatchingUp => "catching_up",
            Self::Live => "live",
            Self::Slow => "slow",
        }
    }

    /// Whether it reads the window or history of its own.
    pub(crate) fn is_behind(self) -> bool {
        matches!(self, Self::CatchingUp | Self::Slow)
    }
}

impl StreamMemory {
    /// Everything that is held.
    pub(crate) fn bytes(&self) -> usize {
        self.held.load(Ordering::Relaxed) + self.shared.load(Ordering::Relaxed)
    }

    /// Watchers in a state.
    pub(crate) fn watchers_in(&self, state: WatcherState) -> usize {
        self.watchers[state as usize].load(Ordering::Relaxed)
    }

    /// All watchers, and those that are behind.
    pub(crate) fn watchers(&self) -> (usize, usize) {
        let count =
            |states: &mut dyn Iterator<Item = &WatcherState>| states.map(|state| self.watchers_in(*state)).sum();
        let mut all = WatcherState::ALL.iter();
        (count(&mut all), count(&mut WatcherState::ALL.iter().filter(|state| state.is_behind())))
    }

    pub(crate) fn watcher_added(&self, state: WatcherState) {
        self.watchers[state as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn watcher_removed(&self, state: WatcherState) {
        self.watchers[state as usize].fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn watcher_moved(&self, from: WatcherState, to: WatcherState) {
        if from != to {
            self.watcher_added(to);
            self.watcher_removed(from);
        }
    }
}
