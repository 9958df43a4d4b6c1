//! Medians of rounds, and ratios to the same round's base.

use std::collections::BTreeMap;

/// The figures of one scenario, one per round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series(Vec<f64>);

impl Series {
    /// Adds a round.
    pub(crate) fn push(&mut self, figure: f64) {
        self.0.push(figure);
    }

    /// The median; 0 without rounds.
    pub(crate) fn median(&self) -> f64 {
        sorted(&self.0).get(self.0.len() / 2).copied().unwrap_or_default()
    }

    /// By round, this ÷ `base`: median, least and greatest.
    pub(crate) fn against(&self, base: &Self) -> Ratio {
        let ratios: Vec<f64> = self.0.iter().zip(&base.0).map(|(with, without)| with / without).collect();
        let ratios = sorted(&ratios);
        Ratio {
            median: ratios.get(ratios.len() / 2).copied().unwrap_or_default(),
            least: ratios.first().copied().unwrap_or_default(),
            greatest: ratios.last().copied().unwrap_or_default(),
        }
    }
}

fn sorted(figures: &[f64]) -> Vec<f64> {
    let mut figures = figures.to_vec();
    figures.sort_by(f64::total_cmp);
    figures
}

/// A ratio over rounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ratio {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) greatest: f64,
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} ({:.2}-{:.2})", self.median, self.least, self.greatest)
    }
}

/// Series by (server, scenario, figure), in the order of their first appearance.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    order: Vec<(&'static str, String)>,
    series: BTreeMap<(&'static str, String, &'static str), Series>,
}

impl Figures {
    /// Adds one round's figure.
    pub(crate) fn add(&mut self, server: &'static str, scenario: &str, figure: &'static str, value: f64) {
        let row = (server, scenario.to_owned());
        if !self.order.contains(&row) {
            self.order.push(row);
        }
        self.series.entry((server, scenario.to_owned(), figure)).or_default().push(value);
    }

    /// One series; empty when nothing was added.
    pub(crate) fn get(&self, server: &'static str, scenario: &str, figure: &'static str) -> Series {
        self.series.get(&(server, scenario.to_owned(), figure)).cloned().unwrap_or_default()
    }

    /// Prints the medians of `columns` as a Markdown table.
    #[expect(clippy::print_stdout, reason = "the result of the command")]
    pub(crate) fn print(&self, columns: &[&'static str]) {
        println!("\n| server | scenario | {} |\n|---|---|{}", columns.join(" | "), "---|".repeat(columns.len()));
        let has = |(server, scenario): &&(&'static str, String)| {
            columns.iter().any(|column| self.series.contains_key(&(*server, scenario.clone(), *column)))
        };
        for (server, scenario) in self.order.iter().filter(has) {
            let cells = columns.iter().map(|column| {
                let known = self.series.get(&(server, scenario.clone(), column));
                known.map_or_else(|| "-".to_owned(), |series| short(series.median()))
            });
            println!("| {server} | {scenario} | {} |", cells.collect::<Vec<_>>().join(" | "));
        }
    }

    /// Prints, for each scenario but `base`, the ratio of `figures` to the base of the same round.
    #[expect(clippy::print_stdout, reason = "the result of the command")]
    pub(crate) fn print_ratios(&self, base: &str, figures: &[&'static str]) {
        println!(
            "\n| server | scenario ÷ {base} | {} |\n|---|---|{}",
            figures.join(" | "),
            "---|".repeat(figures.len())
        );
        for (server, scenario) in self.order.iter().filter(|(_, scenario)| scenario != base) {
            let cells = figures.iter().map(|figure| {
                let ratio = self.get(server, scenario, figure).against(&self.get(server, base, figure));
                ratio.to_string()
            });
            println!("| {server} | {scenario} | {} |", cells.collect::<Vec<_>>().join(" | "));
        }
    }
}

/// Three significant digits, or all that are in front of the point.
fn short(figure: f64) -> String {
    match figure.abs() {
        100.0.. => format!("{figure:.0}"),
        10.0.. => format!("{figure:.1}"),
        1.0.. => format!("{figure:.2}"),
        _ => format!("{figure:.3}"),
    }
}

impl Figures {
    /// Says of each scenario of `server` whether it keeps the limits: put p99 at most 1.1 times `base`'s or 1 ms more, and
    /// consensus CPU per put at most 1.1 times. `again` is the second base.
    #[expect(clippy::print_stdout, reason = "the result of the command")]
    pub(crate) fn print_verdicts(&self, server: &'static str, base: &str, again: &str) {
        let p99 = |scenario: &str| self.get(server, scenario, "p99 ms");
        let cpu = |scenario: &str| self.get(server, scenario, "consensus us/put");
        for (_, scenario) in self.order.iter().filter(|(of, name)| *of == server && name != base && name != again) {
            let latency = p99(scenario).against(&p99(base)).median;
            let more = p99(scenario).median() - p99(base).median();
            let cost = cpu(scenario).against(&cpu(base)).median;
            let kept = (latency <= 1.1 || more <= 1.0) && cost <= 1.1;
            let word = if kept { "kept" } else { "MISSED" };
            println!("{word}: {scenario}: put p99 {latency:.2} x ({more:+.2} ms), consensus CPU {cost:.2} x");
        }
    }
}
