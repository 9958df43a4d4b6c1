//! gRPC at its edges: what is not a method, not a message, too large, or too late.

use std::time::Duration;

use bytes::Bytes;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::watch_request::RequestUnion;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request, Status};

use crate::support::Server;

/// Calls `path` with an empty message.
async fn call(server: &Server, path: &'static str) -> Status {
    let mut client = tonic::client::Grpc::new(server.channel().await);
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<pb::StatusRequest, pb::StatusResponse>::default();
    let request = Request::new(pb::StatusRequest {});
    client.unary(request, PathAndQuery::from_static(path), codec).await.unwrap_err()
}

fn create(key: &'static str) -> pb::WatchRequest {
    let create = pb::WatchCreateRequest { key: key.into(), ..Default::default() };
    pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

#[tokio::test]
async fn what_is_not_served_is_named() {
    let server = Server::start(&[]);
    for (path, text) in [
        ("/a.B/C", "unknown service a.B"),
        ("/etcdserverpb.KV/Nope", "unknown method Nope for service etcdserverpb.KV"),
        ("/nope", "malformed method name: \"/nope\""),
    ] {
        let status = call(&server, path).await;
        assert_eq!((status.code(), status.message()), (Code::Unimplemented, text), "{path}");
    }
}

#[tokio::test]
async fn oversize_is_refused_by_the_transport_or_by_the_request_limit() {
    let server = Server::start(&["--max-request-bytes=100000"]);
    let mut kv = server.kv().await;
    let mut put = async |bytes: usize| {
        let request = pb::PutRequest { key: "k".into(), value: Bytes::from(vec![7; bytes]), ..Default::default() };
        kv.put(request).await
    };
    let refused = put(100_000).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, "etcdserver: request is too large"));
    let refused = put(700_000).await.unwrap_err();
    let text = "grpc: received message larger than max (700007 vs. 624288)";
    assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, text));
    put(90_000).await.unwrap();
}

#[tokio::test]
async fn a_leader_is_required_and_there() {
    let server = Server::start(&[]);
    let mut kv = server.kv().await;
    let mut request = Request::new(pb::RangeRequest { key: "k".into(), ..Default::default() });
    request.metadata_mut().insert("hasleader", "true".parse().unwrap());
    kv.range(request).await.unwrap();
    let mut watch = pb::watch_client::WatchClient::new(server.channel().await);
    let mut request = Request::new(tokio_stream::iter([create("k")]));
    request.metadata_mut().insert("hasleader", "true".parse().unwrap());
    let mut stream = watch.watch(request).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().unwrap().created);
    // Three election timeouts with a leader end nothing.
    let quiet = tokio::time::timeout(Duration::from_millis(3500), stream.message()).await;
    assert!(quiet.is_err(), "{quiet:?}");
}

#[tokio::test]
async fn a_stream_ends_at_its_deadline() {
    let server = Server::start(&[]);
    let mut watch = pb::watch_client::WatchClient::new(server.channel().await);
    let mut request = Request::new(tokio_stream::iter([create("k")]));
    // Not through `set_timeout`, by which the client itself would end the call.
    request.metadata_mut().insert("grpc-timeout", "400m".parse().unwrap());
    let mut stream = watch.watch(request).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().unwrap().created);
    let ended = tokio::time::timeout(Duration::from_secs(20), stream.message()).await.unwrap().unwrap_err();
    assert_eq!((ended.code(), ended.message()), (Code::DeadlineExceeded, "context deadline exceeded"));
}

#[tokio::test]
async fn a_malformed_timeout_is_refused() {
    let server = Server::start(&[]);
    let mut kv = server.kv().await;
    let mut request = Request::new(pb::RangeRequest { key: "k".into(), ..Default::default() });
    request.metadata_mut().insert("grpc-timeout", "x".parse().unwrap());
    let refused = kv.range(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Internal);
    assert_eq!(refused.message(), "malformed grpc-timeout: transport: timeout string is too short: \"x\"");
}

/// etcd's watch goes on when its client has nothing more to ask; its keepalive stream ends.
#[tokio::test]
async fn a_half_closed_watch_goes_on_and_a_half_closed_keepalive_ends() {
    let server = Server::start(&[]);
    let mut watch = pb::watch_client::WatchClient::new(server.channel().await);
    let mut stream = watch.watch(tokio_stream::iter([create("k")])).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().unwrap().created);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let put = pb::PutRequest { key: "k".into(), value: "".into(), ..Default::default() };
    server.kv().await.put(put).await.unwrap();
    let response = stream.message().await.unwrap().unwrap();
    assert_eq!(response.events.len(), 1);

    let mut lease = pb::lease_client::LeaseClient::new(server.channel().await);
    let requests = tokio_stream::iter([pb::LeaseKeepAliveRequest { id: 77 }]);
    let mut stream = lease.lease_keep_alive(requests).await.unwrap().into_inner();
    // An unknown lease is answered with a TTL of 0.
    let answer = stream.message().await.unwrap().unwrap();
    assert_eq!((answer.id, answer.ttl), (77, 0));
    assert_eq!(stream.message().await.unwrap(), None);
}

/// Clients give up calls in bursts, for instance when a context ends that many of them share; the connection that
/// carries them, and the watches on it, must not suffer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_cancelled_calls_leaves_the_connection_alone() {
    let server = Server::start(&[]);
    let channel = server.channel().await;
    let requests = tokio_stream::iter([create("k")]);
    let mut stream = pb::watch_client::WatchClient::new(channel.clone()).watch(requests).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().unwrap().created);
    let mut kv = pb::kv_client::KvClient::new(channel);
    for _ in 0..20 {
        let calls = (0..200).map(|_| {
            let mut kv = kv.clone();
            let range = pb::RangeRequest { key: "k".into(), ..Default::default() };
            tokio::spawn(
                async move { tokio::time::timeout(Duration::from_micros(300), kv.range(range)).await.is_err() },
            )
        });
        for call in calls.collect::<Vec<_>>() {
            call.await.unwrap();
        }
    }
    kv.put(pb::PutRequest { key: "k".into(), value: "v".into(), ..Default::default() }).await.unwrap();
    assert_eq!(stream.message().await.unwrap().unwrap().events.len(), 1);
}
