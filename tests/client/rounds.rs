//! Rounds of faults under writes: each subscriber is told every change once and in order, and the caches are what a list is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tailwater_api::etcdserverpb as pb;
use tailwater_client::{Change, Client, Informer, Phase, Snapshot, Subscription};
use tailwater_tests::Kind;
use tailwater_tests::cluster::{Cluster, Fanout, Gate, Link, Setup, connect};
use tokio::task::JoinHandle;

use crate::history::{History, State, hash, held, range};
use crate::support::{ALLOW_PINGS, PATIENCE, PREFIX, builder};

/// The key that is written last.
const END: &str = "/c/end";
/// Writes that a fault lasts at least.
const WRITES: u64 = 60;
/// How long packets are held: longer than the client takes to notice.
const HELD: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// SIGKILL to the server that an informer uses.
    Killed,
    /// All ways cut, and what is written meanwhile compacted.
    Compacted,
    /// The way to that server drops packets.
    Held,
    /// That server is cut off from the others.
    Isolated,
    /// SIGKILL to all servers.
    AllKilled,
    /// The way to that server is cut.
    Cut,
    /// All ways drop packets, and what is written meanwhile is compacted.
    HeldAndCompacted,
}

const FAULTS: [Fault; 7] = [
    Fault::Killed,
    Fault::Compacted,
    Fault::Held,
    Fault::Isolated,
    Fault::AllKilled,
    Fault::HeldAndCompacted,
    Fault::Cut,
];

/// A cluster under writes.
struct World {
    cluster: Cluster,
    /// One per slot.
    gates: Vec<Gate>,
    /// Past the gates.
    direct: Client,
    history: History,
    writer: Writer,
    rng: StdRng,
}

/// Writes all the time.
struct Writer {
    done: Arc<AtomicU64>,
    stops: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

fn rounds() -> usize {
    let asked = std::env::var("ROUNDS").ok().map(|rounds| rounds.parse().expect("ROUNDS is a number"));
    asked.unwrap_or(if std::env::var("ACCEPTANCE").as_deref() == Ok("1") { 100 } else { 5 })
}

pub(crate) async fn run(kind: Kind) -> anyhow::Result<()> {
    let seed = std::env::var("SEED").map_or_else(|_| rand::random(), |seed| seed.parse().expect("SEED is a number"));
    let (rounds, begin) = (rounds(), Instant::now());
    eprintln!("{kind:?}: {rounds} rounds, SEED={seed}");
    let mut world = World::start(kind, seed).await?;
    let client = builder(world.gates.iter().map(|gate| gate.url().to_owned())).build()?;
    let decode = |_: &[u8], value: bytes::Bytes| anyhow::Ok(hash(&value));
    let prompt = client.informer(range(), decode).start()?;
    // Holds its informer back now and then; asks for the version before, and for short pages.
    let slow = client.informer(range(), decode).page_size(7).prev_kv(true).queue_changes_max(4).start()?;
    let collected =
        [tokio::spawn(collect(prompt.subscribe(), None)), tokio::spawn(collect(slow.subscribe(), Some(seed)))];
    let mut compactions = 0;
    for round in 0..rounds {
        let fault = FAULTS[round % FAULTS.len()];
        // So that what is missed is this round's.
        consistent(&prompt).await.with_context(|| format!("before round {round}, {fault:?}"))?;
        world.meet(fault, &prompt).await.with_context(|| format!("round {round}, {fault:?}"))?;
        compactions += usize::from(matches!(fault, Fault::Compacted | Fault::HeldAndCompacted));
        let written = world.write().await?;
        let seen = consistent(&prompt).await.with_context(|| format!("after round {round}, {fault:?}"))?;
        ensure!(seen.revision() >= written, "a consistent read is behind an earlier write");
        let relists = prompt.status().borrow().relists;
        ensure!(
            relists == compactions as u64,
            "{relists} relists after {compactions} compactions: round {round}, {fault:?}"
        );
    }
    world.finish().await?;
    let state = world.list().await?;
    let mut table = Vec::new();
    for (informer, told) in [&prompt, &slow].into_iter().zip(collected) {
        let told = tokio::time::timeout(PATIENCE, told).await.context("the last change was not told")??;
        ensure!(of(&*consistent(informer).await?) == state, "the cache is not what the servers have");
        let relists = world.history.judge(&told)?;
        let status = informer.status().borrow().clone();
        ensure!(status.gaps == 0 && status.duplicates == 0, "{status:?}");
        ensure!(status.relists == relists as u64, "{relists} told of {status:?}");
        table.push(format!("{} changes told, {} resumes, {relists} relists", told.len(), status.resumes));
    }
    eprintln!(
        "{kind:?}: {rounds} rounds in {} s, {} events, 0 missed, 0 twice; prompt: {}; slow: {}",
        begin.elapsed().as_secs(),
        world.history.len(),
        table[0],
        table[1]
    );
    world.cluster.finish();
    Ok(())
}

/// What a cache holds.
fn of(snapshot: &Snapshot<u64>) -> State {
    snapshot.iter().map(|object| (object.key.clone(), (object.stamp, object.value))).collect()
}

/// A consistent read, once servers are there that answer it.
async fn consistent(informer: &Informer<u64>) -> anyhow::Result<Arc<Snapshot<u64>>> {
    let until = Instant::now() + PATIENCE;
    loop {
        match informer.consistent().await {
            Ok(snapshot) => return Ok(snapshot),
            Err(error) if Instant::now() > until => {
                anyhow::bail!("{error}; {:?}", informer.status().borrow());
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// All that a subscriber is told, up to the last key; a slow one is given the seed of its pauses.
async fn collect(mut changes: Subscription<u64>, slow: Option<u64>) -> Vec<Change<u64>> {
    let mut rng = slow.map(StdRng::seed_from_u64);
    let mut told = Vec::new();
    // The last key may come with a list, which is whole when it ends.
    let (mut is_listed, mut is_last) = (true, false);
    while let Some(change) = changes.next().await {
        match &change {
            Change::Relisted { .. } => is_listed = true,
            Change::Synced { .. } => is_listed = false,
            Change::Applied { new, .. } => is_last |= new.key == END,
            _ => {}
        }
        told.push(change);
        if is_last && !is_listed {
            break;
        }
        if let Some(rng) = rng.as_mut().filter(|_| told.len() % 16 == 0) {
            let pause = Duration::from_millis(rng.random_range(0..200));
            tokio::time::sleep(pause).await;
        }
    }
    told
}

impl World {
    async fn start(kind: Kind, seed: u64) -> anyhow::Result<Self> {
        let mut setup = Setup::new(kind, 3);
        setup.flags.push(ALLOW_PINGS.to_owned());
        let mut cluster = Cluster::start(setup).await?;
        if kind == Kind::Tailwater {
            cluster.start_fanout(Fanout::following([0, 1, 2]).with(&[ALLOW_PINGS])).await?;
        }
        let mut gates = Vec::new();
        for slot in 0..cluster.slots() {
            gates.push(Gate::start(cluster.url(slot)).await?);
        }
        let direct = builder(cluster.urls()).build()?;
        let writer = Writer::start(direct.clone(), seed);
        Ok(Self { cluster, gates, direct, history: History::new(), writer, rng: StdRng::seed_from_u64(seed) })
    }

    /// One fault, and its end.
    async fn meet(&mut self, fault: Fault, informer: &Informer<u64>) -> anyhow::Result<()> {
        let endpoint = informer.status().borrow().endpoint.clone();
        let used = self.gates.iter().position(|gate| gate.url() == endpoint).context("an endpoint is a gate")?;
        match fault {
            Fault::Killed => {
                self.cluster.kill(used)?;
                self.writer.write_some().await?;
            }
            Fault::AllKilled => {
                self.cluster.kill_all()?;
                tokio::time::sleep(Duration::from_millis(self.rng.random_range(0..500))).await;
            }
            Fault::Cut => {
                self.gates[used].set(Link::Cut);
                self.writer.write_some().await?;
            }
            Fault::Held => {
                self.gates[used].set(Link::Held);
                self.writer.write_some().await?;
                tokio::time::sleep(HELD).await;
            }
            Fault::Isolated => {
                let link = if self.rng.random() { Link::Cut } else { Link::Held };
                self.cluster.isolate(used, link);
                self.writer.write_some().await?;
                tokio::time::sleep(HELD).await;
            }
            Fault::Compacted => {
                self.gates.iter().for_each(|gate| gate.set(Link::Cut));
                crate::support::until(informer, |status| status.phase == Phase::Connecting).await;
                self.compact().await?;
            }
            Fault::HeldAndCompacted => {
                self.gates.iter().for_each(|gate| gate.set(Link::Held));
                tokio::time::sleep(HELD).await;
                self.compact().await?;
            }
        }
        self.gates.iter().for_each(|gate| gate.set(Link::Open));
        self.cluster.heal().await
    }

    /// Compacts what is written now.
    async fn compact(&mut self) -> anyhow::Result<()> {
        self.writer.write_some().await?;
        let url = self.cluster.url(0).to_owned();
        let revision = self.history.read_on(&url).await?;
        let mut kv = pb::kv_client::KvClient::new(connect(&url)?);
        kv.compact(pb::CompactionRequest { revision, physical: false }).await?;
        Ok(())
    }

    /// Writes what nobody watches; the revision.
    async fn write(&self) -> anyhow::Result<i64> {
        let put = pb::PutRequest { key: "/other".into(), ..Default::default() };
        let until = Instant::now() + PATIENCE;
        loop {
            match self.direct.put(put.clone()).await {
                Ok(answer) => return Ok(answer.header.context("a header")?.revision),
                Err(error) if Instant::now() > until => return Err(error.into()),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Writes no more but the last key, and reads the history to its end.
    async fn finish(&mut self) -> anyhow::Result<()> {
        self.writer.stops.store(true, Ordering::Relaxed);
        (&mut self.writer.task).await?;
        self.direct.put(pb::PutRequest { key: END.into(), ..Default::default() }).await?;
        let url = self.cluster.url(0).to_owned();
        self.history.read_on(&url).await?;
        Ok(())
    }

    /// What the servers have in the end.
    async fn list(&self) -> anyhow::Result<State> {
        let mut end = PREFIX.as_bytes().to_vec();
        *end.last_mut().context("no prefix")? += 1;
        let range = pb::RangeRequest { key: PREFIX.into(), range_end: end.into(), ..Default::default() };
        let kvs = self.direct.range(range).await?.kvs;
        Ok(kvs.iter().map(|kv| (kv.key.clone(), held(kv))).collect())
    }
}

impl Writer {
    fn start(client: Client, seed: u64) -> Self {
        let (done, stops) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, stopped) = (done.clone(), stops.clone());
        let task = tokio::spawn(async move {
            let mut rng = StdRng::seed_from_u64(seed);
            while !stopped.load(Ordering::Relaxed) {
                // A write that failed is one that may be done or not: the history tells.
                if client.txn(txn(&mut rng)).await.is_ok() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
                tokio::time::sleep(Duration::from_millis(rng.random_range(0..10))).await;
            }
        });
        Self { done, stops, task }
    }

    /// Waits until some more was written.
    async fn write_some(&self) -> anyhow::Result<()> {
        let (enough, until) = (self.done.load(Ordering::Relaxed) + WRITES, Instant::now() + PATIENCE);
        while self.done.load(Ordering::Relaxed) < enough {
            ensure!(Instant::now() < until, "nothing can be written");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

/// Some puts and deletes of different keys, and one that nobody watches.
fn txn(rng: &mut StdRng) -> pb::TxnRequest {
    use pb::request_op::Request;

    let first = rng.random_range(0..50);
    let mut success = Vec::new();
    for number in first..first + rng.random_range(1..4) {
        let key = format!("{PREFIX}{number:02}").into();
        // Some are so big that a server that is asked for fragments sends them.
        let size = if rng.random_ratio(1, 50) { 400_000 } else { rng.random_range(0..1000) };
        let value: String = (0..8).map(|_| rng.random_range('a'..='z')).chain(std::iter::repeat_n('-', size)).collect();
        success.push(match rng.random_ratio(1, 4) {
            true => Request::RequestDeleteRange(pb::DeleteRangeRequest { key, ..Default::default() }),
            false => Request::RequestPut(pb::PutRequest { key, value: value.into(), ..Default::default() }),
        });
    }
    if rng.random_ratio(1, 5) {
        success.push(Request::RequestPut(pb::PutRequest { key: "/other".into(), ..Default::default() }));
    }
    let success = success.into_iter().map(|request| pb::RequestOp { request: Some(request) }).collect();
    pb::TxnRequest { success, ..Default::default() }
}
