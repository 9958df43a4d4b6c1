//! Logins and tokens.

use std::time::{Duration, Instant};

use prost::Message;
use tailwater_api::etcdserverpb as pb;
use tailwater_tests::{Kind, Options, RawClient, Server, left_out, program};

use crate::client::{PATIENCE, Verdict, ask, enable, login, manage, password, put, servers, verdict};

async fn login_failure(client: &RawClient, name: &str, password: &str) -> (i32, String) {
    let request = pb::AuthenticateRequest { name: name.into(), password: password.into() };
    let answer = client.unary("/etcdserverpb.Auth/Authenticate", request.encode_to_vec().into()).await;
    let failure = answer.unwrap_err();
    (failure.code, failure.message)
}

async fn put_by(client: &RawClient) -> Verdict {
    verdict(client, "/etcdserverpb.KV/Put", put("a1").encode_to_vec().into()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_counts_on_every_process_and_after_a_restart() {
    let (mut cluster, [member, fanout]) = servers().await;
    let off = (9, "etcdserver: authentication is not enabled".to_owned());
    assert_eq!(login_failure(&member, "root", "x").await, off);
    enable(&member).await;
    // Known at the fanout as soon as it was done at the member.
    let by_fanout = login(&fanout, "right").await;
    let by_member = login(&member, "right").await;
    for (from, to) in [(&by_fanout, &member), (&by_member, &fanout)] {
        assert_eq!(put_by(from).await, Verdict::Passes);
        let moved = RawClient::moved(from, to);
        assert_eq!(put_by(&moved).await, Verdict::Passes);
    }
    let failed = (3, "etcdserver: authentication failed, invalid user ID or password".to_owned());
    for client in [&member, &fanout] {
        assert_eq!(login_failure(client, "right", "wrong").await, failed);
        assert_eq!(login_failure(client, "stranger", "wrong").await, failed);
        assert_eq!(login_failure(client, "", "").await, failed);
    }
    cluster.kill(0).unwrap();
    cluster.launch(0).unwrap();
    let restarted = RawClient::moved(&by_member, &RawClient::new(cluster.url(0)).unwrap());
    let begun = Instant::now();
    let body = || put("a1").encode_to_vec().into();
    while let Err(failure) = restarted.unary("/etcdserverpb.KV/Put", body()).await {
        // Not there yet, or without a leader.
        assert_eq!(failure.code, 14, "{failure:?}");
        assert!(begun.elapsed() < PATIENCE, "{failure:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_password_ends_what_the_old_one_opened() {
    let (cluster, clients) = servers().await;
    enable(&clients[0]).await;
    for client in &clients {
        let root = login(client, "root").await;
        let right = login(client, "right").await;
        let other = login(client, "wrong").await;
        assert_eq!(put_by(&right).await, Verdict::Passes);
        let change = pb::AuthUserChangePasswordRequest {
            name: "right".into(),
            password: "another".into(),
            ..Default::default()
        };
        manage(&root, "UserChangePassword", change).await;
        assert_eq!(put_by(&right).await, Verdict::Token);
        assert_eq!(put_by(&other).await, Verdict::Denied);
        assert_eq!(login_failure(client, "right", &password("right")).await.0, 3);
        let back = pb::AuthUserChangePasswordRequest {
            name: "right".into(),
            password: password("right"),
            ..Default::default()
        };
        manage(&root, "UserChangePassword", back).await;
        // The same password again is another hash.
        assert_eq!(put_by(&right).await, Verdict::Token);
        assert_eq!(put_by(&login(client, "right").await).await, Verdict::Passes);
    }
    cluster.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_without_a_password_cannot_log_in() {
    let (cluster, [member, fanout]) = servers().await;
    enable(&member).await;
    let root = login(&fanout, "root").await;
    let options = Some(tailwater_api::authpb::UserAddOptions { no_password: true });
    let request = pb::AuthUserAddRequest { name: "n".into(), options, ..Default::default() };
    manage(&root, "UserAdd", request).await;
    let text = "auth: authentication failed, password was given for no password user".to_owned();
    for client in [&member, &fanout] {
        assert_eq!(login_failure(client, "n", "").await, (2, text.clone()));
    }
    let long = pb::AuthUserAddRequest { name: "l".into(), password: "x".repeat(73), ..Default::default() };
    let refused = root.unary("/etcdserverpb.Auth/UserAdd", long.encode_to_vec().into()).await.unwrap_err();
    assert_eq!((refused.code, refused.message.as_str()), (2, "bcrypt: password length exceeds 72 bytes"));
    let users: pb::AuthUserListResponse = ask(&root, "/etcdserverpb.Auth/UserList", pb::AuthUserListRequest {}).await;
    assert_eq!(users.users, ["n", "right", "root", "wrong"]);
    cluster.finish();
}

/// What one signs with the key that both were given, the other knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_json_web_token_is_one_for_etcd_too() {
    if let Err(error) = program(Kind::Etcd) {
        left_out("json web tokens", &format!("{error:#}"));
        return;
    }
    let key = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(key.path(), "a secret that both were given").unwrap();
    let token = format!("--auth-token=jwt,priv-key={},sign-method=HS256,ttl=10m", key.path().display());
    let options = Options { flags: vec![token, "--bcrypt-cost=4".into()], ..Options::default() };
    let etcd = Server::start(Kind::Etcd, &options).await.unwrap();
    let tailwater = Server::start(Kind::Tailwater, &options).await.unwrap();
    let clients = [&etcd, &tailwater].map(|server| RawClient::new(server.url()).unwrap());
    let mut logged_in = Vec::new();
    for client in &clients {
        // The same changes, so that the token names the same auth revision.
        enable(client).await;
        logged_in.push([login(client, "right").await, login(client, "root").await]);
    }
    for (from, to) in [(0, 1), (1, 0)] {
        let moved = RawClient::moved(&logged_in[from][0], &clients[to]);
        assert_eq!(put_by(&moved).await, Verdict::Passes);
        let denied = verdict(&moved, "/etcdserverpb.KV/Put", put("z").encode_to_vec().into()).await;
        assert_eq!(denied, Verdict::Denied);
    }
    for (client, [right, root]) in clients.iter().zip(&logged_in) {
        manage(root, "RoleAdd", pb::AuthRoleAddRequest { name: "later".into() }).await;
        let old = right.unary("/etcdserverpb.KV/Put", put("a1").encode_to_vec().into()).await.unwrap_err();
        assert_eq!((old.code, old.message.as_str()), (3, "etcdserver: revision of auth store is old"));
        assert_eq!(put_by(&login(client, "right").await).await, Verdict::Passes);
    }
}
