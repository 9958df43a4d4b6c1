//! Members on loopback, with real sockets.

use std::io::Read as _;
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use futures_util::{Stream, StreamExt as _};
use tailwater_api::peer::peer_server::{Peer, PeerServer};
use tailwater_api::peer::{PeerAck, PeerBatch};
use tokio::io::AsyncWriteExt as _;
use tonic::{Request, Response, Streaming};

use super::*;
use crate::port::{PeerPort, PortInfo, PortServer};

const CLUSTER: u64 = 0xc1;
const PATIENCE: Duration = Duration::from_secs(20);

/// Keeps what comes, in the order in which it comes.
#[derive(Default)]
struct Recorder {
    received: Mutex<Vec<Bytes>>,
    unreachable: Mutex<Vec<MemberId>>,
    /// Who was removed before this member started.
    gone: Mutex<Vec<MemberId>>,
    is_told_removed: AtomicBool,
}

impl PeerSink for Recorder {
    fn receive(&self, message: &[u8]) {
        self.received.lock().push(Bytes::copy_from_slice(message));
    }

    fn report_unreachable(&self, member: MemberId) {
        self.unreachable.lock().push(member);
    }

    fn is_removed(&self, member: MemberId) -> bool {
        self.gone.lock().contains(&member)
    }

    fn report_removed(&self) {
        self.is_told_removed.store(true, Ordering::SeqCst);
    }
}

impl Recorder {
    fn of_kind(&self, kind: u8) -> Vec<u32> {
        let received = self.received.lock();
        received.iter().filter(|message| message[1] == kind).map(number).collect()
    }
}

struct Node {
    peers: Peers,
    sink: Arc<Recorder>,
    server: PortServer,
    member: Member,
}

fn free_listener() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("a socket");
    listener
}

fn member_at(id: u64, urls: &[String]) -> Member {
    Member { id: MemberId(id), name: String::new(), peer_urls: urls.to_vec(), client_urls: vec![], is_learner: false }
}

fn url(listener: &TcpListener) -> String {
    format!("http://{}", listener.local_addr().expect("bound"))
}

impl Node {
    fn start(id: u64, cluster_id: u64) -> Self {
        Self::start_on(id, cluster_id, free_listener(), |_| {})
    }

    fn start_on(id: u64, cluster_id: u64, listener: TcpListener, change: impl FnOnce(&mut PeersConfig)) -> Self {
        let mut config = PeersConfig::new(MemberId(id));
        config.ack_timeout = PATIENCE;
        change(&mut config);
        let directory = Arc::new(Directory::new(cluster_id));
        let peers = Peers::new(config, directory.clone(), Handle::current());
        let sink = Arc::new(Recorder::default());
        peers.attach(sink.clone());
        let member = member_at(id, &[url(&listener)]);
        let info = PortInfo { directory, version: Arc::new(|| "{}".into()) };
        let server = PeerPort::new(info).add_service(peers.service().into_server()).into_server();
        tokio::spawn(server.clone().serve(listener, tailwater_tls::Door::plain()));
        Self { peers, sink, server, member }
    }

    async fn stop(self) {
        self.peers.stop();
        self.server.stop(PATIENCE).await;
    }
}

fn introduce(nodes: &[&Node]) {
    let members: Vec<_> = nodes.iter().map(|node| node.member.clone()).collect();
    nodes.iter().for_each(|node| node.peers.set_members(&members));
}

const APPEND: u8 = 3;
const HEARTBEAT: u8 = 8;

/// The start of a raft message, a number, and ballast.
fn message(kind: u8, number: u32, len: usize) -> Bytes {
    let mut bytes = vec![0; len.max(6)];
    bytes[..2].copy_from_slice(&[8, kind]);
    bytes[2..6].copy_from_slice(&number.to_be_bytes());
    bytes.into()
}

fn number(message: &Bytes) -> u32 {
    u32::from_be_bytes(message[2..6].try_into().expect("four bytes"))
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited too long until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_hear_each_other_in_order() {
    let nodes = [Node::start(1, CLUSTER), Node::start(2, CLUSTER), Node::start(3, CLUSTER)];
    introduce(&[&nodes[0], &nodes[1], &nodes[2]]);
    for i in 0..2000 {
        for (from, to) in [(0, 2), (0, 3), (1, 1), (2, 1)] {
            let kind = if i % 4 == 0 { HEARTBEAT } else { APPEND };
            nodes[from].peers.send(MemberId(to), message(kind, i, 100));
        }
    }
    let appends: Vec<u32> = (0..2000).filter(|i| i % 4 != 0).collect();
    let heartbeats: Vec<u32> = (0..2000).filter(|i| i % 4 == 0).collect();
    for at in [1, 2] {
        until("all came", || nodes[at].sink.received.lock().len() == 2000).await;
        assert_eq!(nodes[at].sink.of_kind(APPEND), appends);
        assert_eq!(nodes[at].sink.of_kind(HEARTBEAT), heartbeats);
    }
    until("both came", || nodes[0].sink.received.lock().len() == 4000).await;
    assert_eq!(nodes[0].peers.active(), [MemberId(2), MemberId(3)]);
    until("all is acknowledged", || nodes[0].peers.held_bytes(MemberId(2)) == 0).await;
    assert!(nodes.iter().all(|node| node.sink.unreachable.lock().is_empty()), "nothing was lost");
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_does_not_read_costs_its_bound_and_nobody_else_anything() {
    // It accepts connections and leaves everything in its socket.
    let deaf = free_listener();
    let deaf_member = member_at(3, &[url(&deaf)]);
    let held = tokio::net::TcpListener::from_std(deaf).expect("a listener");
    let holding = tokio::spawn(async move {
        let mut connections = Vec::new();
        while let Ok((connection, _)) = held.accept().await {
            connections.push(connection);
        }
    });
    let one = Node::start_on(1, CLUSTER, free_listener(), |config| config.append_bytes_max = 1 << 20);
    let two = Node::start(2, CLUSTER);
    one.peers.set_members(&[one.member.clone(), two.member.clone(), deaf_member]);
    let start = Instant::now();
    let mut last = 0;
    for i in 0..2000 {
        one.peers.send(MemberId(3), message(APPEND, i, 10_000));
        if i % 100 == 0 {
            last = i;
            one.peers.send(MemberId(2), message(APPEND, i, 10_000));
        }
    }
    assert!(start.elapsed() < Duration::from_secs(5), "sending waits for nobody");
    assert!(one.peers.held_bytes(MemberId(3)) <= (1 << 20) + 10_000, "20 MB were sent to it");
    until("the other peer has all of its own", || two.sink.of_kind(APPEND).last() == Some(&last)).await;
    assert_eq!(two.sink.of_kind(APPEND).len(), 20);
    let unreachable = one.sink.unreachable.lock().clone();
    assert!(!unreachable.is_empty() && unreachable.iter().all(|member| *member == MemberId(3)));
    holding.abort();
    one.stop().await;
    two.stop().await;
}

/// Accepts a stream, and then reads nothing of it.
#[derive(Clone)]
struct Stuck;

#[tonic::async_trait]
impl Peer for Stuck {
    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<PeerAck, Status>> + Send>>;

    async fn exchange(&self, request: Request<Streaming<PeerBatch>>) -> Result<Response<Self::ExchangeStream>, Status> {
        let mut batches = request.into_inner();
        batches.message().await?;
        let held = futures_util::stream::pending().chain(batches.map(|_| Ok(PeerAck::default())));
        Ok(Response::new(Box::pin(held)))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_on_its_way_counts_and_a_stuck_peer_is_cut_off() {
    let listener = free_listener();
    let stuck = member_at(2, &[url(&listener)]);
    let directory = Arc::new(Directory::new(CLUSTER));
    let info = PortInfo { directory, version: Arc::new(|| "{}".into()) };
    let server = PeerPort::new(info).add_service(PeerServer::new(Stuck)).into_server();
    tokio::spawn(server.clone().serve(listener, tailwater_tls::Door::plain()));
    let one = Node::start_on(1, CLUSTER, free_listener(), |config| {
        config.append_bytes_max = 16 << 20;
        config.ack_timeout = Duration::from_secs(1);
    });
    one.peers.set_members(&[one.member.clone(), stuck]);
    one.peers.send(MemberId(2), message(APPEND, 0, 100));
    until("the link is up", || one.peers.active() == [MemberId(2)]).await;
    // Much of it leaves, into windows and sockets, and none is acknowledged.
    let mut refused = 0;
    for i in 0..300 {
        one.peers.send(MemberId(2), message(APPEND, i, 100_000));
        refused += usize::from(!one.sink.unreachable.lock().is_empty());
        if i % 10 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(one.peers.held_bytes(MemberId(2)) <= 16 << 20);
    }
    assert!(refused > 100, "30 MB were offered, 16 MiB may be on the way");
    until("it is cut off", || one.peers.held_bytes(MemberId(2)) == 0).await;
    one.stop().await;
    // Nothing of it stays behind: else its connection would outlive this.
    let start = Instant::now();
    server.stop(PATIENCE).await;
    assert!(start.elapsed() < PATIENCE, "the connection is gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_pass_a_backlog_of_appends() {
    let one = Node::start(1, CLUSTER);
    let two = Node::start(2, CLUSTER);
    introduce(&[&one, &two]);
    for i in 0..100 {
        one.peers.send(MemberId(2), message(APPEND, i, 1 << 20));
    }
    one.peers.send(MemberId(2), message(HEARTBEAT, 7, 20));
    until("the heartbeat came", || !two.sink.of_kind(HEARTBEAT).is_empty()).await;
    let before = two.sink.of_kind(APPEND).len();
    assert!(before < 100, "it overtook the appends");
    until("the appends came", || two.sink.of_kind(APPEND).len() == 100).await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_comes_back_after_its_peer_does() {
    let one = Node::start(1, CLUSTER);
    let two = Node::start(2, CLUSTER);
    introduce(&[&one, &two]);
    one.peers.send(MemberId(2), message(APPEND, 1, 100));
    until("the first came", || two.sink.of_kind(APPEND) == [1]).await;
    let address = two.member.peer_urls[0].trim_start_matches("http://").to_owned();
    two.stop().await;
    until("the loss is told", || one.sink.unreachable.lock().contains(&MemberId(2))).await;
    assert!(one.peers.active().is_empty());
    // While nobody is there every message is lost, and says so.
    one.peers.send(MemberId(2), message(APPEND, 2, 100));
    until("its loss is told", || one.sink.unreachable.lock().len() >= 2).await;
    let listener = TcpListener::bind(address).expect("the port is free again");
    listener.set_nonblocking(true).expect("a socket");
    let two = Node::start_on(2, CLUSTER, listener, |_| {});
    introduce(&[&one, &two]);
    let start = Instant::now();
    let mut i = 3;
    while two.sink.received.lock().is_empty() {
        assert!(start.elapsed() < PATIENCE, "no link");
        one.peers.send(MemberId(2), message(APPEND, i, 100));
        i += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(start.elapsed() < Duration::from_secs(5), "the pause between attempts is bounded");
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_url_serves_when_the_first_does_not() {
    let one = Node::start(1, CLUSTER);
    let two = Node::start(2, CLUSTER);
    let nobody = url(&free_listener());
    let member = member_at(2, &[nobody, two.member.peer_urls[0].clone()]);
    one.peers.set_members(&[one.member.clone(), member]);
    let mut i = 0;
    until("one came", || {
        i += 1;
        one.peers.send(MemberId(2), message(HEARTBEAT, i, 20));
        !two.sink.received.lock().is_empty()
    })
    .await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused() {
    let two = Node::start(2, CLUSTER);
    let other_cluster = Node::start(1, 0xbad);
    let mistaken = Node::start(3, CLUSTER);
    other_cluster.peers.set_members(&[other_cluster.member.clone(), two.member.clone()]);
    mistaken.peers.set_members(&[mistaken.member.clone(), member_at(4, &two.member.peer_urls)]);
    let mut tries = 0;
    until("both were told", || {
        tries += 1;
        other_cluster.peers.send(MemberId(2), message(HEARTBEAT, tries, 20));
        mistaken.peers.send(MemberId(4), message(HEARTBEAT, tries, 20));
        two.peers.inner.refusals.lock().len() == 2
            && other_cluster.sink.unreachable.lock().len() > 2
            && mistaken.sink.unreachable.lock().len() > 2
    })
    .await;
    let mut refusals = two.peers.inner.refusals.lock().clone();
    refusals.sort();
    let expected = [(1, "cluster ID mismatch".to_owned()), (3, "member ID mismatch".to_owned())];
    assert_eq!(refusals, expected, "each once, however often they try");
    assert!(two.sink.received.lock().is_empty());
    for node in [two, other_cluster, mistaken] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_learns_it() {
    let one = Node::start(1, CLUSTER);
    let two = Node::start(2, CLUSTER);
    introduce(&[&one, &two]);
    one.peers.send(MemberId(2), message(APPEND, 1, 100));
    until("a member is heard", || two.sink.of_kind(APPEND) == [1]).await;
    // That it is missing says nothing: this one may be behind. That it was removed does.
    two.peers.set_members(std::slice::from_ref(&two.member));
    one.peers.send(MemberId(2), message(APPEND, 2, 100));
    until("it is still heard", || two.sink.of_kind(APPEND) == [1, 2]).await;
    two.sink.gone.lock().push(MemberId(1));
    let mut i = 2;
    until("it is told, on the stream that it had", || {
        i += 1;
        one.peers.send(MemberId(2), message(APPEND, i, 100));
        one.sink.is_told_removed.load(Ordering::SeqCst)
    })
    .await;
    assert_eq!(two.sink.of_kind(APPEND), [1, 2], "nothing of it is heard any more");
    assert!(one.sink.unreachable.lock().contains(&MemberId(2)));
    until("the link to it has ended", || !two.peers.links.read().by_id.contains_key(&MemberId(1))).await;
    // One that was removed before this process began is known to the replica alone.
    let three = Node::start(3, CLUSTER);
    two.sink.gone.lock().push(MemberId(3));
    introduce(&[&two, &three]);
    until("it is told at the door", || {
        three.peers.send(MemberId(2), message(HEARTBEAT, 1, 20));
        three.sink.is_told_removed.load(Ordering::SeqCst)
    })
    .await;
    assert_eq!(two.sink.received.lock().len(), 2);
    for node in [one, two, three] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_answers_one_that_it_has_yet_to_learn_of() {
    let one = Node::start(1, CLUSTER);
    let two = Node::start(2, CLUSTER);
    one.peers.set_members(&[one.member.clone(), two.member.clone()]);
    // Its log does not name member 1 yet, or names the place where that was before.
    two.peers.set_members(std::slice::from_ref(&two.member));
    one.peers.send(MemberId(2), message(APPEND, 1, 20));
    until("it is heard", || two.sink.of_kind(APPEND) == [1]).await;
    two.peers.send(MemberId(1), message(HEARTBEAT, 2, 20));
    until("it is answered", || one.sink.of_kind(HEARTBEAT) == [2]).await;
    let gone = member_at(1, &[url(&free_listener())]);
    two.peers.set_members(&[two.member.clone(), gone]);
    one.peers.stop();
    one.server.stop(PATIENCE).await;
    let one = Node::start(1, CLUSTER);
    one.peers.set_members(&[one.member.clone(), two.member.clone()]);
    let mut i = 2;
    until("it is answered at its new place", || {
        i += 1;
        one.peers.send(MemberId(2), message(APPEND, i, 20));
        two.peers.send(MemberId(1), message(HEARTBEAT, i, 20));
        !one.sink.of_kind(HEARTBEAT).is_empty()
    })
    .await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_peer_is_cut_off() {
    // Says nothing, not even that it heard the hello.
    let listener = free_listener();
    let silent = member_at(2, &[url(&listener)]);
    let reader = std::thread::spawn(move || {
        listener.set_nonblocking(false).expect("a socket");
        let (mut connection, _) = listener.accept().expect("a connection");
        let mut bytes = [0; 24];
        connection.read_exact(&mut bytes).expect("HTTP/2's preface");
        bytes
    });
    let one = Node::start_on(1, CLUSTER, free_listener(), |config| {
        config.ack_timeout = Duration::from_millis(300);
    });
    one.peers.set_members(&[one.member.clone(), silent]);
    one.peers.send(MemberId(2), message(HEARTBEAT, 1, 20));
    until("the loss is told", || !one.sink.unreachable.lock().is_empty()).await;
    assert!(reader.join().expect("no panic").starts_with(b"PRI * HTTP/2.0"));
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_harms_nobody() {
    let one = Node::start(1, CLUSTER);
    let two = Node::start(2, CLUSTER);
    introduce(&[&one, &two]);
    let address = two.member.peer_urls[0].trim_start_matches("http://").to_owned();
    for seed in 0_u8..20 {
        let mut noise = tokio::net::TcpStream::connect(&address).await.expect("it listens");
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend((0..2000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0] ^ seed));
        // The other side may hang up before all is written.
        drop(noise.write_all(&bytes).await);
    }
    one.peers.send(MemberId(2), message(APPEND, 1, 100));
    until("a member is heard", || two.sink.of_kind(APPEND) == [1]).await;
    one.stop().await;
    two.stop().await;
}
