//! Load on any etcd v3 endpoint, and a table of two servers beside each other in one run.
//!
//! `tailwater bench` is `workload`: requests in a closed or an open loop (`drive`), what they measured (`report`), and
//! whether what came back was right (`validate`).
//!
//! `tailwater-bench` starts servers too. `compare` starts both in turn (A B A B …) with fresh directories, the server on
//! one CPU and this process on another, runs each workload for a fixed time, and prints ratios of medians. CPU time is
//! the server process's own, read from /proc, so that it does not depend on how busy the machine is. `tier` are the
//! experiments with fanouts.

mod drive;
mod lagging;
mod load;
mod report;
mod server;
mod stalled;
mod suite;
mod table;
mod tier;
mod validate;
mod workload;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::load::Workload;
pub use crate::workload::{Arguments as LoadArguments, run as run_load};

/// Load on any etcd v3 endpoint.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs one workload on a running server.
    Run {
        /// URL of the server, e.g. http://127.0.0.1:2379.
        #[arg(long)]
        endpoint: String,
        /// What to do.
        #[arg(long)]
        workload: Workload,
        /// For how many seconds.
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
    /// Starts both servers in turn and prints a table.
    Compare {
        /// The tailwater binary.
        #[arg(long)]
        tailwater: PathBuf,
        /// The etcd binary.
        #[arg(long)]
        etcd: PathBuf,
        /// Rounds per server.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Seconds per workload.
        #[arg(long, default_value_t = 5)]
        seconds: u64,
        /// Members of each group; the load goes to the leader, and what the servers use is summed.
        #[arg(long, default_value_t = 1)]
        members: usize,
        /// Only this workload.
        #[arg(long)]
        only: Option<Workload>,
        /// Directory for the servers' data; its disk is the one that is measured.
        #[arg(long)]
        data: Option<PathBuf>,
        /// Pin the server to CPU 0 and this process to CPU 1 (needs taskset).
        #[arg(long)]
        pin: bool,
    },
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
        Command::Run { endpoint, workload, seconds } => {
            let sample = load::run(&endpoint, workload, Duration::from_secs(seconds)).await?;
            table::print_sample(workload, &sample);
            Ok(())
        }
        Command::Compare { tailwater, etcd, rounds, seconds, members, only, data, pin } => {
            anyhow::ensure!(rounds > 0 && members > 0, "--rounds and --members must be at least 1");
            if pin {
                server::pin_self().context("pinning this process; leave out --pin where taskset is missing")?;
            }
            let workloads = only.map_or_else(|| Workload::ALL.to_vec(), |one| vec![one]);
            let data = data.unwrap_or_else(std::env::temp_dir);
            let programs = [server::Program::tailwater(tailwater), server::Program::etcd(etcd)];
            let mut table = table::Table::default();
            for round in 0..rounds {
                for program in &programs {
                    for &workload in &workloads {
                        eprintln!("round {} of {rounds}: {} {workload:?}", round + 1, program.name);
                        let mut running = server::Running::start_group(program, members, &data, pin, &[]).await?;
                        let prepared = load::prepare(&running.endpoint, workload).await?;
                        let before = running.usage()?;
                        let sample = load::measure(prepared, Duration::from_secs(seconds)).await?;
                        let used = running.usage()?.since(&before);
                        running.stop().await?;
                        table.add(program.name, workload, sample, used);
                    }
                }
            }
            table.print();
            Ok(())
        }
        Command::Suite(arguments) => suite::run(arguments).await,
        Command::Stalled(arguments) => stalled::run(arguments).await,
        Command::Lagging(arguments) => lagging::run(arguments).await,
        Command::Isolation(arguments) => tier::isolation::run(arguments).await,
        Command::Bound(arguments) => tier::bound::run(arguments).await,
        Command::Memory(arguments) => tier::memory::run(arguments).await,
        Command::Lists(arguments) => tier::lists::run(arguments).await,
        Command::Topology(arguments) => tier::topology::run(arguments).await,
        Command::Clients(arguments) => tier::clients::run(arguments).await,
        Command::Follow { endpoint, start } => stalled::follow_process(&endpoint, start).await,
    }
}
