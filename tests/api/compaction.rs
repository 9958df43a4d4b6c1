//! Compaction against deletes, watches and leases.

use std::time::Duration;

use tailwater_api::etcdserverpb as pb;

use crate::client::{Api, WatchStream, full, revision_of, watch_prefix};

/// A delete at the compacted revision is still delivered to a watch from there, and the key stays deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_18089_19179_18667_compaction_racing_a_delete() {
    let Some(api) = Api::start("etcd_18089", &[]).await else { return };
    for round in 0..if full() { 500 } else { 60 } {
        let key = format!("r/{}", round % 3);
        api.put(&key, "v").await;
        let (mut live, _) = WatchStream::open(api.channel.clone(), watch_prefix("r/", 0)).await;
        let deleted = api.delete(&key).await;
        let other = format!("r/other{round}");
        let (after, ()) = tokio::join!(api.put(&other, "v"), api.compact(deleted));
        let (mut from, _) = WatchStream::open(api.channel.clone(), watch_prefix("r/", deleted)).await;
        let expected = [(deleted, 1), (after, 0)];
        for (name, stream) in [("live", &mut live), ("from the compacted revision", &mut from)] {
            let events = stream.events_to(after).await;
            let seen: Vec<_> = events.iter().map(|event| (revision_of(event), event.r#type)).collect();
            assert_eq!(seen, expected, "the watch {name} of round {round}");
        }
        assert!(api.list(&key).await.kvs.iter().all(|kv| kv.key != key), "a deleted key is back");
        let below = watch_prefix("r/", deleted - 1);
        let (mut below, _) = WatchStream::open(api.channel.clone(), below).await;
        let canceled = below.next().await;
        assert!(canceled.canceled && canceled.compact_revision == deleted, "{canceled:?}");
    }
}

/// Keys of an expired lease are deleted in order and in one revision, also when compactions run beside it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lease_expiry_deletes_in_order_around_compaction() {
    let Some(api) = Api::start("lease_expiry", &[]).await else { return };
    let grant = pb::LeaseGrantRequest { ttl: 2, id: 0 };
    let lease = api.lease.clone().lease_grant(grant).await.unwrap().into_inner();
    assert_eq!(lease.ttl, 2);
    for key in ["t/c", "t/a", "t/b"] {
        api.put_leased(key, "v", lease.id).await;
    }
    let (mut stream, created) = WatchStream::open(api.channel.clone(), watch_prefix("t/", 0)).await;
    let begin = created.header.unwrap().revision;
    let expiry = async {
        let mut events = Vec::new();
        while events.len() < 3 {
            events.extend(stream.next().await.events);
        }
        events
    };
    let writes = async {
        for round in 0..30 {
            let revision = api.put("u", format!("{round}")).await;
            api.compact(revision).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let (events, ()) = tokio::join!(expiry, writes);
    let seen: Vec<_> = events.iter().map(|event| (event.r#type, event.kv.as_ref().unwrap().key.clone())).collect();
    assert_eq!(seen, [(1, "t/a".into()), (1, "t/b".into()), (1, "t/c".into())]);
    assert!(events.iter().all(|event| revision_of(event) == revision_of(&events[0]) && revision_of(event) > begin));
    assert_eq!(api.list("t/").await.count, 0);
}
