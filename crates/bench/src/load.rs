//! The workloads: what they send, and what they measure.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use clap::ValueEnum;
use hdrhistogram::Histogram;
use tailwater_api::etcdserverpb as pb;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint};

const CONNECTIONS: usize = 100;
const CLIENTS: usize = 1000;
const LIST_KEYS: usize = 10_000;
const WATCHERS: usize = 1000;

/// What is done to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Workload {
    /// 256 B puts by 1000 clients on 100 connections.
    Put,
    /// 1 KiB compare-and-put transactions, as Kubernetes sends them, by 1000 clients on 100 connections.
    Txn,
    /// Linearizable gets of one key by 1000 clients on 100 connections.
    Get,
    /// Lists of 10,000 keys of 1 KiB by 4 clients.
    List,
    /// 1000 watchers of one prefix on 1000 streams and 100 connections; 16 clients put 1 KiB values.
    Watch,
}

impl Workload {
    /// All of them, in the table's order.
    pub(crate) const ALL: [Self; 5] = [Self::Put, Self::Txn, Self::Get, Self::List, Self::Watch];

    /// What one operation is.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Put | Self::Txn => "write",
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "delivery",
        }
    }
}

/// What was measured.
pub(crate) struct Sample {
    /// Operations finished.
    pub(crate) operations: u64,
    /// In this time.
    pub(crate) elapsed: Duration,
    /// Microseconds per operation; for watches from sending the put to receiving the event.
    pub(crate) latency: Histogram<u64>,
}

impl Sample {
    /// Operations per second.
    pub(crate) fn rate(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let operations = self.operations as f64;
        operations / self.elapsed.as_secs_f64()
    }
}

/// Connections are open, data is loaded, watchers are registered.
pub(crate) struct Prepared {
    workload: Workload,
    channels: Vec<Channel>,
    watchers: Vec<tonic::Streaming<pb::WatchResponse>>,
}

/// A client of the KV service.
pub(crate) type Kv = pb::kv_client::KvClient<Channel>;

/// A client on this connection.
pub(crate) fn kv(channel: &Channel) -> Kv {
    Kv::new(channel.clone()).max_decoding_message_size(1 << 30)
}

/// A value of this length.
pub(crate) fn value(length: usize) -> Bytes {
    Bytes::from(vec![b'v'; length])
}

/// Opens `count` connections.
pub(crate) async fn connect(endpoint: &str, count: usize) -> anyhow::Result<Vec<Channel>> {
    let mut channels = Vec::with_capacity(count);
    for _ in 0..count {
        let endpoint = Endpoint::from_shared(endpoint.to_owned())?.tcp_nodelay(true);
        channels.push(endpoint.connect().await.context("connecting")?);
    }
    Ok(channels)
}

/// Prepares and measures on a server that runs already.
pub(crate) async fn run(endpoint: &str, workload: Workload, time: Duration) -> anyhow::Result<Sample> {
    measure(prepare(endpoint, workload).await?, time).await
}

/// Opens connections and loads what the workload needs.
pub(crate) async fn prepare(endpoint: &str, workload: Workload) -> anyhow::Result<Prepared> {
    let channels = connect(endpoint, if workload == Workload::List { 4 } else { CONNECTIONS }).await?;
    let mut watchers = Vec::new();
    match workload {
        Workload::Put | Workload::Txn => {}
        Workload::Get => {
            kv(&channels[0]).put(pb::PutRequest { key: "one".into(), value: value(256), ..Default::default() }).await?;
        }
        Workload::List => load_keys(&channels, LIST_KEYS, 1024).await?,
        Workload::Watch => {
            for index in 0..WATCHERS {
                watchers.push(open_watch(&channels[index % channels.len()], 0).await?);
            }
        }
    }
    Ok(Prepared { workload, channels, watchers })
}

async fn load_keys(channels: &[Channel], count: usize, length: usize) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    for worker in 0..64 {
        let mut client = kv(&channels[worker % channels.len()]);
        tasks.spawn(async move {
            for index in (worker..count).step_by(64) {
                let key = format!("/registry/pods/default/pod-{index:07}").into();
                client.put(pb::PutRequest { key, value: value(length), ..Default::default() }).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// A watch of the prefix that the writers use, from `start_revision` on (0: from now); `created` has been read.
pub(crate) async fn open_watch(
    channel: &Channel,
    start_revision: i64,
) -> anyhow::Result<tonic::Streaming<pb::WatchResponse>> {
    let create = pb::WatchCreateRequest {
        key: "/watch/".into(),
        range_end: "/watch0".into(),
        start_revision,
        ..Default::default()
    };
    let request = pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) };
    let requests = tokio_stream::iter([request]).chain(tokio_stream::pending());
    let mut client = pb::watch_client::WatchClient::new(channel.clone()).max_decoding_message_size(1 << 30);
    let mut stream = client.watch(requests).await?.into_inner();
    let created = stream.next().await.context("the stream ended before the watch was created")??;
    anyhow::ensure!(created.created, "the first answer of a watch stream is `created`");
    Ok(stream)
}

/// Runs for `time`.
pub(crate) async fn measure(prepared: Prepared, time: Duration) -> anyhow::Result<Sample> {
    match prepared.workload {
        Workload::Watch => watch(prepared, time).await,
        workload => {
            let clients = if workload == Workload::List { 4 } else { CLIENTS };
            let begin = Instant::now();
            let mut tasks = JoinSet::new();
            for client in 0..clients {
                let kv = kv(&prepared.channels[client % prepared.channels.len()]);
                tasks.spawn(one_client(workload, client, kv, begin + time));
            }
            let mut latency = histogram();
            while let Some(done) = tasks.join_next().await {
                latency.add(done??)?;
            }
            Ok(Sample { operations: latency.len(), elapsed: begin.elapsed(), latency })
        }
    }
}

/// Microseconds, three digits.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000, 3).expect("constant bounds are valid")
}

/// Microseconds since then, at least 1.
pub(crate) fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX).max(1)
}

/// A closed loop: the next request leaves when the last one is answered.
async fn one_client(workload: Workload, client: usize, mut kv: Kv, end: Instant) -> anyhow::Result<Histogram<u64>> {
    let mut latency = histogram();
    let mut round = 0usize;
    let lease = Bytes::from(format!("/registry/leases/kube-node-lease/node-{client:07}"));
    let mut lease_revision = 0;
    while Instant::now() < end {
        let begin = Instant::now();
        match workload {
            Workload::Put => {
                let key = format!("put/{:08}", (round * CLIENTS + client) % 100_000).into();
                kv.put(pb::PutRequest { key, value: value(256), ..Default::default() }).await?;
            }
            Workload::Txn => lease_revision = compare_and_put(&mut kv, lease.clone(), lease_revision).await?,
            Workload::Get => {
                kv.range(pb::RangeRequest { key: "one".into(), ..Default::default() }).await?;
            }
            Workload::List => {
                let (key, range_end) = ("/registry/pods/".into(), "/registry/pods0".into());
                let answer = kv.range(pb::RangeRequest { key, range_end, ..Default::default() }).await?.into_inner();
                anyhow::ensure!(answer.kvs.len() == LIST_KEYS, "a list must be whole");
            }
            Workload::Watch => unreachable!("watches are measured by their own function"),
        }
        latency.record(micros(begin))?;
        round += 1;
    }
    Ok(latency)
}

/// Kubernetes' optimistic update; returns the key's new mod_revision.
async fn compare_and_put(kv: &mut Kv, key: Bytes, expected: i64) -> anyhow::Result<i64> {
    let compare = pb::Compare {
        result: pb::compare::CompareResult::Equal.into(),
        target: pb::compare::CompareTarget::Mod.into(),
        key: key.clone(),
        target_union: Some(pb::compare::TargetUnion::ModRevision(expected)),
        ..Default::default()
    };
    let put = pb::PutRequest { key: key.clone(), value: value(1024), ..Default::default() };
    let get = pb::RangeRequest { key, ..Default::default() };
    let request = pb::TxnRequest {
        compare: vec![compare],
        success: vec![pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }],
        failure: vec![pb::RequestOp { request: Some(pb::request_op::Request::RequestRange(get)) }],
    };
    let answer = kv.txn(request).await?.into_inner();
    anyhow::ensure!(answer.succeeded, "nobody else writes this key");
    Ok(answer.header.context("an answer has a header")?.revision)
}

/// 16 clients put; every watcher must get every event. The value carries the time of sending.
async fn watch(prepared: Prepared, time: Duration) -> anyhow::Result<Sample> {
    let begin = Instant::now();
    let sent = Arc::new(AtomicU64::new(0));
    let stopped = Arc::new(AtomicBool::new(false));
    let mut receivers = JoinSet::new();
    for stream in prepared.watchers {
        receivers.spawn(receive(stream, begin, Arc::clone(&sent), Arc::clone(&stopped)));
    }
    let mut senders = JoinSet::new();
    for client in 0..16 {
        let mut kv = kv(&prepared.channels[client]);
        let sent = Arc::clone(&sent);
        senders.spawn(async move {
            while begin.elapsed() < time {
                let mut bytes = micros(begin).to_be_bytes().to_vec();
                bytes.resize(1024, b'v');
                let key = format!("/watch/{client:04}").into();
                kv.put(pb::PutRequest { key, value: bytes.into(), ..Default::default() }).await?;
                sent.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = senders.join_next().await {
        done??;
    }
    stopped.store(true, Ordering::Release);
    let mut latency = histogram();
    while let Some(done) = receivers.join_next().await {
        latency.add(done??)?;
    }
    Ok(Sample { operations: latency.len(), elapsed: begin.elapsed(), latency })
}

async fn receive(
    mut stream: tonic::Streaming<pb::WatchResponse>,
    begin: Instant,
    sent: Arc<AtomicU64>,
    stopped: Arc<AtomicBool>,
) -> anyhow::Result<Histogram<u64>> {
    let mut latency = histogram();
    loop {
        if stopped.load(Ordering::Acquire) && latency.len() == sent.load(Ordering::Relaxed) {
            return Ok(latency);
        }
        // The time-out only lets an idle watcher notice that all has been sent; a lost event ends the run below.
        let Ok(next) = tokio::time::timeout(Duration::from_secs(1), stream.next()).await else {
            anyhow::ensure!(begin.elapsed() < Duration::from_secs(600), "a watcher missed events");
            continue;
        };
        let now = micros(begin);
        for event in next.context("a watch stream ended")??.events {
            let value = event.kv.context("an event has a key")?.value;
            let at = u64::from_be_bytes(value[..8].try_into().context("a value begins with its time")?);
            latency.record(now.saturating_sub(at).max(1))?;
        }
    }
}
