//! Watch and list clients in a process of their own, so that their memory and CPU time are not the instrument's.
//!
//! The process prints `ready` when everything is open, and obeys lines on its input: `count` prints the events received
//! so far; `read` lets stalled clients read on to the end and prints `ok` or what is wrong; the end of the input ends it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use clap::{Args, ValueEnum};
use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::watch_request::RequestUnion;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::group::nice;
use crate::connection::Connection;
use crate::load::{connect, kv};

/// The value of each range's last put: a stalled watcher reads up to it.
pub(crate) const LAST: &str = "last";
/// How long a stalled client that reads on may get nothing.
const SILENCE: Duration = Duration::from_secs(120);

/// Of this process: behind the fanouts that it reads from.
const CLIENTS_NICE: u32 = 19;

/// What the clients do with what comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Watches that read at once.
    Live,
    /// Watches that read nothing before they are told.
    Stalled,
    /// RangeStream calls that read nothing before they are told.
    Lists,
    /// One unary list of everything after the other; finished lists are counted.
    Unary,
    /// The same by RangeStream.
    Streamed,
}

/// How many clients of what.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// URLs that connections go to by turns, separated by commas.
    #[arg(long, value_delimiter = ',')]
    pub(crate) endpoints: Vec<String>,
    /// Number of connections.
    #[arg(long, default_value_t = 1)]
    pub(crate) connections: usize,
    /// Number of streams, by turns on the connections.
    #[arg(long, default_value_t = 1)]
    pub(crate) streams: u64,
    /// Watches on each stream.
    #[arg(long, default_value_t = 1)]
    pub(crate) watches: u64,
    /// What they do.
    #[arg(long, default_value = "live")]
    pub(crate) mode: Mode,
    /// Where the keys are: `{prefix}{number:08}`.
    #[arg(long)]
    pub(crate) prefix: String,
    /// Number of keys.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) keys: u64,
    /// Ranges of equal length into which the keys are divided; watch n watches range n modulo that.
    #[arg(long, default_value_t = 1)]
    pub(crate) ranges: u64,
    /// First revision; 0: from now on.
    #[arg(long, default_value_t = 0)]
    pub(crate) start: i64,
    /// Prints `live MILLISECONDS` once a watch has got this revision or a later one.
    #[arg(long, default_value_t = 0)]
    pub(crate) live_at: i64,
}

impl Arguments {
    fn create(&self, watch: u64) -> pb::WatchRequest {
        let range = watch % self.ranges;
        let bound = |at: u64| Bytes::from(format!("{}{:08}", self.prefix, self.keys * at / self.ranges));
        let create = pb::WatchCreateRequest {
            key: bound(range),
            range_end: bound(range + 1),
            start_revision: self.start,
            ..Default::default()
        };
        pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
    }
}

/// A stream with its watches, all created.
struct Stream {
    /// The server ends the stream with its last request.
    _requests: mpsc::Sender<pb::WatchRequest>,
    answers: Streaming<pb::WatchResponse>,
}

async fn open(channel: Connection, arguments: Arguments, number: u64) -> anyhow::Result<Stream> {
    let (requests, bodies) = mpsc::channel(16);
    let mut client = pb::watch_client::WatchClient::new(channel).max_decoding_message_size(1 << 30);
    let first = number * arguments.watches;
    requests.send(arguments.create(first)).await?;
    let mut answers = client.watch(ReceiverStream::new(bodies)).await?.into_inner();
    let rest = requests.clone();
    let (watches, asked) = (arguments.watches, arguments);
    let sending = tokio::spawn(async move {
        for watch in 1..watches {
            rest.send(asked.create(first + watch)).await?;
        }
        anyhow::Ok(())
    });
    for _ in 0..watches {
        let created = answers.message().await?.context("the stream ended before its watches were created")?;
        anyhow::ensure!(created.created && !created.canceled, "a watch was not created: {created:?}");
    }
    sending.await??;
    Ok(Stream { _requests: requests, answers })
}

/// Runs the process.
#[expect(clippy::print_stdout, reason = "the answers of the process")]
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    anyhow::ensure!(!arguments.endpoints.is_empty(), "--endpoints names a server");
    let mut channels = Vec::new();
    for connection in 0..arguments.connections {
        channels.extend(connect(&arguments.endpoints[connection % arguments.endpoints.len()], 1).await?);
    }
    let (received, go) = (Arc::new(AtomicU64::new(0)), Arc::new(Notify::new()));
    let mut clients = JoinSet::new();
    let (opened, mut ready) = mpsc::channel(64);
    for number in 0..arguments.streams {
        let channel = channels[usize::try_from(number)? % channels.len()].clone();
        let one = Client { arguments: arguments.clone(), number, received: Arc::clone(&received), go: Arc::clone(&go) };
        clients.spawn(one.run(channel, opened.clone()));
    }
    drop(opened);
    for _ in 0..arguments.streams {
        if ready.recv().await.is_none() {
            clients.join_next().await.context("a client ended")???;
        }
    }
    println!("ready");
    let (lines, mut input) = mpsc::channel(1);
    // Reading the input blocks a thread until it ends.
    let reader = tokio::task::spawn_blocking(move || {
        std::io::stdin().lines().map_while(Result::ok).try_for_each(|line| lines.blocking_send(line))
    });
    while let Some(line) = input.recv().await {
        match line.as_str() {
            "count" => println!("{}", received.load(Ordering::Relaxed)),
            "read" => {
                go.notify_waiters();
                println!("{}", read_all(&mut clients).await);
            }
            other => anyhow::bail!("unknown command {other:?}"),
        }
    }
    reader.await?.context("the input ends before its reader")
}

async fn read_all(clients: &mut JoinSet<anyhow::Result<()>>) -> String {
    while let Some(ended) = clients.join_next().await {
        if let Err(error) = ended.map_err(anyhow::Error::from).and_then(|result| result) {
            return format!("{error:#}").replace('\n', " ");
        }
    }
    "ok".to_owned()
}

struct Client {
    arguments: Arguments,
    number: u64,
    received: Arc<AtomicU64>,
    go: Arc<Notify>,
}

impl Client {
    async fn run(self, channel: Connection, opened: mpsc::Sender<()>) -> anyhow::Result<()> {
        let go = Arc::clone(&self.go);
        let told = go.notified();
        tokio::pin!(told);
        // It must hear what is said from now on, though it does not listen yet.
        told.as_mut().enable();
        match self.arguments.mode {
            Mode::Live => {
                let stream = open(channel, self.arguments.clone(), self.number).await?;
                opened.send(()).await?;
                self.receive(stream).await
            }
            Mode::Stalled => {
                let stream = open(channel, self.arguments.clone(), self.number).await?;
                opened.send(()).await?;
                told.await;
                self.read_to_the_last(stream).await
            }
            Mode::Unary | Mode::Streamed => {
                opened.send(()).await?;
                if let Err(error) = self.list_again_and_again(channel).await {
                    // Whoever counts the lists sees that this process is gone.
                    eprintln!("{error:#}");
                    std::process::exit(1);
                }
                Ok(())
            }
            Mode::Lists => {
                let range = self.everything();
                let mut list = kv(&channel).range_stream(range).await?.into_inner();
                opened.send(()).await?;
                told.await;
                let mut keys = 0;
                while let Some(answer) = list.message().await? {
                    keys += answer.range_response.map_or(0, |part| part.kvs.len() as u64);
                }
                anyhow::ensure!(keys == self.arguments.keys, "a list has {keys} keys of {}", self.arguments.keys);
                Ok(())
            }
        }
    }

    fn everything(&self) -> pb::RangeRequest {
        let end = format!("{}:", self.arguments.prefix);
        pb::RangeRequest { key: self.arguments.prefix.clone().into(), range_end: end.into(), ..Default::default() }
    }

    async fn list_again_and_again(&self, channel: Connection) -> anyhow::Result<()> {
        let (mut client, range) = (kv(&channel), self.everything());
        loop {
            let mut keys = 0;
            if self.arguments.mode == Mode::Streamed {
                let mut parts = client.range_stream(range.clone()).await?.into_inner();
                while let Some(part) = parts.message().await? {
                    keys += part.range_response.map_or(0, |part| part.kvs.len() as u64);
                }
            } else {
                match client.range(range.clone()).await {
                    Ok(answer) => keys = answer.into_inner().kvs.len() as u64,
                    // Admission says so when big lists hold all the memory that they may: a client comes again.
                    Err(status) if status.code() == tonic::Code::ResourceExhausted => {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                    Err(status) => return Err(status.into()),
                }
            }
            anyhow::ensure!(keys == self.arguments.keys, "a list has {keys} keys of {}", self.arguments.keys);
            self.received.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[expect(clippy::print_stdout, reason = "the answers of the process")]
    async fn receive(&self, mut stream: Stream) -> anyhow::Result<()> {
        let (begin, mut live_at) = (Instant::now(), self.arguments.live_at);
        loop {
            let answer = stream.answers.message().await?.context("the stream ended")?;
            anyhow::ensure!(!answer.canceled, "a watch was canceled: {answer:?}");
            self.received.fetch_add(answer.events.len() as u64, Ordering::Relaxed);
            let newest = answer.events.last().and_then(|event| event.kv.as_ref()).map_or(0, |kv| kv.mod_revision);
            if live_at > 0 && newest >= live_at {
                println!("live {}", begin.elapsed().as_millis());
                live_at = 0;
            }
        }
    }

    /// Every event of the range from each key's first version on, in order and once, up to the last put; or the word
    /// that the position was compacted.
    async fn read_to_the_last(&self, mut stream: Stream) -> anyhow::Result<()> {
        let mut versions: BTreeMap<Bytes, i64> = BTreeMap::new();
        let mut newest = 0;
        loop {
            let next = tokio::time::timeout(SILENCE, stream.answers.message()).await;
            let answer = next.context("a stalled watch gets nothing")??.context("a stalled watch ended")?;
            if answer.canceled && answer.compact_revision > 0 {
                return Ok(());
            }
            anyhow::ensure!(!answer.canceled, "a stalled watch was canceled: {answer:?}");
            for event in answer.events {
                let kv = event.kv.context("an event has a key")?;
                anyhow::ensure!(kv.mod_revision > newest, "revision {} after {newest}", kv.mod_revision);
                newest = kv.mod_revision;
                self.received.fetch_add(1, Ordering::Relaxed);
                if kv.value == LAST {
                    return Ok(());
                }
                let version = versions.entry(kv.key).or_insert(0);
                anyhow::ensure!(kv.version == *version + 1, "version {} after {version}", kv.version);
                *version = kv.version;
            }
        }
    }
}

/// The process, seen from the experiment.
pub(crate) struct Clients {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Clients {
    /// Starts the process and waits until everything is open.
    pub(crate) async fn start(arguments: &Arguments, pin: bool) -> anyhow::Result<Self> {
        let mode = arguments.mode.to_possible_value().context("every mode has a name")?;
        let mut command = nice(&std::env::current_exe()?, pin, CLIENTS_NICE);
        command.arg("clients").arg(format!("--endpoints={}", arguments.endpoints.join(",")));
        command.arg(format!("--mode={}", mode.get_name())).arg(format!("--prefix={}", arguments.prefix));
        for (name, value) in [
            ("connections", arguments.connections as u64),
            ("streams", arguments.streams),
            ("watches", arguments.watches),
            ("keys", arguments.keys),
            ("ranges", arguments.ranges),
        ] {
            command.arg(format!("--{name}={value}"));
        }
        command.arg(format!("--start={}", arguments.start)).arg(format!("--live-at={}", arguments.live_at));
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let input = child.stdin.take().context("piped")?;
        let output = BufReader::new(child.stdout.take().context("piped")?).lines();
        let mut clients = Self { child, input, output };
        let first = clients.line().await?;
        anyhow::ensure!(first == "ready", "the clients say {first:?}");
        Ok(clients)
    }

    /// The process.
    pub(crate) fn id(&self) -> anyhow::Result<u32> {
        self.child.id().context("the clients have ended")
    }

    /// Its next line.
    pub(crate) async fn line(&mut self) -> anyhow::Result<String> {
        self.output.next_line().await?.context("the clients have ended")
    }

    /// Events received so far.
    pub(crate) async fn count(&mut self) -> anyhow::Result<u64> {
        self.say("count").await?;
        Ok(self.line().await?.parse()?)
    }

    /// Lets stalled clients read to the end.
    pub(crate) async fn read(&mut self) -> anyhow::Result<()> {
        self.say("read").await?;
        let answer = self.line().await?;
        anyhow::ensure!(answer == "ok", "the stalled clients: {answer}");
        Ok(())
    }

    /// SIGSTOP or SIGCONT.
    pub(crate) fn signal(&self, name: &str) -> anyhow::Result<()> {
        let done = std::process::Command::new("kill").args([name, &self.id()?.to_string()]).status()?;
        anyhow::ensure!(done.success(), "kill {name} failed");
        Ok(())
    }

    /// Ends the process.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }

    async fn say(&mut self, line: &str) -> anyhow::Result<()> {
        use tokio::io::AsyncWriteExt;
        self.input.write_all(format!("{line}\n").as_bytes()).await.context("the clients have ended")
    }
}
