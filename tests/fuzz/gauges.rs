//! What the server holds: memory, descriptors, threads, and calls and watches by its own account.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tailwater_tests::Server;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// After the last client has gone. Threads for blocking work stay some seconds.
const SETTLED_MAX: Duration = Duration::from_secs(60);
const METRICS_MAX: Duration = Duration::from_secs(30);
/// Files of the store come and go as it is written and folded.
const FILES_MORE_MAX: u64 = 100;
const THREADS_MORE_MAX: u64 = 16;
const SOCKETS_MORE_MAX: u64 = 2;
/// What is zero when nobody is there, but for the witness's watch.
const ZERO: [(&str, u64); 4] = [
    ("etcd_debugging_mvcc_watch_stream_total", 1),
    ("etcd_debugging_mvcc_watcher_total", 1),
    ("etcd_debugging_mvcc_slow_watcher_total", 0),
    ("tailwater_fanout_list_streams", 0),
];

/// Methods of which it may have a call open.
const OF_WITNESS: [&str; 3] = ["Watch", "Put", "Range"];

/// At one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Gauges {
    pub(crate) resident_bytes: u64,
    pub(crate) sockets: u64,
    pub(crate) files: u64,
    pub(crate) threads: u64,
    /// Started and not handled.
    pub(crate) calls: u64,
}

impl Gauges {
    async fn read(server: &Server, metrics: &BTreeMap<String, f64>) -> anyhow::Result<Self> {
        let process = format!("/proc/{}", server.pid());
        let (mut sockets, mut files) = (0, 0);
        for entry in fs::read_dir(format!("{process}/fd"))? {
            // One that was closed meanwhile has no target.
            let target = fs::read_link(entry?.path()).unwrap_or_default();
            if target.to_string_lossy().starts_with("socket:") { sockets += 1 } else { files += 1 }
        }
        let threads = fs::read_dir(format!("{process}/task"))?.count() as u64;
        let sum = |name: &str| metrics.get(name).copied().unwrap_or_default();
        let calls = sum("grpc_server_started_total") - sum("grpc_server_handled_total");
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of calls")]
        let calls = calls as u64;
        Ok(Self { resident_bytes: server.resident_bytes()?, sockets, files, threads, calls })
    }
}

/// Waits until nothing is left of clients but the witness and its watch.
///
/// # Errors
/// Something is left after a minute, or the server has panicked.
pub(crate) async fn settled(server: &Server, base: Option<&Gauges>) -> anyhow::Result<Gauges> {
    let begun = Instant::now();
    loop {
        anyhow::ensure!(!server.log().contains("panicked at"), "the server has panicked");
        let metrics = tokio::time::timeout(METRICS_MAX, metrics(server)).await.context("no metrics in time")??;
        let gauges = Gauges::read(server, &metrics).await?;
        let left = left(&gauges, base, &metrics);
        if left.is_empty() {
            return Ok(gauges);
        }
        anyhow::ensure!(
            begun.elapsed() < SETTLED_MAX,
            "left behind by clients that are gone: {left:?}; {gauges:?}, before: {base:?}; sockets: {}",
            socket_states(server)?
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn left(gauges: &Gauges, base: Option<&Gauges>, metrics: &BTreeMap<String, f64>) -> Vec<String> {
    let mut left = Vec::new();
    let mut check = |name: &str, found: u64, max: u64| {
        if found > max {
            left.push(format!("{name} {found}, at most {max}"));
        }
    };
    check("calls", gauges.calls, 2);
    let started =
        metrics.iter().filter_map(|(name, value)| Some((name.strip_prefix("grpc_server_started_total ")?, value)));
    for (method, started) in started.filter(|(method, _)| !OF_WITNESS.contains(method)) {
        let handled = metrics.get(&format!("grpc_server_handled_total {method}")).copied().unwrap_or_default();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of calls")]
        check(method, (started - handled) as u64, 0);
    }
    for (name, expected) in ZERO {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        let found = metrics.get(name).copied().unwrap_or_default() as u64;
        check(name, found, expected);
    }
    if let Some(base) = base {
        check("sockets", gauges.sockets, base.sockets + SOCKETS_MORE_MAX);
        check("files", gauges.files, base.files + FILES_MORE_MAX);
        check("threads", gauges.threads, base.threads + THREADS_MORE_MAX);
    }
    left
}

/// By name, summed over labels.
async fn metrics(server: &Server) -> anyhow::Result<BTreeMap<String, f64>> {
    let address = server.url().trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    anyhow::ensure!(text.contains("grpc_server_started_total"), "these are no metrics: {text:?}");
    let mut found = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, value)) = line.rsplit_once(' ') else { continue };
        let Ok(value) = value.parse::<f64>() else { continue };
        let (name, labels) = name.split_once('{').unwrap_or((name, ""));
        *found.entry(name.to_owned()).or_default() += value;
        // Calls by their methods, to tell which are left.
        if let Some((method, _)) = labels.split_once("grpc_method=\"").and_then(|(_, rest)| rest.split_once('"')) {
            *found.entry(format!("{name} {method}")).or_default() += value;
        }
    }
    Ok(found)
}

/// How its connections stand: where the other side has closed and this has not, the server has missed it; where both are
/// open, the client is still there.
fn socket_states(server: &Server) -> anyhow::Result<String> {
    let mut states = BTreeMap::<&str, u32>::new();
    let mut own = Vec::new();
    for entry in fs::read_dir(format!("/proc/{}/fd", server.pid()))? {
        let target = fs::read_link(entry?.path()).unwrap_or_default();
        own.extend(
            target.to_string_lossy().strip_prefix("socket:[").map(|inode| inode.trim_end_matches(']').to_owned()),
        );
    }
    for line in fs::read_to_string("/proc/net/tcp")?.lines().skip(1) {
        let columns: Vec<_> = line.split_whitespace().collect();
        if let [_, _, _, state, _, _, _, _, _, inode, ..] = columns[..]
            && own.iter().any(|own| own == inode)
        {
            let state = match state {
                "01" => "open",
                "08" => "closed by the client",
                "0A" => "listening",
                _ => "other",
            };
            *states.entry(state).or_default() += 1;
        }
    }
    Ok(format!("{states:?}"))
}
