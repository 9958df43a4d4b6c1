//! The client library for operators, against server processes.
//!
//! * `ROUNDS=n` runs so many rounds of faults (5; with `ACCEPTANCE=1` 100); `SEED=n` repeats their choices, not the timing.
//! * What runs on Tailwater runs on an etcd as well (`ETCD`, or `etcd` on PATH).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod access;
mod cache;
mod controller;
mod history;
mod rounds;
mod secure;
mod support;

use tailwater_tests::{Kind, left_out, program};

/// The servers to run on; names what is left out.
fn kinds(test: &str) -> Vec<Kind> {
    let is_there = |kind: &Kind| match program(*kind) {
        Ok(_) => true,
        Err(error) => {
            left_out(test, &error.to_string());
            false
        }
    };
    [Kind::Tailwater, Kind::Etcd].into_iter().filter(is_there).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rounds_of_faults_lose_and_repeat_nothing_on_tailwater() {
    rounds::run(Kind::Tailwater).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rounds_of_faults_lose_and_repeat_nothing_on_etcd() {
    match program(Kind::Etcd) {
        Ok(_) => rounds::run(Kind::Etcd).await.unwrap(),
        Err(error) => left_out("client on etcd", &error.to_string()),
    }
}
