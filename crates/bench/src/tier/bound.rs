//! What stalled watches and lists hold while much passes them.
//!
//! The same run twice, each on fresh processes: once with nobody watching, once with stalled watch streams (half of them
//! don't read, the process of the other half is stopped) and stalled RangeStream calls. What the fanout's process and
//! the kernel's buffers of its sockets hold is sampled throughout; the difference of the two greatest figures is what the
//! stalled clients cost. Afterwards all of them read on, and each must get everything in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use tailwater_api::etcdserverpb as pb;

use super::Common;
use super::clients::{Arguments as Watching, Clients, LAST, Mode};
use super::group::Group;
use super::puts::Target;
use crate::load::{connect, kv};

const PREFIX: &str = "/bound/";
const LISTED: &str = "/list/";
const SAMPLE_INTERVAL: Duration = Duration::from_millis(200);

/// The experiment's arguments.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    common: Common,
    /// The bound of what watch streams hold, in bytes.
    #[arg(long, default_value_t = 256 << 20)]
    watch_memory_bytes: u64,
    /// Stalled watch streams.
    #[arg(long, default_value_t = 5000)]
    streams: u64,
    /// Stalled RangeStream calls.
    #[arg(long, default_value_t = 1000)]
    lists: u64,
    /// Keys that are listed.
    #[arg(long, default_value_t = 20_000)]
    listed: u64,
    /// Connections of each kind of client.
    #[arg(long, default_value_t = 50)]
    connections: usize,
    /// Bytes of events that pass.
    #[arg(long, default_value_t = 2 << 30)]
    bytes: u64,
    /// Bytes of each value.
    #[arg(long, default_value_t = 8 << 10)]
    value_bytes: usize,
    /// Disjoint ranges that the streams watch by turns.
    #[arg(long, default_value_t = 1000)]
    ranges: u64,
}

/// What one run held.
struct Held {
    before: u64,
    most: u64,
}

/// Runs without and with stalled clients, and prints what they cost.
#[expect(clippy::print_stdout, clippy::cast_precision_loss, reason = "the result of the command")]
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    arguments.common.begin()?;
    let program = arguments.common.programs()?.into_iter().find(|program| program.name == "tailwater");
    let program = program.context("--tailwater names the server: etcd has no such bound")?;
    let common = Common { fanouts: 1, ..arguments.common.clone() };
    let flags = [format!("--watch-memory-bytes={}", arguments.watch_memory_bytes)];
    let mut held = Vec::new();
    for stalled in [false, true] {
        let group = Group::start(&common, &program, &flags).await?;
        held.push(pass(&arguments, group, stalled).await?);
    }
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!("| run | MiB before | MiB at most (process and sockets) |\n|---|---|---|");
    for (name, held) in ["nobody watches", "stalled clients"].iter().zip(&held) {
        println!("| {name} | {:.0} | {:.0} |", mib(held.before), mib(held.most));
    }
    let cost = held[1].most.saturating_sub(held[0].most);
    let bound = arguments.watch_memory_bytes + arguments.watch_memory_bytes / 10;
    println!(
        "\n{}: {} stalled streams and {} stalled lists cost {:.0} MiB; the bound and 10 % are {:.0} MiB. All read on and got \
         everything in order.",
        if cost <= bound { "kept" } else { "MISSED" },
        arguments.streams,
        arguments.lists,
        mib(cost),
        mib(bound)
    );
    Ok(())
}

/// One run: fill what is listed, open the stalled clients, let the events pass, and let the clients read on.
async fn pass(arguments: &Arguments, group: Group, stalled: bool) -> anyhow::Result<Held> {
    let group = Arc::new(group);
    let endpoint = group.members.endpoint.clone();
    let keys = arguments.ranges * 8;
    let listed = Target { endpoint: endpoint.clone(), prefix: LISTED, keys: arguments.listed, value_bytes: 1024 };
    let target = Target { endpoint, prefix: PREFIX, keys, value_bytes: arguments.value_bytes };
    listed.fill(arguments.listed).await?;
    let mut clients = Vec::new();
    if stalled {
        clients = open(arguments, &group, keys).await?;
    }
    let before = group.reader_bytes()?;
    let most = Arc::new(AtomicU64::new(before));
    let sampler = tokio::spawn(sample(Arc::clone(&group), Arc::clone(&most)));
    target.fill(arguments.bytes / arguments.value_bytes as u64).await?;
    finish_ranges(&target, arguments.ranges).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let most_bytes = most.load(Ordering::Relaxed);
    for mut one in clients {
        one.signal("-CONT")?;
        one.read().await?;
        one.stop().await?;
    }
    sampler.abort();
    drop(sampler.await);
    Arc::into_inner(group).context("the sampler has ended")?.stop().await?;
    Ok(Held { before, most: most_bytes })
}

async fn open(arguments: &Arguments, group: &Group, keys: u64) -> anyhow::Result<Vec<Clients>> {
    let watching = |streams: u64, mode: Mode| Watching {
        endpoints: group.readers(),
        connections: arguments.connections,
        streams,
        watches: 1,
        mode,
        prefix: if mode == Mode::Lists { LISTED } else { PREFIX }.to_owned(),
        keys: if mode == Mode::Lists { arguments.listed } else { keys },
        ranges: arguments.ranges,
        start: 0,
        live_at: 0,
    };
    let pin = arguments.common.pin;
    let stopped = Clients::start(&watching(arguments.streams / 2, Mode::Stalled), pin).await?;
    stopped.signal("-STOP")?;
    let silent = Clients::start(&watching(arguments.streams - arguments.streams / 2, Mode::Stalled), pin).await?;
    let mut clients = vec![stopped, silent];
    if arguments.lists > 0 {
        clients.push(Clients::start(&watching(arguments.lists, Mode::Lists), pin).await?);
    }
    Ok(clients)
}

/// The last put of each range, which tells its watchers that nothing comes any more.
async fn finish_ranges(target: &Target, ranges: u64) -> anyhow::Result<()> {
    let mut client = kv(&connect(&target.endpoint, 1).await?[0]);
    for range in 0..ranges {
        let key = format!("{}{:08}", target.prefix, target.keys * range / ranges).into();
        client.put(pb::PutRequest { key, value: LAST.into(), ..Default::default() }).await?;
    }
    Ok(())
}

async fn sample(group: Arc<Group>, most: Arc<AtomicU64>) -> anyhow::Result<()> {
    loop {
        most.fetch_max(group.reader_bytes()?, Ordering::Relaxed);
        tokio::time::sleep(SAMPLE_INTERVAL).await;
    }
}
