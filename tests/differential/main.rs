//! Random operations on a real etcd and on another server, every answer compared.
//!
//! * `DIFF_REFERENCE`, `DIFF_SUBJECT`: URLs of running servers; without them an etcd and a tailwater are started.
//! * `DIFF_SEEDS` (3) and `DIFF_OPS` (300): how many runs, of how many operations; with `ACCEPTANCE=1` 50 and 2000.
//! * `SEED`: replays one run. `DIFF_ETCD=1`: the subject is a second etcd, which tests the test.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod answer;
mod auth;
mod expiry;
mod garbage;
mod generate;
mod http;
mod json;
mod json_requests;
mod json_text;
mod maintenance;
mod operation;
mod planted;
mod recipes;
mod run;
mod stream;
mod waiting;
mod watchers;

use run::Difference;
use tailwater_tests::{Kind, Options, Server, left_out, program};

/// Runs at a time.
const LANES: usize = 3;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is not a number")))
}

fn is_full() -> bool {
    std::env::var("ACCEPTANCE").is_ok_and(|value| value == "1")
}

fn seeds() -> std::ops::Range<u64> {
    let count = number("DIFF_SEEDS").unwrap_or(if is_full() { 50 } else { 3 });
    number("SEED").map_or(0..count, |seed| seed..seed + 1)
}

fn operations() -> usize {
    usize::try_from(number("DIFF_OPS").unwrap_or(if is_full() { 2000 } else { 300 })).unwrap()
}

/// An endpoint from `variable`, else of a server started here.
async fn endpoint(variable: &str, kind: Kind) -> anyhow::Result<(String, Option<Server>)> {
    if let Ok(url) = std::env::var(variable) {
        return Ok((url, None));
    }
    // Progress notifications come unasked within a run then; no answer is compared sooner without a sync to disk.
    let mut flags = vec!["--watch-progress-notify-interval=300ms".to_owned(), "--bcrypt-cost=4".to_owned()];
    if kind == Kind::Tailwater {
        // The reference's line: what is reported is compared, too.
        flags.push("--reported-version=3.6.16".into());
    }
    let options = Options { flags, etcd_flags: vec!["--unsafe-no-fsync".into(), "--log-level=error".into()] };
    let server = Server::start(kind, &options).await?;
    Ok((server.url().to_owned(), Some(server)))
}

/// Says why when this test cannot run here.
fn missing(test: &str, kinds: &[(&str, Kind)]) -> bool {
    for (variable, kind) in kinds {
        if let (Err(_), Err(error)) = (std::env::var(variable), program(*kind)) {
            left_out(test, &format!("{error:#}"));
            return true;
        }
    }
    false
}

/// The two servers that are compared, or none when they are missing.
async fn servers() -> Option<[(String, Option<Server>); 2]> {
    let subject = if number("DIFF_ETCD").is_some() { Kind::Etcd } else { Kind::Tailwater };
    let needed = [("DIFF_REFERENCE", Kind::Etcd), ("DIFF_SUBJECT", subject)];
    if missing("differential", &needed) {
        return None;
    }
    Some([endpoint("DIFF_REFERENCE", Kind::Etcd).await.unwrap(), endpoint("DIFF_SUBJECT", subject).await.unwrap()])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_expire_as_in_etcd() {
    let Some([(reference, _etcd), (subject, _server)]) = servers().await else { return };
    expiry::run(&reference, &subject).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_garbage_end_as_in_etcd() {
    let Some([(reference, _etcd), (subject, _server)]) = servers().await else { return };
    garbage::run(&reference, &subject).await.unwrap();
}

/// Runs `seeds` one after the other on two servers; the differences, each with how to replay it.
async fn differences(seeds: Vec<u64>) -> Vec<String> {
    let Some([(reference, etcd), (subject, server)]) = servers().await else { return Vec::new() };
    let operations = operations();
    let mut differences = Vec::new();
    for seed in seeds {
        let Err(error) = run::run(&reference, &subject, seed, operations).await else { continue };
        let replay = format!(
            "replay: SEED={seed} DIFF_OPS={operations} cargo test -p tailwater-tests --test differential answers"
        );
        differences.push(format!("{error:#}\n{replay}"));
        if !error.is::<Difference>() {
            // A server is gone, and every further run would only say so.
            differences.extend([etcd, server].iter().flatten().map(|server| last_lines(&server.log())));
            break;
        }
    }
    differences
}

fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    format!("the end of a server's log:\n{}", lines[lines.len().saturating_sub(5)..].join("\n"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_as_etcd_does() {
    // A run mostly waits, so several go on beside each other, each on servers of its own.
    let is_given = ["DIFF_REFERENCE", "DIFF_SUBJECT"].iter().any(|variable| std::env::var(variable).is_ok());
    let lanes = if is_given { 1 } else { LANES };
    let mut runs = tokio::task::JoinSet::new();
    for lane in 0..lanes {
        let seeds: Vec<u64> = seeds().skip(lane).step_by(lanes).collect();
        if !seeds.is_empty() {
            runs.spawn(differences(seeds));
        }
    }
    let differences = runs.join_all().await.concat();
    assert!(differences.is_empty(), "{} runs differ:\n\n{}", differences.len(), differences.join("\n\n"));
}

/// Runs of one kind, each seed on servers of its own: users, alarms and leases stay with a server.
async fn compare(test: &'static str, run: impl AsyncFn(&str, &str, u64, usize) -> anyhow::Result<()> + Copy) {
    let steps = operations();
    let lanes = (0..LANES).map(|lane| async move {
        let mut differences = Vec::new();
        for seed in seeds().skip(lane).step_by(LANES) {
            let Some([(reference, etcd), (subject, server)]) = servers().await else { break };
            let Err(error) = run(&reference, &subject, seed, steps).await else { continue };
            let replay = format!(
                "replay: SEED={seed} DIFF_OPS={steps} cargo test -p tailwater-tests --test differential {test}"
            );
            differences.push(format!("{error:#}\n{replay}"));
            if !error.is::<Difference>() {
                differences.extend([etcd, server].iter().flatten().map(|server| last_lines(&server.log())));
            }
        }
        differences
    });
    let differences = futures_util::future::join_all(lanes).await.concat();
    assert!(differences.is_empty(), "{} runs differ:\n\n{}", differences.len(), differences.join("\n\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_are_those_of_etcd() {
    compare("rights", auth::run).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_and_elections_are_those_of_etcd() {
    compare("locks", recipes::run).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn maintenance_is_that_of_etcd() {
    compare("maintenance", maintenance::run).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_is_read_and_written_as_by_etcd() {
    compare("json", json::run).await;
}
