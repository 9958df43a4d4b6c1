//! Worlds from fixed and from fresh seeds.
#![allow(clippy::unwrap_used)]

use tailwater_sim::{Bug, WorldConfig, run};

/// Operations of a world in debug builds.
const OPERATIONS: u64 = 300;

/// In so many seeds each planted bug is found.
const SEEDS_OF_A_BUG: u64 = 60;

fn config(seed: u64) -> WorldConfig {
    WorldConfig { seed, operations: OPERATIONS, bug: None }
}

#[test]
fn a_seed_is_a_history() {
    for seed in [1, 2] {
        let (first, second) = (run(config(seed), None).unwrap(), run(config(seed), None).unwrap());
        assert_eq!(first, second, "seed {seed}");
        assert_eq!(first.violation, None, "seed {seed}");
    }
}

#[test]
fn all_guarantees_hold() {
    let fresh: u64 =
        std::env::var("SEED").map_or_else(|_| rand::random_range(1 << 20..1 << 40), |seed| seed.parse().unwrap());
    eprintln!("fresh seeds from {fresh} on");
    for seed in (1..=10).chain(fresh..fresh + 3) {
        let report = run(config(seed), None).unwrap();
        assert_eq!(report.violation, None, "make sim SEED={seed} OPERATIONS={OPERATIONS}");
        assert!(report.answered > 0 && report.revisions > 0, "seed {seed}: {report:?}");
    }
}

#[test]
fn planted_bugs_are_found() {
    for bug in Bug::ALL {
        let found = (1..=SEEDS_OF_A_BUG).find_map(|seed| {
            // A state is copied only when the log was trimmed meanwhile.
            let operations = if bug == Bug::StateBeforeNumbers { 2 * OPERATIONS } else { OPERATIONS };
            let report = run(WorldConfig { bug: Some(bug), seed, operations }, None).unwrap();
            report.violation.map(|violation| (seed, violation))
        });
        let (seed, violation) = found.unwrap_or_else(|| panic!("{bug:?} is not found in {SEEDS_OF_A_BUG} seeds"));
        eprintln!("{bug:?}: seed {seed}: {violation}");
    }
}
