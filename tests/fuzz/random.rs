//! What everything is drawn from, and bytes that were something once.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Numbers that have been the edge of something.
const NUMBERS: [i64; 16] =
    [0, 1, -1, 2, 3, 5, 7, 100, 127, 128, 1 << 31, (1 << 32) - 1, 9_000_000_000, 9_000_000_001, i64::MAX, i64::MIN];
const KEYS: [&[u8]; 14] = [
    b"",
    b"a",
    b"b",
    b"a/b",
    b"fuzz/1",
    b"fuzz/2",
    b"fuzz/",
    b"fuzz0",
    b"\0",
    b"\0\0",
    b"\xff",
    b"\xff\xff",
    b"z",
    b"l",
];
const TEXTS: [&str; 14] = [
    "",
    "a",
    "u",
    "r",
    "nobody",
    "limited",
    "root",
    "3.5",
    "3.6.0",
    "http://127.0.0.1:1",
    "http://127.0.0.1:2",
    "\u{e9}\u{1f980}\0",
    "x'\"\\%s%n{}",
    "a very long name that is here to be long, and to be said again and again, until nobody listens any more",
];

/// Draws from one seed.
pub(crate) struct Random(pub(crate) StdRng);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// True once in `n`.
    pub(crate) fn one_in(&mut self, n: u32) -> bool {
        self.0.random_range(0..n) == 0
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0.random_range(0..end)
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.0.random()
    }

    pub(crate) fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    pub(crate) fn number(&mut self) -> i64 {
        match self.below(8) {
            0..4 => *self.pick(&NUMBERS),
            4..7 => self.0.random_range(0..2000),
            _ => self.0.random(),
        }
    }

    /// Mostly a key; at times a value of a few kilobytes.
    pub(crate) fn bytes(&mut self) -> Vec<u8> {
        match self.below(40) {
            0..30 => self.pick(&KEYS).to_vec(),
            30..36 => self.noise(24),
            36..39 => self.noise(2 << 10),
            _ => {
                let len = self.below(64 << 10);
                vec![b'v'; len]
            }
        }
    }

    pub(crate) fn text(&mut self) -> String {
        self.pick(&TEXTS).to_string()
    }

    /// Below `len_max` random bytes.
    pub(crate) fn noise(&mut self, len_max: usize) -> Vec<u8> {
        let len = self.below(len_max.max(1));
        (0..len).map(|_| self.0.random()).collect()
    }

    /// A few changes.
    pub(crate) fn changed(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len() + 1);
            match self.below(6) {
                0 => bytes.truncate(at),
                1 => {
                    let noise = self.noise(8);
                    bytes.splice(at..at, noise);
                }
                2 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                3 if at < bytes.len() => bytes[at] = *self.pick(&[0, 1, 0x7f, 0x80, 0xff]),
                4 => {
                    let end = at + self.below(bytes.len() + 1 - at);
                    let part = bytes[at..end].to_vec();
                    bytes.splice(at..at, part);
                }
                _ => {
                    let end = at + self.below(bytes.len() + 1 - at).min(8);
                    bytes.drain(at..end);
                }
            }
        }
        bytes
    }
}
