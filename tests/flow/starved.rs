//! etcd 17529: hundreds of watchers that read nothing while millions of events wait for them. There it took minutes to
//! catch up, and events were lost.

use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use tailwater_api::etcdserverpb as pb;
use tailwater_tests::Node;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;

use crate::{ALONE, acceptance, connect, kv};

const WATCHERS: usize = 720;
const VALUE_BYTES: usize = 512;
/// Writers, so that many puts share a sync.
const WRITERS: i64 = 64;
/// Watchers that read at a time, once they may.
const READERS: usize = 16;

type Stream = tonic::Streaming<pb::WatchResponse>;

/// A created watch on a connection of its own.
async fn open(endpoint: String) -> anyhow::Result<Stream> {
    let create = pb::WatchCreateRequest { key: "starved/".into(), range_end: "starved0".into(), ..Default::default() };
    let request = pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) };
    let requests = tokio_stream::iter([request]).chain(tokio_stream::pending());
    let mut client = pb::watch_client::WatchClient::new(connect(&endpoint).await?).max_decoding_message_size(1 << 30);
    let mut stream = client.watch(requests).await?.into_inner();
    anyhow::ensure!(stream.next().await.context("created")??.created, "the first answer is `created`");
    Ok(stream)
}

/// Every revision from `first` to `last`, once and in order.
async fn read_all(mut stream: Stream, first: i64, last: i64) -> anyhow::Result<()> {
    let mut next = first;
    while next <= last {
        let response = tokio::time::timeout(Duration::from_secs(60), stream.next()).await;
        let response = response.context("nothing comes any more")?.context("the watch ended")??;
        anyhow::ensure!(!response.canceled, "canceled: {}", response.cancel_reason);
        for event in response.events {
            let kv = event.kv.context("an event has a key")?;
            anyhow::ensure!(kv.mod_revision == next, "revision {} in the place of {next}", kv.mod_revision);
            anyhow::ensure!(kv.value.len() == VALUE_BYTES, "revision {next} is cut");
            next += 1;
        }
    }
    Ok(())
}

async fn write(endpoint: &str, count: i64) -> anyhow::Result<()> {
    let channel = connect(endpoint).await?;
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let mut kv = kv(&channel);
        writers.spawn(async move {
            for index in (writer..count).step_by(usize::try_from(WRITERS).expect("small")) {
                let key = Bytes::from(format!("starved/{index:08}"));
                let put = pb::PutRequest { key, value: vec![b'v'; VALUE_BYTES].into(), ..Default::default() };
                kv.put(put).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = writers.join_next().await {
        done??;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_starved_watchers_lose_nothing() {
    let _alone = ALONE.lock().await;
    let count = if acceptance() { 12_000 } else { 300 };
    let bound: u64 = 64 << 20;
    let mut node = Node::new().expect("a directory").with(&["--watch-memory-bytes", &bound.to_string()]);
    node.start(Vec::new()).await.expect("it starts");
    let mut streams = Vec::with_capacity(WATCHERS);
    for _ in 0..WATCHERS {
        streams.push(open(node.endpoint().to_owned()).await.expect("a watch"));
    }
    let before = node.memory_bytes("VmRSS").expect("it runs");
    write(node.endpoint(), count).await.expect("written, whoever reads");
    // What is written stays in memory too: the store and the window hold it, and the state is written out from there.
    let written = u64::try_from(count).expect("positive") * 4 * 1024;
    let mut reading: JoinSet<anyhow::Result<()>> = JoinSet::new();
    for stream in streams {
        if reading.len() == READERS {
            reading.join_next().await.expect("not empty").expect("no panic").expect("nothing is lost");
        }
        reading.spawn(read_all(stream, 2, count + 1));
    }
    while let Some(done) = reading.join_next().await {
        done.expect("no panic").expect("nothing is lost");
    }
    let high = node.memory_bytes("VmHWM").expect("it runs");
    let grown = high.saturating_sub(before);
    assert!(grown <= bound + written, "{} MiB above the start, with a bound of {} MiB", grown >> 20, bound >> 20);
}
