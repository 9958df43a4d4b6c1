//! Three members in one process: real replicas, real sockets, and a router beside each.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use tailwater_api::etcdserverpb as etcd;
use tailwater_api::tail;
use tailwater_api::write::{self, command::Command};
use tailwater_consensus::{Answer, Applied, Consensus, ConsensusConfig, ProposeError, WritePlane};
use tailwater_eventlog::{LeaseId, Member, MemberId};
use tailwater_transport::{
    Directory, LinkConfig, PeerPort, Peers, PeersConfig, PortInfo, PortServer, Router, RouterConfig, WriteService,
    WriteServiceConfig, fetch_members,
};
use tokio::runtime::Handle;

const CLUSTER: u64 = 0xc1;
const PATIENCE: Duration = Duration::from_secs(30);

struct Node {
    id: MemberId,
    peers: Peers,
    consensus: Consensus,
    service: WriteService,
    server: PortServer,
    router: Router,
}

fn config(dir: &Path, id: u64, members: &[Member], founding: bool) -> ConsensusConfig {
    ConsensusConfig {
        data_dir: dir.join(id.to_string()),
        member_id: MemberId(id),
        cluster_id: CLUSTER,
        initial_members: members.to_vec(),
        founding,
        force_new_cluster: false,
        strict_reconfig_check: true,
        heartbeat_interval: Duration::from_millis(50),
        election_ticks: 10,
        request_bytes_max: 1536 << 10,
        batch_bytes_max: 4 << 20,
        proposal_queue_bytes_max: 64 << 20,
        apply_lag_max: 5000,
        request_timeout: PATIENCE,
        lease_ttl_min: 1,
        quota_bytes: 0,
        memtable_bytes: 32 << 20,
        block_cache_bytes: 8 << 20,
        raft_log_bytes: 64 << 20,
        raft_recent_bytes_max: 8 << 20,
        tail_hot_bytes_max: 8 << 20,
        sync_delay: Duration::ZERO,
    }
}

impl Node {
    async fn start(dir: &Path, id: u64, members: &[Member], founding: bool, listener: TcpListener) -> Self {
        let id = MemberId(id);
        let directory = Arc::new(Directory::new(CLUSTER));
        let peers = Peers::new(PeersConfig::new(id), directory.clone(), Handle::current());
        let config = config(dir, id.0, members, founding);
        let transport = Arc::new(peers.clone());
        let started = tokio::task::spawn_blocking(move || Consensus::start(config, transport));
        let (consensus, source) = started.await.expect("no panic").expect("a replica");
        // Nobody follows the tail here.
        drop(source);
        peers.attach(Arc::new(consensus.clone()));
        let replica: Arc<dyn WritePlane> = Arc::new(consensus.clone());
        let service = WriteService::new(replica.clone(), peers.greeter().clone(), WriteServiceConfig::default());
        let info = PortInfo { directory, version: Arc::new(|| "{}".into()) };
        let server = PeerPort::new(info)
            .add_service(peers.service().into_server())
            .add_service(service.clone().into_server())
            .into_server();
        tokio::spawn(server.clone().serve(listener, tailwater_tls::Door::plain()));
        let router =
            Router::new(Some(replica), peers.greeter().clone(), RouterConfig::new(PATIENCE), Handle::current());
        Self { id, peers, consensus, service, server, router }
    }

    async fn stop(self) {
        self.peers.stop();
        self.service.stop();
        self.server.stop(Duration::from_secs(5)).await;
        let consensus = self.consensus;
        tokio::task::spawn_blocking(move || consensus.stop()).await.expect("stopped");
    }
}

fn free_listener() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("a socket");
    listener
}

fn url(listener: &TcpListener) -> String {
    format!("http://{}", listener.local_addr().expect("bound"))
}

async fn group(dir: &Path) -> Vec<Node> {
    let listeners: Vec<_> = (0..3).map(|_| free_listener()).collect();
    let member = |(at, listener): (usize, &TcpListener)| Member {
        id: MemberId(at as u64 + 1),
        // Named: it has started, as far as changes of membership ask.
        name: format!("member-{at}"),
        peer_urls: vec![url(listener)],
        ..Default::default()
    };
    let members: Vec<_> = listeners.iter().enumerate().map(member).collect();
    let starting = listeners.into_iter().zip(1..).map(|(listener, id)| Node::start(dir, id, &members, true, listener));
    join_all(starting).await
}

fn put(key: impl Into<Bytes>) -> Command {
    Command::Put(etcd::PutRequest { key: key.into(), value: vec![7; 100].into(), ..Default::default() })
}

fn revision(applied: &Applied) -> i64 {
    match &applied.answer {
        Answer::Put(response) => response.header.as_ref().expect("a header").revision,
        other => panic!("a put is answered with {other:?}"),
    }
}

async fn leader(nodes: &[Node]) -> MemberId {
    let start = Instant::now();
    loop {
        let leaders: Vec<_> = nodes.iter().map(|node| node.router.status().leader).collect();
        let first = leaders[0];
        let is_there = nodes.iter().any(|node| node.id == first);
        if is_there && leaders.iter().all(|leader| *leader == first) {
            return first;
        }
        assert!(start.elapsed() < PATIENCE, "no leader that all know");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_serves_writes_and_the_loss_of_the_leader_loses_none() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut nodes = group(dir.path()).await;
    // Sent before there is a leader: they wait for one.
    let first = join_all(nodes.iter().map(|node| node.router.propose(put(format!("first-{}", node.id))))).await;
    let mut revisions: Vec<_> = first.iter().map(|applied| revision(applied.as_ref().expect("answered"))).collect();
    revisions.sort_unstable();
    assert_eq!(revisions, [2, 3, 4]);

    let grant = Command::LeaseGrant(etcd::LeaseGrantRequest { ttl: 100, id: 5 });
    nodes[0].router.propose(grant).await.expect("granted");
    for node in &nodes {
        assert_eq!(node.router.lease_keep_alive(LeaseId(5)).await.expect("renewed"), Some(100));
    }

    let mut writes = Vec::new();
    for node in &nodes {
        writes.extend((0..1000).map(|i| node.router.propose(put(format!("{}-{i}", node.id)))));
    }
    let written = join_all(writes).await;
    let last = written.iter().map(|applied| applied.as_ref().expect("answered").position).max().expect("some");
    for node in &nodes {
        assert!(node.router.barrier().await.expect("passed") >= last, "a read sees what was answered before");
    }

    let leads = leader(&nodes).await;
    let at = nodes.iter().position(|node| node.id == leads).expect("one of them");
    let gone = nodes.remove(at);
    let writing = {
        let routers: Vec<_> = nodes.iter().map(|node| node.router.clone()).collect();
        tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            let mut unknown = 0;
            for i in 0..200 {
                match routers[i % 2].propose(put(format!("during-{i}"))).await {
                    Ok(applied) => acknowledged.push(revision(&applied)),
                    Err(ProposeError::LeaderChanged | ProposeError::Timeout) => unknown += 1,
                    Err(error) => panic!("refused: {error:?}"),
                }
            }
            (acknowledged, unknown)
        })
    };
    tokio::time::sleep(Duration::from_millis(50)).await;
    gone.stop().await;
    let (acknowledged, unknown) = writing.await.expect("no panic");
    assert!(acknowledged.is_sorted(), "one after the other");
    assert!(unknown <= 2, "one write at a time: at most what was on its way when the leader went");
    let after = nodes[0].router.propose(put("after")).await.expect("answered");
    let proposed = acknowledged.len() as i64;
    // 1 at the start, 3 first ones and 3000 of them, then what was acknowledged, and this one.
    let least = 1 + 3 + 3000 + proposed + 1;
    let most = least + unknown;
    assert!((least..=most).contains(&revision(&after)), "{} of {least}..={most}", revision(&after));
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_at_the_request_of_any_member() {
    let dir = tempfile::tempdir().expect("a directory");
    let nodes = group(dir.path()).await;
    nodes[0].router.propose(put("a")).await.expect("answered");
    let leads = leader(&nodes).await;
    let mut others = nodes.iter().filter(|node| node.id != leads);
    let (asks, next) = (others.next().expect("another"), others.next().expect("a third"));
    asks.router.move_leader(next.id).await.expect("moved");
    assert_eq!(leader(&nodes).await, next.id);
    asks.router.propose(put("b")).await.expect("answered");
    for node in nodes {
        node.stop().await;
    }
}

/// Proposes a change of membership until the leader finds the group well enough for it.
async fn change(router: &Router, command: Command) -> Vec<Member> {
    let start = Instant::now();
    loop {
        match router.propose(command.clone()).await {
            Ok(Applied { answer: Answer::Members(members), .. }) => return members,
            Ok(applied) => panic!("a change of membership is answered with {applied:?}"),
            Err(error) => assert!(start.elapsed() < PATIENCE, "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_joins_catches_up_votes_and_leaves() {
    let dir = tempfile::tempdir().expect("a directory");
    let nodes = group(dir.path()).await;
    for i in 0..100 {
        nodes[0].router.propose(put(format!("{i}"))).await.expect("answered");
    }
    let leads = leader(&nodes).await;
    let follower = nodes.iter().find(|node| node.id != leads).expect("a follower");
    let listener = free_listener();
    let joins = tail::Member { id: 4, peer_urls: vec![url(&listener)], is_learner: true, ..Default::default() };
    let members = change(&follower.router, Command::MemberAdd(write::MemberAdd { member: Some(joins) })).await;
    assert_eq!(members.len(), 4);

    let known = follower.peers.directory().peer_urls(follower.id).remove(0);
    let list = fetch_members(&known, PATIENCE, &LinkConfig::default()).await.expect("a list");
    assert_eq!(list.cluster_id, CLUSTER);
    // As if it had heard of itself and one other only: the leader is whom it hears from.
    let heard: Vec<_> = list.members.into_iter().filter(|member| member.id != leads).collect();
    let fourth = Node::start(dir.path(), 4, &heard, false, listener).await;
    let write = fourth.router.propose(put("from the new one")).await.expect("answered by the leader");
    let start = Instant::now();
    while fourth.router.status().applied < write.position {
        assert!(start.elapsed() < PATIENCE, "it does not catch up");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let members = change(&fourth.router, Command::MemberPromote(write::MemberPromote { id: 4 })).await;
    assert!(members.iter().all(|member| !member.is_learner));
    // The answer may be there before the leader's raft knows of the new voter.
    let start = Instant::now();
    while let Err(error) = fourth.router.move_leader(MemberId(4)).await {
        assert!(start.elapsed() < PATIENCE, "a voter can lead: {error:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    fourth.router.move_leader(leads).await.expect("moved back");

    let members = change(&follower.router, Command::MemberRemove(write::MemberRemove { id: 4 })).await;
    assert_eq!(members.len(), 3);
    let reason = tokio::time::timeout(PATIENCE, fourth.consensus.stopped()).await.expect("it learns of it");
    assert!(reason.is_some_and(|reason| reason.contains("removed")));
    nodes[0].router.propose(put("after")).await.expect("answered");
    fourth.stop().await;
    for node in nodes {
        node.stop().await;
    }
}
