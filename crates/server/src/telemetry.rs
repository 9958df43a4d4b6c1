//! Logs and metrics of the process.
//!
//! Logs are JSON lines on standard error, as etcd's: `level`, `ts`, `caller`, `msg`, then the fields.

use std::fmt;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Logs from `level` on.
pub(crate) fn start_logging(level: LevelFilter) {
    tracing_subscriber::fmt().with_max_level(level).event_format(JsonLines).with_writer(std::io::stderr).init();
}

/// Installs the recorder; the handle renders the exposition.
pub(crate) fn start_metrics() -> anyhow::Result<PrometheusHandle> {
    let builder = PrometheusBuilder::new()
        // etcd's buckets for durations: 1 ms to 8 s, doubling; dashboards compare them across members.
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &exponential(0.001, 14))?
        .set_buckets_for_metric(Matcher::Full("etcd_server_apply_duration_seconds".into()), &exponential(0.0001, 20))?
        .set_buckets_for_metric(Matcher::Full("etcd_server_range_duration_seconds".into()), &exponential(0.0001, 20))?
        .set_buckets(&exponential(1.0, 20))?;
    let handle = builder.install_recorder()?;
    let upkeep = handle.clone();
    tokio::spawn(async move {
        loop {
            // Drains the histograms' samples, which would otherwise grow until the next scrape.
            tokio::time::sleep(Duration::from_secs(5)).await;
            upkeep.run_upkeep();
        }
    });
    Ok(handle)
}

fn exponential(first: f64, count: i32) -> Vec<f64> {
    (0..count).map(|power| first * 2f64.powi(power)).collect()
}

struct JsonLines;

#[derive(Default)]
struct Fields {
    message: String,
    fields: Map<String, Value>,
}

impl Fields {
    fn set(&mut self, field: &Field, value: Value) {
        self.fields.insert(field.name().to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else {
            self.set(field, format!("{value:?}").into());
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value.into());
    }
}

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let level = match *metadata.level() {
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            _ => "debug",
        };
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let module = metadata.target().replace("::", "/");
        let caller = format!("{module}:{}", metadata.line().unwrap_or_default());
        write!(
            writer,
            "{{\"level\":\"{level}\",\"ts\":\"{time}\",\"caller\":{},\"msg\":{}",
            Value::from(caller),
            Value::from(fields.message)
        )?;
        for (name, value) in &fields.fields {
            write!(writer, ",{}:{value}", Value::from(name.as_str()))?;
        }
        writeln!(writer, "}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_buckets_are_etcds() {
        let buckets = exponential(0.001, 14);
        assert_eq!(buckets.len(), 14);
        assert!((buckets[13] - 8.192).abs() < 1e-9);
    }
}
