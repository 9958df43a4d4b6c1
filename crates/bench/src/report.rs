//! What a run tells: a line or two for people, or JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::drive::Measured;

/// Percentiles of a latency, milliseconds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
    pub(crate) mean: f64,
}

impl Percentiles {
    /// Of microseconds; none when nothing was measured.
    pub(crate) fn of(histogram: &Histogram<u64>) -> Option<Self> {
        let at = |quantile| millis(histogram.value_at_quantile(quantile));
        (!histogram.is_empty()).then(|| Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: millis(histogram.max()),
            mean: histogram.mean() / 1000.0,
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn millis(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

/// One run of one workload.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) workload: &'static str,
    /// What one operation is, as "puts" or "deliveries".
    pub(crate) unit: &'static str,
    pub(crate) operations: u64,
    pub(crate) failed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) first_error: Option<String>,
    pub(crate) seconds: f64,
    pub(crate) per_second: f64,
    /// Of keys and values.
    pub(crate) bytes: u64,
    /// From when an operation was due, or, in a closed loop, from when it left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) latency_ms: Option<Percentiles>,
    /// From when it left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) answer_ms: Option<Percentiles>,
    /// How late the generator itself was; only with a rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lateness_ms: Option<Percentiles>,
    /// p99 of `latency_ms` minute by minute; of runs that are longer than one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) p99_ms_by_minute: Vec<f64>,
    /// Further figures of the workload, with their units in their names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) figures: BTreeMap<String, f64>,
    /// Wrong answers; none when nothing was validated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) violations: Option<u64>,
    /// The first of them in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) violations_told: Vec<String>,
}

impl Report {
    /// Of what requests measured.
    pub(crate) fn new(workload: &'static str, unit: &'static str, measured: Measured) -> Self {
        let answer_ms = Percentiles::of(&measured.lateness).and(Percentiles::of(&measured.answer));
        Self {
            failed: measured.failed,
            first_error: measured.first_error,
            bytes: measured.bytes,
            answer_ms,
            p99_ms_by_minute: measured.by_minute.iter().map(|of| millis(of.value_at_quantile(0.99))).collect(),
            lateness_ms: Percentiles::of(&measured.lateness),
            ..Self::of(workload, unit, &measured.latency, measured.elapsed)
        }
    }

    /// Of something else that was counted.
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    pub(crate) fn of(workload: &'static str, unit: &'static str, latency: &Histogram<u64>, elapsed: Duration) -> Self {
        Self {
            workload,
            unit,
            operations: latency.len(),
            failed: 0,
            first_error: None,
            seconds: elapsed.as_secs_f64(),
            per_second: latency.len() as f64 / elapsed.as_secs_f64().max(f64::EPSILON),
            bytes: 0,
            latency_ms: Percentiles::of(latency),
            answer_ms: None,
            lateness_ms: None,
            p99_ms_by_minute: Vec::new(),
            figures: BTreeMap::new(),
            violations: None,
            violations_told: Vec::new(),
        }
    }

    /// Whether a script may go on: everything was answered, and answered right.
    pub(crate) fn is_good(&self) -> bool {
        self.failed == 0 && self.violations.unwrap_or(0) == 0
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut lines = vec![format!(
            "{}: {} {} in {:.1} s, {:.0} per second, {} failed",
            self.workload, self.operations, self.unit, self.seconds, self.per_second, self.failed
        )];
        for (name, percentiles) in
            [("latency", &self.latency_ms), ("answer", &self.answer_ms), ("left late", &self.lateness_ms)]
        {
            if let Some(at) = percentiles {
                lines.push(format!(
                    "  {name:<9} p50 {:.2} ms, p90 {:.2}, p99 {:.2}, p99.9 {:.2}, max {:.2}",
                    at.p50, at.p90, at.p99, at.p999, at.max
                ));
            }
        }
        if !self.p99_ms_by_minute.is_empty() {
            let minutes: Vec<String> = self.p99_ms_by_minute.iter().map(|p99| format!("{p99:.1}")).collect();
            lines.push(format!("  p99 by minute, ms: {}", minutes.join(" ")));
        }
        lines.extend(self.figures.iter().map(|(name, value)| format!("  {name}: {value:.2}")));
        lines.extend(self.first_error.iter().map(|error| format!("  first error: {error}")));
        match self.violations {
            Some(0) => lines.push("  validated: every answer and every event was right".to_owned()),
            Some(count) => lines.push(format!("  WRONG: {count} violations, the first of them:")),
            None => {}
        }
        lines.extend(self.violations_told.iter().map(|text| format!("    {text}")));
        lines.join("\n")
    }
}
