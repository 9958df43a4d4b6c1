//! What every decoder of bytes from outside must hold, whatever the bytes are.
//!
//! A [`Target`] is a function of bytes that panics when something does not hold: not only that nothing panics, but that
//! what was decoded is the same when it is encoded and decoded again, or that two decoders agree. libFuzzer runs the
//! targets (`fuzz/`, `scripts/fuzz.sh`); the tests of this crate replay the committed seeds and everything that was once
//! found (`fuzz/seeds`, `fuzz/regressions`), so that a fixed bug stays fixed without a fuzzer.
//!
//! Decoders that are private are reached through the `fuzzing` module of their crate, which nothing else may use.
//!
//! Start at [`TARGETS`].

mod certificates;
mod commands;
mod connections;
mod frames;
mod json;
mod messages;
mod nodes;
mod patches;
mod raft_log;
mod rows;
mod snapshots;
mod texts;
mod txns;

/// One decoder, or a few that belong together.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Of the program in `fuzz/fuzz_targets` and of the folders with its inputs.
    pub name: &'static str,
    /// Panics when something does not hold. `true` when the bytes were what the decoder is for.
    pub check: fn(&[u8]) -> bool,
    /// Inputs to begin with, from real encodings; the check is `true` for each.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    // What clients send.
    Target { name: "connections", check: connections::check, seeds: connections::seeds },
    Target { name: "messages", check: messages::check, seeds: messages::seeds },
    Target { name: "frames", check: frames::check, seeds: frames::seeds },
    Target { name: "txns", check: txns::check, seeds: txns::seeds },
    Target { name: "json", check: json::check, seeds: json::seeds },
    Target { name: "headers", check: texts::headers, seeds: texts::header_seeds },
    Target { name: "tokens", check: texts::tokens, seeds: texts::token_seeds },
    Target { name: "certificates", check: certificates::check, seeds: certificates::seeds },
    // What other nodes send.
    Target { name: "commands", check: commands::check, seeds: commands::seeds },
    Target { name: "tail", check: nodes::tail, seeds: nodes::tail_seeds },
    Target { name: "nodes", check: nodes::others, seeds: nodes::other_seeds },
    Target { name: "watch_heads", check: nodes::watch_heads, seeds: nodes::watch_head_seeds },
    // What lies on disks.
    Target { name: "snapshots", check: snapshots::check, seeds: snapshots::seeds },
    Target { name: "rows", check: rows::check, seeds: rows::seeds },
    Target { name: "state", check: rows::state, seeds: rows::state_seeds },
    Target { name: "raft_log", check: raft_log::check, seeds: raft_log::seeds },
    // What operators write.
    Target { name: "config", check: texts::config, seeds: texts::config_seeds },
];

/// Runs the check of a target.
///
/// # Panics
/// Something does not hold, or there is no such target.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a name of TARGETS");
    let _known = (target.check)(data);
}
