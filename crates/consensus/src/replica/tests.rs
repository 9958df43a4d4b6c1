#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::write::command::Command;
use tailwater_eventlog::{Cursor, Fact, LeaseId, LocalSource, Member, MemberId, Revision, Source, Term};

use super::apply::ApplyJob;
use crate::{Answer, Applied, Consensus, ConsensusConfig, NoPeers, ProposeError};

fn config(dir: &Path) -> ConsensusConfig {
    ConsensusConfig {
        data_dir: dir.to_owned(),
        member_id: MemberId(7),
        cluster_id: 9,
        initial_members: vec![Member { id: MemberId(7), ..Default::default() }],
        founding: true,
        force_new_cluster: false,
        strict_reconfig_check: true,
        heartbeat_interval: Duration::from_millis(20),
        election_ticks: 10,
        request_bytes_max: 1536 << 10,
        batch_bytes_max: 4 << 20,
        proposal_queue_bytes_max: 64 << 20,
        apply_lag_max: 5000,
        request_timeout: Duration::from_secs(10),
        lease_ttl_min: 1,
        quota_bytes: 0,
        memtable_bytes: 32 << 20,
        block_cache_bytes: 8 << 20,
        raft_log_bytes: 64 << 20,
        raft_recent_bytes_max: 8 << 20,
        tail_hot_bytes_max: 8 << 20,
        sync_delay: Duration::ZERO,
    }
}

fn start(config: ConsensusConfig) -> (Consensus, LocalSource) {
    let (consensus, source) = Consensus::start(config, std::sync::Arc::new(NoPeers)).unwrap();
    (consensus, source.wait().unwrap())
}

fn put(key: impl Into<Bytes>, lease: i64) -> Command {
    Command::Put(pb::PutRequest { key: key.into(), value: "v".into(), lease, ..Default::default() })
}

fn revision(applied: &Applied) -> i64 {
    match &applied.answer {
        Answer::Put(response) => response.header.as_ref().unwrap().revision,
        other => panic!("{other:?}"),
    }
}

fn frames(source: &LocalSource, from: Cursor) -> Vec<std::sync::Arc<tailwater_eventlog::Frame>> {
    source.follow(from, 1 << 20, Duration::from_millis(100)).unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Stops, and lets go of everything that holds the files open.
fn stop(consensus: Consensus, source: LocalSource) {
    consensus.stop();
    drop((consensus, source));
}

#[test]
fn a_proposal_is_answered_and_its_frame_is_in_the_tail() {
    let dir = tempfile::tempdir().unwrap();
    let (consensus, source) = start(config(dir.path()));
    let begin = source.tail.end();
    assert_eq!(begin.revision, Revision(1));
    runtime().block_on(async {
        let applied = consensus.propose(put("a", 0)).await.unwrap();
        assert_eq!(revision(&applied), 2);
        assert!(source.tail.end().position >= applied.position);
        assert!(consensus.barrier().await.unwrap() >= applied.position);
        let huge =
            Command::Put(pb::PutRequest { key: "a".into(), value: vec![0; 2 << 20].into(), ..Default::default() });
        assert!(matches!(consensus.propose(huge).await, Err(ProposeError::TooLarge)));
    });
    let events: Vec<_> = frames(&source, begin).iter().flat_map(|frame| frame.events.clone()).collect();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].key(), b"a");
    let (_, facts) = source.tail.snapshot();
    assert!(facts.iter().any(|fact| matches!(fact, Fact::Leader(Some(MemberId(7)), _))), "{facts:?}");
    assert_eq!(consensus.status().leader, MemberId(7));
    consensus.stop();
    assert_eq!(runtime().block_on(consensus.stopped()), None);
    assert!(matches!(runtime().block_on(consensus.propose(put("b", 0))), Err(ProposeError::Stopped)));
}

/// Copies a data directory as a crash would leave it: what was written so far, nothing flushed.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[test]
fn a_crash_before_any_flush_replays_the_same_revisions() {
    let dir = tempfile::tempdir().unwrap();
    let crashed = tempfile::tempdir().unwrap();
    let runtime = runtime();
    let (consensus, source) = start(config(dir.path()));
    runtime.block_on(async {
        for n in 0..20 {
            consensus.propose(put(format!("k{n}"), 0)).await.unwrap();
        }
    });
    copy(&dir.path().join("raft"), &crashed.path().join("raft"));
    let before = source.tail.end();
    stop(consensus, source);

    let (consensus, source) = start(config(crashed.path()));
    let applied = runtime.block_on(consensus.propose(put("k20", 0))).unwrap();
    assert_eq!(revision(&applied), before.revision.0 + 1);
    let after = source.tail.end();
    assert_eq!(after.history, before.history, "the founding entry was replayed, not proposed anew");
    stop(consensus, source);

    // And after a clean stop everything is flushed.
    let (consensus, source) = start(config(dir.path()));
    assert_eq!(source.log.state().revision, before.revision);
    assert_eq!(source.tail.end().history, before.history);
    consensus.stop();
}

#[test]
fn a_thousand_concurrent_writes_share_few_syncs() {
    let dir = tempfile::tempdir().unwrap();
    let (consensus, _source) = start(ConsensusConfig { sync_delay: Duration::from_millis(20), ..config(dir.path()) });
    let before = consensus.shared.syncs.load(Ordering::Relaxed);
    let rounds = 4u64;
    runtime().block_on(async {
        let clients: Vec<_> = (0..1000)
            .map(|client| {
                let consensus = consensus.clone();
                tokio::spawn(async move {
                    for _ in 0..rounds {
                        consensus.propose(put(format!("c{client}"), 0)).await.unwrap();
                    }
                })
            })
            .collect();
        for client in clients {
            client.await.unwrap();
        }
    });
    let syncs = consensus.shared.syncs.load(Ordering::Relaxed) - before;
    assert!(syncs * 400 <= rounds * 1000, "{syncs} syncs for {} writes", rounds * 1000);
    consensus.stop();
}

#[test]
fn a_lease_expires_with_its_keys_unless_it_is_kept_alive() {
    let dir = tempfile::tempdir().unwrap();
    let (consensus, source) = start(config(dir.path()));
    runtime().block_on(async {
        for (id, key) in [(1, "kept"), (2, "lost")] {
            consensus.propose(Command::LeaseGrant(pb::LeaseGrantRequest { id, ttl: 1 })).await.unwrap();
            consensus.propose(put(key, id)).await.unwrap();
        }
        let info = consensus.lease_time_to_live(LeaseId(1), true).await.unwrap().unwrap();
        assert_eq!((info.granted_ttl, info.keys), (1, vec![Bytes::from("kept")]));
        let began = Instant::now();
        while consensus.leases().len() == 2 {
            assert!(began.elapsed() < Duration::from_secs(10), "nothing expired");
            assert_eq!(consensus.lease_keep_alive(LeaseId(1)).await.unwrap(), Some(1));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(began.elapsed() >= Duration::from_millis(800), "expired after {:?}", began.elapsed());
        assert_eq!(consensus.leases(), [LeaseId(1)]);
        assert_eq!(consensus.lease_keep_alive(LeaseId(2)).await.unwrap(), None);
        assert!(consensus.lease_time_to_live(LeaseId(2), false).await.unwrap().is_none());
    });
    assert_eq!(source.tail.end().revision, Revision(4));
    consensus.stop();
}

#[test]
fn compaction_is_folded_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = runtime();
    let compact = |revision, physical| Command::Compact(pb::CompactionRequest { revision, physical });
    let (consensus, source) = start(config(dir.path()));
    runtime.block_on(async {
        for n in 0..50 {
            consensus.propose(put(format!("k{}", n % 5), 0)).await.unwrap();
        }
        consensus.propose(compact(20, true)).await.unwrap();
    });
    assert_eq!(consensus.events.state().fold_point, Revision(19), "a physical compaction waits for folding");
    runtime.block_on(consensus.propose(compact(40, false))).unwrap();
    stop(consensus, source);
    let (consensus, source) = start(config(dir.path()));
    let began = Instant::now();
    while source.log.state().fold_point < Revision(39) {
        assert!(began.elapsed() < Duration::from_secs(10), "not folded");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(source.log.state().compacted, Revision(40));
    consensus.stop();
}

#[test]
fn an_exhausted_quota_raises_no_space() {
    let dir = tempfile::tempdir().unwrap();
    let (consensus, source) = start(ConsensusConfig { quota_bytes: 100, ..config(dir.path()) });
    let refused = runtime().block_on(consensus.propose(put("a", 0)));
    assert!(matches!(refused, Err(ProposeError::Refused(crate::ApplyError::NoSpace))));
    let began = Instant::now();
    while !source.tail.snapshot().1.iter().any(|fact| matches!(fact, Fact::Alarms(alarms) if alarms.len() == 1)) {
        assert!(began.elapsed() < Duration::from_secs(10), "no alarm");
        std::thread::sleep(Duration::from_millis(10));
    }
    consensus.stop();
}

#[test]
fn a_compaction_at_no_revision_is_refused_and_harms_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (consensus, _source) = start(config(dir.path()));
    runtime().block_on(async {
        for revision in [i64::MIN, i64::MIN + 1, -1, i64::MAX] {
            let compact = Command::Compact(pb::CompactionRequest { revision, physical: true });
            let refused = consensus.propose(compact).await;
            assert!(matches!(refused, Err(ProposeError::Refused(_))), "{revision}: {refused:?}");
        }
        consensus.propose(put("k", 0)).await.unwrap();
    });
    consensus.stop();
}

#[test]
fn each_physical_compaction_waits_for_its_own_fold() {
    let dir = tempfile::tempdir().unwrap();
    let (consensus, _source) = start(config(dir.path()));
    let compact = |revision| Command::Compact(pb::CompactionRequest { revision, physical: true });
    runtime().block_on(async {
        for revision in [0, 1] {
            consensus.propose(compact(revision)).await.unwrap();
        }
        for n in 0..200 {
            consensus.propose(put(format!("k{}", n % 5), 0)).await.unwrap();
        }
        let mut waiting = Vec::new();
        for revision in (10..200).step_by(10) {
            let clone = consensus.clone();
            waiting.push(tokio::spawn(async move {
                match clone.propose(compact(revision)).await {
                    Ok(_) => assert!(clone.events.state().fold_point >= Revision(revision - 1)),
                    // A later one was faster.
                    Err(error) => assert!(matches!(error, ProposeError::Refused(crate::ApplyError::Compacted))),
                }
            }));
        }
        for waiting in waiting {
            tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
        }
    });
    assert_eq!(consensus.events.state().fold_point, Revision(189));
    consensus.stop();
}

#[test]
fn a_queued_proposal_that_timed_out_is_not_proposed() {
    let dir = tempfile::tempdir().unwrap();
    let slow = ConsensusConfig {
        sync_delay: Duration::from_millis(800),
        request_timeout: Duration::from_millis(300),
        ..config(dir.path())
    };
    let (consensus, source) = start(slow);
    let begin = source.tail.end();
    runtime().block_on(async {
        let first = tokio::spawn({
            let consensus = consensus.clone();
            async move { consensus.propose(put("first", 0)).await }
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        // It waits while the first is synced, and fails before that ends.
        assert!(matches!(consensus.propose(put("queued", 0)).await, Err(ProposeError::Timeout)));
        assert!(matches!(first.await.unwrap(), Err(ProposeError::Timeout)));
        tokio::time::sleep(Duration::from_millis(2000)).await;
    });
    let events: Vec<_> = frames(&source, begin).iter().flat_map(|frame| frame.events.clone()).collect();
    assert!(events.iter().all(|event| event.key() == b"first"), "{events:?}");
    assert_eq!(consensus.shared.waiting_bytes.load(Ordering::Relaxed), 0);
    consensus.stop();
}

#[test]
fn while_apply_is_behind_ticks_go_on_and_nothing_is_proposed() {
    let dir = tempfile::tempdir().unwrap();
    let (consensus, source) = start(config(dir.path()));
    let runtime = runtime();
    runtime.block_on(consensus.propose(put("a", 0))).unwrap();
    let shared = &consensus.shared;
    shared.applying_bytes.fetch_add(1 << 30, Ordering::Relaxed);
    let waiting = runtime.spawn({
        let consensus = consensus.clone();
        async move { consensus.propose(put("b", 0)).await }
    });
    let ticks = shared.ticks.load(Ordering::Relaxed);
    let began = Instant::now();
    while shared.ticks.load(Ordering::Relaxed) < ticks + 10 {
        assert!(began.elapsed() < Duration::from_secs(10), "no ticks");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(!waiting.is_finished());
    assert_eq!(source.tail.end().revision, Revision(2));
    shared.applying_bytes.fetch_sub(1 << 30, Ordering::Relaxed);
    assert_eq!(revision(&runtime.block_on(waiting).unwrap().unwrap()), 3);
    assert_eq!(shared.applying_bytes.load(Ordering::Relaxed), 0);
    consensus.stop();
}

#[test]
fn nobody_waits_for_a_replica_that_has_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let slow = ConsensusConfig { sync_delay: Duration::from_millis(300), ..config(dir.path()) };
    let (consensus, _source) = start(slow);
    let runtime = runtime();
    let waiting: Vec<_> = (0..20)
        .map(|n| {
            let consensus = consensus.clone();
            runtime.spawn(async move {
                match n % 2 {
                    0 => consensus.propose(put("a", 0)).await.map(|_| ()),
                    _ => consensus.barrier().await.map(|_| ()),
                }
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(50));
    consensus.stop();
    for waiting in waiting {
        let answer = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(5), waiting).await });
        assert!(matches!(answer.expect("answered").unwrap(), Ok(()) | Err(ProposeError::Stopped)));
    }
}

#[test]
fn a_leader_that_is_gone_is_told_without_an_entry() {
    let dir = tempfile::tempdir().unwrap();
    let (consensus, source) = start(config(dir.path()));
    runtime().block_on(consensus.propose(put("a", 0))).unwrap();
    let end = source.tail.end();
    let gone = Fact::Leader(None, Term(99));
    consensus.apply.lock().as_ref().unwrap().send(ApplyJob::Leader(None, Term(99))).unwrap();
    let told = source.follow(end, 1 << 20, Duration::from_secs(10)).unwrap();
    assert_eq!(told.iter().flat_map(|frame| frame.facts.clone()).next_back(), Some(gone));
    assert_eq!(source.tail.end(), end);
    assert!(source.follow(end, 1 << 20, Duration::ZERO).unwrap().is_empty(), "once");
    runtime().block_on(consensus.propose(put("b", 0))).unwrap();
    assert_eq!(source.follow(end, 1 << 20, Duration::from_secs(10)).unwrap().len(), 1);
    consensus.stop();
}

mod chaos;
mod cluster;
mod crash;
mod install;
mod members;
