//! `tailwater bench` as its users run it: what it prints, and that its validator can tell right from wrong.

use std::process::Output;

use anyhow::Context;
use tailwater_tests::proxy::{Deviation, Proxy};
use tailwater_tests::{Kind, Options, Server, left_out, program};

/// Watchers of few keys with previous versions, and a load that ends soon.
const WATCH: &[&str] = &[
    "watch",
    "--streams=6",
    "--watch-conns=2",
    "--keys-per-range=5",
    "--prev-kv",
    "--clients=4",
    "--rate=200",
    "--seconds=2",
];
/// Reads beside writes of the same key.
const RANGE: &[&str] = &["range", "--puts=300", "--clients=4", "--rate=1500", "--seconds=2"];

async fn bench(endpoint: &str, arguments: &[&str]) -> anyhow::Result<Output> {
    let program = program(Kind::Tailwater)?;
    let output = tokio::process::Command::new(program)
        .arg("bench")
        .args(arguments)
        .args(["--endpoints", endpoint, "--json"])
        .output()
        .await?;
    Ok(output)
}

fn report(output: &Output) -> anyhow::Result<serde_json::Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).with_context(|| format!("{text} {}", String::from_utf8_lossy(&output.stderr)))
}

/// A run that must find nothing wrong.
async fn passes(endpoint: &str, arguments: &[&str]) -> anyhow::Result<serde_json::Value> {
    let output = bench(endpoint, arguments).await?;
    let report = report(&output)?;
    anyhow::ensure!(output.status.success(), "{arguments:?}: {report}");
    anyhow::ensure!(report["operations"].as_u64() > Some(0) && report["failed"] == 0, "{arguments:?}: {report}");
    Ok(report)
}

/// Ours, and a real etcd where there is one.
fn kinds(test: &str) -> Vec<Kind> {
    let mut kinds = vec![Kind::Tailwater];
    match program(Kind::Etcd) {
        Ok(_) => kinds.push(Kind::Etcd),
        Err(error) => left_out(test, &error.to_string()),
    }
    kinds
}

#[tokio::test]
async fn every_workload_runs_and_is_valid() -> anyhow::Result<()> {
    let workloads: &[&[&str]] = &[
        &["put", "--clients=4", "--conns=2", "--total=300"],
        &["put", "--rate=500", "--clients=8", "--seconds=1", "--validate"],
        &["txn-put", "--clients=3", "--total=200"],
        &["lease-flood", "--nodes=50", "--clients=5", "--rate=300", "--seconds=1"],
        &["keepalive", "--clients=3", "--total=200"],
        &["range", "--clients=3", "--total=300", "--key-space=20"],
        &["range", "--clients=3", "--total=300", "--serializable"],
        &["list", "--key-space=700", "--total=20"],
        &["list", "--key-space=700", "--total=20", "--how=paged", "--page=100", "--no-load"],
        &["list", "--key-space=700", "--total=20", "--how=keys-only", "--no-load"],
        &["list", "--key-space=700", "--total=20", "--how=count-only", "--no-load"],
        &["watch", "--streams=20", "--watch-conns=2", "--ranges=4", "--watches-per-stream=2", "--total=200"],
        &["stalled", "--streams=20", "--watch-conns=2", "--rate=200", "--seconds=1"],
        &["lagging", "--revisions=2000", "--rate=200", "--seconds=1"],
        &[
            "kube",
            "--nodes=1000",
            "--pods=20",
            "--pods-per-second=5",
            "--api-servers=2",
            "--prefixes=6",
            "--seconds=3",
            "--validate",
        ],
    ];
    for kind in kinds("every_workload_runs_and_is_valid") {
        let server = Server::start(kind, &Options::default()).await?;
        for workload in workloads {
            passes(server.url(), workload).await.with_context(|| format!("{kind:?}"))?;
        }
        for workload in [WATCH, RANGE] {
            let report = passes(server.url(), &[workload, &["--validate"]].concat()).await?;
            anyhow::ensure!(report["violations"] == 0, "{kind:?}: {report}");
        }
    }
    let server = Server::start(Kind::Tailwater, &Options::default()).await?;
    passes(server.url(), &["list", "--key-space=700", "--total=20", "--how=stream"]).await?;
    Ok(())
}

#[tokio::test]
async fn planted_faults_are_found() -> anyhow::Result<()> {
    let server = Server::start(Kind::Tailwater, &Options::default()).await?;
    let faults = [
        (Deviation::EventDropped, WATCH),
        (Deviation::EventDoubled, WATCH),
        (Deviation::EventReordered, WATCH),
        (Deviation::EventWithoutPrevious, WATCH),
        (Deviation::ReadStale, RANGE),
    ];
    for (deviation, workload) in faults {
        for (planted, arguments) in [(Deviation::Nothing, workload), (deviation, workload)] {
            let proxy = Proxy::start(server.url(), planted).await?;
            let output = bench(proxy.url(), &[arguments, &["--validate"]].concat()).await?;
            if planted == Deviation::Nothing {
                let report = report(&output)?;
                anyhow::ensure!(output.status.success() && report["violations"] == 0, "the proxy alone: {report}");
                continue;
            }
            anyhow::ensure!(!output.status.success(), "{planted:?} was not found");
            // A watcher that is one event short also ends the run with that as its reason.
            if let Ok(report) = report(&output) {
                anyhow::ensure!(report["violations"].as_u64() > Some(0), "{planted:?}: {report}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_endpoint_that_is_not_there_is_named() -> anyhow::Result<()> {
    let output = bench("http://127.0.0.1:1", &["put"]).await?;
    let text = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(!output.status.success() && text.contains("http://127.0.0.1:1 can't be reached"), "{text}");
    let output = bench("http://127.0.0.1:1", &["put", "--clients=0"]).await?;
    let text = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(text.contains("--conns and --clients must be at least 1"), "{text}");
    Ok(())
}
