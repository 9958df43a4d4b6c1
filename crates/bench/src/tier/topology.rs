//! What the leader spends on the fanouts below it.
//!
//! Fanouts follow the leader itself through a forwarder that counts bytes: none, one, two, four of them, and four behind one
//! relay. Puts go on at a fixed rate; the leader's CPU time per put and the bytes that it sent to fanouts stand in the table.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::Common;
use super::figures::Figures;
use super::group::{Fanout, Group};
use super::puts::Target;
use crate::server::Program;
use crate::stalled::millis;

/// The experiment's arguments.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Rounds, each of which starts the members afresh.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each phase.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Puts per second; 0: half of the greatest rate, found in the first round.
    #[arg(long, default_value_t = 0)]
    rate: u64,
}

const ONE: &str = "1 fanout";
const RELAY: &str = "1 relay, 4 fanouts behind it";
/// How much more or less the leader may spend on the relay than on one fanout, beyond the noise of a machine.
const ALIKE: std::ops::RangeInclusive<f64> = 0.9..=1.1;

/// Fanouts directly below the leader, and fanouts behind the first of them.
const SHAPES: [(&str, usize, usize); 6] = [
    ("no fanout", 0, 0),
    (ONE, 1, 0),
    ("2 fanouts", 2, 0),
    ("4 fanouts", 4, 0),
    (RELAY, 1, 4),
    ("1 fanout, again", 1, 0),
];

/// Runs all rounds and prints the table.
#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    arguments.common.begin()?;
    let program = arguments.common.programs()?.into_iter().find(|program| program.name == "tailwater");
    let program = program.context("--tailwater names the server: etcd has no fanouts")?;
    let mut figures = Figures::default();
    let mut rate = arguments.rate;
    for round in 0..arguments.rounds {
        eprintln!("round {} of {}", round + 1, arguments.rounds);
        let common = Common { fanouts: 0, ..arguments.common.clone() };
        let group = Group::start(&common, &program, &[]).await?;
        let target =
            Target { endpoint: group.members.endpoint.clone(), prefix: "/put/", keys: 10_000, value_bytes: 1024 };
        if arguments.rate == 0 {
            // In every round, so that whatever grows with puts has grown.
            let greatest = target.greatest_rate(Duration::from_secs(5)).await?;
            rate = if rate == 0 { greatest / 2 } else { rate };
        }
        for shape in SHAPES {
            phase(&arguments, &program, &group, (&target, rate), shape, &mut figures).await?;
        }
        group.stop().await?;
    }
    println!("Medians of {} rounds, {} s a phase.", arguments.rounds, arguments.seconds);
    figures.print(&["puts/s", "p99 ms", "leader us/put", "consensus us/put", "bytes sent/put"]);
    figures.print_ratios(ONE, &["leader us/put", "bytes sent/put"]);
    println!("\n\"1 fanout, again\" ÷ \"1 fanout\" is the noise (A/A).\n");
    for (what, figure) in [("bytes sent", "bytes sent/put"), ("CPU of the leader", "leader us/put")] {
        let ratio = figures.get(program.name, RELAY, figure).against(&figures.get(program.name, ONE, figure));
        let word = if ALIKE.contains(&ratio.median) { "kept" } else { "MISSED" };
        println!("{word}: {what} for a relay with four fanouts ÷ for one fanout: {ratio}");
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
async fn phase(
    arguments: &Arguments,
    program: &Program,
    group: &Group,
    (target, rate): (&Target, u64),
    (name, direct, behind): (&'static str, usize, usize),
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let counter = Counter::start(&group.members.peers[0]).await?;
    let mut fanouts = Vec::new();
    for _ in 0..direct {
        fanouts.push(Fanout::start(program, std::slice::from_ref(&counter.url), arguments.common.pin, &[]).await?);
    }
    for _ in 0..behind {
        let relay = fanouts[0].peer.clone();
        fanouts.push(Fanout::start(program, &[relay], arguments.common.pin, &[]).await?);
    }
    // The transfer of the state is not what is measured.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = (group.members.leader_usage()?.cpu_seconds, group.cpu_seconds()?.0, counter.sent());
    let measured = target.open_loop(rate, Duration::from_secs(arguments.seconds)).await?;
    let after = (group.members.leader_usage()?.cpu_seconds, group.cpu_seconds()?.0, counter.sent());
    anyhow::ensure!(measured.failed == 0, "{} puts failed", measured.failed);
    let puts = measured.latency.len().max(1) as f64;
    for (figure, value) in [
        ("puts/s", rate as f64),
        ("p99 ms", millis(measured.latency.value_at_quantile(0.99))),
        ("leader us/put", (after.0 - before.0) * 1e6 / puts),
        ("consensus us/put", (after.1 - before.1) * 1e6 / puts),
        ("bytes sent/put", (after.2 - before.2) as f64 / puts),
    ] {
        figures.add(program.name, name, figure, value);
    }
    Ok(())
}

/// A forwarder that counts what comes back.
struct Counter {
    url: String,
    sent: Arc<AtomicU64>,
    task: tokio::task::AbortHandle,
}

impl Counter {
    async fn start(to: &str) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let (to, sent) = (to.trim_start_matches("http://").to_owned(), Arc::new(AtomicU64::new(0)));
        let counted = Arc::clone(&sent);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(forward(stream, to.clone(), Arc::clone(&counted)));
            }
        });
        Ok(Self { url, sent, task: task.abort_handle() })
    }

    /// Bytes that came back so far.
    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(stream: TcpStream, to: String, sent: Arc<AtomicU64>) -> std::io::Result<()> {
    let onward = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    onward.set_nodelay(true)?;
    let (mut client_reads, mut client_writes) = stream.into_split();
    let (mut server_reads, mut server_writes) = onward.into_split();
    let there = async {
        tokio::io::copy(&mut client_reads, &mut server_writes).await?;
        server_writes.shutdown().await
    };
    let back = async {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let length = server_reads.read(&mut buffer).await?;
            if length == 0 {
                return client_writes.shutdown().await;
            }
            sent.fetch_add(length as u64, Ordering::Relaxed);
            client_writes.write_all(&buffer[..length]).await?;
        }
    };
    tokio::try_join!(there, back).map(|_| ())
}
