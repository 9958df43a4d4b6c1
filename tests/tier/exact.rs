//! What one replica says goes on exactly where another one ended.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tailwater_api::etcdserverpb as pb;
use tailwater_api::mvccpb::KeyValue;
use tailwater_tests::cluster::Fanout;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::client::{Watch, kv, list, prefix, put};
use crate::load::{Puts, Shape, channels};
use crate::run::{Plan, Tier, say, scaled, seed};

const PREFIX: &str = "/e/";

/// A tier with a relay and a fanout behind it, and a fanout beside it.
fn plan(test: &'static str) -> Plan {
    Plan::new(test)
        .fanout(Fanout::following([1, 2, 0]).as_relay())
        .fanout(Fanout::following([3]))
        .fanout(Fanout::following([2, 0, 1]))
}

fn replicas(tier: &Tier) -> anyhow::Result<Vec<Channel>> {
    channels(&tier.urls(&tier.members.iter().chain(&tier.fanouts).copied().collect::<Vec<_>>()))
}

/// The state of all keys, kept up by a watch.
#[derive(Debug, PartialEq)]
struct State(BTreeMap<Vec<u8>, KeyValue>);

impl State {
    fn of(list: Vec<KeyValue>) -> Self {
        Self(list.into_iter().map(|kv| (kv.key.to_vec(), kv)).collect())
    }

    /// Applies the events of one answer.
    fn apply(&mut self, events: Vec<tailwater_api::mvccpb::Event>, after: &mut i64) -> anyhow::Result<()> {
        let first = events.first().and_then(|event| event.kv.as_ref()).context("an event has a key")?.mod_revision;
        anyhow::ensure!(first > *after, "revision {first} comes after {after}");
        for event in events {
            let kv = event.kv.context("an event has a key")?;
            let before = self.0.get(&kv.key[..]);
            anyhow::ensure!(kv.mod_revision >= *after, "revision {} comes after {after}", kv.mod_revision);
            *after = kv.mod_revision;
            if let Some(prev) = &event.prev_kv {
                anyhow::ensure!(before == Some(prev), "prev_kv {prev:?}, but the state has {before:?}");
            }
            if event.r#type == 0 {
                // Each version follows the last one: nothing is missing, nothing comes twice.
                let version = before.map_or(0, |kv| kv.version) + 1;
                anyhow::ensure!(kv.version == version, "version {} of {kv:?} where {version} is next", kv.version);
                self.0.insert(kv.key.to_vec(), kv);
            } else {
                anyhow::ensure!(self.0.remove(&kv.key[..]).is_some(), "a delete of nothing: {kv:?}");
            }
        }
        Ok(())
    }
}

/// A list, asked for again while the replica says that it is unavailable, as clients do: a busy machine loses its leader.
async fn patient(channel: &Channel, range: pb::RangeRequest) -> anyhow::Result<(Vec<KeyValue>, i64)> {
    let begin = Instant::now();
    loop {
        match list(channel, range.clone()).await {
            Err(error) if begin.elapsed() < Duration::from_secs(30) && is_unavailable(&error) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            answer => return answer,
        }
    }
}

fn is_unavailable(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Status>().is_some_and(|status| status.code() == Code::Unavailable)
}

/// One client: lists here, watches there, and compares with a list later on.
async fn list_here_watch_there(here: Channel, there: Channel, serializable: bool) -> anyhow::Result<usize> {
    let (pairs, mut at) = patient(&here, pb::RangeRequest { serializable, ..prefix(PREFIX) }).await?;
    let mut state = State::of(pairs);
    let mut watch = Watch::open(&there, prefix(PREFIX), at + 1).await?;
    let target = at + 40;
    let mut events = 0;
    while at < target {
        let next = watch.events().await?;
        events += next.len();
        state.apply(next, &mut at)?;
    }
    let (pairs, _) = patient(&here, pb::RangeRequest { revision: at, ..prefix(PREFIX) }).await?;
    anyhow::ensure!(state == State::of(pairs), "the watched state differs from the list at {at}");
    Ok(events)
}

/// List on replica A at R, watch on replica B from R+1: every change exactly once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_goes_on_as_a_watch_on_any_other_replica() -> anyhow::Result<()> {
    let Some(tier) = plan("a_list_goes_on_as_a_watch_on_any_other_replica").start().await? else { return Ok(()) };
    let mut random = StdRng::seed_from_u64(seed());
    let shape = Shape { prefix: PREFIX, groups: 5, keys: 4, value_bytes: 64, mixed: true };
    let replicas = replicas(&tier)?;
    let puts = Puts::start(replicas.clone(), scaled(150, 500), shape);
    let (rounds, at_once) = (scaled(4, 200), 12);
    let mut events = 0;
    for _ in 0..rounds {
        let mut clients = JoinSet::new();
        for _ in 0..at_once {
            let here = random.random_range(0..replicas.len());
            let there = (here + random.random_range(1..replicas.len())) % replicas.len();
            let serializable = random.random_bool(0.5);
            let client = list_here_watch_there(replicas[here].clone(), replicas[there].clone(), serializable);
            clients.spawn(async move { client.await.with_context(|| format!("from replica {here} to {there}")) });
        }
        while let Some(done) = clients.join_next().await {
            events += done??;
        }
    }
    let (answered, failed) = puts.end().await?;
    say(&format!(
        "{} clients changed their replica under {answered} writes ({} failed) and got {events} events",
        rounds * at_once,
        failed.values().sum::<u64>()
    ));
    tier.cluster.finish();
    Ok(())
}

/// A compaction that has been acknowledged is effective for every read that starts later, on every replica.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compaction_is_effective_everywhere_once_it_is_acknowledged() -> anyhow::Result<()> {
    let plan = plan("a_compaction_is_effective_everywhere_once_it_is_acknowledged");
    let Some(tier) = plan.start().await? else { return Ok(()) };
    let replicas = replicas(&tier)?;
    let shape = Shape { prefix: PREFIX, groups: 5, keys: 4, value_bytes: 64, mixed: true };
    let puts = Puts::start(replicas.clone(), 50, shape);
    for round in 0..scaled(15, 500) {
        let by = round % replicas.len();
        let mut newest = 0;
        for number in 0..3 {
            newest = put(&replicas[(by + number) % replicas.len()], "/e/000/compacted", &round.to_string()).await?;
        }
        let request = pb::CompactionRequest { revision: newest, physical: false };
        kv(&replicas[by]).compact(request).await.with_context(|| format!("compaction {round} by replica {by}"))?;
        for (index, replica) in replicas.iter().enumerate() {
            compacted_on(replica, newest)
                .await
                .with_context(|| format!("round {round}: replica {index} after {by}"))?;
        }
    }
    puts.end().await?;
    tier.cluster.finish();
    Ok(())
}

/// Reads below `revision` say that they are too late, reads at it are answered, and so are watches.
async fn compacted_on(replica: &Channel, revision: i64) -> anyhow::Result<()> {
    for serializable in [false, true] {
        let below = pb::RangeRequest { revision: revision - 1, serializable, ..prefix(PREFIX) };
        let status = kv(replica).range(below).await.err().context("a read below the compacted revision is answered")?;
        anyhow::ensure!(
            status.code() == Code::OutOfRange && status.message().contains("compacted"),
            "a read below the compacted revision: {status:?}"
        );
        let at = pb::RangeRequest { revision, serializable, ..prefix(PREFIX) };
        kv(replica).range(at).await.context("a read at the compacted revision")?;
    }
    let mut watch = Watch::open(replica, prefix(PREFIX), revision - 1).await?;
    let answer = watch.next().await?;
    anyhow::ensure!(
        answer.canceled && answer.compact_revision == revision && answer.events.is_empty(),
        "a watch from below the compacted revision {revision}: {answer:?}"
    );
    let mut watch = Watch::open(replica, prefix("/e/000/compacted"), revision).await?;
    let events = watch.events().await?;
    let first = events.first().and_then(|event| event.kv.as_ref()).map(|kv| kv.mod_revision);
    anyhow::ensure!(first == Some(revision), "a watch from the compacted revision begins with {first:?}");
    Ok(())
}

/// Progress on every replica speaks of what was sent: with nothing to match it reaches the newest write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_reaches_every_replica() -> anyhow::Result<()> {
    let Some(tier) = plan("progress_reaches_every_replica").start().await? else { return Ok(()) };
    let replicas = replicas(&tier)?;
    for (index, replica) in replicas.iter().enumerate() {
        let mut watch = Watch::open(replica, prefix("/none/"), 0).await?;
        let newest = put(&replicas[0], "/e/000/progress", &index.to_string()).await?;
        let begin = Instant::now();
        loop {
            watch.ask_for_progress()?;
            let answer = watch.next().await?;
            anyhow::ensure!(answer.events.is_empty() && !answer.canceled, "nothing matches: {answer:?}");
            if crate::client::revision(answer.header.as_ref())? >= newest {
                break;
            }
            anyhow::ensure!(begin.elapsed() < Duration::from_secs(10), "replica {index} does not reach {newest}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    tier.cluster.finish();
    Ok(())
}
