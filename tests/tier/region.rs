//! A region far away: a relay behind 80 ms, and a fanout behind the relay that the region's clients use.

use std::time::{Duration, Instant};

use tailwater_api::etcdserverpb as pb;
use tailwater_tests::cluster::{Fanout, Link};
use tonic::transport::Channel;

use crate::client::{Watch, kv, list, prefix, put};
use crate::run::{Plan, Tier, say, scaled};

/// There and back, half of it each way.
const ROUND_TRIP: Duration = Duration::from_millis(80);
/// What is local takes less than half of the way there. (A busy machine of two CPUs takes that long to do nothing.)
const LOCAL_MAX: Duration = Duration::from_millis(20);

/// Sets the way between the region's `relay` and each of `core`.
fn set_distance(tier: &Tier, relay: usize, link: Link) {
    for member in &tier.members {
        tier.cluster.links().set(relay, *member, link);
        tier.cluster.links().set(*member, relay, link);
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// The median time of `count` reads.
async fn reads(channel: &Channel, count: usize, serializable: bool) -> anyhow::Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..count {
        let begin = Instant::now();
        let read = pb::RangeRequest { key: "/r/1".into(), serializable, ..Default::default() };
        let answer = kv(channel).range(read).await?.into_inner();
        times.push(begin.elapsed());
        anyhow::ensure!(answer.kvs.len() == 1, "the key is there");
    }
    Ok(median(times))
}

/// The median times of opening a watch from now on, and of resuming one and getting the events since.
async fn watches(channel: &Channel, count: usize, from: i64, events: usize) -> anyhow::Result<(Duration, Duration)> {
    let (mut created, mut resumed) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let begin = Instant::now();
        Watch::open(channel, prefix("/r/"), 0).await?;
        created.push(begin.elapsed());
        let begin = Instant::now();
        let mut watch = Watch::open(channel, prefix("/r/"), from).await?;
        let mut seen = 0;
        while seen < events {
            seen += watch.events().await?.len();
        }
        resumed.push(begin.elapsed());
    }
    Ok((median(created), median(resumed)))
}

/// The median times from sending a put at `writer` to its answer there and to its event at `reader`.
async fn events(writer: &Channel, reader: &Channel, count: usize) -> anyhow::Result<(Duration, Duration)> {
    let mut watch = Watch::open(reader, prefix("/r/"), 0).await?;
    let (mut answers, mut arrivals) = (Vec::new(), Vec::new());
    for number in 0..count {
        let begin = Instant::now();
        let value = number.to_string();
        let (answered, arrived) =
            tokio::join!(async { put(writer, "/r/1", &value).await.map(|_| begin.elapsed()) }, async {
                watch.events().await.map(|_| begin.elapsed())
            });
        answers.push(answered?);
        arrivals.push(arrived?);
    }
    Ok((median(answers), median(arrivals)))
}

/// Serializable reads, watches and resumes are local in the region; a linearizable read costs one round trip.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_reads_and_watches_locally() -> anyhow::Result<()> {
    // Where members stand for fanouts the one that clients use is the far one itself.
    let plan = Plan::new("a_region_reads_and_watches_locally").alone().fanout(Fanout::following([1, 2, 0]).as_relay());
    let plan = if crate::run::standing() == crate::run::Standing::Fanouts {
        plan.fanout(Fanout::following([3]))
    } else {
        plan
    };
    let Some(tier) = plan.start().await? else { return Ok(()) };
    let leader = tier.lead_by_a_member().await?;
    let (relay, local) = (tier.fanouts[0], *tier.fanouts.last().expect("one at least"));
    let (core, region) = (tier.cluster.channel(leader)?, tier.cluster.channel(local)?);
    let from = put(&core, "/r/1", "first").await?;
    for number in 1..20 {
        put(&core, "/r/1", &number.to_string()).await?;
    }
    list(&region, prefix("/r/")).await?;
    set_distance(&tier, relay, Link::Delayed(ROUND_TRIP / 2));
    // What is under way over the short way, and the measured time of heartbeats, settle.
    tokio::time::sleep(Duration::from_millis(500)).await;

    let count = scaled(11, 101);
    let serializable = reads(&region, count, true).await?;
    let (created, resumed) = watches(&region, count, from, 20).await?;
    let linearizable = reads(&region, count, false).await?;
    let (_, arrival) = events(&core, &region, count).await?;
    let (answer, own) = events(&region, &region, count).await?;
    say("| in a region behind 80 ms | ms, median |\n|---|---|");
    for (name, time) in [
        ("serializable read", serializable),
        ("watch created", created),
        ("watch resumed, 20 events", resumed),
        ("linearizable read", linearizable),
        ("event of a put in the core", arrival),
        ("put in the region: answer", answer),
        ("put in the region: event there", own),
    ] {
        say(&format!("| {name} | {:.1} |", time.as_secs_f64() * 1000.0));
    }
    for (name, time) in [("serializable read", serializable), ("new watch", created), ("resumed watch", resumed)] {
        anyhow::ensure!(time < LOCAL_MAX, "a {name} takes {time:?}: it is not local");
    }
    // On a machine that does other things beside, a build for tests is only held to less than two.
    let most = ROUND_TRIP * scaled(4, 3) / 2;
    anyhow::ensure!(
        linearizable >= ROUND_TRIP,
        "a linearizable read takes only {linearizable:?}: there is no distance"
    );
    for (name, time) in [("linearizable read", linearizable), ("put", answer), ("event of an own put", own)] {
        anyhow::ensure!(time < most, "a {name} takes {time:?}, more than one round trip of {ROUND_TRIP:?}");
    }
    anyhow::ensure!(
        arrival < ROUND_TRIP / 2 + LOCAL_MAX * scaled(4, 2),
        "an event takes {arrival:?} for half a round trip"
    );
    silence(&tier, relay, &region, from).await?;
    tier.cluster.finish();
    Ok(())
}

/// While nothing passes between region and core for less than three election timeouts, the region goes on reading.
async fn silence(tier: &Tier, relay: usize, region: &Channel, from: i64) -> anyhow::Result<()> {
    set_distance(tier, relay, Link::Held);
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        let serializable = reads(region, 3, true).await?;
        let (created, resumed) = watches(region, 3, from, 20).await?;
        for time in [serializable, created, resumed] {
            // Whatever waits for the core waits until the link is opened again.
            anyhow::ensure!(time < Duration::from_millis(500), "cut off, the region reads in {time:?}");
        }
    }
    tier.cluster.links().open_all();
    Ok(())
}
