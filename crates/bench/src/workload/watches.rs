//! Workloads of watchers beside writers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use tailwater_api::etcdserverpb as pb;
use tokio::task::JoinSet;

use super::{Common, conclude, measured};
use crate::connection::Connection;
use crate::drive::{Client, Measured, Pace, drive};
use crate::load::{Kv, histogram, kv, micros, watch};
use crate::messages::Messages;
use crate::report::Report;
use crate::validate::{Mark, Validator, WatcherId};

/// Clients that write as fast as they are answered, or at half of that.
const SENDERS: usize = 256;
/// How long they try how fast that is.
const TRIAL: Duration = Duration::from_secs(5);
/// Watchers get so long for what was written.
const PATIENCE: Duration = Duration::from_secs(120);
/// The same where a validator says what is missing.
const PATIENCE_VALIDATED: Duration = Duration::from_secs(3);

/// Where watched keys are.
#[derive(Args, Clone, Debug)]
struct Keys {
    /// Ranges of keys, written in turn.
    #[arg(long, default_value_t = 1)]
    ranges: u64,
    /// Different keys of each.
    #[arg(long, default_value_t = 100)]
    keys_per_range: u64,
    /// Bytes of a value.
    #[arg(long, default_value_t = 1024)]
    val_size: usize,
}

impl Keys {
    fn key(&self, number: u64) -> Bytes {
        let (range, key) = (self.range_of(number), number / self.ranges % self.keys_per_range.max(1));
        format!("/bench/watch/{range:06}/{key:06}").into()
    }

    fn range_of(&self, number: u64) -> u64 {
        number % self.ranges
    }

    /// The keys of a range.
    fn range(range: u64) -> (Bytes, Bytes) {
        (format!("/bench/watch/{range:06}/").into(), format!("/bench/watch/{range:06}0").into())
    }
}

/// Writes ranges in turn.
#[derive(Clone)]
struct Writer {
    kv: Kv,
    keys: Keys,
    begin: Instant,
    /// Acknowledged writes of each range.
    written: Arc<Vec<AtomicU64>>,
    validator: Option<Arc<Validator>>,
    /// Numbers go on from here, so that marks stay unique.
    base: u64,
}

impl Writer {
    fn new(channel: &Connection, keys: Keys, begin: Instant, validator: Option<Arc<Validator>>) -> Self {
        let written = (0..keys.ranges).map(|_| AtomicU64::new(0)).collect();
        Self { kv: kv(channel), keys, begin, written: Arc::new(written), validator, base: 0 }
    }

    fn all(&self, channels: &[Connection], count: usize) -> Vec<Self> {
        (0..count).map(|at| Self { kv: kv(&channels[at % channels.len()]), ..self.clone() }).collect()
    }

    fn after(&self, base: u64) -> Self {
        Self { base, ..self.clone() }
    }
}

impl Client for Writer {
    async fn request(&mut self, number: u64) -> anyhow::Result<u64> {
        let number = self.base + number;
        let key = self.keys.key(number);
        let mark = Mark { number: number + 1, sent: micros(self.begin) };
        let value = mark.value(self.keys.val_size);
        let bytes = (key.len() + value.len()) as u64;
        match self.kv.put(pb::PutRequest { key: key.clone(), value, ..Default::default() }).await {
            Ok(answer) => {
                if let Some(validator) = &self.validator {
                    let revision = answer.get_ref().header.as_ref().map_or(0, |header| header.revision);
                    validator.acknowledged(&key, revision, mark.number);
                }
                let range = usize::try_from(self.keys.range_of(number))?;
                self.written[range].fetch_add(1, Ordering::Relaxed);
                Ok(bytes)
            }
            Err(status) => {
                self.validator.iter().for_each(|validator| validator.unknown(mark.number));
                Err(status.into())
            }
        }
    }
}

/// A stream with a watch on each of these ranges; all of them are created.
async fn open(channel: &Connection, ranges: &[u64], start: i64, prev_kv: bool) -> anyhow::Result<Messages> {
    let creates = ranges.iter().map(|&range| {
        let (key, range_end) = Keys::range(range);
        pb::WatchCreateRequest { key, range_end, prev_kv, start_revision: start, ..Default::default() }
    });
    watch(channel, creates.collect()).await
}

/// Watchers and writers.
#[derive(Args, Clone, Debug)]
pub(super) struct Watch {
    /// Streams of watchers.
    #[arg(long, default_value_t = 1000)]
    streams: usize,
    /// Their connections.
    #[arg(long, default_value_t = 100)]
    watch_conns: usize,
    /// Watches on each stream, each on another range.
    #[arg(long, default_value_t = 1)]
    watches_per_stream: u64,
    /// Ask for previous versions.
    #[arg(long)]
    prev_kv: bool,
    #[command(flatten)]
    keys: Keys,
}

impl Watch {
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<Report> {
        anyhow::ensure!(self.keys.ranges > 0 && self.watch_conns > 0, "--ranges and --watch-conns must be at least 1");
        let validator = common.validate.then(|| Arc::new(Validator::default()));
        anyhow::ensure!(validator.is_none() || self.watches_per_stream == 1, "--validate needs --watches-per-stream=1");
        let groups: Vec<_> = validator
            .iter()
            .flat_map(|validator| (0..self.keys.ranges).map(|range| validator.group(Keys::range(range), self.prev_kv)))
            .collect();
        let begin = Instant::now();
        let channels = common.channels().await?;
        let watch_channels = common.channels_of(self.watch_conns).await?;
        let writer = Writer::new(&channels[0], self.keys.clone(), begin, validator.clone());
        let is_over = Arc::new(AtomicBool::new(false));
        let progress = common.progress("deliveries");
        // One for all readers; see `drive`.
        let lag = Arc::new(Mutex::new(histogram()));
        let mut readers = JoinSet::new();
        for stream in 0..self.streams {
            let first = stream as u64 * self.watches_per_stream;
            let ranges: Vec<_> =
                (first..first + self.watches_per_stream).map(|range| range % self.keys.ranges).collect();
            let channel = &watch_channels[stream % watch_channels.len()];
            let opened = open(channel, &ranges, 0, self.prev_kv).await?;
            let watcher = match &validator {
                Some(validator) => {
                    Some((Arc::clone(validator), validator.watcher(groups[usize::try_from(ranges[0])?])))
                }
                None => None,
            };
            let reader = Reader {
                stream: opened,
                ranges,
                begin,
                written: Arc::clone(&writer.written),
                is_over: Arc::clone(&is_over),
                done: Arc::clone(&progress.done),
                watcher,
                lag: Arc::clone(&lag),
            };
            readers.spawn(reader.run());
        }
        let before = Instant::now();
        let puts = drive(writer.all(&channels, common.clients), common.pace(), &Arc::default()).await?;
        is_over.store(true, Ordering::Release);
        let mut bytes = 0;
        while let Some(ended) = readers.join_next().await {
            bytes += ended??;
        }
        let lag = Arc::into_inner(lag).context("all readers have ended")?.into_inner();
        drop(progress);
        let mut report = Report::of("watch", "deliveries", &lag, before.elapsed());
        report.bytes = bytes;
        report.failed = puts.failed;
        report.first_error.clone_from(&puts.first_error);
        report.figures.insert("puts/s".to_owned(), puts.latency.len() as f64 / puts.elapsed.as_secs_f64());
        report.figures.insert("put p99 ms".to_owned(), puts.latency.value_at_quantile(0.99) as f64 / 1000.0);
        if let Some(validator) = validator {
            conclude(&mut report, &validator).await;
        }
        Ok(report)
    }
}

struct Reader {
    stream: Messages,
    ranges: Vec<u64>,
    begin: Instant,
    written: Arc<Vec<AtomicU64>>,
    is_over: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    watcher: Option<(Arc<Validator>, WatcherId)>,
    /// From sending to receiving.
    lag: Arc<Mutex<Histogram<u64>>>,
}

impl Reader {
    /// Until everything that was written to its ranges has come; returns its bytes.
    async fn run(mut self) -> anyhow::Result<u64> {
        let (mut received, mut bytes) = (0, 0);
        let mut over_since = None;
        // So that the end is noticed also where nothing comes.
        let mut looking = tokio::time::interval(Duration::from_millis(500));
        loop {
            if self.is_over.load(Ordering::Acquire) {
                let written =
                    |range: &u64| usize::try_from(*range).map_or(0, |at| self.written[at].load(Ordering::Relaxed));
                // More may come: writes whose answer was lost.
                if received >= self.ranges.iter().map(written).sum() {
                    return Ok(bytes);
                }
                let since: &mut Instant = over_since.get_or_insert_with(Instant::now);
                if self.watcher.is_some() && since.elapsed() > PATIENCE_VALIDATED {
                    return Ok(bytes);
                }
                anyhow::ensure!(since.elapsed() < PATIENCE, "a watcher missed events");
            }
            let response: pb::WatchResponse = tokio::select! {
                biased;
                response = self.stream.message() => response?,
                _ = looking.tick() => continue,
            };
            anyhow::ensure!(!response.canceled, "a watch was cancelled: {}", response.cancel_reason);
            if let Some((validator, watcher)) = &self.watcher {
                validator.received(*watcher, &response);
            }
            let now = micros(self.begin);
            let mut lag = self.lag.lock();
            for event in &response.events {
                let kv = event.kv.as_ref().context("an event has a key")?;
                let mark = Mark::of(&kv.value).context("a value begins with its mark")?;
                lag.record(now.saturating_sub(mark.sent).max(1))?;
                bytes += (kv.key.len() + kv.value.len()) as u64;
            }
            drop(lag);
            received += response.events.len() as u64;
            self.done.fetch_add(response.events.len() as u64, Ordering::Relaxed);
        }
    }
}

/// Puts at `--rate`, or at half of what as many clients reach.
async fn half_of_greatest(common: &Common, writer: &Writer, channels: &[Connection]) -> anyhow::Result<u64> {
    if common.rate > 0 {
        return Ok(common.rate);
    }
    let pace = Pace { rate: 0, total: None, time: TRIAL };
    let trial = drive(writer.all(channels, SENDERS), pace, &Arc::default()).await?;
    anyhow::ensure!(trial.failed == 0, "puts failed: {}", trial.first_error.unwrap_or_default());
    Ok((trial.latency.len() / TRIAL.as_secs() / 2).max(1))
}

/// One phase at a fixed rate.
async fn phase(common: &Common, writer: &Writer, channels: &[Connection], rate: u64) -> anyhow::Result<Measured> {
    let common = Common { rate, ..common.clone() };
    measured(&common, "puts", writer.all(channels, SENDERS)).await
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn p99(measured: &Measured) -> f64 {
    measured.latency.value_at_quantile(0.99) as f64 / 1000.0
}

/// Watch streams whose client does not read.
#[derive(Args, Clone, Debug)]
pub(super) struct Stalled {
    /// Streams that nobody reads.
    #[arg(long, default_value_t = 1000)]
    streams: usize,
    /// Their connections.
    #[arg(long, default_value_t = 100)]
    watch_conns: usize,
    #[command(flatten)]
    keys: Keys,
}

impl Stalled {
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<Report> {
        anyhow::ensure!(self.keys.ranges > 0 && self.watch_conns > 0, "--ranges and --watch-conns must be at least 1");
        let channels = common.channels_of(common.conns.max(32)).await?;
        let writer = Writer::new(&channels[0], self.keys.clone(), Instant::now(), None);
        let rate = half_of_greatest(common, &writer, &channels).await?;
        let without = phase(common, &writer, &channels, rate).await?;
        let again = phase(common, &writer, &channels, rate).await?;
        let watch_channels = common.channels_of(self.watch_conns).await?;
        let mut streams = Vec::with_capacity(self.streams);
        for stream in 0..self.streams {
            let range = stream as u64 % self.keys.ranges;
            streams.push(open(&watch_channels[stream % watch_channels.len()], &[range], 0, false).await?);
        }
        // What fits into the windows and buffers on their way is still delivered.
        let filling = phase(common, &writer, &channels, rate).await?;
        let with = phase(common, &writer, &channels, rate).await?;
        let figures = [
            ("rate puts/s", rate as f64),
            ("put p99 ms while the streams' windows fill", p99(&filling)),
            ("put p99 ms, none stalled", p99(&without)),
            ("put p99 ms, none stalled, again", p99(&again)),
            ("put p99 with / without", p99(&with) / p99(&without)),
            ("put p99 noise", p99(&again) / p99(&without)),
        ];
        let mut report = Report::new("stalled", "puts", with);
        report.figures.extend(figures.map(|(name, value)| (name.to_owned(), value)));
        Ok(report)
    }
}

/// A watch that begins far back.
#[derive(Args, Clone, Debug)]
pub(super) struct Lagging {
    /// How far.
    #[arg(long, default_value_t = 200_000)]
    revisions: u64,
    #[command(flatten)]
    keys: Keys,
}

impl Lagging {
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<Report> {
        anyhow::ensure!(self.keys.ranges > 0, "--ranges must be at least 1");
        let channels = common.channels_of(common.conns.max(32)).await?;
        let writer = Writer::new(&channels[0], self.keys.clone(), Instant::now(), None);
        let rate = half_of_greatest(common, &writer, &channels).await?;
        let first = kv(&channels[0]).put(pb::PutRequest { key: "/bench/begin".into(), ..Default::default() }).await?;
        let first = first.into_inner().header.context("an answer has a header")?.revision;
        let fill = Pace { rate: 0, total: Some(self.revisions), time: Duration::from_secs(3600) };
        let filled = drive(writer.after(1 << 40).all(&channels, SENDERS), fill, &Arc::default()).await?;
        anyhow::ensure!(filled.failed == 0, "puts failed: {}", filled.first_error.unwrap_or_default());
        let without = phase(common, &writer.after(2 << 40), &channels, rate).await?;
        let watch_channels = common.channels_of(1).await?;
        let begin = Instant::now();
        // Every range, from the first of these revisions on.
        let goal = self.revisions * 95 / 100;
        let reading = tokio::spawn(async move {
            let create = pb::WatchCreateRequest {
                key: "/bench/watch/".into(),
                range_end: "/bench/watch0".into(),
                start_revision: first + 1,
                ..Default::default()
            };
            let mut stream = watch(&watch_channels[0], vec![create]).await?;
            let (mut events, mut live) = (0, None);
            while live.is_none() {
                let response: pb::WatchResponse = stream.message().await?;
                anyhow::ensure!(!response.canceled, "the watch was cancelled: {}", response.cancel_reason);
                events += response.events.len() as u64;
                let reached = response.header.as_ref().map_or(0, |header| header.revision);
                let last = response.events.last().and_then(|event| event.kv.as_ref()).map_or(0, |kv| kv.mod_revision);
                // At the server's newest revision, after most of what lay behind it.
                if events >= goal && last + 100 >= reached {
                    live = Some(begin.elapsed());
                }
            }
            anyhow::Ok((events, live.context("the watch ended before it had caught up")?))
        });
        let with = phase(common, &writer.after(3 << 40), &channels, rate).await?;
        let mut figures = vec![
            ("rate puts/s", rate as f64),
            ("put p99 ms, nobody behind", p99(&without)),
            ("put p99 with / without", p99(&with) / p99(&without)),
        ];
        let (events, live) =
            tokio::time::timeout(PATIENCE, reading).await.context("the watch did not catch up")???;
        figures.push(("live after s", live.as_secs_f64()));
        figures.push(("caught up revisions/s", events as f64 / live.as_secs_f64()));
        let mut report = Report::new("lagging", "puts", with);
        report.figures.extend(figures.into_iter().map(|(name, value)| (name.to_owned(), value)));
        Ok(report)
    }
}
