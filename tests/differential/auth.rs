//! Random auth operations and requests of several users on both servers, every answer compared.
//!
//! Each step is one call of one user. Users, roles and ranges are few, so that rights come, overlap and go while they are
//! used; root puts auth back on when a run has turned it off.

use anyhow::Context;
use bytes::Bytes;
use futures_util::StreamExt;
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tailwater_api::etcdserverpb::request_op::Request as Op;
use tailwater_api::{authpb, etcdserverpb as pb};
use tailwater_tests::{Failure, RawClient};

use crate::run::Difference;

const USERS: [&str; 5] = ["root", "u", "v", "n", "stranger"];
const ROLES: [&str; 4] = ["root", "r", "s", "nowhere"];
const KEYS: [&str; 9] = ["\0", "a", "a\0", "a1", "b", "b1", "c", "k", ""];
const ENDS: [&str; 8] = ["", "", "", "\0", "a\0", "b", "c", "a"];
const LEASES: [i64; 3] = [0, 11, 12];

/// One call of one user (`None`: of nobody).
#[derive(Debug)]
struct Step {
    user: Option<&'static str>,
    path: &'static str,
    body: Bytes,
    text: String,
}

struct Generator {
    random: StdRng,
}

impl Generator {
    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.random.random_range(0..of.len())]
    }

    fn text(&mut self, of: &[&'static str]) -> String {
        self.one(of).to_owned()
    }

    fn bytes(&mut self, of: &[&'static str]) -> Bytes {
        Bytes::from_static(self.one(of).as_bytes())
    }

    fn step(&mut self) -> Step {
        // Mostly who may do something, so that rights matter.
        let user = match self.random.random_range(0..20) {
            0 => None,
            1..8 => Some("root"),
            8..15 => Some("u"),
            _ => Some("v"),
        };
        match self.random.random_range(0..10) {
            0..3 => self.management(user),
            3 => self.about_auth(user),
            4 => self.lease(user),
            5 => self.maintenance(user),
            _ => self.key(user),
        }
    }

    fn management(&mut self, user: Option<&'static str>) -> Step {
        // What others than root are refused anyway is asked by them less often.
        let user = if self.random.random_bool(0.7) { Some("root") } else { user };
        let name = self.text(&USERS);
        let role = self.text(&ROLES);
        match self.random.random_range(0..13) {
            0 => {
                let options = self.random.random_bool(0.2).then_some(authpb::UserAddOptions { no_password: true });
                let password = password(&name);
                let request = pb::AuthUserAddRequest { name, password, options, ..Default::default() };
                step(user, "/etcdserverpb.Auth/UserAdd", &request)
            }
            1 => step(user, "/etcdserverpb.Auth/UserDelete", &pb::AuthUserDeleteRequest { name }),
            2 => {
                let password = if self.random.random_bool(0.5) { password(&name) } else { "another".into() };
                let request = pb::AuthUserChangePasswordRequest { name, password, ..Default::default() };
                step(user, "/etcdserverpb.Auth/UserChangePassword", &request)
            }
            3 | 4 => step(user, "/etcdserverpb.Auth/UserGrantRole", &pb::AuthUserGrantRoleRequest { user: name, role }),
            5 => step(user, "/etcdserverpb.Auth/UserRevokeRole", &pb::AuthUserRevokeRoleRequest { name, role }),
            6 => step(user, "/etcdserverpb.Auth/RoleAdd", &pb::AuthRoleAddRequest { name: role }),
            7 => step(user, "/etcdserverpb.Auth/RoleDelete", &pb::AuthRoleDeleteRequest { role }),
            8..11 => {
                let perm_type = self.random.random_range(0..3);
                let (key, range_end) = (self.bytes(&KEYS).to_vec(), self.bytes(&ENDS).to_vec());
                let perm = authpb::Permission { perm_type, key, range_end };
                let perm = self.random.random_bool(0.97).then_some(perm);
                let request = pb::AuthRoleGrantPermissionRequest { name: role, perm };
                step(user, "/etcdserverpb.Auth/RoleGrantPermission", &request)
            }
            11 => {
                let (key, range_end) = (self.bytes(&KEYS), self.bytes(&ENDS));
                let request = pb::AuthRoleRevokePermissionRequest { role, key, range_end };
                step(user, "/etcdserverpb.Auth/RoleRevokePermission", &request)
            }
            _ if self.random.random_bool(0.3) => {
                step(user, "/etcdserverpb.Auth/AuthDisable", &pb::AuthDisableRequest {})
            }
            _ => step(user, "/etcdserverpb.Auth/AuthEnable", &pb::AuthEnableRequest {}),
        }
    }

    fn about_auth(&mut self, user: Option<&'static str>) -> Step {
        match self.random.random_range(0..4) {
            0 => step(user, "/etcdserverpb.Auth/UserGet", &pb::AuthUserGetRequest { name: self.text(&USERS) }),
            1 => step(user, "/etcdserverpb.Auth/RoleGet", &pb::AuthRoleGetRequest { role: self.text(&ROLES) }),
            2 => step(user, "/etcdserverpb.Auth/UserList", &pb::AuthUserListRequest {}),
            _ => step(user, "/etcdserverpb.Auth/RoleList", &pb::AuthRoleListRequest {}),
        }
    }

    fn lease(&mut self, user: Option<&'static str>) -> Step {
        let id = self.one(&LEASES[1..]);
        match self.random.random_range(0..5) {
            0 => step(user, "/etcdserverpb.Lease/LeaseGrant", &pb::LeaseGrantRequest { id, ttl: 5000 }),
            1 => step(user, "/etcdserverpb.Lease/LeaseRevoke", &pb::LeaseRevokeRequest { id }),
            2 => step(user, "/etcdserverpb.Lease/LeaseKeepAlive", &pb::LeaseKeepAliveRequest { id }),
            3 => {
                let keys = self.random.random_bool(0.7);
                step(user, "/etcdserverpb.Lease/LeaseTimeToLive", &pb::LeaseTimeToLiveRequest { id, keys })
            }
            _ => step(user, "/etcdserverpb.Lease/LeaseLeases", &pb::LeaseLeasesRequest {}),
        }
    }

    fn maintenance(&mut self, user: Option<&'static str>) -> Step {
        match self.random.random_range(0..7) {
            0 => step(user, "/etcdserverpb.Cluster/MemberList", &pb::MemberListRequest { linearizable: true }),
            1 => step(user, "/etcdserverpb.Cluster/MemberAdd", &pb::MemberAddRequest::default()),
            2 => step(user, "/etcdserverpb.Cluster/MemberRemove", &pb::MemberRemoveRequest { id: 1 }),
            3 => {
                let action = self.random.random_range(0..3);
                step(user, "/etcdserverpb.Maintenance/Alarm", &pb::AlarmRequest { action, member_id: 1, alarm: 0 })
            }
            4 => step(user, "/etcdserverpb.Maintenance/Status", &pb::StatusRequest {}),
            5 => step(user, "/etcdserverpb.Maintenance/MoveLeader", &pb::MoveLeaderRequest { target_id: 1 }),
            _ => {
                let revision = self.random.random_range(0..5);
                step(user, "/etcdserverpb.KV/Compact", &pb::CompactionRequest { revision, physical: false })
            }
        }
    }

    fn key(&mut self, user: Option<&'static str>) -> Step {
        match self.random.random_range(0..9) {
            0..3 => step(user, "/etcdserverpb.KV/Range", &self.range()),
            3 | 4 => step(user, "/etcdserverpb.KV/Put", &self.put()),
            5 => step(user, "/etcdserverpb.KV/DeleteRange", &self.delete()),
            6 => {
                let (key, range_end) = self.pair();
                let create = pb::WatchCreateRequest { key, range_end, ..Default::default() };
                let create = pb::watch_request::RequestUnion::CreateRequest(create);
                step(user, "/etcdserverpb.Watch/Watch", &pb::WatchRequest { request_union: Some(create) })
            }
            _ => {
                let txn = self.txn(2);
                step(user, "/etcdserverpb.KV/Txn", &txn)
            }
        }
    }

    /// A key and an end. Not one before the key: what etcd says of a right to such a range, which holds nothing, depends on
    /// the shape of a tree.
    fn pair(&mut self) -> (Bytes, Bytes) {
        let (key, end) = (self.bytes(&KEYS), self.bytes(&ENDS));
        if end == "\0" || key < end { (key, end) } else { (key, Bytes::new()) }
    }

    fn range(&mut self) -> pb::RangeRequest {
        let ((key, range_end), serializable) = (self.pair(), self.random.random_bool(0.3));
        pb::RangeRequest { key, range_end, serializable, ..Default::default() }
    }

    fn put(&mut self) -> pb::PutRequest {
        let (key, lease, prev_kv) = (self.bytes(&KEYS), self.one(&LEASES), self.random.random_bool(0.2));
        pb::PutRequest { key, value: "v".into(), lease, prev_kv, ..Default::default() }
    }

    fn delete(&mut self) -> pb::DeleteRangeRequest {
        let ((key, range_end), prev_kv) = (self.pair(), self.random.random_bool(0.3));
        pb::DeleteRangeRequest { key, range_end, prev_kv }
    }

    fn txn(&mut self, depth: usize) -> pb::TxnRequest {
        let mut txn = pb::TxnRequest::default();
        if self.random.random_bool(0.4) {
            let (key, range_end) = self.pair();
            txn.compare.push(pb::Compare { key, range_end, ..Default::default() });
        }
        for branch in [&mut txn.success, &mut txn.failure] {
            for _ in 0..self.random.random_range(0..3) {
                let request = match self.random.random_range(0..4) {
                    0 => Op::RequestRange(self.range()),
                    1 => Op::RequestPut(self.put()),
                    2 => Op::RequestDeleteRange(self.delete()),
                    _ if depth > 0 => Op::RequestTxn(self.txn(depth - 1)),
                    _ => continue,
                };
                branch.push(pb::RequestOp { request: Some(request) });
            }
        }
        txn
    }
}

fn step(user: Option<&'static str>, path: &'static str, request: &(impl Message + std::fmt::Debug)) -> Step {
    Step { user, path, body: request.encode_to_vec().into(), text: format!("{request:?}") }
}

fn password(user: &str) -> String {
    format!("{user}'s word")
}

/// One of the two servers, with a client for each user that has logged in.
struct Side {
    client: RawClient,
    users: std::collections::HashMap<&'static str, RawClient>,
}

impl Side {
    /// Tokens are made anew for each call: how long one lives is not what is compared.
    async fn login(&mut self, user: &'static str) -> Result<(), Failure> {
        let request = pb::AuthenticateRequest { name: user.into(), password: password(user) };
        let answer = self.client.unary("/etcdserverpb.Auth/Authenticate", request.encode_to_vec().into()).await;
        self.users.remove(user);
        let answer = pb::AuthenticateResponse::decode(answer?).expect("an answer to a login");
        self.users.insert(user, self.client.with_token(&answer.token).expect("a token stands in a header"));
        Ok(())
    }

    async fn call(&self, step: &Step) -> Result<String, Failure> {
        let client = step.user.and_then(|user| self.users.get(user)).unwrap_or(&self.client);
        if step.path.ends_with("/Watch") || step.path.ends_with("KeepAlive") {
            let requests = futures_util::stream::iter([step.body.clone()]).chain(futures_util::stream::pending());
            let mut answers = client.streaming(step.path, requests).await?.into_inner();
            let first = answers.message().await?.unwrap_or_default();
            return Ok(common(step.path, first));
        }
        Ok(common(step.path, client.unary(step.path, step.body.clone()).await?))
    }
}

/// An answer as text, without what each server has of its own.
fn common(path: &str, body: Bytes) -> String {
    fn text<M: Message + Default + std::fmt::Debug>(
        body: Bytes,
        header: impl Fn(&mut M) -> &mut Option<pb::ResponseHeader>,
    ) -> String {
        let mut message = M::decode(body).expect("an answer of the method's type");
        if let Some(header) = header(&mut message) {
            *header = pb::ResponseHeader { revision: header.revision, ..Default::default() };
        }
        format!("{message:?}")
    }
    match path.rsplit('/').next().unwrap_or_default() {
        "Range" => text(body, |answer: &mut pb::RangeResponse| &mut answer.header),
        "Put" => text(body, |answer: &mut pb::PutResponse| &mut answer.header),
        "DeleteRange" => text(body, |answer: &mut pb::DeleteRangeResponse| &mut answer.header),
        "Txn" => text(body, |answer: &mut pb::TxnResponse| &mut answer.header),
        "Watch" => text(body, |answer: &mut pb::WatchResponse| &mut answer.header),
        "UserGet" => text(body, |answer: &mut pb::AuthUserGetResponse| &mut answer.header),
        "UserList" => text(body, |answer: &mut pb::AuthUserListResponse| &mut answer.header),
        "RoleGet" => text(body, |answer: &mut pb::AuthRoleGetResponse| &mut answer.header),
        "RoleList" => text(body, |answer: &mut pb::AuthRoleListResponse| &mut answer.header),
        "LeaseKeepAlive" => text(body, |answer: &mut pb::LeaseKeepAliveResponse| &mut answer.header),
        // The order is that of expiry, and of a map in Go, which is none.
        "LeaseLeases" => {
            let answer = pb::LeaseLeasesResponse::decode(body).expect("an answer of the method's type");
            let mut ids: Vec<_> = answer.leases.into_iter().map(|lease| lease.id).collect();
            ids.sort_unstable();
            format!("{ids:?}")
        }
        // Of a lease, the remaining time differs by what the calls took; and of the rest, success is all that is told.
        "LeaseTimeToLive" => {
            let mut answer = pb::LeaseTimeToLiveResponse::decode(body).expect("an answer of the method's type");
            answer.keys.sort();
            format!("{:?} {:?}", answer.granted_ttl, answer.keys)
        }
        _ => "accepted".to_owned(),
    }
}

/// Runs the steps of one seed on both servers.
pub(crate) async fn run(reference: &str, subject: &str, seed: u64, steps: usize) -> anyhow::Result<()> {
    let mut sides = Vec::new();
    for url in [reference, subject] {
        sides.push(Side { client: RawClient::new(url)?, users: std::collections::HashMap::new() });
    }
    let mut generator = Generator { random: StdRng::seed_from_u64(seed) };
    for at in 0..steps {
        if at % 25 == 0 {
            restore(&mut sides).await.with_context(|| format!("step {at} of auth seed {seed}"))?;
        }
        let step = generator.step();
        let mut answers = Vec::new();
        for side in &mut sides {
            // What a login says is compared, too.
            let login = match step.user {
                Some(user) => side.login(user).await,
                None => Ok(()),
            };
            answers.push((login, side.call(&step).await));
        }
        if answers[0] != answers[1] {
            let (reference, subject) = (&answers[0], &answers[1]);
            let text = format!(
                "step {at} of auth seed {seed}: {:?} calls {} {}\n  reference: {reference:?}\n  subject:   {subject:?}",
                step.user, step.path, step.text
            );
            return Err(Difference(text).into());
        }
    }
    Ok(())
}

/// Root is root again and auth is on; `u` and `v` exist. On both servers the same calls are needed.
async fn restore(sides: &mut [Side]) -> anyhow::Result<()> {
    for side in sides {
        // With auth on root logs in; its password may be another one then.
        let mut root = side.client.clone();
        for word in [password("root"), "another".into()] {
            let request = pb::AuthenticateRequest { name: "root".into(), password: word };
            let path = "/etcdserverpb.Auth/Authenticate";
            if let Ok(answer) = side.client.unary(path, request.encode_to_vec().into()).await {
                root = side.client.with_token(&pb::AuthenticateResponse::decode(answer)?.token)?;
            }
        }
        let ask = async |method: &str, body: Vec<u8>| {
            // Much of it is as it should be, and refused for that.
            root.unary(&format!("/etcdserverpb.Auth/{method}"), body.into()).await.err()
        };
        for name in ["root", "u", "v"].map(str::to_owned) {
            let password = password(&name);
            let add = pb::AuthUserAddRequest { name: name.clone(), password: password.clone(), ..Default::default() };
            ask("UserAdd", add.encode_to_vec()).await;
            if name != "root" {
                let change = pb::AuthUserChangePasswordRequest { name, password, ..Default::default() };
                ask("UserChangePassword", change.encode_to_vec()).await;
            }
        }
        let grant = pb::AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() };
        ask("UserGrantRole", grant.encode_to_vec()).await;
        // The last of root's own: its token ends with it.
        let own =
            pb::AuthUserChangePasswordRequest { name: "root".into(), password: password("root"), ..Default::default() };
        if let Some(failure) = ask("UserChangePassword", own.encode_to_vec()).await {
            anyhow::bail!("root can't be restored: {failure:?}");
        }
        side.login("root").await.ok();
        let root = side.users.get("root").unwrap_or(&side.client);
        let enable = root.unary("/etcdserverpb.Auth/AuthEnable", Bytes::new()).await;
        anyhow::ensure!(enable.is_ok(), "auth can't be turned on: {enable:?}");
    }
    Ok(())
}
