//! What etcd's security advisories are about, as long as it concerns auth; those on TLS are tested with TLS.

use bytes::Bytes;
use prost::Message;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::request_op::Request as Op;
use tailwater_tests::{Kind, Options, RawClient, Server};

use crate::client::{Verdict, add_user, enable, login, manage, op, password, put, range, servers, verdict, watch};

/// CVE-2026-33343: operations of a nested txn passed unchecked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nested_txns_need_the_same_rights() {
    let (cluster, clients) = servers().await;
    enable(&clients[0]).await;
    for client in &clients {
        let right = login(client, "right").await;
        let txn = |op| pb::TxnRequest { success: vec![op], ..Default::default() };
        let nested = |inner: Op| txn(op(Op::RequestTxn(txn(op(Op::RequestTxn(txn(op(inner))))))));
        let compared = pb::TxnRequest {
            compare: vec![pb::Compare { key: "secret".into(), ..Default::default() }],
            ..Default::default()
        };
        let delete = pb::DeleteRangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
        for (inner, expected) in [
            (Op::RequestPut(put("a1")), Verdict::Passes),
            (Op::RequestRange(range("a", "b")), Verdict::Passes),
            (Op::RequestPut(put("secret")), Verdict::Denied),
            (Op::RequestRange(range("secret", "")), Verdict::Denied),
            (Op::RequestRange(range("a", "\0")), Verdict::Denied),
            (Op::RequestDeleteRange(delete), Verdict::Denied),
            (Op::RequestTxn(compared), Verdict::Denied),
        ] {
            let body = nested(inner.clone()).encode_to_vec().into();
            assert_eq!(verdict(&right, "/etcdserverpb.KV/Txn", body).await, expected, "{inner:?}");
        }
    }
    cluster.finish();
}

/// CVE-2026-33413: methods that asked nobody who they were. The table has them all; these are the ones of the advisory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gets_nothing() {
    let (cluster, clients) = servers().await;
    enable(&clients[0]).await;
    for client in &clients {
        for path in [
            "/etcdserverpb.Cluster/MemberList",
            "/etcdserverpb.Maintenance/Alarm",
            "/etcdserverpb.Maintenance/Status",
            "/etcdserverpb.Lease/LeaseGrant",
            "/etcdserverpb.Lease/LeaseRevoke",
            "/etcdserverpb.Lease/LeaseLeases",
            "/etcdserverpb.Lease/LeaseTimeToLive",
            "/etcdserverpb.Lease/LeaseKeepAlive",
            "/etcdserverpb.KV/Compact",
        ] {
            assert_eq!(verdict(client, path, Bytes::new()).await, Verdict::Empty, "{path}");
        }
    }
    cluster.finish();
}

/// GHSA-xg4h-6gfc-h4m8: the right to one key let a watch from that key to the end through.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_to_one_key_is_none_to_what_follows() {
    let (cluster, clients) = servers().await;
    enable(&clients[0]).await;
    let root = login(&clients[0], "root").await;
    crate::client::add_role(&root, "one", &[("k", "")]).await;
    manage(&root, "UserGrantRole", crate::client::grant_role("wrong", "one")).await;
    for client in &clients {
        let user = login(client, "wrong").await;
        for (end, expected) in [("", Verdict::Passes), ("\0", Verdict::Denied), ("k\0\0", Verdict::Denied)] {
            for (path, body) in [
                ("/etcdserverpb.Watch/Watch", watch("k", end).encode_to_vec()),
                ("/etcdserverpb.KV/Range", range("k", end).encode_to_vec()),
                ("/etcdserverpb.KV/RangeStream", range("k", end).encode_to_vec()),
            ] {
                assert_eq!(verdict(&user, path, body.into()).await, expected, "{path} {end:?}");
            }
        }
        let everything = watch("", "\0").encode_to_vec().into();
        assert_eq!(verdict(&user, "/etcdserverpb.Watch/Watch", everything).await, Verdict::Denied);
    }
    cluster.finish();
}

/// CVE-2021-28235: a password could be read in a debug page. Here neither a log at its loudest nor any file shows one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_are_nowhere() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    let flags = vec![
        "--bcrypt-cost=4".to_owned(),
        "--log-level=debug".to_owned(),
        "--warning-unary-request-duration=1ns".to_owned(),
        format!("--data-dir={}", data.display()),
    ];
    let server = Server::start(Kind::Tailwater, &Options { flags, ..Options::default() }).await.unwrap();
    let client = RawClient::new(server.url()).unwrap();
    enable(&client).await;
    let root = login(&client, "root").await;
    add_user(&root, "late").await;
    let change =
        pb::AuthUserChangePasswordRequest { name: "late".into(), password: password("changed"), ..Default::default() };
    manage(&root, "UserChangePassword", change).await;
    let wrong = pb::AuthenticateRequest { name: "late".into(), password: password("mistaken") };
    verdict(&client, "/etcdserverpb.Auth/Authenticate", wrong.encode_to_vec().into()).await;
    let log = server.log();
    assert!(!log.is_empty(), "there is a log to be looked at");
    let mut files = vec![log.into_bytes()];
    let mut directories = vec![data];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                files.push(std::fs::read(path).unwrap_or_default());
            }
        }
    }
    let holds = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    // So that the search is known to look at the right files: "$2a$04$" as it stands in the raft log.
    assert!(files.iter().any(|file| holds(file, "JDJhJDA0J")), "hashes are stored");
    for user in ["root", "right", "late", "changed", "mistaken"] {
        assert!(!files.iter().any(|file| holds(file, &password(user))), "the password of {user} is somewhere");
    }
}
