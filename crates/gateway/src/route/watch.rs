//! A client's watch stream, made of one stream to each replica that its watchers need.
//!
//! One body reads the client's requests and pulls the replicas' responses, a message at a time and only when the client
//! has room. A watch id of the client stands for an id of ours on the replica's stream, so that replicas never meet each
//! other's ids.
//!
//! What the client relies on stays: answers to creates in the order of the creates (another replica is asked only when
//! none is outstanding), the pieces of a fragmented response beside each other, and progress of the whole stream only up
//! to where every replica has come. When a replica's stream ends, the client's ends as it did: clients resume.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::{Body as _, Frame};
use prost::Message;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::watch_request::RequestUnion;
use tailwater_api::grpc::{self, FrameDecoder, FrameError, RequestStream};
use tailwater_api::health::HealthCheckRequest;
use tailwater_eventlog::KeyRange;
use tokio_stream::Stream as _;
use tokio_stream::wrappers::WatchStream;

use super::replica::{ActiveCall, Replica};
use super::requests::{RequestSender, channel};
use super::response::{ResponseHead, with_id};
use super::{ATTEMPTS_MAX, Forwarder, WATCH, is_elsewhere, no_replica};
use crate::body::framed;
use crate::status::{Code, Fault};

/// Requests read in one turn, so that a flood of them can't keep events back.
const REQUESTS_PER_TURN: usize = 64;
/// Largest response that is read from a replica: a revision is never split.
const RESPONSE_BYTES_MAX: usize = 1 << 30;
/// A call that is answered once the replica has come to a position, whoever asks: a token may be older than its stream.
const CHECK: &str = "/grpc.health.v1.Health/Check";

/// Code and text of a stream's end.
type End = (i32, String);

/// Opens the client's stream; replicas are asked with the first request.
pub(super) fn open(forwarder: &Forwarder, headers: HeaderMap, body: Body) -> Response<Body> {
    let watch = WatchBody {
        forwarder: forwarder.clone(),
        headers,
        client: RequestStream::new(body, forwarder.shared.message_bytes_max),
        is_half_closed: false,
        deferred: None,
        step: None,
        upstreams: Vec::new(),
        watches: BTreeMap::new(),
        pending: VecDeque::new(),
        pending_at: 0,
        id_to_assign: 0,
        id_to_use: 1,
        turn: 0,
        unfinished: None,
        progress: None,
        is_progress_asked: false,
        out: VecDeque::new(),
        serving: WatchStream::new(forwarder.shared.serving.subscribe()),
        end: None,
        is_done: false,
    };
    let mut response = Response::new(Body::new(watch));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// A stream to one replica.
struct Upstream {
    replica: Arc<Replica>,
    requests: RequestSender,
    body: Body,
    decoder: FrameDecoder,
    /// Our ids and the client's.
    ids: BTreeMap<i64, i64>,
    /// The highest position that it is known to have reached.
    reached: u64,
    _call: ActiveCall,
}

/// A create that a replica has yet to answer.
struct Pending {
    /// What the client chose; 0: the next free one.
    wanted: i64,
    /// What we chose; `None` for one that is sent only to be refused.
    used: Option<i64>,
}

/// Progress of the whole stream that was asked for.
struct Progress {
    /// Replicas that have not answered.
    waiting: Vec<usize>,
    /// The lowest answer so far.
    lowest: Option<(i64, Bytes)>,
}

/// Something that must be done before the next request.
type Step = Pin<Box<dyn Future<Output = Result<Done, End>> + Send>>;

/// What a step did.
enum Done {
    Opened(Box<Upstream>),
    Reached(usize, u64),
}

/// Whether a request was dealt with.
enum Turn {
    Done,
    /// It must wait: for a step, for room, or for answers.
    Later(RequestUnion),
}

struct WatchBody {
    forwarder: Forwarder,
    headers: HeaderMap,
    client: RequestStream<Body>,
    is_half_closed: bool,
    /// The request that must wait.
    deferred: Option<RequestUnion>,
    step: Option<Step>,
    upstreams: Vec<Upstream>,
    /// The client's ids: on which stream, and our id there.
    watches: BTreeMap<i64, (usize, i64)>,
    /// Creates without an answer, all on one stream.
    pending: VecDeque<Pending>,
    pending_at: usize,
    id_to_assign: i64,
    id_to_use: i64,
    /// The stream that is looked at first.
    turn: usize,
    /// The stream whose fragmented response has begun.
    unfinished: Option<usize>,
    progress: Option<Progress>,
    /// Asked for again before the last was answered.
    is_progress_asked: bool,
    out: VecDeque<Bytes>,
    serving: WatchStream<bool>,
    end: Option<End>,
    is_done: bool,
}

impl WatchBody {
    fn poll_requests(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        for _ in 0..REQUESTS_PER_TURN {
            if let Some(step) = &mut self.step {
                let Poll::Ready(done) = step.as_mut().poll(cx) else { return Ok(()) };
                self.step = None;
                match done? {
                    Done::Opened(upstream) => self.upstreams.push(*upstream),
                    Done::Reached(at, position) => {
                        self.upstreams[at].reached = self.upstreams[at].reached.max(position);
                    }
                }
            }
            let again = (self.is_progress_asked && self.progress.is_none())
                .then(|| RequestUnion::ProgressRequest(pb::WatchProgressRequest {}));
            let request = match self.deferred.take().or(again) {
                Some(request) => request,
                None => match self.poll_client(cx)? {
                    Some(request) => request,
                    None => return Ok(()),
                },
            };
            if let Turn::Later(request) = self.request(request, cx) {
                self.deferred = Some(request);
                if self.step.is_none() {
                    return Ok(());
                }
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// The client's next request, if there is one now.
    fn poll_client(&mut self, cx: &mut Context<'_>) -> Result<Option<RequestUnion>, End> {
        while !self.is_half_closed {
            let message = match self.client.poll_message(cx) {
                Poll::Pending => return Ok(None),
                Poll::Ready(Ok(None)) => {
                    // Its watches go on, as in etcd.
                    self.is_half_closed = true;
                    return Ok(None);
                }
                Poll::Ready(Ok(Some(message))) => message,
                Poll::Ready(Err(FrameError::Transport(_))) => return Err(end_of(&Fault::WatchCanceled)),
                Poll::Ready(Err(error)) => return Err(end_of(&error.into())),
            };
            let request = pb::WatchRequest::decode(message);
            let request = request.map_err(|error| end_of(&Fault::malformed_in_stream(&error)))?;
            if let Some(request) = request.request_union {
                return Ok(Some(request));
            }
        }
        Ok(None)
    }

    fn request(&mut self, request: RequestUnion, cx: &Context<'_>) -> Turn {
        match request {
            RequestUnion::CreateRequest(create) => self.create(create, cx),
            RequestUnion::CancelRequest(cancel) => self.cancel(cancel, cx),
            RequestUnion::ProgressRequest(_) => self.ask_progress(cx),
        }
    }

    fn create(&mut self, create: pb::WatchCreateRequest, cx: &Context<'_>) -> Turn {
        let later = |create| Turn::Later(RequestUnion::CreateRequest(create));
        if create.watch_id != 0 && !self.pending.is_empty() {
            // Whether the id is free is known when they are answered.
            return later(create);
        }
        let taken = self.watches.get(&create.watch_id).copied().filter(|_| create.watch_id != 0);
        let at = match taken {
            Some((at, _)) => at,
            None => match self.upstream_for(&create) {
                Some(at) => at,
                None => return later(create),
            },
        };
        if !self.pending.is_empty() && self.pending_at != at {
            return later(create);
        }
        let answered = self.forwarder.shared.answered.place().position.0;
        if self.upstreams[at].reached < answered {
            self.step = Some(self.reach(at));
            return later(create);
        }
        if !self.upstreams[at].requests.has_room(cx) {
            return later(create);
        }
        let used = match taken {
            // The replica refuses it, in its own words.
            Some((_, used)) => used,
            None => {
                self.id_to_use += 1;
                self.id_to_use - 1
            }
        };
        self.pending.push_back(Pending { wanted: create.watch_id, used: taken.is_none().then_some(used) });
        self.pending_at = at;
        let mut create = pb::WatchCreateRequest { watch_id: used, ..create };
        if !self.upstreams[at].replica.covers(&[range_of(&create)]) {
            // It is to be refused for its id, not for what that replica doesn't hold.
            (create.key, create.range_end) = (self.upstreams[at].replica.a_key(), Bytes::new());
        }
        self.send(at, RequestUnion::CreateRequest(create));
        Turn::Done
    }

    /// The stream for a new watcher; `None` while one is being opened.
    fn upstream_for(&mut self, create: &pb::WatchCreateRequest) -> Option<usize> {
        let range = range_of(create);
        let covers = |upstream: &Upstream| upstream.replica.covers(std::slice::from_ref(&range));
        let found = self.upstreams.iter().position(covers);
        if found.is_none() {
            self.step = Some(self.open_upstream(vec![range]));
        }
        found
    }

    fn cancel(&mut self, cancel: pb::WatchCancelRequest, cx: &Context<'_>) -> Turn {
        let Some(&(at, watch_id)) = self.watches.get(&cancel.watch_id) else {
            // It may be the id of a create that is under way.
            let is_known = self.pending.is_empty();
            return if is_known { Turn::Done } else { Turn::Later(RequestUnion::CancelRequest(cancel)) };
        };
        if !self.upstreams[at].requests.has_room(cx) {
            return Turn::Later(RequestUnion::CancelRequest(cancel));
        }
        self.send(at, RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id }));
        Turn::Done
    }

    fn ask_progress(&mut self, cx: &Context<'_>) -> Turn {
        let later = Turn::Later(RequestUnion::ProgressRequest(pb::WatchProgressRequest {}));
        if self.progress.is_some() {
            // One answer more will do for all who asked meanwhile.
            self.is_progress_asked = true;
            return Turn::Done;
        }
        if self.upstreams.is_empty() {
            self.step = Some(self.open_upstream(Vec::new()));
            return later;
        }
        let is_used =
            |&at: &usize| !self.upstreams[at].ids.is_empty() || (!self.pending.is_empty() && self.pending_at == at);
        let mut asked: Vec<usize> = (0..self.upstreams.len()).filter(is_used).collect();
        if asked.is_empty() {
            asked.push(0);
        }
        if !asked.iter().all(|&at| self.upstreams[at].requests.has_room(cx)) {
            return later;
        }
        for &at in &asked {
            self.send(at, RequestUnion::ProgressRequest(pb::WatchProgressRequest {}));
        }
        self.progress = Some(Progress { waiting: asked, lowest: None });
        self.is_progress_asked = false;
        Turn::Done
    }

    fn send(&self, at: usize, request: RequestUnion) {
        self.upstreams[at].requests.send(framed(&pb::WatchRequest { request_union: Some(request) }));
    }

    /// Opens a stream to a replica that covers these.
    fn open_upstream(&self, ranges: Vec<KeyRange>) -> Step {
        let (forwarder, headers) = (self.forwarder.clone(), self.headers.clone());
        Box::pin(async move {
            let mut asked = Vec::new();
            let mut last = end_of(&no_replica());
            while asked.len() < ATTEMPTS_MAX {
                let Some(replica) = forwarder.pick(&ranges, &asked) else { break };
                asked.push(replica.id());
                let (requests, body) = channel();
                let mut call = match replica.call(forwarder.request(WATCH, &headers, Body::new(body))).await {
                    Ok(call) => call,
                    Err(fault) => {
                        last = end_of(&fault);
                        continue;
                    }
                };
                if let Some(end) = status_of(call.response.headers()) {
                    last = end;
                    if is_elsewhere(call.response.headers()) {
                        continue;
                    }
                    return Err(last);
                }
                let shown = forwarder.shared.answered.remember(call.response.headers_mut());
                return Ok(Done::Opened(Box::new(Upstream {
                    replica,
                    requests,
                    body: call.response.into_body(),
                    decoder: FrameDecoder::new(RESPONSE_BYTES_MAX),
                    ids: BTreeMap::new(),
                    reached: shown.map_or(0, |shown| shown.position.0),
                    _call: call.guard,
                })));
            }
            Err(last)
        })
    }

    /// Waits until the replica has come to what was answered: a watcher "from now on" must not begin before it.
    fn reach(&self, at: usize) -> Step {
        let replica = Arc::clone(&self.upstreams[at].replica);
        let (forwarder, headers) = (self.forwarder.clone(), self.headers.clone());
        let body = Body::from(framed(&HealthCheckRequest::default()));
        Box::pin(async move {
            let wanted = forwarder.shared.answered.place();
            let mut call =
                replica.call(forwarder.request(CHECK, &headers, body)).await.map_err(|fault| end_of(&fault))?;
            if let Some(end) = status_of(call.response.headers()).filter(|(code, _)| *code != 0) {
                return Err(end);
            }
            let shown = forwarder.shared.answered.remember(call.response.headers_mut());
            // One of another history has nothing to wait for.
            Ok(Done::Reached(at, shown.map_or(0, |shown| shown.position.0).max(wanted.position.0)))
        })
    }

    /// One message of one replica, if there is one now.
    fn poll_upstreams(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let count = self.upstreams.len();
        let first = self.unfinished.unwrap_or(self.turn);
        let looked_at = if self.unfinished.is_some() { 1 } else { count };
        for at in (0..looked_at).map(|step| (first + step) % count) {
            match self.upstreams[at].poll_message(cx) {
                Poll::Pending => {}
                Poll::Ready(Err(end)) => return Err(end),
                Poll::Ready(Ok(message)) => {
                    self.turn = (at + 1) % count;
                    self.response(at, &message)?;
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    fn response(&mut self, at: usize, message: &Bytes) -> Result<(), End> {
        let head = ResponseHead::parse(message)
            .ok_or_else(|| (Code::Internal as i32, "tailwater: the replica sent what is no response".to_owned()))?;
        if head.is_progress_of_all() {
            self.progress_of(at, head.revision, message);
            return Ok(());
        }
        if head.is_created {
            return self.created(at, &head, message);
        }
        let Some(&watch_id) = self.upstreams[at].ids.get(&head.watch_id) else { return Ok(()) };
        self.unfinished = head.is_fragment.then_some(at);
        self.emit(message, &head, watch_id);
        // One that compaction has ended keeps its id until the client cancels it, as in etcd.
        if head.is_canceled && head.compact_revision == 0 {
            self.upstreams[at].ids.remove(&head.watch_id);
            self.watches.remove(&watch_id);
        }
        Ok(())
    }

    fn created(&mut self, at: usize, head: &ResponseHead, message: &Bytes) -> Result<(), End> {
        let pending = self.pending.pop_front().filter(|_| self.pending_at == at);
        let Some(Pending { wanted, used }) = pending else {
            return Err((Code::Internal as i32, "tailwater: the replica answered what nobody asked".to_owned()));
        };
        if head.is_canceled {
            self.emit(message, head, head.watch_id);
            return Ok(());
        }
        let Some(used) = used.filter(|used| *used == head.watch_id) else {
            return Err((Code::Internal as i32, "tailwater: the replica gave another watch id".to_owned()));
        };
        let watch_id = if wanted == 0 { self.assign_id() } else { wanted };
        self.watches.insert(watch_id, (at, used));
        self.upstreams[at].ids.insert(used, watch_id);
        self.emit(message, head, watch_id);
        Ok(())
    }

    fn assign_id(&mut self) -> i64 {
        while self.watches.contains_key(&self.id_to_assign) {
            self.id_to_assign += 1;
        }
        self.id_to_assign += 1;
        self.id_to_assign - 1
    }

    fn progress_of(&mut self, at: usize, revision: i64, message: &Bytes) {
        let Some(progress) = &mut self.progress else { return };
        let Some(place) = progress.waiting.iter().position(|waiting| *waiting == at) else { return };
        progress.waiting.swap_remove(place);
        if progress.lowest.as_ref().is_none_or(|(lowest, _)| revision < *lowest) {
            progress.lowest = Some((revision, message.clone()));
        }
        if progress.waiting.is_empty() {
            let lowest = self.progress.take().and_then(|progress| progress.lowest);
            if let Some((_, message)) = lowest {
                self.out.push_back(super::framed(&message));
            }
        }
    }

    fn emit(&mut self, message: &Bytes, head: &ResponseHead, watch_id: i64) {
        self.out.extend(with_id(message, head, watch_id).into_iter().flatten());
    }

    fn poll_drained(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        while let Poll::Ready(serving) = Pin::new(&mut self.serving).poll_next(cx) {
            if serving != Some(true) {
                return Err(end_of(&Fault::Stopped));
            }
        }
        Ok(())
    }

    /// Fills `out`, or finds the end.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        self.poll_drained(cx)?;
        loop {
            self.poll_requests(cx)?;
            let is_moved = self.poll_upstreams(cx)?;
            if !self.out.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if !is_moved {
                return Poll::Pending;
            }
        }
    }
}

impl http_body::Body for WatchBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::convert::Infallible>>> {
        if self.is_done {
            return Poll::Ready(None);
        }
        if self.out.is_empty() && self.end.is_none() {
            match self.poll_out(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(end)) => self.end = Some(end),
            }
        }
        if let Some(piece) = self.out.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        let (code, text) = self.end.take().unwrap_or_else(|| end_of(&Fault::Stopped));
        self.is_done = true;
        self.upstreams.clear();
        Poll::Ready(Some(Ok(Frame::trailers(grpc::trailers(code, &text)))))
    }
}

impl Upstream {
    /// The next whole message; an error is the end.
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, End>> {
        loop {
            match self.decoder.next_message() {
                Ok(Some(message)) => return Poll::Ready(Ok(message)),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Err(end_of(&error.into()))),
            }
            let lost = || (Code::Unavailable as i32, "tailwater: the replica was lost".to_owned());
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.decoder.push(data),
                    Err(frame) => {
                        let end = frame.trailers_ref().and_then(status_of).filter(|(code, _)| *code != 0);
                        return Poll::Ready(Err(end.unwrap_or_else(lost)));
                    }
                },
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(Err(lost())),
            }
        }
    }
}

/// An empty key means the lowest one.
fn range_of(create: &pb::WatchCreateRequest) -> KeyRange {
    let key = if create.key.is_empty() { Bytes::from_static(&[0]) } else { create.key.clone() };
    KeyRange::from_etcd(key, create.range_end.clone())
}

fn end_of(fault: &Fault) -> End {
    (fault.status().0 as i32, fault.status().1.to_owned())
}

/// The status that headers or trailers carry.
fn status_of(headers: &HeaderMap) -> Option<End> {
    let code = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
    let text = headers.get("grpc-message").map_or(&[][..], HeaderValue::as_bytes);
    Some((code, percent_decode(text)))
}

/// As gRPC writes what is not printable ASCII.
fn percent_decode(text: &[u8]) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let hex = text.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.filter(|_| text[at] == b'%').and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(text[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
