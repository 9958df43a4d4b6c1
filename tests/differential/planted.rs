//! Deviations that are planted between the test and a second etcd: each kind of run must find those of its kind.

use tailwater_tests::Kind;
use tailwater_tests::proxy::{Deviation, Proxy};

use crate::run::Difference;
use crate::{auth, endpoint, http, is_full, json, maintenance, missing, operations, recipes, run};

/// Within so many seeds each is found.
const SEEDS_MAX: u64 = 50;

/// Runs seeds against `subject`; how many until a difference was found, and which.
async fn seeds_until_found(
    reference: &str,
    subject: &str,
    seeds_max: u64,
    run: impl AsyncFn(&str, &str, u64, usize) -> anyhow::Result<()>,
) -> Option<(u64, Difference)> {
    for seed in 0..seeds_max {
        let Err(error) = run(reference, subject, seed, operations()).await else { continue };
        match error.downcast::<Difference>() {
            Ok(difference) => return Some((seed + 1, difference)),
            Err(error) => panic!("{error:#}"),
        }
    }
    None
}

/// Nothing is found where nothing is planted, and each of `deviations` is.
async fn each_is_found(
    deviations: &[Deviation],
    run: impl AsyncFn(&str, &str, u64, usize) -> anyhow::Result<()> + Copy,
) {
    if missing("planted deviations", &[("DIFF_REFERENCE", Kind::Etcd)]) {
        return;
    }
    let (reference, _a) = endpoint("DIFF_REFERENCE", Kind::Etcd).await.unwrap();
    let (upstream, _b) = endpoint("DIFF_UPSTREAM", Kind::Etcd).await.unwrap();
    let proxy = Proxy::start(&upstream, Deviation::Nothing).await.unwrap();
    let untouched = seeds_until_found(&reference, proxy.url(), if is_full() { 5 } else { 1 }, run).await;
    nothing_is_found(untouched);
    for deviation in deviations {
        let proxy = Proxy::start(&upstream, *deviation).await.unwrap();
        let found = seeds_until_found(&reference, proxy.url(), SEEDS_MAX, run).await;
        tell(&format!("{deviation:?}"), found);
    }
}

fn nothing_is_found(found: Option<(u64, Difference)>) {
    if let Some((_, difference)) = found {
        panic!("the proxy alone makes a difference: {difference}");
    }
}

#[expect(clippy::print_stdout, reason = "how soon each is found tells how strong the test is")]
fn tell(deviation: &str, found: Option<(u64, Difference)>) {
    let found = found.map(|(seeds, _)| seeds);
    println!("{deviation} found after {found:?} seeds");
    assert!(found.is_some(), "{deviation} was not found within {SEEDS_MAX} seeds");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planted_deviations_of_the_store_are_found() {
    let deviations = [
        Deviation::CountLimited,
        Deviation::KeysOnlyWithoutLease,
        Deviation::TombstoneMissing,
        Deviation::ProgressTooHigh,
        Deviation::VersionNotReset,
    ];
    each_is_found(&deviations, run::run).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planted_deviations_of_auth_are_found() {
    each_is_found(&[Deviation::RightWithoutEnd], auth::run).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planted_deviations_of_locks_and_elections_are_found() {
    each_is_found(&[Deviation::LockKeyInCapitals, Deviation::ProclamationUnobserved], recipes::run).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planted_deviations_of_maintenance_are_found() {
    let deviations = [Deviation::StatusWithoutAlarms, Deviation::HashOfNothingCompacted];
    each_is_found(&deviations, maintenance::run).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planted_deviations_of_json_are_found() {
    if missing("planted deviations", &[("DIFF_REFERENCE", Kind::Etcd)]) {
        return;
    }
    let (reference, _a) = endpoint("DIFF_REFERENCE", Kind::Etcd).await.unwrap();
    let (upstream, _b) = endpoint("DIFF_UPSTREAM", Kind::Etcd).await.unwrap();
    let run = async |through: &str, seeds_max: u64| {
        // What brings the servers to one revision is gRPC, which the proxy does not speak.
        let run = async |reference: &str, _: &str, seed: u64, steps: usize| {
            json::run_through(reference, &upstream, through, seed, steps).await
        };
        seeds_until_found(&reference, &upstream, seeds_max, run).await
    };
    let untouched = http::proxy(&upstream, |body| body).await.unwrap();
    nothing_is_found(run(&untouched.url, 1).await);
    let planted = http::proxy(&upstream, json::count_as_number).await.unwrap();
    tell("a count that is a number", run(&planted.url, SEEDS_MAX).await);
}
