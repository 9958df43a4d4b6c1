//! Logs as JSON lines in etcd's shape, and the metrics recorder.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry};

use crate::flags::Flags;

/// What is logged, how and where.
#[derive(Clone, Debug)]
pub(crate) struct LogConfig {
    level: tracing::Level,
    format: Format,
    outputs: Vec<Output>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Json,
    /// Fields of a line between tabs, the others as JSON at its end.
    Console,
}

#[derive(Clone, Debug)]
enum Output {
    Stderr,
    Stdout,
    /// Opened for appending when the flags are read; clones share it.
    File(Arc<File>),
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: tracing::Level::INFO, format: Format::Json, outputs: vec![Output::Stderr] }
    }
}

impl LogConfig {
    /// Opens the files.
    ///
    /// # Errors
    /// One sentence that names the flag.
    pub(crate) fn from_flags(flags: &Flags) -> Result<Self, String> {
        let format = match flags.log_format.as_str() {
            "json" => Format::Json,
            "console" => Format::Console,
            other => return Err(format!("--log-format: {other:?} must be json or console")),
        };
        let outputs: Result<Vec<_>, _> = flags.log_outputs.split(',').map(|text| output(text.trim())).collect();
        Ok(Self { level: level(&flags.log_level)?, format, outputs: outputs? })
    }
}

fn level(text: &str) -> Result<tracing::Level, String> {
    match text {
        "debug" => Ok(tracing::Level::DEBUG),
        "info" => Ok(tracing::Level::INFO),
        "warn" => Ok(tracing::Level::WARN),
        "error" | "panic" | "fatal" | "dpanic" => Ok(tracing::Level::ERROR),
        _ => Err(format!("--log-level: {text:?} must be debug, info, warn, error, panic or fatal")),
    }
}

fn output(text: &str) -> Result<Output, String> {
    match text {
        // The journal takes what a unit writes to stderr.
        "default" | "stderr" | "systemd/journal" => Ok(Output::Stderr),
        "stdout" => Ok(Output::Stdout),
        "" => Err("--log-outputs: an output has no name; give stderr, stdout or a file".into()),
        path => {
            let file = File::options().append(true).create(true).open(path);
            let file = file.map_err(|error| format!("--log-outputs: {path:?}: {error}"))?;
            Ok(Output::File(Arc::new(file)))
        }
    }
}

/// Starts logging: our own crates at the level asked for, libraries from warnings on.
pub(crate) fn start_log(config: &LogConfig) {
    let filter = EnvFilter::new(format!("warn,tailwater={}", config.level));
    Registry::default().with(Lines(config.clone()).with_filter(filter)).init();
}

/// Writes {level, ts, caller, msg, fields…}.
struct Lines(LogConfig);

impl Lines {
    fn write(&self, line: &str) {
        for output in &self.0.outputs {
            // A log that can't be written has nobody left to tell.
            match output {
                Output::Stderr => std::io::stderr().lock().write_all(line.as_bytes()).ok(),
                Output::Stdout => std::io::stdout().lock().write_all(line.as_bytes()).ok(),
                Output::File(file) => file.as_ref().write_all(line.as_bytes()).ok(),
            };
        }
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let metadata = event.metadata();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let (level, ts) = (metadata.level().as_str().to_lowercase(), timestamp(SystemTime::now()));
        let (caller, message) = (caller(metadata.file(), metadata.line()), fields.message);
        if self.0.format == Format::Console {
            let others = Value::Object(fields.others);
            return self.write(&format!("{ts}\t{level}\t{caller}\t{message}\t{others}\n"));
        }
        // By hand rather than as a map, which would sort the four that a reader looks for first.
        let mut text = format!(
            "{{\"level\":{},\"ts\":{},\"caller\":{},\"msg\":{}",
            Value::from(level),
            Value::from(ts),
            Value::from(caller),
            Value::from(message),
        );
        for (name, value) in &fields.others {
            write!(text, ",{}:{value}", Value::from(name.as_str())).expect("writing to a string cannot fail");
        }
        text.push_str("}\n");
        self.write(&text);
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn set(&mut self, field: &Field, value: Value) {
        self.others.insert(field.name().replace('_', "-"), value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            // A list of strings looks the same in JSON; whoever reads the log gets it as a list.
            let list = serde_json::from_str::<Vec<String>>(&text).map(Value::from);
            self.set(field, list.unwrap_or_else(|_| text.into()));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.set(field, value.into());
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value.into());
    }
}

/// "gateway/src/http.rs:120"; without the part of the path that differs between build machines.
fn caller(file: Option<&str>, line: Option<u32>) -> String {
    let file = file.unwrap_or("unknown");
    let short = file.rsplit_once("crates/").map_or(file, |(_, short)| short);
    format!("{short}:{}", line.unwrap_or(0))
}

/// RFC 3339 in UTC with microseconds.
fn timestamp(now: SystemTime) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Civil date from days: years counted from March, so that the leap day comes last.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let mut text = String::with_capacity(27);
    write!(
        text,
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_micros()
    )
    .expect("writing to a string cannot fail");
    text
}

/// Installs the recorder of metrics, with etcd's buckets for durations.
///
/// # Errors
/// Another recorder is installed.
pub(crate) fn start_metrics() -> anyhow::Result<PrometheusHandle> {
    let buckets: Vec<f64> = (0..14).map(|exponent| 0.001 * f64::from(1 << exponent)).collect();
    // Lists are quicker than what the others measure.
    let list_buckets: Vec<f64> = (0..20).map(|exponent| 0.0001 * f64::from(1 << exponent)).collect();
    // Prometheus's own, which grpc-go's metrics keep.
    let call_buckets = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
    // Of what may take minutes.
    let long_buckets: Vec<f64> = (0..17).map(|exponent| 0.01 * f64::from(1 << exponent)).collect();
    let defrag_buckets: Vec<f64> = (0..13).map(|exponent| 0.1 * f64::from(1 << exponent)).collect();
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full("grpc_server_handling_seconds".into()), &call_buckets)
        .context("the buckets of calls")?
        .set_buckets_for_metric(Matcher::Full("etcd_disk_backend_snapshot_duration_seconds".into()), &long_buckets)
        .context("the buckets of snapshots")?
        .set_buckets_for_metric(Matcher::Full("etcd_mvcc_hash_rev_duration_seconds".into()), &long_buckets[..15])
        .context("the buckets of hashes")?
        .set_buckets_for_metric(Matcher::Full("etcd_disk_backend_defrag_duration_seconds".into()), &defrag_buckets)
        .context("the buckets of defragmentations")?
        .set_buckets_for_metric(Matcher::Full("etcd_server_range_duration_seconds".into()), &list_buckets)
        .context("the buckets of lists")?
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &buckets)
        .context("the buckets of the histograms")?;
    let recorder = builder.install_recorder().context("the recorder of metrics")?;
    crate::help::describe();
    Ok(recorder)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn timestamps_are_utc() {
        let at = |seconds, micros: u32| timestamp(UNIX_EPOCH + Duration::new(seconds, micros * 1000));
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(at(951_782_400, 1), "2000-02-29T00:00:00.000001Z");
        assert_eq!(at(1_798_761_599, 0), "2026-12-31T23:59:59.000000Z");
    }

    #[test]
    fn a_caller_is_short() {
        assert_eq!(caller(Some("/build/crates/server/src/main.rs"), Some(7)), "server/src/main.rs:7");
        assert_eq!(caller(None, None), "unknown:0");
    }
}
