//! What watchers cost writes.
//!
//! In each round both servers start afresh, and puts at half of the greatest rate go on under one scenario after the
//! other: nobody watches (twice: how much two alike phases differ is the noise), live watchers on disjoint ranges, each put
//! matched by one of them, stalled watchers of everything, and a watch that starts far back.

use std::time::Duration;

use clap::Args;

use super::Common;
use super::clients::{Arguments as Watching, Clients, Mode};
use super::figures::Figures;
use super::group::Group;
use super::puts::Target;
use crate::server::Program;
use crate::stalled::{current_revision, millis};

const PREFIX: &str = "/iso/";
const BASE: &str = "nobody";
const AGAIN: &str = "nobody, again";
/// How long stalled clients get events before their phase begins: then nothing more goes to them.
const STALLING: Duration = Duration::from_secs(4);

/// Puts at the rate before the first phase.
const WARM_UP: Duration = Duration::from_secs(5);
/// A watch that is not live by then is not waited for; the table shows this time.
const LIVE_WITHIN: Duration = Duration::from_secs(45);

/// The experiment's arguments.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Rounds, each of which starts the servers afresh.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each phase.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Numbers of live watchers.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000")]
    live: Vec<u64>,
    /// Number of stalled watchers; 0: none.
    #[arg(long, default_value_t = 1000)]
    stalled: u64,
    /// Revisions that one watch starts back; 0: none.
    #[arg(long, default_value_t = 500_000)]
    behind: u64,
    /// Connections of watchers.
    #[arg(long, default_value_t = 100)]
    connections: usize,
    /// Keys that are put.
    #[arg(long, default_value_t = 10_000)]
    keys: u64,
    /// Bytes of each value.
    #[arg(long, default_value_t = 256)]
    value_bytes: usize,
    /// Puts per second; 0: half of the greatest rate, found in the first round.
    #[arg(long, default_value_t = 0)]
    rate: u64,
}

struct Experiment {
    arguments: Arguments,
    figures: Figures,
}

/// Runs all rounds and prints medians, ratios and the verdict.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    arguments.common.begin()?;
    anyhow::ensure!(arguments.rounds > 0 && arguments.keys > 0, "--rounds and --keys must be at least 1");
    let mut experiment = Experiment { arguments, figures: Figures::default() };
    let mut rates: Vec<u64> = Vec::new();
    for round in 0..experiment.arguments.rounds {
        for (at, program) in experiment.arguments.common.programs()?.iter().enumerate() {
            eprintln!("round {} of {}: {}", round + 1, experiment.arguments.rounds, program.name);
            let rate = experiment.round(program, rates.get(at).copied().unwrap_or(experiment.arguments.rate)).await?;
            if rates.len() <= at {
                rates.push(rate);
            }
        }
    }
    experiment.print();
    Ok(())
}

impl Experiment {
    /// One round of one server; the rate.
    async fn round(&mut self, program: &Program, rate: u64) -> anyhow::Result<u64> {
        let group = Group::start(&self.arguments.common, program, &[]).await?;
        let target = Target {
            endpoint: group.members.endpoint.clone(),
            prefix: PREFIX,
            keys: self.arguments.keys,
            value_bytes: self.arguments.value_bytes,
        };
        let first = current_revision(&target.endpoint).await? + 1;
        target.fill(self.arguments.behind.max(self.arguments.keys)).await?;
        let rate = if rate > 0 { rate } else { target.greatest_rate(Duration::from_secs(5)).await? / 2 };
        // What was left to do by the fill and is done with the first writes after it, is no matter of watchers.
        target.open_loop(rate, WARM_UP).await?;
        self.phase(program, &group, &target, rate, BASE, None).await?;
        for live in self.arguments.live.clone() {
            let watching = Watching { streams: live, ranges: live.min(self.arguments.keys), ..self.watching(&group) };
            let clients = Clients::start(&watching, self.arguments.common.pin).await?;
            self.phase(program, &group, &target, rate, &format!("{live} live"), Some(clients)).await?;
        }
        self.phase(program, &group, &target, rate, AGAIN, None).await?;
        if self.arguments.stalled > 0 {
            let stalled = self.arguments.stalled;
            let watching = Watching { streams: stalled, mode: Mode::Stalled, ..self.watching(&group) };
            let clients = Clients::start(&watching, self.arguments.common.pin).await?;
            target.open_loop(rate, STALLING).await?;
            self.phase(program, &group, &target, rate, &format!("{stalled} stalled"), Some(clients)).await?;
        }
        if self.arguments.behind > 0 {
            self.behind(program, &group, &target, rate, first).await?;
        }
        group.stop().await?;
        Ok(rate)
    }

    fn watching(&self, group: &Group) -> Watching {
        Watching {
            endpoints: group.readers(),
            connections: self.arguments.connections,
            streams: 1,
            watches: 1,
            mode: Mode::Live,
            prefix: PREFIX.to_owned(),
            keys: self.arguments.keys,
            ranges: 1,
            start: 0,
            live_at: 0,
        }
    }

    fn behind_name(&self) -> String {
        format!("one {} back", self.arguments.behind)
    }

    async fn behind(
        &mut self,
        program: &Program,
        group: &Group,
        target: &Target,
        rate: u64,
        first: i64,
    ) -> anyhow::Result<()> {
        let last = current_revision(&target.endpoint).await?;
        let watching = Watching { connections: 1, start: first, live_at: last, ..self.watching(group) };
        let mut clients = Clients::start(&watching, self.arguments.common.pin).await?;
        let name = self.behind_name();
        let live = tokio::spawn(async move {
            let line = tokio::time::timeout(LIVE_WITHIN, clients.line()).await;
            (line, clients)
        });
        self.phase(program, group, target, rate, &name, None).await?;
        let (line, clients) = live.await?;
        let seconds = match line {
            Ok(line) => line?.trim_start_matches("live ").parse::<f64>()? / 1000.0,
            Err(_) => LIVE_WITHIN.as_secs_f64(),
        };
        self.figures.add(program.name, &name, "live after s", seconds);
        clients.stop().await
    }

    async fn phase(
        &mut self,
        program: &Program,
        group: &Group,
        target: &Target,
        rate: u64,
        name: &str,
        mut clients: Option<Clients>,
    ) -> anyhow::Result<()> {
        if clients.is_none() && name != self.behind_name() {
            group.settle().await?;
        }
        let before = group.cpu_seconds()?;
        let events = match &mut clients {
            Some(clients) => clients.count().await?,
            None => 0,
        };
        let measured = target.open_loop(rate, Duration::from_secs(self.arguments.seconds)).await?;
        let after = group.cpu_seconds()?;
        anyhow::ensure!(measured.failed == 0, "{}: {} puts failed", program.name, measured.failed);
        #[expect(clippy::cast_precision_loss, reason = "figures for people")]
        let per_write = |seconds: f64| seconds * 1e6 / measured.latency.len().max(1) as f64;
        let add = |figures: &mut Figures, figure, value| figures.add(program.name, name, figure, value);
        #[expect(clippy::cast_precision_loss, reason = "figures for people")]
        add(&mut self.figures, "puts/s", rate as f64);
        let p99 = millis(measured.latency.value_at_quantile(0.99));
        let consensus = per_write(after.0 - before.0);
        eprintln!("  {name}: {rate} puts/s, p99 {p99:.2} ms, consensus {consensus:.1} us/put");
        add(&mut self.figures, "p50 ms", millis(measured.latency.value_at_quantile(0.5)));
        add(&mut self.figures, "p99 ms", p99);
        add(&mut self.figures, "left late p99 ms", millis(measured.lateness.value_at_quantile(0.99)));
        add(&mut self.figures, "consensus us/put", consensus);
        add(&mut self.figures, "fanouts us/put", per_write(after.1 - before.1));
        if let Some(mut clients) = clients {
            #[expect(clippy::cast_precision_loss, reason = "figures for people")]
            let delivered = (clients.count().await? - events) as f64 / measured.latency.len().max(1) as f64;
            add(&mut self.figures, "events/put", delivered);
            clients.stop().await?;
        }
        Ok(())
    }

    #[expect(clippy::print_stdout, reason = "the result of the command")]
    fn print(&self) {
        println!("Medians of {} rounds, {} s a phase.", self.arguments.rounds, self.arguments.seconds);
        self.figures.print(&[
            "puts/s",
            "p50 ms",
            "p99 ms",
            "left late p99 ms",
            "consensus us/put",
            "fanouts us/put",
            "events/put",
            "live after s",
        ]);
        self.figures.print_ratios(BASE, &["p99 ms", "consensus us/put"]);
        println!("\n\"{AGAIN}\" ÷ \"{BASE}\" is the noise (A/A).\n");
        self.figures.print_verdicts("tailwater", BASE, AGAIN);
    }
}
