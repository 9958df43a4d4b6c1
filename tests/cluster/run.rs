//! One run: a cluster under load, faults, and the checks of what clients saw.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::mvccpb::Event;
use tailwater_tests::cluster::{Cluster, Setup};
use tailwater_tests::{Kind, left_out, program};
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::Code;

use crate::history::{Clock, Record};
use crate::oracle;
use crate::porcupine::Checker;
use crate::watchers::{Watchers, read_log};
use crate::workload::{Amount, Workload};

/// Clusters that run at a time: most of them mostly wait, but on a loaded machine members lose their leader by itself.
const CLUSTERS: u32 = 2;
static TURNS: Semaphore = Semaphore::const_new(CLUSTERS as usize);
/// After so long without a write there is none left.
const SILENCE: Duration = Duration::from_millis(300);
/// How long a watcher may take to the end of the log after the last fault.
const WATCHERS_SECONDS_MAX: u64 = 30;

/// Whether the full lengths are asked for.
pub(crate) fn acceptance() -> bool {
    std::env::var("ACCEPTANCE").is_ok_and(|value| value == "1")
}

/// The seed of this run.
pub(crate) fn seed() -> u64 {
    std::env::var("SEED").ok().and_then(|value| value.parse().ok()).unwrap_or_else(rand::random)
}

/// Which server the clusters are made of.
pub(crate) fn kind() -> Kind {
    let reference = std::env::var("CLUSTER_REFERENCE").is_ok_and(|value| value == "1");
    if reference { Kind::Etcd } else { Kind::Tailwater }
}

/// The right to run a cluster, and the setup to start it with; none when this can't run here, which has been said then.
pub(crate) async fn turn(test: &str, members: usize) -> Option<(SemaphorePermit<'static>, Setup)> {
    share(test, members, 1).await
}

/// As [`turn`], while no other cluster runs: the test measures.
pub(crate) async fn turn_alone(test: &str, members: usize) -> Option<(SemaphorePermit<'static>, Setup)> {
    share(test, members, CLUSTERS).await
}

async fn share(test: &str, members: usize, turns: u32) -> Option<(SemaphorePermit<'static>, Setup)> {
    if let Err(error) = program(kind()) {
        left_out(test, &format!("{error:#}"));
        return None;
    }
    if !std::path::Path::new("/proc/net/tcp").exists() {
        left_out(test, "the proxies between members need /proc");
        return None;
    }
    let turns = TURNS.acquire_many(turns).await.expect("nobody closes it");
    Some((turns, Setup::new(kind(), members)))
}

/// Faults go on for a number of rounds, or with ACCEPTANCE=1 for ten minutes.
#[derive(Debug)]
pub(crate) struct Rounds {
    left: usize,
    until: Option<Instant>,
}

impl Rounds {
    /// `short` rounds in the short form.
    pub(crate) fn new(short: usize) -> Self {
        let minutes = std::env::var("CLUSTER_MINUTES").ok().and_then(|value| value.parse::<u64>().ok()).unwrap_or(10);
        Self { left: short, until: acceptance().then(|| Instant::now() + Duration::from_secs(minutes * 60)) }
    }
}

impl Iterator for Rounds {
    type Item = ();

    fn next(&mut self) -> Option<()> {
        if let Some(until) = self.until {
            return (Instant::now() < until).then_some(());
        }
        self.left = self.left.checked_sub(1)?;
        Some(())
    }
}

/// `short`, or with ACCEPTANCE=1 `full`.
pub(crate) fn scaled<T>(short: T, full: T) -> T {
    if acceptance() { full } else { short }
}

/// How much the load does.
pub(crate) fn amount() -> Amount {
    Amount { clients: 9, keys: 5, think: Duration::from_millis(10), value_bytes: 0, seed: seed() }
}

/// A cluster under load.
pub(crate) struct Run {
    pub(crate) cluster: Cluster,
    pub(crate) load: Workload,
    watchers: Watchers,
    checker: Option<Checker>,
}

impl Run {
    /// Starts `cluster`'s load.
    pub(crate) async fn start(cluster: Cluster, amount: &Amount) -> anyhow::Result<Self> {
        let checker = Checker::build()?;
        let clock = Clock::start();
        let watchers = Watchers::start(&cluster, clock)?;
        let load = Workload::start(&cluster, amount, clock)?;
        let run = Self { cluster, load, watchers, checker };
        run.load.next_write(Duration::from_secs(20)).await?;
        Ok(run)
    }

    /// Heals everything, ends the load and checks what was seen.
    ///
    /// # Errors
    /// The first violation.
    pub(crate) async fn end(self) -> anyhow::Result<()> {
        let (record, cluster, checker) = self.record().await?;
        oracle::check(&record)?;
        if let Some(checker) = checker {
            tokio::task::block_in_place(|| checker.check(&record))?;
        }
        summary(&record);
        cluster.finish();
        Ok(())
    }

    /// Heals everything and ends the load; what was seen.
    ///
    /// # Errors
    /// When the cluster does not recover, or its members differ.
    pub(crate) async fn record(mut self) -> anyhow::Result<(Record, Cluster, Option<Checker>)> {
        self.cluster.heal().await?;
        // Writes go on after the last fault.
        self.load.next_write(Duration::from_secs(20)).await?;
        let operations = self.load.end().await?;
        let revision = last_revision(&self.cluster).await?;
        let watched = self.watchers.end(revision, Duration::from_secs(WATCHERS_SECONDS_MAX)).await?;
        let log = Arc::new(same_everywhere(&self.cluster, revision).await?);
        Ok((Record { operations, watched, log, revision }, self.cluster, self.checker))
    }
}

#[expect(clippy::print_stdout, reason = "how much was checked tells what a pass is worth")]
fn summary(record: &Record) {
    let unknown = record.operations.iter().filter(|operation| operation.answer().is_none()).count();
    let streams: usize = record.watched.iter().map(|watched| watched.sessions.len()).sum();
    let progress = record.watched.iter().flat_map(|watched| &watched.sessions).flat_map(|session| &session.replies);
    let progress = progress.filter(|reply| reply.events.is_empty()).count();
    println!(
        "{} operations, {unknown} without an answer; revision {}; {streams} watch streams, {progress} progress notices",
        record.operations.len(),
        record.revision
    );
}

/// The revision after all writes, also after those that a client has given up and that were still on their way.
async fn last_revision(cluster: &Cluster) -> anyhow::Result<i64> {
    let mut kv = pb::kv_client::KvClient::new(cluster.channel(0)?);
    let mut last = 0;
    loop {
        let read = pb::RangeRequest { key: "a".into(), ..Default::default() };
        let answer = kv.range(read).await.context("the last read")?.into_inner();
        let revision = answer.header.context("an answer has a header")?.revision;
        if revision == last {
            return Ok(revision);
        }
        last = revision;
        tokio::time::sleep(SILENCE).await;
    }
}

/// The log of all keys up to `revision`, after making sure that all members have the same, and the same state.
///
/// # Errors
/// When a member differs.
pub(crate) async fn same_everywhere(cluster: &Cluster, revision: i64) -> anyhow::Result<Vec<Event>> {
    same_from(cluster, 1, revision).await
}

/// As [`same_everywhere`], from revision `start` on.
///
/// # Errors
/// When a member differs.
pub(crate) async fn same_from(cluster: &Cluster, start: i64, revision: i64) -> anyhow::Result<Vec<Event>> {
    let mut first: Option<(Vec<Event>, Hash)> = None;
    for slot in 0..cluster.size() {
        let log = read_log(cluster.channel(slot)?, start, revision);
        let log = log.await.with_context(|| format!("the log of member {slot}"))?;
        let hash = hash(cluster, slot, revision).await?;
        let Some(first) = &first else {
            first = Some((log, hash));
            continue;
        };
        anyhow::ensure!(log == first.0, "members 0 and {slot} have different logs");
        anyhow::ensure!(hash == first.1, "HashKV at {revision}: {:?} on member 0, {hash:?} on member {slot}", first.1);
    }
    Ok(first.context("a cluster has members")?.0)
}

/// What HashKV says: the hash and the compacted revision; none where it is not there.
type Hash = Option<(u32, i64)>;

async fn hash(cluster: &Cluster, slot: usize, revision: i64) -> anyhow::Result<Hash> {
    let mut client = pb::maintenance_client::MaintenanceClient::new(cluster.channel(slot)?);
    match client.hash_kv(pb::HashKvRequest { revision }).await {
        Ok(answer) => {
            let answer = answer.into_inner();
            Ok(Some((answer.hash, answer.compact_revision)))
        }
        Err(status) if status.code() == Code::Unimplemented => Ok(None),
        Err(status) => Err(status).with_context(|| format!("HashKV of member {slot}")),
    }
}
