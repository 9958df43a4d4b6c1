//! What a member says of itself.

use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::maintenance_client::MaintenanceClient;

use crate::client::Api;

/// Status is never behind what the same client was told before, and what is applied was committed.
#[tokio::test]
async fn status_follows_writes() {
    let Some(api) = Api::start("status", &[]).await else { return };
    let mut maintenance = MaintenanceClient::new(api.channel.clone());
    for round in 0..300 {
        let revision = api.put("s", format!("{round}")).await;
        let status = maintenance.status(pb::StatusRequest {}).await.unwrap().into_inner();
        assert_eq!(status.header.unwrap().revision, revision);
        assert!(status.raft_applied_index <= status.raft_index, "{status:?}");
    }
}
