//! Two of etcd's bugs as tests: a stale read after a pause (20418), and a watch that goes back after a partition (15271).

use std::time::Duration;

use anyhow::Context;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::mvccpb::Event;
use tailwater_tests::Kind;
use tailwater_tests::cluster::{Cluster, Link};
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::history::{Action, kv};
use crate::run::{same_everywhere, scaled, turn};
use crate::watchers::Stream;
use crate::workload::ask;

/// Retries through `channel` until it is acknowledged; the revision.
async fn put(channel: &Channel, key: &str, value: &str) -> anyhow::Result<i64> {
    let (action, keys) = (Action::Put { value: value.to_owned() }, [key.to_owned()]);
    for _ in 0..100 {
        let written = ask(channel.clone(), &action, &keys);
        if let Ok(Ok(answer)) = tokio::time::timeout(Duration::from_secs(1), written).await {
            return Ok(answer.revision);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!("{key} cannot be written")
}

/// etcd 20418: a leader that was stopped, and does not know yet that there is another one, is asked for what the other one
/// has written. The questions wait in its sockets when it goes on: the first thing it sees are they, not the new term.
async fn pauses(cluster: &mut Cluster, rounds: usize, read: &Action) -> anyhow::Result<()> {
    let keys = ["paused".to_owned()];
    for round in 0..rounds {
        let leader = cluster.leader().await?;
        let others: Vec<usize> = cluster.others(leader).collect();
        let (old, new) = (format!("old {round}"), format!("new {round}"));
        put(&cluster.channel(leader)?, &keys[0], &old).await?;
        // Connections that are there already: their questions need no handshake first.
        let channels = (0..8).map(|_| cluster.channel(leader)).collect::<anyhow::Result<Vec<_>>>()?;
        for channel in &channels {
            ask(channel.clone(), read, &keys).await?;
        }
        cluster.pause(leader)?;
        let revision = put(&cluster.channel(others[0])?, &keys[0], &new).await?;
        let mut reads = JoinSet::new();
        for channel in channels {
            for wait in 0..10 {
                let (channel, keys, read) = (channel.clone(), keys.clone(), read.clone());
                reads.spawn(async move {
                    tokio::time::sleep(Duration::from_millis(wait * 100)).await;
                    tokio::time::timeout(Duration::from_secs(10), ask(channel, &read, &keys)).await
                });
            }
        }
        // Half of the questions are asked while it stands still, the others when it goes on.
        tokio::time::sleep(Duration::from_millis(500)).await;
        cluster.resume(leader)?;
        let mut answered = 0;
        while let Some(done) = reads.join_next().await {
            let Ok(Ok(answer)) = done? else { continue };
            answered += 1;
            let value = answer.found.as_ref().map(|version| version.value.as_str());
            anyhow::ensure!(
                value == Some(&new) && answer.revision >= revision,
                "round {round}: a read that began after {new:?} was acknowledged at {revision} found {answer:?}"
            );
        }
        anyhow::ensure!(answered > 0, "round {round}: not one read was answered, so nothing was shown");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_is_stale_after_a_pause() {
    let Some((_turn, setup)) = turn("etcd 20418", 3).await else { return };
    let mut cluster = Cluster::start(setup).await.expect("a cluster");
    let read = Action::Read { serializable: false };
    if let Err(error) = pauses(&mut cluster, scaled(2, 20), &read).await {
        panic!("{error:?}");
    }
    cluster.finish();
}

/// The same with reads that may be stale: there is something to be found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planted_stale_reads_after_a_pause_are_found() {
    let Some((_turn, setup)) = turn("planted etcd 20418", 3).await else { return };
    let mut cluster = Cluster::start(setup).await.expect("a cluster");
    cluster.keep_nothing();
    let read = Action::Read { serializable: true };
    let error = pauses(&mut cluster, 5, &read).await.expect_err("a member that stood still knows nothing new");
    assert!(format!("{error:#}").contains("was acknowledged at"), "{error:#}");
}

/// A watch on all of `behind/`.
async fn watch(channel: Channel, start: i64) -> anyhow::Result<(i64, Stream)> {
    let create = pb::WatchCreateRequest {
        key: "behind/".into(),
        range_end: "behind0".into(),
        start_revision: start,
        prev_kv: true,
        ..Default::default()
    };
    Ok((start, Stream::open(channel, create).await?))
}

/// What comes on `stream` until `revision`, which is a record of it.
async fn events_to(stream: &mut Stream, revision: i64) -> anyhow::Result<Vec<Event>> {
    let mut events: Vec<Event> = Vec::new();
    while events.last().is_none_or(|event| kv(event).mod_revision < revision) {
        let next = tokio::time::timeout(Duration::from_secs(30), stream.answers.message()).await;
        let at = events.last().map(|event| kv(event).mod_revision);
        let answer = next.with_context(|| format!("nothing comes after {at:?}, and {revision} is missing"))?;
        let answer = answer?.context("the watch ended")?;
        anyhow::ensure!(!answer.canceled, "the watch was canceled: {answer:?}");
        events.extend(answer.events);
    }
    Ok(events)
}

/// Writes `count` values of 1 KiB through member `slot`; the last revision.
async fn fill(cluster: &Cluster, slot: usize, count: usize) -> anyhow::Result<i64> {
    let mut tasks = JoinSet::new();
    for lane in 0..16 {
        let channel = cluster.channel(slot)?;
        tasks.spawn(async move {
            let mut newest = 0;
            for number in (lane..count).step_by(16) {
                let value = format!("{number:01024}");
                newest = newest.max(put(&channel, &format!("behind/{}", number % 100), &value).await?);
            }
            anyhow::Ok(newest)
        });
    }
    let mut newest = 0;
    while let Some(done) = tasks.join_next().await {
        newest = newest.max(done??);
    }
    Ok(newest)
}

/// etcd 15271, and a snapshot received while watched: a member is cut off until the others no longer have the raft entries that it
/// misses. Watches on it, from before, from the middle, and from a revision that it has never heard of, get exactly what is
/// theirs once it has the others' state.
async fn falls_behind(cluster: &mut Cluster) -> anyhow::Result<()> {
    fill(cluster, 0, 50).await?;
    let leader = cluster.leader().await?;
    let behind = (leader + 1) % cluster.size();
    let mut watches = vec![watch(cluster.channel(behind)?, 1).await?];
    cluster.isolate(behind, Link::Cut);
    let middle = fill(cluster, leader, scaled(1000, 20_000)).await?;
    let missed = fill(cluster, leader, scaled(1000, 20_000)).await?;
    // A client that has seen all of it on another member comes to this one with its cursor.
    let mut elsewhere = watch(cluster.channel(leader)?, 1).await?.1;
    events_to(&mut elsewhere, missed).await?;
    for start in [middle, missed, missed + 1, missed + 20] {
        watches.push(watch(cluster.channel(behind)?, start).await?);
    }
    cluster.links().open_all();
    cluster.wait_until_serving(behind).await?;
    let last = fill(cluster, leader, 50).await?;
    let log = same_everywhere(cluster, last).await?;
    for (start, mut stream) in watches {
        let events = events_to(&mut stream, last).await?;
        let due = log.iter().filter(|event| kv(event).key.starts_with(b"behind/") && kv(event).mod_revision >= start);
        let same = events.iter().eq(due.clone());
        let first = events.first().map(|event| kv(event).mod_revision);
        anyhow::ensure!(
            same,
            "the watch from {start}, where the others were at {missed}, got {} of {} events, the first of {first:?}",
            events.len(),
            due.count()
        );
    }
    if cluster.kind() == Kind::Etcd {
        anyhow::ensure!(cluster.log(behind).contains("applied snapshot"), "it caught up without a snapshot");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_never_goes_back_after_a_partition() {
    let Some((_turn, mut setup)) = turn("etcd 15271", 3).await else { return };
    setup.etcd_flags = vec!["--snapshot-count=100".into(), "--snapshot-catchup-entries=100".into()];
    setup.tailwater_flags = vec!["--raft-log-bytes=262144".into()];
    let mut cluster = Cluster::start(setup).await.expect("a cluster");
    if let Err(error) = falls_behind(&mut cluster).await {
        panic!("{error:?}");
    }
    cluster.finish();
}
