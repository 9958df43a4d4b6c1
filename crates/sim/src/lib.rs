//! A whole cluster of production cores on one thread, from one seed.
//!
//! A *world* holds the members of a group, their disks and the network between them, clients that write, read and watch,
//! and an oracle that judges every answer. Nothing in it knows the time: each step of each thread of each member is taken
//! from one queue in the order of virtual time, and every choice comes from one generator. So a seed is a whole history,
//! and running it again shows the same history, byte for byte.
//!
//! # What is real and what is not
//!
//! Real: raft-rs and the replica's core, the raft log (its bytes, its recovery), the apply machine, the event log with its
//! RocksDB, the tail, the fanout with its store, registry and delivery, and the handle through which gateways reach the
//! write plane. Their threads are not started: [`tailwater_consensus::Parts`] and [`tailwater_fanout::FanoutParts`] take a
//! turn of each when the world says so. What waits by tokio's time waits on a clock that the world moves.
//!
//! Simulated: the network ([`tailwater_consensus::PeerTransport`]), the disk of the raft log (a directory in memory that
//! loses and tears what was not synced), the operating system's scheduling, the clocks, and the gateway's routing. A crash
//! drops a member without a flush: RocksDB has no log of its own, so its state falls back to the last flush.
//!
//! # Running it
//!
//! `make sim SEED=7` replays a seed with a readable trace, `make sim SEEDS=1..1000` runs a range. The library's entry is
//! [`run`]; [`Report::violation`] says what did not hold.

mod link;
mod member;
mod network;
mod node;
mod operation;
mod oracle;
mod plan;
mod random;
mod trace;
mod violation;
mod world;

pub use plan::{Bug, WorldConfig};
pub use trace::Sink;
pub use violation::{Guarantee, Violation};
pub use world::Report;

/// Runs a world from its seed to its end. `sink` takes the lines of a readable trace.
///
/// A panic of the production code is a violation like any other.
///
/// # Errors
/// No directory could be made.
pub fn run(config: WorldConfig, sink: Option<Sink>) -> std::io::Result<Report> {
    let world = world::World::new(config, sink)?;
    let run = std::panic::AssertUnwindSafe(|| world.run());
    Ok(std::panic::catch_unwind(run).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("unknown panic");
        let violation = Violation { guarantee: Guarantee::Sound, what: format!("panic: {text}") };
        Report { violation: Some(violation), ..Report::default() }
    }))
}
