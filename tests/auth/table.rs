//! Every method × every kind of caller.

use bytes::Bytes;
use prost::Message;
use tailwater_api::etcdserverpb::request_op::Request as Op;
use tailwater_api::{authpb, etcdserverpb as pb, v3electionpb as election, v3lockpb as lock};
use tailwater_tests::RawClient;

use crate::client::{
    Verdict, ask, enable, grant_role, login, manage, op, put, range, revoke_role, servers, verdict, watch,
};

const LEASE: i64 = 77;

/// Who may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    Nothing,
    /// Being somebody.
    User,
    /// The rights of the user `right`, or being that user.
    Rights,
    Root,
}

fn row(path: &'static str, needs: Needs, request: &impl Message) -> (&'static str, Needs, Bytes) {
    (path, needs, request.encode_to_vec().into())
}

/// One request for each method that has rules of its own; for what takes several kinds of request, several.
fn rows() -> Vec<(&'static str, Needs, Bytes)> {
    use Needs::{Nothing, Rights, Root, User};
    let serializable = pb::RangeRequest { serializable: true, ..range("a", "b") };
    let delete = pb::DeleteRangeRequest { key: "a5".into(), ..Default::default() };
    let read = pb::TxnRequest { success: vec![op(Op::RequestRange(range("a", "b")))], ..Default::default() };
    let write = pb::TxnRequest { failure: vec![op(Op::RequestPut(put("a3")))], ..Default::default() };
    let ttl = |keys| pb::LeaseTimeToLiveRequest { id: LEASE, keys };
    let alarm = |action| pb::AlarmRequest { action, member_id: 1, alarm: 1 };
    let urls = || vec!["http://127.0.0.1:1".to_owned()];
    let stranger = || "stranger".to_owned();
    let perm = authpb::Permission { key: b"a".to_vec(), ..Default::default() };
    let leader = election::LeaderKey { name: "a-e".into(), key: "a-e/1".into(), rev: 1, lease: LEASE };
    vec![
        row("/etcdserverpb.KV/Range", Rights, &range("a", "b")),
        row("/etcdserverpb.KV/Range", Rights, &serializable),
        row("/etcdserverpb.KV/RangeStream", Rights, &range("a1", "")),
        row("/etcdserverpb.KV/Put", Rights, &pb::PutRequest { prev_kv: true, ..put("a2") }),
        row("/etcdserverpb.KV/Put", Rights, &pb::PutRequest { lease: LEASE, ..put("a2") }),
        row("/etcdserverpb.KV/DeleteRange", Rights, &delete),
        row("/etcdserverpb.KV/Txn", Rights, &read),
        row("/etcdserverpb.KV/Txn", Rights, &write),
        row("/etcdserverpb.KV/Compact", Root, &pb::CompactionRequest { revision: 1, physical: false }),
        row("/etcdserverpb.Watch/Watch", Rights, &watch("a", "b")),
        row("/etcdserverpb.Watch/Watch", Rights, &watch("a1", "")),
        row("/etcdserverpb.Lease/LeaseGrant", User, &pb::LeaseGrantRequest { id: 0, ttl: 60 }),
        row("/etcdserverpb.Lease/LeaseKeepAlive", Rights, &pb::LeaseKeepAliveRequest { id: LEASE }),
        row("/etcdserverpb.Lease/LeaseTimeToLive", Rights, &ttl(true)),
        row("/etcdserverpb.Lease/LeaseTimeToLive", User, &ttl(false)),
        row("/etcdserverpb.Lease/LeaseLeases", Rights, &pb::LeaseLeasesRequest {}),
        row("/etcdserverpb.Lease/LeaseRevoke", Rights, &pb::LeaseRevokeRequest { id: LEASE }),
        row("/etcdserverpb.Cluster/MemberAdd", Root, &pb::MemberAddRequest { peer_ur_ls: urls(), is_learner: true }),
        row("/etcdserverpb.Cluster/MemberRemove", Root, &pb::MemberRemoveRequest { id: 1 }),
        row("/etcdserverpb.Cluster/MemberUpdate", Root, &pb::MemberUpdateRequest { id: 1, peer_ur_ls: urls() }),
        row("/etcdserverpb.Cluster/MemberPromote", Root, &pb::MemberPromoteRequest { id: 1 }),
        row("/etcdserverpb.Cluster/MemberList", User, &pb::MemberListRequest { linearizable: true }),
        row("/etcdserverpb.Cluster/MemberList", User, &pb::MemberListRequest { linearizable: false }),
        row("/etcdserverpb.Maintenance/Alarm", User, &alarm(0)),
        row("/etcdserverpb.Maintenance/Alarm", Root, &alarm(2)),
        row("/etcdserverpb.Maintenance/Status", User, &pb::StatusRequest {}),
        row("/etcdserverpb.Maintenance/Defragment", Root, &pb::DefragmentRequest {}),
        row("/etcdserverpb.Maintenance/Hash", Root, &pb::HashRequest {}),
        row("/etcdserverpb.Maintenance/HashKV", Root, &pb::HashKvRequest { revision: 0 }),
        row("/etcdserverpb.Maintenance/Snapshot", Root, &pb::SnapshotRequest {}),
        row("/etcdserverpb.Maintenance/MoveLeader", Root, &pb::MoveLeaderRequest { target_id: 1 }),
        row("/etcdserverpb.Maintenance/Downgrade", Root, &pb::DowngradeRequest::default()),
        row("/etcdserverpb.Auth/AuthEnable", Root, &pb::AuthEnableRequest {}),
        row("/etcdserverpb.Auth/AuthStatus", Nothing, &pb::AuthStatusRequest {}),
        row("/etcdserverpb.Auth/Authenticate", Nothing, &pb::AuthenticateRequest::default()),
        row("/etcdserverpb.Auth/UserAdd", Root, &pb::AuthUserAddRequest { name: "root".into(), ..Default::default() }),
        row("/etcdserverpb.Auth/UserGet", Rights, &pb::AuthUserGetRequest { name: "right".into() }),
        row("/etcdserverpb.Auth/UserGet", Root, &pb::AuthUserGetRequest { name: "root".into() }),
        row("/etcdserverpb.Auth/UserList", Root, &pb::AuthUserListRequest {}),
        row("/etcdserverpb.Auth/UserDelete", Root, &pb::AuthUserDeleteRequest { name: stranger() }),
        row(
            "/etcdserverpb.Auth/UserChangePassword",
            Root,
            &pb::AuthUserChangePasswordRequest { name: stranger(), ..Default::default() },
        ),
        row("/etcdserverpb.Auth/UserGrantRole", Root, &grant_role("stranger", "root")),
        row("/etcdserverpb.Auth/UserRevokeRole", Root, &revoke_role("stranger", "root")),
        row("/etcdserverpb.Auth/RoleAdd", Root, &pb::AuthRoleAddRequest { name: "right".into() }),
        row("/etcdserverpb.Auth/RoleGet", Rights, &pb::AuthRoleGetRequest { role: "right".into() }),
        row("/etcdserverpb.Auth/RoleGet", Root, &pb::AuthRoleGetRequest { role: "root".into() }),
        row("/etcdserverpb.Auth/RoleList", Root, &pb::AuthRoleListRequest {}),
        row("/etcdserverpb.Auth/RoleDelete", Root, &pb::AuthRoleDeleteRequest { role: stranger() }),
        row(
            "/etcdserverpb.Auth/RoleGrantPermission",
            Root,
            &pb::AuthRoleGrantPermissionRequest { name: stranger(), perm: Some(perm) },
        ),
        row("/etcdserverpb.Auth/RoleRevokePermission", Root, &pb::AuthRoleRevokePermissionRequest::default()),
        row(
            "/v3electionpb.Election/Campaign",
            Rights,
            &election::CampaignRequest { name: "a-e".into(), lease: LEASE, value: "v".into() },
        ),
        row(
            "/v3electionpb.Election/Proclaim",
            Rights,
            &election::ProclaimRequest { leader: Some(leader.clone()), value: "v".into() },
        ),
        row("/v3electionpb.Election/Leader", Rights, &election::LeaderRequest { name: "a-e".into() }),
        row("/v3electionpb.Election/Observe", Rights, &election::LeaderRequest { name: "a-e".into() }),
        row("/v3electionpb.Election/Resign", Rights, &election::ResignRequest { leader: Some(leader) }),
        row("/v3lockpb.Lock/Lock", Rights, &lock::LockRequest { name: "a-l".into(), lease: LEASE }),
        row("/v3lockpb.Lock/Unlock", Rights, &lock::UnlockRequest { key: "a-l/1".into() }),
        row("/grpc.health.v1.Health/Check", Nothing, &pb::StatusRequest {}),
        row("/grpc.health.v1.Health/Watch", Nothing, &pb::StatusRequest {}),
        // The last: root's call ends auth.
        row("/etcdserverpb.Auth/AuthDisable", Root, &pb::AuthDisableRequest {}),
    ]
}

/// Neither gains a method alone.
#[test]
fn the_table_names_every_method() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto");
    let rows = rows();
    for file in ["etcd/rpc.proto", "etcd/v3election.proto", "etcd/v3lock.proto", "grpc/health.proto"] {
        for line in std::fs::read_to_string(root.join(file)).unwrap().lines() {
            if let Some(rpc) = line.trim().strip_prefix("rpc ") {
                let name = rpc.split('(').next().unwrap();
                let is_named = rows.iter().any(|(path, ..)| path.rsplit('/').next() == Some(name));
                assert!(is_named, "{name} of {file} has no row");
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    /// No token.
    Nobody,
    /// A token that nobody made.
    Forged,
    /// A user without rights to what is asked for.
    Wrong,
    Right,
    /// The user `right` after its role was taken, on the same connection with the same token.
    Revoked,
    /// The same after the user was deleted.
    Deleted,
    Root,
}

fn expected(who: Who, needs: Needs, path: &str) -> Verdict {
    let is_own_user = path.ends_with("/UserGet");
    match (who, needs) {
        (_, Needs::Nothing) | (Who::Root, _) => Verdict::Passes,
        (Who::Nobody, _) => Verdict::Empty,
        (Who::Forged | Who::Deleted, _) => Verdict::Token,
        (_, Needs::User) | (Who::Right, Needs::Rights) => Verdict::Passes,
        // Who one is stays when what one may is gone.
        (Who::Revoked, Needs::Rights) if is_own_user => Verdict::Passes,
        (Who::Wrong | Who::Right | Who::Revoked, _) => Verdict::Denied,
    }
}

/// A lease with a key of `right`, and nothing that depends on what was called before.
async fn prepare(root: &RawClient) {
    let grant = pb::LeaseGrantRequest { id: LEASE, ttl: 600 };
    // It may be there.
    drop(root.unary("/etcdserverpb.Lease/LeaseGrant", grant.encode_to_vec().into()).await);
    let leased = pb::PutRequest { lease: LEASE, ..put("a1") };
    let _: pb::PutResponse = ask(root, "/etcdserverpb.KV/Put", leased).await;
}

/// What came out otherwise than expected.
async fn check(server: usize, who: Who, client: &RawClient) -> Vec<String> {
    let mut wrong = Vec::new();
    for (path, needs, body) in rows() {
        let found = verdict(client, path, body).await;
        let expected = expected(who, needs, path);
        let is_right = match found {
            Verdict::Closed => expected != Verdict::Passes,
            Verdict::Unserved => needs != Needs::Nothing,
            _ => found == expected,
        };
        if !is_right {
            wrong.push(format!("server {server}, {who:?}, {path} ({needs:?}): {found:?} instead of {expected:?}"));
        }
    }
    wrong
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_method_for_every_caller() {
    let (cluster, clients) = servers().await;
    let mut wrong = Vec::new();
    for (server, client) in clients.iter().enumerate() {
        if server == 0 {
            enable(client).await;
        }
        let root = login(client, "root").await;
        prepare(&root).await;
        wrong.extend(check(server, Who::Nobody, client).await);
        wrong.extend(check(server, Who::Forged, &client.with_token("abcdefghijklmnop.17").unwrap()).await);
        wrong.extend(check(server, Who::Wrong, &login(client, "wrong").await).await);
        let right = login(client, "right").await;
        wrong.extend(check(server, Who::Right, &right).await);
        manage(&root, "UserRevokeRole", revoke_role("right", "right")).await;
        prepare(&root).await;
        wrong.extend(check(server, Who::Revoked, &right).await);
        manage(&root, "UserDelete", pb::AuthUserDeleteRequest { name: "right".into() }).await;
        wrong.extend(check(server, Who::Deleted, &right).await);
        // For the next server.
        crate::client::add_user(&root, "right").await;
        manage(&root, "UserGrantRole", grant_role("right", "right")).await;
        wrong.extend(check(server, Who::Root, &root).await);
        // Nobody needs anything now.
        let status: pb::AuthStatusResponse =
            ask(client, "/etcdserverpb.Auth/AuthStatus", pb::AuthStatusRequest {}).await;
        assert!(!status.enabled);
        let _: pb::PutResponse = ask(client, "/etcdserverpb.KV/Put", put("b")).await;
        manage(client, "AuthEnable", pb::AuthEnableRequest {}).await;
        // The token of before is of another time.
        let stale = root.unary("/etcdserverpb.KV/Put", put("b").encode_to_vec().into()).await.unwrap_err();
        assert_eq!(stale.message, "etcdserver: invalid auth token");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    cluster.finish();
}
