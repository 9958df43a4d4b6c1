//! Puts at a fixed rate, whatever becomes of those before; and as many as a cluster takes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use bytes::Bytes;
use tailwater_api::etcdserverpb as pb;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::client::{kv, revision};

/// How long a request may take.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// Requests that may be under way; more would only hide that they wait.
const UNDER_WAY_MAX: usize = 4096;
/// Digits of the time of sending with which each value begins.
const TIME_DIGITS: usize = 20;

/// What puts write.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// Keys are `{prefix}{group:03}/{key:03}`.
    pub(crate) prefix: &'static str,
    pub(crate) groups: u64,
    /// In each group.
    pub(crate) keys: u64,
    pub(crate) value_bytes: usize,
    /// Some write two keys of a group, and some delete one.
    pub(crate) mixed: bool,
}

impl Shape {
    fn request(&self, number: u64) -> pb::TxnRequest {
        let (group, key) = (number % self.groups, number / self.groups % self.keys);
        let name = |key: u64| Bytes::from(format!("{}{group:03}/{:03}", self.prefix, key % self.keys));
        let value = value(self.value_bytes);
        let put = |key| {
            let put = pb::PutRequest { key: name(key), value: value.clone(), ..Default::default() };
            pb::request_op::Request::RequestPut(put)
        };
        let requests = match number % 7 {
            3 if self.mixed => vec![put(key), put(key + 1)],
            5 if self.mixed => {
                let delete = pb::DeleteRangeRequest { key: name(key), ..Default::default() };
                vec![pb::request_op::Request::RequestDeleteRange(delete)]
            }
            _ => vec![put(key)],
        };
        let success = requests.into_iter().map(|request| pb::RequestOp { request: Some(request) }).collect();
        pb::TxnRequest { success, ..Default::default() }
    }
}

/// A value that begins with the time.
pub(crate) fn value(length: usize) -> Bytes {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970");
    let mut value = format!("{:0TIME_DIGITS$}", since.as_nanos()).into_bytes();
    value.resize(length.max(TIME_DIGITS), b'v');
    value.into()
}

/// What became of the requests.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) answered: AtomicU64,
    /// The newest revision that a writer was told of.
    pub(crate) newest: AtomicI64,
    failed: Mutex<BTreeMap<String, u64>>,
}

/// Writers while they run.
pub(crate) struct Puts {
    stop: Arc<AtomicBool>,
    pub(crate) counts: Arc<Counts>,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Puts {
    /// Sends `per_second` writes by turns through `channels`.
    pub(crate) fn start(channels: Vec<Channel>, per_second: u64, shape: Shape) -> Self {
        let (stop, counts) = (Arc::new(AtomicBool::new(false)), Arc::new(Counts::default()));
        let task = tokio::spawn(open(channels, per_second, shape, Arc::clone(&stop), Arc::clone(&counts)));
        Self { stop, counts, task }
    }

    /// Stops; how many were answered, and the errors by text.
    ///
    /// # Errors
    /// When requests did not end, or too many waited.
    pub(crate) async fn end(self) -> anyhow::Result<(u64, BTreeMap<String, u64>)> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await??;
        let failed = self.counts.failed.lock().expect("nobody panics with the lock").clone();
        Ok((self.counts.answered.load(Ordering::Relaxed), failed))
    }
}

async fn open(
    channels: Vec<Channel>,
    per_second: u64,
    shape: Shape,
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
) -> anyhow::Result<()> {
    let begin = tokio::time::Instant::now();
    let mut under_way = JoinSet::new();
    let mut number = 0u64;
    while !stop.load(Ordering::Relaxed) {
        let due = begin + Duration::from_nanos(number * 1_000_000_000 / per_second.max(1));
        tokio::time::sleep_until(due).await;
        while let Some(done) = under_way.try_join_next() {
            done?;
        }
        anyhow::ensure!(under_way.len() < UNDER_WAY_MAX, "{UNDER_WAY_MAX} requests wait for an answer");
        let channel = &channels[usize::try_from(number % channels.len() as u64)?];
        let (mut client, request, counts) = (kv(channel), shape.request(number), Arc::clone(&counts));
        under_way.spawn(async move {
            let error = match tokio::time::timeout(REQUEST_MAX, client.txn(request)).await {
                Ok(Ok(answer)) => {
                    counts.answered.fetch_add(1, Ordering::Relaxed);
                    let at = revision(answer.into_inner().header.as_ref()).unwrap_or_default();
                    counts.newest.fetch_max(at, Ordering::Relaxed);
                    return;
                }
                Ok(Err(status)) => format!("{:?}: {}", status.code(), status.message()),
                Err(_) => format!("no answer within {REQUEST_MAX:?}"),
            };
            *counts.failed.lock().expect("nobody panics with the lock").entry(error).or_default() += 1;
        });
        number += 1;
    }
    while let Some(done) = under_way.join_next().await {
        done?;
    }
    Ok(())
}

/// Writes per second that as many writers as there are lanes reach, each waiting for its answer.
///
/// # Errors
/// A write's.
pub(crate) async fn greatest_rate(channels: &[Channel], time: Duration, shape: &Shape) -> anyhow::Result<u64> {
    const LANES: u64 = 64;
    let begin = Instant::now();
    let mut lanes = JoinSet::new();
    for lane in 0..LANES {
        let mut client = kv(&channels[usize::try_from(lane)? % channels.len()]);
        let shape = shape.clone();
        lanes.spawn(async move {
            let mut number = lane;
            while begin.elapsed() < time {
                client.txn(shape.request(number)).await?;
                number += LANES;
            }
            anyhow::Ok(number / LANES)
        });
    }
    let mut count = 0;
    while let Some(done) = lanes.join_next().await {
        count += done??;
    }
    Ok(count * 1000 / u64::try_from(begin.elapsed().as_millis())?.max(1))
}

/// Writes `count` revisions of `shape`, as fast as they are taken; the first and the last.
///
/// # Errors
/// A write's.
pub(crate) async fn fill(channels: &[Channel], count: u64, shape: &Shape) -> anyhow::Result<(i64, i64)> {
    const LANES: u64 = 64;
    let mut lanes = JoinSet::new();
    for lane in 0..LANES.min(count) {
        let mut client = kv(&channels[usize::try_from(lane)? % channels.len()]);
        let shape = shape.clone();
        lanes.spawn(async move {
            let mut ends = (i64::MAX, 0);
            for number in (lane..count).step_by(usize::try_from(LANES)?) {
                let at = revision(client.txn(shape.request(number)).await?.into_inner().header.as_ref())?;
                ends = (ends.0.min(at), ends.1.max(at));
            }
            anyhow::Ok(ends)
        });
    }
    let mut ends = (i64::MAX, 0);
    while let Some(done) = lanes.join_next().await {
        let one = done??;
        ends = (ends.0.min(one.0), ends.1.max(one.1));
    }
    anyhow::ensure!(ends.1 > 0, "nothing was written");
    Ok(ends)
}

/// Waits until a write that is sent from now on is answered.
///
/// # Errors
/// After `limit`.
pub(crate) async fn next_write(counts: &Counts, limit: Duration) -> anyhow::Result<()> {
    let (begin, before) = (Instant::now(), counts.answered.load(Ordering::Relaxed));
    while counts.answered.load(Ordering::Relaxed) <= before {
        anyhow::ensure!(begin.elapsed() < limit, "no write was answered for {limit:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// `channels` of `urls`.
///
/// # Errors
/// When one is not a URL.
pub(crate) fn channels(urls: &[String]) -> anyhow::Result<Vec<Channel>> {
    urls.iter().map(|url| tailwater_tests::cluster::connect(url).context("a channel")).collect()
}
