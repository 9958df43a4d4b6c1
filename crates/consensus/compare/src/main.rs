//! One workload on three raft logs: the project's own, the crate raft-engine, and RocksDB with its write-ahead log.
//!
//! Each batch is written and synced before the next. Usage: `tailwater-raft-log-compare [seconds per case] [directory]`.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use raft::eraftpb::Entry;
use raft_engine::{Config, Engine, LogBatch, MessageExt, ReadableSize};
use tailwater_consensus::raft_log::{RaftLog, RaftLogConfig, RealDisk};

const ENTRY_BYTES: usize = 300;
const RECOVERY_ENTRIES: u64 = 1_000_000;
const RECOVERY_BATCH: u64 = 1000;
const REGION: u64 = 1;

/// What is compared: appends a batch and makes it durable.
trait Candidate {
    fn append(&mut self, entries: &[Entry]) -> Result<()>;
}

struct Own(RaftLog);

impl Candidate for Own {
    fn append(&mut self, entries: &[Entry]) -> Result<()> {
        self.0.view().stage(entries);
        self.0.append(entries, None)?;
        self.0.sync()?;
        Ok(())
    }
}

/// raft-engine wants entries of protobuf 2; its own length-delimited wrapper carries ours.
#[derive(Clone)]
struct Wrapped;

impl MessageExt for Wrapped {
    type Entry = protobuf::well_known_types::Any;

    fn index(entry: &Self::Entry) -> u64 {
        entry.type_url.parse().expect("the index was put there")
    }
}

struct Library(Engine);

impl Candidate for Library {
    fn append(&mut self, entries: &[Entry]) -> Result<()> {
        let wrapped: Vec<_> = entries
            .iter()
            .map(|entry| {
                let mut any = protobuf::well_known_types::Any::new();
                any.type_url = entry.index.to_string();
                any.value = entry.data.clone();
                any
            })
            .collect();
        let mut batch = LogBatch::default();
        batch.add_entries::<Wrapped>(REGION, &wrapped)?;
        self.0.write(&mut batch, true)?;
        Ok(())
    }
}

struct Rocks(rocksdb::DB);

impl Candidate for Rocks {
    fn append(&mut self, entries: &[Entry]) -> Result<()> {
        let mut batch = rocksdb::WriteBatch::default();
        for entry in entries {
            batch.put(entry.index.to_be_bytes(), &entry.data);
        }
        let mut options = rocksdb::WriteOptions::default();
        options.set_sync(true);
        self.0.write_opt(batch, &options)?;
        Ok(())
    }
}

fn open(name: &str, dir: &Path) -> Result<Box<dyn Candidate>> {
    Ok(match name {
        "own" => Box::new(Own(RaftLog::open(Arc::new(RealDisk::new(dir)?), RaftLogConfig::default())?.0)),
        "raft-engine" => {
            let config = Config {
                dir: dir.to_str().context("the directory is no UTF-8")?.to_owned(),
                // The own log compresses nothing either.
                batch_compression_threshold: ReadableSize::kb(0),
                ..Config::default()
            };
            Box::new(Library(Engine::open(config)?))
        }
        "rocksdb" => {
            let mut options = rocksdb::Options::default();
            options.create_if_missing(true);
            Box::new(Rocks(rocksdb::DB::open(&options, dir)?))
        }
        other => return Err(anyhow!("no candidate {other}")),
    })
}

fn batch(first: u64, len: u64) -> Vec<Entry> {
    // Bytes that do not compress, different for each entry.
    let fill = |index: u64| {
        let mut state = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let bytes = (0..ENTRY_BYTES).map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        });
        bytes.collect()
    };
    (first..first + len).map(|index| Entry { index, term: 1, data: fill(index), ..Entry::default() }).collect()
}

/// Bytes handed to the block layer by this process so far.
fn written_bytes() -> Result<u64> {
    let io = std::fs::read_to_string("/proc/self/io")?;
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    Ok(line.context("no write_bytes in /proc/self/io")?.parse()?)
}

/// CPU time of this process so far, all threads, user and system.
fn cpu() -> Result<Duration> {
    let mut total = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        total += text.split_whitespace().next().context("empty schedstat")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(total))
}

fn measure(name: &str, len: u64, period: Duration, base: &Path) -> Result<()> {
    let dir = tempfile::tempdir_in(base)?;
    let mut candidate = open(name, &dir.path().join("log"))?;
    let mut next = 1;
    let mut took = Vec::new();
    // Made before, so that only the log's own work is counted.
    let mut busy = Duration::ZERO;
    let (bytes, begun) = (written_bytes()?, Instant::now());
    while begun.elapsed() < period {
        let entries = batch(next, len);
        let (at, used) = (Instant::now(), cpu()?);
        candidate.append(&entries)?;
        took.push(at.elapsed());
        busy += cpu()?.saturating_sub(used);
        next += len;
    }
    let bytes = written_bytes()? - bytes;
    took.sort();
    let total: f64 = took.iter().map(Duration::as_secs_f64).sum();
    let batches = took.len();
    let micros = |part: usize| took[(batches * part / 100).min(batches - 1)].as_secs_f64() * 1e6;
    println!(
        "| {name} | {len} | {:.0} | {:.0} | {:.0} | {:.2} | {:.0} |",
        (next - 1) as f64 / total,
        micros(50),
        micros(99),
        bytes as f64 / ((next - 1) as f64 * ENTRY_BYTES as f64),
        busy.as_secs_f64() * 1e6 / batches as f64,
    );
    Ok(())
}

fn recovery(name: &str, base: &Path) -> Result<()> {
    let dir = tempfile::tempdir_in(base)?;
    let path = dir.path().join("log");
    let mut candidate = open(name, &path)?;
    for first in (1..=RECOVERY_ENTRIES).step_by(RECOVERY_BATCH as usize) {
        candidate.append(&batch(first, RECOVERY_BATCH))?;
    }
    drop(candidate);
    let begun = Instant::now();
    let candidate = open(name, &path)?;
    println!("| {name} | {:.0} |", begun.elapsed().as_secs_f64() * 1e3);
    drop(candidate);
    Ok(())
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let seconds: u64 = args.next().map_or(Ok(5), |text| text.parse())?;
    let base = args.next().unwrap_or_else(|| ".".to_owned());
    let (base, period) = (Path::new(&base), Duration::from_secs(seconds));
    let names = ["own", "raft-engine", "rocksdb"];
    println!("| log | entries per batch | entries/s | p50 µs | p99 µs | bytes written ÷ payload | CPU µs per batch |");
    println!("|---|---|---|---|---|---|---|");
    for len in [1, 32, 1000] {
        for name in names {
            measure(name, len, period, base)?;
        }
    }
    println!("\n| log | open with {RECOVERY_ENTRIES} entries, ms |\n|---|---|");
    for name in names {
        recovery(name, base)?;
    }
    Ok(())
}
