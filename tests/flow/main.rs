//! Flow control seen from outside: a huge record under many watchers, starved ones, and how writes share a sync.
//!
//! `ACCEPTANCE=1` runs the full counts.

mod starved;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use tailwater_api::etcdserverpb as pb;
use tailwater_tests::{Node, SyncedDisk};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint};

/// Each of these tests wants the machine to itself.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn acceptance() -> bool {
    std::env::var("ACCEPTANCE").is_ok_and(|value| value == "1")
}

async fn connect(endpoint: &str) -> anyhow::Result<Channel> {
    Ok(Endpoint::from_shared(endpoint.to_owned())?.connect().await?)
}

fn kv(channel: &Channel) -> pb::kv_client::KvClient<Channel> {
    pb::kv_client::KvClient::new(channel.clone()).max_decoding_message_size(1 << 30)
}

fn key(index: usize) -> Bytes {
    Bytes::from(format!("many/{index:08}"))
}

async fn fill(channel: &Channel, count: usize) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    for worker in 0..64 {
        let mut kv = kv(channel);
        tasks.spawn(async move {
            // 100 puts in a transaction: the number of keys matters here, not the number of revisions.
            for first in (worker * 100..count).step_by(6400) {
                let puts = (first..count.min(first + 100)).map(|index| {
                    let put = pb::PutRequest { key: key(index), value: "value".into(), ..Default::default() };
                    pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }
                });
                kv.txn(pb::TxnRequest { success: puts.collect(), ..Default::default() }).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

async fn watch_deletes(
    endpoint: String,
    count: usize,
    ready: mpsc::Sender<()>,
    readers: Arc<Semaphore>,
) -> anyhow::Result<()> {
    let create =
        pb::WatchCreateRequest { key: "many/".into(), range_end: "many0".into(), prev_kv: true, ..Default::default() };
    let request = pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) };
    let requests = tokio_stream::iter([request]).chain(tokio_stream::pending());
    let mut client = pb::watch_client::WatchClient::new(connect(&endpoint).await?).max_decoding_message_size(1 << 30);
    let mut stream = client.watch(requests).await?.into_inner();
    anyhow::ensure!(stream.next().await.context("created")??.created, "the first answer is `created`");
    ready.send(()).await?;
    // In full the answers are 150 MiB each: a few watchers read at a time, the others stall meanwhile.
    let _reading = readers.acquire().await?;
    // One revision reaches a client whole: in one response.
    let response = stream.next().await.context("the watch ended")??;
    anyhow::ensure!(response.events.len() == count, "{} of {count} deletes", response.events.len());
    for (index, event) in response.events.iter().enumerate() {
        let kv = event.kv.as_ref().context("an event has a key")?;
        anyhow::ensure!(kv.key == key(index), "out of order at {index}");
        let previous = event.prev_kv.as_ref().context("prev_kv was asked for")?;
        anyhow::ensure!(previous.key == kv.key && previous.value == "value", "wrong prev_kv at {index}");
    }
    Ok(())
}

/// Deleting many keys in one request under many watchers with prev_kv: delivered whole, within the memory bound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_huge_delete_reaches_every_watcher_whole_and_within_the_bound() {
    let _alone = ALONE.lock().await;
    let (count, watchers) = if acceptance() { (1_000_000, 100) } else { (30_000, 20) };
    let bound: u64 = 64 << 20;
    let mut node = Node::new().expect("a directory").with(&["--watch-memory-bytes", &bound.to_string()]);
    node.start(Vec::new()).await.expect("it starts");
    let channel = connect(node.endpoint()).await.expect("it serves");
    fill(&channel, count).await.expect("the keys are written");
    let (ready, mut all_ready) = mpsc::channel(watchers);
    let mut tasks = JoinSet::new();
    let readers = Arc::new(Semaphore::new(4));
    for _ in 0..watchers {
        tasks.spawn(watch_deletes(node.endpoint().to_owned(), count, ready.clone(), Arc::clone(&readers)));
    }
    for _ in 0..watchers {
        all_ready.recv().await.expect("every watcher is created");
    }
    let before = node.memory_bytes("VmRSS").expect("it runs");
    let range = pb::DeleteRangeRequest { key: "many/".into(), range_end: "many0".into(), ..Default::default() };
    let answer = kv(&channel).delete_range(range).await.expect("deleted").into_inner();
    assert_eq!(usize::try_from(answer.deleted), Ok(count));
    while let Some(done) = tasks.join_next().await {
        done.expect("no panic").expect("delivered whole");
    }
    let high = node.memory_bytes("VmHWM").expect("it runs");
    // The record itself: one event per key in the tail, the window and the write batch.
    let record = count as u64 * 1024;
    assert!(
        high - before <= bound + record,
        "{} MiB above the start; the bound is {} MiB for watchers and {} MiB for the record",
        (high - before) >> 20,
        bound >> 20,
        record >> 20
    );
}

async fn metric(endpoint: &str, name: &str) -> anyhow::Result<f64> {
    let address = endpoint.trim_start_matches("http://");
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    tokio::io::AsyncWriteExt::write_all(
        &mut stream,
        format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes(),
    )
    .await?;
    let mut text = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut text).await?;
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find(|line| line.starts_with(name)).with_context(|| format!("no {name} in {text}"))?;
    Ok(line.rsplit(' ').next().context("a value")?.trim().parse()?)
}

/// What 1,000 clients send during a slow sync shares the next one. The full count takes a sync of 20 ms, an optimised
/// server and the load generator; a server that is built for tests answers fewer requests in that time, so there the
/// sync takes longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_clients_share_a_slow_sync() {
    let _alone = ALONE.lock().await;
    let mut node = Node::new().expect("a directory");
    let disk = SyncedDisk::new(node.root(), true)
        .expect("it compiles")
        .with_delay(Duration::from_millis(if acceptance() { 20 } else { 500 }));
    disk.reset().expect("an empty directory");
    node.start(disk.environment()).await.expect("it starts");
    let (writes, syncs) = ("tailwater_commands_per_entry_sum", "etcd_disk_wal_fsync_duration_seconds_count");
    let before =
        [metric(node.endpoint(), writes).await.expect("served"), metric(node.endpoint(), syncs).await.expect("served")];
    if acceptance() {
        generate_load(node.endpoint()).await.expect("load");
    } else {
        write_from_a_thousand_clients(node.endpoint()).await;
    }
    let writes = metric(node.endpoint(), writes).await.expect("served") - before[0];
    let syncs = metric(node.endpoint(), syncs).await.expect("served") - before[1];
    // The first and the last syncs of a short run are not full.
    let least = if acceptance() { 500.0 } else { 300.0 };
    let per_sync = writes / syncs;
    assert!(per_sync >= least, "{writes} writes took {syncs} syncs: {per_sync:.0} writes per sync");
}

/// 1000 clients on 100 connections, in a process of their own.
async fn generate_load(endpoint: &str) -> anyhow::Result<()> {
    let program = tailwater_tests::program(tailwater_tests::Kind::Tailwater)?;
    let arguments = ["bench", "put", "--clients=1000", "--conns=100", "--seconds=6", "--endpoints", endpoint];
    let status = tokio::process::Command::new(program).args(arguments).status().await?;
    anyhow::ensure!(status.success(), "the load generator failed");
    Ok(())
}

async fn write_from_a_thousand_clients(endpoint: &str) {
    let mut channels = Vec::new();
    for _ in 0..20 {
        channels.push(connect(endpoint).await.expect("it serves"));
    }
    let end = tokio::time::Instant::now() + Duration::from_secs(3);
    let mut tasks = JoinSet::new();
    for client in 0..1000 {
        let mut kv = kv(&channels[client % channels.len()]);
        tasks.spawn(async move {
            while tokio::time::Instant::now() < end {
                let put = pb::PutRequest { key: key(client), value: "x".into(), ..Default::default() };
                kv.put(put).await.expect("written");
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no panic");
    }
}
