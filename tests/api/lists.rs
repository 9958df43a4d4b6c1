//! Lists, and watches that continue them.

use std::collections::BTreeMap;
use std::time::Duration;

use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::request_op::Request as Op;

use crate::client::{Api, WatchStream, channel, full, prefix_end, revision_of, watch_prefix};

const WRITERS: usize = 8;

/// Puts three keys with one value in one revision.
fn triple(writer: usize, round: usize) -> pb::TxnRequest {
    let put = |part: usize| {
        let key = format!("e/{}/{part}", (writer * 7 + round) % 20);
        let put = pb::PutRequest { key: key.into(), value: format!("{writer}-{round}").into(), ..Default::default() };
        pb::RequestOp { request: Some(Op::RequestPut(put)) }
    };
    pb::TxnRequest { success: (0..3).map(put).collect(), ..Default::default() }
}

/// Lists, then watches from the next revision until `last`; checks that the two make the final state, in order.
async fn read_exactly_once(url: String, mut last: tokio::sync::watch::Receiver<i64>) {
    let connection = channel(&url);
    let mut kv = pb::kv_client::KvClient::new(connection.clone());
    let range = pb::RangeRequest { key: "e/".into(), range_end: prefix_end("e/").into(), ..Default::default() };
    let list = kv.range(range.clone()).await.unwrap().into_inner();
    let revision = list.header.unwrap().revision;
    let mut state: BTreeMap<_, _> =
        list.kvs.into_iter().map(|kv| (kv.key.clone(), (kv.mod_revision, kv.version, kv.value))).collect();
    let (mut stream, _) = WatchStream::open(connection, watch_prefix("e/", revision + 1)).await;
    let last = *last.wait_for(|last| *last > 0).await.unwrap();
    let events = if last > revision { stream.events_to(last).await } else { Vec::new() };
    for event in &events {
        assert!(revision_of(event) > revision, "an event that the list had: {event:?}");
        let kv = event.kv.clone().unwrap();
        let version = state.get(&kv.key).map_or(0, |(_, version, _)| *version);
        assert_eq!(kv.version, version + 1, "a change of {:?} is missing or came twice", kv.key);
        state.insert(kv.key, (kv.mod_revision, kv.version, kv.value));
    }
    for txn in events.chunk_by(|a, b| revision_of(a) == revision_of(b)) {
        assert_eq!(txn.len(), 3, "a txn was split: {txn:?}");
    }
    let end = kv.range(pb::RangeRequest { revision: last, ..range }).await.unwrap().into_inner();
    let end: BTreeMap<_, _> =
        end.kvs.into_iter().map(|kv| (kv.key.clone(), (kv.mod_revision, kv.version, kv.value))).collect();
    assert_eq!(state, end);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn list_then_watch_sees_each_change_exactly_once() {
    let Some(api) = Api::start("list_then_watch", &[]).await else { return };
    let (runs, readers, rounds) = if full() { (20, 100, 200) } else { (1, 30, 40) };
    for _ in 0..runs {
        let (announce, last) = tokio::sync::watch::channel(0);
        let writers = (0..WRITERS).map(|writer| {
            let mut kv = api.kv.clone();
            tokio::spawn(async move {
                let mut revision = 0;
                for round in 0..rounds {
                    revision = kv.txn(triple(writer, round)).await.unwrap().into_inner().header.unwrap().revision;
                }
                revision
            })
        });
        let writers: Vec<_> = writers.collect();
        let readers = (0..readers).map(|_| tokio::spawn(read_exactly_once(api.url.clone(), last.clone())));
        let readers: Vec<_> = readers.collect();
        let mut highest = 0;
        for writer in writers {
            highest = highest.max(writer.await.unwrap());
        }
        announce.send(highest).unwrap();
        for reader in readers {
            reader.await.unwrap();
        }
    }
}

/// Many lists of everything at once must not cost many times the data.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_12342_concurrent_full_lists_take_bounded_memory() {
    let Some(api) = Api::start("etcd_12342", &[]).await else { return };
    let (lists, keys) = if full() { (100, 10_000) } else { (20, 2_000) };
    for key in 0..keys {
        api.put(&format!("l/{key:06}"), vec![b'x'; 1024]).await;
    }
    let tasks = (0..lists).map(|_| {
        let url = api.url.clone();
        tokio::spawn(async move {
            let mut kv = pb::kv_client::KvClient::new(channel(&url)).max_decoding_message_size(1 << 30);
            let range = pb::RangeRequest { key: "l/".into(), range_end: prefix_end("l/").into(), ..Default::default() };
            loop {
                match kv.range(range.clone()).await {
                    Ok(list) => return list.into_inner(),
                    // What all lists may hold is used up: the bound that this is about.
                    Err(status) if status.message() == "etcdserver: too many requests" => {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    Err(status) => panic!("{status}"),
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        let list = task.await.unwrap();
        assert_eq!((list.kvs.len(), list.count, list.more), (keys, i64::try_from(keys).unwrap(), false));
    }
    if let Some(server) = &api.server {
        // etcd builds every answer whole; the bound is what this project promises.
        let bound = 512 << 20;
        let resident = server.resident_bytes().unwrap();
        assert!(server.kind() == tailwater_tests::Kind::Etcd || resident < bound, "{resident} bytes resident");
    }
}

#[tokio::test]
async fn empty_value_is_a_put() {
    let Some(api) = Api::start("empty_value", &[]).await else { return };
    let (mut stream, _) = WatchStream::open(api.channel.clone(), watch_prefix("k", 0)).await;
    api.put("k", "").await;
    let deleted = api.delete("k").await;
    let events = stream.events_to(deleted).await;
    let seen: Vec<_> = events.iter().map(|event| (event.r#type, event.kv.as_ref().unwrap().version)).collect();
    assert_eq!(seen, [(0, 1), (1, 0)]);
}
