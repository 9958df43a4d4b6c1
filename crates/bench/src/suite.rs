//! The rows of the benchmark: each experiment on one server and on the other in turn, A B A B …, with targets.
//!
//! An experiment is a command line of `tailwater bench`, so that anybody can run it by hand on a server of their own. What
//! it is judged by are ratios to etcd in the same round; the median over the rounds counts.

mod long;
mod output;
mod rows;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Parser};

use crate::report::Report;
use crate::server::{ECHO, Program, Running, Usage, pin_self};
use crate::tier::figures::{Ratio, Series};
use crate::workload::{self, Arguments as Load};

use rows::{Experiment, Figure, Run, Target};

/// Arguments of `tailwater-bench suite`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// The tailwater binary.
    #[arg(long)]
    tailwater: Option<PathBuf>,
    /// The etcd binary.
    #[arg(long)]
    etcd: Option<PathBuf>,
    /// Which rows: quick, full or long.
    #[arg(long, value_enum, default_value_t = rows::Size::Full)]
    size: rows::Size,
    /// Only experiments whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Rounds of each server [default: 5 with full, else 1]
    #[arg(long)]
    rounds: Option<usize>,
    /// Directory for the servers' data; its disk is the one that is measured.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Server on CPU 0, load on CPU 1 (needs taskset).
    #[arg(long)]
    pin: bool,
    /// Directory for the JSON, the tables and the plots.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// What the tables name as what was measured, e.g. a commit.
    #[arg(long, default_value = "")]
    commit: String,
}

/// One run of one experiment on one server.
pub(crate) struct Sample {
    report: Report,
    used: Usage,
}

impl Sample {
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    fn figure(&self, figure: Figure) -> f64 {
        let operations = self.report.operations.max(1) as f64;
        let latency = self.report.latency_ms.as_ref();
        match figure {
            Figure::PerSecond => self.report.per_second,
            Figure::CpuPerOperation => self.used.cpu_seconds * 1e6 / operations,
            Figure::BytesPerCpuSecond => self.report.bytes as f64 / 1e6 / self.used.cpu_seconds.max(0.01),
            Figure::P50 => latency.map_or(0.0, |at| at.p50),
            Figure::P99 => latency.map_or(0.0, |at| at.p99),
            Figure::MemoryMax => self.used.memory_bytes_max as f64 / f64::from(1 << 20),
            // What is not above the noise of an allocator is as little as that.
            Figure::MemoryAdded => (self.used.memory_bytes_added as f64 / f64::from(1 << 20)).max(1.0),
            Figure::Told(told) => self.report.figures.get(told.name).copied().unwrap_or_default(),
            Figure::WrittenPerByte => self.used.written_bytes as f64 / self.report.bytes.max(1) as f64,
        }
    }
}

/// A row: one figure of one experiment.
pub(crate) struct Row {
    experiment: &'static Experiment,
    figure: Figure,
    target: Option<Target>,
    ours: Series,
    theirs: Series,
    /// Of a server that only answers; empty where none can take the load.
    echo: Series,
}

impl Row {
    fn ratio(&self) -> Option<Ratio> {
        let is_known = self.ours.median() > 0.0 && self.theirs.median() > 0.0;
        is_known.then(|| self.ours.against(&self.theirs))
    }

    /// Whether the target is met; `None` when it can't be said.
    fn is_met(&self) -> Option<bool> {
        let ours = Some(self.ours.median()).filter(|ours| *ours > 0.0);
        Some(match self.target? {
            Target::AtMost(limit) => self.ratio()?.median <= limit,
            Target::AtLeast(limit) => self.ratio()?.median >= limit,
            Target::Itself(limit) => ours? <= limit,
        })
    }
}

#[derive(Parser)]
#[command(no_binary_name = true)]
struct Line {
    #[command(flatten)]
    load: Load,
}

/// Runs all experiments and writes what they found, after each of them: one that fails does not take the others with it.
#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    if arguments.pin {
        pin_self().context("pinning this process; leave out --pin where taskset is missing")?;
    }
    let ours = arguments.tailwater.clone().map(Program::tailwater);
    let theirs = arguments.etcd.clone().map(Program::etcd);
    let mut programs: Vec<Program> = ours.into_iter().chain(theirs).collect();
    anyhow::ensure!(!programs.is_empty(), "name a server: --tailwater PATH, --etcd PATH or both");
    programs.push(Program::echo()?);
    let rounds = arguments.rounds.unwrap_or(if arguments.size == rows::Size::Full { 5 } else { 1 });
    let data = arguments.data.clone().unwrap_or_else(std::env::temp_dir);
    let syncs = output::syncs_per_second(&data)?;
    let chosen: Vec<&'static Experiment> = rows::EXPERIMENTS
        .iter()
        .filter(|experiment| arguments.size.has(experiment.size))
        .filter(|experiment| arguments.only.as_ref().is_none_or(|only| experiment.id.contains(only.as_str())))
        .collect();
    anyhow::ensure!(!chosen.is_empty(), "no experiment is named so; there are: {}", rows::names());
    let about = output::About { rounds, syncs, commit: arguments.commit, pinned: arguments.pin };
    let (mut rows, mut told): (Vec<Row>, _) = (Vec::new(), String::new());
    for experiment in &chosen {
        let mut found: Vec<Row> = experiment
            .figures
            .iter()
            .map(|&(figure, target)| Row {
                experiment,
                figure,
                target,
                ours: Series::default(),
                theirs: Series::default(),
                echo: Series::default(),
            })
            .collect();
        for round in 0..rounds {
            for program in programs.iter().filter(|program| experiment.who.has(program.name)) {
                eprintln!("{} round {} of {rounds}: {}", experiment.id, round + 1, program.name);
                let sample = measure(experiment, program, &data, arguments.pin).await?;
                for row in &mut found {
                    let series = match program.name {
                        "etcd" => &mut row.theirs,
                        ECHO => &mut row.echo,
                        _ => &mut row.ours,
                    };
                    series.push(sample.figure(row.figure));
                }
            }
        }
        found.iter().for_each(|row| eprintln!("  {}", output::line(row)));
        rows.extend(found);
        told = output::write(&arguments.out, arguments.size, &about, &rows)?;
    }
    println!("{told}");
    Ok(())
}

/// A fresh server, what it needs before, and the measured part.
async fn measure(
    experiment: &Experiment,
    program: &Program,
    data: &std::path::Path,
    pin: bool,
) -> anyhow::Result<Sample> {
    let line = match experiment.measured {
        Run::Line(line) => line,
        Run::Restart => return long::restart(program, data, pin).await,
        Run::Large => return long::large(program, data, pin).await,
        Run::MostNodes => return long::most_nodes(program, data, pin).await,
    };
    let mut running = Running::start_group(program, experiment.members, data, pin, &[]).await?;
    if let Some(before) = experiment.before.filter(|_| program.name != ECHO) {
        let report = load(before, &running.endpoint).await?;
        anyhow::ensure!(report.is_good(), "{}: {}", program.name, report.text());
    }
    let before = running.usage()?;
    let report = load(line, &running.endpoint).await?;
    let used = running.usage()?.since(&before);
    running.stop().await?;
    anyhow::ensure!(report.is_good(), "{}: {}", program.name, report.text());
    Ok(Sample { report, used })
}

async fn load(line: &str, endpoint: &str) -> anyhow::Result<Report> {
    let words = line.split_whitespace().chain(["--endpoints", endpoint]);
    workload::measure(Line::try_parse_from(words)?.load).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_a_command_that_is_understood() {
        for experiment in rows::EXPERIMENTS {
            let measured = match &experiment.measured {
                Run::Line(line) => Some(line),
                Run::Restart | Run::Large | Run::MostNodes => None,
            };
            for line in experiment.before.iter().chain(measured) {
                assert!(Line::try_parse_from(line.split_whitespace()).is_ok(), "{}: {line}", experiment.id);
            }
            assert!(!experiment.figures.is_empty());
        }
    }
}
