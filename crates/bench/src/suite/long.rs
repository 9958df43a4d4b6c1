//! Rows that take minutes and are more than one load.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;
use tailwater_api::etcdserverpb as pb;

use super::rows::{self, Told};
use super::{Sample, load};
use crate::load::{Kv, connect, histogram, kv, micros};
use crate::report::Report;
use crate::server::{Program, Running, Usage};
use crate::tier::puts::Target;

/// What keys begin with; behind it stand eight digits.
const PREFIX: &str = "/registry/pods/default/pod-";
const PREFIX_END: &str = "/registry/pods/default/pod.";

fn told(figures: &[(&Told, f64)], operations: &Histogram<u64>, elapsed: Duration, used: Usage) -> Sample {
    let mut report = Report::of("long", "operations", operations, elapsed);
    report.figures = figures.iter().map(|(told, value)| (told.name.to_owned(), *value)).collect();
    Sample { report, used }
}

/// Compacts at the newest revision.
async fn compact(kv: &mut Kv) -> anyhow::Result<()> {
    let newest = kv.range(pb::RangeRequest { key: "any".into(), ..Default::default() }).await?.into_inner();
    let revision = newest.header.context("an answer has a header")?.revision;
    kv.compact(pb::CompactionRequest { revision, physical: false }).await?;
    Ok(())
}

async fn count(kv: &mut Kv) -> anyhow::Result<u64> {
    let (key, range_end) = (PREFIX.into(), PREFIX_END.into());
    let request = pb::RangeRequest { key, range_end, count_only: true, ..Default::default() };
    Ok(u64::try_from(kv.range(request).await?.into_inner().count)?)
}

/// 1,000,000 keys of 512 B, put twice and compacted: what they take on the disk, and how long a member that was killed needs.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
pub(super) async fn restart(program: &Program, data: &Path, pin: bool) -> anyhow::Result<Sample> {
    const KEYS: u64 = 1_000_000;
    const VALUE_BYTES: usize = 512;
    let begin = Instant::now();
    let mut running = Running::start(program, data, pin, &[]).await?;
    let target = Target { endpoint: running.endpoint.clone(), prefix: PREFIX, keys: KEYS, value_bytes: VALUE_BYTES };
    target.fill(2 * KEYS).await?;
    let mut kv = kv(&connect(&running.endpoint, 1).await?[0]);
    compact(&mut kv).await?;
    running.settle().await?;
    let live = KEYS as f64 * (PREFIX.len() + 8 + VALUE_BYTES) as f64;
    let disk = running.disk_bytes()? as f64 / live;
    let ready = running.restart().await?.as_secs_f64();
    // The connection is made anew.
    let mut kv = crate::load::kv(&connect(&running.endpoint, 1).await?[0]);
    anyhow::ensure!(count(&mut kv).await? == KEYS, "keys are missing after the restart");
    let used = running.usage()?;
    running.stop().await?;
    Ok(told(&[(&rows::READY, ready), (&rows::DISK, disk)], &histogram(), begin.elapsed(), used))
}

/// What a store of one size takes for each; milliseconds, and seconds until it is ready.
struct Sized {
    p99: f64,
    p99_compaction: f64,
    page: f64,
    ready: f64,
    used: Usage,
}

/// 12 GiB beside 1 GiB.
pub(super) async fn large(program: &Program, data: &Path, pin: bool) -> anyhow::Result<Sample> {
    let begin = Instant::now();
    let small = sized(program, data, pin, 1).await?;
    let large = sized(program, data, pin, 12).await?;
    let figures = [
        (&rows::LARGE_P99, large.p99 / small.p99),
        (&rows::LARGE_COMPACTION, large.p99_compaction / small.p99_compaction),
        (&rows::LARGE_PAGE, large.page / small.page),
        (&rows::LARGE_READY, large.ready / small.ready),
    ];
    Ok(told(&figures, &histogram(), begin.elapsed(), large.used))
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
async fn sized(program: &Program, data: &Path, pin: bool, gib: u64) -> anyhow::Result<Sized> {
    const VALUE_BYTES: usize = 4096;
    const RATE: u64 = 1000;
    const PHASE: Duration = Duration::from_secs(20);
    const PAGES: usize = 500;
    let keys = (gib << 30) / VALUE_BYTES as u64;
    let quota = ["--quota-backend-bytes".to_owned(), (32u64 << 30).to_string()];
    let mut running = Running::start(program, data, pin, &quota).await?;
    let target = Target { endpoint: running.endpoint.clone(), prefix: PREFIX, keys, value_bytes: VALUE_BYTES };
    target.fill(keys).await?;
    running.settle().await?;
    let p99 = |measured: crate::drive::Measured| {
        anyhow::ensure!(measured.failed == 0, "puts failed: {}", measured.first_error.unwrap_or_default());
        Ok(measured.latency.value_at_quantile(0.99) as f64 / 1000.0)
    };
    let quiet = p99(target.open_loop(RATE, PHASE).await?)?;
    let mut kv = kv(&connect(&running.endpoint, 1).await?[0]);
    let mut compacting = kv.clone();
    let compaction = tokio::spawn(async move {
        tokio::time::sleep(PHASE / 4).await;
        compact(&mut compacting).await
    });
    let p99_compaction = p99(target.open_loop(RATE, PHASE).await?)?;
    compaction.await??;
    // What the first compaction of everything leaves to do takes minutes, and is nothing that comes again.
    running.settle().await?;
    let (mut pages, mut key) = (histogram(), bytes::Bytes::from_static(PREFIX.as_bytes()));
    for _ in 0..PAGES {
        let (begin, range_end) = (Instant::now(), PREFIX_END.into());
        let page = pb::RangeRequest { key: key.clone(), range_end, limit: 500, ..Default::default() };
        let kvs = kv.range(page).await?.into_inner().kvs;
        pages.record(micros(begin))?;
        key = [&kvs.last().context("an empty page")?.key[..], &[0]].concat().into();
    }
    let ready = running.restart().await?.as_secs_f64();
    let used = running.usage()?;
    let page = pages.value_at_quantile(0.5) as f64 / 1000.0;
    let disk = running.disk_bytes()? >> 20;
    running.stop().await?;
    eprintln!(
        "  {gib} GiB: put p99 {quiet:.2} ms, {p99_compaction:.2} beside a compaction, page {page:.2} ms, ready {ready:.2} s, \
         {disk} MiB on the disk, {} MiB of memory after the restart",
        used.memory_bytes_max >> 20
    );
    Ok(Sized { p99: quiet, p99_compaction, page, ready, used })
}

/// The most nodes of the model of Kubernetes for which writes are answered and watched within a second (99 of 100) and
/// nothing fails.
pub(super) async fn most_nodes(program: &Program, data: &Path, pin: bool) -> anyhow::Result<Sample> {
    const FIRST: f64 = 5000.0;
    /// So near is the answer.
    const STEP: f64 = 1.1;
    let begin = Instant::now();
    let (mut most, mut too_many, mut used) = (None, None, None);
    let mut nodes = FIRST;
    loop {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "nodes are many, and few enough")]
        match with_nodes(program, data, pin, nodes as u64).await? {
            Some(usage) => (most, used) = (Some(nodes), Some(usage)),
            None => too_many = Some(nodes),
        }
        nodes = match (most, too_many) {
            (Some(most), None) => most * 2.0,
            (Some(most), Some(too_many)) if too_many / most > STEP => (most * too_many).sqrt(),
            _ => break,
        };
    }
    let most: f64 = most.with_context(|| format!("{} is too slow for {FIRST} nodes", program.name))?;
    let used = used.context("a run that passed")?;
    Ok(told(&[(&rows::NODES, most)], &histogram(), begin.elapsed(), used))
}

/// What the server used, if it kept up.
async fn with_nodes(program: &Program, data: &Path, pin: bool, nodes: u64) -> anyhow::Result<Option<Usage>> {
    const SECONDS: u64 = 15;
    const LIMIT_MS: f64 = 1000.0;
    let mut running = Running::start(program, data, pin, &[]).await?;
    let report = load(&format!("kube --nodes={nodes} --seconds={SECONDS}"), &running.endpoint).await?;
    let used = running.usage()?;
    running.stop().await?;
    let lag = report.figures.get("watch lag p99 ms").copied().unwrap_or(f64::INFINITY);
    let writes = report.latency_ms.as_ref().map_or(f64::INFINITY, |at| at.p99);
    let late = report.lateness_ms.as_ref().map_or(0.0, |at| at.p99);
    let kept_up = report.is_good() && lag < LIMIT_MS && writes < LIMIT_MS;
    eprintln!(
        "  {nodes} nodes, {:.0} writes/s: watch lag p99 {lag:.1} ms, write p99 {writes:.1} ms, {} failed; the generator's own \
         p99 {late:.1} ms, server CPU {:.0} %: {}",
        report.per_second,
        report.failed,
        used.cpu_seconds / report.seconds.max(1.0) * 100.0,
        if kept_up { "kept up" } else { "too many" }
    );
    Ok(kept_up.then_some(used))
}
