//! Server processes on loopback.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use tempfile::TempDir;

use crate::RawClient;

const START_SECONDS_MAX: u64 = 30;

/// Which server a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// This project's server.
    Tailwater,
    /// The server whose API is served.
    Etcd,
}

/// How a server is started beyond addresses and data directory.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Further flags, for both kinds of server.
    pub flags: Vec<String>,
    /// Further flags that only an etcd takes.
    pub etcd_flags: Vec<String>,
}

/// A running server with a data directory of its own; killed when dropped.
#[derive(Debug)]
pub struct Server {
    kind: Kind,
    child: Child,
    url: String,
    dir: TempDir,
}

impl Server {
    /// Starts the program of env `TAILWATER`, or the one built in this workspace, and waits until it serves.
    ///
    /// # Errors
    /// When the program is missing, ends, or does not serve within 30 s; its log is in the error.
    pub async fn tailwater(options: &Options) -> anyhow::Result<Self> {
        Self::start(Kind::Tailwater, options).await
    }

    /// Starts the program of env `ETCD`, or `etcd` on PATH, and waits until it serves.
    ///
    /// # Errors
    /// As [`Server::tailwater`].
    pub async fn etcd(options: &Options) -> anyhow::Result<Self> {
        Self::start(Kind::Etcd, options).await
    }

    /// Starts a server of `kind` and waits until it serves.
    ///
    /// # Errors
    /// As [`Server::tailwater`].
    pub async fn start(kind: Kind, options: &Options) -> anyhow::Result<Self> {
        Self::start_on(kind, options, |_, _| Ok(())).await
    }

    /// Starts a server of `kind` on what `prepare` has made of its data directory, which it is given together with the
    /// server's peer URL, and waits until it serves. Its name is "default".
    ///
    /// # Errors
    /// As [`Server::tailwater`], and those of `prepare`.
    pub async fn start_on(
        kind: Kind,
        options: &Options,
        prepare: impl FnOnce(&Path, &str) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let dir = TempDir::new()?;
        let [client, peer] = free_urls();
        prepare(&dir.path().join("data"), &peer)?;
        let mut command = command(kind, &dir.path().join("data"), &client, &peer, &dir.path().join("log"))?;
        command.args(&options.flags);
        if kind == Kind::Etcd {
            command.args(&options.etcd_flags);
        }
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let mut server = Self { kind, child, url: client, dir };
        server.wait_until_serving().await?;
        Ok(server)
    }

    /// The client URL.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The data directory.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Ends the process at once; the data directory stays.
    ///
    /// # Errors
    /// It can't be ended.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Which server this is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the process has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Resident memory in bytes.
    ///
    /// # Errors
    /// Where /proc does not tell it.
    pub fn resident_bytes(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS in /proc")?;
        let kib: u64 = line.split_whitespace().nth(1).context("no number in VmRSS")?.parse()?;
        Ok(kib * 1024)
    }

    async fn wait_until_serving(&mut self) -> anyhow::Result<()> {
        let client = RawClient::new(&self.url)?;
        let deadline = Instant::now() + Duration::from_secs(START_SECONDS_MAX);
        // A linearizable read of the key "a": it is answered only with a leader.
        let read = Bytes::from_static(b"\x0a\x01a");
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("{:?} ended with {status} before it served; its log:\n{}", self.kind, self.log());
            }
            let call = client.unary("/etcdserverpb.KV/Range", read.clone());
            match tokio::time::timeout(Duration::from_secs(2), call).await {
                Ok(Ok(_)) => return Ok(()),
                // Restored with users who matter: it asks who reads, and so it serves.
                Ok(Err(failure)) if failure.message.contains("user name is empty") => return Ok(()),
                _ => {}
            }
            if Instant::now() > deadline {
                bail!("{:?} did not serve within {START_SECONDS_MAX} s; its log:\n{}", self.kind, self.log());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when the process has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The command that serves `data`, alone in its cluster, at two URLs, and writes what it says to a new file `log`.
pub(crate) fn command(kind: Kind, data: &Path, client: &str, peer: &str, log: &Path) -> anyhow::Result<Command> {
    let mut command = Command::new(program(kind)?);
    if kind == Kind::Tailwater {
        command.arg("serve");
    }
    command.args(["--name", "default", "--data-dir"]).arg(data);
    for (flag, url) in [
        ("listen-client-urls", client),
        ("advertise-client-urls", client),
        ("listen-peer-urls", peer),
        ("initial-advertise-peer-urls", peer),
    ] {
        command.arg(format!("--{flag}={url}"));
    }
    let log = File::create(log)?;
    command.arg(format!("--initial-cluster=default={peer}"));
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok(command)
}

/// The program of `kind`: env `TAILWATER` or `ETCD`; else `tailwater` of this build, or `etcd` on PATH.
///
/// # Errors
/// When there is none; the text says what to do.
pub fn program(kind: Kind) -> anyhow::Result<PathBuf> {
    let (variable, found) = match kind {
        Kind::Tailwater => ("TAILWATER", built()),
        Kind::Etcd => ("ETCD", on_path("etcd")),
    };
    if let Some(path) = std::env::var_os(variable).filter(|path| !path.is_empty()) {
        return Ok(PathBuf::from(path));
    }
    found.with_context(|| match kind {
        Kind::Tailwater => "no tailwater beside this test: run `cargo build -p tailwater-server`, or set TAILWATER",
        Kind::Etcd => "no etcd: put one on PATH, or set ETCD",
    })
}

/// Says that a test is left out because `reason`; the lines are shown again at the end of `make test`.
///
/// # Panics
/// When `CI` is `true`: there a test that cannot run is a failure.
pub fn left_out(test: &str, reason: &str) {
    let line = format!("LEFT OUT: {test}: {reason}");
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{line}");
    // Not through a print macro: the test runner would keep its output to itself when the test passes.
    let mut out = std::io::stderr();
    writeln!(out, "{line}").expect("standard error can be written");
}

/// `target/<profile>/tailwater`, seen from `target/<profile>/deps/<this test>`.
fn built() -> Option<PathBuf> {
    let test = std::env::current_exe().ok()?;
    let path = test.parent()?.parent()?.join("tailwater");
    path.is_file().then_some(path)
}

/// A program of etcd's beside the server, by env or on PATH: `etcdutl` by `ETCDUTL`.
///
/// # Errors
/// When there is none; the text says what to do.
pub fn tool(name: &str) -> anyhow::Result<PathBuf> {
    let variable = name.to_uppercase();
    match std::env::var_os(&variable).filter(|path| !path.is_empty()) {
        Some(path) => Ok(PathBuf::from(path)),
        None => on_path(name).with_context(|| format!("no {name}: put one on PATH, or set {variable}")),
    }
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path: OsString = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file: &PathBuf| Path::is_file(file))
}

/// A loopback port that was free a moment ago. It lies below those that connections get at their own end, so that none takes
/// it before a server does.
///
/// # Panics
/// There is none.
#[must_use]
pub fn free_port() -> u16 {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(rand::random()));
    let mut tries = (0..1000).map(|_| 15_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 17_000);
    tries.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("a free port among 1000")
}

/// Two loopback URLs whose ports were free a moment ago.
pub(crate) fn free_urls() -> [String; 2] {
    [(); 2].map(|()| format!("http://127.0.0.1:{}", free_port()))
}
