//! A server process under measurement.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Context;
use tailwater_api::etcdserverpb as pb;
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// Which server, and how it is started.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// Stands in the table.
    pub(crate) name: &'static str,
    pub(crate) path: PathBuf,
    subcommand: Option<&'static str>,
}

/// The name of the server that only answers.
pub(crate) const ECHO: &str = "bare echo";

impl Program {
    /// Ours.
    pub(crate) fn tailwater(path: PathBuf) -> Self {
        Self { name: "tailwater", path, subcommand: Some("serve") }
    }

    /// The reference.
    pub(crate) fn etcd(path: PathBuf) -> Self {
        Self { name: "etcd", path, subcommand: None }
    }

    /// What the RPC layer alone does: this program itself.
    ///
    /// # Errors
    /// The program's own path isn't known.
    pub(crate) fn echo() -> anyhow::Result<Self> {
        Ok(Self { name: ECHO, path: std::env::current_exe()?, subcommand: Some("echo") })
    }
}

/// What the process has used since its start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// User and system time.
    pub(crate) cpu_seconds: f64,
    /// High-water mark of resident memory, bytes.
    pub(crate) memory_bytes_max: u64,
    /// What the high-water mark rose by, in a difference.
    pub(crate) memory_bytes_added: u64,
    /// Bytes that reached the block layer.
    pub(crate) written_bytes: u64,
}

impl Usage {
    /// The difference; the high-water mark stays.
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            cpu_seconds: self.cpu_seconds - before.cpu_seconds,
            memory_bytes_max: self.memory_bytes_max,
            memory_bytes_added: self.memory_bytes_max - before.memory_bytes_max,
            written_bytes: self.written_bytes - before.written_bytes,
        }
    }
}

/// A running server, or a group of them, with fresh data directories.
pub(crate) struct Running {
    /// The client URL of the one, or of the leader.
    pub(crate) endpoint: String,
    /// The client URLs of all, the leader's first.
    pub(crate) endpoints: Vec<String>,
    /// The peer URLs of all, the leader's first.
    pub(crate) peers: Vec<String>,
    /// The leader first.
    children: Vec<Child>,
    start: Start,
    data: TempDir,
}

/// How the only member of a group was started.
struct Start {
    program: Program,
    pin: bool,
    place: Place,
    group: String,
    arguments: Vec<String>,
}

/// What servers that have nothing to do use in a second.
const QUIET_CPU_SECONDS: f64 = 0.1;
/// Nobody waits longer for that: the first compaction of 12 GiB takes minutes.
const SETTLED_SECONDS_MAX: u32 = 900;

/// Keeps this process on CPU 1.
pub(crate) fn pin_self() -> anyhow::Result<()> {
    let done = std::process::Command::new("taskset")
        .args(["-a", "-p", "-c", "1", &std::process::id().to_string()])
        .stdout(Stdio::null())
        .status()?;
    anyhow::ensure!(done.success(), "taskset failed");
    Ok(())
}

pub(crate) fn free_port() -> anyhow::Result<u16> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        // A port that nobody listens on yet may come twice.
        if GIVEN.lock().expect("nothing panics with it").insert(port) {
            return Ok(port);
        }
    }
}

/// Where a member is reached.
struct Place {
    client: String,
    peer: String,
}

impl Running {
    /// Starts one server and waits until it answers.
    pub(crate) async fn start(program: &Program, data: &Path, pin: bool, arguments: &[String]) -> anyhow::Result<Self> {
        Self::start_group(program, 1, data, pin, arguments).await
    }

    /// Starts a group of `members`, all on one CPU when pinned, and waits until each answers.
    pub(crate) async fn start_group(
        program: &Program,
        members: usize,
        data: &Path,
        pin: bool,
        arguments: &[String],
    ) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("tailwater-bench-").tempdir_in(data)?;
        let url = || Ok::<_, anyhow::Error>(format!("http://127.0.0.1:{}", free_port()?));
        let places: Vec<Place> =
            (0..members).map(|_| Ok(Place { client: url()?, peer: url()? })).collect::<anyhow::Result<_>>()?;
        let group: Vec<String> = places.iter().enumerate().map(|(at, place)| format!("m{at}={}", place.peer)).collect();
        let mut children = Vec::new();
        for (at, place) in places.iter().enumerate() {
            let data = dir.path().join(format!("m{at}"));
            children.push(spawn(program, pin, &data, at, place, &group.join(","), arguments)?);
        }
        let mut leader = 0;
        for (at, place) in places.iter().enumerate() {
            if wait_until_it_answers(program, &place.client).await? {
                leader = at;
            }
        }
        children.swap(0, leader);
        let mut places = places;
        places.swap(0, leader);
        Ok(Self {
            endpoint: places[0].client.clone(),
            endpoints: places.iter().map(|place| place.client.clone()).collect(),
            peers: places.iter().map(|place| place.peer.clone()).collect(),
            children,
            start: Start {
                program: program.clone(),
                pin,
                place: places.swap_remove(0),
                group: group.join(","),
                arguments: arguments.to_vec(),
            },
            data: dir,
        })
    }

    /// Kills the only member and starts it on what it left; returns how long it took until it answered a linearizable read.
    pub(crate) async fn restart(&mut self) -> anyhow::Result<Duration> {
        anyhow::ensure!(self.children.len() == 1, "only a group of one is restarted");
        self.children[0].kill().await?;
        let begin = Instant::now();
        let Start { program, pin, place, group, arguments } = &self.start;
        self.children[0] = spawn(program, *pin, &self.data.path().join("m0"), 0, place, group, arguments)?;
        wait_until_it_answers(program, &self.endpoint).await?;
        Ok(begin.elapsed())
    }

    /// Waits until the members have finished what earlier load left to do: merging files above all.
    pub(crate) async fn settle(&self) -> anyhow::Result<()> {
        for _ in 0..SETTLED_SECONDS_MAX {
            let before = self.usage()?.cpu_seconds;
            tokio::time::sleep(Duration::from_secs(1)).await;
            if self.usage()?.cpu_seconds - before <= QUIET_CPU_SECONDS {
                break;
            }
        }
        Ok(())
    }

    /// Bytes that the data take on the disk.
    pub(crate) fn disk_bytes(&self) -> anyhow::Result<u64> {
        fn below(dir: &Path) -> std::io::Result<u64> {
            let mut bytes = 0;
            for entry in std::fs::read_dir(dir)? {
                let entry = entry?;
                bytes += match entry.metadata() {
                    Ok(about) if about.is_dir() => below(&entry.path())?,
                    Ok(about) => about.blocks() * 512,
                    // Removed since it was listed.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
                    Err(error) => return Err(error),
                };
            }
            Ok(bytes)
        }
        Ok(below(self.data.path())?)
    }

    /// Of all members together, from /proc; the processes must live.
    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        let mut sum = Usage { cpu_seconds: 0.0, memory_bytes_max: 0, memory_bytes_added: 0, written_bytes: 0 };
        for child in &self.children {
            let one = usage_of(child)?;
            sum.cpu_seconds += one.cpu_seconds;
            sum.memory_bytes_max += one.memory_bytes_max;
            sum.memory_bytes_added += one.memory_bytes_added;
            sum.written_bytes += one.written_bytes;
        }
        Ok(sum)
    }

    /// Of the leader alone.
    pub(crate) fn leader_usage(&self) -> anyhow::Result<Usage> {
        usage_of(&self.children[0])
    }

    /// Resident memory now, bytes; of a group, the leader's.
    pub(crate) fn memory_bytes(&self) -> anyhow::Result<u64> {
        let id = self.children[0].id().context("the server has ended")?;
        Ok(field(&format!("/proc/{id}/status"), "VmRSS:")? * 1024)
    }

    /// Ends all; their data goes with them.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<()> {
        for child in &mut self.children {
            child.kill().await?;
        }
        Ok(())
    }
}

fn spawn(
    program: &Program,
    pin: bool,
    data: &Path,
    at: usize,
    place: &Place,
    group: &str,
    arguments: &[String],
) -> anyhow::Result<Child> {
    let mut command = if pin {
        let mut command = Command::new("taskset");
        command.args(["-c", "0"]).arg(&program.path);
        command
    } else {
        Command::new(&program.path)
    };
    command.args(program.subcommand);
    if program.name == ECHO {
        command.args(["--listen", place.client.trim_start_matches("http://")]);
    } else {
        command
            .args(["--name", &format!("m{at}"), "--log-level", "error"])
            .arg("--data-dir")
            .arg(data)
            .args(["--listen-client-urls", &place.client, "--advertise-client-urls", &place.client])
            .args(["--listen-peer-urls", &place.peer, "--initial-advertise-peer-urls", &place.peer])
            .args(["--initial-cluster", group, "--quota-backend-bytes", "8589934592"])
            .args(arguments);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true);
    command.spawn().with_context(|| format!("starting {}", program.path.display()))
}

/// How long a server may take until it answers: a fanout takes its whole store over before.
const PATIENCE: Duration = Duration::from_secs(120);

/// Whether the member leads.
pub(crate) async fn wait_until_it_answers(program: &Program, endpoint: &str) -> anyhow::Result<bool> {
    let begin = Instant::now();
    loop {
        match ask_for_leader(program, endpoint).await {
            Ok(leads) => return Ok(leads),
            Err(error) if begin.elapsed() > PATIENCE => {
                return Err(error.context(format!("{} did not begin to serve", program.name)));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn ask_for_leader(program: &Program, endpoint: &str) -> anyhow::Result<bool> {
    // A read that needs a leader, so that none is missing when the load begins.
    let channel = crate::load::connect(endpoint, 1).await?.remove(0);
    crate::load::kv(&channel).range(pb::RangeRequest { key: "any".into(), ..Default::default() }).await?;
    if program.name == ECHO {
        return Ok(true);
    }
    let mut maintenance = pb::maintenance_client::MaintenanceClient::new(channel);
    let status = maintenance.status(pb::StatusRequest {}).await?.into_inner();
    let own = status.header.context("an answer has a header")?.member_id;
    Ok(status.leader == own)
}

pub(crate) fn usage_of(child: &Child) -> anyhow::Result<Usage> {
    let id = child.id().context("the server has ended")?;
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
    // Fields 14 and 15 (proc(5)), counted behind the command name, which may hold spaces.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(Usage {
        // USER_HZ is 100 on every Linux that Rust's standard targets run on.
        cpu_seconds: ticks / 100.0,
        memory_bytes_max: field(&format!("/proc/{id}/status"), "VmHWM:")? * 1024,
        memory_bytes_added: 0,
        written_bytes: field(&format!("/proc/{id}/io"), "write_bytes:")?,
    })
}

/// The number behind `name` in a file of /proc.
pub(crate) fn field(path: &str, name: &str) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(path)?;
    let line = text.lines().find(|line| line.starts_with(name)).with_context(|| format!("{path} has no {name}"))?;
    Ok(line[name.len()..].split_whitespace().next().context("a value")?.parse()?)
}
