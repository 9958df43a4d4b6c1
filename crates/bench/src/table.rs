//! Medians and ratios, as a Markdown table.

use std::collections::BTreeMap;

use crate::load::{Sample, Workload};
use crate::server::Usage;

/// One round's figures.
struct Row {
    rate: f64,
    p50_millis: f64,
    p99_millis: f64,
    cpu_per_thousand: f64,
    memory_mib: f64,
}

/// All rounds of all workloads.
#[derive(Default)]
pub(crate) struct Table {
    rows: BTreeMap<(Workload, &'static str), Vec<Row>>,
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn millis(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

/// One workload on one server, without accounting.
#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(crate) fn print_sample(workload: Workload, sample: &Sample) {
    println!(
        "{workload:?}: {:.0} {}s/s, p50 {:.2} ms, p99 {:.2} ms",
        sample.rate(),
        workload.unit(),
        millis(sample.latency.value_at_quantile(0.5)),
        millis(sample.latency.value_at_quantile(0.99)),
    );
}

impl Table {
    /// Adds one round.
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    pub(crate) fn add(&mut self, server: &'static str, workload: Workload, sample: Sample, used: Usage) {
        self.rows.entry((workload, server)).or_default().push(Row {
            rate: sample.rate(),
            p50_millis: millis(sample.latency.value_at_quantile(0.5)),
            p99_millis: millis(sample.latency.value_at_quantile(0.99)),
            cpu_per_thousand: used.cpu_seconds * 1000.0 / sample.operations.max(1) as f64,
            memory_mib: used.memory_bytes_max as f64 / (1 << 20) as f64,
        });
    }

    /// Prints the medians, and per workload the median, least and greatest ratio tailwater ÷ etcd of CPU per operation.
    #[expect(clippy::print_stdout, reason = "the result of the command")]
    pub(crate) fn print(&self) {
        println!("| workload | server | per second | p50 ms | p99 ms | CPU-s per 1000 | RSS MiB |");
        println!("|---|---|---|---|---|---|---|");
        for ((workload, server), rows) in &self.rows {
            println!(
                "| {workload:?} | {server} | {:.0} | {:.2} | {:.2} | {:.4} | {:.0} |",
                median(rows, |row| row.rate),
                median(rows, |row| row.p50_millis),
                median(rows, |row| row.p99_millis),
                median(rows, |row| row.cpu_per_thousand),
                median(rows, |row| row.memory_mib),
            );
        }
        println!("\n| workload | ratio tailwater ÷ etcd | median | least | greatest |\n|---|---|---|---|---|");
        for workload in Workload::ALL {
            let (Some(ours), Some(theirs)) =
                (self.rows.get(&(workload, "tailwater")), self.rows.get(&(workload, "etcd")))
            else {
                continue;
            };
            self.print_ratio(workload, "throughput", ours, theirs, |row| row.rate);
            self.print_ratio(workload, "CPU per operation", ours, theirs, |row| row.cpu_per_thousand);
            self.print_ratio(workload, "p99", ours, theirs, |row| row.p99_millis);
        }
    }

    #[expect(clippy::print_stdout, reason = "the result of the command")]
    fn print_ratio(&self, workload: Workload, name: &str, ours: &[Row], theirs: &[Row], figure: fn(&Row) -> f64) {
        let mut ratios: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| figure(a) / figure(b)).collect();
        ratios.sort_by(f64::total_cmp);
        let (least, greatest) = (ratios[0], ratios[ratios.len() - 1]);
        println!("| {workload:?} | {name} | {:.2} | {least:.2} | {greatest:.2} |", ratios[ratios.len() / 2]);
    }
}

fn median(rows: &[Row], figure: fn(&Row) -> f64) -> f64 {
    let mut figures: Vec<f64> = rows.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
