//! How cost grows: CPU per put and memory against keys, history, watchers and fanouts, and the p99 of puts over time
//! under the model of Kubernetes, with its compactions.

mod plot;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser};
use tailwater_api::etcdserverpb as pb;

use super::Common;
use super::group::{Fanout, Group};
use super::puts::Target;
use crate::connection::Connection;
use crate::load::{connect, watch};
use crate::messages::Messages;
use crate::server::{Program, Running};
use crate::stalled::millis;
use crate::workload;
use plot::{Line, Panel, draw};

/// The experiment's arguments.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Puts per second while the cost is measured, alike for both servers.
    #[arg(long, default_value_t = 1000)]
    rate: u64,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Only what is plotted against this: keys, history, watchers, fanouts or time.
    #[arg(long)]
    only: Option<String>,
    /// Minutes under the model of Kubernetes; 0 leaves it out.
    #[arg(long, default_value_t = 30)]
    minutes: u64,
    /// Nodes of that model.
    #[arg(long, default_value_t = 5000)]
    nodes: u64,
    /// Directory for the plots and the tables.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

/// What grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Axis {
    Keys,
    History,
    Watchers,
    Fanouts,
}

const AXES: [(Axis, &str, &str, &[u64]); 4] = [
    (Axis::Keys, "keys", "live keys of 256 B", &[10_000, 100_000, 1_000_000]),
    (Axis::History, "history", "updates of 10,000 keys that are not compacted", &[0, 100_000, 400_000]),
    (Axis::Watchers, "watchers", "live watch streams on ranges where nothing happens", &[0, 100, 1000, 10_000]),
    (Axis::Fanouts, "fanouts", "fanouts below the leader", &[0, 1, 2, 4]),
];
/// Keys where something else grows.
const KEYS: u64 = 10_000;
const WATCH_CONNECTIONS: usize = 100;

/// One measurement.
struct Cost {
    cpu_micros_per_put: f64,
    p99_ms: f64,
    memory_mib: f64,
}

#[derive(Parser)]
#[command(no_binary_name = true)]
struct Load {
    #[command(flatten)]
    load: workload::Arguments,
}

/// Measures, prints the tables, and draws.
#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    arguments.common.begin()?;
    let is_wanted = |name: &str| arguments.only.as_ref().is_none_or(|only| only == name);
    anyhow::ensure!(
        is_wanted("time") || AXES.iter().any(|(_, name, ..)| is_wanted(name)),
        "--only is one of keys, history, watchers, fanouts and time"
    );
    std::fs::create_dir_all(&arguments.out).with_context(|| format!("{} can't be made", arguments.out.display()))?;
    let programs = arguments.common.programs()?;
    let mut text = String::new();
    for (axis, name, what, steps) in AXES.into_iter().filter(|(_, name, ..)| is_wanted(name)) {
        let mut costs: Vec<(&'static str, u64, Cost)> = Vec::new();
        for &step in steps {
            for program in programs.iter().filter(|program| axis != Axis::Fanouts || program.name == "tailwater") {
                eprintln!("{name} {step}: {}", program.name);
                costs.push((program.name, step, cost(&arguments, program, axis, step).await?));
            }
        }
        table(&mut text, what, &costs)?;
        draw_costs(&arguments.out.join(format!("growth-{name}.svg")), what, &programs, steps, &costs)?;
    }
    if is_wanted("time") && arguments.minutes > 0 {
        over_time(&arguments, &programs, &mut text).await?;
    }
    std::fs::write(arguments.out.join("growth.md"), &text)?;
    println!("{text}\nWritten: growth.md and growth-*.svg in {}", arguments.out.display());
    Ok(())
}

/// A fresh group, brought to this size, under a steady load.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
async fn cost(arguments: &Arguments, program: &Program, axis: Axis, step: u64) -> anyhow::Result<Cost> {
    let common = Common { fanouts: 0, ..arguments.common.clone() };
    let group = Group::start(&common, program, &[]).await?;
    let keys = if axis == Axis::Keys { step } else { KEYS };
    let history = if axis == Axis::History { step } else { 0 };
    let target = Target { endpoint: group.members.endpoint.clone(), prefix: "/put/", keys, value_bytes: 256 };
    target.fill(keys + history).await?;
    let mut fanouts = Vec::new();
    for _ in 0..if axis == Axis::Fanouts { step } else { 0 } {
        fanouts.push(Fanout::start(program, &group.members.peers[..1], common.pin, &[]).await?);
    }
    let watches = if axis == Axis::Watchers { idle_watches(&target.endpoint, step).await? } else { Vec::new() };
    group.settle().await?;
    let before = group.cpu_seconds()?.0;
    let measured = target.open_loop(arguments.rate, Duration::from_secs(arguments.seconds)).await?;
    let used = group.cpu_seconds()?.0 - before;
    anyhow::ensure!(measured.failed == 0, "{} puts failed", measured.failed);
    let cost = Cost {
        cpu_micros_per_put: used * 1e6 / measured.latency.len().max(1) as f64,
        p99_ms: millis(measured.latency.value_at_quantile(0.99)),
        memory_mib: group.members.memory_bytes()? as f64 / f64::from(1 << 20),
    };
    drop((watches, fanouts));
    group.stop().await?;
    Ok(cost)
}

/// So many streams, each with a watch of a range of its own.
async fn idle_watches(endpoint: &str, count: u64) -> anyhow::Result<Vec<Messages>> {
    let connections = connect(endpoint, WATCH_CONNECTIONS).await?;
    let mut streams = Vec::new();
    for (number, connection) in (0..count).zip(connections.iter().cycle()) {
        streams.push(idle_watch(connection, number).await?);
    }
    Ok(streams)
}

async fn idle_watch(connection: &Connection, number: u64) -> anyhow::Result<Messages> {
    let create = pb::WatchCreateRequest {
        key: format!("/idle/{number:06}/").into(),
        range_end: format!("/idle/{number:06}0").into(),
        ..Default::default()
    };
    watch(connection, vec![create]).await
}

fn table(text: &mut String, what: &str, costs: &[(&'static str, u64, Cost)]) -> anyhow::Result<()> {
    writeln!(
        text,
        "\n| server | {what} | members' CPU, us/put | put p99, ms | memory of the leader, MiB |\n|---|---|---|---|---|"
    )?;
    for (server, step, cost) in costs {
        writeln!(
            text,
            "| {server} | {step} | {:.0} | {:.2} | {:.0} |",
            cost.cpu_micros_per_put, cost.p99_ms, cost.memory_mib
        )?;
    }
    Ok(())
}

fn draw_costs(
    path: &Path,
    what: &str,
    programs: &[Program],
    steps: &[u64],
    costs: &[(&'static str, u64, Cost)],
) -> anyhow::Result<()> {
    let lines = |figure: fn(&Cost) -> f64| -> Vec<Line> {
        let of = |name: &'static str| Line {
            name,
            points: costs.iter().filter(|(server, ..)| *server == name).map(|(_, _, cost)| figure(cost)).collect(),
        };
        programs.iter().map(|program| of(program.name)).filter(|line| !line.points.is_empty()).collect()
    };
    let panels = [
        Panel { caption: "CPU of all members, us per put", lines: lines(|cost| cost.cpu_micros_per_put) },
        Panel { caption: "memory of the leader, MiB", lines: lines(|cost| cost.memory_mib) },
    ];
    let labels: Vec<String> = steps.iter().map(u64::to_string).collect();
    draw(path, what, &labels, &panels)
}

/// The p99 of all writes, minute by minute.
async fn over_time(arguments: &Arguments, programs: &[Program], text: &mut String) -> anyhow::Result<()> {
    let (minutes, nodes) = (arguments.minutes, arguments.nodes);
    let mut lines = Vec::new();
    for program in programs {
        eprintln!("{minutes} minutes of {nodes} nodes: {}", program.name);
        let mut running = Running::start(program, &arguments.common.data(), arguments.common.pin, &[]).await?;
        let line = format!("kube --nodes={nodes} --seconds={} --endpoints={}", minutes * 60, running.endpoint);
        let report = workload::measure(Load::try_parse_from(line.split_whitespace())?.load).await?;
        let memory = running.memory_bytes()? >> 20;
        running.stop().await?;
        anyhow::ensure!(report.is_good(), "{}: {}", program.name, report.text());
        writeln!(text, "\n{}, `{line}`: memory at the end {memory} MiB\n{}", program.name, report.text())?;
        lines.push(Line { name: program.name, points: report.p99_ms_by_minute });
    }
    let labels: Vec<String> = (1..=minutes).map(|minute| minute.to_string()).collect();
    let what = format!("minutes under the model of {nodes} nodes, compacted every 5");
    draw(&arguments.out.join("growth-time.svg"), &what, &labels, &[Panel { caption: "p99 of writes, ms", lines }])
}
