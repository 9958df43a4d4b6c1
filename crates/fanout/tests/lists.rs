//! Lists in pieces, compared with a naive reading of everything that was written, while more is written.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use support::{World, config, start};
use tailwater_eventlog::{Event, EventKind, KeyRange, Revision};
use tailwater_fanout::{Fanout, FanoutConfig, ListEnd, ListQuery, ListStream, ReadError};
use tokio::runtime::{Builder, Runtime};

const CHUNK_BYTES: usize = 4 << 10;

fn runtime() -> Runtime {
    Builder::new_current_thread().build().unwrap()
}

fn everything() -> ListQuery {
    ListQuery { range: KeyRange::all(), revision: None, limit: 0, keys_only: false, count_only: false }
}

/// The live versions at `at`, in key order.
fn live(world: &World, range: &KeyRange, at: i64) -> Vec<Arc<Event>> {
    let mut live = BTreeMap::new();
    let events = world.state.lock().unwrap().events.clone();
    for event in events.iter().filter(|e| e.revision().0 <= at && range.contains(e.key())) {
        match event.kind() {
            EventKind::Put => live.insert(event.key(), event),
            EventKind::Delete => live.remove(event.key()),
        };
    }
    live.into_values().cloned().collect()
}

/// Reads to the end; `between` is called after each piece.
fn read(
    list: &mut ListStream,
    keys_only: bool,
    mut between: impl FnMut(),
) -> Result<(Vec<Arc<Event>>, ListEnd), ReadError> {
    let mut events = Vec::new();
    runtime().block_on(async {
        loop {
            let chunk = poll_fn(|cx| list.poll_chunk(cx)).await?.expect("the last piece says so");
            assert!(chunk.end.is_some() || !chunk.events.is_empty(), "an empty piece in the middle");
            let bytes: usize = chunk.events.iter().map(|event| event.bytes().len()).sum();
            assert!(keys_only || bytes <= CHUNK_BYTES || chunk.events.len() == 1, "a piece of {bytes} bytes");
            events.extend(chunk.events);
            if let Some(end) = chunk.end {
                assert!(poll_fn(|cx| list.poll_chunk(cx)).await?.is_none());
                return Ok((events, end));
            }
            between();
        }
    })
}

fn key(rng: &mut StdRng) -> Vec<u8> {
    format!("k{:03}", rng.random_range(0..300)).into_bytes()
}

fn write(rng: &mut StdRng, world: &World) {
    let mut changes = BTreeMap::new();
    for _ in 0..rng.random_range(1..8) {
        let len = if rng.random_bool(0.02) { 6000 } else { rng.random_range(0..200) };
        changes.insert(key(rng), rng.random_bool(0.7).then(|| vec![b'v'; len]));
    }
    world.commit(&changes.into_iter().collect::<Vec<_>>());
}

fn query(rng: &mut StdRng, now: i64) -> ListQuery {
    let (a, b) = (key(rng), key(rng));
    let range = match rng.random_range(0..6) {
        0 => KeyRange::Key(a.into()),
        1 => KeyRange::From(a.into()),
        2 => KeyRange::Span(a.into(), b.into()),
        _ => KeyRange::all(),
    };
    ListQuery {
        range,
        revision: rng.random_bool(0.4).then(|| Revision(rng.random_range(0..=now + 1))),
        limit: if rng.random_bool(0.4) { rng.random_range(1..250) } else { 0 },
        keys_only: rng.random_bool(0.2),
        count_only: rng.random_bool(0.1),
    }
}

fn check(rng: &mut StdRng, world: &Arc<World>, fanout: &Fanout) -> Option<bool> {
    let query = query(rng, world.revision());
    world.settle(fanout);
    let header = fanout.snapshot().cursor.revision;
    let mut list = match fanout.list(query.clone()) {
        Ok(list) => list,
        Err(ReadError::FutureRevision) => {
            assert!(query.revision.unwrap() > header);
            return None;
        }
        Err(ReadError::Compacted) => {
            assert!(query.revision.unwrap().0 < world.state.lock().unwrap().compacted);
            return None;
        }
        Err(error) => panic!("{error}"),
    };
    let at = query.revision.filter(|at| at.0 > 0).unwrap_or(header).0;
    let answer = read(&mut list, query.keys_only, || {
        for _ in 0..rng.random_range(0..30) {
            write(rng, world);
        }
        if rng.random_bool(0.02) {
            world.compact(world.revision() - rng.random_range(0..10));
        }
        if rng.random_bool(0.5) {
            world.settle(fanout);
        }
    });
    let (events, end) = match answer {
        Ok(answer) => answer,
        Err(ReadError::Compacted) => {
            assert!(at < world.state.lock().unwrap().compacted, "{at} is not compacted");
            return Some(false);
        }
        Err(error) => panic!("{error}"),
    };
    let expected = live(world, &query.range, at);
    assert_eq!(end.count, i64::try_from(expected.len()).unwrap(), "{query:?}");
    assert_eq!(end.header_revision, header);
    let sent = match (query.count_only, query.limit) {
        (true, _) => 0,
        (false, 0) => expected.len(),
        (false, limit) => expected.len().min(limit),
    };
    assert_eq!(end.more, !query.count_only && sent < expected.len(), "{query:?}");
    // Who wants no values may get them or not.
    let shown = |event: &Arc<Event>| if query.keys_only { event.without_value() } else { Event::clone(event) };
    let [events, expected] =
        [&events[..], &expected[..sent]].map(|events| events.iter().map(shown).collect::<Vec<_>>());
    assert_eq!(events, expected, "{query:?}");
    Some(true)
}

#[test]
fn a_list_is_of_one_revision_whatever_is_written_meanwhile() {
    let (mut whole, mut compacted) = (0, 0);
    for seed in 0..8 {
        let mut rng = StdRng::seed_from_u64(seed);
        let world = World::new();
        // In half of the worlds memory reaches back a few records only, so that most is read at the source.
        let window_bytes_max = [8 << 10, 1 << 20][usize::try_from(seed % 2).unwrap()];
        // And in half of them values wait at the source until they are asked for.
        let unread_value_bytes_min = [None, Some(1)][usize::try_from(seed / 2 % 2).unwrap()];
        let stream_chunk_bytes = CHUNK_BYTES;
        let fanout =
            start(&world, FanoutConfig { window_bytes_max, stream_chunk_bytes, unread_value_bytes_min, ..config() });
        for _ in 0..100 {
            write(&mut rng, &world);
        }
        world.settle(&fanout);
        for _ in 0..60 {
            match check(&mut rng, &world, &fanout) {
                Some(true) => whole += 1,
                Some(false) => compacted += 1,
                None => {}
            }
        }
        assert_eq!(fanout.stream_bytes(), 0, "nothing is held when all lists are gone");
        fanout.stop();
    }
    assert!(whole > 100 && compacted > 3, "{whole} came whole, {compacted} met a compaction");
}

#[test]
fn stalled_lists_hold_a_piece_each_and_no_version() {
    const LISTS: usize = 200;
    const BOUND: usize = 1 << 20;
    let world = World::new();
    let bounds = FanoutConfig { watch_memory_bytes_max: BOUND, stream_chunk_bytes: 64 << 10, ..config() };
    let fanout = start(&world, FanoutConfig { window_bytes_max: 64 << 10, ..bounds });
    for i in 0..2000 {
        world.put(&format!("k{i:04}"), &[b'v'; 500]);
    }
    world.settle(&fanout);
    let expected = live(&world, &KeyRange::all(), world.revision());
    let mut lists: Vec<_> = (0..LISTS).map(|_| fanout.list(everything()).unwrap()).collect();
    let mut first = Vec::new();
    let mut most = 0;
    for list in &mut lists {
        let chunk = runtime().block_on(poll_fn(|cx| list.poll_chunk(cx))).unwrap().unwrap();
        assert!(chunk.end.is_none());
        first.push(chunk.events.len());
        most = most.max(fanout.stream_bytes());
    }
    assert!(most > 0 && most <= BOUND, "lists held {most} bytes");
    // Everything that the lists have yet to show is replaced, and the window has moved on.
    for i in 0..2000 {
        world.put(&format!("k{i:04}"), &[b'w'; 500]);
    }
    world.settle(&fanout);
    for (list, first) in lists.iter_mut().zip(first).step_by(40) {
        let mut events = Vec::new();
        let runtime = runtime();
        while let Some(chunk) = runtime.block_on(poll_fn(|cx| list.poll_chunk(cx))).unwrap() {
            assert!(fanout.stream_bytes() <= BOUND);
            events.extend(chunk.events);
        }
        assert_eq!(events, expected[first..]);
    }
    fanout.stop();
}

#[test]
fn a_list_ends_when_compaction_passes_its_revision() {
    let world = World::new();
    let fanout = start(&world, FanoutConfig { stream_chunk_bytes: CHUNK_BYTES, ..config() });
    for i in 0..100 {
        world.put(&format!("k{i:04}"), &[b'v'; 500]);
    }
    world.settle(&fanout);
    let mut list = fanout.list(everything()).unwrap();
    let first = runtime().block_on(poll_fn(|cx| list.poll_chunk(cx))).unwrap().unwrap();
    assert!(!first.events.is_empty() && first.end.is_none());
    world.put("k0000", b"new");
    world.compact(world.revision() - 1);
    world.settle(&fanout);
    let second = runtime().block_on(poll_fn(|cx| list.poll_chunk(cx))).unwrap().unwrap();
    assert!(!second.events.is_empty(), "the compacted revision itself is readable");
    world.compact(world.revision());
    world.settle(&fanout);
    let end = runtime().block_on(poll_fn(|cx| list.poll_chunk(cx)));
    assert!(matches!(end, Err(ReadError::Compacted)), "{end:?}");
    fanout.stop();
    assert!(matches!(fanout.list(everything()), Err(ReadError::Stopped)));
}
