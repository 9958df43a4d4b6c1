#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::log::tests::Writer;
use crate::{EventKind, FoldProgress, HistoryId, Position, TailConfig};

/// Where a reader came, and what it got on the way.
type Followed = (Cursor, Vec<Arc<Event>>, Vec<Fact>);

/// A writer whose records also go to a tail of `hot_bytes_max`, one frame each.
struct World {
    writer: Writer,
    source: LocalSource,
    published: usize,
    _dir: tempfile::TempDir,
}

impl World {
    fn new(hot_bytes_max: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let writer = Writer::open(dir.path());
        let start = Cursor { history: HistoryId(7), revision: Revision(1), position: Position(0) };
        let tail = Tail::new(TailConfig { hot_bytes_max }, start, vec![]);
        let source = LocalSource::new(writer.log.clone(), tail);
        Self { writer, source, published: 0, _dir: dir }
    }

    fn record(&mut self, changes: &[(&str, Option<&str>)]) {
        self.writer.record(changes, None);
        self.publish(vec![]);
    }

    fn compact(&mut self, compacted: i64) {
        self.writer.record(&[], Some(compacted));
        self.publish(vec![Fact::Compacted(Revision(compacted))]);
        while self.writer.log.fold_step(3).unwrap() == FoldProgress::More {}
    }

    /// A position without events or facts, which pushes what came before out of memory.
    fn publish_nothing(&mut self) {
        self.writer.record(&[], None);
        self.publish(vec![]);
    }

    fn publish(&mut self, facts: Vec<Fact>) {
        let state = self.writer.log.state();
        let events = self.writer.events[self.published..].to_vec();
        self.published = self.writer.events.len();
        let (position, revision) = (state.applied, state.revision);
        self.source.tail.publish(vec![Arc::new(Frame { position, revision, events, facts, ..Frame::default() })]);
    }

    /// As a fanout does: follows until nothing comes, and checks each frame on the way.
    fn follow(&self, mut cursor: Cursor, bytes_max: usize) -> Result<Followed, TailError> {
        let (mut events, mut facts) = (Vec::new(), Vec::new());
        while cursor.position < self.source.tail.end().position {
            let frames = self.source.follow(cursor, bytes_max, Duration::ZERO)?;
            assert!(!frames.is_empty(), "there is more up to the end");
            for frame in frames {
                assert!(frame.position >= cursor.position && frame.revision >= cursor.revision, "a frame goes back");
                assert!((frame.position, frame.revision) > (cursor.position, cursor.revision), "no progress");
                assert!(frame.events.last().is_none_or(|last| last.revision() <= frame.revision));
                cursor = Cursor { position: frame.position, revision: frame.revision, ..cursor };
                events.extend(frame.events.iter().cloned());
                facts.extend(frame.facts.iter().cloned());
            }
        }
        Ok((cursor, events, facts))
    }
}

fn start() -> Cursor {
    Cursor { history: HistoryId(7), revision: Revision(1), position: Position(0) }
}

fn point(revision: i64, sub: u32) -> HistoryPoint {
    HistoryPoint { revision: Revision(revision), sub }
}

fn key_range(key: &'static str) -> KeyRange {
    KeyRange::Key(Bytes::from_static(key.as_bytes()))
}

#[test]
fn reader_behind_memory_gets_the_rest_from_the_log_then_from_memory() {
    let mut world = World::new(2000);
    for number in 0..200 {
        let key = format!("key/{}", number % 9);
        world.record(&[(&key, Some("value")), ("other", Some("value"))]);
    }
    assert!(matches!(world.source.tail.read(start(), 1), Err(TailError::Behind(_))));
    for bytes_max in [1, 700, 1 << 20] {
        let (end, events, _) = world.follow(start(), bytes_max).unwrap();
        assert_eq!(end, world.source.tail.end());
        assert_eq!(events, world.writer.events, "every event once, in order, at {bytes_max} bytes");
    }
}

#[test]
fn frames_from_the_log_end_with_whole_records() {
    let mut world = World::new(1);
    for _ in 0..20 {
        world.record(&[("a", Some("1")), ("b", Some("2")), ("c", Some("3"))]);
    }
    let frames = world.source.follow(start(), 1, Duration::ZERO).unwrap();
    assert_eq!(frames.len(), 1);
    assert_eq!((frames[0].events.len(), frames[0].revision, frames[0].position), (3, Revision(2), Position(0)));
}

#[test]
fn facts_missed_in_memory_come_with_the_last_frame() {
    let mut world = World::new(1);
    for _ in 0..20 {
        world.record(&[("a", Some("1"))]);
    }
    world.compact(5);
    world.record(&[("a", Some("2"))]);
    let cursor = Cursor { revision: Revision(10), position: Position(9), ..start() };
    let (end, events, facts) = world.follow(cursor, 1).unwrap();
    assert_eq!((end, events.len()), (world.source.tail.end(), 12));
    assert_eq!(facts, [Fact::Compacted(Revision(5))]);
    // Only facts are new to this reader: its revision is the newest already.
    world.compact(8);
    world.publish_nothing();
    let cursor = Cursor { revision: Revision(22), position: Position(22), ..start() };
    assert_eq!(world.follow(cursor, 1).unwrap().2, [Fact::Compacted(Revision(8))]);
}

#[test]
fn reader_below_the_fold_point_has_to_transfer() {
    let mut world = World::new(1);
    for _ in 0..20 {
        world.record(&[("a", Some("1"))]);
    }
    world.compact(10);
    let at = |revision: i64, position| Cursor { revision: Revision(revision), position: Position(position), ..start() };
    assert_eq!(world.source.follow(at(8, 7), 1, Duration::ZERO).unwrap_err(), TailError::Behind(at(8, 7)));
    assert!(world.follow(at(9, 8), 1).is_ok(), "the compacted revision itself is whole");
}

#[test]
fn transfer_then_tail_gives_the_state() {
    let mut world = World::new(1 << 20);
    for number in 0..100 {
        let key = format!("key/{:02}", number * 7 % 40);
        world.record(&[(&key, (number % 4 != 0).then_some("value"))]);
    }
    let (cursor, facts) = world.source.transfer_begin().unwrap();
    assert_eq!((cursor.revision, facts.len()), (Revision(101), 0));
    let mut store = std::collections::BTreeMap::new();
    let mut after = None;
    loop {
        let chunk = world.source.transfer(&KeyRange::all(), after.as_ref(), 1).unwrap();
        for event in chunk.events {
            store.insert(Bytes::copy_from_slice(event.key()), event);
        }
        // Writes and a compaction go on between two chunks; also of keys that were sent already.
        world.record(&[("key/00", Some("new")), ("key/39", None), ("key/20", Some("new"))]);
        world.compact(world.writer.log.state().revision.0);
        after = chunk.resume_after;
        if after.is_none() {
            break;
        }
    }
    for event in world.follow(cursor, 1 << 20).unwrap().1 {
        let key = Bytes::copy_from_slice(event.key());
        let newer = store.get(&key).is_some_and(|held| held.revision() > event.revision());
        match event.kind() {
            _ if newer => {}
            EventKind::Put => drop(store.insert(key, event)),
            EventKind::Delete => drop(store.remove(&key)),
        }
    }
    let live = world.writer.log.live(&KeyRange::all(), None, usize::MAX, None).unwrap().events;
    assert_eq!(store.into_values().collect::<Vec<_>>(), live);
}

#[test]
fn history_is_filtered_and_continues_inside_a_record() {
    let mut world = World::new(1);
    world.record(&[("a", Some("1")), ("b", Some("1")), ("c", Some("1"))]);
    world.record(&[("a", Some("2")), ("b", None)]);
    let source = &world.source;
    let all = source.read(&[], point(2, 0), Revision(3), false, usize::MAX).unwrap();
    assert_eq!((all.events.len(), all.next, all.compacted), (5, None, Revision(0)));
    let first = source.read(&[], point(2, 0), Revision(3), false, 1).unwrap();
    assert_eq!((first.events.len(), first.next), (1, Some(point(2, 1))));
    let rest = source.read(&[], first.next.unwrap(), Revision(3), false, usize::MAX).unwrap();
    assert_eq!(rest.events.len(), 4);
    let some = source.read(&[key_range("a"), key_range("c")], point(2, 0), Revision(2), false, usize::MAX).unwrap();
    assert_eq!(some.events.iter().map(|found| found.event.key()).collect::<Vec<_>>(), [b"a", b"c"]);
}

/// Checked on etcd 3.6: keys a@2, b@3, b@4, a@5, a@6, then compacted at 4 and at 5.
#[test]
fn prev_is_absent_at_the_compacted_revision_and_may_be_older_than_it_above() {
    let mut world = World::new(1);
    for (key, value) in [("a", "1"), ("b", "2"), ("b", "3"), ("a", "4"), ("a", "5")] {
        world.record(&[(key, Some(value))]);
    }
    world.compact(4);
    let prevs = |world: &World, key, from| {
        let chunk = world.source.read(&[key_range(key)], point(from, 0), Revision(6), true, usize::MAX).unwrap();
        let values = chunk.events.iter().map(|found| found.prev.as_ref().map(|prev| prev.value().to_vec()));
        values.collect::<Vec<_>>()
    };
    assert_eq!(prevs(&world, "a", 4), [Some(b"1".to_vec()), Some(b"4".to_vec())]);
    assert_eq!(prevs(&world, "b", 4), [None]);
    world.compact(5);
    assert_eq!(prevs(&world, "a", 5), [None, Some(b"4".to_vec())]);
}

#[test]
fn history_below_the_compacted_revision_is_refused_with_it() {
    let mut world = World::new(1);
    for _ in 0..10 {
        world.record(&[("a", Some("1"))]);
    }
    world.compact(6);
    let error = world.source.read(&[], point(5, 0), Revision(9), false, 100).unwrap_err();
    assert!(matches!(error, HistoryError::Compacted(Revision(6))), "{error}");
    assert_eq!(world.source.read(&[], point(6, 0), Revision(11), false, 9999).unwrap().events.len(), 6);
}

/// What the index finds for few keys is what a scan of everything finds, and it is found without one.
#[test]
fn history_of_a_few_keys_is_that_of_a_scan() {
    let mut world = World::new(1);
    for number in 0..3000i64 {
        let (busy, rare) = (format!("busy/{:03}", number % 200), format!("rare/{}", number * 7 % 4));
        let value = "v".repeat(usize::try_from(number % 97).unwrap());
        match number % 60 {
            0 => world.record(&[(&rare, Some(&value)), (&busy, Some(&value))]),
            30 => world.record(&[(&busy, Some(&value)), (&rare, (number % 120 > 60).then_some(&*value))]),
            _ => world.record(&[(&busy, Some(&value))]),
        }
    }
    world.compact(400);
    let few = [KeyRange::Span("rare/".into(), "rare/2".into()), KeyRange::Key("rare/1".into())];
    let all = |from| world.source.read(&[], from, Revision(2900), true, usize::MAX).unwrap().events;
    for from in [point(401, 0), point(1232, 1), point(1233, 0)] {
        let log = world.writer.log.current();
        assert!(log.places(&few, from, Revision(2900)).is_some(), "few keys are looked up");
        assert!(log.places(&[KeyRange::Span("busy/".into(), "z".into())], from, Revision(2900)).is_none());
        let is_asked = |found: &HistoryEvent| few.iter().any(|range| range.contains(found.event.key()));
        let expected: Vec<_> = all(from).into_iter().filter(is_asked).collect();
        let (mut found, mut next, mut reads) = (Vec::new(), Some(from), 0);
        while let Some(from) = next {
            let chunk = world.source.read(&few, from, Revision(2900), true, 200).unwrap();
            found.extend(chunk.events);
            next = chunk.next;
            reads += 1;
        }
        assert!(reads > 5, "in pieces");
        assert_eq!(found, expected, "from {from:?}");
    }
    assert!(
        world.writer.log.current().places(&few, point(400, 0), Revision(2900)).is_none(),
        "at the compacted revision"
    );
    let at_once = world.source.read(&few, point(400, 0), Revision(9999), false, usize::MAX).unwrap();
    assert!(
        !at_once.events.is_empty() && at_once.next.is_none(),
        "at the compacted revision, which the index may not know"
    );
}

#[test]
fn an_older_state_is_read_in_pieces_and_counted() {
    let mut world = World::new(1);
    for number in 0..200 {
        let (key, other) = (format!("key/{:02}", number * 7 % 50), format!("key/{:02}", number * 11 % 50));
        let value = "v".repeat(if number % 40 == 0 { 5000 } else { 10 + number });
        world.record(&[(&key, (number % 5 != 0).then_some(&*value))]);
        world.record(&[(&other, Some(&*value))]);
    }
    world.compact(150);
    let range = KeyRange::Span("key/05".into(), "key/45".into());
    for at in [150, 151, 222, 300, 401].map(Revision) {
        let index = &world.writer.index;
        let expected = index.range(&range, at, 0);
        let mut query = StateQuery { range: range.clone(), after: None, at, keys_max: 9, bytes_max: 2000, count: true };
        let (mut found, mut pieces) = (Vec::new(), 0);
        loop {
            let chunk = world.source.state_at(&query).unwrap();
            found.extend(chunk.events.iter().map(|event| (event.key().to_vec(), event.revision())));
            pieces += 1;
            assert_eq!(found.len() + chunk.rest, expected.len(), "at {at}");
            query.after = chunk.resume_after;
            if query.after.is_none() {
                break;
            }
        }
        let expected: Vec<_> = expected.iter().map(|meta| (meta.key.to_vec(), meta.mod_revision)).collect();
        assert_eq!(found, expected, "at {at}");
        assert!(pieces > 3);
    }
    let count = StateQuery { range, after: None, at: Revision(149), keys_max: 0, bytes_max: 0, count: true };
    assert!(matches!(world.source.state_at(&count), Err(HistoryError::Compacted(Revision(150)))));
    let counted = world.source.state_at(&StateQuery { at: Revision(160), ..count }).unwrap();
    assert!(counted.events.is_empty() && counted.rest > 0);
}

/// Readers that transfer and follow at any moment of writes, compactions and folds end with the writer's state.
#[test]
fn transfers_race_writes_compaction_and_folding() {
    let mut world = World::new(4000);
    let done = AtomicBool::new(false);
    let source = world.source.clone();
    let readers: Vec<_> = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2).map(|_| scope.spawn(|| read_until(&source, &done))).collect();
        for number in 0..2500i64 {
            let key = format!("key/{:02}", number * 17 % 90);
            let other = format!("key/{:02}", number * 29 % 90);
            let changes: &[_] = if key == other || number % 3 != 0 {
                &[(&*key, Some("v"))]
            } else {
                &[(&*key, None), (&*other, Some("w"))]
            };
            world.record(changes);
            if number % 40 == 39 {
                world.compact(world.writer.log.state().revision.0 - number % 7);
            }
        }
        done.store(true, Ordering::SeqCst);
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    });
    let live = world.writer.log.live(&KeyRange::all(), None, usize::MAX, None).unwrap().events;
    for (store, transfers) in readers {
        assert!(transfers > 1, "the reader began once only");
        assert_eq!(store, live);
    }
}

/// Begins again and again until the writer is done; the last state reached, and how often it began.
fn read_until(source: &LocalSource, done: &AtomicBool) -> (Vec<Arc<Event>>, usize) {
    let mut transfers = 0;
    loop {
        let last = done.load(Ordering::SeqCst);
        transfers += 1;
        let (mut cursor, _) = source.transfer_begin().unwrap();
        let mut store = std::collections::BTreeMap::new();
        let mut after = None;
        loop {
            let chunk = source.transfer(&KeyRange::all(), after.as_ref(), 200).unwrap();
            store.extend(chunk.events.into_iter().map(|event| (event.key().to_vec(), event)));
            after = chunk.resume_after;
            if after.is_none() {
                break;
            }
        }
        let behind = loop {
            match source.follow(cursor, 500, Duration::ZERO) {
                Err(TailError::Behind(_)) => break true,
                Err(error) => panic!("{error}"),
                Ok(frames) if frames.is_empty() => break false,
                Ok(frames) => {
                    for event in frames.iter().flat_map(|frame| &frame.events) {
                        if store.get(event.key()).is_some_and(|held: &Arc<Event>| held.revision() > event.revision()) {
                            continue;
                        }
                        match event.kind() {
                            EventKind::Put => drop(store.insert(event.key().to_vec(), Arc::clone(event))),
                            EventKind::Delete => drop(store.remove(event.key())),
                        }
                    }
                    let reached = frames.last().unwrap();
                    cursor = Cursor { revision: reached.revision, position: reached.position, ..cursor };
                }
            }
        };
        if last && !behind {
            return (store.into_values().collect(), transfers);
        }
    }
}
