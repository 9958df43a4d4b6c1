//! The handle through which the gateway reads and watches.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tailwater_eventlog::{
    Alarm, AuthFacts, Background, Cursor, KeyRange, Member, MemberId, Position, Revision, Scope, Source, Term,
};
use tokio::sync::watch;

use crate::core::{Clock, Core};
use crate::delivery::{UNAVAILABLE, text};
use crate::follow::{Follower, Reached};
use crate::range::Plan;
use crate::source::RelaySource;
use crate::{
    FanoutConfig, FanoutLoad, ListQuery, ListStream, RangeAnswer, RangeQuery, ReadError, SocketShare, StreamEnd,
    WatchControl, WatchStream, metrics,
};

/// Threads that read history for streams that are behind the window.
const HISTORY_THREADS: usize = 2;

/// The facts of one moment, published together with the store's root.
#[derive(Clone, Debug, Default)]
pub struct ReadSnapshot {
    /// Everything up to here is visible.
    pub cursor: Cursor,
    /// Readers see nothing below it; 0 before the first compaction.
    pub compacted: Revision,
    /// The leader and term as the tail says.
    pub leader: Option<MemberId>,
    /// The term.
    pub term: Term,
    /// The members, sorted by id.
    pub members: Vec<Member>,
    /// The alarms that are raised.
    pub alarms: Vec<Alarm>,
    /// Users and roles.
    pub auth: Arc<AuthFacts>,
    /// "major.minor.0", empty until decided.
    pub cluster_version: String,
    /// The version that members are about to be replaced by; empty: none.
    pub downgrade: String,
}

/// Handle on a running fanout; clones share it. Its threads end with [`Fanout::stop`] or with the tail.
#[derive(Clone)]
pub struct Fanout {
    core: Arc<Core>,
    reached: watch::Receiver<Reached>,
}

impl Fanout {
    /// Starts the tail thread, which first transfers the state and then follows. Returns at once;
    /// [`Fanout::ready`] resolves when reads are possible.
    ///
    /// # Panics
    /// When the operating system can't start a thread.
    #[must_use]
    pub fn start(config: FanoutConfig, source: Arc<dyn Source>) -> Self {
        let (fanout, parts) = assemble(config, source, Box::new(Instant::now));
        let FanoutParts { core, follower } = parts;
        spawn("fanout-tail", move || follower.run());
        let shared = core.clone();
        spawn("fanout-deliver", move || {
            shared.wakeups.run(
                shared.progress_interval(),
                || shared.published.load().revision(),
                || metrics::report(&shared),
            );
        });
        let shared = core.clone();
        spawn("fanout-census", move || shared.census.run(&shared));
        let priority = match core.config.is_beside_writes {
            true => Background::HistoryBesideWrites,
            false => Background::History,
        };
        if core.config.unread_value_bytes_min.is_some() {
            // At the process's own priority: live watches wait for it.
            let shared = core.clone();
            spawn("fanout-values", move || shared.recent.run(&shared));
        }
        for _ in 0..HISTORY_THREADS {
            let shared = core.clone();
            spawn("fanout-history", move || {
                priority.lower_this_thread();
                shared.history.run(&shared);
            });
        }
        fanout
    }

    /// Waits until the state is transferred, or the fanout has stopped.
    pub async fn ready(&self) {
        let mut reached = self.reached.clone();
        // An error means that the tail thread is gone, which is an end of waiting too.
        let _ended = reached.wait_for(|reached| reached.ready || reached.stopped).await;
    }

    /// Whether the state is whole. Not before the first transfer has ended, and not while another one must be made.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let reached = self.reached.borrow();
        reached.ready && !reached.stopped
    }

    /// Ends every watch stream that is open now with UNAVAILABLE: clients resume elsewhere at their cursors.
    pub fn end_streams(&self) {
        self.core.wakeups.end(StreamEnd::Status(UNAVAILABLE, text::ELSEWHERE.into()));
    }

    /// What is visible now. Cheap: no lock, no copy.
    #[must_use]
    pub fn snapshot(&self) -> Arc<ReadSnapshot> {
        self.core.published.load().snapshot.clone()
    }

    /// Whether users and roles are still these, as [`ReadSnapshot::auth`] told them. Cheaper than a snapshot.
    #[must_use]
    pub fn is_auth(&self, auth: &Arc<AuthFacts>) -> bool {
        Arc::ptr_eq(&self.core.published.load().snapshot.auth, auth)
    }

    /// Waits until everything up to `position` is visible. Cancel safe.
    ///
    /// # Errors
    /// [`ReadError::Stopped`].
    pub async fn reach(&self, position: Position) -> Result<(), ReadError> {
        if self.reached.borrow().position < position {
            self.core.awaited.fetch_max(position.0, Ordering::Relaxed);
        }
        let mut reached = self.reached.clone();
        let seen = reached.wait_for(|reached| (reached.ready && reached.position >= position) || reached.stopped).await;
        match seen {
            Ok(reached) if reached.position >= position => Ok(()),
            _ => Err(ReadError::Stopped),
        }
    }

    /// Reads a range from one snapshot. Large or old reads run where blocking is allowed.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn range(&self, query: RangeQuery) -> Result<RangeAnswer, ReadError> {
        self.check(&query.range)?;
        let plan = Plan::new(&self.core, query)?;
        if plan.is_small(&self.core)
            && let Some(answer) = plan.read_memory(&self.core)
        {
            return answer;
        }
        let core = self.core.clone();
        // A read that panics has met a broken invariant; its caller must not go on as if the store had stopped.
        match tokio::task::spawn_blocking(move || plan.read(&core)).await {
            Ok(answer) => answer,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(ReadError::Stopped),
        }
    }

    /// As [`Fanout::range`], at once on this thread, also where that means to read storage.
    ///
    /// # Errors
    /// See [`ReadError`].
    #[doc(hidden)]
    pub fn range_here(&self, query: RangeQuery) -> Result<RangeAnswer, ReadError> {
        self.check(&query.range)?;
        Plan::new(&self.core, query)?.read(&self.core)
    }

    /// Begins a list that is read piece by piece at one revision. Call it after [`Fanout::ready`], and poll it on a tokio
    /// runtime.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn list(&self, query: ListQuery) -> Result<ListStream, ReadError> {
        self.check(&query.range)?;
        ListStream::new(self.core.clone(), query)
    }

    /// Bytes that big lists hold while they are sent.
    #[must_use]
    pub fn list_bytes(&self) -> usize {
        self.core.lists.held()
    }

    /// Opens a watch stream: the control half takes requests, the stream half yields gRPC frames. Dropping either
    /// ends it and frees everything that it held. Call it after [`Fanout::ready`].
    #[must_use]
    pub fn open_stream(&self) -> (WatchControl, WatchStream) {
        crate::watch::open(&self.core, None)
    }

    /// As [`Fanout::open_stream`], for a client whose address [`Fanout::load`] shows while it is slow.
    #[must_use]
    pub fn open_stream_for(&self, peer: Option<SocketAddr>) -> (WatchControl, WatchStream) {
        crate::watch::open(&self.core, peer)
    }

    /// The send buffer of a new connection of a client, counted towards the bound of what is held for clients.
    #[must_use]
    pub fn share_for_socket(&self) -> SocketShare {
        SocketShare::take(&self.core)
    }

    /// Ends every stream of a connection, so that its client resumes elsewhere.
    pub fn end_streams_of(&self, peer: SocketAddr) {
        self.core.wakeups.end_streams_of(peer, &StreamEnd::Status(UNAVAILABLE, text::STOPPED.into()));
    }

    /// What this fanout carries now, with at most `slowest_max` of the streams that are furthest behind. Costs a short
    /// look at every stream: for once a second, not for every request. [`FanoutLoad::prefixes`] is of an earlier second,
    /// and empty when nobody had asked before.
    #[must_use]
    pub fn load(&self, slowest_max: usize) -> FanoutLoad {
        self.core.load(slowest_max)
    }

    /// Bytes that watch streams hold for their clients, chunks that they share included; the metric is
    /// [`metrics::STREAM_BYTES`]. Stays within [`FanoutConfig::watch_memory_bytes_max`], but for an event that is larger
    /// than a piece: a stream may hold one such event by reference.
    #[must_use]
    pub fn stream_bytes(&self) -> usize {
        self.core.memory.bytes()
    }

    /// What this fanout holds: reads outside of it fail with [`ReadError::OutOfScope`], and a watcher outside of it ends
    /// its stream with UNAVAILABLE.
    #[must_use]
    pub fn scope(&self) -> &Scope {
        &self.core.scope
    }

    /// This fanout's memory as the source of one reader, for a relay. [`FanoutConfig::relay_bytes_max`] says how far
    /// behind a reader may be that follows without the window. The reader's calls may block its thread; the tail thread
    /// never waits for them.
    ///
    /// A fanout's own history begins where its transfer ended: what a reader asks below it is read through from this
    /// fanout's source.
    #[must_use]
    pub fn source(&self) -> Arc<dyn Source> {
        Arc::new(RelaySource::new(self.core.clone()))
    }

    fn check(&self, range: &KeyRange) -> Result<(), ReadError> {
        if !self.core.is_serving() {
            return Err(ReadError::Stopped);
        }
        if self.core.scope.covers(range) { Ok(()) } else { Err(ReadError::OutOfScope) }
    }

    /// Stops following and ends every stream.
    pub fn stop(&self) {
        self.core.stop();
    }
}

/// The work of a fanout whose threads were not started: a simulation gives each of them its turns on a thread of its own
/// choosing instead.
pub struct FanoutParts {
    core: Arc<Core>,
    follower: Follower,
}

impl FanoutParts {
    /// A turn of the tail thread, which waits up to `timeout` for frames. `false` when the fanout has stopped or its tail
    /// has ended.
    pub fn step_tail(&mut self, timeout: Duration) -> bool {
        self.follower.turn(timeout)
    }

    /// A turn of the delivery worker.
    pub fn step_deliver(&self) {
        let core = &self.core;
        core.wakeups.step(core.now(), core.progress_interval(), || core.published.load().revision());
    }

    /// A turn of a history thread: one read. `false` when none waits.
    pub fn step_history(&self) -> bool {
        self.core.recent.step(&self.core) || self.core.history.step(&self.core)
    }
}

/// Puts a fanout together; nothing runs yet.
#[must_use]
pub fn assemble(config: FanoutConfig, source: Arc<dyn Source>, clock: Clock) -> (Fanout, FanoutParts) {
    let core = Arc::new(Core::new(config, source, clock));
    let (sender, reached) = watch::channel(Reached::default());
    let follower = Follower::new(core.clone(), sender);
    (Fanout { core: core.clone(), reached }, FanoutParts { core, follower })
}

/// Every thread of a fanout starts here.
fn spawn(name: &str, run: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    // Nobody joins them: they hold nothing that must be flushed, and end by themselves once the core is stopped.
    drop(thread.expect("the operating system can start a thread"));
}
