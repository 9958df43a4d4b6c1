//! A server for one test, and short calls to it.

use std::time::Duration;

use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::kv_client::KvClient;
use tailwater_api::etcdserverpb::lease_client::LeaseClient;
use tailwater_api::etcdserverpb::watch_client::WatchClient;
use tailwater_api::etcdserverpb::watch_request::RequestUnion;
use tailwater_api::mvccpb::Event;
use tailwater_tests::{Kind, Options, RawClient, Server, left_out, program};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

/// How long anything that must come may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// How long silence must last to count.
pub(crate) const SILENCE: Duration = Duration::from_millis(400);

/// A server with its clients.
pub(crate) struct Api {
    pub(crate) server: Option<Server>,
    pub(crate) url: String,
    pub(crate) kv: KvClient<Channel>,
    pub(crate) lease: LeaseClient<Channel>,
    pub(crate) channel: Channel,
}

/// A connection of its own.
pub(crate) fn channel(url: &str) -> Channel {
    RawClient::new(url).unwrap().channel()
}

/// Whether the full counts are asked for.
pub(crate) fn full() -> bool {
    ["API_FULL", "ACCEPTANCE"].iter().any(|name| std::env::var(name).is_ok_and(|value| value == "1"))
}

impl Api {
    /// Starts the server of `test`; none when it cannot run here, which has been said then.
    pub(crate) async fn start(test: &str, flags: &[&str]) -> Option<Self> {
        if let Ok(url) = std::env::var("API_ENDPOINT") {
            return Some(Self::of(url, None));
        }
        let etcd = std::env::var("API_SERVER").is_ok_and(|value| value == "etcd");
        let kind = if etcd { Kind::Etcd } else { Kind::Tailwater };
        if let Err(error) = program(kind) {
            left_out(test, &format!("{error:#}"));
            return None;
        }
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let options = Options { flags, etcd_flags: vec!["--unsafe-no-fsync".into()] };
        let server = Server::start(kind, &options).await.unwrap();
        Some(Self::of(server.url().to_owned(), Some(server)))
    }

    fn of(url: String, server: Option<Server>) -> Self {
        let channel = channel(&url);
        let kv = KvClient::new(channel.clone()).max_decoding_message_size(1 << 30);
        Self { server, url, kv, lease: LeaseClient::new(channel.clone()), channel }
    }

    pub(crate) async fn put(&self, key: &str, value: impl Into<Vec<u8>>) -> i64 {
        self.put_leased(key, value, 0).await
    }

    pub(crate) async fn put_leased(&self, key: &str, value: impl Into<Vec<u8>>, lease: i64) -> i64 {
        let value: Vec<u8> = value.into();
        let request = pb::PutRequest { key: key.to_owned().into(), value: value.into(), lease, ..Default::default() };
        self.kv.clone().put(request).await.unwrap().into_inner().header.unwrap().revision
    }

    pub(crate) async fn delete(&self, key: &str) -> i64 {
        let request = pb::DeleteRangeRequest { key: key.to_owned().into(), ..Default::default() };
        self.kv.clone().delete_range(request).await.unwrap().into_inner().header.unwrap().revision
    }

    pub(crate) async fn compact(&self, revision: i64) {
        self.kv.clone().compact(pb::CompactionRequest { revision, physical: false }).await.unwrap();
    }

    pub(crate) async fn list(&self, prefix: &str) -> pb::RangeResponse {
        let request = pb::RangeRequest {
            key: prefix.to_owned().into(),
            range_end: prefix_end(prefix).into(),
            ..Default::default()
        };
        self.kv.clone().range(request).await.unwrap().into_inner()
    }
}

/// The end of the range of keys that begin with `prefix`, whose last byte is below 0xff.
pub(crate) fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().unwrap() += 1;
    end
}

/// A request to watch all keys that begin with `prefix`, from `start`.
pub(crate) fn watch_prefix(prefix: &str, start: i64) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest {
        key: prefix.to_owned().into(),
        range_end: prefix_end(prefix).into(),
        start_revision: start,
        ..Default::default()
    }
}

/// One watch stream.
pub(crate) struct WatchStream {
    requests: Option<mpsc::Sender<pb::WatchRequest>>,
    answers: Streaming<pb::WatchResponse>,
}

impl WatchStream {
    /// Opens a stream with its first watch, and takes the created answer.
    pub(crate) async fn open(channel: Channel, create: pb::WatchCreateRequest) -> (Self, pb::WatchResponse) {
        let (requests, bodies) = mpsc::channel(64);
        let first = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        requests.send(first).await.unwrap();
        let mut client = WatchClient::new(channel).max_decoding_message_size(1 << 30);
        let answers = client.watch(ReceiverStream::new(bodies)).await.unwrap().into_inner();
        let mut stream = Self { requests: Some(requests), answers };
        let created = stream.next().await;
        assert!(created.created, "the first answer is not created: {created:?}");
        (stream, created)
    }

    pub(crate) async fn send(&self, request: RequestUnion) {
        let request = pb::WatchRequest { request_union: Some(request) };
        self.requests.as_ref().unwrap().send(request).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> pb::WatchResponse {
        let answer = tokio::time::timeout(PATIENCE, self.answers.message()).await;
        answer.expect("no answer on the watch stream").unwrap().expect("the watch stream ended")
    }

    /// The next answer, if one comes soon.
    pub(crate) async fn next_soon(&mut self) -> Option<pb::WatchResponse> {
        tokio::time::timeout(SILENCE, self.answers.message()).await.ok().map(|answer| answer.unwrap().unwrap())
    }

    /// Events up to and with `revision`.
    pub(crate) async fn events_to(&mut self, revision: i64) -> Vec<Event> {
        let mut events: Vec<Event> = Vec::new();
        while events.last().is_none_or(|event| revision_of(event) < revision) {
            let answer = self.next().await;
            assert!(!answer.canceled, "canceled: {answer:?}");
            events.extend(answer.events);
        }
        events
    }

    /// Says that no more requests come. The answers go on.
    pub(crate) fn half_close(&mut self) {
        self.requests = None;
    }
}

/// The revision that made `event`.
pub(crate) fn revision_of(event: &Event) -> i64 {
    event.kv.as_ref().unwrap().mod_revision
}
