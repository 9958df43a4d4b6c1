//! What a fanout answers, and how it is described.

use tailwater_api::health::HealthCheckRequest;
use tailwater_api::health::health_client::HealthClient;

use super::*;

fn id_of(server: &Server) -> u64 {
    let log = server.log();
    let hex = log.split("\"node-id\":\"").nth(1).unwrap().split('"').next().unwrap();
    u64::from_str_radix(hex, 16).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fanout_serves_the_api_of_its_group() {
    let members = Members::start(3);
    let mut server = members.fanout("f", &[]);
    server.wait_ready();
    let own = id_of(&server);
    let mut stream = watch(&server, "k", 0).await;

    let mut kv = server.kv().await;
    let header = kv.put(put("k1", "v")).await.unwrap().into_inner().header.unwrap();
    assert_eq!((header.member_id, header.revision), (own, 2));
    let cluster = header.cluster_id;
    for serializable in [false, true] {
        let answer = kv.range(pb::RangeRequest { serializable, ..range("k1") }).await.unwrap().into_inner();
        let header = answer.header.unwrap();
        assert_eq!((header.member_id, header.cluster_id, header.revision), (own, cluster, 2));
        assert_eq!(answer.kvs[0].value, "v");
    }
    assert_eq!(revisions(&mut stream, 1).await, [2]);

    let then = pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put("k2", "w"))) };
    let txn = pb::TxnRequest { success: vec![then], ..Default::default() };
    assert!(kv.txn(txn).await.unwrap().into_inner().succeeded);
    assert_eq!(revisions(&mut stream, 1).await, [3]);

    let mut lease = pb::lease_client::LeaseClient::new(server.channel().await);
    let granted = lease.lease_grant(pb::LeaseGrantRequest { ttl: 60, id: 7 }).await.unwrap().into_inner();
    assert_eq!((granted.id, granted.ttl), (7, 60));
    kv.put(pb::PutRequest { lease: 7, ..put("k3", "leased") }).await.unwrap();
    let asks = tokio_stream::iter([pb::LeaseKeepAliveRequest { id: 7 }]);
    let mut kept = lease.lease_keep_alive(asks).await.unwrap().into_inner();
    assert_eq!(kept.message().await.unwrap().unwrap().ttl, 60);
    lease.lease_revoke(pb::LeaseRevokeRequest { id: 7 }).await.unwrap();
    assert_eq!(revisions(&mut stream, 2).await, [4, 5]);

    let compacted = kv.compact(pb::CompactionRequest { revision: 4, physical: false }).await;
    assert_eq!(compacted.unwrap().into_inner().header.unwrap().member_id, own);
    let below = kv.range(pb::RangeRequest { revision: 3, ..range("k1") }).await.unwrap_err();
    assert_eq!(below.message(), "etcdserver: mvcc: required revision has been compacted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_belongs_to_members_is_handed_on_to_them() {
    let members = Members::start(3);
    let mut server = members.fanout("f", &[]);
    server.wait_ready();
    server.kv().await.put(put("k", "v")).await.unwrap();
    let own = id_of(&server);

    let mut cluster = pb::cluster_client::ClusterClient::new(server.channel().await);
    let listed = cluster.member_list(pb::MemberListRequest { linearizable: true }).await.unwrap().into_inner();
    assert_eq!(listed.header.unwrap().member_id, own);
    let names: Vec<&str> = listed.members.iter().map(|member| member.name.as_str()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(listed.members.iter().all(|member| member.id != own));

    let mut maintenance = pb::maintenance_client::MaintenanceClient::new(server.channel().await);
    let status = maintenance.status(pb::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.header.unwrap().member_id, own);
    assert!(listed.members.iter().any(|member| member.id == status.leader));
    assert!(!status.is_learner && status.db_size > 0 && status.raft_applied_index > 0);

    let hashed = maintenance.hash_kv(pb::HashKvRequest { revision: 0 }).await.unwrap().into_inner();
    assert_eq!((hashed.hash_revision, hashed.compact_revision), (2, -1));
    let ahead = maintenance.hash_kv(pb::HashKvRequest { revision: 99 }).await.unwrap_err();
    assert_eq!(ahead.message(), "etcdserver: mvcc: required revision is a future revision");

    let target = listed.members.iter().find(|member| member.id != status.leader).unwrap().id;
    maintenance.move_leader(pb::MoveLeaderRequest { target_id: target }).await.unwrap();
    eventually("the new leader is known", async || {
        let status = maintenance.status(pb::StatusRequest {}).await.unwrap().into_inner();
        (status.leader == target).then_some(())
    })
    .await;
    server.kv().await.put(put("k", "to the new leader")).await.unwrap();
    let alarms = pb::AlarmRequest { action: 0, member_id: 0, alarm: 0 };
    assert!(maintenance.alarm(alarms).await.unwrap().into_inner().alarms.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fanouts_form_a_tree_that_status_shows() {
    let members = Members::start(1);
    let relay_url = format!("http://127.0.0.1:{}", free_port());
    let mut relay = members.fanout("relay", &[&format!("--listen-peer-urls={relay_url}")]);
    let mut leaf = fanout(members.home.path(), "leaf", &relay_url, &[]);
    relay.wait_ready();
    leaf.wait_ready();
    // Two hops each way.
    let mut stream = watch(&leaf, "k", 0).await;
    leaf.kv().await.put(put("k", "v")).await.unwrap();
    assert_eq!(revisions(&mut stream, 1).await, [2]);
    assert_eq!(leaf.kv().await.range(range("k")).await.unwrap().into_inner().kvs[0].value, "v");
    let mut maintenance = pb::maintenance_client::MaintenanceClient::new(leaf.channel().await);
    let hashed = maintenance.hash_kv(pb::HashKvRequest { revision: 0 }).await.unwrap().into_inner();
    assert_eq!(hashed.hash_revision, 2);

    let endpoint = format!("--endpoints=127.0.0.1:{}", leaf.port);
    let output = tailwater(&["status", &endpoint, "-w", "json"]).stdout(std::process::Stdio::piped()).output().unwrap();
    assert!(output.status.success());
    let survey: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let nodes = survey["nodes"].as_array().unwrap();
    let tree: Vec<_> = nodes
        .iter()
        .map(|node| (node["node"]["name"].as_str().unwrap(), node["depth"].as_u64().unwrap(), node["answered"] == true))
        .collect();
    assert_eq!(tree, [("m0", 0, true), ("relay", 1, true), ("leaf", 2, true)]);
    assert!(nodes[0]["is_leader"] == true && nodes[2]["node"]["load"]["watchers"] == 1, "{survey}");
    assert_eq!(survey["revision"], 2);

    let output = tailwater(&["status", &endpoint]).stdout(std::process::Stdio::piped()).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.lines().nth(5).unwrap().starts_with("  └ leaf"), "{table}");
    let page = get(leaf.port, "/status");
    assert_eq!(page.status, 200);
    assert!(page.body.contains("\"name\":\"leaf\""), "{}", page.body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fanout_of_prefixes_answers_for_them_alone() {
    let members = Members::start(1);
    let mut server = members.fanout("f", &["--prefixes=/a/,/b/"]);
    server.wait_ready();
    let mut kv = server.kv().await;
    kv.put(put("/a/k", "v")).await.unwrap();
    assert_eq!(kv.range(range("/a/k")).await.unwrap().into_inner().count, 1);
    let outside = kv.range(range("/c/k")).await.unwrap_err();
    let text = "tailwater: no replica here covers the range";
    assert_eq!((outside.code(), outside.message()), (Code::Unavailable, text));
    // Writes know no scope.
    kv.put(put("/c/k", "v")).await.unwrap();
    let mut stream = try_watch(server.channel().await, "/c/", 0).await.unwrap();
    assert_eq!(end(&mut stream).await.code(), Code::Unavailable);
    // Its probes read what it holds.
    for path in ["/readyz", "/livez", "/health"] {
        let answer = get(server.port, path);
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fanout_waits_for_an_upstream_and_says_so() {
    let home = tempfile::tempdir().unwrap();
    let peer = format!("http://127.0.0.1:{}", free_port());
    let mut server = fanout(home.path(), "f", &peer, &[]);
    server.wait_for("waiting for an upstream to answer");
    let ready = get(server.port, "/readyz");
    assert_eq!((ready.status, ready.body.as_str()), (503, "[-]serving failed: tailwater: waiting for an upstream\n"));
    assert_eq!(get(server.metrics_port, "/livez").status, 200);
    assert_eq!(get(server.metrics_port, "/health").status, 503);
    assert_eq!(get(server.metrics_port, "/metrics").status, 200);
    // Calls find no connection, rather than one whose every answer is a refusal: a client with other endpoints goes there.
    let refused = server.kv().await.range(range("k")).await.unwrap_err();
    assert_ne!(refused.message(), "tailwater: waiting for an upstream");
    let health = HealthClient::new(server.channel().await).check(HealthCheckRequest::default()).await;
    assert!(health.is_err(), "{health:?}");

    let arguments = [
        "serve".to_owned(),
        "--roles=consensus".to_owned(),
        format!("--data-dir={}", home.path().join("m").display()),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
    ];
    let mut member = Server::spawn(0, home.path().join("m.log"), &arguments);
    member.wait_ready();
    server.wait_ready();
    assert_eq!(get(server.port, "/readyz").status, 200);
    let health = HealthClient::new(server.channel().await).check(HealthCheckRequest::default()).await;
    assert_eq!(health.unwrap().into_inner().status, 1);
    // A member without the role gateway says what it is.
    assert_eq!(get(member.metrics_port, "/readyz").status, 200);
    assert!(get(member.metrics_port, "/status").body.contains("\"roles\":[\"consensus\"]"));
}
