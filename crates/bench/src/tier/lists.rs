//! What long lists cost writes, and how much memory they take.
//!
//! A store of many keys, puts at half of the greatest rate beside it, and in turn: no list (twice), closed-loop unary lists
//! of everything, and RangeStream lists. Lists go to a fanout (etcd: to a follower); an etcd without RangeStream has only
//! the unary ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Args;

use super::Common;
use super::clients::{Arguments as Listing, Clients, Mode};
use super::figures::Figures;
use super::group::Group;
use super::puts::Target;
use crate::server::Program;
use crate::stalled::millis;

const LISTED: &str = "/list/";
const BASE: &str = "no list";
const AGAIN: &str = "no list, again";
const UNARY: &str = "unary";
const STREAMED: &str = "RangeStream";

const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);
/// Puts at the rate before the first phase: until what a fanout keeps of them is full.
const WARM_UP: Duration = Duration::from_secs(20);

/// The experiment's arguments.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Rounds, each of which starts the servers afresh.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each phase: long enough that each sees the store flush.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Keys that are listed.
    #[arg(long, default_value_t = 500_000)]
    keys: u64,
    /// Bytes of each value.
    #[arg(long, default_value_t = 100)]
    value_bytes: usize,
    /// Lists at a time.
    #[arg(long, default_value_t = 8)]
    lists: usize,
}

/// Runs all rounds and prints the tables.
#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    arguments.common.begin()?;
    let mut figures = Figures::default();
    let mut rates: Vec<u64> = Vec::new();
    for round in 0..arguments.rounds {
        for (at, program) in arguments.common.programs()?.iter().enumerate() {
            eprintln!("round {} of {}: {}", round + 1, arguments.rounds, program.name);
            let rate = one_round(&arguments, program, rates.get(at).copied(), &mut figures).await?;
            if rates.len() <= at {
                rates.push(rate);
            }
        }
    }
    println!("Medians of {} rounds, {} lists of {} keys at a time.", arguments.rounds, arguments.lists, arguments.keys);
    let columns = [
        "puts/s",
        "p50 ms",
        "p99 ms",
        "answer p99 ms",
        "left late p99 ms",
        "consensus us/put",
        "lists/s",
        "most MiB above",
    ];
    figures.print(&columns);
    figures.print_ratios(BASE, &["p99 ms", "answer p99 ms", "consensus us/put"]);
    println!("\n\"{AGAIN}\" ÷ \"{BASE}\" is the noise (A/A).\n");
    figures.print_verdicts("tailwater", BASE, AGAIN);
    let above = figures.get("tailwater", STREAMED, "most MiB above").median();
    println!(
        "{}: RangeStream lists take {above:.0} MiB above the store",
        if above <= 64.0 { "kept" } else { "MISSED" }
    );
    Ok(())
}

async fn one_round(
    arguments: &Arguments,
    program: &Program,
    rate: Option<u64>,
    figures: &mut Figures,
) -> anyhow::Result<u64> {
    let group = Arc::new(Group::start(&arguments.common, program, &[]).await?);
    let endpoint = group.members.endpoint.clone();
    let store =
        Target { endpoint: endpoint.clone(), prefix: LISTED, keys: arguments.keys, value_bytes: arguments.value_bytes };
    store.fill(arguments.keys).await?;
    let target = Target { endpoint, prefix: "/put/", keys: 10_000, value_bytes: 256 };
    // Long enough that whatever grows with puts has grown.
    let greatest = target.greatest_rate(Duration::from_secs(5)).await?;
    let rate = rate.unwrap_or(greatest / 2);
    group.settle().await?;
    target.open_loop(rate, WARM_UP).await?;
    for scenario in [BASE, UNARY, AGAIN, STREAMED] {
        if scenario == STREAMED && program.name == "etcd" {
            continue;
        }
        phase(arguments, program, &group, (&target, rate), scenario, figures).await?;
    }
    if let Some(group) = Arc::into_inner(group) {
        group.stop().await?;
    }
    Ok(rate)
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
async fn phase(
    arguments: &Arguments,
    program: &Program,
    group: &Arc<Group>,
    (target, rate): (&Target, u64),
    scenario: &str,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let most = Arc::new(AtomicU64::new(0));
    // Of etcd's members the last is a follower.
    let reader = group.readers().pop().expect("a group has a reader");
    let before = group.bytes_of(&reader)?;
    let mode = match scenario {
        UNARY => Some(Mode::Unary),
        STREAMED => Some(Mode::Streamed),
        _ => None,
    };
    let mut clients = match mode {
        Some(mode) => Some(Clients::start(&listing(arguments, reader.clone(), mode), arguments.common.pin).await?),
        None => None,
    };
    let sampler = {
        let (group, most) = (Arc::clone(group), Arc::clone(&most));
        tokio::spawn(async move {
            loop {
                // Elsewhere, since it waits for another program: on the one thread that sends puts it would hold them up.
                let (group, reader) = (Arc::clone(&group), reader.clone());
                let bytes = tokio::task::spawn_blocking(move || group.bytes_of(&reader)).await??;
                most.fetch_max(bytes, Ordering::Relaxed);
                tokio::time::sleep(SAMPLE_INTERVAL).await;
            }
            #[expect(unreachable_code, reason = "it names the error's type")]
            anyhow::Ok(())
        })
    };
    let cpu = group.cpu_seconds()?.0;
    let measured = target.open_loop(rate, Duration::from_secs(arguments.seconds)).await?;
    let cpu = group.cpu_seconds()?.0 - cpu;
    sampler.abort();
    drop(sampler.await);
    let finished = match &mut clients {
        Some(clients) => clients.count().await?,
        None => 0,
    };
    if let Some(clients) = clients {
        clients.stop().await?;
    }
    anyhow::ensure!(measured.failed == 0, "{}: {} puts failed", program.name, measured.failed);
    let above = most.load(Ordering::Relaxed).saturating_sub(before) as f64 / f64::from(1 << 20);
    let p99 = millis(measured.latency.value_at_quantile(0.99));
    eprintln!("  {scenario}: {rate} puts/s, p99 {p99:.2} ms, {above:.0} MiB above");
    for (figure, value) in [
        ("puts/s", rate as f64),
        ("p50 ms", millis(measured.latency.value_at_quantile(0.5))),
        ("p99 ms", p99),
        ("answer p99 ms", millis(measured.answer.value_at_quantile(0.99))),
        ("left late p99 ms", millis(measured.lateness.value_at_quantile(0.99))),
        ("consensus us/put", cpu * 1e6 / measured.latency.len().max(1) as f64),
        ("lists/s", finished as f64 / arguments.seconds as f64),
        ("most MiB above", above),
    ] {
        figures.add(program.name, scenario, figure, value);
    }
    Ok(())
}

fn listing(arguments: &Arguments, reader: String, mode: Mode) -> Listing {
    Listing {
        endpoints: vec![reader],
        connections: arguments.lists,
        streams: arguments.lists as u64,
        watches: 1,
        mode,
        prefix: LISTED.to_owned(),
        keys: arguments.keys,
        ranges: 1,
        start: 0,
        live_at: 0,
    }
}
