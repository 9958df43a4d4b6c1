//! Snapshots between this server and etcd, in both directions, by both sets of tools.
//!
//! What is compared is everything that a client can see: keys, every event since the compaction with what was before it,
//! older states, leases with their keys, users and roles. `API_FULL=1` takes 100,000 keys.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::auth_client::AuthClient;
use tailwater_api::etcdserverpb::cluster_client::ClusterClient;
use tailwater_api::etcdserverpb::kv_client::KvClient;
use tailwater_api::etcdserverpb::lease_client::LeaseClient;
use tailwater_api::etcdserverpb::maintenance_client::MaintenanceClient;
use tailwater_api::mvccpb::{Event, KeyValue};
use tailwater_tests::cluster::{Cluster, Setup};
use tailwater_tests::{Kind, Options, Server, left_out, program, tool};
use tonic::transport::Channel;

use crate::client::{PATIENCE, WatchStream, channel, full};

/// Puts in one txn.
const BATCH: usize = 100;

/// A server of either kind, or none when a program is missing.
async fn server(test: &str, kind: Kind) -> Option<Server> {
    for missing in [program(Kind::Tailwater), program(Kind::Etcd), tool("etcdutl")] {
        if let Err(error) = missing {
            left_out(test, &format!("{error:#}"));
            return None;
        }
    }
    Some(Server::start(kind, &options()).await.unwrap())
}

fn options() -> Options {
    Options { flags: Vec::new(), etcd_flags: vec!["--unsafe-no-fsync".into()] }
}

/// Keys with history: each put twice, some deleted, some made again, some under a lease; compacted halfway.
async fn fill(url: &str) -> i64 {
    let keys = if full() { 100_000 } else { 3000 };
    let (mut kv, mut lease) = (KvClient::new(channel(url)), LeaseClient::new(channel(url)));
    for (id, ttl) in [(7, 1000), (0x1234_5678_9abc_def0, 5000), (9, 60)] {
        lease.lease_grant(pb::LeaseGrantRequest { ttl, id }).await.unwrap();
    }
    let mut revision = 0;
    for round in 0..2 {
        for first in (0..keys).step_by(BATCH) {
            let put = |at: usize| {
                let put = pb::PutRequest {
                    key: format!("key/{:07}", at * 7919 % keys).into(),
                    value: format!("{round} {at} {}", "x".repeat(at % 90)).into(),
                    lease: if at.is_multiple_of(50) { 7 } else { 0 },
                    ..Default::default()
                };
                pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }
            };
            let txn = pb::TxnRequest { success: (first..first + BATCH).map(put).collect(), ..Default::default() };
            revision = kv.txn(txn).await.unwrap().into_inner().header.unwrap().revision;
        }
        for at in (0..keys).step_by(97) {
            let key = format!("key/{at:07}");
            let delete = pb::DeleteRangeRequest { key: key.into(), ..Default::default() };
            kv.delete_range(delete).await.unwrap();
        }
        if round == 0 {
            kv.compact(pb::CompactionRequest { revision: revision - 3, physical: true }).await.unwrap();
        }
    }
    revision
}

/// All that a client can see.
#[derive(Debug, PartialEq)]
struct View {
    revision: i64,
    keys: Vec<KeyValue>,
    older: Vec<KeyValue>,
    events: Vec<Event>,
    /// Granted TTL and keys.
    leases: BTreeMap<i64, (i64, Vec<Vec<u8>>)>,
}

async fn view(url: &str, from: i64, older: i64) -> View {
    let channel = channel(url);
    let all =
        |revision| pb::RangeRequest { key: vec![0].into(), range_end: vec![0].into(), revision, ..Default::default() };
    let mut kv = KvClient::new(channel.clone()).max_decoding_message_size(1 << 30);
    let now = kv.range(all(0)).await.unwrap().into_inner();
    let older = kv.range(all(older)).await.unwrap().into_inner().kvs;
    let revision = now.header.unwrap().revision;
    let leases = leases(channel.clone()).await;
    View { revision, keys: now.kvs, older, events: events(channel, from, revision).await, leases }
}

/// Every event of these revisions, with what was before it.
async fn events(channel: Channel, from: i64, to: i64) -> Vec<Event> {
    let create = pb::WatchCreateRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        start_revision: from,
        prev_kv: true,
        ..Default::default()
    };
    let (mut stream, _) = WatchStream::open(channel, create).await;
    let mut events = Vec::new();
    while events.last().is_none_or(|event: &Event| event.kv.as_ref().unwrap().mod_revision < to) {
        let answer = stream.next().await;
        assert!(!answer.canceled, "{answer:?}");
        events.extend(answer.events);
    }
    events
}

async fn leases(channel: Channel) -> BTreeMap<i64, (i64, Vec<Vec<u8>>)> {
    let mut client = LeaseClient::new(channel);
    let mut found = BTreeMap::new();
    for lease in client.lease_leases(pb::LeaseLeasesRequest {}).await.unwrap().into_inner().leases {
        let asked = pb::LeaseTimeToLiveRequest { id: lease.id, keys: true };
        let told = client.lease_time_to_live(asked).await.unwrap().into_inner();
        assert!(told.ttl > 0, "{told:?}");
        let mut keys: Vec<_> = told.keys.iter().map(|key| key.to_vec()).collect();
        keys.sort();
        found.insert(lease.id, (told.granted_ttl, keys));
    }
    found
}

/// Runs a program, and returns what it printed.
fn run(program: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let (out, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{} {arguments:?}: {out}{log}", program.display());
    out.into_owned()
}

/// `snapshot save` by the tool of either server.
fn save(by: Kind, url: &str, file: &Path) {
    let program = match by {
        Kind::Tailwater => program(Kind::Tailwater).unwrap(),
        Kind::Etcd => tool("etcdctl").unwrap(),
    };
    run(&program, &["snapshot", "save", "--endpoints", url, file.to_str().unwrap()]);
}

/// `snapshot restore` by the tool that belongs to the server, and the server on what that made.
async fn restored(kind: Kind, file: &Path, flags: &[&str]) -> Server {
    let prepare = |data: &Path, peer: &str| {
        let program = if kind == Kind::Etcd { tool("etcdutl")? } else { program(Kind::Tailwater)? };
        let cluster = format!("default={peer}");
        let mut arguments = vec!["snapshot", "restore", file.to_str().unwrap(), "--data-dir", data.to_str().unwrap()];
        arguments.extend(["--name", "default", "--initial-cluster", &cluster, "--initial-advertise-peer-urls", peer]);
        arguments.extend(flags);
        run(&program, &arguments);
        Ok(())
    };
    Server::start_on(kind, &options(), prepare).await.unwrap()
}

/// The same keys, history and leases go to an etcd, from there to a tailwater, and are the same at each place.
#[tokio::test]
async fn a_snapshot_of_a_tailwater_is_restored_by_both() {
    let Some(origin) = server("snapshot to etcd", Kind::Tailwater).await else { return };
    there_and_back(origin).await;
}

/// The other way round.
#[tokio::test]
async fn a_snapshot_of_an_etcd_is_restored_by_both() {
    let Some(origin) = server("snapshot from etcd", Kind::Etcd).await else { return };
    there_and_back(origin).await;
}

async fn there_and_back(origin: Server) {
    let last = fill(origin.url()).await;
    let compacted = last / 2;
    let oldest = oldest_readable(origin.url(), compacted).await;
    let wanted = view(origin.url(), oldest, oldest + 5).await;
    let directory = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| directory.path().join(name));
    save(Kind::Etcd, origin.url(), &first);
    save(Kind::Tailwater, origin.url(), &second);
    let (etcdutl, own) = (tool("etcdutl").unwrap(), program(Kind::Tailwater).unwrap());
    for file in [&first, &second] {
        for format in ["simple", "json", "table"] {
            let arguments = ["snapshot", "status", file.to_str().unwrap(), "-w", format];
            assert_eq!(run(&own, &arguments), run(&etcdutl, &arguments));
        }
    }
    for (kind, file) in [(Kind::Etcd, &first), (Kind::Tailwater, &second)] {
        let copy = restored(kind, file, &[]).await;
        assert_eq!(view(copy.url(), oldest, oldest + 5).await, wanted, "restored by {kind:?}");
        // It goes on where the original was.
        let mut kv = KvClient::new(channel(copy.url()));
        let put = pb::PutRequest { key: b"after".to_vec().into(), ..Default::default() };
        let revision = kv.put(put).await.unwrap().into_inner().header.unwrap().revision;
        assert_eq!(revision, wanted.revision + 1);
    }
}

/// The compacted revision: the lowest at which a read is answered.
async fn oldest_readable(url: &str, guess: i64) -> i64 {
    let mut kv = KvClient::new(channel(url));
    let (mut low, mut high) = (1, guess.max(2) * 2);
    while low < high {
        let at = (low + high) / 2;
        let request =
            pb::RangeRequest { key: b"k".to_vec().into(), revision: at, count_only: true, ..Default::default() };
        match kv.range(request).await {
            Err(status) if status.message().contains("compacted") => low = at + 1,
            _ => high = at,
        }
    }
    low
}

/// A raised revision is compacted: whoever watched the lost group learns that it is another.
#[tokio::test]
async fn a_raised_revision_is_compacted_on_both() {
    let Some(origin) = server("raised revision", Kind::Tailwater).await else { return };
    let mut kv = KvClient::new(channel(origin.url()));
    for value in ["1", "2"] {
        let put = pb::PutRequest { key: b"k".to_vec().into(), value: value.into(), ..Default::default() };
        kv.put(put).await.unwrap();
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    save(Kind::Tailwater, origin.url(), &file);
    for kind in [Kind::Etcd, Kind::Tailwater] {
        let copy = restored(kind, &file, &["--bump-revision", "1000000", "--mark-compacted"]).await;
        let mut kv = KvClient::new(channel(copy.url()));
        let range = |revision| pb::RangeRequest { key: b"k".to_vec().into(), revision, ..Default::default() };
        let now = kv.range(range(0)).await.unwrap().into_inner();
        assert_eq!((now.header.unwrap().revision, now.kvs[0].mod_revision), (1_000_003, 3), "{kind:?}");
        let compacted = kv.range(range(3)).await.unwrap_err();
        assert_eq!(compacted.message(), "etcdserver: mvcc: required revision has been compacted", "{kind:?}");
        let create = pb::WatchCreateRequest { key: b"k".to_vec().into(), start_revision: 3, ..Default::default() };
        let (mut stream, _) = WatchStream::open(channel(copy.url()), create).await;
        let ended = stream.next().await;
        assert!(ended.canceled && ended.compact_revision > 3, "{kind:?}: {ended:?}");
        let put = pb::PutRequest { key: b"k".to_vec().into(), prev_kv: true, ..Default::default() };
        let put = kv.put(put).await.unwrap().into_inner();
        assert_eq!((put.header.unwrap().revision, put.prev_kv.unwrap().mod_revision), (1_000_004, 3), "{kind:?}");
    }
}

/// As root is told.
async fn auth_revision(url: &str) -> u64 {
    let mut auth = AuthClient::new(channel(url));
    let login = pb::AuthenticateRequest { name: "root".into(), password: "secret".into() };
    let token = auth.authenticate(login).await.unwrap().into_inner().token;
    let mut request = tonic::Request::new(pb::AuthStatusRequest {});
    request.metadata_mut().insert("token", token.parse().unwrap());
    auth.auth_status(request).await.unwrap().into_inner().auth_revision
}

/// Users, roles and whether they matter.
#[tokio::test]
async fn users_and_roles_go_along() {
    for kind in [Kind::Tailwater, Kind::Etcd] {
        let Some(origin) = server("auth in snapshots", kind).await else { return };
        let mut auth = AuthClient::new(channel(origin.url()));
        for name in ["root", "reader"] {
            let user = pb::AuthUserAddRequest { name: name.into(), password: "secret".into(), ..Default::default() };
            auth.user_add(user).await.unwrap();
            auth.role_add(pb::AuthRoleAddRequest { name: name.into() }).await.unwrap();
            let grant = pb::AuthUserGrantRoleRequest { user: name.into(), role: name.into() };
            auth.user_grant_role(grant).await.unwrap();
        }
        let permission = tailwater_api::authpb::Permission { key: b"k".to_vec(), ..Default::default() };
        let grant = pb::AuthRoleGrantPermissionRequest { name: "reader".into(), perm: Some(permission) };
        auth.role_grant_permission(grant).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        auth.auth_enable(pb::AuthEnableRequest {}).await.unwrap();
        let save = Command::new(tool("etcdctl").unwrap())
            .args(["--user", "root:secret", "--endpoints", origin.url(), "snapshot", "save"])
            .arg(&file)
            .output()
            .unwrap();
        assert!(save.status.success(), "{}", String::from_utf8_lossy(&save.stderr));
        let wanted = auth_revision(origin.url()).await;
        for copy in [Kind::Etcd, Kind::Tailwater] {
            let copy = restored(copy, &file, &[]).await;
            let mut auth = AuthClient::new(channel(copy.url()));
            let login =
                |name: &str, password: &str| pb::AuthenticateRequest { name: name.into(), password: password.into() };
            auth.authenticate(login("root", "wrong")).await.unwrap_err();
            let token = auth.authenticate(login("reader", "secret")).await.unwrap().into_inner().token;
            let mut kv = KvClient::new(channel(copy.url()));
            let read = |key: &str| {
                let range = pb::RangeRequest { key: key.to_owned().into(), ..Default::default() };
                let mut request = tonic::Request::new(range);
                request.metadata_mut().insert("token", token.parse().unwrap());
                request
            };
            kv.range(read("k")).await.unwrap();
            let denied = kv.range(read("other")).await.unwrap_err();
            assert_eq!(denied.message(), "etcdserver: permission denied");
            assert_eq!(auth_revision(copy.url()).await, wanted, "the auth revision");
        }
    }
}

/// The data directory of an etcd that was stopped.
#[tokio::test]
async fn an_etcds_data_directory_is_restored() {
    let Some(mut origin) = server("restore of a data directory", Kind::Etcd).await else { return };
    let last = fill(origin.url()).await;
    let oldest = oldest_readable(origin.url(), last / 2).await;
    let wanted = view(origin.url(), oldest, oldest + 5).await;
    let in_use = Command::new(program(Kind::Tailwater).unwrap())
        .args(["snapshot", "restore", origin.data().to_str().unwrap(), "--data-dir"])
        .arg(origin.data().join("copy"))
        .output()
        .unwrap();
    let refused = String::from_utf8_lossy(&in_use.stderr).into_owned();
    assert!(!in_use.status.success() && refused.contains("is used by another process"), "{refused}");
    // Its database is written behind its log, by a tenth of a second.
    tokio::time::sleep(Duration::from_secs(1)).await;
    origin.kill().unwrap();
    let copy = restored(Kind::Tailwater, &origin.data(), &[]).await;
    assert_eq!(view(copy.url(), oldest, oldest + 5).await, wanted);
}

/// A snapshot shows one revision while writes go on, and its messages are those of etcd.
#[tokio::test]
async fn a_snapshot_is_of_one_revision_while_writes_go_on() {
    let Some(origin) = server("snapshot under load", Kind::Tailwater).await else { return };
    fill(origin.url()).await;
    let url = origin.url().to_owned();
    let writer = tokio::spawn(async move {
        let mut kv = KvClient::new(channel(&url));
        for at in 0_u64.. {
            let put =
                pb::PutRequest { key: b"busy".to_vec().into(), value: at.to_string().into(), ..Default::default() };
            kv.put(put).await.unwrap();
        }
    });
    let range = pb::RangeRequest { key: b"busy".to_vec().into(), ..Default::default() };
    let mut kv = KvClient::new(channel(origin.url()));
    while kv.range(range.clone()).await.unwrap().into_inner().kvs.is_empty() {}
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    for _ in 0..3 {
        let mut client = MaintenanceClient::new(channel(origin.url()));
        let mut pieces = client.snapshot(pb::SnapshotRequest {}).await.unwrap().into_inner();
        let (mut bytes, mut remaining) = (Vec::new(), None);
        while let Some(piece) = pieces.message().await.unwrap() {
            assert!(piece.blob.len() <= 32 << 10, "{}", piece.blob.len());
            if let Some(remaining) = remaining.filter(|remaining| *remaining > 0) {
                assert_eq!(piece.remaining_bytes + piece.blob.len() as u64, remaining);
            }
            remaining = Some(piece.remaining_bytes);
            assert_eq!(piece.version, "3.6.0");
            bytes.extend_from_slice(&piece.blob);
        }
        assert_eq!((bytes.len() % 512, remaining), (32, Some(0)));
        std::fs::write(&file, bytes).unwrap();
        let copy = restored(Kind::Etcd, &file, &[]).await;
        let mut kv = KvClient::new(channel(copy.url()));
        let range = pb::RangeRequest { key: b"busy".to_vec().into(), ..Default::default() };
        let found = kv.range(range).await.unwrap().into_inner();
        let newest = found.kvs.first().map_or(0, |busy| busy.mod_revision);
        assert_eq!(found.header.unwrap().revision, newest, "the last write is the last that is there");
    }
    assert!(!writer.is_finished(), "writes went on");
    writer.abort();
}

/// A server's snapshot with one key of this value.
async fn small(value: &str, file: &Path) {
    let origin = Server::start(Kind::Tailwater, &options()).await.unwrap();
    let put = pb::PutRequest { key: b"k".to_vec().into(), value: value.to_owned().into(), ..Default::default() };
    KvClient::new(channel(origin.url())).put(put).await.unwrap();
    save(Kind::Tailwater, origin.url(), file);
}

async fn hash(url: &str) -> (u32, i64) {
    let hash = MaintenanceClient::new(channel(url)).hash_kv(pb::HashKvRequest::default()).await.unwrap().into_inner();
    (hash.hash, hash.hash_revision)
}

/// Members that are restored from one file are a group, which takes in members that begin with nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_restored_and_grows() {
    if let Err(error) = program(Kind::Tailwater) {
        return left_out("restored group", &format!("{error:#}"));
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    small("v", &file).await;
    let mut cluster = Cluster::new(Setup::new(Kind::Tailwater, 3)).await.unwrap();
    for slot in 0..3 {
        cluster.restore(slot, &file).unwrap();
        cluster.launch(slot).unwrap();
    }
    for slot in 0..3 {
        cluster.wait_until_serving(slot).await.unwrap();
    }
    let get = pb::RangeRequest { key: b"k".to_vec().into(), ..Default::default() };
    let found = KvClient::new(channel(cluster.url(1))).range(get).await.unwrap().into_inner();
    assert_eq!((found.header.unwrap().revision, &found.kvs[0].value[..]), (2, &b"v"[..]));
    // One of them goes for good, and another comes with nothing: the log does not reach back to what was restored.
    let mut members = ClusterClient::new(channel(cluster.url(1)));
    let all = members.member_list(pb::MemberListRequest::default()).await.unwrap().into_inner().members;
    let gone = all.iter().find(|member| member.name == "m0").unwrap().id;
    cluster.kill(0).unwrap();
    // It may have led.
    while let Err(refused) = members.member_remove(pb::MemberRemoveRequest { id: gone }).await {
        if refused.message() == "etcdserver: member not found" {
            break;
        }
        assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let url = cluster.replace(0).await.unwrap();
    let add = pb::MemberAddRequest { peer_ur_ls: vec![url], ..Default::default() };
    // Before a member may be added, a quorum must have been connected for as long as etcd asks for.
    let deadline = Instant::now() + Duration::from_secs(30);
    while let Err(refused) = members.member_add(add.clone()).await {
        assert_eq!(refused.message(), "etcdserver: unhealthy cluster");
        assert!(Instant::now() < deadline, "two members that run are healthy in time");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    cluster.restart(0).await.unwrap();
    let put = pb::PutRequest { key: b"k".to_vec().into(), value: b"w".to_vec().into(), ..Default::default() };
    KvClient::new(channel(cluster.url(0))).put(put).await.unwrap();
    assert_eq!(hash(cluster.url(0)).await, hash(cluster.url(1)).await);
    cluster.finish();
}

/// A member that was restored from another file than its leader must not serve.
#[tokio::test(flavor = "multi_thread")]
async fn members_that_begin_with_different_files_refuse_each_other() {
    if let Err(error) = program(Kind::Tailwater) {
        return left_out("members of different files", &format!("{error:#}"));
    }
    let directory = tempfile::tempdir().unwrap();
    let [one, other] = ["one", "other"].map(|name| directory.path().join(name));
    small("v", &one).await;
    small("w", &other).await;
    let mut cluster = Cluster::new(Setup::new(Kind::Tailwater, 2)).await.unwrap();
    cluster.restore(0, &one).unwrap();
    cluster.restore(1, &other).unwrap();
    (0..2).for_each(|slot| cluster.launch(slot).unwrap());
    let begin = Instant::now();
    while cluster.is_running(0) && cluster.is_running(1) {
        assert!(begin.elapsed() < PATIENCE, "both go on");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let stopped = if cluster.is_running(0) { 1 } else { 0 };
    let log = cluster.log(stopped);
    assert!(log.contains("this member began with another backup than its group"), "{log}");
    cluster.keep_nothing();
}
