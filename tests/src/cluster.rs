//! Several members of one cluster on this machine, and the faults that they meet.
//!
//! Each member is a process with a data directory and ports of its own. What members send each other goes through
//! [`Links`], so that any direction between two of them can be held, delayed or cut. Clients connect directly, or through
//! a [`Gate`].
//! A member keeps its *slot* (0, 1, …) over restarts and also when another member takes its place. Fanouts that are added
//! beside the members take the slots behind them.

mod fanout;
mod gate;
mod links;
mod owner;

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tailwater_api::etcdserverpb as pb;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tonic::transport::{Channel, Endpoint};

pub use fanout::Fanout;
pub use gate::Gate;
use links::PeerProxy;
pub use links::{Link, Links};

use crate::{Kind, program};

/// How long a member may take until it serves, on a busy machine.
const START_SECONDS_MAX: u64 = 60;
/// Lines of each member's log that a failure shows.
const LOG_LINES: usize = 40;

/// What a cluster is started with.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Which server the members are.
    pub kind: Kind,
    /// How many members.
    pub members: usize,
    /// Further flags, for both kinds of server.
    pub flags: Vec<String>,
    /// Further flags that only an etcd takes.
    pub etcd_flags: Vec<String>,
    /// Further flags that only a Tailwater takes.
    pub tailwater_flags: Vec<String>,
}

impl Setup {
    /// `members` members of `kind` with default flags.
    #[must_use]
    pub fn new(kind: Kind, members: usize) -> Self {
        Self { kind, members, flags: Vec::new(), etcd_flags: Vec::new(), tailwater_flags: Vec::new() }
    }
}

/// A cluster; its processes are killed when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    setup: Setup,
    dir: TempDir,
    links: Links,
    members: Vec<Member>,
    replaced: usize,
    passed: bool,
}

#[derive(Debug)]
struct Member {
    name: String,
    data: PathBuf,
    client: String,
    peer: SocketAddr,
    proxy: PeerProxy,
    /// `--initial-cluster` and `--initial-cluster-state`.
    initial: (String, &'static str),
    /// What it is instead of a member.
    fanout: Option<Fanout>,
    environment: Vec<(String, String)>,
    child: Option<Child>,
    lives: usize,
}

impl Cluster {
    /// Starts all members and waits until each answers a linearizable read.
    ///
    /// # Errors
    /// When the program is missing or a member does not serve.
    pub async fn start(setup: Setup) -> anyhow::Result<Self> {
        let mut cluster = Self::new(setup).await?;
        for slot in 0..cluster.size() {
            cluster.launch(slot)?;
        }
        for slot in 0..cluster.size() {
            cluster.wait_until_serving(slot).await?;
        }
        Ok(cluster)
    }

    /// As [`Cluster::start`], with no member started yet.
    ///
    /// # Errors
    /// When no ports or directories are to be had.
    pub async fn new(setup: Setup) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("tailwater-cluster-").tempdir()?;
        let links = Links::default();
        let mut members = Vec::new();
        for slot in 0..setup.members {
            let name = format!("m{slot}");
            members.push(Member::new(slot, name, dir.path(), format!("http://{}", free_address()?), &links).await?);
        }
        let all: Vec<String> = members.iter().map(Member::named_url).collect();
        for member in &mut members {
            member.initial = (all.join(","), "new");
        }
        Ok(Self { setup, dir, links, members, replaced: 0, passed: false })
    }

    /// Number of members, whose slots are the first.
    #[must_use]
    pub fn size(&self) -> usize {
        self.setup.members
    }

    /// Number of slots, with those of fanouts.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.members.len()
    }

    /// Which server the members are.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.setup.kind
    }

    /// The links between members.
    #[must_use]
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// Where clients of `slot` connect.
    #[must_use]
    pub fn url(&self, slot: usize) -> &str {
        &self.members[slot].client
    }

    /// All client URLs, by slot.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.members.iter().map(|member| member.client.clone()).collect()
    }

    /// The data directory of `slot`.
    #[must_use]
    pub fn data(&self, slot: usize) -> &Path {
        &self.members[slot].data
    }

    /// Puts the data directory of `slot`, which has not been started yet, elsewhere.
    pub fn place_data(&mut self, slot: usize, data: PathBuf) {
        assert_eq!(self.members[slot].lives, 0, "a member keeps its data directory");
        self.members[slot].data = data;
    }

    /// Sets what the process of `slot` finds in its environment when it is started next.
    pub fn set_environment(&mut self, slot: usize, environment: Vec<(String, String)>) {
        self.members[slot].environment = environment;
    }

    /// What the member logged in its last life.
    #[must_use]
    pub fn log(&self, slot: usize) -> String {
        std::fs::read_to_string(self.members[slot].log(self.dir.path())).unwrap_or_default()
    }

    /// A lazily connecting client of `slot`.
    ///
    /// # Errors
    /// Never, as the URL is our own.
    pub fn channel(&self, slot: usize) -> anyhow::Result<Channel> {
        connect(self.url(slot))
    }

    /// Holds or opens both directions between `slot` and all others.
    pub fn isolate(&self, slot: usize, link: Link) {
        self.set_outbound(slot, link);
        self.set_inbound(slot, link);
    }

    /// Sets the links from `slot` to all others.
    pub fn set_outbound(&self, slot: usize, link: Link) {
        self.others(slot).for_each(|other| self.links.set(slot, other, link));
    }

    /// Sets the links from all others to `slot`.
    pub fn set_inbound(&self, slot: usize, link: Link) {
        self.others(slot).for_each(|other| self.links.set(other, slot, link));
    }

    /// All slots but `slot`.
    pub fn others(&self, slot: usize) -> impl Iterator<Item = usize> + use<> {
        (0..self.size()).filter(move |other| *other != slot)
    }

    /// Whether the process of `slot` has been started and has not ended.
    pub fn is_running(&mut self, slot: usize) -> bool {
        self.members[slot].child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// SIGKILL to the process of `slot`, if it runs.
    ///
    /// # Errors
    /// When the signal can't be sent.
    pub fn kill(&mut self, slot: usize) -> anyhow::Result<()> {
        self.links.runs(slot, None);
        if let Some(mut child) = self.members[slot].child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// SIGKILL to all processes before the end of any is waited for.
    ///
    /// # Errors
    /// When a signal can't be sent.
    pub fn kill_all(&mut self) -> anyhow::Result<()> {
        for member in &mut self.members {
            member.child.as_mut().map_or(Ok(()), Child::kill)?;
        }
        (0..self.slots()).try_for_each(|slot| self.kill(slot))
    }

    /// SIGTERM; returns when the process has ended.
    ///
    /// # Errors
    /// When it does not run, or not end within 30 s.
    pub async fn stop(&mut self, slot: usize) -> anyhow::Result<()> {
        self.signal(slot, "TERM")?;
        let mut child = self.members[slot].child.take().context("the member does not run")?;
        let begin = Instant::now();
        while child.try_wait()?.is_none() {
            if begin.elapsed() > Duration::from_secs(30) {
                child.kill()?;
                child.wait()?;
                bail!("member {slot} did not end within 30 s of SIGTERM");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.links.runs(slot, None);
        Ok(())
    }

    /// SIGSTOP.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&self, slot: usize) -> anyhow::Result<()> {
        self.signal(slot, "STOP")
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&self, slot: usize) -> anyhow::Result<()> {
        self.signal(slot, "CONT")
    }

    fn signal(&self, slot: usize, signal: &str) -> anyhow::Result<()> {
        let child = self.members[slot].child.as_ref().context("the member does not run")?;
        let sent = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status()?;
        anyhow::ensure!(sent.success(), "member {slot} cannot be sent SIG{signal}");
        Ok(())
    }

    /// Starts the process of `slot`, which does not run, without waiting for it.
    ///
    /// # Errors
    /// When the program is missing.
    pub fn launch(&mut self, slot: usize) -> anyhow::Result<()> {
        self.kill(slot)?;
        let mut command = self.command(slot)?;
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        self.links.runs(slot, Some(child.id()));
        self.members[slot].child = Some(child);
        Ok(())
    }

    /// Starts the process of `slot` and waits until it answers a linearizable read.
    ///
    /// # Errors
    /// As [`Cluster::launch`], or when it does not serve.
    pub async fn restart(&mut self, slot: usize) -> anyhow::Result<()> {
        self.launch(slot)?;
        self.wait_until_serving(slot).await
    }

    fn command(&mut self, slot: usize) -> anyhow::Result<Command> {
        if let Some(arguments) = self.fanout_arguments(slot)? {
            return self.fanout_command(slot, &arguments);
        }
        let mut command = Command::new(program(self.setup.kind)?);
        let extra = match self.setup.kind {
            Kind::Tailwater => {
                command.arg("serve");
                &self.setup.tailwater_flags
            }
            Kind::Etcd => &self.setup.etcd_flags,
        };
        let member = &mut self.members[slot];
        member.lives += 1;
        command.args(["--name", &member.name, "--data-dir"]).arg(&member.data);
        for (flag, value) in [
            ("listen-client-urls", member.client.as_str()),
            ("advertise-client-urls", &member.client),
            ("listen-peer-urls", &format!("http://{}", member.peer)),
            ("initial-advertise-peer-urls", &member.proxy.url()),
            ("initial-cluster", &member.initial.0),
            ("initial-cluster-state", member.initial.1),
            ("initial-cluster-token", "tailwater-cluster-test"),
        ] {
            command.arg(format!("--{flag}={value}"));
        }
        command.args(&self.setup.flags).args(extra).envs(member.environment.iter().cloned());
        write_log(&mut command, &member.log(self.dir.path()))?;
        Ok(command)
    }

    /// Whether clients are served at [`Cluster::url`] of `slot`: not by members that were started without the gateway.
    #[must_use]
    pub fn serves_clients(&self, slot: usize) -> bool {
        let is_without = self.setup.tailwater_flags.iter().any(|flag| flag == "--roles=consensus");
        self.members[slot].fanout.is_some() || self.kind() != Kind::Tailwater || !is_without
    }

    /// Waits until `slot` answers a linearizable read; not if it serves no clients.
    ///
    /// # Errors
    /// When its process ends or 60 s pass.
    pub async fn wait_until_serving(&mut self, slot: usize) -> anyhow::Result<()> {
        if !self.serves_clients(slot) {
            return Ok(());
        }
        let mut kv = pb::kv_client::KvClient::new(self.channel(slot)?);
        let deadline = Instant::now() + Duration::from_secs(START_SECONDS_MAX);
        loop {
            anyhow::ensure!(self.is_running(slot), "member {slot} ended before it served");
            let key = self.key_within(slot);
            let read = pb::RangeRequest { key: key.into(), ..Default::default() };
            if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(2), kv.range(read)).await {
                return Ok(());
            }
            anyhow::ensure!(Instant::now() < deadline, "member {slot} did not serve within {START_SECONDS_MAX} s");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The process of `slot`, if it has been started.
    #[must_use]
    pub fn process(&self, slot: usize) -> Option<u32> {
        self.members[slot].child.as_ref().map(Child::id)
    }

    /// What `slot` says of itself, if it answers within a second.
    pub async fn status(&self, slot: usize) -> Option<pb::StatusResponse> {
        let mut client = pb::maintenance_client::MaintenanceClient::new(self.channel(slot).ok()?);
        let answer = client.status(pb::StatusRequest::default());
        Some(tokio::time::timeout(Duration::from_secs(1), answer).await.ok()?.ok()?.into_inner())
    }

    /// The slot that leads in the highest term that any of `slots` knows.
    pub async fn leader_among(&self, slots: &[usize]) -> Option<usize> {
        let mut newest: Option<(u64, u64)> = None;
        let mut ids = Vec::new();
        for &slot in slots {
            let Some(status) = self.status(slot).await else { continue };
            let Some(header) = &status.header else { continue };
            ids.push((header.member_id, slot));
            if status.leader != 0 {
                newest = newest.max(Some((status.raft_term, status.leader)));
            }
        }
        let (_, leader) = newest?;
        ids.into_iter().find(|(id, _)| *id == leader).map(|(_, slot)| slot)
    }

    /// Waits until the running members know a leader, and says which slot.
    ///
    /// # Errors
    /// After 30 s without one.
    pub async fn leader(&mut self) -> anyhow::Result<usize> {
        let running: Vec<usize> = (0..self.size()).filter(|slot| self.is_running(*slot)).collect();
        self.wait_for_leader(&running).await
    }

    /// As [`Cluster::leader`], of and from `slots` only.
    ///
    /// # Errors
    /// As [`Cluster::leader`].
    pub async fn wait_for_leader(&self, slots: &[usize]) -> anyhow::Result<usize> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            if let Some(leader) = self.leader_among(slots).await {
                return Ok(leader);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("members {slots:?} have no leader after 30 s")
    }

    /// Opens all links, continues what is paused, starts what does not run, and waits until all serve.
    ///
    /// # Errors
    /// When a member does not come back.
    pub async fn heal(&mut self) -> anyhow::Result<()> {
        self.links.open_all();
        for slot in 0..self.slots() {
            if self.is_running(slot) {
                self.resume(slot)?;
            } else {
                self.launch(slot)?;
            }
        }
        for slot in 0..self.slots() {
            self.wait_until_serving(slot).await?;
        }
        Ok(())
    }

    /// Prepares another member, with an empty data directory, a name and a peer URL of its own, in the place of `slot`,
    /// whose process does not run; clients find it where its predecessor was. The peer URL, for MemberAdd.
    ///
    /// # Errors
    /// When no ports are to be had.
    pub async fn replace(&mut self, slot: usize) -> anyhow::Result<String> {
        anyhow::ensure!(!self.is_running(slot), "member {slot} still runs");
        self.replaced += 1;
        let name = format!("m{slot}r{}", self.replaced);
        let client = self.members[slot].client.clone();
        self.members[slot] = Member::new(slot, name, self.dir.path(), client, &self.links).await?;
        let all: Vec<String> = self.members.iter().take(self.size()).map(Member::named_url).collect();
        self.members[slot].initial = (all.join(","), "existing");
        Ok(self.members[slot].proxy.url())
    }

    /// Makes the data directory of `slot`, which must not have one, from a snapshot.
    ///
    /// # Errors
    /// When the tool refuses; what it printed is in the error.
    pub fn restore(&mut self, slot: usize, file: &Path) -> anyhow::Result<()> {
        let member = &self.members[slot];
        let mut command = Command::new(program(Kind::Tailwater)?);
        command.args(["snapshot", "restore", "--name", &member.name, "--data-dir"]).arg(&member.data).arg(file);
        command.arg(format!("--initial-cluster={}", member.initial.0));
        command.arg(format!("--initial-advertise-peer-urls={}", member.proxy.url()));
        command.arg("--initial-cluster-token=tailwater-cluster-test");
        let output = command.output()?;
        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// The test has passed: nothing is kept or shown.
    pub fn finish(mut self) {
        self.keep_nothing();
    }

    /// Nothing is kept or shown also when the test fails: it is meant to.
    pub fn keep_nothing(&mut self) {
        self.passed = true;
    }

    fn show_logs(&self) {
        for member in &self.members {
            let file = member.log(self.dir.path());
            let log = std::fs::read_to_string(&file).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
            eprintln!("==== the end of {}\n{end}\n", file.display());
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let ended = self.kill_all();
        if !self.passed {
            self.dir.disable_cleanup(true);
            self.show_logs();
        }
        debug_assert!(ended.is_ok(), "children can be killed: {ended:?}");
    }
}

impl Member {
    async fn new(slot: usize, name: String, dir: &Path, client: String, links: &Links) -> anyhow::Result<Self> {
        let peer = free_address()?;
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let proxy = PeerProxy::start(listener, slot, peer, links.clone())?;
        let data = dir.join(&name).join("data");
        std::fs::create_dir(dir.join(&name))?;
        let initial = (String::new(), "new");
        Ok(Self {
            name,
            data,
            client,
            peer,
            proxy,
            initial,
            fanout: None,
            environment: Vec::new(),
            child: None,
            lives: 0,
        })
    }

    fn named_url(&self) -> String {
        format!("{}={}", self.name, self.proxy.url())
    }

    fn log(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{}.{}.log", self.name, self.lives))
    }
}

/// Lets `command` say what it says to a new file.
fn write_log(command: &mut Command, file: &Path) -> anyhow::Result<()> {
    let log = File::create(file)?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok(())
}

/// A lazily connecting client of `url` that gives up a connection attempt after a second.
///
/// # Errors
/// When `url` is not a URL.
pub fn connect(url: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(url.to_owned())?;
    Ok(endpoint.tcp_nodelay(true).connect_timeout(Duration::from_secs(1)).connect_lazy())
}

/// A loopback address below the ports that the kernel hands out by itself, and that no other test of this process gets:
/// nobody takes it while its member is down, or before it is up.
fn free_address() -> anyhow::Result<SocketAddr> {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(rand::random()));
    for _ in 0..1000 {
        let port = 15_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 17_000;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if std::net::TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no free port among 1000 tries")
}
