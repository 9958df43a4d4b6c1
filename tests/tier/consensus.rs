//! A tier whose members serve no clients: the whole API is the fanouts'.

use std::time::Duration;

use anyhow::Context;
use tailwater_api::etcdserverpb as pb;
use tailwater_tests::cluster::Fanout;
use tokio_stream::StreamExt;
use tonic::transport::Channel;

use crate::client::{Watch, kv, list, prefix, put};
use crate::load::channels;
use crate::run::Plan;

/// Leases, membership, status and the headers, asked of fanouts alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fanouts_serve_the_api_of_members_that_do_not() -> anyhow::Result<()> {
    let plan = Plan::new("fanouts_serve_the_api_of_members_that_do_not")
        .only_fanouts()
        .members(|setup| setup.tailwater_flags.push("--roles=consensus".to_owned()))
        .fanout(Fanout::following([1, 2, 0]))
        .fanout(Fanout::following([0, 1, 2]));
    let Some(tier) = plan.start().await? else { return Ok(()) };
    let fanouts = channels(&tier.urls(&tier.fanouts))?;
    let (here, there) = (&fanouts[0], &fanouts[1]);
    let mut watch = Watch::open(there, prefix("/c/"), 0).await?;
    let written = put(here, "/c/1", "one").await?;
    let events = watch.events().await?;
    anyhow::ensure!(events[0].kv.as_ref().is_some_and(|kv| kv.mod_revision == written), "the event of the put");
    let (pairs, at) = list(there, prefix("/c/")).await?;
    anyhow::ensure!(pairs.len() == 1 && at >= written, "a linearizable list after a put: {pairs:?} at {at}");
    lease(here, there, &mut watch).await?;
    describe(&tier, &fanouts).await?;
    tier.cluster.finish();
    Ok(())
}

/// A lease that is granted here, kept there and revoked here takes its key with it.
async fn lease(here: &Channel, there: &Channel, watch: &mut Watch) -> anyhow::Result<()> {
    let [mut here_leases, mut there_leases] =
        [here, there].map(|channel| pb::lease_client::LeaseClient::new(channel.clone()));
    let granted = here_leases.lease_grant(pb::LeaseGrantRequest { ttl: 60, id: 0 }).await?.into_inner();
    let leased = pb::PutRequest { key: "/c/leased".into(), value: "x".into(), lease: granted.id, ..Default::default() };
    kv(there).put(leased).await?;
    let kept = tokio_stream::iter([pb::LeaseKeepAliveRequest { id: granted.id }]).chain(tokio_stream::pending());
    let mut kept = there_leases.lease_keep_alive(kept).await?.into_inner();
    let answer = tokio::time::timeout(Duration::from_secs(10), kept.message()).await??.context("an answer")?;
    anyhow::ensure!(answer.ttl == 60, "kept alive for {} s", answer.ttl);
    here_leases.lease_revoke(pb::LeaseRevokeRequest { id: granted.id }).await?;
    let mut events = Vec::new();
    while events.len() < 2 {
        events.extend(watch.events().await?);
    }
    anyhow::ensure!(events[1].r#type == 1, "the lease takes its key along: {events:?}");
    Ok(())
}

/// What fanouts say of themselves and of the members.
async fn describe(tier: &crate::run::Tier, fanouts: &[Channel]) -> anyhow::Result<()> {
    let mut ids = Vec::new();
    for (slot, channel) in tier.fanouts.iter().zip(fanouts) {
        let mut cluster = pb::cluster_client::ClusterClient::new(channel.clone());
        let members = cluster.member_list(pb::MemberListRequest { linearizable: true }).await?.into_inner();
        anyhow::ensure!(members.members.len() == tier.members.len(), "the raft members: {members:?}");
        let list: Vec<u64> = members.members.iter().map(|member| member.id).collect();
        let status = tier.cluster.status(*slot).await.context("a fanout says how it is")?;
        let header = status.header.context("an answer has a header")?;
        anyhow::ensure!(!list.contains(&header.member_id), "a fanout has an id of its own");
        anyhow::ensure!(list.contains(&status.leader), "the leader {} is a member", status.leader);
        anyhow::ensure!(header.cluster_id == members.header.context("a header")?.cluster_id, "the cluster's id");
        anyhow::ensure!(header.raft_term > 0 && status.raft_term > 0, "the term is the members': {status:?}");
        ids.push(header.member_id);
    }
    anyhow::ensure!(ids[0] != ids[1] && !ids.contains(&0), "each fanout has an id of its own: {ids:?}");
    Ok(())
}
