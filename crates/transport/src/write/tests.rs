//! Routers and leaders on loopback, with real sockets.

mod codec;

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tailwater_api::etcdserverpb as etcd;
use tailwater_api::write::{Caller, command::Command};
use tailwater_consensus::{
    Answer, Applied, ApplyError, AuthError, Consensus, ConsensusConfig, ConsensusStatus, LeaseInfo, NoPeers,
    ProposeError, Reply, Right, WritePlane,
};
use tailwater_eventlog::{LeaseId, Member, MemberId, Position};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::{Router, RouterConfig, WriteService, WriteServiceConfig};
use crate::port::{PeerPort, PortInfo, PortServer};
use crate::{Directory, Greeter};

const CLUSTER: u64 = 0xc1;
const PATIENCE: Duration = Duration::from_secs(20);
const GATEWAY: MemberId = MemberId(1);

/// A replica that answers as a test wants it, and counts.
#[derive(Default)]
struct Replica {
    leader: AtomicU64,
    proposals: Mutex<Vec<Bytes>>,
    barriers: AtomicUsize,
    /// While set, nothing is answered.
    holds: watch::Sender<bool>,
    /// Answers "not me" in spite of what it says of the leader.
    refuses: AtomicBool,
}

impl Replica {
    fn with_leader(id: u64) -> Arc<Self> {
        let replica = Self::default();
        replica.leader.store(id, Ordering::SeqCst);
        Arc::new(replica)
    }

    fn set_leader(&self, id: u64) {
        self.leader.store(id, Ordering::SeqCst);
    }

    fn keys(&self) -> Vec<Bytes> {
        self.proposals.lock().clone()
    }

    async fn answer<T>(&self, value: T) -> Result<T, ProposeError> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(ProposeError::NoLeader);
        }
        let mut holds = self.holds.subscribe();
        drop(holds.wait_for(|holds| !*holds).await);
        Ok(value)
    }
}

impl WritePlane for Replica {
    fn propose_as(&self, _caller: Option<Caller>, command: Command) -> Reply<'_, Applied> {
        let mut count = 0;
        if let Command::Put(put) = command
            && !self.refuses.load(Ordering::SeqCst)
        {
            let mut proposals = self.proposals.lock();
            proposals.push(put.key);
            count = proposals.len() as u64;
        }
        Box::pin(self.answer(Applied { position: Position(count), answer: Answer::Done }))
    }

    fn barrier(&self) -> Reply<'_, Position> {
        let count = self.barriers.fetch_add(1, Ordering::SeqCst) + 1;
        Box::pin(self.answer(Position(count as u64)))
    }

    fn lease_keep_alive(&self, id: LeaseId) -> Reply<'_, Option<i64>> {
        Box::pin(self.answer((id.0 > 0).then_some(id.0)))
    }

    fn lease_time_to_live(&self, _id: LeaseId, _keys: bool) -> Reply<'_, Option<LeaseInfo>> {
        Box::pin(self.answer(None))
    }

    fn check_lease(&self, caller: Caller, right: Right, id: Option<LeaseId>) -> Reply<'_, ()> {
        let is_known = caller.user == "u" && right == Right::Write && id == Some(LeaseId(-4));
        Box::pin(async move {
            self.answer(()).await?;
            if is_known { Ok(()) } else { Err(ApplyError::Auth(AuthError::PermissionDenied).into()) }
        })
    }

    fn leases(&self) -> Reply<'_, Vec<LeaseId>> {
        Box::pin(self.answer(vec![LeaseId(5)]))
    }

    fn move_leader(&self, _to: MemberId) -> Reply<'_, ()> {
        Box::pin(self.answer(()))
    }

    fn status(&self) -> ConsensusStatus {
        ConsensusStatus { leader: MemberId(self.leader.load(Ordering::SeqCst)), ..Default::default() }
    }
}

fn member_at(id: u64, url: String) -> Member {
    Member { id: MemberId(id), peer_urls: vec![url], ..Default::default() }
}

/// A member whose write plane is served.
struct Served {
    service: WriteService,
    server: PortServer,
    member: Member,
}

impl Served {
    fn start(id: u64, replica: Arc<dyn WritePlane>) -> Self {
        Self::start_in(CLUSTER, id, replica)
    }

    fn start_in(cluster_id: u64, id: u64, replica: Arc<dyn WritePlane>) -> Self {
        Self::serve(cluster_id, id, |greeter| WriteService::new(replica, greeter, WriteServiceConfig::default()))
    }

    fn serve(cluster_id: u64, id: u64, service: impl FnOnce(Greeter) -> WriteService) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let member = member_at(id, format!("http://{}", listener.local_addr().expect("bound")));
        let directory = Arc::new(Directory::new(cluster_id));
        let greeter = Greeter::new(MemberId(id), directory.clone());
        let service = service(greeter);
        let info = PortInfo { directory, version: Arc::new(|| "{}".into()) };
        let server = PeerPort::new(info).add_service(service.clone().into_server()).into_server();
        tokio::spawn(server.clone().serve(listener, tailwater_tls::Door::plain()));
        Self { service, server, member }
    }

    /// One that hands on what it is asked.
    fn relay(id: u64, router: Router) -> Self {
        Self::serve(CLUSTER, id, |greeter| WriteService::forwarding(router, greeter, WriteServiceConfig::default()))
    }

    async fn stop(self) {
        self.service.stop();
        self.server.stop(PATIENCE).await;
    }
}

fn router(replica: Option<Arc<Replica>>, members: &[&Served], change: impl FnOnce(&mut RouterConfig)) -> Router {
    let directory = Arc::new(Directory::new(CLUSTER));
    let members: Vec<_> = members.iter().map(|served| served.member.clone()).collect();
    directory.set_members(&members);
    let mut config = RouterConfig::new(PATIENCE);
    change(&mut config);
    let replica = replica.map(|replica| -> Arc<dyn WritePlane> { replica });
    Router::new(replica, Greeter::new(GATEWAY, directory), config, Handle::current())
}

fn put(key: impl Into<Bytes>) -> Command {
    Command::Put(etcd::PutRequest { key: key.into(), value: "v".into(), ..Default::default() })
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited too long until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn group_of_one(dir: &Path, id: u64) -> Consensus {
    let config = ConsensusConfig {
        data_dir: dir.to_owned(),
        member_id: MemberId(id),
        cluster_id: CLUSTER,
        initial_members: vec![Member { id: MemberId(id), ..Default::default() }],
        founding: true,
        force_new_cluster: false,
        strict_reconfig_check: true,
        heartbeat_interval: Duration::from_millis(20),
        election_ticks: 10,
        request_bytes_max: 1536 << 10,
        batch_bytes_max: 4 << 20,
        proposal_queue_bytes_max: 64 << 20,
        apply_lag_max: 5000,
        request_timeout: Duration::from_secs(10),
        lease_ttl_min: 1,
        quota_bytes: 0,
        memtable_bytes: 32 << 20,
        block_cache_bytes: 8 << 20,
        raft_log_bytes: 64 << 20,
        raft_recent_bytes_max: 8 << 20,
        tail_hot_bytes_max: 8 << 20,
        sync_delay: Duration::ZERO,
    };
    let (consensus, source) = Consensus::start(config, Arc::new(NoPeers)).expect("a replica");
    drop(source.wait().expect("a group of one founds its history"));
    consensus
}

fn revision(applied: &Applied) -> i64 {
    match &applied.answer {
        Answer::Put(response) => response.header.as_ref().expect("a header").revision,
        other => panic!("a put is answered with {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_elsewhere_answers_everything() {
    let dir = tempfile::tempdir().expect("a directory");
    let consensus = group_of_one(dir.path(), 2);
    let leader = Served::start(2, Arc::new(consensus.clone()));
    let router = router(Some(Replica::with_leader(2)), &[&leader], |_| {});

    let first = router.propose(put("a")).await.expect("answered");
    assert_eq!(revision(&first), 2);
    assert!(router.barrier().await.expect("passed") >= first.position);
    let grant = Command::LeaseGrant(etcd::LeaseGrantRequest { ttl: 60, id: 77 });
    router.propose(grant.clone()).await.expect("granted");
    let exists = router.propose(grant).await.expect_err("it exists");
    assert!(matches!(exists, ProposeError::Refused(ApplyError::LeaseExists)), "{exists:?}");
    assert_eq!(router.lease_keep_alive(LeaseId(77)).await.expect("renewed"), Some(60));
    assert_eq!(router.lease_keep_alive(LeaseId(78)).await.expect("answered"), None);
    let with_lease = etcd::PutRequest { key: "b".into(), lease: 77, ..Default::default() };
    let second = router.propose(Command::Put(with_lease)).await.expect("answered");
    assert_eq!(revision(&second), 3);
    let lease = router.lease_time_to_live(LeaseId(77), true).await.expect("answered").expect("it exists");
    assert_eq!((lease.granted_ttl, lease.keys), (60, vec![Bytes::from("b")]));
    assert_eq!(router.lease_time_to_live(LeaseId(78), true).await.expect("answered"), None);
    let large = etcd::PutRequest { key: "c".into(), value: vec![0; 2 << 20].into(), ..Default::default() };
    let large = router.propose(Command::Put(large)).await.expect_err("too large");
    assert!(matches!(large, ProposeError::TooLarge), "{large:?}");

    leader.stop().await;
    tokio::task::spawn_blocking(move || consensus.stop()).await.expect("stopped");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_hands_on_what_its_readers_ask_and_each_command_leads_to_one() {
    let replica = Replica::with_leader(2);
    let leader = Served::start(2, replica.clone());
    let successor = Replica::with_leader(3);
    let other = Served::start(3, successor.clone());
    let relay = Served::relay(50, router(None, &[&leader, &other], |_| {}));
    let router = router(None, &[&relay], |_| {});
    router.set_leader(MemberId(50));
    for key in ["a", "b", "c"] {
        router.propose(put(key)).await.expect("answered");
    }
    assert_eq!(replica.keys(), ["a", "b", "c"]);
    assert!(router.barrier().await.expect("passed") >= Position(1));
    assert_eq!(router.leases().await.expect("answered"), [LeaseId(5)]);
    // Who leads is the relay's to find out.
    replica.set_leader(3);
    router.propose(put("d")).await.expect("answered");
    assert_eq!((replica.keys().len(), successor.keys()), (3, vec![Bytes::from("d")]));
    for served in [leader, other, relay] {
        served.stop().await;
    }
}

/// On one thread, so that what shares a message does not depend on how fast the sender is beside the proposers.
#[tokio::test]
async fn a_thousand_proposals_share_few_messages_and_each_is_applied_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let consensus = group_of_one(dir.path(), 2);
    let leader = Served::start(2, Arc::new(consensus.clone()));
    let router = router(Some(Replica::with_leader(2)), &[&leader], |_| {});
    router.propose(put("first")).await.expect("answered");
    let before = router.batches_sent();
    let proposals = (0..1000).map(|i| router.propose(put(format!("key-{i}"))));
    let mut revisions: Vec<_> =
        join_all(proposals).await.into_iter().map(|applied| revision(&applied.expect("answered"))).collect();
    revisions.sort_unstable();
    let each_once: Vec<i64> = (3..1003).collect();
    assert_eq!(revisions, each_once);
    let batches = router.batches_sent() - before;
    assert!(batches <= 100, "1000 proposals in {batches} messages");
    let last = router.propose(put("last")).await.expect("answered");
    assert_eq!(revision(&last), 1003, "nothing was proposed twice");
    leader.stop().await;
    tokio::task::spawn_blocking(move || consensus.stop()).await.expect("stopped");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_stream_fails_what_was_sent_and_nothing_else() {
    let (two, three) = (Replica::with_leader(2), Replica::with_leader(3));
    two.holds.send_replace(true);
    let served = [Served::start(2, two.clone()), Served::start(3, three.clone())];
    let local = Replica::with_leader(2);
    let router = router(Some(local.clone()), &[&served[0], &served[1]], |_| {});
    let [first, second] = served;

    let propose = |key: String| {
        let router = router.clone();
        tokio::spawn(async move { router.propose(put(key)).await })
    };
    let sent: Vec<_> = (0..10).map(|i| propose(format!("sent-{i}"))).collect();
    until("the leader has them all", || two.keys().len() == 10).await;
    // A barrier may be asked twice, so it does not fail with them.
    let barrier = tokio::spawn({
        let router = router.clone();
        async move { router.barrier().await }
    });
    until("it was asked", || two.barriers.load(Ordering::SeqCst) == 1).await;
    first.stop().await;
    for outcome in join_all(sent).await {
        let error = outcome.expect("no panic").expect_err("its outcome is unknown");
        assert!(matches!(error, ProposeError::LeaderChanged), "{error:?}");
    }
    // Nobody is there, so these are not sent, and wait for the next leader.
    let unsent: Vec<_> = (0..10).map(|i| propose(format!("unsent-{i}"))).collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(unsent.iter().all(|proposal| !proposal.is_finished()));
    local.set_leader(3);
    for outcome in join_all(unsent).await {
        outcome.expect("no panic").expect("answered by the next leader");
    }
    barrier.await.expect("no panic").expect("passed by the next leader");
    let mut keys = three.keys();
    keys.sort();
    let expected: Vec<_> = (0..10).map(|i| Bytes::from(format!("unsent-{i}"))).collect();
    assert_eq!(keys, expected, "each once, and none of those that were sent before");
    assert_eq!(two.keys().len(), 10);
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_leader_never_took_goes_to_the_next() {
    // It accepts connections and says nothing: requests wait for its word and are not sent.
    let deaf = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", deaf.local_addr().expect("bound"));
    let three = Replica::with_leader(3);
    let served = Served::start(3, three.clone());
    let local = Replica::with_leader(2);
    let router = router(Some(local.clone()), &[&served], |_| {});
    router.greeter().directory().set_members(&[member_at(2, url), served.member.clone()]);
    let proposals: Vec<_> = (0..5)
        .map(|i| {
            let router = router.clone();
            tokio::spawn(async move { router.propose(put(format!("{i}"))).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let start = Instant::now();
    local.set_leader(3);
    for outcome in join_all(proposals).await {
        outcome.expect("no panic").expect("answered by the next leader");
    }
    assert!(start.elapsed() < Duration::from_secs(2), "as soon as it is known");
    assert_eq!(three.keys().len(), 5);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_does_not_lead_says_so_and_nothing_happens() {
    let (two, three) = (Replica::with_leader(3), Replica::with_leader(3));
    let served = [Served::start(2, two.clone()), Served::start(3, three.clone())];
    // The gateway's replica is behind: it still believes in 2.
    let local = Replica::with_leader(2);
    let with_replica = router(Some(local.clone()), &[&served[0], &served[1]], |_| {});
    let proposal = tokio::spawn({
        let router = with_replica.clone();
        async move { router.propose(put("a")).await }
    });
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert!(!proposal.is_finished());
    local.set_leader(3);
    proposal.await.expect("no panic").expect("answered");
    // Without a replica the refusal itself says who leads.
    let without = router(None, &[&served[0], &served[1]], |_| {});
    without.propose(put("b")).await.expect("answered");
    assert_eq!(without.status().leader, MemberId(3));
    assert_eq!(without.leases().await.expect("answered"), [LeaseId(5)]);
    without.move_leader(MemberId(2)).await.expect("answered");
    assert!(two.keys().is_empty());
    assert_eq!(three.keys(), ["a", "b"]);
    for served in served {
        served.stop().await;
    }
}

/// Each question is left with the member that got it until that has answered: on one thread nothing is sent before the asker waits.
#[tokio::test]
async fn without_a_word_of_a_leader_members_are_asked_one_after_the_other() {
    let (two, three) = (Replica::with_leader(0), Replica::with_leader(3));
    let served = [Served::start(2, two.clone()), Served::start(3, three.clone())];
    let router = router(None, &[&served[0], &served[1]], |_| {});
    router.propose(put("a")).await.expect("answered");
    assert_eq!(three.keys(), ["a"]);
    assert!(router.turns() <= 2, "asked {} times", router.turns());
    // The leader is forgotten: both are asked again.
    router.set_leader(MemberId(0));
    three.set_leader(0);
    two.set_leader(2);
    router.propose(put("b")).await.expect("answered");
    assert_eq!(two.keys(), ["b"]);
    assert!(router.turns() <= 5, "asked {} times", router.turns());
    for served in served {
        served.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_local_replica_is_asked_while_it_leads() {
    let (local, three) = (Replica::with_leader(1), Replica::with_leader(3));
    let served = Served::start(3, three.clone());
    let router = router(Some(local.clone()), &[&served], |_| {});
    router.propose(put("a")).await.expect("answered");
    router.barrier().await.expect("passed");
    assert_eq!((local.keys().len(), local.barriers.load(Ordering::SeqCst)), (1, 1));
    // It has lost its leadership before it says so; what it refuses goes to who leads.
    local.refuses.store(true, Ordering::SeqCst);
    let proposal = tokio::spawn({
        let router = router.clone();
        async move { router.propose(put("b")).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    local.set_leader(3);
    proposal.await.expect("no panic").expect("answered");
    assert_eq!(three.keys(), ["b"]);
    assert_eq!(local.keys(), ["a"]);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_leader_requests_wait_and_then_fail() {
    let local = Replica::with_leader(0);
    let router = router(Some(local), &[], |config| config.request_timeout = Duration::from_millis(200));
    let start = Instant::now();
    let (proposal, barrier) = tokio::join!(router.propose(put("a")), router.barrier());
    assert!(matches!(proposal, Err(ProposeError::NoLeader)), "{proposal:?}");
    assert!(matches!(barrier, Err(ProposeError::NoLeader)), "{barrier:?}");
    assert!(start.elapsed() >= Duration::from_millis(200));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_does_not_answer_is_waited_for_so_long_and_no_longer() {
    let two = Replica::with_leader(2);
    two.holds.send_replace(true);
    let served = Served::start(2, two.clone());
    let router = router(Some(Replica::with_leader(2)), &[&served], |config| {
        config.request_timeout = Duration::from_millis(500);
        config.requests_max = 8;
    });
    let outcomes = join_all((0..10).map(|i| router.propose(put(format!("{i}"))))).await;
    let count =
        |is: fn(&ProposeError) -> bool| outcomes.iter().filter(|outcome| outcome.as_ref().is_err_and(is)).count();
    assert_eq!(count(|error| matches!(error, ProposeError::TooManyRequests)), 2, "eight may wait: {outcomes:?}");
    assert_eq!(count(|error| matches!(error, ProposeError::Timeout)), 8, "{outcomes:?}");
    assert_eq!(two.keys().len(), 8);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_led_is_not_waited_for_until_the_end() {
    let two = Replica::with_leader(2);
    two.holds.send_replace(true);
    let served = Served::start(2, two.clone());
    let local = Replica::with_leader(2);
    let router = router(Some(local.clone()), &[&served], |_| {});
    let proposal = tokio::spawn({
        let router = router.clone();
        async move { router.propose(put("a")).await }
    });
    until("it was sent", || two.keys().len() == 1).await;
    // As long as nobody else leads, it may be the one who answers.
    local.set_leader(0);
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert!(!proposal.is_finished());
    local.set_leader(3);
    // Its connection lives, its word does not come.
    let start = Instant::now();
    let error = proposal.await.expect("no panic").expect_err("its outcome is unknown");
    assert!(matches!(error, ProposeError::LeaderChanged), "{error:?}");
    assert!(start.elapsed() < PATIENCE / 2);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn barriers_share_questions_but_never_join_one_that_began_before_them() {
    let two = Replica::with_leader(2);
    let served = Served::start(2, two.clone());
    let router = router(Some(Replica::with_leader(2)), &[&served], |_| {});
    two.holds.send_replace(true);
    let barrier = || {
        let router = router.clone();
        tokio::spawn(async move { router.barrier().await })
    };
    let first = barrier();
    until("the first is asked", || two.barriers.load(Ordering::SeqCst) == 1).await;
    let rest: Vec<_> = (0..1000).map(|_| barrier()).collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(two.barriers.load(Ordering::SeqCst), 1, "one question at a time");
    two.holds.send_replace(false);
    assert_eq!(first.await.expect("no panic").expect("passed"), Position(1));
    for passed in join_all(rest).await {
        assert_eq!(passed.expect("no panic").expect("passed"), Position(2), "one question for all who came meanwhile");
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_of_another_cluster_is_never_asked() {
    let two = Replica::with_leader(2);
    let served = Served::start_in(0xbad, 2, two.clone());
    let router = router(Some(Replica::with_leader(2)), &[&served], |config| {
        config.request_timeout = Duration::from_millis(400);
    });
    let outcome = router.propose(put("a")).await.expect_err("refused");
    assert!(matches!(outcome, ProposeError::NoLeader | ProposeError::Timeout), "{outcome:?}");
    assert!(two.keys().is_empty());
    served.stop().await;
}
