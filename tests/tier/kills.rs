//! Fanouts and what they follow are killed and stopped at random, while clients watch and write.

use std::time::Duration;

use anyhow::Context;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use tailwater_tests::cluster::Fanout;
use tailwater_tests::left_out;

use crate::client::put;
use crate::load::{Puts, Shape, channels, next_write};
use crate::run::{Plan, Tier, acceptance, number, say, scaled, seed};
use crate::watchers::{Amount, Interruption, Watchers, build};

const PREFIX: &str = "/w/";
/// How long a victim is away, at least.
const AWAY: Duration = Duration::from_millis(400);
/// When it is asked how long the watchers of a drained fanout were not live: longer than that would still be seen.
const SETTLED_AFTER: Duration = Duration::from_millis(2500);

/// What happens in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    KillFanout,
    DrainFanout,
    KillRelay,
    StopRelay,
    KillMember,
    StopMember,
    /// A fanout and one of its sources at once.
    KillBoth,
}

const FAULTS: [Fault; 7] = [
    Fault::DrainFanout,
    Fault::KillFanout,
    Fault::KillRelay,
    Fault::StopRelay,
    Fault::KillMember,
    Fault::StopMember,
    Fault::KillBoth,
];

/// The tier: a relay at slot 3, and behind it three fanouts that clients use: behind the relay first, or beside it.
///
/// Without a leader for three election timeouts watches that require one end, as etcd's do. A build for tests on a machine
/// that does other things beside may take that long for an election at the default of a second.
fn plan() -> Plan {
    let patience = scaled("--election-timeout=2000", "--election-timeout=1000");
    let fanout = |upstream: &[usize]| Fanout::following(upstream.iter().copied()).with(&[patience]);
    Plan::new("watchers_of_killed_fanouts_lose_nothing")
        .members(|setup| setup.flags.push(patience.to_owned()))
        .fanout(fanout(&[1, 2, 0]).as_relay())
        .fanout(fanout(&[3, 1, 2, 0]))
        .fanout(fanout(&[2, 0, 1, 3]))
        .fanout(fanout(&[3, 0]))
}

struct Run {
    tier: Tier,
    watchers: Watchers,
    random: StdRng,
    interruptions: Vec<Interruption>,
}

impl Run {
    /// The fanouts that clients use.
    fn serving(&self) -> &[usize] {
        &self.tier.fanouts[1..]
    }

    fn relay(&self) -> usize {
        self.tier.fanouts[0]
    }

    fn one_of(&mut self, slots: &[usize]) -> usize {
        slots[self.random.random_range(0..slots.len())]
    }

    async fn round(&mut self, fault: Fault) -> anyhow::Result<()> {
        let (serving, members) = (self.serving().to_vec(), self.tier.members.clone());
        let (fanout, member) = (self.one_of(&serving), self.one_of(&members));
        let source = if self.random.random_bool(0.5) { self.relay() } else { member };
        match fault {
            Fault::KillFanout => self.kill(&[fanout]).await,
            Fault::DrainFanout => self.drain(fanout).await,
            Fault::KillRelay => self.kill(&[self.relay()]).await,
            Fault::StopRelay => self.stop(self.relay()).await,
            Fault::KillMember => self.kill(&[member]).await,
            Fault::StopMember => self.stop(member).await,
            Fault::KillBoth => self.kill(&[fanout, source]).await,
        }
    }

    async fn kill(&mut self, slots: &[usize]) -> anyhow::Result<()> {
        for slot in slots {
            self.tier.cluster.kill(*slot)?;
        }
        tokio::time::sleep(AWAY).await;
        for slot in slots {
            self.tier.cluster.launch(*slot)?;
        }
        for slot in slots {
            self.tier.cluster.wait_until_serving(*slot).await?;
        }
        Ok(())
    }

    async fn stop(&mut self, slot: usize) -> anyhow::Result<()> {
        self.tier.cluster.stop(slot).await?;
        tokio::time::sleep(AWAY).await;
        self.tier.cluster.restart(slot).await
    }

    /// SIGTERM to a fanout with watchers; notes how long they were not live.
    async fn drain(&mut self, slot: usize) -> anyhow::Result<()> {
        let status = self.tier.cluster.status(slot).await.context("it serves")?;
        let id = status.header.context("an answer has a header")?.member_id;
        self.watchers.judge(id).await?;
        let begin = tokio::time::Instant::now();
        self.tier.cluster.stop(slot).await?;
        tokio::time::sleep_until(begin + SETTLED_AFTER).await;
        self.interruptions.push(self.watchers.settled().await?);
        self.tier.cluster.restart(slot).await
    }
}

/// The faults of all rounds: each kind as often, in any order.
fn faults(rounds: usize, random: &mut StdRng) -> Vec<Fault> {
    let mut faults: Vec<Fault> = FAULTS.iter().copied().cycle().take(rounds).collect();
    faults.shuffle(random);
    faults
}

fn report(interruptions: &[Interruption]) -> Option<u64> {
    let mut all: Vec<u64> = interruptions.iter().flat_map(|one| one.milliseconds.iter().copied()).collect();
    all.sort_unstable();
    let median = *all.get(all.len() / 2)?;
    let (p99, most) = (all[all.len() * 99 / 100], all[all.len() - 1]);
    let silent: usize = interruptions.iter().map(|one| one.silent).sum();
    say(&format!(
        "| drains | watchers drained | not live ms: median | p99 | most | still silent after {} ms |\n|---|---|---|---|---|---|",
        SETTLED_AFTER.as_millis()
    ));
    let watchers: usize = interruptions.iter().map(|one| one.watchers).sum();
    say(&format!("| {} | {watchers} | {median} | {p99} | {most} | {silent} |", interruptions.len()));
    Some(median)
}

/// Random kill -9 and SIGTERM of fanouts, of relays and of members: no watcher misses, gets twice or out of order, or is
/// ended so that Kubernetes lists again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_of_killed_fanouts_lose_nothing() -> anyhow::Result<()> {
    let Some(program) = build()? else {
        left_out("watchers_of_killed_fanouts_lose_nothing", "Go is not installed");
        return Ok(());
    };
    let Some(tier) = plan().start().await? else { return Ok(()) };
    let seed = seed();
    say(&format!("SEED={seed}"));
    let mut random = StdRng::seed_from_u64(seed);
    let groups = scaled(10, 40);
    let shape = Shape { prefix: PREFIX, groups, keys: 5, value_bytes: 256, mixed: true };
    let writers = channels(&tier.urls(&(0..tier.members.len() + tier.fanouts.len()).collect::<Vec<_>>()))?;
    let first = put(&tier.cluster.channel(0)?, "/w/000/first", "0").await?;
    let amount = Amount { watchers: scaled(50, 1000), clients: scaled(10, 50), prefix: PREFIX, groups, from: first };
    let (serving, members) = (tier.urls(&tier.fanouts[1..]), tier.urls(&tier.members));
    let watchers = Watchers::start(&program, &serving, &members, &amount).await?;
    let puts = Puts::start(writers, scaled(100, 400), shape);
    let mut run = Run { tier, watchers, random: StdRng::seed_from_u64(seed ^ 1), interruptions: Vec::new() };
    let rounds = usize::try_from(number("TIER_ROUNDS", scaled(FAULTS.len() as u64, 100)))?;
    for (round, fault) in faults(rounds, &mut random).into_iter().enumerate() {
        if acceptance() {
            say(&format!("round {} of {rounds}: {fault:?}", round + 1));
        }
        run.round(fault).await.with_context(|| format!("round {}: {fault:?}", round + 1))?;
        next_write(&puts.counts, Duration::from_secs(20)).await?;
    }
    let (answered, failed) = puts.end().await?;
    run.tier.cluster.heal().await?;
    let last = put(&run.tier.cluster.channel(0)?, "/w/000/last", "0").await?;
    let verdict = run.watchers.finish(last).await?;
    verdict.check()?;
    say(&format!(
        "{rounds} rounds; {answered} writes, {} failed; {} watchers of {} events in the log got {} events and changed their \
         replica {} times: 0 missed, 0 duplicate, 0 out of order, 0 ended",
        failed.values().sum::<u64>(),
        verdict.watchers,
        verdict.log,
        verdict.events,
        verdict.moves
    ));
    anyhow::ensure!(verdict.moves > 0, "no watcher ever lost its replica: this tested nothing");
    match report(&run.interruptions) {
        // A build for tests on a machine that does other things beside is only looked at roughly.
        Some(median) => anyhow::ensure!(
            median <= scaled(2000, 1000),
            "after a drain watchers were live again after {median} ms in the median"
        ),
        // Of few rounds the one drain may meet the fanout that all watchers have just left.
        None => anyhow::ensure!(!acceptance(), "no fanout that was drained had watchers"),
    }
    run.tier.cluster.finish();
    Ok(())
}
