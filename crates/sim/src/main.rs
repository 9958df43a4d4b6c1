//! Runs seeds: one with a readable trace, or a range with a line of progress.

use std::io::Write as _;
use std::process::{Command, ExitCode};
use std::time::Instant;

use tailwater_sim::{Bug, Report, WorldConfig, run};

const USAGE: &str = "usage: tailwater-sim (SEED | FIRST..LAST) [--operations N] [--bug NAME] [--trace] [--ledger FILE]";

struct Arguments {
    first: u64,
    /// Behind the last.
    end: u64,
    operations: u64,
    bug: Option<Bug>,
    trace: bool,
    ledger: Option<String>,
}

fn bug(name: &str) -> Option<Bug> {
    Bug::ALL.into_iter().find(|bug| format!("{bug:?}").eq_ignore_ascii_case(&name.replace('-', "")))
}

fn arguments() -> Option<Arguments> {
    let mut all = std::env::args().skip(1);
    let seeds = all.next()?;
    let (first, end) = match seeds.split_once("..") {
        Some((first, end)) => (first.parse().ok()?, end.parse().ok()?),
        None => {
            let seed: u64 = seeds.parse().ok()?;
            (seed, seed.checked_add(1)?)
        }
    };
    let mut arguments = Arguments { first, end, operations: 2000, bug: None, trace: false, ledger: None };
    while let Some(flag) = all.next() {
        match flag.as_str() {
            "--operations" => arguments.operations = all.next()?.parse().ok()?,
            "--bug" => arguments.bug = Some(bug(&all.next()?)?),
            "--trace" => arguments.trace = true,
            "--ledger" => arguments.ledger = Some(all.next()?),
            _ => return None,
        }
    }
    Some(arguments)
}

/// What a range came to.
#[derive(Default)]
struct Total {
    seeds: u64,
    answered: u64,
    crashes: u64,
    faults: u64,
    events: u64,
    failed: Vec<u64>,
}

impl Total {
    fn add(&mut self, seed: u64, report: &Report) {
        self.seeds += 1;
        self.answered += report.answered;
        self.crashes += report.crashes;
        self.faults += report.faults;
        self.events += report.events;
        if report.violation.is_some() {
            self.failed.push(seed);
        }
    }
}

fn main() -> ExitCode {
    let Some(arguments) = arguments() else {
        say(USAGE);
        return ExitCode::from(2);
    };
    let began = Instant::now();
    let mut shown = began;
    let mut total = Total::default();
    for seed in arguments.first..arguments.end {
        let config = WorldConfig { seed, operations: arguments.operations, bug: arguments.bug };
        let sink: Option<tailwater_sim::Sink> = match arguments.trace {
            true => Some(Box::new(say)),
            false => None,
        };
        let report = match run(config, sink) {
            Ok(report) => report,
            Err(error) => {
                say(&format!("no directory for the world: {error}"));
                return ExitCode::FAILURE;
            }
        };
        total.add(seed, &report);
        if let Some(violation) = &report.violation {
            let operations = arguments.operations;
            say(&format!("\nseed {seed}: {violation}\n  make sim SEED={seed} OPERATIONS={operations}"));
        } else if arguments.end - arguments.first == 1 {
            say(&format!("{report:?}"));
        }
        if shown.elapsed() >= std::time::Duration::from_secs(1) || seed + 1 == arguments.end {
            shown = Instant::now();
            progress(&total, began);
        }
    }
    say("");
    if let Some(ledger) = &arguments.ledger
        && let Err(error) = record(ledger, &arguments, &total, began)
    {
        say(&format!("{ledger}: {error}"));
        return ExitCode::FAILURE;
    }
    if total.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[expect(clippy::print_stdout, reason = "a program for the terminal")]
fn say(line: &str) {
    println!("{line}");
}

fn progress(total: &Total, began: Instant) {
    let Total { seeds, answered, crashes, events, failed, .. } = total;
    let per_second = *seeds as f64 / began.elapsed().as_secs_f64().max(0.001);
    let failed = failed.len();
    let line = format!(
        "\r{seeds} seeds, {per_second:.1}/s, {answered} answered, {crashes} crashes, {events} events watched, {failed} failed "
    );
    let mut terminal = std::io::stderr();
    // A terminal that is gone needs no progress.
    drop(terminal.write_all(line.as_bytes()).and_then(|()| terminal.flush()));
}

/// Appends the range to the ledger.
fn record(ledger: &str, arguments: &Arguments, total: &Total, began: Instant) -> std::io::Result<()> {
    let commit = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output()?;
    let commit = String::from_utf8_lossy(&commit.stdout).trim().to_owned();
    let result = match total.failed.as_slice() {
        [] => "all hold".to_owned(),
        failed => format!("failed: {failed:?}"),
    };
    let Arguments { first, end, operations, .. } = arguments;
    let Total { seeds, answered, crashes, faults, .. } = total;
    let per_second = *seeds as f64 / began.elapsed().as_secs_f64().max(0.001);
    let row = format!(
        "| {first}..{end} | {commit} | {operations} | {answered} | {crashes} | {faults} | {per_second:.1} | {result} |\n"
    );
    std::fs::OpenOptions::new().append(true).open(ledger)?.write_all(row.as_bytes())
}
