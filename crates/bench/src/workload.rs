//! `tailwater bench`: load on any etcd v3 endpoint.

mod kube;
mod reads;
mod watches;
pub(crate) mod writes;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use tokio::task::AbortHandle;

use crate::connection::{Access, Connection};
use crate::drive::Pace;
use crate::report::Report;

/// How often the count is shown while a run is under way.
const PROGRESS_PERIOD: Duration = Duration::from_secs(1);

/// What all workloads take.
#[derive(Args, Clone, Debug)]
pub(crate) struct Common {
    /// Client URLs, http or https; connections go to them in turn.
    #[arg(long, value_delimiter = ',', default_value = "http://127.0.0.1:2379", global = true)]
    endpoints: Vec<String>,
    /// Connections of all clients together.
    #[arg(long, default_value_t = 1, global = true)]
    conns: usize,
    /// Clients, each with one request at a time.
    #[arg(long, default_value_t = 1, global = true)]
    clients: usize,
    /// Requests per second of all clients together, due whatever becomes of those before; 0: a client sends when it has
    /// its answer.
    #[arg(long, default_value_t = 0, global = true)]
    rate: u64,
    /// Seconds.
    #[arg(long, default_value_t = 10, global = true)]
    seconds: u64,
    /// End after so many requests, if that is sooner.
    #[arg(long, global = true)]
    total: Option<u64>,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    /// Check every event and every linearizable read.
    #[arg(long, global = true)]
    validate: bool,
    #[command(flatten)]
    access: Access,
}

/// Arguments of `tailwater bench`.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    #[command(subcommand)]
    workload: Workload,
    #[command(flatten)]
    common: Common,
}

#[derive(Subcommand, Clone, Debug)]
enum Workload {
    /// Puts.
    Put(writes::Put),
    /// Kubernetes' compare-and-put: a transaction that compares mod_revision, puts, and otherwise reads.
    TxnPut(writes::TxnPut),
    /// One lease object per node, renewed by compare-and-put in turn.
    LeaseFlood(writes::LeaseFlood),
    /// Keep-alives of leases, each client on a stream of its own.
    Keepalive(writes::Keepalive),
    /// Gets of single keys.
    Range(reads::Range),
    /// Lists of a prefix: whole, in pages, or as a stream.
    List(reads::List),
    /// Watchers and writers: how many events per second arrive, and how late.
    Watch(watches::Watch),
    /// What watch streams whose client does not read cost writers.
    Stalled(watches::Stalled),
    /// What a watch that begins far back costs writers, and how fast it catches up.
    Lagging(watches::Lagging),
    /// What the API servers of a Kubernetes cluster of so many nodes send.
    Kube(kube::Kube),
}

/// Runs one workload and prints what it measured.
///
/// # Errors
/// The endpoint can't be reached, or answered something that can't be; and, after the report, when requests failed or
/// answers were wrong.
#[expect(clippy::print_stdout, reason = "the result of the command")]
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let json = arguments.common.json;
    let report = measure(arguments).await?;
    if json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{}", report.text());
    }
    anyhow::ensure!(report.is_good(), "requests failed or answers were wrong");
    Ok(())
}

/// Runs one workload.
pub(crate) async fn measure(arguments: Arguments) -> anyhow::Result<Report> {
    let Arguments { workload, common } = arguments;
    anyhow::ensure!(common.conns > 0 && common.clients > 0, "--conns and --clients must be at least 1");
    Ok(match workload {
        Workload::Put(put) => put.run(&common).await?,
        Workload::TxnPut(txn) => txn.run(&common).await?,
        Workload::LeaseFlood(flood) => flood.run(&common).await?,
        Workload::Keepalive(keepalive) => keepalive.run(&common).await?,
        Workload::Range(range) => range.run(&common).await?,
        Workload::List(list) => list.run(&common).await?,
        Workload::Watch(watch) => watch.run(&common).await?,
        Workload::Stalled(stalled) => stalled.run(&common).await?,
        Workload::Lagging(lagging) => lagging.run(&common).await?,
        Workload::Kube(kube) => kube.run(&common).await?,
    })
}

impl Common {
    fn pace(&self) -> Pace {
        Pace { rate: self.rate, total: self.total, time: Duration::from_secs(self.seconds) }
    }

    /// The connections, spread over the endpoints.
    async fn channels(&self) -> anyhow::Result<Vec<Connection>> {
        self.channels_of(self.conns).await
    }

    async fn channels_of(&self, count: usize) -> anyhow::Result<Vec<Connection>> {
        self.access.connect(&self.endpoints, count).await
    }

    /// Shows the count on standard error until it is dropped; nothing when that is no terminal.
    fn progress(&self, unit: &'static str) -> Progress {
        let done = Arc::new(AtomicU64::new(0));
        let shown = Arc::clone(&done);
        let time = self.seconds;
        let task = std::io::IsTerminal::is_terminal(&std::io::stderr()).then(|| {
            tokio::spawn(async move {
                let begin = Instant::now();
                let mut before = 0;
                loop {
                    tokio::time::sleep(PROGRESS_PERIOD).await;
                    let now = shown.load(Ordering::Relaxed);
                    eprint!("\r{:>4} of {time} s: {now} {unit}, {}/s   ", begin.elapsed().as_secs(), now - before);
                    before = now;
                }
            })
            .abort_handle()
        });
        Progress { done, task }
    }
}

/// A count that is shown while it grows.
struct Progress {
    done: Arc<AtomicU64>,
    task: Option<AbortHandle>,
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
            eprint!("\r{:60}\r", "");
        }
    }
}

/// The requests of all clients together, for a report.
async fn measured<C: crate::drive::Client>(
    common: &Common,
    unit: &'static str,
    clients: Vec<C>,
) -> anyhow::Result<crate::drive::Measured> {
    let progress = common.progress(unit);
    crate::drive::drive(clients, common.pace(), &progress.done).await
}

/// Adds what a validator found, once its watchers have what was acknowledged, or nothing comes any more.
async fn conclude(report: &mut Report, validator: &crate::validate::Validator) {
    const QUIET: Duration = Duration::from_secs(3);
    let (mut seen, mut since) = (validator.events_seen(), Instant::now());
    while !validator.is_settled() && since.elapsed() < QUIET {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = validator.events_seen();
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
    let (count, told) = validator.finish();
    report.violations = Some(count);
    report.violations_told = told;
}
