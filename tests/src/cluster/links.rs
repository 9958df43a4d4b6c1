//! The connections between members, each direction of each pair under the test's control.
//!
//! Every member advertises the address of a proxy in front of its peer port. A connection that the proxy accepts comes
//! from some other member; which one is looked up by the socket's owner, so one address serves all pairs, no
//! rights and no network namespaces are needed, and a member that was started meanwhile is known at once.
//!
//! A *link* is a direction: bytes that member `from` sends to member `to`, whoever of the two opened the connection
//! (etcd's receivers open the streams that senders write to). So a one-way cut is one in the sense of messages; but
//! TCP's own acknowledgements still pass, so the open direction is not slowed down as it would be on a real wire.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::owner::{self, Resolver};

/// The most that one read takes.
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks on their way through one delayed direction.
const CHUNKS_MAX: usize = 64;

/// What happens to bytes on their way from one member to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Link {
    /// They pass.
    #[default]
    Open,
    /// They pass in order, each so much later.
    Delayed(Duration),
    /// They wait until the link is opened again, as behind a router that drops packets: nobody is told.
    Held,
    /// Connections end, and new ones too: both sides are told.
    Cut,
}

/// All links and who is who. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Links {
    state: Arc<Mutex<State>>,
    resolver: Resolver,
}

#[derive(Debug, Default)]
struct State {
    /// By (from, to), as slots of the cluster.
    links: BTreeMap<(usize, usize), watch::Sender<Link>>,
    /// The running process of each slot.
    processes: BTreeMap<usize, u32>,
}

impl Links {
    /// Sets the link from slot `from` to slot `to`.
    pub fn set(&self, from: usize, to: usize, link: Link) {
        let mut state = self.lock();
        state.links.entry((from, to)).or_default().send_replace(link);
    }

    /// Opens every link.
    pub fn open_all(&self) {
        for sender in self.lock().links.values() {
            sender.send_replace(Link::Open);
        }
    }

    /// Says which process runs in `slot`.
    pub(super) fn runs(&self, slot: usize, process: Option<u32>) {
        let mut state = self.lock();
        match process {
            Some(process) => state.processes.insert(slot, process),
            None => state.processes.remove(&slot),
        };
    }

    fn subscribe(&self, from: usize, to: usize) -> watch::Receiver<Link> {
        self.lock().links.entry((from, to)).or_default().subscribe()
    }

    /// The slot whose process holds the other end of an accepted connection.
    async fn slot_of(&self, source: SocketAddr, accepted_at: SocketAddr) -> Option<usize> {
        let socket = self.resolver.socket_of(source, accepted_at).await?;
        let processes: Vec<(usize, u32)> =
            self.lock().processes.iter().map(|(&slot, &process)| (slot, process)).collect();
        let holder = move || processes.into_iter().find(|(_, process)| owner::holds(*process, socket));
        let (slot, _) = tokio::task::spawn_blocking(holder).await.ok()??;
        Some(slot)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with the lock")
    }
}

/// The proxy in front of one member's peer port; it and its connections end when dropped.
#[derive(Debug)]
pub(super) struct PeerProxy {
    address: SocketAddr,
    task: AbortHandle,
}

impl PeerProxy {
    /// Accepts on `listener` for the member in `slot`, whose peer port is at `upstream`.
    pub(super) fn start(
        listener: TcpListener,
        slot: usize,
        upstream: SocketAddr,
        links: Links,
    ) -> anyhow::Result<Self> {
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((stream, source)) = accepted else { continue };
                        connections.spawn(forward(stream, source, address, slot, upstream, links.clone()));
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(Self { address, task: task.abort_handle() })
    }

    /// What the member advertises.
    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for PeerProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(
    stream: TcpStream,
    source: SocketAddr,
    accepted_at: SocketAddr,
    to: usize,
    upstream: SocketAddr,
    links: Links,
) -> std::io::Result<()> {
    // Whoever is not a member (any more) has no business here.
    let Some(from) = links.slot_of(source, accepted_at).await else { return Ok(()) };
    let (there, back) = (links.subscribe(from, to), links.subscribe(to, from));
    if *there.borrow() == Link::Cut || *back.borrow() == Link::Cut {
        return Ok(());
    }
    join(stream, upstream, there, back).await
}

/// Passes bytes on between a connection and a new one, each way as its link says.
pub(super) async fn join(
    stream: TcpStream,
    upstream: SocketAddr,
    there: watch::Receiver<Link>,
    back: watch::Receiver<Link>,
) -> std::io::Result<()> {
    let onward = TcpStream::connect(upstream).await?;
    stream.set_nodelay(true)?;
    onward.set_nodelay(true)?;
    let (source_reads, source_writes) = stream.into_split();
    let (onward_reads, onward_writes) = onward.into_split();
    let there = pump(source_reads, onward_writes, there);
    let back = pump(onward_reads, source_writes, back);
    // An error of either ends both; an end of either is passed on, and the other goes on.
    tokio::try_join!(there, back).map(|_| ())
}

/// Moves the bytes of one direction.
async fn pump(reads: OwnedReadHalf, writes: OwnedWriteHalf, link: watch::Receiver<Link>) -> std::io::Result<()> {
    let (chunks, queue) = mpsc::channel(CHUNKS_MAX);
    tokio::try_join!(read(reads, chunks), write(writes, queue, link)).map(|_| ())
}

async fn read(mut reads: OwnedReadHalf, chunks: mpsc::Sender<(Instant, Bytes)>) -> std::io::Result<()> {
    loop {
        let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
        if reads.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        if chunks.send((Instant::now(), buffer.freeze())).await.is_err() {
            return Ok(());
        }
    }
}

async fn write(
    mut writes: OwnedWriteHalf,
    mut queue: mpsc::Receiver<(Instant, Bytes)>,
    mut link: watch::Receiver<Link>,
) -> std::io::Result<()> {
    loop {
        let next = tokio::select! {
            next = queue.recv() => next,
            changed = link.changed() => {
                changed.map_err(|_| closed())?;
                pass(&mut link, None).await?;
                continue;
            }
        };
        pass(&mut link, next.as_ref().map(|(read_at, _)| *read_at)).await?;
        match next {
            Some((_, chunk)) => {
                let mut cut = link.clone();
                tokio::select! {
                    written = writes.write_all(&chunk) => written?,
                    // A receiver that stands still must not keep the connection.
                    _ = cut.wait_for(|link| *link == Link::Cut) => return Err(closed()),
                }
            }
            None => return writes.shutdown().await,
        }
    }
}

/// Returns when bytes that were read at `read_at` may go out.
async fn pass(link: &mut watch::Receiver<Link>, read_at: Option<Instant>) -> std::io::Result<()> {
    loop {
        let state = *link.borrow_and_update();
        match state {
            Link::Open => return Ok(()),
            Link::Cut => return Err(closed()),
            Link::Held => link.changed().await.map_err(|_| closed())?,
            Link::Delayed(delay) => {
                let Some(due) = read_at.map(|at| at + delay) else { return Ok(()) };
                tokio::select! {
                    () = tokio::time::sleep_until(due) => return Ok(()),
                    changed = link.changed() => changed.map_err(|_| closed())?,
                }
            }
        }
    }
}

fn closed() -> std::io::Error {
    std::io::ErrorKind::ConnectionAborted.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A proxy for slot 1 before an echo server; this process is slot 0.
    async fn echo() -> (Links, TcpStream, PeerProxy) {
        let server = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let upstream = server.local_addr().expect("bound");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = server.accept().await {
                tokio::spawn(async move {
                    let (mut reads, mut writes) = stream.split();
                    tokio::io::copy(&mut reads, &mut writes).await
                });
            }
        });
        let links = Links::default();
        links.runs(0, Some(std::process::id()));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let proxy = PeerProxy::start(listener, 1, upstream, links.clone()).expect("a proxy");
        let stream = TcpStream::connect(proxy.address).await.expect("a connection");
        (links, stream, proxy)
    }

    async fn answer(stream: &mut TcpStream, wait: Duration) -> Option<u8> {
        tokio::time::timeout(wait, stream.read_u8()).await.ok().and_then(Result::ok)
    }

    #[tokio::test]
    async fn each_direction_is_held_by_itself_and_loses_nothing() {
        let (links, mut stream, _proxy) = echo().await;
        let (short, long) = (Duration::from_millis(100), Duration::from_secs(10));
        for (byte, (from, to)) in (1..).zip([(0, 1), (1, 0)]) {
            stream.write_u8(byte).await.expect("connected");
            assert_eq!(answer(&mut stream, long).await, Some(byte));
            links.set(from, to, Link::Held);
            stream.write_u8(byte + 10).await.expect("connected");
            assert_eq!(answer(&mut stream, short).await, None, "held {from} to {to}");
            links.open_all();
            assert_eq!(answer(&mut stream, long).await, Some(byte + 10));
        }
    }

    #[tokio::test]
    async fn a_delay_delays_and_a_cut_ends() {
        let (links, mut stream, proxy) = echo().await;
        links.set(0, 1, Link::Delayed(Duration::from_millis(300)));
        let begin = Instant::now();
        stream.write_u8(7).await.expect("connected");
        assert_eq!(answer(&mut stream, Duration::from_secs(10)).await, Some(7));
        assert!(begin.elapsed() >= Duration::from_millis(300));
        links.set(1, 0, Link::Cut);
        assert!(stream.read_u8().await.is_err(), "the connection ends");
        let mut again = TcpStream::connect(proxy.address).await.expect("a connection");
        assert!(again.read_u8().await.is_err(), "a new one too");
    }
}
