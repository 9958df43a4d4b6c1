//! Lists whose clients take nothing: what they may cost, and what they show in the end.

use std::time::Duration;

use bytes::Bytes;
use tailwater_api::etcdserverpb as pb;
use tonic::codec::Streaming;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::support::Server;

const KEYS: usize = 400;
const VALUE_BYTES: usize = 64 << 10;
const BOUND: usize = 1 << 20;

async fn fill(server: &Server, value: u8) {
    let mut kv = server.kv().await;
    for key in 0..KEYS {
        let value = Bytes::from(vec![value; VALUE_BYTES]);
        kv.put(pb::PutRequest { key: format!("k{key:04}").into(), value, ..Default::default() }).await.unwrap();
    }
}

fn everything() -> pb::RangeRequest {
    pb::RangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() }
}

/// A connection of its own, on which a stream gets no further than 64 KiB unless it is read.
async fn connect(server: &Server) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{}", server.port)).unwrap();
    endpoint.initial_stream_window_size(1 << 16).connect().await.unwrap()
}

/// A call whose answer is taken only as far as it is asked for, also that of a unary method.
async fn begin<M: prost::Message + Default + 'static>(
    channel: Channel,
    method: &'static str,
) -> Result<Streaming<M>, Status> {
    let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(1 << 30);
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<pb::RangeRequest, M>::default();
    let path = http::uri::PathAndQuery::from_static(method);
    Ok(client.server_streaming(Request::new(everything()), path, codec).await?.into_inner())
}

async fn next<M>(stream: &mut Streaming<M>) -> Result<Option<M>, Status> {
    tokio::time::timeout(Duration::from_secs(60), stream.message()).await.expect("the list goes on")
}

/// Metrics follow at intervals.
async fn until(server: &Server, metric: &str, value: f64) {
    for _ in 0..400 {
        if server.find_metric(metric) == Some(value) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{metric} is {}, not {value}", server.metric(metric));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streamed_lists_that_are_not_read_hold_a_chunk_each() {
    const LISTS: usize = 48;
    let server = Server::start(&["--window-bytes=1048576", &format!("--watch-memory-bytes={}", 8 * BOUND)]);
    fill(&server, b'a').await;
    let mut lists = Vec::new();
    for _ in 0..LISTS {
        let path = "/etcdserverpb.KV/RangeStream";
        let mut list = begin::<pb::RangeStreamResponse>(connect(&server).await, path).await.unwrap();
        let first = next(&mut list).await.unwrap().unwrap().range_response.unwrap();
        assert!(!first.kvs.is_empty() && first.header.is_none());
        lists.push((list, first.kvs));
    }
    fill(&server, b'b').await;
    until(&server, "tailwater_fanout_list_streams ", LISTS as f64).await;
    let held = server.metric("tailwater_fanout_stream_bytes ");
    assert!(held > 0.0 && held <= 8.0 * BOUND as f64, "{held} bytes held");
    // Every key was replaced, and the window has moved on: the rest is read from the log.
    let (mut list, mut kvs) = lists.pop().unwrap();
    let end = loop {
        let message = next(&mut list).await.unwrap().unwrap().range_response.unwrap();
        kvs.extend(message.kvs);
        if message.header.is_some() {
            break (message.count, message.more);
        }
    };
    assert_eq!(end, (i64::try_from(KEYS).unwrap(), false));
    assert!(next(&mut list).await.unwrap().is_none());
    assert_eq!(kvs.len(), KEYS);
    assert!(kvs.iter().all(|kv| kv.value[..] == [b'a'; VALUE_BYTES]), "another revision is shown");
    // One that meets a compaction past its revision ends with etcd's error.
    let (mut list, _) = lists.pop().unwrap();
    let revision = i64::try_from(2 * KEYS).unwrap();
    server.kv().await.compact(pb::CompactionRequest { revision, physical: false }).await.unwrap();
    let refused = loop {
        match next(&mut list).await {
            Ok(message) => assert!(message.unwrap().range_response.unwrap().header.is_none()),
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), Code::OutOfRange);
    assert_eq!(refused.message(), "etcdserver: mvcc: required revision has been compacted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn big_lists_beyond_the_memory_of_lists_are_refused_and_small_ones_never() {
    let server = Server::start(&[&format!("--list-memory-bytes={}", 2 * KEYS * (VALUE_BYTES + 100))]);
    fill(&server, b'a').await;
    let path = "/etcdserverpb.KV/Range";
    let mut lists = Vec::new();
    for _ in 0..2 {
        lists.push(begin::<pb::RangeResponse>(connect(&server).await, path).await.unwrap());
    }
    let refused = begin::<pb::RangeResponse>(connect(&server).await, path).await.expect_err("there is no room");
    assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, "etcdserver: too many requests"));
    until(&server, "tailwater_fanout_lists_refused_total ", 1.0).await;
    let mut kv = server.kv().await.max_decoding_message_size(1 << 30);
    for request in [
        pb::RangeRequest { limit: 1, ..everything() },
        pb::RangeRequest { keys_only: true, ..everything() },
        pb::RangeRequest { count_only: true, ..everything() },
    ] {
        assert_eq!(kv.range(request).await.unwrap().into_inner().count, i64::try_from(KEYS).unwrap());
    }
    // A txn that only reads counts as well.
    let range = pb::request_op::Request::RequestRange(everything());
    let txn = pb::TxnRequest { success: vec![pb::RequestOp { request: Some(range) }], ..Default::default() };
    assert_eq!(kv.txn(txn.clone()).await.unwrap_err().code(), Code::ResourceExhausted);
    // One is read to its end, one is given up: both make room.
    let mut list = lists.pop().unwrap();
    assert_eq!(next(&mut list).await.unwrap().unwrap().kvs.len(), KEYS);
    assert!(next(&mut list).await.unwrap().is_none());
    #[expect(clippy::cast_precision_loss, reason = "megabytes")]
    let one = (KEYS * VALUE_BYTES) as f64;
    while server.metric("tailwater_fanout_list_bytes ") > 1.5 * one {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(kv.txn(txn).await.unwrap().into_inner().responses.len(), 1);
    drop(lists);
    until(&server, "tailwater_fanout_list_bytes ", 0.0).await;
}

/// etcd refuses a stream with an order, and lets one with a sort target alone pass.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_streamed_list_with_a_sort_target_is_sorted_as_a_list_is() {
    let server = Server::start(&[]);
    let mut kv = server.kv().await;
    for number in 0..60 {
        let value = format!("{:02}", number * 7 % 60);
        kv.put(pb::PutRequest { key: format!("k{number:02}").into(), value: value.into(), ..Default::default() })
            .await
            .unwrap();
    }
    let sorted = pb::RangeRequest { sort_target: pb::range_request::SortTarget::Value.into(), ..everything() };
    let list = kv.range(sorted.clone()).await.unwrap().into_inner();
    assert!(list.kvs.is_sorted_by_key(|kv| kv.value.clone()));
    let mut stream = kv.range_stream(sorted.clone()).await.unwrap().into_inner();
    let message = stream.message().await.unwrap().unwrap().range_response.unwrap();
    assert_eq!((message.kvs, message.count, message.more), (list.kvs, 60, false));
    assert!(stream.message().await.unwrap().is_none());
    let descending = pb::RangeRequest { sort_order: pb::range_request::SortOrder::Descend.into(), ..sorted };
    let refused = kv.range_stream(descending).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
}
