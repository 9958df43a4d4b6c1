//! Watch streams: progress, futures, and what ends them.

use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::watch_request::RequestUnion;

use crate::client::{Api, WatchStream, full, revision_of, watch_prefix};

fn progress() -> RequestUnion {
    RequestUnion::ProgressRequest(pb::WatchProgressRequest {})
}

/// A progress answer never comes before the events that it covers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_15220_and_13766_progress_only_when_synced() {
    let Some(api) = Api::start("etcd_15220", &["--watch-progress-notify-interval=100ms"]).await else { return };
    let mut last = 0;
    for round in 0..300 {
        last = api.put(&format!("p/{}", round % 10), "v").await;
    }
    let create = pb::WatchCreateRequest { progress_notify: true, ..watch_prefix("p/", 2) };
    let (mut stream, _) = WatchStream::open(api.channel.clone(), create).await;
    stream.send(progress()).await;
    let (mut seen, mut answered) = (1, false);
    let mut live = api.put("p/live", "v").await;
    while !answered || seen < live {
        let answer = stream.next().await;
        if answer.events.is_empty() {
            let revision = answer.header.unwrap().revision;
            assert!(revision <= seen, "progress {revision} when events up to {seen} have come");
            answered = revision >= last;
        }
        for event in &answer.events {
            assert_eq!(revision_of(event), seen + 1, "a gap or a duplicate");
            seen = revision_of(event);
        }
        // A request that is not answered while the watcher catches up is lost: ask again, among writes.
        if !answered {
            live = api.put("p/live", "v").await;
            stream.send(progress()).await;
        }
    }
}

/// Where replay meets what is live, nothing comes twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_17247_no_duplicate_where_replay_meets_live() {
    let Some(api) = Api::start("etcd_17247", &[]).await else { return };
    let first = api.put("d/0", "v").await;
    let rounds: i64 = if full() { 5_000 } else { 1_500 };
    let last = first + rounds;
    let mut kv = api.kv.clone();
    let writer = tokio::spawn(async move {
        for round in 0..rounds {
            let put = pb::PutRequest { key: format!("d/{}", round % 5).into(), ..Default::default() };
            kv.put(put).await.unwrap();
        }
    });
    let mut readers = Vec::new();
    // All share a connection, and this client's HTTP/2 gives one up that holds too many small unread messages: so they
    // are few, and read at once.
    while !writer.is_finished() && readers.len() < 24 {
        let (mut stream, _) = WatchStream::open(api.channel.clone(), watch_prefix("d/", first)).await;
        readers.push(tokio::spawn(async move { stream.events_to(last).await }));
        tokio::time::sleep(std::time::Duration::from_millis(if full() { 100 } else { 30 })).await;
    }
    writer.await.unwrap();
    for reader in readers {
        let events = reader.await.unwrap();
        assert!(events.iter().map(revision_of).eq(first..=last), "not each revision once: {events:?}");
    }
}

/// A watch of the future gets nothing before its revision, and progress does not speak for it.
#[tokio::test]
async fn etcd_20221_future_watch_begins_at_its_revision() {
    let Some(api) = Api::start("etcd_20221", &[]).await else { return };
    let now = api.put("f/a", "v").await;
    let (mut stream, created) = WatchStream::open(api.channel.clone(), watch_prefix("f/", now + 3)).await;
    assert_eq!(created.header.unwrap().revision, now);
    stream.send(progress()).await;
    api.put("f/a", "v").await;
    api.put("f/a", "v").await;
    assert_eq!(stream.next_soon().await, None);
    let begins = api.put("f/a", "v").await;
    let seen: Vec<i64> = stream.events_to(begins).await.iter().map(revision_of).collect();
    assert_eq!(seen, [now + 3]);
}

#[tokio::test]
async fn stream_takes_cancel_second_create_unknown_id_and_half_close() {
    let Some(api) = Api::start("watch_stream", &[]).await else { return };
    let (mut stream, first) = WatchStream::open(api.channel.clone(), watch_prefix("a", 0)).await;
    stream.send(RequestUnion::CreateRequest(watch_prefix("b", 0))).await;
    let second = stream.next().await;
    assert_eq!((first.watch_id, second.watch_id, second.created), (0, 1, true));
    stream.send(RequestUnion::CreateRequest(pb::WatchCreateRequest { watch_id: 1, ..watch_prefix("c", 0) })).await;
    let duplicate = stream.next().await;
    assert!(duplicate.created && duplicate.canceled && duplicate.watch_id == -1, "{duplicate:?}");
    assert_eq!(duplicate.cancel_reason, "mvcc: duplicate watch ID provided on the WatchStream");
    stream.send(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 77 })).await;
    assert_eq!(stream.next_soon().await, None, "an unknown id is answered");
    stream.send(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 0 })).await;
    let canceled = stream.next().await;
    assert!(canceled.canceled && !canceled.created && canceled.watch_id == 0, "{canceled:?}");
    api.put("a", "v").await;
    let revision = api.put("b", "v").await;
    let seen: Vec<i64> = stream.events_to(revision).await.iter().map(revision_of).collect();
    assert_eq!(seen, [revision], "a canceled watcher still gets events");
    stream.half_close();
    let later = api.put("b", "later").await;
    let seen: Vec<i64> = stream.events_to(later).await.iter().map(revision_of).collect();
    assert_eq!(seen, [later], "a half-closed stream goes on delivering");
}
