//! A follower that the leader's log no longer reaches: it is told, a state is copied, and it goes on from there.

use tailwater_eventlog::Position;

use super::cluster::{self, Cluster, Direct, member};
use super::*;
use crate::InstallError;

fn all() -> Vec<Member> {
    (1..=3).map(member).collect()
}

fn large(n: usize) -> Command {
    let key = format!("large-{n}").into();
    Command::Put(pb::PutRequest { key, value: vec![7; 200 << 10].into(), ..Default::default() })
}

/// The leader, and a follower whose next entries are trimmed and that has just been told so.
fn far_behind() -> (Cluster, u64, u64) {
    let mut cluster = Cluster::empty();
    cluster.raft_log_bytes = 1 << 20;
    for id in 1..=3 {
        cluster.start(id, &all(), |_| {});
    }
    let leader = cluster.leader();
    let behind = leader % 3 + 1;
    cluster.put(leader, "before");
    cluster.ask(leader, Command::LeaseGrant(pb::LeaseGrantRequest { id: 5, ttl: 500 })).unwrap();
    cluster.ticks(2);
    cluster.cut_off(behind, true);
    cluster.ticks(12);
    for n in 0..20 {
        cluster.ask(leader, large(n)).unwrap();
        cluster.node(leader).upkeep();
    }
    cluster.ask(leader, put("leased", 5)).unwrap();
    cluster.settle();
    assert!(cluster.node(behind).consensus.catch_up_wanted().borrow().is_none());
    cluster.cut_off(behind, false);
    cluster.ticks(30);
    (cluster, leader, behind)
}

fn install(cluster: &mut Cluster, from: u64, to: u64) -> cluster::Call<Result<(), InstallError>> {
    let staged = cluster.copy(from, to);
    let consensus = cluster.node(to).consensus.clone();
    cluster.call(async move { consensus.install(staged).await })
}

#[test]
fn a_follower_far_behind_is_told_to_copy_the_state() {
    let (mut cluster, leader, behind) = far_behind();
    let wanted = *cluster.node(behind).consensus.catch_up_wanted().borrow();
    let wanted = wanted.expect("the leader's log begins above the follower's");
    assert_eq!(wanted.from, MemberId(leader));
    assert!(wanted.position > cluster.node(behind).applied());
    assert!(wanted.position <= cluster.node(leader).applied());
    assert_eq!(cluster.leading(), Some(leader), "it disturbs nobody");
    // One that lost the message, or itself, is told again.
    cluster.start(behind, &all(), |_| {});
    cluster.ticks(30);
    assert!(cluster.node(behind).consensus.catch_up_wanted().borrow().is_some());
}

#[test]
fn a_copied_state_is_taken_over_and_the_log_goes_on_above_it() {
    let (mut cluster, leader, behind) = far_behind();
    let before = cluster.node(behind).tail().end();
    let installed = install(&mut cluster, leader, behind);
    cluster.wait(installed).unwrap();
    cluster.ticks(5);
    assert!(cluster.node(behind).consensus.catch_up_wanted().borrow().is_none());
    assert_eq!(cluster.node(behind).consensus.leases(), [LeaseId(5)]);
    // Who followed it goes on from the log: nothing between is in the tail's memory.
    let follower = cluster.node(behind).source();
    let frames = follower.follow(before, 64 << 20, Duration::ZERO).unwrap();
    assert_eq!(frames.iter().map(|frame| frame.events.len()).sum::<usize>(), 21);
    cluster.put(leader, "after");
    cluster.assert_same();
    // It counts: the third is not needed.
    let third = (1..=3).find(|id| *id != leader && *id != behind).unwrap();
    cluster.stop(third);
    cluster.put(leader, "two are enough");
    // And all of it is there after a restart, with the entries above.
    cluster.start(behind, &all(), |_| {});
    cluster.ticks(30);
    cluster.assert_same();
}

#[test]
fn a_state_that_is_not_ahead_is_not_taken_over() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    cluster.put(leader, "a");
    cluster.ticks(2);
    let other = leader % 3 + 1;
    let staged = cluster.copy(leader, other);
    cluster.put(leader, "b");
    cluster.ticks(2);
    let consensus = cluster.node(other).consensus.clone();
    let refused = cluster.call(async move { consensus.install(staged).await });
    assert!(matches!(cluster.wait(refused), Err(InstallError::Behind { .. })));
    cluster.put(leader, "c");
    cluster.assert_same();
}

#[test]
fn a_crash_after_the_switch_starts_at_the_copied_state() {
    let (mut cluster, leader, behind) = far_behind();
    let position = cluster.node(leader).applied();
    let call = install(&mut cluster, leader, behind);
    // The apply thread has switched; no other thread had a turn since, so the raft log ends far below.
    cluster.node(behind).apply();
    assert_eq!(cluster.node(behind).consensus.events.state().applied, position);
    drop(call);
    for _ in 0..2 {
        cluster.start(behind, &all(), |_| {});
        assert_eq!(cluster.node(behind).applied(), position);
    }
    cluster.put(leader, "after");
    cluster.ticks(5);
    cluster.assert_same();
    assert!(cluster.node(behind).consensus.catch_up_wanted().borrow().is_none(), "the log goes on by itself");
}

#[test]
fn raft_takes_a_state_over_only_with_a_leader() {
    let (mut cluster, leader, behind) = far_behind();
    cluster.cut_off(behind, true);
    cluster.ticks(30);
    assert_eq!(cluster.node(behind).consensus.status().leader, MemberId(0));
    let installed = install(&mut cluster, leader, behind);
    cluster.wait(installed).unwrap();
    cluster.ticks(10);
    assert!(cluster.node(behind).applied() > Position(cluster.node(behind).consensus.status().committed));
    cluster.cut_off(behind, false);
    cluster.put(leader, "after");
    cluster.ticks(20);
    cluster.assert_same();
}

#[test]
fn a_state_is_taken_over_while_all_threads_run() {
    let wire = Direct::default();
    let dirs: Vec<_> = (1..=3).map(|_| tempfile::tempdir().unwrap()).collect();
    let start_one = |id: usize| {
        let config = ConsensusConfig {
            member_id: MemberId(id as u64),
            initial_members: all(),
            raft_log_bytes: 256 << 10,
            ..config(dirs[id - 1].path())
        };
        let (consensus, source) = Consensus::start(config, std::sync::Arc::new(wire.clone())).unwrap();
        wire.0.lock().insert(id as u64, consensus.clone());
        (consensus, source)
    };
    let started: Vec<_> = (1..=3).map(start_one).collect();
    let mut sources: Vec<_> = started.into_iter().map(|(_, source)| Some(source.wait().unwrap())).collect();
    let runtime = runtime();
    let (leader, leading) = wire.leader();
    let behind = leader % 3 + 1;
    let at = usize::try_from(behind).unwrap() - 1;
    let stopped = wire.0.lock().remove(&behind).unwrap();
    stopped.stop();
    drop((stopped, sources[at].take()));
    // Past the time in which the leader still counts on it, so that its log is trimmed without it.
    runtime.block_on(async {
        for n in 0..40 {
            leading.propose(large(n % 7)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let (consensus, source) = start_one(at + 1);
    sources[at] = Some(source.wait().unwrap());
    runtime.block_on(async {
        let mut wanted = consensus.catch_up_wanted();
        let wanted = wanted.wait_for(Option::is_some);
        drop(tokio::time::timeout(Duration::from_secs(20), wanted).await.expect("the log was trimmed").unwrap());
        // Writes go on meanwhile.
        let writer = tokio::spawn({
            let leading = leading.clone();
            async move {
                for n in 0..10 {
                    leading.propose(put(format!("meanwhile-{n}"), 0)).await.unwrap();
                }
            }
        });
        let staged = cluster::copy(&leading.events, &consensus.events);
        consensus.install(staged).await.unwrap();
        writer.await.unwrap();
        leading.propose(put("after", 0)).await.unwrap();
    });
    let began = Instant::now();
    let end = |at: usize| sources[at].as_ref().unwrap().tail.end();
    while (0..3).any(|other| end(other) != end(at)) || end(at).revision != Revision(52) {
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", [end(0), end(1), end(2)]);
        std::thread::sleep(Duration::from_millis(5));
    }
    let members = std::mem::take(&mut *wire.0.lock());
    members.values().for_each(Consensus::stop);
}
