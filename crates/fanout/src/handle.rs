//! The handle through which the gateway reads and watches.

use std::sync::Arc;
use std::time::Duration;

use tailwater_eventlog::{Alarm, AuthFacts, Cursor, Member, MemberId, Position, Revision, Source, Term};
use tokio::sync::watch;

use crate::core::Core;
use crate::follow::{Follower, Reached};
use crate::range::Plan;
use crate::{FanoutConfig, RangeAnswer, RangeQuery, ReadError, WatchControl, WatchStream, metrics};

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
    pub auth: AuthFacts,
    /// "major.minor.0", empty until decided.
    pub cluster_version: String,
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
        let interval = config.progress_interval.max(Duration::from_millis(100));
        let core = Arc::new(Core::new(config, source));
        let (sender, reached) = watch::channel(Reached::default());
        let follower = Follower::new(core.clone(), sender);
        spawn("fanout-tail", move || follower.run());
        let shared = core.clone();
        spawn("fanout-deliver", move || {
            shared.wakeups.run(
                interval,
                || shared.published.load().revision(),
                || metrics::streams(&shared.stream_metrics()),
            );
        });
        for _ in 0..HISTORY_THREADS {
            let shared = core.clone();
            spawn("fanout-history", move || shared.history.run(&*shared.source));
        }
        Self { core, reached }
    }

    /// Waits until the state is transferred, or the fanout has stopped.
    pub async fn ready(&self) {
        let mut reached = self.reached.clone();
        // An error means that the tail thread is gone, which is an end of waiting too.
        let _ended = reached.wait_for(|reached| reached.ready || reached.stopped).await;
    }

    /// What is visible now. Cheap: no lock, no copy.
    #[must_use]
    pub fn snapshot(&self) -> Arc<ReadSnapshot> {
        self.core.published.load().snapshot.clone()
    }

    /// Waits until everything up to `position` is visible. Cancel safe.
    ///
    /// # Errors
    /// [`ReadError::Stopped`].
    pub async fn reach(&self, position: Position) -> Result<(), ReadError> {
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
        if self.core.is_stopped() {
            return Err(ReadError::Stopped);
        }
        let plan = Plan::new(&self.core, query)?;
        if plan.is_small(&self.core)
            && let Some(answer) = plan.from_memory(&self.core)
        {
            return Ok(answer);
        }
        let core = self.core.clone();
        // A read that panics has met a broken invariant; its caller must not go on as if the store had stopped.
        match tokio::task::spawn_blocking(move || plan.read(&core)).await {
            Ok(answer) => answer,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(ReadError::Stopped),
        }
    }

    /// Opens a watch stream: the control half takes requests, the stream half yields gRPC frames. Dropping either
    /// ends it and frees everything that it held. Call it after [`Fanout::ready`].
    #[must_use]
    pub fn open_stream(&self) -> (WatchControl, WatchStream) {
        crate::watch::open(&self.core)
    }

    /// Stops following and ends every stream.
    pub fn stop(&self) {
        self.core.stop();
    }
}

/// Every thread of a fanout starts here.
fn spawn(name: &str, run: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    // Nobody joins them: they hold nothing that must be flushed, and end by themselves once the core is stopped.
    drop(thread.expect("the operating system can start a thread"));
}
