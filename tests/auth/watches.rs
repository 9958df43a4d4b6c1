//! Watches under auth that changes.

use bytes::Bytes;
use futures_util::StreamExt;
use prost::Message;
use tailwater_api::etcdserverpb as pb;
use tailwater_tests::RawClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::client::{PATIENCE, add_role, ask, enable, grant_role, login, manage, put, revoke_role, servers, watch};

/// A watch stream with these watchers.
async fn open(client: &RawClient, watches: Vec<pb::WatchRequest>) -> (mpsc::Sender<Bytes>, Streaming<Bytes>) {
    let (sender, requests) = mpsc::channel(watches.len());
    for watch in &watches {
        sender.try_send(watch.encode_to_vec().into()).unwrap();
    }
    let stream = client.streaming("/etcdserverpb.Watch/Watch", ReceiverStream::new(requests)).await;
    let mut stream = stream.unwrap().into_inner();
    for _ in watches {
        let created = next(&mut stream).await;
        assert!(created.created && !created.canceled, "{created:?}");
    }
    (sender, stream)
}

async fn next(stream: &mut Streaming<Bytes>) -> pb::WatchResponse {
    let answer = tokio::time::timeout(PATIENCE, stream.next()).await.expect("an answer comes");
    pb::WatchResponse::decode(answer.unwrap().unwrap()).unwrap()
}

async fn put_by(client: &RawClient, key: &str) {
    let _: pb::PutResponse = ask(client, "/etcdserverpb.KV/Put", put(key)).await;
}

fn keys(response: &pb::WatchResponse) -> Vec<&[u8]> {
    response.events.iter().map(|event| event.kv.as_ref().unwrap().key.as_ref()).collect()
}

const DENIED: &str = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
const EMPTY: &str = "rpc error: code = InvalidArgument desc = etcdserver: user name is empty";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_sees_nothing_after_its_right_is_gone() {
    let (cluster, clients) = servers().await;
    enable(&clients[0]).await;
    let root = login(&clients[0], "root").await;
    add_role(&root, "more", &[("x", "y")]).await;
    for client in &clients {
        let root = login(client, "root").await;
        manage(&root, "UserGrantRole", grant_role("right", "more")).await;
        let right = login(client, "right").await;
        let (_sender, mut stream) = open(&right, vec![watch("a", "b"), watch("x", "y")]).await;
        put_by(&root, "a1").await;
        assert_eq!(keys(&next(&mut stream).await), [b"a1"]);
        // A change that takes nothing changes nothing.
        manage(&root, "UserGrantRole", grant_role("wrong", "right")).await;
        manage(&root, "UserRevokeRole", revoke_role("wrong", "right")).await;
        put_by(&root, "x1").await;
        assert_eq!(keys(&next(&mut stream).await), [b"x1"]);
        manage(&root, "UserRevokeRole", revoke_role("right", "more")).await;
        put_by(&root, "x2").await;
        put_by(&root, "a2").await;
        let canceled = next(&mut stream).await;
        assert_eq!((canceled.watch_id, canceled.canceled, canceled.cancel_reason.as_str()), (1, true, DENIED));
        assert!(canceled.events.is_empty());
        let goes_on = next(&mut stream).await;
        assert_eq!((goes_on.watch_id, keys(&goes_on)), (0, vec![&b"a2"[..]]));
    }
    cluster.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_of_nobody_ends_when_auth_comes() {
    let (cluster, clients) = servers().await;
    let mut streams = Vec::new();
    for client in &clients {
        streams.push(open(client, vec![watch("\0", "\0")]).await);
    }
    put_by(&clients[0], "a1").await;
    for (_, stream) in &mut streams {
        assert_eq!(keys(&next(stream).await), [b"a1"]);
    }
    enable(&clients[0]).await;
    put_by(&login(&clients[0], "root").await, "a2").await;
    for (_, stream) in &mut streams {
        let canceled = next(stream).await;
        assert_eq!((canceled.canceled, canceled.cancel_reason.as_str()), (true, EMPTY));
    }
    cluster.finish();
}
