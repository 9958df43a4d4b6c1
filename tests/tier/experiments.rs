//! The load generator's experiments on the tier, small: that they run, and what does not depend on how busy a machine is.

use std::path::PathBuf;

use anyhow::Context;
use tailwater_tests::{Kind, left_out, program};
use tokio::process::Command;

use crate::run::{Plan, Standing, say, standing};

/// `tailwater-bench`: env `TAILWATER_BENCH`, or the one of this build.
fn bench() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("TAILWATER_BENCH").filter(|path| !path.is_empty()) {
        return Some(path.into());
    }
    let test = std::env::current_exe().ok()?;
    let path = test.parent()?.parent()?.join("tailwater-bench");
    path.is_file().then_some(path)
}

/// What the experiment prints; none when it can't run here, which has been said then.
async fn run(experiment: &str, arguments: &[&str]) -> anyhow::Result<Option<String>> {
    if standing() != Standing::Fanouts {
        return Ok(None);
    }
    let (Some(bench), Ok(server)) = (bench(), program(Kind::Tailwater)) else {
        left_out(
            experiment,
            "no tailwater-bench beside this test: run `cargo build --workspace`, or set TAILWATER_BENCH",
        );
        return Ok(None);
    };
    let _turn = Plan::turn().await?;
    let mut command = Command::new(bench);
    command.arg(experiment).arg("--tailwater").arg(server).args(arguments).kill_on_drop(true);
    let output = command.output().await.with_context(|| format!("starting {command:?}"))?;
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    say(&said);
    anyhow::ensure!(output.status.success(), "{experiment}: {errors}");
    Ok(Some(said.into_owned()))
}

/// Stalled watches and lists hold no more than the bound, and get everything when they read on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_clients_stay_within_the_bound() -> anyhow::Result<()> {
    let small = ["--watch-memory-bytes=16777216", "--streams=100", "--lists=10", "--listed=1000", "--ranges=40"];
    let much = ["--connections=10", "--value-bytes=65536", "--bytes=33554432"];
    let Some(said) = run("bound", &[&small[..], &much].concat()).await? else { return Ok(()) };
    anyhow::ensure!(said.contains("\nkept: 100 stalled streams"), "the bound: {said}");
    Ok(())
}

/// The leader sends as much for four fanouts behind one relay as for one fanout.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_costs_the_leader_as_much_as_one_fanout() -> anyhow::Result<()> {
    let small = ["--rounds=1", "--seconds=1", "--rate=100", "--members=1"];
    let Some(said) = run("topology", &small).await? else { return Ok(()) };
    anyhow::ensure!(said.contains("kept: bytes sent for a relay"), "what the leader sends: {said}");
    Ok(())
}
