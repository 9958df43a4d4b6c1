//! What the API servers of a cluster of N nodes send, in an open loop.
//!
//! Rates and sizes follow Kubernetes' own: each node renews a lease every 10 s and tells its status every 5 minutes; pods
//! are created, bound, updated and deleted; each pod brings events, which hang on a lease of etcd that is shared by up to
//! 1000 of them or for a minute. Each API server watches some 60 prefixes with previous versions and progress, lists in
//! pages at a time of its own, and one of them compacts every 5 minutes what is older than 5 minutes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use tailwater_api::etcdserverpb as pb;
use tokio::task::{JoinHandle, JoinSet};

use super::writes::compare_and_put;
use super::{Common, conclude};
use crate::connection::Connection;
use crate::drive::{Client, Measured, Pace, drive};
use crate::load::{Kv, histogram, kv, micros};
use crate::messages::Messages;
use crate::report::Report;
use crate::validate::{Mark, Validator, WatcherId};

/// A node renews its lease so often.
const RENEWAL_SECONDS: u64 = 10;
/// It tells its status so often.
const STATUS_SECONDS: u64 = 300;
/// Writes of a pod's life: created, bound, told to run, three changes of its status, told to end, deleted.
const POD_STEPS: u64 = 8;
/// Events that a pod's life brings.
const EVENTS_PER_POD: u64 = 5;
const EVENT_TTL_SECONDS: i64 = 3600;
/// Events share a lease of etcd until there are so many.
const EVENTS_PER_LEASE: u64 = 1000;
const COMPACTION_PERIOD: Duration = Duration::from_secs(300);
const LIST_PERIOD: Duration = Duration::from_secs(10);
const PAGE: i64 = 500;
/// Bytes of objects.
const LEASE_BYTES: usize = 510;
const STATUS_BYTES: usize = 12 << 10;
const POD_BYTES: usize = 6 << 10;
const EVENT_BYTES: usize = 900;
/// Requests at a time of each API server.
const CLIENTS_PER_SERVER: usize = 128;

/// The written prefixes; an API server watches these, and as many more where nothing happens.
const WRITTEN: [&str; 4] = ["leases", "minions", "pods", "events"];

/// A model of Kubernetes.
#[derive(Args, Clone, Debug)]
pub(super) struct Kube {
    /// Nodes.
    #[arg(long, default_value_t = 1000)]
    nodes: u64,
    /// API servers.
    #[arg(long, default_value_t = 3)]
    api_servers: usize,
    /// Prefixes that each of them watches.
    #[arg(long, default_value_t = 60)]
    prefixes: usize,
    /// Pods that are created per second, and as many deleted.
    #[arg(long, default_value_t = 10)]
    pods_per_second: u64,
    /// Pods that are there at a time.
    #[arg(long, default_value_t = 1000)]
    pods: u64,
}

/// One kind of writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Lease,
    Status,
    Pod,
    Event,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Lease, Self::Status, Self::Pod, Self::Event];

    fn per_second(self, kube: &Kube) -> u64 {
        match self {
            Self::Lease => kube.nodes / RENEWAL_SECONDS,
            Self::Status => kube.nodes / STATUS_SECONDS,
            Self::Pod => kube.pods_per_second * POD_STEPS,
            Self::Event => kube.pods_per_second * EVENTS_PER_POD,
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::Lease => LEASE_BYTES,
            Self::Status => STATUS_BYTES,
            Self::Pod => POD_BYTES,
            Self::Event => EVENT_BYTES,
        }
    }

    /// The object that the write with this number of its kind is about.
    fn key(self, number: u64, kube: &Kube) -> String {
        match self {
            Self::Lease => format!("/registry/leases/kube-node-lease/node-{:07}", number % kube.nodes.max(1)),
            Self::Status => format!("/registry/minions/node-{:07}", number % kube.nodes.max(1)),
            Self::Pod => format!("/registry/pods/default/pod-{:09}", pod_of(number, kube).0),
            Self::Event => format!("/registry/events/default/event-{number:010}"),
        }
    }
}

/// Which pod a write is about, and which step of its life it is: `pods` of them live at a time, each a step further in
/// turn; when all have ended, others begin.
fn pod_of(number: u64, kube: &Kube) -> (u64, u64) {
    let pods = kube.pods.max(1);
    let (round, place) = (number / pods, number % pods);
    (round / POD_STEPS * pods + place, round % POD_STEPS)
}

/// What writers of all kinds share.
struct Shared {
    kube: Kube,
    begin: Instant,
    validator: Option<Arc<Validator>>,
    /// Marks are unique over all kinds.
    marks: AtomicU64,
    /// The lease that events hang on, and how many do.
    event_lease: Mutex<(i64, u64)>,
    /// The newest revision that was acknowledged.
    revision: Mutex<i64>,
}

/// Writes of one kind.
struct Writer {
    kind: Kind,
    kv: Kv,
    leases: pb::lease_client::LeaseClient<Connection>,
    shared: Arc<Shared>,
    /// The revisions of this kind's objects, as watch caches know them.
    known: Arc<Mutex<std::collections::HashMap<Bytes, i64>>>,
}

impl Writer {
    /// The lease of an event, granted anew when it is used up.
    async fn event_lease(&mut self) -> anyhow::Result<i64> {
        {
            let mut lease = self.shared.event_lease.lock();
            if lease.0 != 0 && lease.1 < EVENTS_PER_LEASE {
                lease.1 += 1;
                return Ok(lease.0);
            }
        }
        let granted = self.leases.lease_grant(pb::LeaseGrantRequest { ttl: EVENT_TTL_SECONDS, id: 0 }).await?;
        let id = granted.into_inner().id;
        *self.shared.event_lease.lock() = (id, 1);
        Ok(id)
    }
}

impl Client for Writer {
    async fn request(&mut self, number: u64) -> anyhow::Result<u64> {
        let kube = &self.shared.kube;
        let key: Bytes = self.kind.key(number, kube).into();
        let is_delete = self.kind == Kind::Pod && pod_of(number, kube).1 == POD_STEPS - 1;
        let lease = if self.kind == Kind::Event { self.event_lease().await? } else { 0 };
        let mark =
            Mark { number: self.shared.marks.fetch_add(1, Ordering::Relaxed) + 1, sent: micros(self.shared.begin) };
        let value = mark.value(self.kind.bytes());
        let bytes = if is_delete { 0 } else { (key.len() + value.len()) as u64 };
        // An object is known when its last write was answered; one that is on its way counts as unknown.
        let known = self.known.lock().get(&key).copied().unwrap_or_default();
        let mut request = compare_and_put(key.clone(), known, value);
        if let Some(pb::request_op::Request::RequestPut(put)) =
            request.success.first_mut().and_then(|first| first.request.as_mut())
        {
            put.lease = lease;
        }
        if is_delete {
            let delete = pb::DeleteRangeRequest { key: key.clone(), ..Default::default() };
            request.success =
                vec![pb::RequestOp { request: Some(pb::request_op::Request::RequestDeleteRange(delete)) }];
        }
        let answer = match self.kv.txn(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                self.shared.validator.iter().for_each(|validator| validator.unknown(mark.number));
                return Err(status.into());
            }
        };
        let revision = answer.header.as_ref().context("an answer has a header")?.revision;
        if !answer.succeeded {
            // A conflict, as Kubernetes has them too: its next write of the object is of what it has read now.
            if let Some(pb::response_op::Response::ResponseRange(range)) =
                answer.responses.into_iter().next().and_then(|response| response.response)
            {
                let found = range.kvs.first().map_or(0, |kv| kv.mod_revision);
                self.known.lock().insert(key, found);
            }
            return Ok(0);
        }
        if let Some(validator) = &self.shared.validator {
            validator.acknowledged(&key, revision, if is_delete { 0 } else { mark.number });
        }
        match self.kind {
            // Nobody writes it again.
            Kind::Event => {}
            _ if is_delete => drop(self.known.lock().remove(&key)),
            _ => drop(self.known.lock().insert(key, revision)),
        }
        let mut newest = self.shared.revision.lock();
        *newest = revision.max(*newest);
        Ok(bytes)
    }
}

/// The prefix with that number: the written ones, then quiet ones.
fn prefix(number: usize) -> (Bytes, Bytes) {
    let name = WRITTEN.get(number).map_or_else(|| format!("quiet-{number:03}"), |name| (*name).to_owned());
    (format!("/registry/{name}/").into(), format!("/registry/{name}0").into())
}

/// What all watchers share.
struct Watched {
    begin: Instant,
    lag: Mutex<Histogram<u64>>,
    events: AtomicU64,
    bytes: AtomicU64,
}

async fn watch(
    mut stream: Messages,
    watched: Arc<Watched>,
    validator: Option<(Arc<Validator>, WatcherId)>,
) -> anyhow::Result<()> {
    loop {
        let response: pb::WatchResponse = stream.message().await?;
        anyhow::ensure!(!response.canceled, "a watch was cancelled: {}", response.cancel_reason);
        if let Some((validator, watcher)) = &validator {
            validator.received(*watcher, &response);
        }
        let now = micros(watched.begin);
        for event in &response.events {
            let kv = event.kv.as_ref().context("an event has a key")?;
            let prev = event.prev_kv.as_ref().map_or(0, |prev| prev.key.len() + prev.value.len());
            watched.bytes.fetch_add((kv.key.len() + kv.value.len() + prev) as u64, Ordering::Relaxed);
            watched.events.fetch_add(1, Ordering::Relaxed);
            // A delete brings no value.
            if let Some(mark) = Mark::of(&kv.value) {
                watched.lag.lock().record(now.saturating_sub(mark.sent).max(1))?;
            }
        }
    }
}

async fn open(channel: &Connection, number: usize) -> anyhow::Result<Messages> {
    let (key, range_end) = prefix(number);
    let create = pb::WatchCreateRequest { key, range_end, prev_kv: true, progress_notify: true, ..Default::default() };
    crate::load::watch(channel, vec![create]).await
}

/// Pages through all pods again and again.
async fn list_pods(mut kv: Kv) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(LIST_PERIOD);
    loop {
        ticks.tick().await;
        let (mut key, range_end) = prefix(2);
        let mut revision = 0;
        loop {
            let page = pb::RangeRequest {
                key: key.clone(),
                range_end: range_end.clone(),
                limit: PAGE,
                revision,
                ..Default::default()
            };
            let answer = kv.range(page).await?.into_inner();
            revision = answer.header.as_ref().context("an answer has a header")?.revision.min(match revision {
                0 => i64::MAX,
                first => first,
            });
            let Some(last) = answer.kvs.last().filter(|_| answer.more) else { break };
            key = [&last.key[..], &[0]].concat().into();
        }
    }
}

/// As Kubernetes' compactor: what was newest one period ago goes.
async fn compact(mut kv: Kv, shared: Arc<Shared>) -> anyhow::Result<()> {
    loop {
        let revision = *shared.revision.lock();
        tokio::time::sleep(COMPACTION_PERIOD).await;
        if revision > 0 {
            kv.compact(pb::CompactionRequest { revision, physical: false }).await?;
        }
    }
}

impl Kube {
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<Report> {
        anyhow::ensure!(self.api_servers > 0 && self.nodes > 0, "--nodes and --api-servers must be at least 1");
        let validator = common.validate.then(|| Arc::new(Validator::default()));
        // Each API server has few connections, as its client has; watches apart from requests.
        let channels = common.channels_of(self.api_servers * 2).await?;
        let begin = Instant::now();
        let shared = Arc::new(Shared {
            kube: self.clone(),
            begin,
            validator: validator.clone(),
            marks: AtomicU64::new(0),
            event_lease: Mutex::default(),
            revision: Mutex::default(),
        });
        let watched = Arc::new(Watched {
            begin,
            lag: Mutex::new(histogram()),
            events: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        });
        let groups: Vec<_> = validator
            .iter()
            .flat_map(|validator| (0..self.prefixes).map(|number| validator.group(prefix(number), true)))
            .collect();
        let mut beside = JoinSet::new();
        for server in 0..self.api_servers {
            for number in 0..self.prefixes {
                let stream = open(&channels[server * 2 + 1], number).await?;
                let checked = validator
                    .as_ref()
                    .zip(groups.get(number))
                    .map(|(validator, group)| (validator.clone(), validator.watcher(*group)));
                beside.spawn(watch(stream, Arc::clone(&watched), checked));
            }
            beside.spawn(list_pods(kv(&channels[server * 2])));
        }
        beside.spawn(compact(kv(&channels[0]), Arc::clone(&shared)));
        let progress = common.progress("writes");
        let mut kinds: Vec<(Kind, JoinHandle<anyhow::Result<Measured>>)> = Vec::new();
        for kind in Kind::ALL {
            let rate = kind.per_second(&self);
            if rate == 0 {
                continue;
            }
            let known = Arc::default();
            let writers = (0..CLIENTS_PER_SERVER * self.api_servers).map(|at| Writer {
                kind,
                kv: kv(&channels[at % self.api_servers * 2]),
                leases: pb::lease_client::LeaseClient::new(channels[at % self.api_servers * 2].clone()),
                shared: Arc::clone(&shared),
                known: Arc::clone(&known),
            });
            let (writers, pace, done) = (writers.collect(), Pace { rate, ..common.pace() }, Arc::clone(&progress.done));
            kinds.push((kind, tokio::spawn(async move { drive(writers, pace, &done).await })));
        }
        anyhow::ensure!(!kinds.is_empty(), "so few nodes write less than once in a second: use more");
        let mut all = Measured::new();
        let mut figures = Vec::new();
        for (kind, writing) in kinds {
            let measured = writing.await??;
            figures.push((format!("{kind:?} p99 ms"), measured.latency.value_at_quantile(0.99) as f64 / 1000.0));
            all.elapsed = all.elapsed.max(measured.elapsed);
            all.add(measured)?;
        }
        drop(progress);
        let mut report = Report::new("kube", "writes", all);
        if let Some(validator) = validator {
            conclude(&mut report, &validator).await;
        } else {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        // A watch or a list that has ended has failed.
        while let Some(ended) = beside.try_join_next() {
            report.failed += 1;
            let error = ended.map_or_else(
                |error| error.to_string(),
                |ended| format!("{:#}", ended.err().unwrap_or_else(|| anyhow::anyhow!("ended"))),
            );
            report.first_error.get_or_insert(error);
        }
        beside.abort_all();
        let lag = watched.lag.lock();
        for (name, quantile) in [("watch lag p50 ms", 0.5), ("watch lag p99 ms", 0.99), ("watch lag p99.9 ms", 0.999)] {
            figures.push((name.to_owned(), lag.value_at_quantile(quantile) as f64 / 1000.0));
        }
        let seconds = report.seconds.max(f64::EPSILON);
        figures.push(("events/s".to_owned(), watched.events.load(Ordering::Relaxed) as f64 / seconds));
        figures.push(("watch MB/s".to_owned(), watched.bytes.load(Ordering::Relaxed) as f64 / seconds / 1e6));
        report.figures.extend(figures);
        Ok(report)
    }
}
