//! The stream to one leader: requests that wait, requests that were sent, and who waits for their answers.
//!
//! A request is *sent* once the stream has taken it; before that it can be withdrawn, and nothing happened. The stream
//! takes none before the other side has accepted it.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_util::Stream;
use metrics::counter;
use parking_lot::Mutex;
use prost::Message as _;
use tailwater_api::peer::Hello;
use tailwater_api::write::write_plane_client::WritePlaneClient;
use tailwater_api::write::{WriteRequest, WriteRequests, WriteResponse, write_request, write_response};
use tailwater_eventlog::MemberId;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;
use tonic::Status;

use super::permit::Permit;
use crate::backoff::Backoff;
use crate::endpoint::{ConnectError, connect_for_session};
use crate::hello::RefusalReason;
use crate::metrics::{ROUTED_BATCHES, ROUTED_BREAKS, ROUTED_REQUESTS};
use crate::{Greeter, LinkConfig};

/// What became of a request.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The answer.
    Answered(write_response::Response),
    /// It never left.
    Unsent,
    /// It left, and the stream broke: it may have been carried out.
    Broken,
}

/// How a stream is kept.
#[derive(Clone)]
pub(super) struct StreamConfig {
    pub(super) greeter: Greeter,
    pub(super) link: LinkConfig,
    pub(super) batch_bytes_max: usize,
}

/// The stream to one leader. Dropping it breaks it.
pub(super) struct LeaderStream {
    shared: Arc<Shared>,
    task: AbortHandle,
}

struct Shared {
    leader: MemberId,
    config: StreamConfig,
    state: Mutex<State>,
    /// Told when a request comes in while there is no session.
    work: Notify,
}

#[derive(Default)]
struct State {
    last_id: u64,
    waiting: VecDeque<Waiting>,
    sent: BTreeMap<u64, Sent>,
    /// The session that takes; an older one gets nothing any more.
    session: u64,
    is_open: bool,
    waker: Option<Waker>,
    /// Messages that were sent.
    batches: usize,
}

struct Waiting {
    id: u64,
    request: write_request::Request,
    sent: Sent,
}

/// What is kept of a request that was sent: who waits, and its room.
struct Sent {
    reply: oneshot::Sender<Outcome>,
    _permit: Permit,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("{}", .0.message())]
    Status(#[from] Status),
    #[error("no answer to the hello")]
    Silent,
    #[error("the leader ended the stream")]
    Ended,
}

impl LeaderStream {
    pub(super) fn start(leader: MemberId, config: StreamConfig, handle: &Handle) -> Self {
        let shared = Arc::new(Shared { leader, config, state: Mutex::default(), work: Notify::new() });
        let task = handle.spawn(run(shared.clone())).abort_handle();
        Self { shared, task }
    }

    /// Queues a request; its number, and its outcome to come.
    pub(super) fn ask(&self, request: write_request::Request, permit: Permit) -> (u64, oneshot::Receiver<Outcome>) {
        let (reply, outcome) = oneshot::channel();
        let (id, waker) = {
            let mut state = self.shared.state.lock();
            state.last_id += 1;
            let id = state.last_id;
            state.waiting.push_back(Waiting { id, request, sent: Sent { reply, _permit: permit } });
            (id, state.waker.take())
        };
        match waker {
            Some(waker) => waker.wake(),
            None => self.shared.work.notify_one(),
        }
        (id, outcome)
    }

    /// Takes back a request; `false` when it was sent already.
    pub(super) fn withdraw(&self, id: u64) -> bool {
        let mut state = self.shared.state.lock();
        match state.waiting.binary_search_by_key(&id, |waiting| waiting.id) {
            Ok(at) => state.waiting.remove(at).is_some(),
            Err(_) => false,
        }
    }

    /// Whether nobody waits for anything.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.shared.state.lock();
        state.waiting.is_empty() && state.sent.is_empty()
    }

    #[cfg(test)]
    pub(super) fn batches_sent(&self) -> usize {
        self.shared.state.lock().batches
    }
}

impl Drop for LeaderStream {
    fn drop(&mut self) {
        self.task.abort();
        self.shared.end_session();
    }
}

impl Shared {
    async fn has_work(&self) {
        while self.state.lock().waiting.is_empty() {
            self.work.notified().await;
        }
    }

    fn begin(self: &Arc<Self>, hello: Hello) -> Outgoing {
        let mut state = self.state.lock();
        state.session += 1;
        state.is_open = false;
        Outgoing { shared: self.clone(), session: state.session, hello: Some(hello) }
    }

    fn open(&self) {
        let waker = {
            let mut state = self.state.lock();
            state.is_open = true;
            state.waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }

    /// Tells all who wait what became of their requests; whether any had been sent.
    fn end_session(&self) -> bool {
        let (waiting, sent, waker) = {
            let mut state = self.state.lock();
            state.session += 1;
            state.is_open = false;
            (std::mem::take(&mut state.waiting), std::mem::take(&mut state.sent), state.waker.take())
        };
        waker.into_iter().for_each(Waker::wake);
        let any_sent = !sent.is_empty();
        // Who is gone needs no answer.
        for waiting in waiting {
            drop(waiting.sent.reply.send(Outcome::Unsent));
        }
        for (_, sent) in sent {
            drop(sent.reply.send(Outcome::Broken));
        }
        any_sent
    }

    fn answered(&self, responses: Vec<WriteResponse>) {
        let mut state = self.state.lock();
        for WriteResponse { request_id, response } in responses {
            let Some(sent) = state.sent.remove(&request_id) else { continue };
            // An answer of a kind that this version does not know tells nothing.
            let outcome = response.map_or(Outcome::Broken, Outcome::Answered);
            drop(sent.reply.send(outcome));
        }
    }
}

/// What one session sends. It is pulled: HTTP/2 asks for the next batch when its windows have room.
struct Outgoing {
    shared: Arc<Shared>,
    session: u64,
    hello: Option<Hello>,
}

impl Stream for Outgoing {
    type Item = WriteRequests;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<WriteRequests>> {
        if let Some(hello) = self.hello.take() {
            return Poll::Ready(Some(WriteRequests { hello: Some(hello), requests: Vec::new() }));
        }
        let mut state = self.shared.state.lock();
        if state.session != self.session {
            return Poll::Ready(None);
        }
        let requests = if state.is_open { state.take(self.shared.config.batch_bytes_max) } else { Vec::new() };
        if requests.is_empty() {
            state.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        state.batches += 1;
        counter!(ROUTED_REQUESTS).increment(requests.len() as u64);
        counter!(ROUTED_BATCHES).increment(1);
        Poll::Ready(Some(WriteRequests { hello: None, requests }))
    }
}

impl State {
    /// Takes up to `bytes_max` of requests, at least one if one waits; nobody waits for what was given up.
    fn take(&mut self, bytes_max: usize) -> Vec<WriteRequest> {
        let mut requests = Vec::new();
        let mut bytes = 0;
        while bytes < bytes_max
            && let Some(Waiting { id, request, sent }) = self.waiting.pop_front()
        {
            if sent.reply.is_closed() {
                continue;
            }
            let request = WriteRequest { request_id: id, request: Some(request) };
            bytes += request.encoded_len();
            requests.push(request);
            self.sent.insert(id, sent);
        }
        requests
    }
}

/// Keeps a session while there is something to ask. A URL that served is kept; after one that did not, the next is tried.
async fn run(shared: Arc<Shared>) {
    let (first, longest) = shared.config.link.backoff;
    let mut backoff = Backoff::new(first, longest);
    let mut attempt = 0_usize;
    loop {
        shared.has_work().await;
        // Looked up each time: a member's URLs may change.
        let urls = shared.config.greeter.directory().peer_urls(shared.leader);
        if let Some(url) = urls.get(attempt % urls.len().max(1)) {
            let mut was_up = false;
            let broken = match session(&shared, url, &mut was_up).await {
                Ok(never) => match never {},
                Err(broken) => broken,
            };
            report(&shared, &broken, was_up);
            match was_up {
                true => backoff.reset(),
                false => attempt = attempt.wrapping_add(1),
            }
        }
        if shared.end_session() {
            counter!(ROUTED_BREAKS).increment(1);
        }
        tokio::time::sleep(backoff.pause()).await;
    }
}

fn report(shared: &Shared, broken: &Broken, was_up: bool) {
    let leader = shared.leader;
    let refusal = match broken {
        Broken::Status(status) => RefusalReason::of(status),
        _ => None,
    };
    match refusal {
        Some(reason) => tracing::error!(%leader, %reason, "the leader refuses the requests of this node"),
        None if was_up => tracing::warn!(%leader, %broken, "lost the stream to the leader"),
        None => tracing::debug!(%leader, %broken, "no stream to the leader"),
    }
}

enum Never {}

/// One connection, from the hello until it breaks.
async fn session(shared: &Arc<Shared>, url: &str, is_up: &mut bool) -> Result<Never, Broken> {
    let config = &shared.config;
    // The guard cuts the connection however the session ends.
    let (channel, _cut) = connect_for_session(url, &config.link).await?;
    let outgoing = shared.begin(config.greeter.hello(shared.leader));
    let mut client = WritePlaneClient::new(channel)
        .max_encoding_message_size(usize::MAX)
        // Answers are as large as what was asked for.
        .max_decoding_message_size(usize::MAX);
    let hello_timeout = config.link.keepalive_interval + config.link.keepalive_timeout;
    let answer = tokio::time::timeout(hello_timeout, client.exchange(outgoing)).await;
    let mut answers = answer.map_err(|_| Broken::Silent)??.into_inner();
    *is_up = true;
    shared.open();
    loop {
        let batch = answers.message().await?.ok_or(Broken::Ended)?;
        shared.answered(batch.responses);
    }
}
