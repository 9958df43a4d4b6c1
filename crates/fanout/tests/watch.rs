//! Watch streams over a source in memory, decoded with the generated types.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tailwater_api::etcdserverpb::WatchResponse;
use tailwater_eventlog::{
    Cursor, Envelope, Event, EventKind, Fact, Frame, History, HistoryChunk, HistoryError, HistoryEvent, HistoryId,
    HistoryPoint, KeyRange, LeaseId, LiveChunk, Position, Revision, Source, SourceError, StateChunk, StateQuery, Tail,
    TailConfig, TailError,
};
use tailwater_fanout::{CreateWatch, Fanout, FanoutConfig, WatchFilter, WatchStream};

struct Memory {
    tail: Tail,
    events: Mutex<Vec<Arc<Event>>>,
}

impl History for Memory {
    fn read(
        &self,
        ranges: &[KeyRange],
        from: HistoryPoint,
        to: Revision,
        with_prev: bool,
        bytes_max: usize,
    ) -> Result<HistoryChunk, HistoryError> {
        let all = self.events.lock().unwrap();
        let mut chunk = HistoryChunk { events: Vec::new(), next: None, compacted: Revision(0) };
        let mut bytes = 0;
        for event in all.iter().filter(|e| (e.revision(), e.sub()) >= (from.revision, from.sub) && e.revision() <= to) {
            if bytes >= bytes_max {
                chunk.next = Some(HistoryPoint { revision: event.revision(), sub: event.sub() });
                break;
            }
            if ranges.iter().any(|r| r.contains(event.key())) {
                bytes += event.bytes().len();
                let prev = event.prev().filter(|_| with_prev);
                let prev = prev.map(|p| all.iter().find(|e| (e.revision(), e.sub()) == p).unwrap().clone());
                chunk.events.push(HistoryEvent { event: event.clone(), prev });
            }
        }
        Ok(chunk)
    }

    fn state_at(&self, _: &StateQuery) -> Result<StateChunk, HistoryError> {
        Err(HistoryError::Unavailable("nothing is listed in these tests".into()))
    }
}

impl Source for Memory {
    fn transfer_begin(&self) -> Result<(Cursor, Vec<Fact>), SourceError> {
        Ok(self.tail.snapshot())
    }

    fn transfer_end(&self) -> Revision {
        self.tail.end().revision
    }
    fn transfer(&self, _: &KeyRange, _: Option<&Bytes>, _: usize) -> Result<LiveChunk, SourceError> {
        Ok(LiveChunk { events: Vec::new(), resume_after: None })
    }
    fn follow(&self, cursor: Cursor, bytes_max: usize, timeout: Duration) -> Result<Vec<Arc<Frame>>, TailError> {
        self.tail.wait(cursor, bytes_max, timeout)
    }
}

impl Memory {
    fn put(&self, revision: i64, key: &str, value: &[u8]) {
        let mut all = self.events.lock().unwrap();
        let old = all.iter().rev().find(|e| e.key() == key.as_bytes()).cloned();
        let envelope = Envelope {
            kind: EventKind::Put,
            revision: Revision(revision),
            sub: 0,
            create_revision: old.as_ref().map_or(Revision(revision), |o| o.envelope().create_revision),
            version: old.as_ref().map_or(1, |o| o.envelope().version + 1),
            lease: LeaseId(0),
            prev: old.map(|o| (o.revision(), o.sub())),
        };
        let event = Arc::new(Event::put(envelope, key.as_bytes(), value));
        all.push(event.clone());
        let position = Position(u64::try_from(revision).unwrap());
        self.tail.publish(vec![Arc::new(Frame {
            position,
            revision: Revision(revision),
            events: vec![event],
            ..Frame::default()
        })]);
    }
}

fn start(window_bytes_max: usize) -> (Arc<Memory>, Fanout) {
    let cursor = Cursor { history: HistoryId(1), revision: Revision(1), position: Position(1) };
    let tail = Tail::new(TailConfig { hot_bytes_max: 1 << 24 }, cursor, vec![]);
    let source = Arc::new(Memory { tail, events: Mutex::default() });
    let config = FanoutConfig {
        cluster_id: 1,
        member_id: 2,
        window_bytes_max,
        stream_chunk_bytes: 4096,
        watch_memory_bytes_max: 1 << 20,
        list_memory_bytes_max: 1 << 20,
        response_bytes_max: 1 << 20,
        fragment_bytes_max: 1 << 21,
        ..FanoutConfig::default()
    };
    let fanout = Fanout::start(config, source.clone());
    while fanout.snapshot().cursor.revision < Revision(1) {
        std::thread::sleep(Duration::from_millis(1));
    }
    (source, fanout)
}

/// Pulls until `count` events came; checks that they are in order.
fn pull(stream: &mut WatchStream, count: usize) -> Vec<WatchResponse> {
    let (mut bytes, mut all, mut events) = (Vec::new(), Vec::new(), 0);
    for _ in 0..5000 {
        match Pin::new(&mut *stream).poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(piece)) => bytes.extend_from_slice(&piece),
            Poll::Ready(None) => panic!("ended: {:?}", stream.status()),
            Poll::Pending => std::thread::sleep(Duration::from_millis(1)),
        }
        while bytes.len() >= 5 {
            let len = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
            if bytes.len() < 5 + len {
                break;
            }
            let response = WatchResponse::decode(&bytes[5..5 + len]).unwrap();
            bytes.drain(..5 + len);
            events += response.events.len();
            all.push(response);
        }
        if events >= count && bytes.is_empty() {
            return all;
        }
    }
    panic!("only {events} of {count} events came");
}

fn watch(start: i64) -> CreateWatch {
    CreateWatch {
        range: KeyRange::all(),
        start: Revision(start),
        progress_notify: false,
        filter: WatchFilter::default(),
        prev_kv: true,
        watch_id: 0,
        fragment: false,
    }
}

fn past_then_live(window: usize, value: usize) {
    let (source, fanout) = start(window);
    for revision in 2..100 {
        source.put(revision, &format!("k{}", revision % 7), &vec![b'x'; value]);
    }
    while fanout.snapshot().cursor.revision < Revision(99) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let (control, mut stream) = fanout.open_stream();
    control.create(watch(2), None);
    let mut responses = pull(&mut stream, 98);
    for revision in 100..150 {
        source.put(revision, &format!("k{}", revision % 7), &vec![b'y'; value]);
    }
    responses.extend(pull(&mut stream, 50));
    assert!(responses[0].created);
    let events: Vec<_> = responses.iter().flat_map(|r| &r.events).collect();
    let revisions: Vec<i64> = events.iter().map(|e| e.kv.as_ref().unwrap().mod_revision).collect();
    assert_eq!(revisions, (2..150).collect::<Vec<_>>());
    for event in events {
        let kv = event.kv.as_ref().unwrap();
        let prev = event.prev_kv.as_ref().map(|p| p.mod_revision);
        assert_eq!(prev, (kv.mod_revision > 8).then_some(kv.mod_revision - 7));
    }
    fanout.stop();
}

#[test]
fn replay_from_the_window_meets_live_without_gap_or_duplicate() {
    past_then_live(1 << 20, 10);
}

#[test]
fn replay_from_history_meets_live_without_gap_or_duplicate() {
    past_then_live(1000, 10);
}

#[test]
fn events_larger_than_a_piece_arrive_whole() {
    past_then_live(1 << 24, 10_000);
    past_then_live(1000, 10_000);
}

#[test]
fn what_a_group_shares_hides_previous_versions_at_the_compacted_revision() {
    let (source, fanout) = start(1 << 20);
    let (control, mut stream) = fanout.open_stream();
    control.create(watch(2), None);
    pull(&mut stream, 0);
    for revision in 2..5 {
        source.put(revision, "k", b"v");
    }
    // Now the group holds the bytes of all three, with what was visible before the compaction.
    pull(&mut stream, 3);
    let facts = vec![Fact::Compacted(Revision(3))];
    source.tail.publish(vec![Arc::new(Frame {
        position: Position(5),
        revision: Revision(4),
        facts,
        ..Frame::default()
    })]);
    while fanout.snapshot().compacted < Revision(3) {
        std::thread::sleep(Duration::from_millis(1));
    }
    control.create(watch(3), None);
    let responses = pull(&mut stream, 2);
    let prev = responses.iter().flat_map(|r| &r.events).map(|e| e.prev_kv.as_ref().map(|p| p.mod_revision));
    assert_eq!(prev.collect::<Vec<_>>(), [None, Some(3)]);
    fanout.stop();
}
