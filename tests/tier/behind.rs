//! A watch that starts far back, while writes go on.

use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use tailwater_api::mvccpb::Event;
use tailwater_tests::cluster::{Cluster, Fanout, Setup};
use tailwater_tests::{Kind, left_out, program};

use crate::client::{Watch, prefix};
use crate::load::{Puts, Shape, channels, fill, greatest_rate};
use crate::run::{Plan, acceptance, number, say, scaled};

const LIVE_MAX: Duration = Duration::from_secs(60);
/// A watch is live when an event is no older than that.
const LIVE_AGE: Duration = Duration::from_millis(500);

/// How a watch caught up.
struct CaughtUp {
    rate: u64,
    revisions: i64,
    after: Duration,
}

/// Since the event's value was made.
fn age(event: &Event) -> anyhow::Result<Duration> {
    let value = &event.kv.as_ref().context("an event has a key")?.value;
    let text = std::str::from_utf8(value.get(..20).context("values begin with the time")?)?;
    let sent = SystemTime::UNIX_EPOCH + Duration::from_nanos(text.parse()?);
    Ok(SystemTime::now().duration_since(sent).unwrap_or_default())
}

/// Fills through `members`, then watches from the first revision at `replica` while they take half of what they can.
async fn catch_up(members: &[String], replica: &str) -> anyhow::Result<CaughtUp> {
    let shape = Shape { prefix: "/b/", groups: 10, keys: 100, value_bytes: scaled(256, 1024), mixed: false };
    let writers = channels(members)?;
    let revisions = number("TIER_REVISIONS", scaled(5_000, 200_000));
    let (first, _) = fill(&writers, revisions, &shape).await?;
    let rate = greatest_rate(&writers, scaled(Duration::from_secs(1), Duration::from_secs(5)), &shape).await? / 2;
    let puts = Puts::start(writers, rate, shape);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let begin = Instant::now();
    let mut watch = Watch::open(&channels(&[replica.to_owned()])?[0], prefix("/b/"), first).await?;
    let mut next = first;
    loop {
        let events = watch.events().await?;
        for event in &events {
            let revision = event.kv.as_ref().context("an event has a key")?.mod_revision;
            anyhow::ensure!(revision == next, "revision {revision} where {next} is next");
            next += 1;
        }
        if age(events.last().context("an answer with events")?)? < LIVE_AGE {
            break;
        }
        anyhow::ensure!(begin.elapsed() < LIVE_MAX * 5, "not live after {:?}", begin.elapsed());
    }
    let after = begin.elapsed();
    let (_, failed) = puts.end().await?;
    anyhow::ensure!(failed.is_empty(), "writes failed: {failed:?}");
    Ok(CaughtUp { rate, revisions: next - first, after })
}

fn row(name: &str, caught_up: &CaughtUp) {
    let milliseconds = u64::try_from(caught_up.after.as_millis()).expect("a short time").max(1);
    let per_second = u64::try_from(caught_up.revisions).expect("positive") * 1000 / milliseconds;
    say(&format!(
        "| {name} | {} | {} | {:.2} | {per_second} |",
        caught_up.rate,
        caught_up.revisions,
        caught_up.after.as_secs_f64()
    ));
}

/// A watch far back on a fanout, whose window holds little of that, is soon live; in full beside etcd's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_far_back_is_soon_live() -> anyhow::Result<()> {
    let plan = Plan::new("a_watch_far_back_is_soon_live").alone();
    let plan = plan.fanout(Fanout::following([1, 2, 0]).with(&["--window-bytes=1048576"]));
    let Some(tier) = plan.start().await? else { return Ok(()) };
    let ours = catch_up(&tier.urls(&tier.members), tier.cluster.url(tier.fanouts[0])).await?;
    tier.cluster.finish();
    say("| server | puts per s meanwhile | revisions | live after s | revisions per s |\n|---|---|---|---|---|");
    row("fanout", &ours);
    if acceptance() {
        beside_etcd().await?;
    }
    anyhow::ensure!(
        ours.after <= LIVE_MAX,
        "a watch {} revisions back was live after {:?}",
        ours.revisions,
        ours.after
    );
    Ok(())
}

async fn beside_etcd() -> anyhow::Result<()> {
    if let Err(error) = program(Kind::Etcd) {
        left_out("the rate of etcd beside a_watch_far_back_is_soon_live", &format!("{error:#}"));
        return Ok(());
    }
    let cluster = Cluster::start(Setup::new(Kind::Etcd, 3)).await?;
    match catch_up(&cluster.urls(), cluster.url(0)).await {
        Ok(theirs) => row("etcd", &theirs),
        // Their rate stands beside ours; that they make it is not our test.
        Err(error) => say(&format!("| etcd | | | | {error:#} |")),
    }
    cluster.finish();
    Ok(())
}
