//! One connection shared by watches and other calls.

use std::time::{Duration, Instant};

use crate::client::{Api, WatchStream, full, watch_prefix};

/// Watch streams that deliver much must not keep other calls of their connection waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_15402_large_watch_streams_leave_room_for_unary_calls() {
    let Some(api) = Api::start("etcd_15402", &[]).await else { return };
    let (streams, events) = if full() { (50, 2_000) } else { (10, 200) };
    let first = api.put("w/0", vec![b'x'; 16 << 10]).await;
    let mut last = first;
    for event in 1..events {
        last = api.put(&format!("w/{}", event % 10), vec![b'x'; 16 << 10]).await;
    }
    let mut readers = Vec::new();
    for _ in 0..streams {
        let (mut stream, _) = WatchStream::open(api.channel.clone(), watch_prefix("w/", first)).await;
        readers.push(tokio::spawn(async move { stream.events_to(last).await.len() }));
    }
    let mut slowest = Duration::ZERO;
    while readers.iter().any(|reader| !reader.is_finished()) {
        let begin = Instant::now();
        api.list("nothing").await;
        slowest = slowest.max(begin.elapsed());
    }
    for reader in readers {
        assert_eq!(reader.await.unwrap(), events);
    }
    assert!(slowest < Duration::from_secs(3), "a read took {slowest:?} beside the watches");
}
