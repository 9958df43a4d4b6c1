//! A proxy in front of a server that plants one deviation.
//!
//! Calls are forwarded as bytes in both directions; only the messages that a [`Deviation`] is about are decoded.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use prost::Message;
use tailwater_api::etcdserverpb::{
    AuthRoleGetResponse, CompactionRequest, HashKvResponse, RangeRequest, RangeResponse, StatusResponse, WatchResponse,
};
use tailwater_api::mvccpb::{Event, KeyValue};
use tailwater_api::v3electionpb::LeaderResponse;
use tailwater_api::v3lockpb::LockResponse;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use crate::raw::MESSAGE_BYTES_MAX;
use crate::{BytesCodec, RawClient};

/// Messages on their way through one call.
const CALL_MESSAGES_MAX: usize = 64;

/// One way to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deviation {
    /// None: the proxy alone must make no difference.
    Nothing,
    /// `count` of a range is at most its `limit`.
    CountLimited,
    /// A keys_only range answers with lease 0.
    KeysOnlyWithoutLease,
    /// A watch from the compacted revision misses the deletes of that revision.
    TombstoneMissing,
    /// An answer to a progress request is one revision too high.
    ProgressTooHigh,
    /// A key that was deleted and made again goes on counting its versions.
    VersionNotReset,
    /// A role's rights are told as if each were of one key.
    RightWithoutEnd,
    /// The key of a lock has its lease in capitals.
    LockKeyInCapitals,
    /// An observer sees who leads, and not what they proclaim later.
    ProclamationUnobserved,
    /// Status does not tell alarms.
    StatusWithoutAlarms,
    /// HashKV says that nothing was compacted.
    HashOfNothingCompacted,
    /// One event does not come, to one of its watchers.
    EventDropped,
    /// One event comes twice.
    EventDoubled,
    /// One event comes after its successor.
    EventReordered,
    /// One event lacks its key's version before.
    EventWithoutPrevious,
    /// One read is answered as the one before it was.
    ReadStale,
}

/// A running proxy; it ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    url: String,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Serves on a free loopback port and forwards to `upstream`.
    ///
    /// # Errors
    /// When no port is free or `upstream` is not a URL.
    pub async fn start(upstream: &str, deviation: Deviation) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let memory = Arc::new(Mutex::new(Memory::default()));
        let forward = Forward { client: RawClient::new(upstream)?, deviation, memory };
        let task = tokio::spawn(async move {
            let server = tonic::transport::Server::builder();
            let connections = TcpListenerStream::new(listener).map(|connection| {
                // Else small messages wait for the client's acknowledgements, 40 ms each.
                connection.and_then(|stream| stream.set_nodelay(true).map(|()| stream))
            });
            // It ends only with the listener, which nothing closes.
            drop(server.serve_with_incoming(forward, connections).await);
        });
        Ok(Self { url, task })
    }

    /// The URL for clients.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the proxy must remember of earlier calls to deviate.
#[derive(Debug, Default)]
struct Memory {
    compacted: i64,
    /// By key: create revision, and the highest version seen of it or of its earlier lives.
    versions: HashMap<Bytes, Life>,
    /// Watch answers with events, and reads, that came through.
    answers: u64,
    reads: u64,
    range_before: Option<RangeResponse>,
}

/// The answer that one planted fault is in: far enough from the begin that there is something to compare it with.
const FAULTY: u64 = 40;

#[derive(Clone, Copy, Debug, Default)]
struct Life {
    create_revision: i64,
    version: i64,
    version_before: i64,
}

impl Memory {
    fn change_version(&mut self, kv: &mut KeyValue) {
        let life = self.versions.entry(kv.key.clone()).or_default();
        if kv.create_revision > life.create_revision {
            let version_before = life.version_before + life.version;
            *life = Life { create_revision: kv.create_revision, version: kv.version, version_before };
        }
        if kv.create_revision == life.create_revision {
            life.version = life.version.max(kv.version);
            kv.version += life.version_before;
        }
    }
}

/// One call's requests as far as its answers depend on them.
#[derive(Debug, Default)]
struct Call {
    range: Option<RangeRequest>,
    compaction: Option<i64>,
    /// An event that is sent late.
    held: Option<Event>,
}

#[derive(Clone, Debug)]
struct Forward {
    client: RawClient,
    deviation: Deviation,
    memory: Arc<Mutex<Memory>>,
}

type Answers = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

impl Forward {
    /// Forwards one call. The answer begins at once, because a server's headers may come only with its first message.
    fn call(self, path: String, requests: Streaming<Bytes>) -> Answers {
        let (to_client, answers) = mpsc::channel(CALL_MESSAGES_MAX);
        tokio::spawn(async move {
            if let Err(status) = self.run(&path, requests, &to_client).await {
                // Fails when the client has left; then nobody waits for the status.
                drop(to_client.send(Err(status)).await);
            }
        });
        Box::pin(ReceiverStream::new(answers))
    }

    async fn run(
        &self,
        path: &str,
        mut requests: Streaming<Bytes>,
        to_client: &mpsc::Sender<Result<Bytes, Status>>,
    ) -> Result<(), Status> {
        let call = Arc::new(Mutex::new(Call::default()));
        let (to_server, bodies) = mpsc::channel(CALL_MESSAGES_MAX);
        let (seen, name) = (call.clone(), path.to_owned());
        tokio::spawn(async move {
            while let Some(Ok(body)) = requests.next().await {
                seen.lock().expect("no holder panics").note(&name, &body);
                if to_server.send(body).await.is_err() {
                    return;
                }
            }
        });
        let mut answers = tokio::select! {
            answer = self.client.streaming(path, ReceiverStream::new(bodies)) => answer?.into_inner(),
            () = to_client.closed() => return Ok(()),
        };
        loop {
            let body = tokio::select! {
                body = answers.next() => body,
                () = to_client.closed() => return Ok(()),
            };
            let Some(body) = body else { return Ok(()) };
            let changed = self.change(path, body?, &mut call.lock().expect("no holder panics"));
            let Some(changed) = changed else { continue };
            if to_client.send(Ok(changed)).await.is_err() {
                return Ok(());
            }
        }
    }

    /// The answer that the client gets, or none.
    fn change(&self, path: &str, body: Bytes, call: &mut Call) -> Option<Bytes> {
        let mut memory = self.memory.lock().expect("no holder panics");
        if let Some(revision) = call.compaction {
            memory.compacted = memory.compacted.max(revision);
        }
        match (self.deviation, path) {
            (Deviation::Nothing, _) => Some(body),
            (deviation, "/etcdserverpb.KV/Range") => {
                let mut range = RangeResponse::decode(body).ok()?;
                let request = call.range.as_ref()?;
                match deviation {
                    Deviation::CountLimited if request.limit > 0 => range.count = range.count.min(request.limit),
                    Deviation::KeysOnlyWithoutLease if request.keys_only => {
                        range.kvs.iter_mut().for_each(|kv| kv.lease = 0);
                    }
                    Deviation::ReadStale => {
                        memory.reads += 1;
                        // Long enough before that a write lies between.
                        match (memory.reads % 100, memory.range_before.take()) {
                            (0, Some(before)) => range = before,
                            (50, None) => memory.range_before = Some(range.clone()),
                            (_, before) => memory.range_before = before,
                        }
                    }
                    Deviation::VersionNotReset => range.kvs.iter_mut().for_each(|kv| memory.change_version(kv)),
                    _ => {}
                }
                Some(range.encode_to_vec().into())
            }
            (deviation, "/etcdserverpb.Watch/Watch") => {
                let mut answer = WatchResponse::decode(body).ok()?;
                if !answer.events.is_empty() {
                    memory.answers += 1;
                    plant(deviation, memory.answers == FAULTY, &mut answer, &mut call.held);
                }
                match (deviation, &mut answer.header) {
                    (Deviation::ProgressTooHigh, Some(header)) if answer.watch_id == -1 && !answer.created => {
                        header.revision += 1;
                    }
                    (Deviation::TombstoneMissing, _) if !answer.events.is_empty() => {
                        let compacted = memory.compacted;
                        answer.events.retain(|event| {
                            event.r#type == 0 || event.kv.as_ref().is_none_or(|kv| kv.mod_revision != compacted)
                        });
                        if answer.events.is_empty() {
                            return None;
                        }
                    }
                    _ => {}
                }
                Some(answer.encode_to_vec().into())
            }
            _ => changed_message(self.deviation, path, body),
        }
    }
}

/// Changes the first event of the one faulty answer, on its way to one watcher.
fn plant(deviation: Deviation, is_faulty: bool, answer: &mut WatchResponse, held: &mut Option<Event>) {
    answer.events.extend(held.take());
    if !is_faulty {
        return;
    }
    match deviation {
        Deviation::EventDropped => drop(answer.events.remove(0)),
        Deviation::EventDoubled => answer.events.insert(0, answer.events[0].clone()),
        Deviation::EventReordered => *held = Some(answer.events.remove(0)),
        Deviation::EventWithoutPrevious => answer.events[0].prev_kv = None,
        _ => {}
    }
}

/// As [`Forward::change`], for what depends on the one message alone.
fn changed_message(deviation: Deviation, path: &str, body: Bytes) -> Option<Bytes> {
    fn changed<M: Message + Default>(body: Bytes, change: impl FnOnce(&mut M)) -> Option<Bytes> {
        let mut message = M::decode(body).ok()?;
        change(&mut message);
        Some(message.encode_to_vec().into())
    }
    match (deviation, path) {
        (Deviation::RightWithoutEnd, "/etcdserverpb.Auth/RoleGet") => {
            changed(body, |role: &mut AuthRoleGetResponse| {
                role.perm.iter_mut().for_each(|right| right.range_end.clear());
            })
        }
        (Deviation::LockKeyInCapitals, "/v3lockpb.Lock/Lock") => {
            changed(body, |lock: &mut LockResponse| lock.key.make_ascii_uppercase())
        }
        (Deviation::ProclamationUnobserved, "/v3electionpb.Election/Observe") => {
            let leader = LeaderResponse::decode(body.clone()).ok()?;
            leader.kv.is_none_or(|kv| kv.version == 1).then_some(body)
        }
        (Deviation::StatusWithoutAlarms, "/etcdserverpb.Maintenance/Status") => {
            changed(body, |status: &mut StatusResponse| status.errors.clear())
        }
        (Deviation::HashOfNothingCompacted, "/etcdserverpb.Maintenance/HashKV") => {
            changed(body, |hash: &mut HashKvResponse| hash.compact_revision = -1)
        }
        _ => Some(body),
    }
}

impl Call {
    fn note(&mut self, path: &str, body: &Bytes) {
        match path {
            "/etcdserverpb.KV/Range" => self.range = RangeRequest::decode(body.clone()).ok(),
            "/etcdserverpb.KV/Compact" => {
                self.compaction = CompactionRequest::decode(body.clone()).ok().map(|request| request.revision);
            }
            _ => {}
        }
    }
}

impl tower::Service<Request<Streaming<Bytes>>> for PathForward {
    type Response = Response<Answers>;
    type Error = Status;
    type Future = std::future::Ready<Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        std::future::ready(Ok(Response::new(self.forward.clone().call(self.path.clone(), request.into_inner()))))
    }
}

/// [`Forward`] for one method.
#[derive(Debug)]
struct PathForward {
    forward: Forward,
    path: String,
}

impl tower::Service<http::Request<tonic::body::Body>> for Forward {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let mut forward = self.clone();
        if let Some(token) = request.headers().get("token").and_then(|token| token.to_str().ok()) {
            forward.client = self.client.with_token(token).expect("what came in a header, can go in one");
        }
        let forward = PathForward { forward, path: request.uri().path().to_owned() };
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(BytesCodec)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX);
            Ok(grpc.streaming(forward, request).await)
        })
    }
}
