//! Random worlds: writes, compactions and watchers of all kinds, checked against everything that was written.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "tests")]

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use support::World;
use support::worlds::{Reader, run};
use tailwater_fanout::{Fanout, FanoutConfig};

/// Worlds per test; `SEED` runs one, `SEEDS` as many as it says.
const SEEDS: u64 = 160;

fn attach(world: &Arc<World>, config: FanoutConfig) -> Reader {
    Reader { fanout: Fanout::start(config, world.clone()), disturb: Box::new(|_| {}), scoped: false }
}

fn run_all(seeds: impl Iterator<Item = u64>) {
    for seed in seeds {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(seed, &attach))) {
            eprintln!("SEED={seed}: replay with SEED={seed} cargo test -p tailwater-fanout --test random");
            std::panic::resume_unwind(panic);
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn watchers_of_even_seeds_get_what_etcd_guarantees() {
    match number("SEED") {
        Some(seed) => run_all(std::iter::once(seed)),
        None => run_all((0..number("SEEDS").unwrap_or(SEEDS)).map(|seed| 2 * seed)),
    }
}

#[test]
fn watchers_of_odd_seeds_get_what_etcd_guarantees() {
    if number("SEED").is_none() {
        run_all((0..number("SEEDS").unwrap_or(SEEDS)).map(|seed| 2 * seed + 1));
    }
}
