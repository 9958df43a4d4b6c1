//! Situations in which etcd's watches once broke a promise, by the number of its issue where there is one.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "tests")]

mod support;

use std::time::Duration;

use support::{Change, Client, World, config, start, watch};
use tailwater_eventlog::{KeyRange, Revision};
use tailwater_fanout::{CreateWatch, FanoutConfig};

const MOMENT: Duration = Duration::from_millis(60);

fn with_prev(start: i64) -> CreateWatch {
    CreateWatch { prev_kv: true, ..watch(KeyRange::all(), start) }
}

#[test]
fn etcd_15220_and_13766_progress_waits_until_every_watcher_is_synced() {
    let world = World::new();
    for i in 0..300 {
        world.put(&format!("k{}", i % 10), &[b'v'; 500]);
    }
    let fanout = start(&world, FanoutConfig { window_bytes_max: 4000, ..config() });
    let mut client = Client::new(&world, &fanout);
    client.create(watch(KeyRange::all(), 2));
    client.create(watch(KeyRange::all(), 0));
    client.control.progress();
    // The client checks that the progress did not overtake an event of the first watcher.
    client.poll_until("progress is told", |client| !client.progress.is_empty());
    assert_eq!(client.watchers[&0].received, 300);
    assert_eq!(client.progress, [301]);
    fanout.stop();
}

#[test]
fn etcd_17247_replay_meets_live_while_others_write() {
    let world = World::new();
    let fanout = start(&world, FanoutConfig { window_bytes_max: 8000, ..config() });
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0..3000 {
                world.put(&format!("k{}", i % 13), format!("value {i}").as_bytes());
            }
        });
        for _ in 0..3 {
            scope.spawn(|| {
                let mut client = Client::new(&world, &fanout);
                for i in 0..12 {
                    client.create(with_prev(if i % 2 == 0 { 2 } else { world.revision() + 1 }));
                    client.poll_until("some came", |client| client.responses > i * 3);
                }
                client.poll_until("all came", |client| world.revision() == 3001 && client.is_complete());
            });
        }
    });
    fanout.stop();
}

#[test]
fn etcd_20221_a_watch_in_the_future_is_silent_until_its_start() {
    let world = World::new();
    let fanout = start(&world, FanoutConfig { progress_interval: Duration::from_millis(100), ..config() });
    let mut client = Client::new(&world, &fanout);
    client.create(CreateWatch { progress_notify: true, ..watch(KeyRange::all(), 5) });
    world.put("a", b"1");
    world.put("a", b"2");
    world.settle(&fanout);
    client.control.progress();
    client.poll_for(Duration::from_millis(250));
    assert_eq!((client.responses, client.progress.len()), (1, 0), "only the created answer");
    world.put("a", b"3");
    world.put("a", b"4");
    client.poll_until("the start is reached", Client::is_complete);
    client.poll_until("events came", |client| client.watchers[&0].received == 1);
    fanout.stop();
}

#[test]
fn a_delete_at_the_compacted_revision_reaches_a_watch_that_starts_there() {
    for window_bytes_max in [1, 1 << 20] {
        let world = World::new();
        let fanout = start(&world, FanoutConfig { window_bytes_max, ..config() });
        // Another watcher of the group keeps the event shared, encoded when its previous version was still visible.
        let mut early = Client::new(&world, &fanout);
        early.create(with_prev(0));
        early.poll();
        world.put("a", b"1");
        let deleted = world.delete("a");
        world.put("b", b"1");
        world.settle(&fanout);
        world.compact(deleted);
        world.settle(&fanout);
        let mut client = Client::new(&world, &fanout);
        client.create(with_prev(deleted));
        client.create(with_prev(deleted - 1));
        client.poll_until("all came", |client| client.watchers.len() == 2 && client.is_complete());
        assert_eq!((client.watchers[&0].received, client.watchers[&0].prevs), (2, 0));
        assert!(client.watchers[&1].compacted);
        fanout.stop();
    }
}

#[test]
fn etcd_18089_a_slow_watcher_that_is_compacted_away_is_told_so() {
    let world = World::new();
    let fanout = start(&world, FanoutConfig { window_bytes_max: 1, watch_memory_bytes_max: 1, ..config() });
    let mut client = Client::new(&world, &fanout);
    client.create(watch(KeyRange::all(), 0));
    client.poll();
    for i in 0..200 {
        world.put(&format!("k{i}"), &[b'v'; 300]);
    }
    world.settle(&fanout);
    world.compact(150);
    world.settle(&fanout);
    client.poll_until("the watcher has ended", |client| client.watchers[&0].compacted);
    assert_eq!(client.answers.last().unwrap().compact_revision, 150);
    fanout.stop();
}

#[test]
fn the_id_of_a_compacted_watcher_stays_in_use_until_it_is_cancelled() {
    let world = World::new();
    for i in 0..5 {
        world.put("a", &[i]);
    }
    world.compact(4);
    let fanout = start(&world, config());
    let mut client = Client::new(&world, &fanout);
    client.create(CreateWatch { watch_id: 1, ..watch(KeyRange::all(), 2) });
    client.create(CreateWatch { watch_id: 1, ..watch(KeyRange::all(), 0) });
    client.create(watch(KeyRange::all(), 0));
    client.create(watch(KeyRange::all(), 0));
    client.control.cancel(1);
    client.poll_until("all is answered", |client| client.answers.len() == 6);
    let seen: Vec<_> = client.answers.iter().map(|a| (a.watch_id, a.created, a.canceled, a.compact_revision)).collect();
    let expected = [
        (1, true, false, 0),
        (1, false, true, 4),
        (-1, true, true, 0),
        (0, true, false, 0),
        (2, true, false, 0),
        (1, false, true, 0),
    ];
    assert_eq!(seen, expected);
    assert_eq!(client.answers[2].cancel_reason, "mvcc: duplicate watch ID provided on the WatchStream");
    client.create(CreateWatch { watch_id: 1, ..watch(KeyRange::all(), 0) });
    client.poll_until("the id is free again", |client| client.answers.len() == 7);
    assert!(!client.answers[6].canceled);
    fanout.stop();
}

#[test]
fn periodic_progress_is_left_out_when_events_were_sent() {
    let world = World::new();
    let fanout = start(&world, FanoutConfig { progress_interval: Duration::from_millis(300), ..config() });
    let mut client = Client::new(&world, &fanout);
    client.create(CreateWatch { progress_notify: true, ..watch(KeyRange::all(), 0) });
    for i in 0..12 {
        world.put("a", &[i]);
        client.poll_for(MOMENT);
    }
    assert_eq!((client.watchers[&0].received, client.watchers[&0].progress), (12, None));
    client.poll_until("it was silent", |client| client.watchers[&0].progress == Some(13));
    fanout.stop();
}

#[test]
fn a_source_that_jumps_ends_only_the_watchers_that_are_compacted_away() {
    let world = World::new();
    world.put("a", b"1");
    let fanout = start(&world, config());
    let mut behind = Client::new(&world, &fanout);
    let mut ahead = Client::new(&world, &fanout);
    behind.create(watch(KeyRange::all(), 0));
    ahead.create(watch(KeyRange::all(), 6));
    behind.poll_until("it watches", |client| !client.watchers.is_empty());
    ahead.poll_until("it watches", |client| !client.watchers.is_empty());
    // Revisions 3 to 8 never were in this source's tail, and of those only 6 and later are whole.
    let records: Vec<Vec<Change>> =
        (3..9).map(|revision| vec![(format!("key{revision}").into_bytes(), Some(b"v".to_vec()))]).collect();
    world.jump(&records, 6);
    world.settle(&fanout);
    behind.poll_until("it is told", |client| client.answers.iter().any(|answer| answer.compact_revision == 6));
    ahead.poll_until("it has caught up", |client| client.watchers[&0].received == 3);
    // Both ways of reading go on.
    world.put("after", b"2");
    world.settle(&fanout);
    ahead.poll_until("it follows", |client| client.watchers[&0].received == 4);
    assert_eq!(fanout.snapshot().compacted, Revision(6));
    fanout.stop();
}
