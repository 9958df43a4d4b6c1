//! Servers with auth on, and callers of them.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use prost::Message;
use tailwater_api::authpb::permission::Type;
use tailwater_api::{authpb, etcdserverpb as pb};
use tailwater_tests::cluster::{Cluster, Fanout, Setup};
use tailwater_tests::{Failure, Kind, RawClient};

/// A stream that says nothing for so long has taken its request.
const SILENCE: Duration = Duration::from_secs(3);
/// Far beyond what an answer takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// One member and one fanout behind it. Cheap hashes: it is not bcrypt that is tested.
pub(crate) async fn servers() -> (Cluster, [RawClient; 2]) {
    let mut setup = Setup::new(Kind::Tailwater, 1);
    setup.flags.push("--bcrypt-cost=4".into());
    let mut cluster = Cluster::start(setup).await.unwrap();
    let fanout = cluster.start_fanout(Fanout::following([0]).with(&["--bcrypt-cost=4"])).await.unwrap();
    let clients = [0, fanout].map(|slot| RawClient::new(cluster.url(slot)).unwrap());
    (cluster, clients)
}

/// A call that must succeed.
pub(crate) async fn ask<A: Message + Default>(client: &RawClient, path: &str, request: impl Message) -> A {
    let answer = client.unary(path, request.encode_to_vec().into()).await;
    A::decode(answer.unwrap_or_else(|failure| panic!("{path}: {failure:?}"))).unwrap()
}

/// The same of the Auth service, whose answers tell nothing but success.
pub(crate) async fn manage(client: &RawClient, method: &str, request: impl Message) {
    let path = format!("/etcdserverpb.Auth/{method}");
    client.unary(&path, request.encode_to_vec().into()).await.unwrap_or_else(|failure| panic!("{path}: {failure:?}"));
}

pub(crate) fn grant_role(user: &str, role: &str) -> pb::AuthUserGrantRoleRequest {
    pb::AuthUserGrantRoleRequest { user: user.into(), role: role.into() }
}

pub(crate) fn revoke_role(user: &str, role: &str) -> pb::AuthUserRevokeRoleRequest {
    pb::AuthUserRevokeRoleRequest { name: user.into(), role: role.into() }
}

pub(crate) async fn add_user(client: &RawClient, name: &str) {
    let (name, password) = (name.to_owned(), password(name));
    manage(client, "UserAdd", pb::AuthUserAddRequest { name, password, ..Default::default() }).await;
}

/// A role that permits everything with these ranges.
pub(crate) async fn add_role(client: &RawClient, name: &str, ranges: &[(&str, &str)]) {
    manage(client, "RoleAdd", pb::AuthRoleAddRequest { name: name.into() }).await;
    for (key, end) in ranges {
        let perm_type = Type::Readwrite as i32;
        let perm = authpb::Permission { perm_type, key: (*key).into(), range_end: (*end).into() };
        let request = pb::AuthRoleGrantPermissionRequest { name: name.into(), perm: Some(perm) };
        manage(client, "RoleGrantPermission", request).await;
    }
}

/// What a user logs in with.
pub(crate) fn password(user: &str) -> String {
    format!("{user}'s word")
}

/// The client as this user.
pub(crate) async fn login(client: &RawClient, user: &str) -> RawClient {
    let request = pb::AuthenticateRequest { name: user.into(), password: password(user) };
    let answer: pb::AuthenticateResponse = ask(client, "/etcdserverpb.Auth/Authenticate", request).await;
    client.with_token(&answer.token).unwrap()
}

/// Turns auth on: `right` may do everything with what begins with `a`, `wrong` with what begins with `z`.
pub(crate) async fn enable(client: &RawClient) {
    for user in ["root", "right", "wrong"] {
        add_user(client, user).await;
    }
    add_role(client, "right", &[("a", "b")]).await;
    add_role(client, "wrong", &[("z", "{")]).await;
    for user in ["root", "right", "wrong"] {
        manage(client, "UserGrantRole", grant_role(user, user)).await;
    }
    manage(client, "AuthEnable", pb::AuthEnableRequest {}).await;
}

pub(crate) fn put(key: &str) -> pb::PutRequest {
    pb::PutRequest { key: key.to_owned().into(), value: "v".into(), ..Default::default() }
}

pub(crate) fn range(key: &str, end: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.to_owned().into(), range_end: end.to_owned().into(), ..Default::default() }
}

pub(crate) fn watch(key: &str, end: &str) -> pb::WatchRequest {
    let create =
        pb::WatchCreateRequest { key: key.to_owned().into(), range_end: end.to_owned().into(), ..Default::default() };
    pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) }
}

pub(crate) fn op(request: pb::request_op::Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

/// What auth said to a call. What becomes of a call that passes is not its affair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Passes,
    /// No credentials.
    Empty,
    Denied,
    /// The token is none.
    Token,
    /// An election's observer is told of any failure only that it is over, as in etcd.
    Closed,
    /// The method is not there in this version.
    Unserved,
}

impl Verdict {
    fn of(failure: &Failure) -> Self {
        match failure.message.as_str() {
            "etcdserver: user name is empty" => Self::Empty,
            "etcdserver: permission denied" => Self::Denied,
            "etcdserver: invalid auth token" => Self::Token,
            "election: observe closed early" => Self::Closed,
            text if text.contains("is not served by this version") => Self::Unserved,
            _ => Self::Passes,
        }
    }

    /// Inside a watch stream etcd writes what Go prints of an error.
    fn of_watch(response: &pb::WatchResponse) -> Self {
        match response.cancel_reason.as_str() {
            "rpc error: code = InvalidArgument desc = etcdserver: user name is empty" => Self::Empty,
            "rpc error: code = PermissionDenied desc = etcdserver: permission denied" => Self::Denied,
            "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token" => Self::Token,
            "" => Self::Passes,
            other => panic!("an unknown reason: {other}"),
        }
    }
}

/// Calls any method with one request, and hears the first answer.
pub(crate) async fn verdict(client: &RawClient, path: &str, body: Bytes) -> Verdict {
    let requests = futures_util::stream::iter([body]).chain(futures_util::stream::pending());
    let is_single = !path.ends_with("/Watch") && !path.ends_with("KeepAlive");
    let requests = requests.take(if is_single { 1 } else { usize::MAX });
    let first = async {
        let mut answers = client.streaming(path, requests).await?.into_inner();
        answers.message().await
    };
    match tokio::time::timeout(SILENCE, first).await {
        Err(_) | Ok(Ok(None)) => Verdict::Passes,
        Ok(Err(status)) => Verdict::of(&status.into()),
        Ok(Ok(Some(answer))) if path == "/etcdserverpb.Watch/Watch" => {
            Verdict::of_watch(&pb::WatchResponse::decode(answer).unwrap())
        }
        Ok(Ok(Some(_))) => Verdict::Passes,
    }
}
