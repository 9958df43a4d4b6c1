//! What clients notice when the leader dies under 200 writers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use tailwater_api::etcdserverpb as pb;
use tailwater_tests::cluster::{Cluster, connect};
use tokio::task::{JoinHandle, JoinSet};
use tonic::transport::Channel;

use crate::history::{Action, Clock};
use crate::run::{scaled, turn_alone};
use crate::watchers::Stream;
use crate::workload::ask;

const WRITERS: usize = 200;
/// A write that takes longer is given up, and the writer goes to another member.
const WRITE_MAX: Duration = Duration::from_secs(1);
/// The median over the rounds of the time until writes go on, at default ticks; the three of the short form are few, and
/// the machine may do other things meanwhile.
const RESUME_MEDIAN_MAX: Duration = Duration::from_secs(2);
const RESUME_MEDIAN_MAX_SHORT: Duration = Duration::from_secs(5);
/// Reads and watches on the other members must not wait for the election, which takes at least a second; what they may
/// wait for is their share of a busy machine. In the full form that goes for each of them in each round, in the
/// short form, which runs beside anything, for half of them: if they needed a leader, all would wait.
const PAUSE_MAX: Duration = Duration::from_millis(800);
/// How long readers are watched before the leader dies.
const BEFORE: Duration = Duration::from_millis(300);
/// How long a writer rests after a failure.
const AFTER_FAILURE: Duration = Duration::from_millis(100);
/// How long a reader rests between two reads.
const REST: Duration = Duration::from_millis(5);

/// When the latest write that was acknowledged began, in nanoseconds of the run's clock.
#[derive(Clone, Default)]
struct Newest(Arc<AtomicU64>);

async fn write(index: usize, channels: Vec<Channel>, clock: Clock, newest: Newest) {
    let keys = [format!("load/{index:03}")];
    let mut slot = index;
    for number in 0_u64.. {
        let action = Action::Put { value: format!("{number:0100}") };
        let call = clock.now();
        let channel = channels[slot % channels.len()].clone();
        if let Ok(Ok(_)) = tokio::time::timeout(WRITE_MAX, ask(channel, &action, &keys)).await {
            newest.0.fetch_max(call, Ordering::Relaxed);
        } else {
            tokio::time::sleep(AFTER_FAILURE).await;
            slot += 1;
        }
    }
}

/// Somebody who reads again and again, and how long he had to wait at most.
struct Probe {
    kind: &'static str,
    slot: usize,
    longest: Longest,
    stop: Arc<AtomicBool>,
    task: JoinHandle<anyhow::Result<()>>,
}

/// The longest wait so far, in nanoseconds.
#[derive(Clone, Default)]
struct Longest(Arc<AtomicU64>);

impl Longest {
    fn note(&self, begin: Instant) {
        let waited = u64::try_from(begin.elapsed().as_nanos()).expect("no wait is that long");
        self.0.fetch_max(waited, Ordering::Relaxed);
    }

    fn forget(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    fn get(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

impl Probe {
    /// Serializable reads.
    fn reads(slot: usize, channel: Channel) -> Self {
        let (stop, longest) = (Arc::new(AtomicBool::new(false)), Longest::default());
        let (stopped, noted) = (Arc::clone(&stop), longest.clone());
        let task = tokio::spawn(async move {
            let keys = ["load/000".to_owned()];
            while !stopped.load(Ordering::Relaxed) {
                let begin = Instant::now();
                ask(channel.clone(), &Action::Read { serializable: true }, &keys).await?;
                noted.note(begin);
                tokio::time::sleep(REST).await;
            }
            Ok(())
        });
        Self { kind: "serializable reads", slot, longest, stop, task }
    }

    /// New watches from an old revision, until their first event.
    fn watches(slot: usize, channel: Channel) -> Self {
        let (stop, longest) = (Arc::new(AtomicBool::new(false)), Longest::default());
        let (stopped, noted) = (Arc::clone(&stop), longest.clone());
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let begin = Instant::now();
                let create = pb::WatchCreateRequest { key: "first".into(), start_revision: 1, ..Default::default() };
                let mut stream = Stream::open(channel.clone(), create).await?;
                let answer = stream.answers.message().await?.context("the watch ended")?;
                anyhow::ensure!(answer.events.len() == 1 && !answer.canceled, "{answer:?}");
                noted.note(begin);
                tokio::time::sleep(REST).await;
            }
            Ok(())
        });
        Self { kind: "new watches", slot, longest, stop, task }
    }

    /// One watch that goes on: how long it is silent although it is asked for progress.
    async fn progress(slot: usize, channel: Channel) -> anyhow::Result<Self> {
        let (stop, longest) = (Arc::new(AtomicBool::new(false)), Longest::default());
        let (stopped, noted) = (Arc::clone(&stop), longest.clone());
        let create = pb::WatchCreateRequest { key: "quiet".into(), ..Default::default() };
        let mut stream = Stream::open(channel, create).await?;
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let begin = Instant::now();
                stream.ask_for_progress();
                // etcd leaves a question unanswered while a watch of the stream catches up: ask again.
                let answer = loop {
                    match tokio::time::timeout(REST * 4, stream.answers.message()).await {
                        Ok(answer) => break answer?.context("the watch ended")?,
                        Err(_elapsed) => stream.ask_for_progress(),
                    }
                    anyhow::ensure!(begin.elapsed() < Duration::from_secs(20), "no progress for 20 s");
                };
                anyhow::ensure!(!answer.canceled, "the watch was canceled: {answer:?}");
                noted.note(begin);
                tokio::time::sleep(REST).await;
            }
            Ok(())
        });
        Ok(Self { kind: "progress", slot, longest, stop, task })
    }

    /// The longest wait since the leader died.
    async fn end(self) -> anyhow::Result<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?.with_context(|| format!("{} on member {}", self.kind, self.slot))?;
        Ok(self.longest.get())
    }
}

/// The longest waits by kind of reader, of each member and round.
type Waits = BTreeMap<&'static str, Vec<Duration>>;

/// Kills the leader; how long no write went through.
async fn round(cluster: &mut Cluster, clock: Clock, newest: &Newest, waits: &mut Waits) -> anyhow::Result<Duration> {
    let leader = cluster.leader().await?;
    let mut probes = Vec::new();
    for slot in cluster.others(leader) {
        probes.push(Probe::reads(slot, cluster.channel(slot)?));
        probes.push(Probe::watches(slot, cluster.channel(slot)?));
        probes.push(Probe::progress(slot, cluster.channel(slot)?).await?);
    }
    tokio::time::sleep(BEFORE).await;
    probes.iter().for_each(|probe| probe.longest.forget());
    cluster.kill(leader)?;
    let killed = clock.now();
    let waited = || Duration::from_nanos(clock.now() - killed);
    while newest.0.load(Ordering::Relaxed) < killed {
        anyhow::ensure!(waited() < Duration::from_secs(20), "no write for 20 s after the leader's end");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let resumed = waited();
    for probe in probes {
        let kind = probe.kind;
        waits.entry(kind).or_default().push(probe.end().await?);
    }
    cluster.restart(leader).await?;
    Ok(resumed)
}

async fn rounds(cluster: &mut Cluster) -> anyhow::Result<()> {
    let (clock, newest) = (Clock::start(), Newest::default());
    let first = ["first".to_owned()];
    ask(cluster.channel(0)?, &Action::Put { value: "value".to_owned() }, &first).await?;
    let mut writers = JoinSet::new();
    for index in 0..WRITERS {
        let channels = cluster.urls().iter().map(|url| connect(url)).collect::<anyhow::Result<Vec<_>>>()?;
        writers.spawn(write(index, channels, clock, newest.clone()));
    }
    let mut times = Vec::new();
    let mut waits = Waits::new();
    for _ in 0..scaled(3, 15) {
        tokio::time::sleep(Duration::from_millis(500)).await;
        times.push(round(cluster, clock, &newest, &mut waits).await?);
    }
    writers.shutdown().await;
    times.sort_unstable();
    let median = times[times.len() / 2];
    report(&format!("writes resumed after {median:?} in the median of {times:?}"));
    for (kind, mut longest) in waits {
        longest.sort_unstable();
        report(&format!("{kind}: the longest waits when the leader died: {longest:?}"));
        let counts = scaled(longest[longest.len() / 2], longest[longest.len() - 1]);
        anyhow::ensure!(counts <= PAUSE_MAX, "{kind}: pauses when the leader died: {longest:?}");
    }
    let limit = scaled(RESUME_MEDIAN_MAX_SHORT, RESUME_MEDIAN_MAX);
    anyhow::ensure!(median <= limit, "writes resumed after {median:?} in the median of {times:?}");
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the figures tell more than the pass")]
fn report(line: &str) {
    println!("{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_resume_soon_and_readers_notice_nothing() {
    let Some((_turn, setup)) = turn_alone("leader loss", 3).await else { return };
    let mut cluster = Cluster::start(setup).await.expect("a cluster");
    if let Err(error) = rounds(&mut cluster).await {
        panic!("{error:?}");
    }
    cluster.finish();
}
