//! What a process without a store does with requests that need one.

use std::process::Command;

use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::kv_client::KvClient;
use tailwater_api::etcdserverpb::maintenance_client::MaintenanceClient;
use tailwater_api::v3lockpb::LockRequest;
use tailwater_api::v3lockpb::lock_client::LockClient;
use tailwater_tests::cluster::{Cluster, Fanout, Setup};
use tailwater_tests::{Kind, left_out, program};

use crate::client::channel;

/// A fanout behind a relay hands out a member's snapshot and hash, and serves locks and JSON itself. On several threads,
/// since the links of the cluster run in this process: waiting for curl must not stop them.
#[tokio::test(flavor = "multi_thread")]
async fn a_fanout_answers_what_needs_a_store() {
    if let Err(error) = program(Kind::Tailwater) {
        return left_out("maintenance of a fanout", &format!("{error:#}"));
    }
    let mut cluster = Cluster::start(Setup::new(Kind::Tailwater, 1)).await.unwrap();
    let relay = cluster.start_fanout(Fanout::following([0]).as_relay()).await.unwrap();
    let fanout = cluster.start_fanout(Fanout::following([relay])).await.unwrap();
    let url = cluster.url(fanout).to_owned();
    let put = pb::PutRequest { key: b"k".to_vec().into(), value: b"v".to_vec().into(), ..Default::default() };
    KvClient::new(channel(&url)).put(put).await.unwrap();
    let mut maintenance = MaintenanceClient::new(channel(&url));
    let mut pieces = maintenance.snapshot(pb::SnapshotRequest {}).await.unwrap().into_inner();
    let mut bytes = 0;
    while let Some(piece) = pieces.message().await.unwrap() {
        bytes += piece.blob.len();
    }
    assert_eq!(bytes % 512, 32);
    let of_fanout = maintenance.hash(pb::HashRequest {}).await.unwrap().into_inner().hash;
    let mut member = MaintenanceClient::new(channel(cluster.url(0)));
    assert_eq!(of_fanout, member.hash(pb::HashRequest {}).await.unwrap().into_inner().hash);
    maintenance.defragment(pb::DefragmentRequest {}).await.unwrap();
    member.defragment(pb::DefragmentRequest {}).await.unwrap();
    assert_eq!(of_fanout, member.hash(pb::HashRequest {}).await.unwrap().into_inner().hash, "files were merged");
    let lock = LockRequest { name: b"door".to_vec(), lease: 0 };
    let held = LockClient::new(channel(&url)).lock(lock).await.unwrap().into_inner();
    assert!(held.key.starts_with(b"door/"));
    if Command::new("curl").arg("--version").output().is_err() {
        return left_out("JSON of a fanout", "no curl on PATH");
    }
    let range = Command::new("curl").args(["-s", "-d", r#"{"key":"aw=="}"#, &format!("{url}/v3/kv/range")]).output();
    let range = String::from_utf8(range.unwrap().stdout).unwrap();
    assert!(range.contains(r#""value":"dg==""#), "{range}");
}
