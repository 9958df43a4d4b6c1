//! A fanout that starts behind much data, while writes go on.

use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use tailwater_api::etcdserverpb as pb;
use tailwater_tests::cluster::Fanout;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::client::{kv, list, prefix};
use crate::load::{Puts, Shape, channels, greatest_rate, value};
use crate::run::{Plan, Standing, number, say, scaled, standing};

const VALUE_BYTES: usize = 512;
/// Keys that one transaction writes: what matters here is their number, not that of revisions.
const KEYS_AT_ONCE: u64 = 100;
/// Keys that are compared at a time.
const PAGE: i64 = 10_000;
/// How soon a fanout is ready.
const READY_MAX: Duration = Duration::from_secs(15);

fn key(index: u64) -> Bytes {
    format!("/s/{index:08}").into()
}

/// Writes every key `times` times.
async fn fill(channels: &[Channel], keys: u64, times: u64) -> anyhow::Result<()> {
    const LANES: u64 = 16;
    for round in 0..times {
        let mut lanes = JoinSet::new();
        for lane in 0..LANES {
            let mut client = kv(&channels[usize::try_from(lane)? % channels.len()]);
            lanes.spawn(async move {
                for first in (lane * KEYS_AT_ONCE..keys).step_by(usize::try_from(LANES * KEYS_AT_ONCE)?) {
                    let puts = (first..keys.min(first + KEYS_AT_ONCE)).map(|index| {
                        let put = pb::PutRequest { key: key(index), value: value(VALUE_BYTES), ..Default::default() };
                        pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }
                    });
                    client.txn(pb::TxnRequest { success: puts.collect(), ..Default::default() }).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(done) = lanes.join_next().await {
            done?.with_context(|| format!("writing all keys for the {}th time", round + 1))?;
        }
    }
    Ok(())
}

/// Compares the keys of two replicas at one revision.
async fn same(a: &Channel, b: &Channel, keys: u64) -> anyhow::Result<()> {
    let (_, revision) = list(a, pb::RangeRequest { count_only: true, ..prefix("/s/") }).await?;
    let mut request = pb::RangeRequest { revision, limit: PAGE, ..prefix("/s/") };
    let mut seen = 0;
    loop {
        let ((left, _), (right, _)) = (list(a, request.clone()).await?, list(b, request.clone()).await?);
        anyhow::ensure!(left == right, "the replicas differ behind {:?}", request.key);
        let Some(last) = left.last() else { break };
        seen += left.len() as u64;
        request.key = [&last.key[..], b"\0"].concat().into();
    }
    anyhow::ensure!(seen == keys, "{seen} of {keys} keys");
    Ok(())
}

/// A fanout behind many keys with many uncompacted updates each is soon ready; meanwhile no write fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fanout_starts_beside_writes() -> anyhow::Result<()> {
    let plan = Plan::new("a_fanout_starts_beside_writes").alone().only_fanouts();
    // Twice what is written: etcd's default bound is lower.
    let plan = plan.members(|setup| setup.flags.push(format!("--quota-backend-bytes={}", 24u64 << 30)));
    let Some(mut tier) = plan.start().await? else { return Ok(()) };
    debug_assert_eq!(standing(), Standing::Fanouts);
    let keys = number("TIER_KEYS", scaled(20_000, 1_000_000));
    let members = channels(&tier.urls(&tier.members))?;
    // Once made, then updated.
    let updates = scaled(3, 10);
    fill(&members, keys, updates + 1).await?;
    let shape = Shape { prefix: "/load/", groups: 10, keys: 100, value_bytes: VALUE_BYTES, mixed: false };
    let greatest = greatest_rate(&members, scaled(Duration::from_secs(1), Duration::from_secs(5)), &shape).await?;
    let puts = Puts::start(members.clone(), greatest / 2, shape);
    tokio::time::sleep(scaled(Duration::from_millis(500), Duration::from_secs(5))).await;

    let begin = Instant::now();
    let slot = tier.cluster.start_fanout(Fanout::following([1, 2, 0])).await?;
    let ready = begin.elapsed();
    tokio::time::sleep(scaled(Duration::from_millis(200), Duration::from_secs(5))).await;
    let (answered, failed) = puts.end().await?;
    same(&members[0], &tier.cluster.channel(slot)?, keys).await?;
    let failures: u64 = failed.values().sum();
    say(
        "| keys | updates of each | ready after s | writes meanwhile per s | writes | failed |\n|---|---|---|---|---|---|",
    );
    say(&format!("| {keys} | {updates} | {:.2} | {} | {answered} | {failures} |", ready.as_secs_f64(), greatest / 2));
    anyhow::ensure!(failed.is_empty(), "writes failed: {failed:?}");
    anyhow::ensure!(ready <= READY_MAX, "a fanout of {keys} keys was ready only after {ready:?}");
    tier.cluster.finish();
    Ok(())
}

/// Members that have started again hold few of the values that were compacted in memory; a fanout below them gets all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fanout_starts_behind_members_that_have_started_again() -> anyhow::Result<()> {
    const KEYS: u64 = 2000;
    let plan = Plan::new("a_fanout_starts_behind_members_that_have_started_again").only_fanouts();
    let Some(mut tier) = plan.start().await? else { return Ok(()) };
    let members = channels(&tier.urls(&tier.members))?;
    fill(&members, KEYS, 1).await?;
    // Compacted on every member once each of them has been asked.
    for member in &members {
        let (_, revision) = list(member, pb::RangeRequest { count_only: true, ..prefix("/s/") }).await?;
        kv(member).put(pb::PutRequest { key: "other".into(), ..Default::default() }).await?;
        kv(member).compact(pb::CompactionRequest { revision, physical: true }).await?;
    }
    for slot in tier.members.clone() {
        tier.cluster.restart(slot).await?;
    }
    for upstream in tier.members.clone() {
        let slot = tier.cluster.start_fanout(Fanout::following([upstream])).await?;
        same(&tier.cluster.channel(upstream)?, &tier.cluster.channel(slot)?, KEYS).await?;
    }
    tier.cluster.finish();
    Ok(())
}
