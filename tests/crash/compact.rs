//! A compaction that is killed midway, several times, and goes on by itself.

use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tailwater_api::etcdserverpb as pb;
use tailwater_tests::Node;
use tokio_stream::StreamExt;
use tonic::transport::Channel;

use crate::load::{connect, kv, open_watch_of};

const KEYS: u64 = 1000;
/// Puts per transaction would make one revision; a batch of concurrent puts makes many and is as quick.
const WRITERS: u64 = 128;

fn key(index: u64) -> Bytes {
    Bytes::from(format!("compact/{:04}", index % KEYS))
}

/// Writes `revisions` revisions, compacts all but the last thousand, and kills the server while it works.
pub(crate) async fn killed_midway(revisions: u64, seed: u64) -> anyhow::Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut node = Node::new()?;
    node.start(Vec::new()).await?;
    let channel = connect(node.endpoint()).await?;
    fill(&channel, revisions).await?;
    let last = revision(&channel).await?;
    let before = live(&channel, 0).await?;
    let compacted = last - 1000;
    let at_compacted = live(&channel, compacted).await?;
    kv(&channel).compact(pb::CompactionRequest { revision: compacted, physical: false }).await?;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(random.random_range(0..60))).await;
        node.kill()?;
        node.start(Vec::new()).await?;
    }
    let channel = connect(node.endpoint()).await?;
    anyhow::ensure!(revision(&channel).await? == last, "the revision moved");
    anyhow::ensure!(live(&channel, 0).await? == before, "the live keys differ");
    anyhow::ensure!(live(&channel, compacted).await? == at_compacted, "the keys at the compacted revision differ");
    let below = live(&channel, compacted - 1).await;
    let refused = below.is_err_and(|error| error.to_string().contains("required revision has been compacted"));
    anyhow::ensure!(refused, "a read below the compacted revision must be refused");
    check_history(&channel, compacted, last).await
}

/// Every revision from the compacted one on is there, once.
async fn check_history(channel: &Channel, compacted: i64, last: i64) -> anyhow::Result<()> {
    let mut stream = open_watch_of(channel.clone(), "compact/", "compact0", compacted).await?;
    let mut next = compacted;
    while next <= last {
        let response = tokio::time::timeout(Duration::from_secs(20), stream.next()).await;
        let response = response.context("history is missing")?.context("the watch ended")??;
        anyhow::ensure!(!response.canceled, "the watch was canceled at {}", response.compact_revision);
        for event in response.events {
            let revision = event.kv.context("an event has a key")?.mod_revision;
            anyhow::ensure!(revision == next, "expected revision {next}, got {revision}");
            next += 1;
        }
    }
    Ok(())
}

async fn revision(channel: &Channel) -> anyhow::Result<i64> {
    let answer = kv(channel).range(pb::RangeRequest { key: "none".into(), ..Default::default() }).await?.into_inner();
    Ok(answer.header.context("an answer has a header")?.revision)
}

async fn live(channel: &Channel, revision: i64) -> anyhow::Result<Vec<tailwater_api::mvccpb::KeyValue>> {
    let request =
        pb::RangeRequest { key: "compact/".into(), range_end: "compact0".into(), revision, ..Default::default() };
    Ok(kv(channel).range(request).await?.into_inner().kvs)
}

async fn fill(channel: &Channel, revisions: u64) -> anyhow::Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..WRITERS {
        let mut kv = kv(channel);
        tasks.spawn(async move {
            for index in (worker..revisions).step_by(128) {
                // Every tenth write deletes, so that tombstones are folded too.
                if index % 10 == 9 {
                    let range = pb::DeleteRangeRequest { key: key(index * 7), ..Default::default() };
                    kv.delete_range(range).await?;
                } else {
                    let value = Bytes::from(format!("{index:0100}"));
                    kv.put(pb::PutRequest { key: key(index), value, ..Default::default() }).await?;
                }
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}
