//! A source in another process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tailwater_eventlog::{
    Cursor, Fact, Frame, History, HistoryChunk, HistoryError, HistoryPoint, KeyRange, LiveChunk, MemberId, Position,
    Revision, Source, SourceError, StateChunk, StateQuery, TailError,
};
use tokio::runtime::{Builder, Handle, Runtime};

use super::description::NodeDescription;
use super::server::CoreWord;
use super::uplink::{Uplink, Wishes};
use crate::LinkConfig;

mod following;
mod reading;
mod transferring;

use following::Following;
use transferring::Transferring;

/// How a tail in another process is followed.
#[derive(Clone, Debug)]
pub struct RemoteSourceConfig {
    /// Where sources are, the preferred first. At least one. The leader, one that is not up to date and one that knows no
    /// leader are passed over for others.
    pub urls: Vec<String>,
    /// This node's id: a source whose path to the core leads through it is left.
    pub reader_id: MemberId,
    /// Of this node: a source of another cluster is not followed. 0: not checked.
    pub cluster_id: u64,
    /// What is wanted; none: every key. Not overlapping.
    pub ranges: Vec<KeyRange>,
    /// What this node says of itself where it reads: name, roles and URLs. Its id and ranges are those above.
    pub announced: NodeDescription,
    /// A source without a word for so long is left, and a history read tries for so long. Default 3 s.
    pub silence_max: Duration,
    /// A source that heard of the core longer ago, or knew no leader for so long, is left for another. Default 3 s.
    pub core_age_max: Duration,
    /// A transfer or history read without a message for so long is broken. Default 60 s: they wait their turn.
    pub bulk_silence_max: Duration,
    /// Connections.
    pub link: LinkConfig,
}

impl RemoteSourceConfig {
    /// With the defaults.
    #[must_use]
    pub fn new(urls: Vec<String>, reader_id: MemberId) -> Self {
        Self {
            urls,
            reader_id,
            cluster_id: 0,
            ranges: Vec::new(),
            announced: NodeDescription::default(),
            silence_max: Duration::from_secs(3),
            core_age_max: Duration::from_secs(3),
            bulk_silence_max: Duration::from_secs(60),
            link: LinkConfig::default(),
        }
    }
}

/// Follows the tail at one of several sources, and goes to another one at its cursor when that one fails. While none can
/// be reached its reader gets nothing; it is not told that anything ended. One reader's calls only, from threads that
/// may block: not the workers of an asynchronous runtime.
pub struct RemoteSource {
    /// The tail thread's.
    following: Mutex<Following>,
    /// The tail thread's.
    transferring: Mutex<Transferring>,
    /// Dropped last: streams are dropped while their runtime lives.
    shared: Shared,
}

/// Ends in the background, since the last reference may be dropped where blocking is not allowed.
struct OwnRuntime(Option<Runtime>);

impl OwnRuntime {
    fn handle(&self) -> &Handle {
        self.0.as_ref().expect("it is taken only when dropped").handle()
    }
}

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

struct Shared {
    config: RemoteSourceConfig,
    /// Before the runtime that its task runs on.
    uplink: Uplink,
    runtime: OwnRuntime,
    /// The last word of the core, and when it came.
    word: Mutex<Option<(CoreWord, Instant)>>,
    transferred_rows: AtomicU64,
    transferred_bytes: AtomicU64,
}

impl RemoteSource {
    /// Connects in the background until it is dropped, on a thread of its own: the tail does not wait behind clients.
    ///
    /// # Errors
    /// The thread can't be started.
    ///
    /// # Panics
    /// When no source is given.
    pub fn new(config: RemoteSourceConfig) -> std::io::Result<Self> {
        assert!(!config.urls.is_empty(), "a remote source needs the URL of one");
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("tail-remote").enable_all().build()?;
        let wishes = Wishes {
            reader_id: config.reader_id,
            cluster_id: config.cluster_id,
            ranges: config.ranges.clone(),
            core_age_max: config.core_age_max,
            answer_max: config.silence_max,
        };
        let uplink = Uplink::start(runtime.handle(), config.urls.clone(), config.link.clone(), wishes);
        let shared = Shared {
            config,
            uplink,
            runtime: OwnRuntime(Some(runtime)),
            word: Mutex::new(None),
            transferred_rows: AtomicU64::new(0),
            transferred_bytes: AtomicU64::new(0),
        };
        Ok(Self { shared, following: Mutex::default(), transferring: Mutex::default() })
    }

    /// What this node knows of the core, for its own readers: the path to its source, itself last. `None` before a
    /// source was heard.
    #[must_use]
    pub fn core_word(&self) -> Option<CoreWord> {
        self.shared.word.lock().as_ref().map(|(word, at)| {
            let mut path = word.path.clone();
            path.push(self.shared.config.reader_id.0);
            CoreWord { path, age: word.age + at.elapsed() }
        })
    }

    /// A read has waited long for `position`: when the source of now has said that it is not there, and there are others,
    /// it is left.
    pub fn leave_if_behind(&self, position: Position) {
        if self.shared.uplink.has_others() {
            self.following.lock().leave_if_behind(&self.shared, position);
        }
    }

    /// Since a source was last heard. `None` before one was.
    #[must_use]
    pub fn silence(&self) -> Option<Duration> {
        self.shared.word.lock().as_ref().map(|(_, at)| at.elapsed())
    }

    /// Rows of the transfer that was begun last, and their bytes, as far as they have come.
    #[must_use]
    pub fn transferred(&self) -> (u64, u64) {
        (self.shared.transferred_rows.load(Ordering::Relaxed), self.shared.transferred_bytes.load(Ordering::Relaxed))
    }
}

impl History for RemoteSource {
    fn read(
        &self,
        ranges: &[KeyRange],
        from: HistoryPoint,
        to: Revision,
        with_prev: bool,
        bytes_max: usize,
    ) -> Result<HistoryChunk, HistoryError> {
        let read = reading::Read { ranges, from, to, with_prev, bytes_max };
        self.shared.runtime.handle().block_on(reading::read(&self.shared, &read))
    }

    fn state_at(&self, query: &StateQuery) -> Result<StateChunk, HistoryError> {
        self.shared.runtime.handle().block_on(reading::state_at(&self.shared, query))
    }
}

impl Source for RemoteSource {
    fn ranges(&self) -> &[KeyRange] {
        &self.shared.config.ranges
    }

    fn is_awaited(&self, position: Position) {
        self.leave_if_behind(position);
    }

    fn transfer_begin(&self) -> Result<(Cursor, Vec<Fact>), SourceError> {
        let mut transferring = self.transferring.lock();
        self.shared.runtime.handle().block_on(transferring.begin(&self.shared))
    }

    fn transfer_end(&self) -> Revision {
        self.transferring.lock().reached()
    }

    fn transfer(
        &self,
        range: &KeyRange,
        resume_after: Option<&Bytes>,
        _bytes_max: usize,
    ) -> Result<LiveChunk, SourceError> {
        let mut transferring = self.transferring.lock();
        self.shared.runtime.handle().block_on(transferring.chunk(&self.shared, range, resume_after))
    }

    fn follow(&self, cursor: Cursor, _bytes_max: usize, timeout: Duration) -> Result<Vec<Arc<Frame>>, TailError> {
        let mut following = self.following.lock();
        let frames = following.frames(&self.shared, cursor);
        self.shared.runtime.handle().block_on(async {
            match tokio::time::timeout(timeout, frames).await {
                Ok(frames) => frames,
                // What was on its way is kept for the next call.
                Err(_) => Ok(Vec::new()),
            }
        })
    }
}
