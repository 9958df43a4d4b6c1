#![allow(clippy::unwrap_used)]

use super::*;
use crate::{HistoryId, MemberId, Term};

const HISTORY: HistoryId = HistoryId(77);

fn cursor(revision: i64, position: u64) -> Cursor {
    Cursor { history: HISTORY, revision: Revision(revision), position: Position(position) }
}

fn frame(position: u64, value_len: usize) -> Arc<Frame> {
    let revision = Revision(i64::try_from(position).unwrap());
    let envelope = crate::Envelope {
        kind: crate::EventKind::Put,
        revision,
        sub: 0,
        create_revision: revision,
        version: 1,
        lease: crate::LeaseId(0),
        prev: None,
    };
    let event = Arc::new(Event::put(envelope, b"key", &vec![1; value_len]));
    Arc::new(Frame { position: Position(position), revision, events: vec![event], ..Frame::default() })
}

fn tail(hot_bytes_max: usize) -> Tail {
    Tail::new(TailConfig { hot_bytes_max }, cursor(10, 10), vec![])
}

fn positions(frames: &[Arc<Frame>]) -> Vec<u64> {
    frames.iter().map(|frame| frame.position.0).collect()
}

#[test]
fn reader_gets_what_comes_after_its_cursor() {
    let tail = tail(1 << 20);
    tail.publish(vec![frame(11, 10), frame(13, 10), frame(14, 10)]);
    assert_eq!(positions(&tail.read(cursor(10, 10), 1 << 20).unwrap()), [11, 13, 14]);
    assert_eq!(positions(&tail.read(cursor(11, 12), 1 << 20).unwrap()), [13, 14]);
    assert_eq!(positions(&tail.read(cursor(14, 14), 1 << 20).unwrap()), [0u64; 0]);
    assert_eq!(positions(&tail.read(cursor(20, 20), 1 << 20).unwrap()), [0u64; 0]);
    assert_eq!(tail.end(), cursor(14, 14));
}

#[test]
fn answer_is_bounded_but_never_empty_when_there_is_something() {
    let tail = tail(1 << 20);
    tail.publish(vec![frame(11, 5000), frame(12, 10), frame(13, 5000)]);
    assert_eq!(positions(&tail.read(cursor(10, 10), 1).unwrap()), [11]);
    assert_eq!(positions(&tail.read(cursor(10, 10), 6000).unwrap()), [11, 12]);
}

#[test]
fn memory_is_bounded_and_a_reader_before_it_is_told() {
    let tail = tail(3000);
    for position in 11..100 {
        tail.publish(vec![frame(position, 500)]);
    }
    let hot = tail.shared.hot.lock();
    assert!(hot.bytes <= 3000 && hot.frames.len() >= 2);
    assert_eq!(hot.bytes, hot.frames.iter().map(|slot| slot.frame.memory_bytes()).sum::<usize>());
    let begin = hot.begin.0.0;
    drop(hot);
    assert_eq!(tail.read(cursor(10, begin - 1), 1).unwrap_err(), TailError::Behind(cursor(10, begin - 1)));
    assert_eq!(positions(&tail.read(cursor(i64::try_from(begin).unwrap(), begin), 1).unwrap()), [begin + 1]);
}

#[test]
fn newest_frame_stays_however_large() {
    let tail = tail(100);
    tail.publish(vec![frame(11, 5000)]);
    assert_eq!(positions(&tail.read(cursor(10, 10), 1).unwrap()), [11]);
    tail.publish(vec![frame(12, 5000)]);
    assert_eq!(positions(&tail.read(cursor(11, 11), 1).unwrap()), [12]);
    assert!(tail.read(cursor(10, 10), 1).is_err());
}

#[test]
fn cursor_of_another_history_is_refused_at_once() {
    let tail = tail(100);
    let other = Cursor { history: HistoryId(1), ..cursor(10, 10) };
    assert_eq!(tail.read(other, 1).unwrap_err(), TailError::OtherHistory);
    assert_eq!(tail.wait(other, 1, Duration::from_secs(60)).unwrap_err(), TailError::OtherHistory);
}

#[test]
fn snapshot_holds_the_newest_fact_of_each_kind() {
    let version = Fact::ClusterVersion("3.6.0".into());
    let start = vec![version.clone(), Fact::Compacted(Revision(3))];
    let tail = Tail::new(TailConfig { hot_bytes_max: 1000 }, cursor(10, 10), start);
    let leader = Fact::Leader(Some(MemberId(4)), Term(9));
    let facts = vec![Fact::Compacted(Revision(4)), leader.clone(), Fact::Compacted(Revision(5))];
    tail.publish(vec![Arc::new(Frame { position: Position(12), revision: Revision(10), facts, ..Frame::default() })]);
    assert_eq!(tail.snapshot(), (cursor(10, 12), vec![Fact::Compacted(Revision(5)), leader, version]));
}

#[test]
fn waiting_reader_is_woken_by_publish_and_by_close() {
    let tail = tail(1 << 20);
    let reader = tail.clone();
    let thread = std::thread::spawn(move || {
        let first = reader.wait(cursor(10, 10), 1, Duration::from_secs(60)).unwrap();
        (positions(&first), reader.wait(cursor(11, 11), 1, Duration::from_secs(60)).unwrap_err())
    });
    tail.publish(vec![frame(11, 1)]);
    tail.close();
    assert_eq!(thread.join().unwrap(), (vec![11], TailError::Closed));
    assert_eq!(positions(&tail.read(cursor(10, 10), 1).unwrap()), [11], "what is there can still be read");
}

#[test]
fn wait_ends_without_a_frame() {
    assert_eq!(tail(100).wait(cursor(10, 10), 1, Duration::from_millis(5)).unwrap().len(), 0);
}

#[test]
#[should_panic(expected = "a frame at position 11 follows one at 11")]
fn position_that_does_not_grow_is_a_broken_invariant() {
    tail(1000).publish(vec![frame(11, 1), frame(11, 1)]);
}

fn notice(position: u64, facts: Vec<Fact>) -> Arc<Frame> {
    let revision = Revision(i64::try_from(position).unwrap());
    Arc::new(Frame { position: Position(position), revision, facts, ..Frame::default() })
}

#[test]
fn a_notice_at_the_newest_position_reaches_each_reader_once() {
    let tail = tail(1 << 20);
    tail.publish(vec![frame(11, 10)]);
    let gone = Fact::Leader(None, Term(3));
    tail.publish(vec![notice(11, vec![gone.clone()])]);
    assert_eq!(tail.end(), cursor(11, 11));
    let wait = |at, noticed, bytes_max| tail.wait_noticing(at, noticed, bytes_max, Duration::ZERO).unwrap();

    // Who has the frame gets the notice alone; who has neither gets both, also one by one.
    let (frames, noticed) = wait(cursor(11, 11), 0, 1 << 20);
    assert_eq!((frames.len(), frames[0].facts.as_slice(), noticed), (1, [gone].as_slice(), 1));
    let (frames, noticed) = wait(cursor(11, 11), noticed, 1 << 20);
    assert_eq!((frames.len(), noticed), (0, 1));
    assert_eq!(positions(&wait(cursor(10, 10), 0, 1 << 20).0), [11, 11]);
    let (first, noticed) = wait(cursor(10, 10), 0, 1);
    assert_eq!((first[0].events.len(), noticed), (1, 0));
    assert_eq!(wait(cursor(11, 11), noticed, 1).1, 1);

    // A later one at the same position takes it in; others go on.
    let back = Fact::Leader(Some(MemberId(1)), Term(4));
    tail.publish(vec![notice(11, vec![back.clone()]), frame(12, 10)]);
    let (frames, noticed) = wait(cursor(11, 11), 1, 1 << 20);
    assert_eq!((positions(&frames), frames[0].facts.as_slice(), noticed), (vec![11, 12], [back].as_slice(), 2));
    assert_eq!(positions(&tail.read(cursor(11, 11), 1 << 20).unwrap()), [12], "readers by cursor alone get none");
}

#[test]
fn notices_do_not_pile_up() {
    let tail = tail(1 << 20);
    let before = tail.shared.hot.lock().bytes;
    for term in 0..1000 {
        tail.publish(vec![notice(10, vec![Fact::Leader(None, Term(term))])]);
    }
    let hot = tail.shared.hot.lock();
    assert_eq!((hot.frames.len(), hot.notices), (1, 1000));
    assert!(hot.bytes - before < 1000);
}

#[test]
fn a_notice_wakes_a_reader_that_waits() {
    let tail = tail(1 << 20);
    let reader = std::thread::spawn({
        let tail = tail.clone();
        move || tail.wait_noticing(cursor(10, 10), 0, 1, Duration::from_secs(60)).unwrap()
    });
    std::thread::sleep(Duration::from_millis(20));
    tail.publish(vec![notice(10, vec![Fact::Leader(None, Term(1))])]);
    assert_eq!(reader.join().unwrap().1, 1);
}

/// As a source reads it from its log: the position stays.
fn of_a_log(position: u64, revisions: std::ops::RangeInclusive<i64>) -> Arc<Frame> {
    let revision = Revision(*revisions.end());
    let events = revisions.map(|revision| frame(u64::try_from(revision).unwrap(), 1).events[0].clone()).collect();
    Arc::new(Frame { position: Position(position), revision, events, ..Frame::default() })
}

#[test]
fn frames_of_a_log_are_passed_on_in_order() {
    let tail = tail(1 << 20);
    tail.pass_on(vec![of_a_log(10, 11..=12), of_a_log(10, 13..=15), of_a_log(20, 16..=17)]);
    let revisions = |at| tail.read(at, 1 << 20).unwrap().iter().map(|frame| frame.revision.0).collect::<Vec<_>>();
    assert_eq!(revisions(cursor(10, 10)), [12, 15, 17]);
    assert_eq!(revisions(cursor(12, 10)), [15, 17]);
    assert_eq!(revisions(cursor(15, 10)), [17]);
    assert_eq!(revisions(cursor(17, 20)), [0i64; 0]);
    tail.restart(cursor(19, 20), &[]);
    assert_eq!(tail.read(cursor(17, 20), 1).unwrap_err(), TailError::Behind(cursor(17, 20)));
}

#[test]
fn a_reader_gets_no_revision_twice() {
    let tail = tail(1 << 20);
    // From a source that read its log: further than its position says, in the midst of what was one frame here.
    tail.publish(vec![of_a_log(12, 11..=12), of_a_log(15, 13..=15), of_a_log(16, 16..=16)]);
    let frames = tail.read(cursor(14, 10), 1 << 20).unwrap();
    let events: Vec<_> = frames.iter().flat_map(|frame| &frame.events).map(|event| event.revision().0).collect();
    assert_eq!(events, [15, 16]);
    assert_eq!(frames.iter().map(|frame| frame.revision.0).collect::<Vec<_>>(), [14, 15, 16]);
    assert_eq!(positions(&frames), [12, 15, 16]);
}

#[test]
fn a_reader_of_a_later_position_misses_nothing_that_comes_out_of_a_log() {
    let frames = vec![of_a_log(10, 11..=12), of_a_log(10, 13..=15), of_a_log(30, 16..=17)];
    let long = tail(1 << 20);
    long.pass_on(frames.clone());
    // It came from a source that applied something at position 20 which made no revision.
    let read = long.read(cursor(13, 20), 1 << 20).unwrap();
    let events: Vec<_> = read.iter().flat_map(|frame| &frame.events).map(|event| event.revision().0).collect();
    assert_eq!(events, [14, 15, 16, 17]);
    assert_eq!(positions(&read), [20, 30], "a position never goes back");
    let short = tail(1);
    short.pass_on(frames);
    assert_eq!(short.read(cursor(13, 20), 1).unwrap_err(), TailError::Behind(cursor(13, 20)));
}
