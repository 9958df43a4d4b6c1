//! A client that asks for events and reads none: what it may cost.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::watch_request::RequestUnion;
use tokio_stream::StreamExt;
use tonic::transport::Endpoint;

use crate::support::Server;

const STREAMS: u64 = 32;
const VALUE_BYTES: usize = 256 << 10;
const EVENTS: usize = 800;
const WINDOW_BYTES: u64 = 8 << 20;
const CHUNK_BYTES: u64 = 64 << 10;

/// 200 MB of events pass many streams, each on a connection of its own, that take nothing beyond their HTTP/2 window.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_take_nothing_hold_a_chunk_each() {
    let window = format!("--window-bytes={WINDOW_BYTES}");
    let mut server = Server::start(&[&window, &format!("--stream-chunk-bytes={CHUNK_BYTES}")]);
    let mut kv = server.kv().await;
    let mut write = async |count: usize| {
        for index in 0..count {
            let value = Bytes::from(vec![u8::try_from(index % 251).unwrap(); VALUE_BYTES]);
            kv.put(pb::PutRequest { key: "k".into(), value, ..Default::default() }).await.unwrap();
        }
    };
    // What the write path keeps by itself (memtables, the tail's hot end, the window) is there before the measurement:
    // enough has passed to fill each of them.
    write(EVENTS).await;
    let before = server.memory_bytes("VmHWM");
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{}", server.port)).unwrap();
        let channel = endpoint.initial_stream_window_size(1 << 16).connect().await.unwrap();
        let create = pb::WatchCreateRequest { key: "k".into(), ..Default::default() };
        let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let requests = tokio_stream::iter([request]).chain(tokio_stream::pending());
        let mut watch = pb::watch_client::WatchClient::new(channel).max_decoding_message_size(1 << 30);
        let mut stream = watch.watch(requests).await.unwrap().into_inner();
        assert!(stream.message().await.unwrap().unwrap().created);
        streams.push(stream);
    }
    write(EVENTS).await;
    let grown = server.memory_bytes("VmHWM").saturating_sub(before);
    // Per stream a chunk, and the event that it is cut from. The rest is what two peaks of a process differ by that
    // writes as much without any stream.
    let bound = STREAMS * (CHUNK_BYTES + VALUE_BYTES as u64) + (40 << 20);
    assert!(grown <= bound, "{} MiB higher after 200 MB; the bound is {} MiB", grown >> 20, bound >> 20);

    // Reading again, a stream gets every event in order.
    let mut stream = streams.pop().unwrap();
    let (mut seen, mut last, begun) = (0, 1 + i64::try_from(EVENTS).unwrap(), Instant::now());
    while seen < EVENTS {
        let next = tokio::time::timeout(Duration::from_secs(30), stream.message()).await;
        let response = next.unwrap_or_else(|_| panic!("stuck after {seen} events")).unwrap().unwrap();
        for event in response.events {
            let revision = event.kv.unwrap().mod_revision;
            assert_eq!(revision, last + 1, "event {seen}");
            last = revision;
            seen += 1;
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(120));

    // The other streams still take nothing; they do not hold up the end beyond the grace time.
    let begun = Instant::now();
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert!(begun.elapsed() < Duration::from_secs(15), "it took {:?}", begun.elapsed());
}
