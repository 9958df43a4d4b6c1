//! The way to one peer: a session per lane, opened when there is something to send, and opened again when it broke.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use parking_lot::Mutex;
use tailwater_api::peer::peer_client::PeerClient;
use tailwater_eventlog::MemberId;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tonic::Status;

use super::lane::{Lane, LaneKind};
use super::{Inner, hex};
use crate::backoff::Backoff;
use crate::endpoint::{ConnectError, connect_for_session};
use crate::hello::RefusalReason;
use crate::metrics as names;

/// How long a peer may take to accept a hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// What a peer may say of where it is.
const HEARD_URLS_MAX: usize = 16;
const URL_BYTES_MAX: usize = 1024;

/// A link to one peer. Dropping it ends its sessions.
#[derive(Debug)]
pub(super) struct Link {
    shared: Arc<LinkShared>,
    tasks: Vec<AbortHandle>,
}

/// What the tasks of a link share.
pub(super) struct LinkShared {
    inner: Arc<Inner>,
    to: MemberId,
    urls: Vec<String>,
    /// As the peer itself has said; tried after the others.
    heard: Mutex<Vec<String>>,
    urgent: Arc<Lane>,
    append: Arc<Lane>,
    /// Sessions that are open now.
    sessions: AtomicUsize,
    /// When the first of the sessions came up that were there without a break since.
    up_since: Mutex<Option<Instant>>,
    /// The last refusal that was logged.
    refused: Mutex<Option<RefusalReason>>,
    /// Whether it was logged that the peer can't be reached.
    is_down_told: AtomicBool,
    counts: Counts,
}

impl std::fmt::Debug for LinkShared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkShared").field("to", &self.to).field("urls", &self.urls).finish_non_exhaustive()
    }
}

struct Counts {
    sent_bytes: Counter,
    failures: Counter,
    disconnected: Counter,
    active: Gauge,
    known: Gauge,
    round_trip: Histogram,
    queue_bytes: [Gauge; 2],
}

impl Counts {
    fn new(local: MemberId, to: MemberId) -> Self {
        let (local, to) = (hex(local), hex(to));
        let queue = |lane: LaneKind| gauge!(names::PEER_QUEUE_BYTES, "To" => to.clone(), "lane" => lane.name());
        Self {
            sent_bytes: counter!(names::SENT_BYTES, "To" => to.clone()),
            failures: counter!(names::SENT_FAILURES, "To" => to.clone()),
            disconnected: counter!(names::DISCONNECTED_PEERS, "Local" => local.clone(), "Remote" => to.clone()),
            active: gauge!(names::ACTIVE_PEERS, "Local" => local.clone(), "Remote" => to.clone()),
            known: gauge!(names::KNOWN_PEERS, "Local" => local, "Remote" => to.clone()),
            round_trip: histogram!(names::ROUND_TRIP_SECONDS, "To" => to.clone()),
            queue_bytes: [queue(LaneKind::Urgent), queue(LaneKind::Append)],
        }
    }
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("{}", .0.message())]
    Status(#[from] Status),
    #[error("the other side ended the stream")]
    Ended,
    #[error("nothing was acknowledged for too long")]
    Silent,
}

impl Link {
    pub(super) fn start(inner: Arc<Inner>, to: MemberId, urls: Vec<String>) -> Self {
        let config = &inner.config;
        let shared = Arc::new(LinkShared {
            to,
            urls,
            heard: Mutex::default(),
            urgent: Arc::new(Lane::new(config.urgent_bytes_max)),
            append: Arc::new(Lane::new(config.append_bytes_max)),
            sessions: AtomicUsize::new(0),
            up_since: Mutex::default(),
            refused: Mutex::new(None),
            is_down_told: AtomicBool::new(false),
            counts: Counts::new(config.member_id, to),
            inner: inner.clone(),
        });
        shared.counts.known.set(1.0);
        shared.counts.active.set(0.0);
        let tasks = [LaneKind::Urgent, LaneKind::Append].map(|kind| {
            let running = run(shared.clone(), kind);
            inner.handle.spawn(running).abort_handle()
        });
        Self { shared, tasks: tasks.into() }
    }

    /// Where the peer is, as the group knows it.
    pub(super) fn urls(&self) -> &Vec<String> {
        &self.shared.urls
    }

    /// Where the peer is, as it says itself.
    pub(super) fn heard_urls(&self, urls: &[String]) {
        let is_new = |url: &&String| !self.shared.urls.contains(url) && url.len() <= URL_BYTES_MAX;
        *self.shared.heard.lock() = urls.iter().filter(is_new).take(HEARD_URLS_MAX).cloned().collect();
    }

    /// Queues a message; one that finds no room is dropped, and raft is told so that it stops guessing ahead.
    pub(super) fn send(&self, message: bytes::Bytes) {
        let kind = LaneKind::of(&message);
        if message.len() > self.shared.inner.config.message_bytes_max {
            tracing::error!(to = %self.shared.to, bytes = message.len(), "a raft message is too large for the peer");
            self.shared.counts.failures.increment(1);
            return;
        }
        if !self.shared.lane(kind).push(message) {
            self.shared.counts.failures.increment(1);
            self.shared.inner.report_unreachable(self.shared.to);
        }
        self.shared.show_queue(kind);
    }

    pub(super) fn is_active(&self) -> bool {
        self.shared.sessions.load(Ordering::Relaxed) > 0
    }

    /// How long a connection has been up, be it one after another; `None` when there is none.
    pub(super) fn active_for(&self) -> Option<Duration> {
        let since = *self.shared.up_since.lock();
        since.filter(|_| self.is_active()).map(|since| since.elapsed())
    }

    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.shared.urgent.held_bytes() + self.shared.append.held_bytes()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        self.shared.urgent.reset();
        self.shared.append.reset();
        self.shared.counts.known.set(0.0);
        self.shared.counts.active.set(0.0);
        self.shared.counts.queue_bytes.iter().for_each(|gauge| gauge.set(0.0));
    }
}

impl LinkShared {
    fn lane(&self, kind: LaneKind) -> &Arc<Lane> {
        match kind {
            LaneKind::Urgent => &self.urgent,
            LaneKind::Append => &self.append,
        }
    }

    fn show_queue(&self, kind: LaneKind) {
        let gauge = &self.counts.queue_bytes[usize::from(kind == LaneKind::Append)];
        gauge.set(self.lane(kind).held_bytes() as f64);
    }

    /// The URL of an attempt: those that the group knows and those that the peer has said, in turn.
    fn url(&self, attempt: usize) -> Option<String> {
        let heard = self.heard.lock();
        let count = self.urls.len() + heard.len();
        self.urls.iter().chain(heard.iter()).nth(attempt % count.max(1)).cloned()
    }

    /// Logs why the link is down: once, until it was up again or another reason shows.
    fn report(&self, kind: LaneKind, url: &str, broken: &Broken, was_up: bool) {
        let refusal = match broken {
            Broken::Status(status) => RefusalReason::of(status),
            _ => None,
        };
        let Some(refusal) = refusal else {
            if was_up {
                tracing::warn!(to = %self.to, url, lane = kind.name(), %broken, "lost the link to a peer");
            } else if !self.is_down_told.swap(true, Ordering::Relaxed) {
                tracing::warn!(to = %self.to, url, %broken, "a peer can't be reached");
            } else {
                tracing::debug!(to = %self.to, url, lane = kind.name(), %broken, "a peer can't be reached");
            }
            return;
        };
        let is_new = self.refused.lock().replace(refusal) != Some(refusal);
        if is_new {
            tracing::error!(to = %self.to, url, reason = %refusal, "a peer refuses this member");
        }
        if refusal == RefusalReason::Removed {
            self.inner.sink().into_iter().for_each(|sink| sink.report_removed());
        }
    }
}

/// Keeps one lane's session while the link lives. A URL that served is kept; after one that did not, the next is tried.
async fn run(link: Arc<LinkShared>, kind: LaneKind) {
    let lane = link.lane(kind).clone();
    let (first, longest) = link.inner.config.link.backoff;
    let mut backoff = Backoff::new(first, longest);
    let mut attempt = 0_usize;
    loop {
        lane.has_work().await;
        if let Some(url) = link.url(attempt) {
            let mut is_up = None;
            let broken = match session(&link, kind, &url, &mut is_up).await {
                Ok(never) => match never {},
                Err(broken) => broken,
            };
            let was_up = is_up.take().is_some();
            match was_up {
                true => backoff.reset(),
                false => attempt = attempt.wrapping_add(1),
            }
            link.report(kind, &url, &broken, was_up);
        }
        lane.reset();
        link.show_queue(kind);
        link.counts.failures.increment(1);
        link.inner.report_unreachable(link.to);
        tokio::time::sleep(backoff.pause()).await;
    }
}

/// A session that is up, for as long as it is kept.
struct Up<'a>(&'a LinkShared);

impl<'a> Up<'a> {
    fn new(link: &'a LinkShared) -> Self {
        let mut up_since = link.up_since.lock();
        if link.sessions.fetch_add(1, Ordering::Relaxed) == 0 {
            *up_since = Some(Instant::now());
        }
        link.counts.active.set(1.0);
        drop(up_since);
        Self(link)
    }
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        if self.0.sessions.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.counts.active.set(0.0);
            self.0.counts.disconnected.increment(1);
        }
    }
}

enum Never {}

/// One connection, from the hello until it breaks.
async fn session<'a>(
    link: &'a LinkShared,
    kind: LaneKind,
    url: &str,
    is_up: &mut Option<Up<'a>>,
) -> Result<Never, Broken> {
    let config = &link.inner.config;
    let lane = link.lane(kind);
    // The guard cuts the connection however the session ends.
    let (channel, _cut) = connect_for_session(url, &config.link).await?;
    let outgoing = lane.begin(link.inner.greeter.hello(link.to), config.batch_bytes_max);
    let mut client = PeerClient::new(channel).max_encoding_message_size(usize::MAX);
    let answer = tokio::time::timeout(config.ack_timeout.min(HELLO_TIMEOUT), client.exchange(outgoing)).await;
    let mut acks = answer.map_err(|_| Broken::Silent)??.into_inner();
    tracing::info!(to = %link.to, url, lane = kind.name(), "established the link to a peer");
    *is_up = Some(Up::new(link));
    *link.refused.lock() = None;
    link.is_down_told.store(false, Ordering::Relaxed);
    lane.open();
    let mut counted = 0;
    loop {
        // Checked as often as something could have become too old; a new batch may start its wait meanwhile.
        let overdue = lane.silent_since().unwrap_or_else(Instant::now) + config.ack_timeout;
        let ack = tokio::select! {
            ack = acks.message() => ack?.ok_or(Broken::Ended)?,
            () = tokio::time::sleep_until(overdue) => match lane.silent_since() {
                Some(since) if since + config.ack_timeout <= Instant::now() => return Err(Broken::Silent),
                _ => continue,
            },
        };
        if let Some(round_trip) = lane.acknowledge(ack.received_bytes, Instant::now())
            && kind == LaneKind::Urgent
        {
            link.counts.round_trip.record(round_trip);
        }
        link.counts.sent_bytes.increment(ack.received_bytes.saturating_sub(counted));
        counted = counted.max(ack.received_bytes);
        link.show_queue(kind);
    }
}
