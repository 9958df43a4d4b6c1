//! Real clusters that do wrong, or seem to: the checks of a whole run find it.

use std::time::Duration;

use tailwater_tests::cluster::{Cluster, Link};
use tailwater_tests::copy_tree;

use crate::history::Action;
use crate::oracle;
use crate::run::{Run, amount, turn};

async fn pause(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_goes_back_in_time_is_found() {
    let Some((_turn, setup)) = turn("planted loss", 1).await else { return };
    let mut run = Run::start(Cluster::start(setup).await.expect("a member"), &amount()).await.expect("a load");
    run.cluster.keep_nothing();
    pause(300).await;
    run.cluster.kill(0).expect("killed");
    let old = run.cluster.data(0).with_extension("old");
    copy_tree(run.cluster.data(0), &old).expect("copied");
    run.cluster.restart(0).await.expect("started again");
    run.load.next_write(Duration::from_secs(10)).await.expect("a write that will be lost");
    pause(300).await;
    run.cluster.kill(0).expect("killed");
    std::fs::remove_dir_all(run.cluster.data(0)).expect("removed");
    copy_tree(&old, run.cluster.data(0)).expect("copied back");
    let error = run.end().await.expect_err("acknowledged writes are gone, and nobody noticed");
    let named = ["durable", "unique", "linearizable", "nobody wrote", "the state at its revision", "done on"];
    let text = format!("{error:#}");
    assert!(named.iter().any(|guarantee| text.contains(guarantee)), "found, but as what? {text}");
}

/// How often a cluster is cut: a busy machine may leave too few reads in one cut to tell.
const ATTEMPTS: usize = 4;

/// Serializable reads of a member that is cut off are stale. Taken for linearizable ones they must not pass.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_reads_of_a_member_that_is_cut_off_are_found() {
    for _ in 0..ATTEMPTS {
        let Some((_turn, setup)) = turn("planted stale reads", 3).await else { return };
        let run = Run::start(Cluster::start(setup).await.expect("members"), &amount()).await.expect("a load");
        if cut_off_reads_are_found(run).await {
            return;
        }
    }
    panic!("stale reads went unnoticed {ATTEMPTS} times");
}

async fn cut_off_reads_are_found(mut run: Run) -> bool {
    run.cluster.keep_nothing();
    let leader = run.cluster.leader().await.expect("a leader");
    let follower = (leader + 1) % run.cluster.size();
    // Both of its links from it stay open, so that it does not know for a while.
    run.cluster.set_inbound(follower, Link::Held);
    pause(4000).await;
    let (mut record, _cluster, checker) = run.record().await.expect("it recovers");
    oracle::check(&record).expect("serializable reads may be stale");
    for operation in &mut record.operations {
        if operation.action == (Action::Read { serializable: true }) {
            operation.action = Action::Read { serializable: false };
        }
    }
    let Err(found) = oracle::operations(&record) else { return false };
    assert!(format!("{found:#}").contains("linearizable"), "{found:#}");
    let Some(checker) = checker else { return true };
    let Err(found) = checker.check(&record) else { return false };
    assert!(format!("{found:#}").contains("not linearizable"), "{found:#}");
    true
}
