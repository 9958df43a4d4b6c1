//! Memory per stream, per watch and per key.
//!
//! Each figure is of fresh processes. Streams and watches: resident memory of the one that serves them, before and after
//! they are opened (idle), and after events for each of them that nobody reads (lagging). Keys: resident memory of one
//! process with all roles, beside etcd's, and of a fanout behind it.

use std::time::Duration;

use anyhow::Context;
use clap::Args;
use tailwater_api::etcdserverpb as pb;

use super::Common;
use super::clients::{Arguments as Watching, Clients, Mode};
use super::figures::Figures;
use super::group::{Fanout, Group};
use super::puts::Target;
use crate::load::{connect, kv};
use crate::server::Program;

const PREFIX: &str = "/memory/";
/// How long a server gets to put away what it does not need.
const SETTLING: Duration = Duration::from_secs(3);

/// The experiment's arguments.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Connections of watchers.
    #[arg(long, default_value_t = 100)]
    connections: usize,
    /// Streams with one watch each.
    #[arg(long, default_value_t = 10_000)]
    streams: u64,
    /// Streams with as many watches each.
    #[arg(long, default_value_t = 1000)]
    wide: u64,
    /// Puts of 1 KiB for each stream while nobody reads.
    #[arg(long, default_value_t = 96)]
    lag: u64,
    /// Keys of 512 B in a store; 0: leave the stores out.
    #[arg(long, default_value_t = 1_000_000)]
    stored: u64,
}

/// Runs all parts for each server and prints the table.
#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    arguments.common.begin()?;
    let mut figures = Figures::default();
    for program in arguments.common.programs()? {
        for (name, streams, watches) in
            [("streams x 1", arguments.streams, 1), ("streams x many", arguments.wide, arguments.wide)]
        {
            eprintln!("{}: {streams} {name}", program.name);
            watchers(&arguments, &program, name, (streams, watches), &mut figures).await?;
        }
        if arguments.stored > 0 {
            eprintln!("{}: {} keys", program.name, arguments.stored);
            stored(&arguments, &program, &mut figures).await?;
        }
    }
    figures.print(&[
        "streams",
        "watches",
        "idle B/stream",
        "idle B/watch",
        "lagging B/stream",
        "sockets and process MiB",
    ]);
    figures.print(&["keys", "RSS MiB", "B/key above values"]);
    for (part, figure, limit) in [
        ("streams x 1", "idle B/stream", 1.0 / 3.0),
        ("streams x 1", "lagging B/stream", 1.0 / 3.0),
        ("store", "RSS MiB", 1.0),
        ("store, read once", "RSS MiB", 1.0),
    ] {
        let (ours, theirs) = (figures.get("tailwater", part, figure), figures.get("etcd", part, figure));
        if ours.median() > 0.0 && theirs.median() > 0.0 {
            let ratio = ours.against(&theirs).median;
            let word = if ratio <= limit { "kept" } else { "MISSED" };
            println!("{word}: {part}, {figure}: {ratio:.2} of etcd's, limit {limit:.2}");
        }
    }
    for (scenario, figure, limit) in
        [("streams x many", "idle B/watch", 200.0), ("store of a fanout", "B/key above values", 250.0)]
    {
        let ours = figures.get("tailwater", scenario, figure).median();
        if arguments.common.tailwater.is_none() {
            continue;
        }
        let word = if ours <= limit { "kept" } else { "MISSED" };
        println!("{word}: {scenario}, {figure}: {ours:.0}, limit {limit:.0}");
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
async fn watchers(
    arguments: &Arguments,
    program: &Program,
    name: &str,
    (streams, watches): (u64, u64),
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let common = Common { members: 1, fanouts: 1, ..arguments.common.clone() };
    let group = Group::start(&common, program, &[]).await?;
    let reader = |group: &Group| match group.fanouts.first() {
        Some(fanout) => fanout.resident_bytes(),
        None => group.members.memory_bytes(),
    };
    let keys = streams * watches;
    let target = Target { endpoint: group.members.endpoint.clone(), prefix: PREFIX, keys, value_bytes: 1024 };
    // Whatever grows with puts has grown before, and so has what grows with the first connections.
    let lag = streams * arguments.lag;
    target.fill(lag).await?;
    tokio::time::sleep(SETTLING).await;
    let before = reader(&group)?;
    let clients = Clients::start(
        &Watching {
            endpoints: group.readers().into_iter().take(1).collect(),
            connections: arguments.connections,
            streams,
            watches,
            mode: Mode::Stalled,
            prefix: PREFIX.to_owned(),
            keys,
            ranges: keys,
            start: 0,
            live_at: 0,
        },
        common.pin,
    )
    .await?;
    tokio::time::sleep(SETTLING).await;
    let idle = reader(&group)?.saturating_sub(before) as f64;
    target.fill(lag).await?;
    tokio::time::sleep(SETTLING).await;
    let lagging = reader(&group)?.saturating_sub(before) as f64;
    let all = group.reader_bytes()? as f64 / f64::from(1 << 20);
    eprintln!("  idle {:.0}, lagging {:.0} B a stream", idle / streams as f64, lagging / streams as f64);
    for (figure, value) in [
        ("streams", streams as f64),
        ("watches", keys as f64),
        ("idle B/stream", idle / streams as f64),
        ("idle B/watch", idle / keys as f64),
        ("lagging B/stream", lagging / streams as f64),
        ("sockets and process MiB", all),
    ] {
        figures.add(program.name, name, figure, value);
    }
    clients.stop().await?;
    group.stop().await
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
async fn stored(arguments: &Arguments, program: &Program, figures: &mut Figures) -> anyhow::Result<()> {
    const VALUE_BYTES: usize = 512;
    let common = Common { members: 1, fanouts: 0, ..arguments.common.clone() };
    let group = Group::start(&common, program, &[]).await?;
    let target = Target {
        endpoint: group.members.endpoint.clone(),
        prefix: PREFIX,
        keys: arguments.stored,
        value_bytes: VALUE_BYTES,
    };
    target.fill(arguments.stored).await?;
    tokio::time::sleep(SETTLING).await;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let values = arguments.stored as f64 * VALUE_BYTES as f64;
    let mut add = |scenario: &str, bytes: u64| {
        figures.add(program.name, scenario, "keys", arguments.stored as f64);
        figures.add(program.name, scenario, "RSS MiB", mib(bytes));
        eprintln!("  {scenario}: {:.0} MiB resident", mib(bytes));
        let above = (bytes as f64 - values) / arguments.stored as f64;
        figures.add(program.name, scenario, "B/key above values", above);
    };
    add("store", group.members.memory_bytes()?);
    // A store that keeps its data in mapped files has them in memory once they were read.
    read_once(&group.members.endpoint, arguments.stored).await?;
    add("store, read once", group.members.memory_bytes()?);
    if program.name == "tailwater" {
        let fanout = Fanout::start(program, &group.members.peers, common.pin, &[]).await?;
        tokio::time::sleep(SETTLING).await;
        add("store of a fanout", fanout.resident_bytes()?);
    }
    group.stop().await
}

/// Lists everything in pages.
async fn read_once(endpoint: &str, keys: u64) -> anyhow::Result<()> {
    const PAGE: i64 = 10_000;
    let mut client = kv(&connect(endpoint, 1).await?[0]);
    let (mut seen, mut key) = (0, PREFIX.as_bytes().to_vec());
    while seen < keys {
        let page =
            pb::RangeRequest { key: key.into(), range_end: "/memory0".into(), limit: PAGE, ..Default::default() };
        let kvs = client.range(page).await?.into_inner().kvs;
        let last = kvs.last().context("fewer keys than were put")?;
        (seen, key) = (seen + kvs.len() as u64, [&last.key[..], &[0]].concat());
    }
    Ok(())
}
