//! Random range reads, compared with a naive reading of everything that was written, while frames are applied.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use support::{World, config, start};
use tailwater_eventlog::{Event, EventKind, KeyRange, Revision};
use tailwater_fanout::{Fanout, FanoutConfig, RangeAnswer, RangeQuery, ReadError, SortBy};

const KEYS: u32 = 40;

fn key(rng: &mut StdRng) -> Vec<u8> {
    format!("k{:02}", rng.random_range(0..KEYS)).into_bytes()
}

fn write(rng: &mut StdRng, world: &World) {
    let mut changes = BTreeMap::new();
    for _ in 0..rng.random_range(1..4) {
        changes.insert(key(rng), rng.random_bool(0.6).then(|| vec![rng.random_range(b'a'..=b'z'); 20]));
    }
    world.commit(&changes.into_iter().collect::<Vec<_>>());
}

fn query(rng: &mut StdRng, now: i64) -> RangeQuery {
    let (a, b) = (key(rng), key(rng));
    let range = match rng.random_range(0..4) {
        0 => KeyRange::all(),
        1 => KeyRange::Key(a.into()),
        2 => KeyRange::From(a.into()),
        _ => KeyRange::Span(a.into(), b.into()),
    };
    let by = [SortBy::Key, SortBy::Version, SortBy::Create, SortBy::Mod, SortBy::Value][rng.random_range(0..5)];
    let mut bound = || if rng.random_bool(0.1) { rng.random_range(1..=now) } else { 0 };
    let revision_bounds = (bound(), bound(), bound(), bound());
    RangeQuery {
        range,
        revision: rng.random_bool(0.7).then(|| Revision(rng.random_range(0..=now + 2))),
        limit: if rng.random_bool(0.5) { rng.random_range(1..20) } else { 0 },
        sort: rng.random_bool(0.5).then_some((by, rng.random())),
        count_only: rng.random_bool(0.2),
        keys_only: rng.random_bool(0.2),
        revision_bounds,
    }
}

/// The live versions at `at`, in key order.
fn live(events: &[Arc<Event>], range: &KeyRange, at: i64) -> Vec<Arc<Event>> {
    let mut live = BTreeMap::new();
    for event in events.iter().filter(|e| e.revision().0 <= at && range.contains(e.key())) {
        match event.kind() {
            EventKind::Put => live.insert(event.key(), event.clone()),
            EventKind::Delete => live.remove(event.key()),
        };
    }
    live.into_values().collect()
}

fn rank(event: &Event, by: SortBy) -> (i64, Vec<u8>) {
    let envelope = event.envelope();
    match by {
        SortBy::Key => (0, event.key().to_vec()),
        SortBy::Version => (envelope.version, vec![]),
        SortBy::Create => (envelope.create_revision.0, vec![]),
        SortBy::Mod => (envelope.revision.0, vec![]),
        SortBy::Value => (0, event.value().to_vec()),
    }
}

fn check(events: &[Arc<Event>], query: &RangeQuery, answer: &RangeAnswer) {
    let at = query.revision.filter(|r| r.0 > 0).map_or(answer.header_revision.0, |r| r.0);
    assert!(at <= answer.header_revision.0);
    let mut expected = live(events, &query.range, at);
    assert_eq!(answer.count, i64::try_from(expected.len()).unwrap(), "count of {query:?}");
    if query.count_only {
        assert!(answer.events.is_empty() && !answer.more);
        return;
    }
    let (min_mod, max_mod, min_create, max_create) = query.revision_bounds;
    expected.retain(|e| {
        let envelope = e.envelope();
        let (m, c) = (envelope.revision.0, envelope.create_revision.0);
        (min_mod == 0 || m >= min_mod)
            && (max_mod == 0 || m <= max_mod)
            && (min_create == 0 || c >= min_create)
            && (max_create == 0 || c <= max_create)
    });
    let (by, descending) = query.sort.unwrap_or((SortBy::Key, false));
    expected.sort_by_key(|e| rank(e, by));
    if descending {
        expected.reverse();
    }
    let more = query.limit > 0 && expected.len() > query.limit;
    assert_eq!(answer.more, more, "more of {query:?}");
    if more {
        expected.truncate(query.limit);
    }
    // Ties have no defined order, so ranks are compared; and each answer must be a live version.
    let ranks = |events: &[Arc<Event>]| events.iter().map(|e| rank(e, by)).collect::<Vec<_>>();
    assert_eq!(ranks(&answer.events), ranks(&expected), "{query:?}");
    // Who wants no values may get them or not.
    let shown = |event: &Arc<Event>| if query.keys_only { event.without_value() } else { Event::clone(event) };
    let all: Vec<_> = live(events, &query.range, at).iter().map(shown).collect();
    let mut seen: Vec<_> = answer.events.iter().map(|e| (e.revision(), e.sub())).collect();
    assert!(answer.events.iter().all(|e| all.contains(&shown(e))), "{query:?}");
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), answer.events.len(), "a key came twice in {query:?}");
}

fn read(rng: &mut StdRng, world: &World, fanout: &Fanout) -> bool {
    let query = query(rng, world.revision());
    let before = (fanout.snapshot().cursor.revision.0, fanout.snapshot().compacted.0);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let answer = runtime.block_on(fanout.range(query.clone()));
    let (events, compacted) = {
        let state = world.state.lock().unwrap();
        (state.events.clone(), state.compacted)
    };
    let at = query.revision.map_or(0, |r| r.0);
    match answer {
        Ok(answer) => {
            assert!(answer.header_revision.0 >= before.0, "a read goes back");
            assert!(at == 0 || at >= before.1, "a compacted revision was read");
            check(&events, &query, &answer);
            return true;
        }
        Err(ReadError::FutureRevision) => assert!(at > before.0, "{at} is not in the future of {}", before.0),
        Err(ReadError::Compacted) => assert!(at > 0 && at < compacted, "{at} is not compacted at {compacted}"),
        Err(error) => panic!("{error}"),
    }
    false
}

fn run(seed: u64, window_bytes_max: usize) {
    eprintln!("SEED={seed} window={window_bytes_max}");
    let rng = &mut StdRng::seed_from_u64(seed);
    let world = World::new();
    for _ in 0..50 {
        write(rng, &world);
    }
    let unread_value_bytes_min = [None, Some(1)][usize::try_from(seed % 2).unwrap()];
    let fanout = start(&world, FanoutConfig { window_bytes_max, unread_value_bytes_min, ..config() });
    let stopped = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let rng = &mut StdRng::seed_from_u64(seed + 1_000_000);
            for i in 0..400 {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                write(rng, &world);
                if i % 50 == 49 {
                    let now = world.revision();
                    world.compact(rng.random_range(now / 2..=now - 20));
                }
                std::thread::sleep(std::time::Duration::from_micros(100));
            }
        });
        let answered = (0..150).filter(|_| read(rng, &world, &fanout)).count();
        stopped.store(true, Ordering::Relaxed);
        assert!(answered > 30, "too few reads were answered: {answered}");
    });
    world.settle(&fanout);
    for _ in 0..100 {
        read(rng, &world, &fanout);
    }
    fanout.stop();
}

#[test]
fn reads_within_the_window_are_those_of_a_naive_reader() {
    (0..10).for_each(|seed| run(seed, 1 << 20));
}

#[test]
fn reads_below_the_window_are_those_of_a_naive_reader() {
    (0..10).for_each(|seed| run(seed, 4000));
}

#[test]
fn reads_that_always_need_the_source_are_those_of_a_naive_reader() {
    (0..5).for_each(|seed| run(seed, 1));
}

fn page_of(range: KeyRange, revision: Option<Revision>, limit: usize) -> RangeQuery {
    let (sort, count_only, keys_only, revision_bounds) = (None, false, false, (0, 0, 0, 0));
    RangeQuery { range, revision, limit, sort, count_only, keys_only, revision_bounds }
}

#[test]
fn pages_of_an_older_revision_are_counted_once() {
    let world = World::new();
    let key = |i: usize| format!("k{i:03}");
    for i in 0..1000 {
        world.put(&key(i), b"value");
    }
    // Nothing older than the newest is in memory.
    let fanout = start(&world, FanoutConfig { window_bytes_max: 1, ..config() });
    world.settle(&fanout);
    let at = Revision(world.revision());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for page in 0..10 {
        let range = KeyRange::Span(if page == 0 { "k".into() } else { key(page * 100 - 1) + "\0" }.into(), "l".into());
        let revision = (page > 0).then_some(at);
        let answer = runtime.block_on(fanout.range(page_of(range, revision, 100))).unwrap();
        let left = 1000 - page * 100;
        assert_eq!((answer.events.len(), answer.more), (100, page < 9), "page {page}");
        assert_eq!(answer.count, i64::try_from(left).unwrap(), "page {page}");
        // Later than the list, so that no page may see it.
        for i in 0..20 {
            world.delete(&key(page * 20 + i));
        }
        world.put(&format!("k999{page}"), b"later");
        world.settle(&fanout);
    }
    let [read, counted] = [0, 1].map(|at: usize| world.states[at].load(Ordering::SeqCst));
    assert_eq!((read, counted), (9, 0), "pages read at the source, and those counted there");
    fanout.stop();
}

#[test]
fn a_page_whose_values_are_not_in_memory_is_counted_there() {
    let world = World::new();
    for i in 0..100 {
        world.put(&format!("k{i:02}"), b"value");
    }
    let loaded = world.revision();
    let fanout = start(&world, FanoutConfig { unread_value_bytes_min: Some(1), ..config() });
    world.put("k99", b"after");
    world.delete("k98");
    world.settle(&fanout);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for (start, revision, count) in [("k", None, 99), ("k20", None, 79), ("k40", Some(Revision(loaded)), 60)] {
        let range = KeyRange::From(start.into());
        let answer = runtime.block_on(fanout.range(page_of(range, revision, 10))).unwrap();
        assert_eq!((answer.events.len(), answer.more, answer.count), (10, true, count), "{start}");
        assert!(answer.events.iter().all(|event| event.value() == &b"value"[..]), "{start}");
    }
    let [read, counted] = [0, 1].map(|at: usize| world.states[at].load(Ordering::SeqCst));
    assert_eq!((read, counted), (3, 0), "pages read at the source, and those counted there");
    fanout.stop();
}
