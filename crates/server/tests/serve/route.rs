//! A gateway without a store in front of replicas that hold everything, or a part.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::watch_request::RequestUnion;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::support::{Server, free_port};

/// How passwords are hashed is not what is tested here.
const CHEAP_HASHES: &str = "--bcrypt-cost=4";

/// A member, fanouts and a gateway in front of them.
struct Tier {
    member: Server,
    fanouts: Vec<Server>,
    gateway: Server,
}

impl Tier {
    /// With a fanout for each of `scopes`.
    fn start(scopes: &[&str]) -> Self {
        let peer = format!("http://127.0.0.1:{}", free_port());
        let listen = [format!("--listen-peer-urls={peer}"), format!("--initial-advertise-peer-urls={peer}")];
        let member = Server::start(&[&listen[0], &listen[1], CHEAP_HASHES]);
        let upstream = format!("--upstream={peer}");
        let fanout = |scope: &&str| {
            let prefixes = format!("--prefixes={scope}");
            Server::start_bare(&["--roles=fanout,gateway", &upstream, &prefixes, CHEAP_HASHES])
        };
        let fanouts: Vec<_> = scopes.iter().map(fanout).collect();
        let gateway = Server::start_bare(&["--roles=gateway", &upstream]);
        let tier = Self { member, fanouts, gateway };
        #[expect(clippy::cast_precision_loss, reason = "a few")]
        tier.until_ready(1.0 + scopes.len() as f64);
        tier
    }

    fn until_ready(&self, replicas: f64) {
        let begun = Instant::now();
        while self.gateway.metric("tailwater_gateway_replicas{state=\"ready\"}") != replicas {
            assert!(begun.elapsed() < Duration::from_secs(60), "the replicas are not found: {}", self.gateway.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

async fn id_of(server: &Server) -> u64 {
    let mut maintenance = pb::maintenance_client::MaintenanceClient::new(server.channel().await);
    let status = maintenance.status(pb::StatusRequest::default()).await.unwrap().into_inner();
    status.header.unwrap().member_id
}

fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() }
}

fn prefix(prefix: &str) -> pb::RangeRequest {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().unwrap() += 1;
    pb::RangeRequest { key: prefix.to_owned().into(), range_end: end.into(), ..Default::default() }
}

fn read_op(range: pb::RangeRequest) -> pb::RequestOp {
    pb::RequestOp { request: Some(pb::request_op::Request::RequestRange(range)) }
}

/// A watch stream.
struct Watch {
    requests: mpsc::Sender<pb::WatchRequest>,
    responses: Streaming<pb::WatchResponse>,
}

impl Watch {
    async fn open(server: &Server) -> Self {
        let mut client = pb::watch_client::WatchClient::new(server.channel().await).max_decoding_message_size(1 << 30);
        let (requests, receiver) = mpsc::channel(16);
        let responses = client.watch(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Self { requests, responses }
    }

    async fn send(&self, request: RequestUnion) {
        self.requests.send(pb::WatchRequest { request_union: Some(request) }).await.unwrap();
    }

    async fn create(&self, range: pb::RangeRequest, watch_id: i64) {
        let pb::RangeRequest { key, range_end, .. } = range;
        let create = pb::WatchCreateRequest { key, range_end, watch_id, prev_kv: true, ..Default::default() };
        self.send(RequestUnion::CreateRequest(create)).await;
    }

    async fn try_next(&mut self) -> Result<pb::WatchResponse, Status> {
        let next = tokio::time::timeout(Duration::from_secs(60), self.responses.message()).await;
        next.expect("a response comes")?.ok_or_else(|| Status::ok("ended"))
    }

    async fn next(&mut self) -> pb::WatchResponse {
        self.try_next().await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_go_to_a_replica_that_holds_all_that_they_ask_for() {
    let mut tier = Tier::start(&["/a/", "/b/"]);
    let (member, a, b) = (id_of(&tier.member).await, id_of(&tier.fanouts[0]).await, id_of(&tier.fanouts[1]).await);
    let mut kv = tier.gateway.kv().await;
    for key in ["/a/1", "/a/2", "/b/1", "/c/1"] {
        kv.put(put(key, "v")).await.unwrap();
    }
    for (range, expected, keys) in [
        (prefix("/a/"), a, 2),
        (prefix("/b/"), b, 1),
        (pb::RangeRequest { key: "/a/1".into(), ..Default::default() }, a, 1),
        (prefix("/c/"), member, 1),
        (prefix("/"), member, 4),
        (pb::RangeRequest { serializable: true, ..prefix("/a/") }, a, 2),
    ] {
        let answer = kv.range(range.clone()).await.unwrap().into_inner();
        assert_eq!((answer.header.unwrap().member_id, answer.kvs.len()), (expected, keys), "{range:?}");
    }
    let mut stream = kv.range_stream(prefix("/b/")).await.unwrap().into_inner();
    let last = stream.message().await.unwrap().unwrap().range_response.unwrap();
    assert_eq!((last.header.unwrap().member_id, last.count), (b, 1));
    for (ranges, expected) in [(vec!["/a/1", "/a/2"], a), (vec!["/a/1", "/b/1"], member)] {
        let success = ranges.iter().map(|key| read_op(pb::RangeRequest { key: (*key).into(), ..Default::default() }));
        let txn = pb::TxnRequest { success: success.collect(), ..Default::default() };
        assert_eq!(kv.txn(txn).await.unwrap().into_inner().header.unwrap().member_id, expected);
    }
    // Errors are those of whoever answers.
    let refused = kv.range(pb::RangeRequest { revision: 999, ..prefix("/a/") }).await.unwrap_err();
    assert_eq!(refused.message(), "etcdserver: mvcc: required revision is a future revision");
    let refused = kv.range(pb::RangeRequest::default()).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, "etcdserver: key is not provided"));
    // Leases: a stream that is passed on whole.
    let mut leases = pb::lease_client::LeaseClient::new(tier.gateway.channel().await);
    let lease = leases.lease_grant(pb::LeaseGrantRequest { ttl: 60, id: 0 }).await.unwrap().into_inner();
    let keep = tokio_stream::iter([pb::LeaseKeepAliveRequest { id: lease.id }]);
    let kept = leases.lease_keep_alive(keep).await.unwrap().into_inner().message().await.unwrap().unwrap();
    assert_eq!((kept.id, kept.ttl), (lease.id, 60));
    // A replica that dies is left for another that holds the range.
    tier.fanouts[0].signal("KILL");
    tier.fanouts[0].wait();
    let answer = kv.range(prefix("/a/")).await.unwrap().into_inner();
    assert_eq!((answer.header.unwrap().member_id, answer.kvs.len()), (member, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_watch_stream_is_served_by_several_replicas() {
    let mut tier = Tier::start(&["/a/", "/b/"]);
    let mut kv = tier.gateway.kv().await;
    let mut watch = Watch::open(&tier.gateway).await;
    for range in ["/a/", "/b/", "/c/"] {
        watch.create(prefix(range), 0).await;
    }
    for expected in 0..3 {
        let created = watch.next().await;
        assert_eq!((created.created, created.canceled, created.watch_id), (true, false, expected));
    }
    // Ids that the client chooses, one of them taken; an empty range.
    watch.create(prefix("/b/"), 7).await;
    watch.create(prefix("/a/"), 1).await;
    watch.create(pb::RangeRequest { key: "b".into(), range_end: "a".into(), ..Default::default() }, 0).await;
    watch.create(prefix("/a/"), 0).await;
    let answers = [watch.next().await, watch.next().await, watch.next().await, watch.next().await];
    let seen = answers.each_ref().map(|answer| (answer.watch_id, answer.canceled, answer.cancel_reason.as_str()));
    let taken = "mvcc: duplicate watch ID provided on the WatchStream";
    assert_eq!(seen, [(7, false, ""), (-1, true, taken), (-1, true, "mvcc: watcher range is empty"), (3, false, "")]);

    let mut last = 0;
    for round in 0..30 {
        for key in ["/a/k", "/b/k", "/c/k"] {
            last = kv.put(put(key, &round.to_string())).await.unwrap().into_inner().header.unwrap().revision;
        }
    }
    let mut events: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    while events.values().map(Vec::len).sum::<usize>() < 5 * 30 {
        let response = watch.next().await;
        for event in response.events {
            let kv = event.kv.unwrap();
            assert_eq!(event.prev_kv.is_some(), kv.version > 1);
            events.entry(response.watch_id).or_default().push(kv.mod_revision);
        }
    }
    let (a, b) = (events[&0].clone(), events[&1].clone());
    assert!(events.values().all(|seen| seen.len() == 30 && seen.is_sorted()));
    assert_eq!((&events[&3], &events[&7]), (&a, &b));
    assert_eq!(events[&2].last(), Some(&last));
    // Every replica has come to the last write: progress of the stream says so.
    watch.send(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
    watch.send(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
    for _ in 0..2 {
        let progress = watch.next().await;
        assert_eq!((progress.watch_id, progress.events.len()), (-1, 0));
        let revision = progress.header.unwrap().revision;
        assert!(revision <= last, "progress to {revision} before it was written");
    }
    watch.send(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 1 })).await;
    let canceled = watch.next().await;
    assert_eq!((canceled.watch_id, canceled.canceled), (1, true));
    kv.put(put("/b/k", "end")).await.unwrap();
    assert_eq!(watch.next().await.watch_id, 7);
    watch.create(prefix("/c/"), 1).await;
    assert_eq!(watch.next().await.watch_id, 1);
    // A replica that goes ends the stream in a way that clients resume after.
    tier.fanouts[1].signal("KILL");
    tier.fanouts[1].wait();
    let end = watch.try_next().await.unwrap_err();
    assert_eq!(end.code(), Code::Unavailable, "{end:?}");
    let mut watch = Watch::open(&tier.gateway).await;
    watch.create(prefix("/b/"), 0).await;
    assert!(watch.next().await.created);
    // And so does the gateway itself.
    tier.gateway.signal("TERM");
    let end = watch.try_next().await.unwrap_err();
    assert_eq!(end.code(), Code::Unavailable, "{end:?}");
    assert_eq!(tier.gateway.wait().code(), Some(0));
}

/// Clients that take nothing hold back their own streams, not the gateway's memory, and miss nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_clients_hold_a_response_each() {
    const STREAMS: u64 = 16;
    const VALUE_BYTES: usize = 256 << 10;
    const EVENTS: usize = 200;
    let tier = Tier::start(&["/"]);
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let mut watch = Watch::open(&tier.gateway).await;
        watch.create(prefix("/k"), 0).await;
        assert!(watch.next().await.created);
        streams.push(watch);
    }
    let before = tier.gateway.memory_bytes("VmHWM");
    let mut kv = tier.member.kv().await;
    for index in 0..EVENTS {
        let value = vec![u8::try_from(index % 251).unwrap(); VALUE_BYTES];
        kv.put(pb::PutRequest { key: "/k".into(), value: value.into(), ..Default::default() }).await.unwrap();
    }
    let grown = tier.gateway.memory_bytes("VmHWM").saturating_sub(before);
    // Of each stream: a window from the replica, a response with its previous value, and what is on its way to the client.
    let bound = STREAMS * (4 * VALUE_BYTES as u64 + (256 << 10)) + (16 << 20);
    assert!(grown <= bound, "{} MiB higher; the bound is {} MiB", grown >> 20, bound >> 20);
    let mut seen = 0;
    let watch = streams.last_mut().unwrap();
    while seen < EVENTS {
        for event in watch.next().await.events {
            assert_eq!(event.kv.unwrap().value[0], u8::try_from(seen % 251).unwrap(), "event {seen}");
            seen += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fanout_sends_on_what_it_does_not_hold() {
    let tier = Tier::start(&["/a/", "/b/"]);
    let (member, a, b) = (id_of(&tier.member).await, id_of(&tier.fanouts[0]).await, id_of(&tier.fanouts[1]).await);
    let mut kv = tier.fanouts[0].kv().await;
    let mut last = 0;
    for key in ["/a/1", "/b/1", "/c/1"] {
        last = kv.put(put(key, "v")).await.unwrap().into_inner().header.unwrap().revision;
    }
    let begun = Instant::now();
    while !kv.range(prefix("/b/")).await.is_ok_and(|answer| answer.get_ref().header.unwrap().member_id == b) {
        assert!(begun.elapsed() < Duration::from_secs(60), "the other fanout is not found");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for (range, expected) in [("/a/", a), ("/b/", b), ("/c/", member), ("/", member)] {
        // Not behind what was written here, wherever it is answered.
        let range = pb::RangeRequest { serializable: true, ..prefix(range) };
        let header = kv.range(range).await.unwrap().into_inner().header.unwrap();
        assert_eq!(header.member_id, expected);
        assert!(header.revision >= last);
    }
    let mut watch = Watch::open(&tier.fanouts[0]).await;
    for range in ["/a/", "/b/", "/"] {
        watch.create(prefix(range), 0).await;
        assert!(watch.next().await.created);
    }
    let written = kv.put(put("/b/1", "w")).await.unwrap().into_inner().header.unwrap().revision;
    let mut seen = [watch.next().await, watch.next().await];
    seen.sort_by_key(|response| response.watch_id);
    let seen: Vec<_> =
        seen.iter().map(|seen| (seen.watch_id, seen.events[0].kv.clone().unwrap().mod_revision)).collect();
    assert_eq!(seen, [(1, written), (2, written)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_has_seen_it_sees_at_every_replica() {
    let tier = Tier::start(&["/", "/", "/"]);
    let mut kv = tier.gateway.kv().await;
    let mut watch = Watch::open(&tier.gateway).await;
    for round in 0..100 {
        let written = kv.put(put("/k", &round.to_string())).await.unwrap().into_inner().header.unwrap().revision;
        for _ in 0..3 {
            let range = pb::RangeRequest { serializable: true, ..prefix("/k") };
            let answer = kv.range(range).await.unwrap().into_inner();
            assert!(answer.header.unwrap().revision >= written, "a read goes behind what was written");
            assert_eq!(answer.kvs[0].mod_revision, written);
        }
        // From now on: nothing that was written before.
        watch.create(prefix("/k"), 1).await;
        let created = watch.next().await;
        assert!(created.created && created.header.unwrap().revision >= written, "{created:?}");
        watch.send(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 1 })).await;
        let canceled = watch.next().await;
        assert!(canceled.canceled && canceled.events.is_empty(), "{canceled:?}");
    }
}

/// A user that may everything, and one that may read and write what begins with `/a/`; the token of that one.
pub(crate) async fn with_auth(server: &Server) -> String {
    let mut auth = pb::auth_client::AuthClient::new(server.channel().await);
    for name in ["root", "u"].map(str::to_owned) {
        let password = "word".to_owned();
        auth.user_add(pb::AuthUserAddRequest { name, password, ..Default::default() }).await.unwrap();
    }
    auth.role_add(pb::AuthRoleAddRequest { name: "r".into() }).await.unwrap();
    let perm_type = tailwater_api::authpb::permission::Type::Readwrite as i32;
    let perm = tailwater_api::authpb::Permission { perm_type, key: "/a/".into(), range_end: "/a0".into() };
    let grant = pb::AuthRoleGrantPermissionRequest { name: "r".into(), perm: Some(perm) };
    auth.role_grant_permission(grant).await.unwrap();
    for (user, role) in [("root", "root"), ("u", "r")] {
        let (user, role) = (user.to_owned(), role.to_owned());
        auth.user_grant_role(pb::AuthUserGrantRoleRequest { user, role }).await.unwrap();
    }
    auth.auth_enable(pb::AuthEnableRequest {}).await.unwrap();
    let request = pb::AuthenticateRequest { name: "u".into(), password: "word".into() };
    auth.authenticate(request).await.unwrap().into_inner().token
}

/// The replica that answers judges by what the client has shown to whoever it came to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_go_along() {
    let tier = Tier::start(&["/a/", "/b/"]);
    let token = with_auth(&tier.gateway).await;
    for server in [&tier.gateway, &tier.fanouts[0], &tier.fanouts[1]] {
        let by = |range: &str, token: Option<&str>| {
            let mut request = tonic::Request::new(prefix(range));
            if let Some(token) = token {
                request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
            }
            request
        };
        let mut kv = server.kv().await;
        kv.range(by("/a/", Some(&token))).await.unwrap();
        let denied = kv.range(by("/b/", Some(&token))).await.unwrap_err();
        assert_eq!((denied.code(), denied.message()), (Code::PermissionDenied, "etcdserver: permission denied"));
        let nobody = kv.range(by("/a/", None)).await.unwrap_err();
        assert_eq!((nobody.code(), nobody.message()), (Code::InvalidArgument, "etcdserver: user name is empty"));
        let forged = kv.range(by("/a/", Some("tw1.AAAA.AAAA"))).await.unwrap_err();
        assert_eq!((forged.code(), forged.message()), (Code::Unauthenticated, "etcdserver: invalid auth token"));

        let mut client = pb::watch_client::WatchClient::new(server.channel().await);
        let (requests, receiver) = mpsc::channel(16);
        let mut request = tonic::Request::new(ReceiverStream::new(receiver));
        request.metadata_mut().insert("token", token.parse().unwrap());
        let responses = client.watch(request);
        let ranges = ["/a/", "/b/"].map(|range| {
            let pb::RangeRequest { key, range_end, .. } = prefix(range);
            pb::WatchCreateRequest { key, range_end, ..Default::default() }
        });
        for create in ranges {
            let request_union = Some(RequestUnion::CreateRequest(create));
            requests.send(pb::WatchRequest { request_union }).await.unwrap();
        }
        let mut watch = Watch { requests, responses: responses.await.unwrap().into_inner() };
        assert!(!watch.next().await.canceled);
        let refused = watch.next().await;
        let reason = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
        assert_eq!((refused.canceled, refused.cancel_reason.as_str()), (true, reason));
    }
}
