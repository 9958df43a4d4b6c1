//! Faults under load, each followed by all checks.

use std::time::{Duration, Instant};

use anyhow::Context;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tailwater_tests::cluster::{Cluster, Link};

use crate::history::Action;
use crate::membership;
use crate::run::{Rounds, Run, amount, scaled, seed, turn};
use crate::workload::ask;

/// How long writes may take to go on while a majority is connected. An election takes one to two seconds at default
/// ticks, two or three where votes split; the machine may be busy.
const RESUME_MAX: Duration = Duration::from_secs(10);

/// Runs `faults` on `members` members under load.
async fn under(test: &str, members: usize, faults: impl AsyncFnOnce(&mut Run) -> anyhow::Result<()>) {
    let Some((_turn, setup)) = turn(test, members).await else { return };
    let amount = amount();
    let outcome = async {
        let mut run = Run::start(Cluster::start(setup).await?, &amount).await?;
        faults(&mut run).await?;
        run.end().await
    };
    if let Err(error) = outcome.await {
        panic!("SEED={}: {error:?}", amount.seed);
    }
}

async fn pause(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_alone_is_killed() {
    under("one member", 1, async |run| {
        for () in Rounds::new(2) {
            pause(500).await;
            run.cluster.kill(0)?;
            run.cluster.restart(0).await?;
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_is_killed() {
    under("kill the leader", 3, async |run| {
        for () in Rounds::new(2) {
            pause(300).await;
            let leader = run.cluster.leader().await?;
            run.cluster.kill(leader)?;
            run.load.next_write(RESUME_MAX).await?;
            pause(300).await;
            run.cluster.restart(leader).await?;
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_is_killed() {
    under("kill a follower", 3, async |run| {
        for () in Rounds::new(2) {
            pause(300).await;
            let follower = follower(run).await?;
            run.cluster.kill(follower)?;
            run.load.next_write(RESUME_MAX).await?;
            pause(500).await;
            run.cluster.restart(follower).await?;
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_are_killed_at_once() {
    under("kill all members", 3, async |run| {
        // Fifty rounds at least in the full form; ten minutes hold more.
        for () in Rounds::new(2) {
            pause(500).await;
            run.cluster.kill_all()?;
            run.cluster.heal().await?;
            run.load.next_write(RESUME_MAX).await?;
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_restart_one_after_the_other() {
    under("rolling restart", 3, async |run| {
        for () in Rounds::new(1) {
            for slot in 0..run.cluster.size() {
                pause(200).await;
                run.cluster.stop(slot).await?;
                run.load.next_write(RESUME_MAX).await?;
                run.cluster.restart(slot).await?;
            }
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_is_cut_off() {
    under("partition of the leader", 3, async |run| {
        let kinds = [Link::Held, Link::Cut].into_iter().cycle();
        for ((), link) in Rounds::new(2).zip(kinds) {
            pause(300).await;
            let leader = run.cluster.leader().await?;
            run.cluster.isolate(leader, link);
            another_leads(run, leader).await?;
            // The last leader's clients still ask it: what they read there must not be stale.
            run.load.next_write(RESUME_MAX).await?;
            pause(1000).await;
            run.cluster.links().open_all();
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_are_cut_one_way() {
    under("one-way cuts", 3, async |run| {
        for () in Rounds::new(1) {
            for (of_leader, outbound) in [(true, true), (true, false), (false, true), (false, false)] {
                pause(300).await;
                let leader = run.cluster.leader().await?;
                let slot = if of_leader { leader } else { (leader + 1) % run.cluster.size() };
                if outbound {
                    run.cluster.set_outbound(slot, Link::Held);
                } else {
                    run.cluster.set_inbound(slot, Link::Held);
                }
                if of_leader {
                    another_leads(run, leader).await?;
                } else {
                    pause(1200).await;
                }
                run.load.next_write(RESUME_MAX).await?;
                run.cluster.links().open_all();
            }
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_is_cut_from_the_leader_but_not_from_its_readers() {
    under("follower cut from the leader", 3, async |run| {
        // Once from the leader only, so that the other follower still hears it; once from everybody.
        let kinds = [false, true].into_iter().cycle();
        for ((), from_all) in Rounds::new(2).zip(kinds) {
            pause(300).await;
            let leader = run.cluster.leader().await?;
            let follower = (leader + 1) % run.cluster.size();
            if from_all {
                run.cluster.isolate(follower, Link::Held);
            } else {
                run.cluster.links().set(leader, follower, Link::Held);
                run.cluster.links().set(follower, leader, Link::Held);
            }
            for _ in 0..scaled(3, 10) {
                pause(700).await;
                run.load.next_write(RESUME_MAX).await?;
                serializable_read(run, follower).await?;
            }
            run.cluster.links().open_all();
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_are_slow_and_flap() {
    under("slow links", 3, async |run| {
        let mut random = StdRng::seed_from_u64(seed());
        for () in Rounds::new(10) {
            let (from, to) = (random.random_range(0..3), random.random_range(0..3));
            let link = match random.random_range(0..4) {
                0 => Link::Cut,
                1 => Link::Held,
                _ => Link::Delayed(Duration::from_millis(random.random_range(1..60))),
            };
            run.cluster.links().set(from, to, link);
            pause(random.random_range(50..400)).await;
            if matches!(link, Link::Cut | Link::Held) {
                run.cluster.links().set(from, to, Link::Open);
            }
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_is_paused() {
    under("SIGSTOP of the leader", 3, async |run| {
        for () in Rounds::new(1) {
            pause(300).await;
            let leader = run.cluster.leader().await?;
            run.cluster.pause(leader)?;
            another_leads(run, leader).await?;
            run.load.next_write(RESUME_MAX).await?;
            pause(scaled(1500, 13_500)).await;
            run.cluster.resume(leader)?;
            pause(500).await;
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_is_replaced() {
    under("replace a member", 3, async |run| {
        // Alternately one that has died, and one that runs until it learns that it was removed. Every member in turn:
        // the leader is among them.
        let turns = [(0, true), (1, false), (2, true), (0, false), (1, true), (2, false)].into_iter().cycle();
        for ((), (slot, dies_first)) in Rounds::new(2).zip(turns) {
            pause(300).await;
            membership::replace(run, slot, dies_first).await?;
            pause(300).await;
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_happens_at_random() {
    under("random faults", 3, async |run| {
        let mut random = StdRng::seed_from_u64(seed());
        let all: Vec<usize> = (0..run.cluster.size()).collect();
        let mut untouched = all.clone();
        for () in Rounds::new(6) {
            let slot = untouched.swap_remove(random.random_range(0..untouched.len()));
            match random.random_range(0..5) {
                0 => run.cluster.kill(slot)?,
                1 => run.cluster.stop(slot).await?,
                2 => run.cluster.pause(slot)?,
                3 => run.cluster.isolate(slot, Link::Held),
                _ => run.cluster.links().set(slot, (slot + 1) % all.len(), Link::Cut),
            }
            pause(random.random_range(0..scaled(1500, 5000))).await;
            // Else the next fault comes on top of this one, down to no majority.
            if untouched.is_empty() || random.random_bool(0.6) {
                run.cluster.heal().await?;
                untouched.clone_from(&all);
                pause(random.random_range(0..500)).await;
            }
        }
        Ok(())
    })
    .await;
}

/// Waits until the others have another leader: the fault has had its effect.
async fn another_leads(run: &Run, old: usize) -> anyhow::Result<()> {
    let others: Vec<usize> = run.cluster.others(old).collect();
    let begin = Instant::now();
    while run.cluster.leader_among(&others).await.is_none() {
        anyhow::ensure!(begin.elapsed() < RESUME_MAX, "members {others:?} have no leader of their own");
        pause(20).await;
    }
    Ok(())
}

/// Some slot that does not lead.
async fn follower(run: &mut Run) -> anyhow::Result<usize> {
    Ok((run.cluster.leader().await? + 1) % run.cluster.size())
}

/// A member without a quorum still answers these.
async fn serializable_read(run: &Run, slot: usize) -> anyhow::Result<()> {
    let read = Action::Read { serializable: true };
    let keys = ["kv/0".to_owned()];
    let asked = ask(run.cluster.channel(slot)?, &read, &keys);
    let answered = tokio::time::timeout(Duration::from_secs(2), asked).await;
    answered.context("a serializable read waits")?.context("a serializable read fails")?;
    Ok(())
}
