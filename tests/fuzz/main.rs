//! Requests that nobody would send, to a running server: valid ones, changed ones and rubbish, to every method, over gRPC,
//! JSON and bare TCP, with auth off and on. Beside them a client that means well must be served all the time; between rounds
//! nothing may be left of those who went.
//!
//! `SEED=n` chooses what is sent (how it meets is up to the scheduler), `FUZZ_SECONDS=n` how long; with `ACCEPTANCE=1` an
//! hour. `FUZZ_REPORT=file` appends a line with what was done.

mod calls;
mod connections;
mod gauges;
mod guard;
mod http;
mod messages;
mod random;
mod run;
mod witness;

use std::io::Write as _;
use std::time::Duration;

use tailwater_tests::{Options, Server};

use crate::run::{Plan, run};

/// Of both servers together.
const SECONDS_DEFAULT: u64 = 20;
const SECONDS_ACCEPTANCE: u64 = 3600;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}={text:?} is no number")))
}

fn seconds() -> u64 {
    let is_full = std::env::var("ACCEPTANCE").as_deref() == Ok("1");
    number("FUZZ_SECONDS").unwrap_or(if is_full { SECONDS_ACCEPTANCE } else { SECONDS_DEFAULT })
}

/// Runs one server with `flags` under such requests.
async fn fuzz(name: &str, with_auth: bool) -> anyhow::Result<()> {
    let flags = [
        "--bcrypt-cost=4",
        "--log-level=error",
        "--max-request-bytes=1048576",
        "--window-bytes=4194304",
        "--cache-bytes=20971520",
        // What is written and not compacted is no leak.
        "--auto-compaction-mode=revision",
        "--auto-compaction-retention=1000",
    ];
    let flags = flags.map(str::to_owned);
    let server = Server::tailwater(&Options { flags: flags.into(), ..Options::default() }).await?;
    let seed = number("SEED").unwrap_or_else(|| rand::random_range(0..1 << 32));
    let plan = Plan { seed, duration: Duration::from_secs(seconds() / 2), with_auth };
    let outcome = run(&server, &plan).await;
    let line = match &outcome {
        Ok(report) => format!("{name}: SEED={seed}, {} s: {report}", plan.duration.as_secs()),
        Err(error) => format!("{name}: SEED={seed}: FOUND {error:#}"),
    };
    eprintln!("{line}");
    if let Ok(path) = std::env::var("FUZZ_REPORT") {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
        writeln!(file, "{line}")?;
    }
    if let Err(error) = outcome {
        let log = server.log();
        let tail = log.char_indices().rev().nth(6000).map_or(0, |(at, _)| at);
        anyhow::bail!("SEED={seed}: {error:#}\nthe end of the server's log:\n{}", &log[tail..]);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_is_sent_harms_the_server() -> anyhow::Result<()> {
    fuzz("auth off", false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_is_sent_harms_a_server_with_auth() -> anyhow::Result<()> {
    fuzz("auth on", true).await
}
