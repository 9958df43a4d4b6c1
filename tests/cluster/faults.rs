//! Faults under load, each followed by all checks.

use std::time::Duration;

use tailwater_tests::cluster::{Cluster, Link};

use crate::run::{Rounds, Run, amount, turn};

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
            pause(500).await;
            let leader = run.cluster.leader().await?;
            run.cluster.kill(leader)?;
            run.load.next_write(RESUME_MAX).await?;
            pause(500).await;
            run.cluster.restart(leader).await?;
        }
        Ok(())
    })
    .await;
}
