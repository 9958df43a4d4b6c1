//! What a watch that starts far back costs the writers, and what a compaction costs them.
//!
//! Open-loop puts go on while a watch from the first revision catches up (with a small window: mostly from disk), and
//! while everything but the newest revisions is compacted.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use tailwater_api::etcdserverpb as pb;
use tokio::task::JoinSet;

use crate::load::{connect, kv, open_watch, value};
use crate::server::{Program, Running};
use crate::stalled::{Phase, current_revision, follow, millis, phase};

/// The experiment's arguments.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The tailwater binary.
    #[arg(long)]
    tailwater: Option<PathBuf>,
    /// The etcd binary.
    #[arg(long, conflicts_with = "tailwater")]
    etcd: Option<PathBuf>,
    /// Revisions that the watch lies behind, and that are compacted.
    #[arg(long, default_value_t = 200_000)]
    revisions: u64,
    /// Puts per second.
    #[arg(long, default_value_t = 4000)]
    rate: u64,
    /// tailwater's window, in bytes.
    #[arg(long, default_value_t = 1 << 20)]
    window_bytes: u64,
    /// Pin the server to CPU 0 and this process to CPU 1.
    #[arg(long)]
    pin: bool,
}

/// Runs the three phases and prints them.
#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let (program, extra) = match (&arguments.tailwater, &arguments.etcd) {
        (Some(path), _) => {
            (Program::tailwater(path.clone()), vec!["--window-bytes".to_owned(), arguments.window_bytes.to_string()])
        }
        (None, Some(path)) => (Program::etcd(path.clone()), Vec::new()),
        (None, None) => anyhow::bail!("name a server: --tailwater PATH or --etcd PATH"),
    };
    let mut server = Running::start(&program, &std::env::temp_dir(), arguments.pin, &extra).await?;
    let first = current_revision(&server.endpoint).await? + 1;
    fill(&server.endpoint, arguments.revisions).await?;
    let last = current_revision(&server.endpoint).await?;
    let events = arguments.rate * 15;
    println!("| phase | put p50 ms | put p99 ms | put max ms | lag p99 ms | RSS MiB |\n|---|---|---|---|---|---|");
    print("undisturbed", &phase(&server, arguments.rate, events).await?);

    let stream = open_watch(&connect(&server.endpoint, 1).await?[0], first).await?;
    let catching_up = tokio::spawn(async move {
        let begin = Instant::now();
        follow(stream, first, last).await.map(|()| begin.elapsed())
    });
    print("a watch catches up", &phase(&server, arguments.rate, events).await?);
    let elapsed = catching_up.await?.context("the watch that started far back")?;

    let mut compactor = kv(&connect(&server.endpoint, 1).await?[0]);
    let compact = pb::CompactionRequest { revision: last, physical: false };
    let compacting = tokio::spawn(async move { compactor.compact(compact).await });
    print("a compaction runs", &phase(&server, arguments.rate, events).await?);
    compacting.await??;
    server.stop().await?;
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = (last - first + 1) as f64 / elapsed.as_secs_f64();
    println!(
        "\n{}: {} revisions caught up in {:.1} s, {rate:.0}/s",
        program.name,
        last - first + 1,
        elapsed.as_secs_f64()
    );
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn print(name: &str, phase: &Phase) {
    println!(
        "| {name} | {:.2} | {:.2} | {:.2} | {:.2} | {} |",
        millis(phase.put.value_at_quantile(0.5)),
        millis(phase.put.value_at_quantile(0.99)),
        millis(phase.put.max()),
        millis(phase.lag.value_at_quantile(0.99)),
        phase.memory_mib
    );
}

/// Writes the history that the watch will read: 1 KiB values over 1000 keys.
async fn fill(endpoint: &str, revisions: u64) -> anyhow::Result<()> {
    let channels = connect(endpoint, 16).await?;
    let mut tasks = JoinSet::new();
    for worker in 0..256u64 {
        let mut kv = kv(&channels[usize::try_from(worker).expect("few") % channels.len()]);
        tasks.spawn(async move {
            for index in (worker..revisions).step_by(256) {
                let key = format!("/watch/{:04}", index % 1000).into();
                kv.put(pb::PutRequest { key, value: value(1024, index), ..Default::default() }).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}
