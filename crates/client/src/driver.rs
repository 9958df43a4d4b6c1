//! The task of an informer: does what its core wants, hands in what comes, publishes what that leads to.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::watch_client::WatchClient;
use tailwater_api::etcdserverpb::watch_request::RequestUnion;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Streaming};

use crate::auth::TokenNumber;
use crate::client::{MESSAGE_BYTES_MAX, in_time, kv};
use crate::connections::{Backoff, Connections, Node};
use crate::core::{BadList, Core, Next, Step};
use crate::informer::{Phase, Shared};
use crate::object::RelistCause;
use crate::range::KeyRange;
use crate::{Client, Error};

/// How often servers are asked how far a watch is, while somebody waits for it. A server that is busy with older changes
/// leaves the question unanswered, so it is asked again.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// Requests on their way to the server: the one that opens a watch, then questions about progress, of which one is enough.
const REQUESTS_MAX: usize = 2;

/// Owns the state of one informer.
pub(crate) struct Driver<T> {
    client: Client,
    connections: Connections,
    range: KeyRange,
    core: Core<T>,
    shared: Arc<Shared<T>>,
    /// Whether a watch was live since the last list, so that the next one goes on where it broke.
    was_watching: bool,
    /// Whether the newest attempt has led to something.
    is_fruitful: bool,
}

/// An open watch.
struct Watch {
    requests: mpsc::Sender<pb::WatchRequest>,
    answers: Streaming<pb::WatchResponse>,
    token: TokenNumber,
}

impl<T> Drop for Driver<T> {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

impl<T: Send + Sync + 'static> Driver<T> {
    pub(crate) fn new(
        client: Client,
        connections: Connections,
        range: KeyRange,
        core: Core<T>,
        shared: Arc<Shared<T>>,
    ) -> Self {
        Self { client, connections, range, core, shared, was_watching: false, is_fruitful: false }
    }

    /// Runs until it is aborted.
    pub(crate) async fn run(mut self) {
        let backoff_max = self.client.config().backoff_max;
        let mut backoff = Backoff::new(self.connections.len(), backoff_max);
        loop {
            let node = self.connections.current();
            self.is_fruitful = false;
            let begin = Instant::now();
            self.shared.set_status(|status| status.endpoint.clone_from(&node.url));
            let Err(failure) = self.follow(&node).await;
            self.core.on_stream_end();
            tracing::debug!(endpoint = node.url, %failure, revision = self.core.state().revision, "an informer goes on elsewhere");
            self.shared.set_status(|status| {
                status.phase = Phase::Connecting;
                status.failure = Some(failure.to_string());
            });
            if !failure.is_stale_token() || !self.client.auth().has_user() {
                self.connections.leave(&node);
            }
            // A watch of a quiet range that lived for long was good, too.
            if self.is_fruitful || begin.elapsed() > backoff_max {
                backoff.reset();
            }
            backoff.pause().await;
        }
    }

    /// Lists and watches at one endpoint until it fails.
    async fn follow(&mut self, node: &Arc<Node>) -> Result<Infallible, Error> {
        loop {
            match self.core.next() {
                Next::List => self.list(node).await?,
                Next::Watch(_) => self.watch(node).await?,
            }
        }
    }

    async fn list(&mut self, node: &Arc<Node>) -> Result<(), Error> {
        self.shared.set_status(|status| status.phase = Phase::Listing);
        // What was begun in pages goes on so, at any endpoint.
        let is_streamed = !self.core.is_between_pages() && !node.lacks_range_stream.load(Ordering::Relaxed);
        let listed = match is_streamed {
            true => self.list_stream(node).await,
            false => self.list_pages(node).await,
        };
        match listed {
            Err(error) if is_streamed && error.code() == Some(Code::Unimplemented) => {
                node.lacks_range_stream.store(true, Ordering::Relaxed);
                self.core.restart_list();
                Ok(())
            }
            // A list that took longer than its revision was kept; the next one is of a newer one.
            Err(error) if error.is_compacted() => {
                self.core.restart_list();
                Ok(())
            }
            Err(error) => {
                // Pages may go on elsewhere, what else came may not.
                if is_streamed || matches!(error, Error::BadList { .. }) {
                    self.core.restart_list();
                }
                Err(error)
            }
            Ok(()) => {
                self.is_fruitful = true;
                self.was_watching = false;
                Ok(())
            }
        }
    }

    async fn list_stream(&mut self, node: &Arc<Node>) -> Result<(), Error> {
        let timeout = self.client.config().request_timeout;
        let mut request = Request::new(self.core.list_request());
        let opened = async {
            let token = self.client.auth().sign(node, &mut request).await?;
            let answer = kv(node).range_stream(request).await.map_err(|status| Error::call(&node.url, status));
            self.client.auth().judge(token, answer.as_ref().err()).await;
            Ok(answer?.into_inner())
        };
        let mut pieces = in_time(node, timeout, opened).await?;
        loop {
            let next = async { pieces.message().await.map_err(|status| Error::call(&node.url, status)) };
            match in_time(node, timeout, next).await? {
                Some(pb::RangeStreamResponse { range_response: Some(piece) }) => {
                    self.core.on_piece(piece).map_err(|reason| bad(node, reason))?;
                }
                Some(_) => {}
                None => {
                    let batch = self.core.on_list_end().map_err(|reason| bad(node, reason))?;
                    self.shared.publish(batch).await;
                    return Ok(());
                }
            }
        }
    }

    async fn list_pages(&mut self, node: &Arc<Node>) -> Result<(), Error> {
        loop {
            let page = self.read(node, self.core.page_request()).await?;
            if let Some(batch) = self.core.on_page(page).map_err(|reason| bad(node, reason))? {
                self.shared.publish(batch).await;
                return Ok(());
            }
        }
    }

    /// One read at this endpoint.
    async fn read(&self, node: &Arc<Node>, request: pb::RangeRequest) -> Result<pb::RangeResponse, Error> {
        let answered = async {
            let mut request = Request::new(request);
            let token = self.client.auth().sign(node, &mut request).await?;
            let answer = kv(node).range(request).await.map_err(|status| Error::call(&node.url, status));
            self.client.auth().judge(token, answer.as_ref().err()).await;
            Ok(answer?.into_inner())
        };
        in_time(node, self.client.config().request_timeout, answered).await
    }

    /// Watches until the endpoint fails, or a list is wanted.
    async fn watch(&mut self, node: &Arc<Node>) -> Result<(), Error> {
        self.shared.set_status(|status| status.phase = Phase::Connecting);
        let timeout = self.client.config().request_timeout;
        let created_until = Instant::now() + timeout;
        let mut watch = in_time(node, timeout, self.open(node)).await?;
        self.core.on_stream_begin();
        let mut is_created = false;
        let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let answer = tokio::select! {
                answer = watch.answers.message() => answer,
                () = self.shared.waiters.begun(), if is_created => { watch.ask_for_progress(); continue }
                _ = ticks.tick(), if is_created && self.shared.waiters.is_any() => { watch.ask_for_progress(); continue }
                () = self.shared.doubt.notified(), if is_created => { self.check(node).await?; return Ok(()) }
                () = tokio::time::sleep_until(created_until), if !is_created => {
                    return Err(Error::Timeout { endpoint: node.url.clone(), waited: timeout });
                }
            };
            let answer = match answer {
                Ok(Some(answer)) => answer,
                Ok(None) => return Err(self.ended(node, &watch, "the stream ended".to_owned()).await),
                Err(status) => {
                    let error = Error::call(&node.url, status);
                    self.client.auth().judge(watch.token, Some(&error)).await;
                    return Err(error);
                }
            };
            match self.core.on_answer(answer) {
                Step::Nothing => {}
                Step::Created { is_behind } => {
                    is_created = true;
                    if is_behind && self.check(node).await? {
                        return Ok(());
                    }
                    self.note_watching();
                }
                Step::Changed(batch) => {
                    self.is_fruitful = true;
                    self.shared.publish(batch).await;
                }
                Step::Relist(cause) => {
                    self.note_relist(node, cause);
                    return Ok(());
                }
                Step::Ended(reason) => return Err(self.ended(node, &watch, reason).await),
            }
            self.shared.note_duplicates(self.core.duplicates());
        }
    }

    async fn open(&self, node: &Arc<Node>) -> Result<Watch, Error> {
        let (requests, bodies) = mpsc::channel(REQUESTS_MAX);
        let create = RequestUnion::CreateRequest(self.core.watch_request());
        // There is room: it is the first.
        requests.try_send(pb::WatchRequest { request_union: Some(create) }).ok();
        let mut request = Request::new(ReceiverStream::new(bodies));
        // A member that has lost its leader ends the stream, rather than fall silent.
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        let token = self.client.auth().sign(node, &mut request).await?;
        let mut client = WatchClient::new(node.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let answer = client.watch(request).await.map_err(|status| Error::call(&node.url, status));
        self.client.auth().judge(token, answer.as_ref().err()).await;
        Ok(Watch { requests, answers: answer?.into_inner(), token })
    }

    /// Asks a quorum for its revision; whether history was lost, so that a list is wanted.
    async fn check(&mut self, node: &Arc<Node>) -> Result<bool, Error> {
        let answer = self.read(node, self.range.revision_request()).await?;
        let revision = answer.header.map_or(0, |header| header.revision);
        let is_lost = self.core.on_current(revision);
        if is_lost {
            self.note_relist(node, RelistCause::HistoryLost { revision });
        }
        Ok(is_lost)
    }

    /// A watch is live.
    fn note_watching(&mut self) {
        let is_resumed = std::mem::replace(&mut self.was_watching, true);
        self.shared.set_status(|status| {
            status.phase = Phase::Watching;
            status.failure = None;
            status.resumes += u64::from(is_resumed);
        });
    }

    fn note_relist(&self, node: &Node, cause: RelistCause) {
        let revision = self.core.state().revision;
        let is_gap = matches!(cause, RelistCause::Gap { .. });
        match is_gap {
            true => tracing::error!(endpoint = node.url, ?cause, revision, "a server left out a change"),
            false => tracing::warn!(endpoint = node.url, ?cause, revision, "an informer takes a new list"),
        }
        self.shared.set_status(|status| {
            status.relists += 1;
            status.gaps += u64::from(is_gap);
        });
    }

    /// The error for a watch that a server has ended in order.
    async fn ended(&self, node: &Node, watch: &Watch, reason: String) -> Error {
        let error = Error::WatchEnded { endpoint: node.url.clone(), reason };
        self.client.auth().judge(watch.token, Some(&error)).await;
        error
    }
}

impl Watch {
    /// Asks how far the watch is; not when a question is on its way.
    fn ask_for_progress(&self) {
        let question = RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
        self.requests.try_send(pb::WatchRequest { request_union: Some(question) }).ok();
    }
}

fn bad(node: &Node, reason: BadList) -> Error {
    Error::BadList { endpoint: node.url.clone(), reason }
}
