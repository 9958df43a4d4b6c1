//! A follower that the leader's log no longer reaches: it is told, a state is copied, and it goes on from there.

use tailwater_eventlog::Position;

use super::cluster::{Cluster, member};
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
