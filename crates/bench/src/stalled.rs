//! What a client that stops reading costs the others.
//!
//! Open-loop puts of 1 KiB over 1000 keys at a fixed rate, with a healthy watcher beside them. Pairs of phases: without
//! and with one stalled watch client, either one that stops polling its stream (flow control) or a whole process that is
//! stopped (SIGSTOP). Afterwards the stalled client reads on, and must get every event in order or be told that its
//! position was compacted.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use tailwater_api::etcdserverpb as pb;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use crate::connection::Connection;
use crate::load::{connect, histogram, kv, micros, open_watch, value};
use crate::messages::Messages;
use crate::server::{Program, Running};

const KEYS: u64 = 1000;
/// The server's window, and its bound for what watch streams hold: resident memory may grow by the latter.
const WINDOW_BYTES: u64 = 64 << 20;
const WATCH_MEMORY_BYTES: u64 = 64 << 20;
/// The server's metric of what watch streams hold, and how often it is read.
const STREAM_BYTES: &str = "tailwater_fanout_stream_bytes ";
const SAMPLE_INTERVAL: Duration = Duration::from_millis(250);
/// How long the greatest rate is looked for.
const CALIBRATION: Duration = Duration::from_secs(5);
const SENDERS: u64 = 64;

/// How the client stops reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Its stream is not polled.
    Flow,
    /// Its process is stopped.
    Sigstop,
}

/// The experiment's arguments.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The tailwater binary.
    #[arg(long)]
    tailwater: Option<PathBuf>,
    /// The etcd binary.
    #[arg(long, conflicts_with = "tailwater")]
    etcd: Option<PathBuf>,
    /// Puts per second; 0: half of what as many senders reach when each sends as fast as it is answered.
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Events that pass in each phase.
    #[arg(long, default_value_t = 200_000)]
    events: u64,
    /// Pairs of phases.
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// How the client stops.
    #[arg(long, default_value = "flow")]
    mode: Mode,
    /// Pin the server to CPU 0 and this process to CPU 1.
    #[arg(long)]
    pin: bool,
}

/// What one phase of open-loop puts measured.
pub(crate) struct Phase {
    /// Microseconds from when a put should have left to its answer.
    pub(crate) put: Histogram<u64>,
    /// Microseconds from when a put should have left to its event at a healthy watcher.
    pub(crate) lag: Histogram<u64>,
    /// Resident memory at the end.
    pub(crate) memory_mib: u64,
}

/// Runs the pairs and prints their medians.
#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let program = match (&arguments.tailwater, &arguments.etcd) {
        (Some(path), _) => Program::tailwater(path.clone()),
        (None, Some(path)) => Program::etcd(path.clone()),
        (None, None) => anyhow::bail!("name a server: --tailwater PATH or --etcd PATH"),
    };
    let bounds = [("--window-bytes", WINDOW_BYTES), ("--watch-memory-bytes", WATCH_MEMORY_BYTES)];
    let bounds = bounds.into_iter().flat_map(|(flag, bytes)| [flag.to_owned(), bytes.to_string()]);
    let extra: Vec<String> = if arguments.tailwater.is_some() { bounds.collect() } else { Vec::new() };
    let mut server = Running::start(&program, &std::env::temp_dir(), arguments.pin, &extra).await?;
    let rate = match arguments.rate {
        0 => greatest_rate(&server.endpoint).await? / 2,
        rate => rate,
    };
    println!("{rate} puts per second\n");
    // Long enough that the window and every cache are full: what grows afterwards is the stalled client's.
    phase(&server, rate, arguments.events).await?;
    println!("| pair | phase | put p50 ms | put p99 ms | lag p99 ms | RSS MiB |\n|---|---|---|---|---|---|");
    let held = Arc::new(AtomicU64::new(0));
    let (mut put_ratios, mut lag_ratios, mut noise, mut growths) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for pair in 1..=arguments.pairs {
        let first = phase(&server, rate, arguments.events).await?;
        let again = phase(&server, rate, arguments.events).await?;
        let begin = current_revision(&server.endpoint).await?;
        let stalled = Stalled::open(&server.endpoint, arguments.mode, begin + 1).await?;
        let sampler = tokio::spawn(sample_stream_bytes(server.endpoint.clone(), held.clone()));
        let with = phase(&server, rate, arguments.events).await?;
        sampler.abort();
        let bytes = held.load(Ordering::Relaxed);
        anyhow::ensure!(bytes <= WATCH_MEMORY_BYTES, "watch streams held {bytes} bytes, above their bound");
        stalled.finish(current_revision(&server.endpoint).await?).await?;
        for (name, phase) in [("without", &first), ("without, again", &again), ("stalled", &with)] {
            let p = |h: &Histogram<u64>, q| millis(h.value_at_quantile(q));
            println!(
                "| {pair} | {name} | {:.2} | {:.2} | {:.2} | {} |",
                p(&phase.put, 0.5),
                p(&phase.put, 0.99),
                p(&phase.lag, 0.99),
                phase.memory_mib
            );
        }
        growths.push(with.memory_mib.saturating_sub(again.memory_mib));
        put_ratios.push(ratio(&with.put, &again.put));
        lag_ratios.push(ratio(&with.lag, &again.lag));
        noise.push(ratio(&again.put, &first.put));
    }
    server.stop().await?;
    growths.sort_unstable();
    let growth = growths[growths.len() / 2];
    // The median, because caches and memtables come and go beside it.
    anyhow::ensure!(
        arguments.tailwater.is_none() || growth <= WATCH_MEMORY_BYTES >> 20,
        "resident memory grew by {growth} MiB, more than watch streams may hold"
    );
    let bytes = held.load(Ordering::Relaxed);
    println!("\nbytes held by watch streams: at most {bytes}; resident memory grew by {growth} MiB (median)");
    println!(
        "\n{} {:?}: put p99 with ÷ without {:.2}, lag p99 with ÷ without {:.2}, A/A noise of put p99 {:.2} (medians of {})",
        program.name,
        arguments.mode,
        median(put_ratios),
        median(lag_ratios),
        median(noise),
        arguments.pairs
    );
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
/// For printing.
pub(crate) fn millis(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

fn ratio(with: &Histogram<u64>, without: &Histogram<u64>) -> f64 {
    millis(with.value_at_quantile(0.99)) / millis(without.value_at_quantile(0.99))
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Looks at the server's own count of what its watch streams hold, until it is aborted, and keeps the most. A server that
/// does not count leaves 0.
async fn sample_stream_bytes(endpoint: String, most: Arc<AtomicU64>) -> anyhow::Result<()> {
    let address = endpoint.trim_start_matches("http://");
    loop {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        let held = text.lines().find_map(|line| line.strip_prefix(STREAM_BYTES)?.trim().parse::<u64>().ok());
        let Some(held) = held else { return Ok(()) };
        most.fetch_max(held, Ordering::Relaxed);
        tokio::time::sleep(SAMPLE_INTERVAL).await;
    }
}

/// Puts per second of [`SENDERS`] that wait only for their answers, a healthy watcher beside them.
async fn greatest_rate(endpoint: &str) -> anyhow::Result<u64> {
    let channels = connect(endpoint, 16).await?;
    let mut watch = open_watch(&connect(endpoint, 1).await?[0], 0).await?;
    let observer = tokio::spawn(async move { while watch.message::<pb::WatchResponse>().await.is_ok() {} });
    let end = Instant::now() + CALIBRATION;
    let mut senders = JoinSet::new();
    for sender in 0..SENDERS {
        let mut kv = kv(&channels[usize::try_from(sender).expect("few") % channels.len()]);
        senders.spawn(async move {
            let mut puts = 0u64;
            while Instant::now() < end {
                let key = format!("/watch/{:04}", (puts * SENDERS + sender) % KEYS).into();
                kv.put(pb::PutRequest { key, value: value(1024, puts), ..Default::default() }).await?;
                puts += 1;
            }
            anyhow::Ok(puts)
        });
    }
    let mut puts = 0;
    while let Some(done) = senders.join_next().await {
        puts += done??;
    }
    observer.abort();
    Ok(puts / CALIBRATION.as_secs())
}

/// The server's revision now.
pub(crate) async fn current_revision(endpoint: &str) -> anyhow::Result<i64> {
    let mut kv = kv(&connect(endpoint, 1).await?[0]);
    let answer = kv.range(pb::RangeRequest { key: "none".into(), ..Default::default() }).await?.into_inner();
    Ok(answer.header.context("an answer has a header")?.revision)
}

/// One phase of open-loop puts: each put has a time at which it should leave, and is measured from then.
pub(crate) async fn phase(server: &Running, rate: u64, events: u64) -> anyhow::Result<Phase> {
    let channels = connect(&server.endpoint, 16).await?;
    let begin = Instant::now();
    let watch = open_watch(&connect(&server.endpoint, 1).await?[0], 0).await?;
    let observer = tokio::spawn(observe(watch, begin, events));
    // One for all senders; see `drive`.
    let put = Arc::new(Mutex::new(histogram()));
    let mut senders = JoinSet::new();
    for sender in 0..SENDERS {
        let channel = channels[usize::try_from(sender).expect("few") % channels.len()].clone();
        senders.spawn(send(channel, sender, rate, events, begin, Arc::clone(&put)));
    }
    while let Some(done) = senders.join_next().await {
        done??;
    }
    let put = Arc::into_inner(put).context("all senders have ended")?.into_inner();
    let lag =
        tokio::time::timeout(Duration::from_secs(60), observer).await.context("the healthy watcher lags 60 s")???;
    Ok(Phase { put, lag, memory_mib: server.memory_bytes()? >> 20 })
}

async fn send(
    channel: Connection,
    sender: u64,
    rate: u64,
    events: u64,
    begin: Instant,
    latency: Arc<Mutex<Histogram<u64>>>,
) -> anyhow::Result<()> {
    let mut kv = kv(&channel);
    for index in (sender..events).step_by(usize::try_from(SENDERS).expect("few")) {
        let due = begin + Duration::from_nanos(1_000_000_000 / rate * index);
        tokio::time::sleep_until(due.into()).await;
        let mut bytes = value(1024, index).to_vec();
        let due_micros = u64::try_from((due - begin).as_micros()).expect("a short run");
        bytes[..8].copy_from_slice(&due_micros.to_be_bytes());
        let key = format!("/watch/{:04}", index % KEYS).into();
        kv.put(pb::PutRequest { key, value: bytes.into(), ..Default::default() }).await?;
        latency.lock().record(micros(due))?;
    }
    Ok(())
}

async fn observe(mut stream: Messages, begin: Instant, events: u64) -> anyhow::Result<Histogram<u64>> {
    let mut lag = histogram();
    while lag.len() < events {
        let response: pb::WatchResponse = stream.message().await.context("the healthy watch ended")?;
        let now = micros(begin);
        for event in response.events {
            let kv = event.kv.context("an event has a key")?;
            let due = u64::from_be_bytes(kv.value[..8].try_into().context("a value begins with its time")?);
            lag.record(now.saturating_sub(due).max(1))?;
        }
    }
    Ok(lag)
}

/// A watch client that does not read.
enum Stalled {
    Flow(Box<Messages>, i64),
    Process(std::process::Child),
}

impl Stalled {
    async fn open(endpoint: &str, mode: Mode, start: i64) -> anyhow::Result<Self> {
        match mode {
            Mode::Flow => Ok(Self::Flow(Box::new(open_watch(&connect(endpoint, 1).await?[0], start).await?), start)),
            Mode::Sigstop => {
                let child = std::process::Command::new(std::env::current_exe()?)
                    .args(["follow", "--endpoint", endpoint, "--start", &start.to_string()])
                    .stdin(Stdio::piped())
                    .spawn()?;
                tokio::time::sleep(Duration::from_millis(500)).await;
                signal("-STOP", child.id())?;
                Ok(Self::Process(child))
            }
        }
    }

    /// Reads on up to `last`, and checks what comes.
    async fn finish(self, last: i64) -> anyhow::Result<()> {
        match self {
            Self::Flow(stream, start) => follow(*stream, start, last).await,
            Self::Process(mut child) => {
                signal("-CONT", child.id())?;
                let mut input = child.stdin.take().context("the child's input is piped")?;
                std::io::Write::write_all(&mut input, format!("{last}\n").as_bytes())?;
                drop(input);
                let status = tokio::task::spawn_blocking(move || child.wait()).await??;
                anyhow::ensure!(status.success(), "the stopped client did not get what it missed");
                Ok(())
            }
        }
    }
}

fn signal(name: &str, id: u32) -> anyhow::Result<()> {
    let done = std::process::Command::new("kill").args([name, &id.to_string()]).status()?;
    anyhow::ensure!(done.success(), "kill {name} failed");
    Ok(())
}

/// Every revision from `start` to `last` in order, once; or the compacted cancel.
pub(crate) async fn follow(mut stream: Messages, start: i64, last: i64) -> anyhow::Result<()> {
    let mut next = start;
    while next <= last {
        let response = tokio::time::timeout(Duration::from_secs(120), stream.message()).await;
        let response: pb::WatchResponse =
            response.context("nothing came for 120 s")?.context("the stalled watch ended")?;
        if response.canceled && response.compact_revision > 0 {
            return Ok(());
        }
        for event in response.events {
            let revision = event.kv.context("an event has a key")?.mod_revision;
            anyhow::ensure!(revision == next, "expected revision {next}, got {revision}");
            next += 1;
        }
    }
    Ok(())
}

/// The stopped process: reads nothing until it is told how far to read.
pub(crate) async fn follow_process(endpoint: &str, start: i64) -> anyhow::Result<()> {
    let stream = open_watch(&connect(endpoint, 1).await?[0], start).await?;
    let mut line = String::new();
    let last = tokio::task::spawn_blocking(move || std::io::stdin().read_line(&mut line).map(|_| line)).await??;
    follow(stream, start, last.trim().parse()?).await
}
