//! A member that was away while much was written and compacted, and is killed while it catches up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tailwater_api::etcdserverpb as pb;
use tailwater_tests::cluster::Cluster;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::history::Action;
use crate::run::{same_from, scaled, seed, turn};
use crate::watchers::Stream;
use crate::workload::ask;

/// Bytes of each value.
const VALUE_BYTES: usize = 1 << 10;
const KEYS: u64 = 1000;
/// Connections that fill the store.
const LANES: u64 = 64;
/// How long a request of the open load may take.
const REQUEST_MAX: Duration = Duration::from_secs(5);
/// Requests of the open load that may be under way; more would only hide that they wait.
const UNDER_WAY_MAX: usize = 4096;
/// How long the member may take to catch up.
const CATCH_UP_MAX: Duration = Duration::from_secs(300);

async fn put(channel: Channel, number: u64) -> anyhow::Result<i64> {
    let action = Action::Put { value: format!("{number:0width$}", width = VALUE_BYTES) };
    let written = ask(channel, &action, &[format!("much/{:04}", number % KEYS)]).await?;
    Ok(written.revision)
}

async fn compact(cluster: &Cluster, slot: usize, revision: i64) -> anyhow::Result<()> {
    let mut kv = pb::kv_client::KvClient::new(cluster.channel(slot)?);
    kv.compact(pb::CompactionRequest { revision, physical: true }).await?;
    Ok(())
}

/// Writes `count` values through `slots`; the last revision and the writes per second.
async fn fill(cluster: &Cluster, slots: &[usize], count: u64) -> anyhow::Result<(i64, u64)> {
    let begin = Instant::now();
    let mut lanes = JoinSet::new();
    for (lane, slot) in (0..LANES).zip(slots.iter().cycle()) {
        let channel = cluster.channel(*slot)?;
        lanes.spawn(async move {
            let mut newest = 0;
            for number in (lane..count).step_by(usize::try_from(LANES)?) {
                newest = newest.max(put(channel.clone(), number).await?);
            }
            anyhow::Ok(newest)
        });
    }
    let mut newest = 0;
    while let Some(done) = lanes.join_next().await {
        newest = newest.max(done??);
    }
    let milliseconds = u64::try_from(begin.elapsed().as_millis())?.max(1);
    Ok((newest, count * 1000 / milliseconds))
}

/// Requests that come at a fixed rate, whatever becomes of those before.
struct OpenLoad {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl OpenLoad {
    fn start(channels: Vec<Channel>, per_second: u64) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counter) = (Arc::clone(&stop), Arc::clone(&sent));
        let task = tokio::spawn(async move {
            let begin = tokio::time::Instant::now();
            let mut under_way = JoinSet::new();
            for (number, channel) in (0_u64..).zip(channels.into_iter().cycle()) {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                tokio::time::sleep_until(begin + Duration::from_micros(number * 1_000_000 / per_second)).await;
                under_way.spawn(tokio::time::timeout(REQUEST_MAX, put(channel, number)));
                counter.fetch_add(1, Ordering::Relaxed);
                while let Some(done) = under_way.try_join_next() {
                    done?.context("a request took too long")?.context("a request failed")?;
                }
                anyhow::ensure!(under_way.len() <= UNDER_WAY_MAX, "{UNDER_WAY_MAX} requests wait");
            }
            while let Some(done) = under_way.join_next().await {
                done?.context("a request took too long")?.context("a request failed")?;
            }
            Ok(())
        });
        Self { stop, sent, task }
    }

    /// How many requests there were; all were answered.
    async fn end(self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await??;
        Ok(self.sent.load(Ordering::Relaxed))
    }
}

/// A watch from below the compacted revision must say so, and nothing else.
async fn compacted_is_told(cluster: &Cluster, slot: usize, compacted: i64) -> anyhow::Result<()> {
    let create =
        pb::WatchCreateRequest { key: "much/0000".into(), start_revision: compacted - 1, ..Default::default() };
    let mut stream = Stream::open(cluster.channel(slot)?, create).await?;
    let answer = tokio::time::timeout(Duration::from_secs(10), stream.answers.message()).await;
    let answer = answer.context("a watch below the compacted revision waits")??.context("an answer")?;
    anyhow::ensure!(
        answer.canceled && answer.compact_revision == compacted && answer.events.is_empty(),
        "compacted is {compacted}: {answer:?}"
    );
    Ok(())
}

async fn scenario(cluster: &mut Cluster, random: &mut StdRng) -> anyhow::Result<()> {
    let writes = scaled(2_000, 1_000_000);
    let leader = cluster.leader().await?;
    let behind = (leader + 1) % cluster.size();
    let others: Vec<usize> = cluster.others(behind).collect();
    fill(cluster, &others, 200).await?;
    cluster.kill(behind)?;
    let mut compacted = 0;
    let mut rate_max = 0;
    for _ in 0..4 {
        let (revision, rate) = fill(cluster, &others, writes / 4).await?;
        rate_max = rate_max.max(rate);
        compacted = revision - i64::try_from(writes / 8)?;
        compact(cluster, leader, compacted).await?;
    }
    let channels = others.iter().map(|slot| cluster.channel(*slot)).collect::<anyhow::Result<Vec<_>>>()?;
    let load = OpenLoad::start(channels, (rate_max / 2).max(1));
    let begin = Instant::now();
    for _ in 0..scaled(3, 10) {
        cluster.launch(behind)?;
        tokio::time::sleep(Duration::from_millis(random.random_range(20..scaled(800, 10_000)))).await;
        anyhow::ensure!(cluster.is_running(behind), "the member ended by itself while it caught up");
        cluster.kill(behind)?;
    }
    cluster.launch(behind)?;
    // A linearizable read: it has everything that was there when it was asked.
    while let Err(error) = cluster.wait_until_serving(behind).await {
        anyhow::ensure!(cluster.is_running(behind) && begin.elapsed() < CATCH_UP_MAX, error);
    }
    let took = begin.elapsed();
    let requests = load.end().await?;
    report(&format!("caught up after {took:?}, while {requests} writes at {} a second went on", rate_max / 2));
    anyhow::ensure!(took < CATCH_UP_MAX, "catching up took {took:?}");
    let revision = put(cluster.channel(leader)?, 0).await?;
    same_from(cluster, compacted, revision).await?;
    compacted_is_told(cluster, behind, compacted).await
}

#[expect(clippy::print_stdout, reason = "the figures tell more than the pass")]
fn report(line: &str) {
    println!("{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_away_catches_up_while_writes_go_on() {
    let Some((_turn, mut setup)) = turn("catch-up", 3).await else { return };
    // So few that the member needs a snapshot; in the full form etcd's own figures do.
    let entries = scaled(500, 5000);
    setup.etcd_flags = vec![format!("--snapshot-count={entries}"), format!("--snapshot-catchup-entries={entries}")];
    // In full the log is too short by itself.
    setup.tailwater_flags = vec![format!("--raft-log-bytes={}", scaled(256 << 10, 64 << 20))];
    setup.flags = vec![format!("--quota-backend-bytes={}", 8_i64 << 30)];
    let mut cluster = Cluster::start(setup).await.expect("a cluster");
    let seed = seed();
    if let Err(error) = scenario(&mut cluster, &mut StdRng::seed_from_u64(seed)).await {
        panic!("SEED={seed}: {error:?}");
    }
    cluster.finish();
}
