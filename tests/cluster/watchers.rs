//! Watchers that resume where their stream broke, and note everything that they were sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use anyhow::Context;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::watch_request::RequestUnion;
use tailwater_api::mvccpb::Event;
use tailwater_tests::cluster::{Cluster, connect};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::history::{Clock, Reply, Session, Watched};
use crate::workload::{PREFIX, PREFIX_END};

/// How often a watcher asks for progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// How long a watcher waits before it resumes a broken stream.
const BEFORE_RESUMING: Duration = Duration::from_millis(30);
/// How long a new stream may take until its watch is created.
const CREATED_SECONDS_MAX: u64 = 3;

/// The watchers while they run.
pub(crate) struct Watchers {
    stop: watch::Sender<bool>,
    tasks: JoinSet<anyhow::Result<Watched>>,
    reached: Vec<Arc<AtomicI64>>,
}

impl Watchers {
    /// One watcher for each member, from revision 1; and one that changes to the next member every second and
    /// whenever its stream breaks.
    pub(crate) fn start(cluster: &Cluster, clock: Clock) -> anyhow::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let mut reached = Vec::new();
        for index in 0..=cluster.size() {
            let channels = cluster.urls().iter().map(|url| connect(url)).collect::<anyhow::Result<Vec<_>>>()?;
            let roams = index == cluster.size();
            let at = Arc::new(AtomicI64::new(0));
            reached.push(Arc::clone(&at));
            let slot = index % cluster.size();
            let watcher = Watcher { channels, slot, roams, next: 1, clock, reached: at, watched: Watched::default() };
            tasks.spawn(watcher.run(stopped.clone()));
        }
        Ok(Self { stop, tasks, reached })
    }

    /// Waits until every watcher has been sent everything up to `revision`, then stops them; what each was sent.
    ///
    /// # Errors
    /// When one has not after `limit`, or an answer is not one that a watcher may get.
    pub(crate) async fn end(mut self, revision: i64, limit: Duration) -> anyhow::Result<Vec<Watched>> {
        let begin = tokio::time::Instant::now();
        while let Some(late) = self.reached.iter().position(|at| at.load(Ordering::Relaxed) < revision) {
            let at = self.reached[late].load(Ordering::Relaxed);
            if let Some(ended) = self.tasks.try_join_next() {
                ended??;
                anyhow::bail!("a watcher ended before its time");
            }
            anyhow::ensure!(
                begin.elapsed() < limit,
                "reliable: watcher {late} is at revision {at} of {revision} after {limit:?}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.stop.send_replace(true);
        let mut watched = Vec::new();
        while let Some(ended) = self.tasks.join_next().await {
            watched.push(ended??);
        }
        Ok(watched)
    }
}

struct Watcher {
    channels: Vec<Channel>,
    slot: usize,
    roams: bool,
    /// The next revision that it needs.
    next: i64,
    clock: Clock,
    /// The last revision up to which it has everything, by an event or a progress notification.
    reached: Arc<AtomicI64>,
    watched: Watched,
}

impl Watcher {
    async fn run(mut self, mut stopped: watch::Receiver<bool>) -> anyhow::Result<Watched> {
        loop {
            tokio::select! {
                _ = stopped.wait_for(|stopped| *stopped) => return Ok(self.watched),
                broken = self.session() => broken?,
            }
            if self.roams {
                self.slot = (self.slot + 1) % self.channels.len();
            }
            tokio::time::sleep(BEFORE_RESUMING).await;
        }
    }

    /// One stream, until it breaks.
    async fn session(&mut self) -> anyhow::Result<()> {
        let create = pb::WatchCreateRequest {
            key: PREFIX.into(),
            range_end: PREFIX_END.into(),
            start_revision: self.next,
            prev_kv: true,
            progress_notify: true,
            ..Default::default()
        };
        self.watched.sessions.push(Session { slot: self.slot, start: self.next, replies: Vec::new() });
        let opened = Stream::open(self.channels[self.slot].clone(), create);
        let opened = tokio::time::timeout(Duration::from_secs(CREATED_SECONDS_MAX), opened).await;
        let Ok(Ok(mut stream)) = opened else { return Ok(()) };
        let mut ticks = tokio::time::interval(PROGRESS_EVERY);
        // A roaming watcher leaves after a second, a rest at its member's end or not.
        let leave = tokio::time::sleep(Duration::from_secs(if self.roams { 1 } else { 86_400 }));
        tokio::pin!(leave);
        loop {
            tokio::select! {
                answer = stream.answers.message() => match answer {
                    Ok(Some(answer)) => self.note(answer)?,
                    Ok(None) | Err(_) => return Ok(()),
                },
                _ = ticks.tick() => stream.ask_for_progress(),
                () = &mut leave => return Ok(()),
            }
        }
    }

    fn note(&mut self, answer: pb::WatchResponse) -> anyhow::Result<()> {
        anyhow::ensure!(!answer.created, "created comes once");
        // Nothing is compacted here, and nobody asked for a leader: no reason to end a watch within its stream.
        anyhow::ensure!(!answer.canceled, "reliable: a watch was canceled: {answer:?}");
        anyhow::ensure!(answer.events.iter().all(|event| event.kv.is_some()), "an event without a key: {answer:?}");
        let reply = Reply {
            at: self.clock.now(),
            revision: answer.header.context("an answer has a header")?.revision,
            events: answer.events,
        };
        let complete = match reply.events.last() {
            Some(event) => crate::history::kv(event).mod_revision,
            None => reply.revision,
        };
        // A progress notification moves the cursor too: that is what it is for.
        self.next = self.next.max(complete + 1);
        self.reached.fetch_max(complete, Ordering::Relaxed);
        let session = self.watched.sessions.last_mut().expect("pushed at the session's begin");
        session.replies.push(reply);
        Ok(())
    }
}

/// A watch stream with one watch.
pub(crate) struct Stream {
    requests: mpsc::Sender<pb::WatchRequest>,
    pub(crate) answers: Streaming<pb::WatchResponse>,
}

impl Stream {
    /// Opens it and takes the `created` answer.
    ///
    /// # Errors
    /// When the stream breaks before.
    pub(crate) async fn open(channel: Channel, create: pb::WatchCreateRequest) -> anyhow::Result<Self> {
        let (requests, bodies) = mpsc::channel(4);
        requests.try_send(request(RequestUnion::CreateRequest(create)))?;
        let mut client = pb::watch_client::WatchClient::new(channel).max_decoding_message_size(1 << 30);
        let mut answers = client.watch(ReceiverStream::new(bodies)).await?.into_inner();
        let first = answers.message().await?.context("the stream ended")?;
        anyhow::ensure!(first.created && !first.canceled, "the watch was not created: {first:?}");
        Ok(Self { requests, answers })
    }

    /// Asks for progress, unless earlier questions have not left yet.
    pub(crate) fn ask_for_progress(&self) {
        drop(self.requests.try_send(request(RequestUnion::ProgressRequest(pb::WatchProgressRequest {}))));
    }
}

fn request(union: RequestUnion) -> pb::WatchRequest {
    pb::WatchRequest { request_union: Some(union) }
}

/// Every event of all keys from revision `start` to `revision`, as one member has them.
///
/// # Errors
/// When they do not come.
pub(crate) async fn read_log(channel: Channel, start: i64, revision: i64) -> anyhow::Result<Vec<Event>> {
    let create = pb::WatchCreateRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        start_revision: start,
        prev_kv: true,
        ..Default::default()
    };
    let mut stream = Stream::open(channel, create).await?;
    let mut log: Vec<Event> = Vec::new();
    let newest = |log: &[Event]| log.last().and_then(|event| event.kv.as_ref()).map_or(1, |kv| kv.mod_revision);
    while newest(&log) < revision {
        let next = tokio::time::timeout(Duration::from_secs(20), stream.answers.message()).await;
        let answer = next.with_context(|| format!("the log ends at revision {} of {revision}", newest(&log)))?;
        let answer = answer?.context("the watch ended")?;
        anyhow::ensure!(!answer.canceled, "the watch was canceled: {}", answer.cancel_reason);
        log.extend(answer.events);
    }
    Ok(log)
}
