//! The one source of chance of a world.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Numbers that follow from a seed.
#[derive(Debug)]
pub(crate) struct Random {
    rng: StdRng,
}

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self { rng: StdRng::seed_from_u64(seed) }
    }

    /// Any number but 0.
    pub(crate) fn any(&mut self) -> u64 {
        self.rng.random_range(1..=u64::MAX)
    }

    /// From `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        self.rng.random_range(low..=high)
    }

    /// Below `count`, which is not 0.
    pub(crate) fn index(&mut self, count: usize) -> usize {
        self.rng.random_range(0..count)
    }

    /// True so many times in a thousand.
    pub(crate) fn chance(&mut self, per_mille: u32) -> bool {
        self.rng.random_ratio(per_mille.min(1000), 1000)
    }
}
