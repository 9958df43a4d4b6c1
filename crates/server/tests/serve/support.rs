//! One server process, and a plain HTTP/1.1 client.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use tailwater_api::etcdserverpb as pb;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

/// Far beyond what a start or a stop takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// `tailwater` with these arguments, its output read by nobody yet, and no variables from outside.
pub(crate) fn tailwater(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tailwater"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TAILWATER_") || name.starts_with("ETCD_")) {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// A port that is free, below those that the kernel hands out by itself, and that no other test of this process gets: nobody
/// takes it meanwhile.
pub(crate) fn free_port() -> u16 {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(rand::random()));
    let mut tries = (0..1000).map(|_| 15_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 17_000);
    tries.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("a free port among 1000")
}

/// Flags that serve clients on `port` with data in `data_dir`.
pub(crate) fn serve_flags(port: u16, data_dir: &Path) -> Vec<String> {
    let url = format!("http://127.0.0.1:{port}");
    let peer = format!("http://127.0.0.1:{}", free_port());
    vec![
        "serve".into(),
        format!("--data-dir={}", data_dir.display()),
        format!("--listen-client-urls={url}"),
        format!("--advertise-client-urls={url}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
    ]
}

/// A serving process; killed when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
    pub(crate) metrics_port: u16,
    log: PathBuf,
    arguments: Vec<String>,
    _own: Option<TempDir>,
}

impl Server {
    /// Serves from an empty directory of its own.
    pub(crate) fn start(flags: &[&str]) -> Self {
        let own = tempfile::tempdir().unwrap();
        let mut server = Self::start_in(own.path(), flags);
        server._own = Some(own);
        server
    }

    /// Serves without a data directory and without a peer URL: a node that is no member.
    pub(crate) fn start_bare(flags: &[&str]) -> Self {
        let own = tempfile::tempdir().unwrap();
        let port = free_port();
        let url = format!("http://127.0.0.1:{port}");
        let mut arguments =
            vec!["serve".into(), format!("--listen-client-urls={url}"), format!("--advertise-client-urls={url}")];
        arguments.extend(flags.iter().map(|&flag| flag.to_owned()));
        let mut server = Self::spawn(port, own.path().join("log"), &arguments);
        server.wait_ready();
        server._own = Some(own);
        server
    }

    /// Serves with data in `home`/data.
    pub(crate) fn start_in(home: &Path, flags: &[&str]) -> Self {
        let port = free_port();
        let mut arguments = serve_flags(port, &home.join("data"));
        arguments.extend(flags.iter().map(|&flag| flag.to_owned()));
        let mut server = Self::spawn(port, home.join("log"), &arguments);
        server.wait_ready();
        server
    }

    /// Starts a process that is to serve clients on `port`; it is not waited for.
    pub(crate) fn spawn(port: u16, log: PathBuf, arguments: &[String]) -> Self {
        let metrics_port = free_port();
        let mut command = tailwater(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        command.arg(format!("--listen-metrics-urls=http://127.0.0.1:{metrics_port}"));
        command.stderr(std::fs::File::create(&log).unwrap());
        let child = command.spawn().unwrap();
        Self { child, port, metrics_port, log, arguments: arguments.to_vec(), _own: None }
    }

    /// The same process once more, after this one has ended.
    pub(crate) fn again(&self, log: PathBuf) -> Self {
        Self::spawn(self.port, log, &self.arguments)
    }

    /// Waits until it serves.
    pub(crate) fn wait_ready(&mut self) {
        self.wait_for("ready to serve client requests");
    }

    /// Waits until its log says `text`.
    pub(crate) fn wait_for(&mut self, text: &str) {
        let begun = Instant::now();
        while !self.log().contains(text) {
            assert!(self.child.try_wait().unwrap().is_none(), "it ended: {}", self.log());
            assert!(begun.elapsed() < PATIENCE, "it does not say {text:?}: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://127.0.0.1:{}", self.port)).unwrap().connect().await.unwrap()
    }

    pub(crate) async fn kv(&self) -> pb::kv_client::KvClient<Channel> {
        pb::kv_client::KvClient::new(self.channel().await)
    }

    /// Sends a signal by the name that kill(1) knows.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for the end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        wait(&mut self.child)
    }

    /// A figure of /proc/<pid>/status in bytes, e.g. `VmRSS`.
    pub(crate) fn memory_bytes(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// The names of this process's threads and how nice they are (proc(5), field 19 of stat).
    pub(crate) fn threads(&self) -> Vec<(String, i32)> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        // A thread may end meanwhile.
        let stats = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("stat")).ok());
        let thread = |stat: String| {
            let (name, rest) = stat.split_once('(').unwrap().1.rsplit_once(") ").unwrap();
            (name.to_owned(), rest.split(' ').nth(16).unwrap().parse().unwrap())
        };
        stats.map(thread).collect()
    }

    /// The value of a metric whose line begins with `prefix`.
    pub(crate) fn metric(&self, prefix: &str) -> f64 {
        self.find_metric(prefix).unwrap_or_else(|| panic!("no {prefix} in the metrics"))
    }

    /// The same, `None` while nothing has been told yet: a thread that reports once a second may not have had its first turn.
    pub(crate) fn find_metric(&self, prefix: &str) -> Option<f64> {
        let text = get(self.port, "/metrics").body;
        let line = text.lines().find(|line| line.starts_with(prefix))?;
        Some(line.rsplit(' ').next().unwrap().parse().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when the process has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Waits for the end of a process that must end by itself.
pub(crate) fn wait(child: &mut Child) -> ExitStatus {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if begun.elapsed() > PATIENCE {
            drop(child.kill());
            panic!("the process did not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs a command that must end by itself: exit code and what it wrote to stderr.
pub(crate) fn outcome(mut command: Command) -> (Option<i32>, String) {
    let mut child = command.spawn().unwrap();
    let mut errors = child.stderr.take().unwrap();
    let status = wait(&mut child);
    let mut text = String::new();
    errors.read_to_string(&mut text).unwrap();
    (status.code(), text)
}

/// An HTTP answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Lines of the head, names in lower case.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

pub(crate) fn get(port: u16, path: &str) -> Answer {
    request(port, "GET", path, "")
}

/// One HTTP/1.1 request on a connection of its own; `headers` are whole lines.
pub(crate) fn request(port: u16, method: &str, path: &str, headers: &str) -> Answer {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let (first, rest) = head.split_once("\r\n").unwrap();
    let status = first.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: rest.replace("\r\n", "\n"), body: body.to_owned() }
}
