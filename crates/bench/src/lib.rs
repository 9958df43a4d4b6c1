//! Load on any etcd v3 endpoint, and a table of two servers beside each other in one run.
//!
//! `tailwater bench` is `workload`: requests in a closed or an open loop (`drive`), what they measured (`report`), and
//! whether what came back was right (`validate`).
//!
//! `tailwater-bench` starts servers too. `suite` starts both in turn (A B A B …) with fresh directories, the server on one
//! CPU and this process on another, runs those workloads, and judges the ratios by targets. CPU time is the server
//! process's own, read from /proc, so that it does not depend on how busy the machine is. `stalled`, `lagging` and `tier`
//! are experiments of several phases, the last with fanouts.

mod connection;
mod drive;
mod echo;
mod lagging;
mod load;
mod messages;
mod report;
mod server;
mod stalled;
mod suite;
mod tier;
mod validate;
mod workload;

use clap::{Parser, Subcommand};

pub use crate::workload::{Arguments as LoadArguments, run as run_load};

/// Load on any etcd v3 endpoint.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// All rows of the benchmark beside etcd, with targets.
    Suite(suite::Arguments),
    /// What a client that stops reading costs the others.
    Stalled(stalled::Arguments),
    /// What a watch that starts far back, and a compaction, cost the writers.
    Lagging(lagging::Arguments),
    /// What watchers cost writes: live, stalled and far behind, beside etcd.
    Isolation(tier::isolation::Arguments),
    /// What stalled watches and lists hold while much passes them.
    Bound(tier::bound::Arguments),
    /// Memory per stream, per watch and per key, beside etcd.
    Memory(tier::memory::Arguments),
    /// What long lists cost writes, and how much memory they take, beside etcd.
    Lists(tier::lists::Arguments),
    /// What the leader spends on fanouts below it.
    Topology(tier::topology::Arguments),
    /// How cost grows with keys, history, watchers, fanouts and time; plotted.
    Growth(tier::growth::Arguments),
    /// A server that answers puts, gets, transactions and keep-alives without doing anything: what the RPC layer costs.
    Echo(echo::Arguments),
    /// Watch clients in a process of their own; used by the experiments above.
    #[command(hide = true)]
    Clients(tier::clients::Arguments),
    /// Reads a watch once it is told on its input how far; used by `stalled`.
    #[command(hide = true)]
    Follow {
        /// URL of the server.
        #[arg(long)]
        endpoint: String,
        /// First revision.
        #[arg(long)]
        start: i64,
    },
}

/// The program `tailwater-bench`.
///
/// # Errors
/// The experiment can't be run, or a server answered something that can't be.
pub async fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Suite(arguments) => suite::run(arguments).await,
        Command::Stalled(arguments) => stalled::run(arguments).await,
        Command::Lagging(arguments) => lagging::run(arguments).await,
        Command::Isolation(arguments) => tier::isolation::run(arguments).await,
        Command::Bound(arguments) => tier::bound::run(arguments).await,
        Command::Memory(arguments) => tier::memory::run(arguments).await,
        Command::Lists(arguments) => tier::lists::run(arguments).await,
        Command::Topology(arguments) => tier::topology::run(arguments).await,
        Command::Growth(arguments) => tier::growth::run(arguments).await,
        Command::Echo(arguments) => echo::run(arguments).await,
        Command::Clients(arguments) => tier::clients::run(arguments).await,
        Command::Follow { endpoint, start } => stalled::follow_process(&endpoint, start).await,
    }
}
