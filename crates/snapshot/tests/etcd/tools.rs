//! etcd, its tools, and our Go program beside them (`tests/snapshot`).

use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

/// A restored etcd reads everything before it serves.
const START_SECONDS_MAX: u64 = 120;

/// Whether the Go program has been built.
static BUILT: Mutex<bool> = Mutex::new(false);

/// Whether the full counts are asked for.
pub(crate) fn is_acceptance() -> bool {
    env::var("ACCEPTANCE").as_deref() == Ok("1")
}

/// The programs.
#[derive(Debug)]
pub(crate) struct Tools {
    etcd: PathBuf,
    etcdctl: PathBuf,
    etcdutl: PathBuf,
    program: PathBuf,
}

impl Tools {
    /// None, with a line that says so, when one of them is not on this machine.
    pub(crate) fn find(test: &str) -> anyhow::Result<Option<Self>> {
        let found = (find("ETCD", "etcd"), find("ETCDCTL", "etcdctl"), find("ETCDUTL", "etcdutl"), find("GO", "go"));
        let (Some(etcd), Some(etcdctl), Some(etcdutl), Some(go)) = found else {
            let line = format!("LEFT OUT: {test}: etcd, etcdctl, etcdutl or Go is not there");
            assert!(env::var("CI").as_deref() != Ok("true"), "{line}");
            // Not through a print macro: the test runner would keep its output to itself when the test passes.
            writeln!(std::io::stderr(), "{line}")?;
            return Ok(None);
        };
        let program = build(&go)?;
        Ok(Some(Self { etcd, etcdctl, etcdutl, program }))
    }

    pub(crate) fn fill(&self, endpoint: &str, keys: usize, leases: usize) -> anyhow::Result<()> {
        let counts = [keys.to_string(), leases.to_string()];
        output(Command::new(&self.program).args(["fill", endpoint]).args(counts)).map(drop)
    }

    /// What the server at `endpoint` holds, as text.
    pub(crate) fn dump(&self, endpoint: &str) -> anyhow::Result<String> {
        output(Command::new(&self.program).args(["dump", endpoint]))
    }

    /// bbolt's own judgement.
    pub(crate) fn check(&self, file: &Path) -> anyhow::Result<()> {
        output(Command::new(&self.program).arg("check").arg(file)).map(drop)
    }

    pub(crate) fn save(&self, endpoint: &str, to: &Path) -> anyhow::Result<()> {
        let user = ["--user", "root:of-the-root", "--endpoints", endpoint, "snapshot", "save"];
        output(Command::new(&self.etcdctl).args(user).arg(to)).map(drop)
    }

    /// The revision of a server without auth.
    pub(crate) fn revision(&self, endpoint: &str) -> anyhow::Result<i64> {
        let get = ["--endpoints", endpoint, "get", "k", "-w", "json"];
        let answer: Value = serde_json::from_str(&output(Command::new(&self.etcdctl).args(get))?)?;
        answer["header"]["revision"].as_i64().context("an answer without a revision")
    }

    pub(crate) fn snapshot_status(&self, file: &Path) -> anyhow::Result<Value> {
        let status = ["snapshot", "status", "-w", "json"];
        Ok(serde_json::from_str(&output(Command::new(&self.etcdutl).args(status).arg(file))?)?)
    }

    /// etcd's hash of the history. `etcdutl` 3.6.16 panics on a file in which a key has a lease.
    pub(crate) fn hash_kv(&self, file: &Path) -> anyhow::Result<String> {
        output(Command::new(&self.etcdutl).args(["hashkv", "-w", "json"]).arg(file))
    }

    pub(crate) fn restore(&self, file: &Path, data_dir: &Path, options: &[&str]) -> anyhow::Result<()> {
        let mut command = Command::new(&self.etcdutl);
        command.args(["snapshot", "restore", "--data-dir"]).arg(data_dir).args(options).arg(file);
        output(&mut command).map(drop)
    }
}

fn find(variable: &str, name: &str) -> Option<PathBuf> {
    if let Some(path) = env::var_os(variable).filter(|path| !path.is_empty()) {
        return Some(PathBuf::from(path));
    }
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

fn build(go: &Path) -> anyhow::Result<PathBuf> {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("snapshot-program");
    // Once in this process: others may be running it already.
    let mut is_built = BUILT.lock().expect("nobody panics with the lock");
    if !*is_built {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/snapshot");
        output(Command::new(go).args(["build", "-o"]).arg(&program).arg(".").current_dir(source))?;
        *is_built = true;
    }
    Ok(program)
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let done = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    let errors = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{command:?}: {}\n{errors}", done.status);
    Ok(String::from_utf8(done.stdout)?)
}

/// A running etcd; killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Etcd {
    child: Child,
    /// Host and port for clients.
    pub(crate) endpoint: String,
}

impl Etcd {
    /// Starts one member on `data_dir`, and waits until it serves.
    pub(crate) fn start(tools: &Tools, data_dir: &Path) -> anyhow::Result<Self> {
        let [endpoint, peer] = free_addresses()?;
        let (client_url, peer_url) = (format!("http://{endpoint}"), format!("http://{peer}"));
        let log_path = data_dir.with_extension("log");
        let child = Command::new(&tools.etcd)
            .args([OsStr::new("--data-dir"), data_dir.as_os_str()])
            .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url])
            // A restored member has the default's peer URL; nobody dials it.
            .args(["--listen-peer-urls", &peer_url, "--logger", "zap", "--log-outputs", "stderr"])
            .args(["--unsafe-no-fsync", "--auth-token", "simple"])
            .stdin(Stdio::null())
            .stderr(File::create(&log_path)?)
            .spawn()?;
        let mut etcd = Self { child, endpoint };
        let give_up = Instant::now() + Duration::from_secs(START_SECONDS_MAX);
        while TcpStream::connect(&etcd.endpoint).is_err() {
            if let Some(status) = etcd.child.try_wait()? {
                bail!("etcd ended with {status}:\n{}", std::fs::read_to_string(&log_path)?);
            }
            ensure!(Instant::now() < give_up, "etcd does not serve after {START_SECONDS_MAX} s");
            thread::sleep(Duration::from_millis(50));
        }
        Ok(etcd)
    }

    /// Ends it in the way of a crash.
    pub(crate) fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Ends it in order.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        output(Command::new("kill").arg(self.child.id().to_string()))?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // It may have ended by itself, or have been waited for.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Two loopback addresses whose ports were free a moment ago, held together so that they differ.
fn free_addresses() -> anyhow::Result<[String; 2]> {
    let listeners = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
    Ok([listeners[0].local_addr()?.to_string(), listeners[1].local_addr()?.to_string()])
}
