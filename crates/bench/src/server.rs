//! A server process under measurement.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context;
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// Which server, and how it is started.
pub(crate) struct Program {
    /// Stands in the table.
    pub(crate) name: &'static str,
    path: PathBuf,
    subcommand: Option<&'static str>,
}

impl Program {
    /// Ours.
    pub(crate) fn tailwater(path: PathBuf) -> Self {
        Self { name: "tailwater", path, subcommand: Some("serve") }
    }

    /// The reference.
    pub(crate) fn etcd(path: PathBuf) -> Self {
        Self { name: "etcd", path, subcommand: None }
    }
}

/// What the process has used since its start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// User and system time.
    pub(crate) cpu_seconds: f64,
    /// High-water mark of resident memory, bytes.
    pub(crate) memory_bytes_max: u64,
    /// Bytes that reached the block layer.
    pub(crate) written_bytes: u64,
}

impl Usage {
    /// The difference; the high-water mark stays.
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            cpu_seconds: self.cpu_seconds - before.cpu_seconds,
            memory_bytes_max: self.memory_bytes_max,
            written_bytes: self.written_bytes - before.written_bytes,
        }
    }
}

/// A running server with a fresh data directory.
pub(crate) struct Running {
    /// Its client URL.
    pub(crate) endpoint: String,
    child: Child,
    _data: TempDir,
}

/// Keeps this process on CPU 1.
pub(crate) fn pin_self() -> anyhow::Result<()> {
    let done = std::process::Command::new("taskset")
        .args(["-a", "-p", "-c", "1", &std::process::id().to_string()])
        .stdout(Stdio::null())
        .status()?;
    anyhow::ensure!(done.success(), "taskset failed");
    Ok(())
}

fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Running {
    /// Starts it and waits until it answers.
    pub(crate) async fn start(program: &Program, data: &Path, pin: bool, arguments: &[String]) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("tailwater-bench-").tempdir_in(data)?;
        let client = format!("http://127.0.0.1:{}", free_port()?);
        let peer = format!("http://127.0.0.1:{}", free_port()?);
        let mut command = if pin {
            let mut command = Command::new("taskset");
            command.args(["-c", "0"]).arg(&program.path);
            command
        } else {
            Command::new(&program.path)
        };
        command
            .args(program.subcommand)
            .args(["--name", "default", "--log-level", "error"])
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--quota-backend-bytes", "8589934592"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("starting {}", program.path.display()))?;
        let running = Self { endpoint: client, child, _data: dir };
        let begin = Instant::now();
        loop {
            match crate::load::run(&running.endpoint, crate::load::Workload::Get, Duration::ZERO).await {
                Ok(_) => return Ok(running),
                Err(error) if begin.elapsed() > Duration::from_secs(30) => {
                    return Err(error.context(format!("{} did not begin to serve", program.name)));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// From /proc; the process must live.
    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        let id = self.child.id().context("the server has ended")?;
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
        // Fields 14 and 15 (proc(5)), counted behind the command name, which may hold spaces.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        Ok(Usage {
            // USER_HZ is 100 on every Linux that Rust's standard targets run on.
            cpu_seconds: ticks / 100.0,
            memory_bytes_max: field(&format!("/proc/{id}/status"), "VmHWM:")? * 1024,
            written_bytes: field(&format!("/proc/{id}/io"), "write_bytes:")?,
        })
    }

    /// Resident memory now, bytes.
    pub(crate) fn memory_bytes(&self) -> anyhow::Result<u64> {
        let id = self.child.id().context("the server has ended")?;
        Ok(field(&format!("/proc/{id}/status"), "VmRSS:")? * 1024)
    }

    /// Ends it; its data goes with it.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<()> {
        self.child.kill().await?;
        Ok(())
    }
}

fn field(path: &str, name: &str) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(path)?;
    let line = text.lines().find(|line| line.starts_with(name)).with_context(|| format!("{path} has no {name}"))?;
    Ok(line[name.len()..].split_whitespace().next().context("a value")?.parse()?)
}
