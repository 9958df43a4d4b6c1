//! The bound of what watch streams hold, whatever their clients do.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "tests")]

mod support;

use support::{Client, World, config, start, watch};
use tailwater_eventlog::KeyRange;
use tailwater_fanout::FanoutConfig;

const STREAMS: usize = 500;
const BOUND: usize = 4 << 20;
const VALUE_BYTES: usize = 2 << 10;
const EVENTS: usize = (16 << 20) / VALUE_BYTES;

/// Each stream takes a piece at some time and stalls; 16 MiB pass; then each gets everything, in order.
#[test]
fn stalled_streams_hold_no_more_than_the_bound() {
    let world = World::new();
    let bounds = FanoutConfig { watch_memory_bytes_max: BOUND, stream_chunk_bytes: 4 << 10, ..config() };
    let fanout = start(&world, FanoutConfig { window_bytes_max: 2 << 20, ..bounds });
    let mut clients: Vec<Client> = (0..STREAMS).map(|_| Client::new(&world, &fanout)).collect();
    for (i, client) in clients.iter_mut().enumerate() {
        client.create(watch(KeyRange::Key(format!("k{i}").into()), 0));
        client.poll();
    }
    let mut most = 0;
    for i in 0..EVENTS {
        world.put(&format!("k{}", i % STREAMS), &[b'v'; VALUE_BYTES]);
        if i % 64 == 0 {
            // Some are polled now and then, so that they stall with different pieces.
            clients[i / 64 % STREAMS].poll();
        }
        most = most.max(fanout.stream_bytes());
    }
    world.settle(&fanout);
    assert!(most > 0 && most <= BOUND, "streams held {most} bytes");
    let load = fanout.load(3);
    assert_eq!((load.streams, load.watchers, load.slowest.len()), (STREAMS, STREAMS, 3));
    assert!(load.lag_revisions > 0 && load.streams_behind > STREAMS / 2, "{load:?}");
    assert_eq!(load.slowest[0].backlog_revisions, load.lag_revisions);
    assert!(matches!(&load.slowest[0].range, KeyRange::Key(key) if key.starts_with(b"k")));
    // Counted soon after somebody has asked.
    let begun = std::time::Instant::now();
    let prefixes = loop {
        let prefixes = fanout.load(3).prefixes;
        if !prefixes.is_empty() {
            break prefixes;
        }
        assert!(begun.elapsed().as_secs() < 20, "watchers are not counted");
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    assert!(prefixes.len() == STREAMS.min(16) && prefixes.iter().all(|load| load.watchers == 1), "{prefixes:?}");
    for (i, client) in clients.iter_mut().enumerate() {
        let expected = (EVENTS - i).div_ceil(STREAMS);
        client.poll_until("everything came", |client| client.watchers.get(&0).is_some_and(|w| w.received == expected));
        assert!(fanout.stream_bytes() <= BOUND);
    }
    let load = fanout.load(3);
    assert_eq!((load.lag_revisions, load.watchers_behind, load.slowest), (0, 0, Vec::new()));
    drop(clients);
    fanout.stop();
}
