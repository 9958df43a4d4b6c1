//! A gateway without a store: each call goes to a replica that covers what it asks for.
//!
//! Calls are forwarded as the bytes that came; only what routing needs is decoded. Writes, leases and the like go to any
//! replica, which has its own way to the leader; a read goes to one that holds all of its ranges, and is never put
//! together from two. A watch stream is taken apart by [`watch`], since its watchers may need different replicas.
//!
//! The highest position that was answered goes along with every call and comes back with every answer, so that replicas
//! that are not equally far show no client an older state than another has seen here.
//!
//! Nothing is buffered but what HTTP/2 allows to be on its way: an answer is pulled through at the pace of its client.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header, request};
use http_body_util::Full;
use metrics::{counter, gauge};
use parking_lot::RwLock;
use tailwater_api::grpc;
use tailwater_eventlog::KeyRange;
use tailwater_tls::ClientTls;
use tokio::sync::watch as signal;

use crate::caller::Answering;
use crate::methods::{self, Kind, Method};
use crate::metrics::{FORWARDED, REPLICAS};
use crate::rpc::{http_refusal, refusal};
use crate::status::{Code, Fault};
use crate::{AccessControl, Gateway, OverTls, json};

mod body;
pub(crate) mod fuzzing;
pub(crate) mod position;
mod replica;
mod requests;
mod response;
mod wanted;
mod watch;

use body::ForwardedBody;
use position::Answered;
pub use replica::ReplicaInfo;
use replica::{Call, Replica};

const WATCH: &str = "/etcdserverpb.Watch/Watch";
/// Replicas asked for one call.
const ATTEMPTS_MAX: usize = 3;
/// Why a call can't be forwarded.
const NO_REPLICA: &str = "tailwater: no replica here covers the range";
/// Methods that change nothing, so that another replica may be asked when one fails.
const READS: &[&str] = &[
    "/etcdserverpb.KV/Range",
    "/etcdserverpb.KV/RangeStream",
    "/etcdserverpb.Lease/LeaseTimeToLive",
    "/etcdserverpb.Lease/LeaseLeases",
    "/etcdserverpb.Cluster/MemberList",
    "/etcdserverpb.Maintenance/Status",
];

/// Forwards gRPC calls; clones share what is known of the replicas.
///
/// *Invariant*: what was answered never goes back within a history, and every call is held to it.
#[derive(Clone)]
pub struct Forwarder {
    shared: Arc<Shared>,
}

struct Shared {
    /// Largest message that is read from a client.
    message_bytes_max: usize,
    tls: Option<ClientTls>,
    replicas: RwLock<Vec<Arc<Replica>>>,
    /// The fanout in this process, where there is one.
    here: OnceLock<Arc<Replica>>,
    answered: Answered,
    serving: signal::Sender<bool>,
    /// So that equally loaded replicas take turns.
    turn: AtomicUsize,
}

impl Forwarder {
    /// Knows no replica yet. A client's message above `message_bytes_max` is refused; `tls` is for https: URLs.
    #[must_use]
    pub fn new(message_bytes_max: usize, tls: Option<ClientTls>) -> Self {
        let shared = Shared {
            message_bytes_max,
            tls,
            replicas: RwLock::default(),
            here: OnceLock::new(),
            answered: Answered::default(),
            serving: signal::channel(true).0,
            turn: AtomicUsize::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Prefers the fanout behind `gateway`, in this process, for what it holds.
    pub(crate) fn prefer(&self, gateway: Gateway) {
        assert!(self.shared.here.set(Arc::new(Replica::here(gateway))).is_ok(), "one fanout is in this process");
    }

    /// What is known of the replicas now. Connections to those that stay are kept; calls that are under way at others go
    /// on. Must be called inside a tokio runtime, which then drives the connections.
    pub fn update(&self, found: Vec<ReplicaInfo>) {
        let mut replicas = self.shared.replicas.write();
        let mut known: HashMap<_, _> = replicas.drain(..).map(|replica| (replica.key(), replica)).collect();
        for info in found {
            let key = (info.id, info.url.clone(), info.ranges.clone());
            let replica = match known.remove(&key) {
                Some(replica) => replica,
                None => match Replica::new(&info, self.shared.tls.as_ref()) {
                    Ok(replica) => Arc::new(replica),
                    Err(error) => {
                        tracing::warn!(url = info.url, %error, "a replica announces a URL that can't be used");
                        continue;
                    }
                },
            };
            replica.refresh(&info);
            replicas.push(replica);
        }
        let ready = replicas.iter().filter(|replica| replica.is_ready()).count();
        gauge!(REPLICAS, "state" => "ready").set(u32::try_from(ready).unwrap_or(u32::MAX));
        gauge!(REPLICAS, "state" => "known").set(u32::try_from(replicas.len()).unwrap_or(u32::MAX));
    }

    /// Whether any call can be forwarded.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        *self.shared.serving.borrow() && self.shared.replicas.read().iter().any(|replica| replica.is_ready())
    }

    /// Ends watch streams with UNAVAILABLE from now on: clients resume elsewhere.
    pub fn drain(&self) {
        self.shared.serving.send_replace(false);
    }

    /// Answers a request that is not gRPC, if it is one of the API as JSON; else gives it back.
    ///
    /// # Errors
    /// The request, which is another's.
    pub async fn call_json(
        &self,
        request: Request<Body>,
        access: &AccessControl,
    ) -> Result<Response<Body>, Request<Body>> {
        if !json::is_json(request.uri().path()) {
            return Err(request);
        }
        let is_secure = request.extensions().get::<OverTls>().is_some();
        if !is_secure && let Some(refused) = access.refuse_host(request.headers(), request.uri()) {
            return Ok(refused);
        }
        let asked = request.headers().clone();
        let mut response = if request.method() == http::Method::OPTIONS {
            Response::new(Body::empty())
        } else {
            let forwarder = self.clone();
            let call = |request| -> Answering { Box::pin(async move { forwarder.call(request).await }) };
            json::serve(request, self.shared.message_bytes_max, call).await
        };
        access.mark(&asked, response.headers_mut());
        Ok(response)
    }

    /// Answers one gRPC call.
    pub async fn call(&self, request: Request<Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        if head.method != http::Method::POST {
            let text = format!("Received a HEADERS frame with :method {:?} which should be POST", head.method.as_str());
            return http_refusal(StatusCode::METHOD_NOT_ALLOWED, text);
        }
        let method = match methods::find(head.uri.path()) {
            Ok(method) => method,
            Err(text) => return refusal(&Fault::Other(Code::Unimplemented, text)),
        };
        let answer = self.forward(&method, &head, body).await;
        let outcome = if answer.is_ok() { "forwarded" } else { "refused" };
        counter!(FORWARDED, "outcome" => outcome).increment(1);
        answer.unwrap_or_else(|fault| refusal(&fault))
    }

    async fn forward(&self, method: &Method, head: &request::Parts, body: Body) -> Result<Response<Body>, Fault> {
        if method.path == WATCH {
            return Ok(watch::open(self, call_headers(&head.headers), body));
        }
        if method.kind == Kind::BidiStream {
            let replica = self.pick(&[], &[]).ok_or_else(no_replica)?;
            let call = self.request(method.path, &head.headers, body);
            return Ok(self.deliver(replica.call(call).await?));
        }
        let message = grpc::collect_unary(body, self.shared.message_bytes_max).await?;
        let ranges = wanted::ranges(method, &message)?;
        let is_read = READS.contains(&method.path) || ranges.is_read;
        self.forward_message(method.path, &head.headers, &message, &ranges.ranges, is_read).await
    }

    /// Asks one replica after the other while nothing can have happened.
    async fn forward_message(
        &self,
        path: &'static str,
        headers: &HeaderMap,
        message: &Bytes,
        ranges: &[KeyRange],
        is_read: bool,
    ) -> Result<Response<Body>, Fault> {
        let mut asked = Vec::new();
        let mut last = Err(no_replica());
        while asked.len() < if is_read { ATTEMPTS_MAX } else { 1 } {
            let Some(replica) = self.pick(ranges, &asked) else { break };
            asked.push(replica.id());
            let body = Body::new(Full::new(framed(message)));
            last = replica.call(self.request(path, headers, body)).await;
            if last.as_ref().is_ok_and(|call| !is_elsewhere(call.response.headers())) {
                break;
            }
        }
        last.map(|call| self.deliver(call))
    }

    /// Of those that cover all of `ranges`, the one with the least to do. Members only when there is no other: watches and
    /// lists are to stay away from the leader's machine.
    fn pick(&self, ranges: &[KeyRange], excluded: &[u64]) -> Option<Arc<Replica>> {
        let is_fit =
            |replica: &&Arc<Replica>| replica.is_ready() && !excluded.contains(&replica.id()) && replica.covers(ranges);
        let own = self.shared.here.get();
        if let Some(here) = own.filter(is_fit) {
            return Some(here.clone());
        }
        let replicas = self.shared.replicas.read();
        let turn = self.shared.turn.fetch_add(1, Ordering::Relaxed);
        let count = replicas.len();
        let rotated = (0..count).map(|at| &replicas[(at + turn) % count]);
        let others = rotated.filter(|replica| own.is_none_or(|here| here.id() != replica.id()));
        others.filter(is_fit).min_by_key(|replica| (replica.is_member(), replica.load())).cloned()
    }

    /// A call as it goes on: what the client said, and how far its answer must be.
    fn request(&self, path: &'static str, headers: &HeaderMap, body: Body) -> Request<Body> {
        let mut request = Request::new(body);
        *request.method_mut() = http::Method::POST;
        *request.version_mut() = http::Version::HTTP_2;
        *request.uri_mut() = http::Uri::from_static(path);
        *request.headers_mut() = call_headers(headers);
        if let Some(place) = self.shared.here.get().and_then(|here| here.place_here()) {
            self.shared.answered.shown(place);
        }
        self.shared.answered.ask(request.headers_mut());
        request
    }

    /// The answer as it goes to the client.
    fn deliver(&self, call: Call) -> Response<Body> {
        let Call { mut response, guard } = call;
        self.shared.answered.remember(response.headers_mut());
        response.map(|body| Body::new(ForwardedBody::new(body, guard)))
    }
}

fn no_replica() -> Fault {
    Fault::Other(Code::Unavailable, NO_REPLICA.to_owned())
}

/// Whether which replica answers depends on what a call of this method asks for.
pub(crate) fn is_routed(path: &str) -> bool {
    matches!(path, WATCH | "/etcdserverpb.KV/Range" | "/etcdserverpb.KV/RangeStream" | "/etcdserverpb.KV/Txn")
}

/// Whether the answer is only that another replica should be asked.
fn is_elsewhere(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    text("grpc-status") == "14"
        && (text("grpc-message").starts_with("tailwater: ") || text("grpc-message") == Fault::Stopped.status().1)
}

/// What of a client's headers concerns the call rather than the connection.
fn call_headers(headers: &HeaderMap) -> HeaderMap {
    let mut kept = headers.clone();
    for name in [header::HOST, header::CONTENT_LENGTH, header::CONNECTION, header::TRANSFER_ENCODING] {
        kept.remove(name);
    }
    kept.insert(header::TE, HeaderValue::from_static("trailers"));
    kept
}

/// A message with its prefix.
fn framed(message: &Bytes) -> Bytes {
    let mut out = bytes::BytesMut::with_capacity(grpc::PREFIX_BYTES + message.len());
    grpc::put_prefix(&mut out, message.len());
    out.extend_from_slice(message);
    out.freeze()
}

#[cfg(test)]
mod tests;
