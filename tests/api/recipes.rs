//! The Lock and Election services.

use std::time::Duration;

use tailwater_api::etcdserverpb as pb;
use tailwater_api::v3electionpb::election_client::ElectionClient;
use tailwater_api::v3electionpb::{CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest};
use tailwater_api::v3lockpb::lock_client::LockClient;
use tailwater_api::v3lockpb::{LockRequest, UnlockRequest};
use tonic::Code;

use crate::client::{Api, PATIENCE, SILENCE};

fn lock(name: &str, lease: i64) -> LockRequest {
    LockRequest { name: name.as_bytes().to_vec(), lease }
}

fn campaign(value: &str, lease: i64) -> CampaignRequest {
    CampaignRequest { name: b"office".to_vec(), lease, value: value.as_bytes().to_vec() }
}

fn election() -> LeaderRequest {
    LeaderRequest { name: b"office".to_vec() }
}

async fn grant(api: &Api, id: i64) -> i64 {
    let grant = pb::LeaseGrantRequest { ttl: 60, id };
    api.lease.clone().lease_grant(grant).await.unwrap().into_inner().id
}

/// Those who wait get the lock in the order in which they came, and each holds a key under its lease.
#[tokio::test]
async fn a_lock_goes_from_one_to_the_next() {
    let Some(api) = Api::start("locks", &[]).await else { return };
    let mut client = LockClient::new(api.channel.clone());
    for id in [0xa, 0xb, 0xc] {
        grant(&api, id).await;
    }
    let first = client.lock(lock("door", 0xa)).await.unwrap().into_inner();
    assert_eq!(first.key, b"door/a");
    // Who holds it already has it.
    let again = client.lock(lock("door", 0xa)).await.unwrap().into_inner();
    assert_eq!(again.key, first.key);
    let mut waiting = Vec::new();
    for id in [0xb, 0xc] {
        let mut client = client.clone();
        waiting.push(tokio::spawn(async move { client.lock(lock("door", id)).await.map(tonic::Response::into_inner) }));
        while api.list("door/").await.kvs.len() < waiting.len() + 1 {}
    }
    tokio::time::sleep(SILENCE).await;
    assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
    client.unlock(UnlockRequest { key: first.key }).await.unwrap();
    let second = tokio::time::timeout(PATIENCE, waiting.remove(0)).await.unwrap().unwrap().unwrap();
    assert_eq!(second.key, b"door/b");
    tokio::time::sleep(SILENCE).await;
    assert!(!waiting[0].is_finished());
    // The end of a lease unlocks as well.
    api.lease.clone().lease_revoke(pb::LeaseRevokeRequest { id: 0xb }).await.unwrap();
    let third = tokio::time::timeout(PATIENCE, waiting.remove(0)).await.unwrap().unwrap().unwrap();
    assert_eq!(third.key, b"door/c");
    assert_eq!(third.header.unwrap().revision, api.list("door/").await.header.unwrap().revision);
}

/// Who goes away while it waits leaves no key behind; whose lease ends meanwhile is told.
#[tokio::test]
async fn who_waits_no_longer_leaves_the_queue() {
    let Some(api) = Api::start("locks that are not waited for", &[]).await else { return };
    let mut client = LockClient::new(api.channel.clone());
    for id in [0xa, 0xb, 0xc] {
        grant(&api, id).await;
    }
    client.lock(lock("door", 0xa)).await.unwrap();
    let mut impatient = tonic::Request::new(lock("door", 0xb));
    impatient.set_timeout(SILENCE);
    client.lock(impatient).await.unwrap_err();
    let begin = std::time::Instant::now();
    while api.list("door/").await.kvs.len() > 1 {
        assert!(begin.elapsed() < PATIENCE, "its key is still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let waiting = {
        let mut client = client.clone();
        tokio::spawn(async move { client.lock(lock("door", 0xc)).await })
    };
    while api.list("door/").await.kvs.len() < 2 {}
    api.lease.clone().lease_revoke(pb::LeaseRevokeRequest { id: 0xc }).await.unwrap();
    client.unlock(UnlockRequest { key: b"door/a".to_vec() }).await.unwrap();
    let refused = tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::Unknown, "mutex: session is expired"));
}

/// Without a lease the server grants one; a lease that is not there is refused.
#[tokio::test]
async fn a_lock_needs_a_lease() {
    let Some(api) = Api::start("leases of locks", &[]).await else { return };
    let mut client = LockClient::new(api.channel.clone());
    let missing = client.lock(lock("door", 99)).await.unwrap_err();
    assert_eq!((missing.code(), missing.message()), (Code::Unknown, "etcdserver: requested lease not found"));
    let held = client.lock(lock("door", 0)).await.unwrap().into_inner();
    let lease = api.list("door/").await.kvs[0].lease;
    assert_eq!(held.key, format!("door/{lease:x}").into_bytes());
    let request = pb::LeaseTimeToLiveRequest { id: lease, keys: false };
    let told = api.lease.clone().lease_time_to_live(request).await.unwrap().into_inner();
    assert_eq!(told.granted_ttl, 60);
}

/// A leader proclaims until it resigns; the next in the queue follows, and an observer sees each value.
#[tokio::test]
async fn leaders_follow_each_other_and_are_observed() {
    let Some(api) = Api::start("elections", &[]).await else { return };
    let mut client = ElectionClient::new(api.channel.clone());
    for id in [0xa, 0xb] {
        grant(&api, id).await;
    }
    let nobody = client.leader(election()).await.unwrap_err();
    assert_eq!((nobody.code(), nobody.message()), (Code::Unknown, "election: no leader"));
    let mut observed = client.observe(election()).await.unwrap().into_inner();
    let first = client.campaign(campaign("one", 0xa)).await.unwrap().into_inner().leader.unwrap();
    assert_eq!((first.name.as_slice(), first.key.as_slice(), first.lease), (&b"office"[..], &b"office/a"[..], 0xa));
    let second = {
        let mut client = client.clone();
        tokio::spawn(async move { client.campaign(campaign("two", 0xb)).await.map(tonic::Response::into_inner) })
    };
    while api.list("office/").await.kvs.len() < 2 {}
    let proclaim = |leader: &LeaderKey, value: &str| ProclaimRequest {
        leader: Some(leader.clone()),
        value: value.as_bytes().to_vec(),
    };
    client.proclaim(proclaim(&first, "one and a half")).await.unwrap();
    let leads = client.leader(election()).await.unwrap().into_inner().kv.unwrap();
    assert_eq!((&leads.key[..], &leads.value[..]), (&b"office/a"[..], &b"one and a half"[..]));
    // A campaign of who leads already is a proclamation.
    let again = client.campaign(campaign("one again", 0xa)).await.unwrap().into_inner().leader.unwrap();
    assert_eq!(again, first);
    assert!(!second.is_finished());
    client.resign(ResignRequest { leader: Some(first.clone()) }).await.unwrap();
    let second = tokio::time::timeout(PATIENCE, second).await.unwrap().unwrap().unwrap().leader.unwrap();
    assert_eq!(second.key, b"office/b");
    let late = client.proclaim(proclaim(&first, "late")).await.unwrap_err();
    assert_eq!((late.code(), late.message()), (Code::Unknown, "election: not leader"));
    // Who has nothing any more gives nothing up.
    client.resign(ResignRequest { leader: Some(first) }).await.unwrap();
    let mut values = Vec::new();
    while values.len() < 4 {
        let seen = tokio::time::timeout(PATIENCE, observed.message()).await.unwrap().unwrap().unwrap();
        values.push(String::from_utf8(seen.kv.unwrap().value.to_vec()).unwrap());
    }
    assert_eq!(values, ["one", "one and a half", "one again", "two"]);
    for missing in [
        client.proclaim(ProclaimRequest::default()).await.unwrap_err(),
        client.resign(ResignRequest::default()).await.unwrap_err(),
    ] {
        assert_eq!((missing.code(), missing.message()), (Code::Unknown, "\"leader\" field must be provided"));
    }
}

/// Who goes away before it is elected is not elected later.
#[tokio::test]
async fn who_campaigns_no_longer_leaves_the_queue() {
    let Some(api) = Api::start("campaigns that are not waited for", &[]).await else { return };
    let mut client = ElectionClient::new(api.channel.clone());
    for id in [0xa, 0xb] {
        grant(&api, id).await;
    }
    client.campaign(campaign("one", 0xa)).await.unwrap();
    let mut impatient = tonic::Request::new(campaign("two", 0xb));
    impatient.set_timeout(SILENCE);
    client.campaign(impatient).await.unwrap_err();
    let begin = std::time::Instant::now();
    while api.list("office/").await.kvs.len() > 1 {
        assert!(begin.elapsed() < PATIENCE, "its key is still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
