//! What the suite leaves: JSON for programs, tables and plots for people.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use plotters::prelude::*;
use serde::Serialize;

use super::Row;
use super::rows::{Run, Size};

/// How the rows came about.
pub(crate) struct About {
    pub(crate) rounds: usize,
    pub(crate) syncs: f64,
    pub(crate) commit: String,
    pub(crate) pinned: bool,
}

/// A row as programs read it.
#[derive(Serialize)]
struct Entry {
    id: String,
    what: String,
    target: Option<String>,
    ours: Option<f64>,
    etcd: Option<f64>,
    echo: Option<f64>,
    ratio: Option<f64>,
    least: Option<f64>,
    greatest: Option<f64>,
    met: Option<bool>,
}

fn known(figure: f64) -> Option<f64> {
    (figure > 0.0).then_some(figure)
}

fn entry(row: &Row) -> Entry {
    let ratio = row.ratio();
    Entry {
        id: format!("{}/{}", row.experiment.id, row.figure.id()),
        what: format!("{}: {}", row.experiment.what, row.figure.what()),
        target: row.target.map(|target| target.to_string()),
        ours: known(row.ours.median()),
        etcd: known(row.theirs.median()),
        echo: known(row.echo.median()),
        ratio: ratio.map(|ratio| ratio.median),
        least: ratio.map(|ratio| ratio.least),
        greatest: ratio.map(|ratio| ratio.greatest),
        met: row.is_met(),
    }
}

/// Four bytes, synced, over and over: what the disk of `dir` can do at most.
pub(crate) fn syncs_per_second(dir: &Path) -> anyhow::Result<f64> {
    const TIME: Duration = Duration::from_secs(1);
    let mut file = tempfile::tempfile_in(dir).with_context(|| format!("{} can't be written", dir.display()))?;
    let (begin, mut count) = (Instant::now(), 0u32);
    while begin.elapsed() < TIME {
        file.write_all(b"sync")?;
        file.sync_data()?;
        count += 1;
    }
    Ok(f64::from(count) / begin.elapsed().as_secs_f64())
}

fn cell(figure: Option<f64>) -> String {
    match figure {
        None => "-".to_owned(),
        Some(figure) if figure >= 100.0 => format!("{figure:.0}"),
        Some(figure) if figure >= 1.0 => format!("{figure:.2}"),
        Some(figure) => format!("{figure:.3}"),
    }
}

/// A row in a line.
pub(crate) fn line(row: &Row) -> String {
    let entry = entry(row);
    let met = match entry.met {
        Some(true) => "met",
        Some(false) => "MISSED",
        None => "",
    };
    let (ours, etcd, ratio) = (cell(entry.ours), cell(entry.etcd), cell(entry.ratio));
    let target = entry.target.unwrap_or_default();
    format!("{}: tailwater {ours}, etcd {etcd}, ratio {ratio} {target} {met}", entry.id)
}

/// Writes `quick`, `full` or `long` as `.json`, `.md` and `.svg`; the text of the second, and where they are.
pub(crate) fn write(dir: &Path, size: Size, about: &About, rows: &[Row]) -> anyhow::Result<String> {
    fs::create_dir_all(dir).with_context(|| format!("{} can't be made", dir.display()))?;
    let entries: Vec<Entry> = rows.iter().map(entry).collect();
    let json = dir.join(format!("{}.json", size.name()));
    fs::write(&json, serde_json::to_string_pretty(&entries)?)?;
    let markdown = table(about, rows)?;
    fs::write(json.with_extension("md"), &markdown)?;
    let svg = json.with_extension("svg");
    plot(&svg, &entries).map_err(|error| anyhow::anyhow!("the plot can't be drawn: {error}"))?;
    Ok(format!("{markdown}\nWritten: {0}.json, {0}.md and {0}.svg", json.with_extension("").display()))
}

/// The machine as /proc tells it.
fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("").trim_start_matches([' ', '\t', ':']);
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: u64 = memory.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0);
    format!("{cores} x {model}, {} GiB", kib >> 20)
}

fn table(about: &About, rows: &[Row]) -> anyhow::Result<String> {
    let mut text = String::new();
    let pinned = if about.pinned { "servers on CPU 0, load on CPU 1" } else { "not pinned" };
    writeln!(
        text,
        "Machine: {}; {pinned}; {:.0} syncs/s; {} rounds by turns, medians. {}\n",
        machine(),
        about.syncs,
        about.rounds,
        about.commit
    )?;
    writeln!(
        text,
        "| row | figure | tailwater | etcd | bare echo | ratio to etcd | least-greatest | target | |\n|---|---|---|---|---|---|---|---|---|"
    )?;
    for row in rows {
        let entry = entry(row);
        let spread = match (entry.least, entry.greatest) {
            (Some(least), Some(greatest)) => format!("{}-{}", cell(Some(least)), cell(Some(greatest))),
            _ => "-".to_owned(),
        };
        let met = match entry.met {
            Some(true) => "met",
            Some(false) => "missed",
            None => "",
        };
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {spread} | {} | {met} |",
            row.experiment.id,
            row.figure.what(),
            cell(entry.ours),
            cell(entry.etcd),
            cell(entry.echo),
            cell(entry.ratio),
            entry.target.unwrap_or_default(),
        )?;
    }
    writeln!(text, "\nBy hand, on any server: `tailwater bench …` with")?;
    let mut told = Vec::new();
    for row in rows.iter().filter(|row| row.figure == row.experiment.figures[0].0) {
        if !told.contains(&row.experiment.id) {
            told.push(row.experiment.id);
            let before = row.experiment.before.map_or_else(String::new, |before| format!(" (before: `{before}`)"));
            let how = match row.experiment.measured {
                Run::Line(line) => format!("`{line}`{before}"),
                Run::Restart | Run::Large | Run::MostNodes => {
                    format!("`tailwater-bench suite --only {}`", row.experiment.id)
                }
            };
            writeln!(text, "- {}, {}: {how}", row.experiment.id, row.experiment.what)?;
        }
    }
    Ok(text)
}

/// Each row as a bar: its ratio to etcd on a logarithmic scale; green where its target is met, red where not.
fn plot(path: &Path, entries: &[Entry]) -> Result<(), Box<dyn std::error::Error>> {
    let bars: Vec<(&Entry, f64)> = entries.iter().filter_map(|entry| Some((entry, entry.ratio?))).collect();
    if bars.is_empty() {
        return Ok(());
    }
    let height = u32::try_from(bars.len())? * 22 + 90;
    let area = SVGBackend::new(path, (1000, height)).into_drawing_area();
    area.fill(&WHITE)?;
    let least = bars.iter().map(|(_, ratio)| *ratio).fold(0.1, f64::min) * 0.8;
    let greatest = bars.iter().map(|(_, ratio)| *ratio).fold(10.0, f64::max) * 1.2;
    let mut chart = ChartBuilder::on(&area)
        .caption("tailwater / etcd (1 = alike)", ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(260)
        .build_cartesian_2d((least..greatest).log_scale(), (0..bars.len()).into_segmented())?;
    let names: Vec<&str> = bars.iter().map(|(entry, _)| entry.id.as_str()).collect();
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(bars.len())
        .y_label_formatter(&|place| match place {
            SegmentValue::CenterOf(at) | SegmentValue::Exact(at) => {
                names.get(names.len().wrapping_sub(at + 1)).map_or_else(String::new, |name| (*name).to_owned())
            }
            SegmentValue::Last => String::new(),
        })
        .draw()?;
    for (at, (entry, ratio)) in bars.iter().rev().enumerate() {
        let color = match entry.met {
            Some(true) => RGBColor(60, 140, 90),
            Some(false) => RGBColor(190, 70, 60),
            None => RGBColor(130, 130, 130),
        };
        let corners = [(1.0, SegmentValue::Exact(at)), (*ratio, SegmentValue::Exact(at + 1))];
        let mut bar = Rectangle::new(corners, color.filled());
        bar.set_margin(4, 4, 0, 0);
        chart.draw_series(std::iter::once(bar))?;
    }
    area.present()?;
    Ok(())
}
