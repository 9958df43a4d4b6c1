//! One server on a directory that survives it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::Context;
use tempfile::TempDir;

use crate::Kind;
use crate::process::{command, free_urls};

/// A server that is started, killed and started again on the same data and ports.
pub struct Node {
    dir: TempDir,
    client: String,
    peer: String,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Node {
    /// Not started yet.
    pub fn new() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("tailwater-crash-").tempdir()?;
        std::fs::create_dir(dir.path().join("root"))?;
        let [client, peer] = free_urls();
        Ok(Self { dir, client, peer, arguments: Vec::new(), child: None })
    }

    /// Adds arguments of `tailwater serve`.
    #[must_use]
    pub fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// A figure of `/proc/PID/status` in bytes, e.g. `VmRSS` or `VmHWM`.
    ///
    /// # Errors
    /// The server does not run.
    pub fn memory_bytes(&self, name: &str) -> anyhow::Result<u64> {
        let id = self.child.as_ref().context("the server does not run")?.id();
        let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
        let line = status.lines().find(|line| line.starts_with(name)).context("no such figure")?;
        let kib: u64 = line.split_whitespace().nth(1).context("a value")?.parse()?;
        Ok(kib * 1024)
    }

    /// The directory that holds the data directory and nothing else.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.root().join("data")
    }

    /// What the server logged in its last life.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Where clients connect.
    pub fn endpoint(&self) -> &str {
        &self.client
    }

    /// Starts it and waits until it serves.
    pub async fn start(&mut self, environment: Vec<(String, String)>) -> anyhow::Result<()> {
        anyhow::ensure!(self.try_start(environment).await?, "the server ended at its start:\n{}", self.log());
        Ok(())
    }

    /// As [`Node::start`]; `false` when the server refused to start.
    pub async fn try_start(&mut self, environment: Vec<(String, String)>) -> anyhow::Result<bool> {
        let log = self.dir.path().join("log");
        let mut command = command(Kind::Tailwater, &self.data(), &self.client, &self.peer, &log)?;
        command.args(&self.arguments).envs(environment);
        let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let begin = Instant::now();
        while !self.log().contains("ready to serve client requests") {
            if child.try_wait()?.is_some() {
                return Ok(false);
            }
            if begin.elapsed() > Duration::from_secs(60) {
                child.kill()?;
                child.wait()?;
                anyhow::bail!("not ready after 60 s:\n{}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.child = Some(child);
        Ok(true)
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            Command::new("kill").args(["-TERM", &child.id().to_string()]).status()?;
            child.wait()?;
        }
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let ended = self.kill();
        debug_assert!(ended.is_ok(), "a child can be killed: {ended:?}");
    }
}

/// Copies a directory tree.
pub fn copy_tree(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
