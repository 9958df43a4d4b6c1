//! Several members: elections, replication, changes of the group, and what members do that doubt or fail.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tailwater_api::write;

use super::cluster::{self, Cluster, Direct, member};
use super::*;
use crate::ApplyError;
use crate::machine::member_message;
use crate::replica::driver::REMOVED;

fn add(id: u64, is_learner: bool) -> Command {
    let member = Member { name: String::new(), is_learner, ..member(id) };
    Command::MemberAdd(write::MemberAdd { member: Some(member_message(&member)) })
}

fn remove(id: u64) -> Command {
    Command::MemberRemove(write::MemberRemove { id })
}

fn promote(id: u64) -> Command {
    Command::MemberPromote(write::MemberPromote { id })
}

fn publish(id: u64) -> Command {
    Command::PublishMember(write::PublishMember { member: Some(member_message(&member(id))) })
}

fn joining(config: &mut ConsensusConfig) {
    config.founding = false;
}

fn ids(answer: Result<Answer, ProposeError>) -> Vec<u64> {
    match answer {
        Ok(Answer::Members(members)) => members.iter().map(|member| member.id.0).collect(),
        other => panic!("{other:?}"),
    }
}

fn all(members: u64) -> Vec<Member> {
    (1..=members).map(member).collect()
}

#[test]
fn three_members_found_one_history_and_apply_the_same() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    for key in ["a", "b", "c"] {
        cluster.put(leader, key);
    }
    cluster.assert_same();
    assert_eq!(cluster.node(leader).tail().end().revision, Revision(4));
    for node in cluster.nodes.values() {
        assert_eq!(*node.told.lock(), all(3));
    }
}

#[test]
fn a_follower_sends_proposals_and_barriers_to_the_leader() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    let follower = leader % 3 + 1;
    assert!(matches!(cluster.ask(follower, put("a", 0)), Err(ProposeError::NoLeader)));
    let barrier = cluster.barrier(follower);
    assert!(matches!(cluster.wait(barrier), Err(ProposeError::NoLeader)));
}

#[test]
fn the_loss_of_a_leader_loses_nothing_that_was_answered() {
    let mut cluster = Cluster::new(3);
    let old = cluster.leader();
    cluster.put(old, "a");
    cluster.cut_off(old, true);
    let mut stale = cluster.propose(old, put("stale", 0));
    cluster.settle();
    let new = loop {
        let leader = cluster.leader();
        if leader != old {
            break leader;
        }
    };
    // The old one sees within two election timeouts that it has lost its quorum.
    cluster.ticks(20);
    let stale = stale.poll();
    assert!(matches!(stale, Some(Err(ProposeError::LeaderChanged))), "the outcome is unknown: {stale:?}");
    cluster.put(new, "b");
    cluster.cut_off(old, false);
    cluster.ticks(30);
    cluster.assert_same();
    assert_eq!(cluster.node(old).tail().end().revision, Revision(3), "a and b");
}

#[test]
fn what_waits_for_a_leader_is_never_proposed_once_another_leads() {
    let mut cluster = Cluster::new(3);
    let mut held = cluster.propose(1, put("held", 0));
    // Nobody leads yet; member 1 must not win.
    cluster.broken.extend([(1, 2), (1, 3)]);
    let leader = cluster.leader();
    assert_ne!(leader, 1);
    assert!(matches!(held.poll(), Some(Err(ProposeError::NoLeader))), "it may be sent to the leader");
    cluster.broken.clear();
    cluster.put(leader, "a");
    cluster.assert_same();
    assert_eq!(cluster.node(1).tail().end().revision, Revision(2));
}

#[test]
fn a_leader_that_hears_nobody_gives_way_though_it_is_heard() {
    let mut cluster = Cluster::new(3);
    let old = cluster.leader();
    let others: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
    for other in &others {
        cluster.broken.insert((*other, old));
    }
    let new = (0..200).find_map(|_| {
        cluster.ticks(1);
        cluster.leading().filter(|leader| *leader != old)
    });
    let new = new.expect("another leads");
    cluster.put(new, "a");
    cluster.broken.clear();
    cluster.ticks(30);
    cluster.assert_same();
}

#[test]
fn a_leader_that_is_cut_off_or_paused_answers_no_barrier() {
    let mut cluster = Cluster::new(3);
    let old = cluster.leader();
    cluster.put(old, "a");
    cluster.cut_off(old, true);
    let mut barrier = cluster.barrier(old);
    cluster.ticks(3);
    assert!(barrier.poll().is_none());
    // Paused: it has no turns while another is elected and writes, and then finds all messages at once.
    let paused = cluster.nodes.remove(&old).unwrap();
    let new = cluster.leader();
    cluster.put(new, "b");
    cluster.nodes.insert(old, paused);
    let mut late = cluster.barrier(old);
    cluster.cut_off(old, false);
    cluster.ticks(30);
    for barrier in [&mut barrier, &mut late] {
        assert!(matches!(barrier.poll(), Some(Err(ProposeError::LeaderChanged | ProposeError::NoLeader))));
    }
    let barrier = cluster.barrier(new);
    assert!(cluster.wait(barrier).unwrap() >= cluster.node(new).applied());
}

#[test]
fn leadership_moves_to_the_member_that_was_named() {
    let mut cluster = Cluster::new(3);
    let old = cluster.leader();
    let to = old % 3 + 1;
    cluster.put(old, "a");
    let consensus = cluster.node(old).consensus.clone();
    let stranger = consensus.clone();
    let mut refused = cluster::Call::new(async move { stranger.move_leader(MemberId(8)).await });
    assert!(matches!(refused.poll(), Some(Err(ProposeError::BadTransferee))));
    drop(cluster.call(async move { consensus.move_leader(MemberId(to)).await }));
    cluster.ticks(2);
    assert_eq!(cluster.leading(), Some(to));
    cluster.put(to, "b");
    cluster.assert_same();
}

#[test]
fn a_learner_joins_from_the_log_is_promoted_and_votes() {
    let mut cluster = Cluster::new(1);
    assert_eq!(cluster.leader(), 1);
    for n in 0..20 {
        cluster.put(1, &format!("k{n}"));
    }
    assert_eq!(ids(cluster.ask(1, add(2, true))), [1, 2]);
    assert!(matches!(cluster.ask(1, promote(2)), Err(ProposeError::LearnerNotReady)));
    assert!(matches!(cluster.ask(1, promote(1)), Err(ProposeError::Refused(ApplyError::NotLearner))));
    cluster.start(2, &all(2), joining);
    cluster.ticks(5);
    cluster.assert_same();
    assert!(cluster.node(2).consensus.status().is_learner);
    assert_eq!(cluster.node(2).told.lock().len(), 2);
    cluster.ask(1, publish(2)).unwrap();
    assert_eq!(ids(cluster.ask(1, promote(2))), [1, 2]);
    cluster.ticks(2);
    assert!(!cluster.node(2).consensus.status().is_learner);
    // Two votes are needed now.
    cluster.cut_off(2, true);
    let mut alone = cluster.propose(1, put("alone", 0));
    cluster.ticks(30);
    assert!(matches!(alone.poll(), Some(Err(ProposeError::LeaderChanged))));
    cluster.cut_off(2, false);
    let leader = cluster.leader();
    cluster.put(leader, "both");
    // A restart finds the group in the state, not in the flags.
    cluster.start(2, &all(1), joining);
    cluster.ticks(30);
    cluster.assert_same();
}

#[test]
fn who_votes_alone_answers_barriers_by_itself() {
    let mut cluster = Cluster::new(1);
    assert_eq!(cluster.leader(), 1);
    cluster.put(1, "a");
    let at_once = |cluster: &mut Cluster| {
        let applied = cluster.node(1).applied();
        // Nothing has worked for it yet.
        cluster.barrier(1).poll().map(|barrier| barrier.unwrap() == applied)
    };
    assert_eq!(at_once(&mut cluster), Some(true));
    cluster.ask(1, add(2, true)).unwrap();
    cluster.start(2, &all(2), joining);
    cluster.ticks(5);
    assert_eq!(at_once(&mut cluster), Some(true), "a learner has no vote");
    cluster.ask(1, publish(2)).unwrap();
    cluster.ask(1, promote(2)).unwrap();
    assert_eq!(at_once(&mut cluster), None, "another may lead");
    cluster.ticks(2);
    cluster.cut_off(2, true);
    let barrier = cluster.barrier(1);
    assert!(cluster.wait(barrier).is_err());
    cluster.cut_off(2, false);
    let leader = cluster.leader();
    cluster.put(leader, "both");
    assert_eq!(at_once(&mut cluster), None);
    cluster.ask(leader, remove(2)).unwrap();
    cluster.ticks(30);
    assert_eq!(cluster.leader(), 1);
    assert_eq!(at_once(&mut cluster), Some(true), "alone again");
    // Nobody who starts anew answers before it has applied what was acknowledged before.
    cluster.start(1, &all(1), |_| ());
    assert_eq!(at_once(&mut cluster), None);
    assert_eq!(cluster.leader(), 1);
    cluster.ticks(2);
    assert_eq!(at_once(&mut cluster), Some(true));
}

#[test]
fn changes_are_refused_by_the_rules_and_the_group_goes_on() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    let refusal = |answer: Result<Answer, ProposeError>| match answer {
        Err(ProposeError::Refused(refused)) => refused,
        other => panic!("{other:?}"),
    };
    assert_eq!(refusal(cluster.ask(leader, add(2, false))), ApplyError::MemberExists);
    let same_url = Member { id: MemberId(5), ..member(2) };
    let same_url = Command::MemberAdd(write::MemberAdd { member: Some(member_message(&same_url)) });
    assert_eq!(refusal(cluster.ask(leader, same_url)), ApplyError::PeerUrlExists);
    assert_eq!(refusal(cluster.ask(leader, remove(9))), ApplyError::MemberNotFound);
    assert_eq!(refusal(cluster.ask(leader, promote(9))), ApplyError::MemberNotFound);
    let update = |id, url: &str| Command::MemberUpdate(write::MemberUpdate { id, peer_urls: vec![url.to_owned()] });
    assert_eq!(refusal(cluster.ask(leader, update(9, "http://x:1"))), ApplyError::MemberNotFound);
    assert_eq!(refusal(cluster.ask(leader, update(1, "http://peer-2:2380"))), ApplyError::PeerUrlExists);
    assert_eq!(ids(cluster.ask(leader, update(1, "http://new:2380"))), [1, 2, 3]);
    assert_eq!(cluster.node(leader).told.lock()[0].peer_urls, ["http://new:2380"]);
    assert_eq!(ids(cluster.ask(leader, add(4, true))), [1, 2, 3, 4]);
    assert_eq!(refusal(cluster.ask(leader, add(5, true))), ApplyError::TooManyLearners);
    assert_eq!(ids(cluster.ask(leader, remove(4))), [1, 2, 3]);
    assert_eq!(refusal(cluster.ask(leader, add(4, true))), ApplyError::MemberNotFound, "an id never returns");
    cluster.put(leader, "a");
    cluster.assert_same();
}

#[test]
fn a_change_that_could_cost_the_quorum_is_refused_unless_it_is_allowed() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    let (down, up) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    cluster.cut_off(down, true);
    cluster.ticks(12);
    assert!(matches!(cluster.ask(leader, add(4, true)), Err(ProposeError::UnhealthyCluster)));
    assert!(matches!(cluster.ask(leader, remove(up)), Err(ProposeError::UnhealthyCluster)));
    assert_eq!(ids(cluster.ask(leader, remove(down))).len(), 2, "who is down is no part of the quorum");
    assert_eq!(ids(cluster.ask(leader, add(5, false))).len(), 3);
    assert!(matches!(cluster.ask(leader, add(6, false)), Err(ProposeError::NotEnoughStarted)));
    let mut alone = Cluster::new(1);
    assert_eq!(alone.leader(), 1);
    assert!(matches!(alone.ask(1, remove(1)), Err(ProposeError::NotEnoughStarted)));
    alone.put(1, "a");
}

#[test]
fn a_second_change_waits_for_the_first() {
    let mut cluster = Cluster::new(3);
    cluster.strict = false;
    let leader = cluster.leader();
    let first = cluster.propose(leader, add(4, true));
    let second = cluster.propose(leader, remove(4));
    assert_eq!(ids(cluster.wait(first).map(|applied| applied.answer)), [1, 2, 3, 4]);
    assert_eq!(ids(cluster.wait(second).map(|applied| applied.answer)), [1, 2, 3]);
}

#[test]
fn a_removed_follower_stops_with_the_reason_and_never_returns() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    let leaving = leader % 3 + 1;
    assert_eq!(ids(cluster.ask(leader, remove(leaving))).len(), 2);
    cluster.ticks(15);
    assert_eq!(cluster.node(leaving).reason.as_deref(), Some(REMOVED));
    assert!(cluster.node(leader).consensus.is_removed(MemberId(leaving)));
    cluster.halt(leaving);
    let again = cluster.try_start(leaving, &all(3), |_| {});
    assert!(again.unwrap_err().to_string().contains(REMOVED));
    cluster.put(leader, "a");
    assert_eq!(cluster.leading(), Some(leader));
}

#[test]
fn a_removed_member_stays_until_another_one_is_known_to_do_without_it() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    let leaving = leader % 3 + 1;
    // It hears that it is removed, and nobody hears it.
    cluster.broken.extend((1..=3).map(|other| (leaving, other)));
    assert_eq!(ids(cluster.ask(leader, remove(leaving))).len(), 2);
    cluster.cut_off(leaving, true);
    assert!(cluster.node(leaving).consensus.is_removed(MemberId(leaving)));
    cluster.ticks(30);
    assert_eq!(cluster.node(leaving).reason, None);
    // Its state says that it was removed, and still nobody has told it.
    cluster.halt(leaving);
    cluster.start(leaving, &all(3), |_| {});
    cluster.ticks(30);
    assert_eq!(cluster.node(leaving).reason, None);
    cluster.cut_off(leaving, false);
    cluster.ticks(1);
    assert_eq!(cluster.node(leaving).reason.as_deref(), Some(REMOVED));
    // Killed then, with nothing flushed, it does not come up again.
    cluster.stop(leaving);
    let again = cluster.try_start(leaving, &all(3), |_| {});
    assert!(again.unwrap_err().to_string().contains(REMOVED));
}

#[test]
fn a_learner_that_was_away_when_it_was_removed_learns_it() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    assert_eq!(ids(cluster.ask(leader, add(4, true))).len(), 4);
    cluster.start(4, &all(4), joining);
    cluster.ticks(5);
    cluster.cut_off(4, true);
    assert_eq!(ids(cluster.ask(leader, remove(4))).len(), 3);
    cluster.ticks(5);
    cluster.cut_off(4, false);
    cluster.ticks(25);
    assert_eq!(cluster.node(4).reason.as_deref(), Some(REMOVED));
}

#[test]
fn a_leader_can_remove_itself() {
    let mut cluster = Cluster::new(3);
    let old = cluster.leader();
    cluster.put(old, "a");
    assert_eq!(ids(cluster.ask(old, remove(old))).len(), 2);
    cluster.ticks(15);
    assert_eq!(cluster.node(old).reason.as_deref(), Some(REMOVED));
    let new = cluster.leader();
    assert_ne!(new, old);
    cluster.put(new, "b");
    cluster.assert_same();
}

#[test]
fn a_member_whose_disk_fails_stops_and_the_others_go_on() {
    let mut cluster = Cluster::new(3);
    let old = cluster.leader();
    cluster.put(old, "a");
    let writes = cluster.disks[&old].writes();
    cluster.disks[&old].fail_after(Some(writes));
    let mut lost = cluster.propose(old, put("b", 0));
    cluster.settle();
    let reason = cluster.node(old).reason.clone().expect("it stopped");
    assert!(reason.contains("write") && reason.contains(".log"), "{reason}");
    assert!(matches!(lost.poll(), Some(Err(ProposeError::Stopped))));
    let new = cluster.leader();
    assert_ne!(new, old);
    cluster.put(new, "c");
    cluster.assert_same();
}

#[test]
fn a_member_that_lost_its_data_stops_rather_than_vote() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    cluster.put(leader, "a");
    cluster.ticks(2);
    let wiped = leader % 3 + 1;
    cluster.wipe(wiped);
    cluster.start(wiped, &all(3), |_| {});
    cluster.ticks(5);
    let reason = cluster.node(wiped).reason.clone().expect("it stopped");
    assert!(reason.contains("its data was lost"), "{reason}");
    cluster.put(leader, "b");
    // Removed and added anew it is welcome.
    cluster.stop(wiped);
    cluster.ticks(12);
    assert_eq!(ids(cluster.ask(leader, remove(wiped))).len(), 2);
    let url = vec!["http://again:2380".to_owned()];
    let again = Member { name: String::new(), peer_urls: url, is_learner: true, ..member(4) };
    let again = Command::MemberAdd(write::MemberAdd { member: Some(member_message(&again)) });
    assert_eq!(ids(cluster.ask(leader, again)).len(), 3);
    cluster.start(4, &all(4), joining);
    cluster.ticks(10);
    cluster.assert_same();
}

#[test]
fn all_members_are_replaced_one_by_one_while_messages_are_shuffled() {
    for seed in 0..3 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut cluster = Cluster::new(3);
        for new in 4..=6 {
            let leader = cluster.leader();
            assert!(ids(cluster.ask(leader, add(new, true))).contains(&new), "seed {seed}");
            cluster.start(new, &all(new), joining);
            cluster.put(leader, &format!("before-{new}"));
            cluster.shuffle(&mut rng, 100);
            cluster.ticks(15);
            let leader = cluster.leader();
            cluster.ask(leader, publish(new)).unwrap();
            cluster.ask(leader, promote(new)).unwrap();
            // The new one is killed now and then, with what it has.
            if rng.random() {
                cluster.start(new, &all(new), joining);
                cluster.ticks(25);
            }
            let leader = cluster.leader();
            let old = if rng.random() && leader <= 3 { leader } else { new - 3 };
            let old = if cluster.nodes.contains_key(&old) { old } else { *cluster.nodes.keys().next().unwrap() };
            let call = cluster.propose(leader, remove(old));
            cluster.shuffle(&mut rng, 60);
            assert!(!ids(cluster.wait(call).map(|applied| applied.answer)).contains(&old), "seed {seed}");
            cluster.ticks(30);
            if let Some(reason) = &cluster.node(old).reason {
                assert_eq!(reason, REMOVED);
            }
            cluster.stop(old);
            let leader = cluster.leader();
            cluster.put(leader, &format!("after-{new}"));
        }
        cluster.assert_same();
        assert_eq!(cluster.nodes.keys().copied().collect::<Vec<_>>(), [4, 5, 6]);
        let leader = cluster.leader();
        assert_eq!(cluster.node(leader).tail().end().revision, Revision(7));
    }
}

#[test]
fn a_member_that_was_away_while_all_others_were_replaced_finds_the_group() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    let away = leader % 3 + 1;
    cluster.put(leader, "a");
    cluster.ticks(2);
    cluster.stop(away);
    cluster.strict = false;
    for id in (1..=3).filter(|id| *id != away) {
        cluster.start(id, &all(3), |_| {});
    }
    for (old, new) in (1..=3).filter(|id| *id != away).zip([4, 5]) {
        let leader = cluster.leader();
        cluster.ask(leader, add(new, true)).unwrap();
        cluster.start(new, &all(new), joining);
        cluster.ticks(5);
        cluster.ask(leader, promote(new)).unwrap();
        // Two of four voters are no quorum, so what is left must be up to date.
        cluster.ticks(5);
        cluster.ask(leader, remove(old)).unwrap();
        cluster.ticks(15);
        cluster.stop(old);
    }
    let leader = cluster.leader();
    cluster.put(leader, "b");
    cluster.start(away, &all(3), |_| {});
    cluster.ticks(20);
    cluster.assert_same();
    assert_eq!(cluster.node(away).told.lock().len(), 3);
}

#[test]
fn a_member_that_was_cut_keeps_its_vote_until_a_leader_has_vouched_for_it() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    cluster.put(leader, "a");
    let (cut, other) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    cluster.stop(cut);
    cluster.tear_log(cut);
    cluster.stop(leader);
    cluster.start(cut, &all(3), |_| {});
    // A second start, which cuts nothing, doubts still.
    cluster.start(cut, &all(3), |_| {});
    cluster.ticks(100);
    assert_eq!(cluster.leading(), None, "the vote of {cut} would elect {other}");
    cluster.start(leader, &all(3), |_| {});
    let leader = cluster.leader();
    cluster.put(leader, "b");
    cluster.ticks(30);
    cluster.assert_same();
    // Trusted again: now two are enough.
    let third = (1..=3).find(|id| *id != leader && *id != cut).unwrap_or(other);
    cluster.stop(third);
    cluster.ticks(30);
    let leader = cluster.leader();
    cluster.put(leader, "c");
    // And a restart does not bring the doubt back.
    cluster.start(cut, &all(3), |_| {});
    let leader = cluster.leader();
    cluster.put(leader, "d");
}

#[test]
fn a_group_of_which_all_were_cut_elects_once_all_are_there() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    cluster.put(leader, "a");
    for id in 1..=3 {
        cluster.stop(id);
        cluster.tear_log(id);
    }
    cluster.start(1, &all(3), |_| {});
    cluster.start(2, &all(3), |_| {});
    cluster.ticks(100);
    assert_eq!(cluster.leading(), None, "what the third holds is not known");
    cluster.start(3, &all(3), |_| {});
    let leader = cluster.leader();
    cluster.put(leader, "b");
    cluster.ticks(30);
    cluster.assert_same();
    assert_eq!(cluster.node(leader).tail().end().revision, Revision(3));
}

#[test]
fn a_member_in_doubt_that_knows_only_voters_that_left_votes_for_who_is_there() {
    let loose = |config: &mut ConsensusConfig| config.strict_reconfig_check = false;
    let mut cluster = Cluster::empty();
    (1..=3).for_each(|id| cluster.start(id, &all(3), loose));
    let leader = cluster.leader();
    cluster.put(leader, "a");
    cluster.ticks(3);
    let (cut, other) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    cluster.stop(cut);
    cluster.tear_log(cut);
    assert_eq!(ids(cluster.ask(leader, add(4, true))).len(), 4);
    cluster.start(4, &all(4), |config| (config.founding, config.strict_reconfig_check) = (false, false));
    cluster.ticks(5);
    cluster.ask(leader, promote(4)).unwrap();
    assert_eq!(ids(cluster.ask(leader, remove(other))).len(), 3);
    assert_eq!(ids(cluster.ask(leader, remove(leader))), [cut, 4]);
    cluster.ticks(3);
    [leader, other].into_iter().for_each(|id| cluster.stop(id));
    cluster.start(cut, &all(3), loose);
    cluster.ticks(60);
    assert_eq!(cluster.leading(), Some(4));
    cluster.put(4, "b");
    cluster.ticks(30);
    cluster.assert_same();
}

#[test]
fn one_member_of_a_lost_group_goes_on_alone_with_what_it_has() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    cluster.put(leader, "a");
    cluster.ticks(2);
    let history = cluster.node(leader).tail().end().history;
    let survivor = leader % 3 + 1;
    let initial = all(3);
    // All are killed, here and below: nothing is flushed.
    (1..=3).for_each(|id| cluster.stop(id));
    cluster.start(survivor, &initial, |config| config.force_new_cluster = true);
    let forced = cluster.node(survivor).tail().end();
    assert_eq!(forced.revision, Revision(2));
    assert_ne!(forced.history, history);
    cluster.start(survivor, &initial, |_| {});
    assert_eq!(cluster.node(survivor).tail().end().history, forced.history, "from the first moment on");
    assert_eq!(cluster.leader(), survivor);
    cluster.put(survivor, "b");
    assert_eq!(*cluster.node(survivor).told.lock(), [member(survivor)]);
    cluster.start(survivor, &initial, |_| {});
    assert_eq!(cluster.leader(), survivor);
    cluster.put(survivor, "c");
    let end = cluster.node(survivor).tail().end();
    assert_eq!((end.history, end.revision), (forced.history, Revision(4)));
    let mut empty = Cluster::empty();
    let refused = empty.try_start(1, &initial, |config| config.force_new_cluster = true);
    assert!(refused.unwrap_err().to_string().contains("no group"));
}

#[test]
fn who_goes_on_alone_keeps_what_it_acknowledged_and_never_knew_to_be_committed() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    cluster.put(leader, "a");
    let survivor = leader % 3 + 1;
    // No message has told it since that this one is committed.
    (1..=3).for_each(|id| cluster.stop(id));
    cluster.start(survivor, &all(3), |config| config.force_new_cluster = true);
    assert_eq!(cluster.node(survivor).tail().end().revision, Revision(2));
}

#[test]
fn a_lease_outlives_the_leader_and_expires_by_the_clock_of_the_next() {
    let mut cluster = Cluster::new(3);
    let old = cluster.leader();
    cluster.ask(old, Command::LeaseGrant(pb::LeaseGrantRequest { id: 7, ttl: 1 })).unwrap();
    cluster.ask(old, put("leased", 7)).unwrap();
    cluster.ticks(2);
    for node in cluster.nodes.values() {
        assert_eq!(node.consensus.leases(), [LeaseId(7)]);
    }
    // Almost over when the leader goes: the next starts from the whole TTL, 50 ticks, and an election timeout.
    cluster.ticks(40);
    cluster.stop(old);
    let new = cluster.leader();
    let consensus = cluster.node(new).consensus.clone();
    let renewed = cluster.call(async move { consensus.lease_keep_alive(LeaseId(7)).await });
    assert_eq!(cluster.wait(renewed).unwrap(), Some(1));
    cluster.ticks(40);
    assert_eq!(cluster.node(new).consensus.leases(), [LeaseId(7)]);
    cluster.ticks(30);
    assert_eq!(cluster.node(new).consensus.leases(), []);
    let follower = (1..=3).find(|id| *id != old && *id != new).unwrap();
    let keep_alive = cluster.node(follower).consensus.clone();
    let elsewhere = cluster.call(async move { keep_alive.lease_keep_alive(LeaseId(7)).await });
    assert!(matches!(cluster.wait(elsewhere), Err(ProposeError::NoLeader)));
    assert_eq!(cluster.node(follower).consensus.leases(), []);
    cluster.assert_same();
}

#[test]
fn members_with_threads_write_through_the_loss_of_a_leader() {
    let wire = Direct::default();
    let dirs: Vec<_> = (1..=3).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut sources = Vec::new();
    for (id, dir) in (1..).zip(&dirs) {
        let config = ConsensusConfig { member_id: MemberId(id), initial_members: all(3), ..config(dir.path()) };
        let (consensus, source) = Consensus::start(config, std::sync::Arc::new(wire.clone())).unwrap();
        wire.0.lock().insert(id, consensus);
        sources.push(source);
    }
    let sources: Vec<_> = sources.into_iter().map(|source| source.wait().unwrap()).collect();
    let members = wire.0.lock().clone();
    let runtime = runtime();
    let mut written = 0;
    for round in 0..2 {
        let (id, consensus) = wire.leader();
        runtime.block_on(async {
            for n in 0..50 {
                consensus.propose(put(format!("{round}-{n}"), 0)).await.unwrap();
                written += 1;
            }
            consensus.barrier().await.unwrap();
        });
        if round == 0 {
            wire.0.lock().remove(&id);
            consensus.stop();
        }
    }
    let began = Instant::now();
    let ends =
        || wire.0.lock().keys().map(|id| sources[usize::try_from(*id).unwrap() - 1].tail.end()).collect::<Vec<_>>();
    while !ends().iter().all(|end| end.revision == Revision(1 + written) && *end == ends()[0]) {
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", ends());
        std::thread::sleep(Duration::from_millis(5));
    }
    wire.0.lock().clear();
    members.values().for_each(Consensus::stop);
}
