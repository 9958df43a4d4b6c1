#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use tailwater_eventlog::{
    Cursor, Envelope, Event, EventKind, Fact, Frame, HistoryChunk, HistoryError, LeaseId, LiveChunk, SourceError,
    StateChunk, StateQuery, TailError,
};

use super::*;

/// Records of three events each, read in pieces of `step` events at most.
struct Log {
    events: Vec<HistoryEvent>,
    step: usize,
    reads: AtomicUsize,
    pause: Duration,
}

impl Log {
    fn new(records: i64, value_bytes: usize, step: usize) -> Self {
        let event = |n: i64| {
            let (revision, sub) = (Revision(1 + n / 3), u32::try_from(n % 3).unwrap());
            let envelope = Envelope {
                kind: EventKind::Put,
                revision,
                sub,
                create_revision: revision,
                version: 1,
                lease: LeaseId(0),
                prev: None,
            };
            let event = Arc::new(Event::put(envelope, format!("k{n}").as_bytes(), &vec![1; value_bytes]));
            HistoryEvent { event, prev: None }
        };
        let events = (0..3 * records).map(event).collect();
        Self { events, step, reads: AtomicUsize::new(0), pause: Duration::ZERO }
    }
}

impl History for Log {
    fn read(
        &self,
        _: &[KeyRange],
        from: HistoryPoint,
        to: Revision,
        _: bool,
        bytes_max: usize,
    ) -> Result<HistoryChunk, HistoryError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(self.pause);
        let mut chunk = HistoryChunk { events: Vec::new(), next: None, compacted: Revision(0) };
        let mut bytes = 0;
        for found in self.events.iter().filter(|e| point(e) >= from).take_while(|e| e.event.revision() <= to) {
            if bytes >= bytes_max || chunk.events.len() >= self.step {
                chunk.next = Some(point(found));
                break;
            }
            bytes += bytes_of(found);
            chunk.events.push(found.clone());
        }
        Ok(chunk)
    }

    fn state_at(&self, _: &StateQuery) -> Result<StateChunk, HistoryError> {
        unreachable!("only history is read")
    }
}

impl Source for Log {
    fn transfer_begin(&self) -> Result<(Cursor, Vec<Fact>), SourceError> {
        unreachable!("only history is read")
    }

    fn transfer_end(&self) -> Revision {
        unreachable!("only history is read")
    }

    fn transfer(&self, _: &KeyRange, _: Option<&Bytes>, _: usize) -> Result<LiveChunk, SourceError> {
        unreachable!("only history is read")
    }

    fn follow(&self, _: Cursor, _: usize, _: Duration) -> Result<Vec<Arc<Frame>>, TailError> {
        unreachable!("only history is read")
    }
}

fn key() -> Arc<ReadKey> {
    Arc::new(ReadKey { ranges: vec![KeyRange::all()], with_prev: false, is_recent: false })
}

fn none() -> Revision {
    Revision(0)
}

/// Reads on until everything is there.
fn all(reads: &SharedReads, log: &Log, mut span: ReadSpan) -> Vec<HistoryPoint> {
    let mut points = Vec::new();
    loop {
        let chunk = reads.read(log, &key(), span, none).unwrap();
        points.extend(chunk.events.iter().map(point));
        match chunk.next {
            Some(next) => {
                assert!(next > span.from, "a reader that is sent back never ends");
                span.from = next;
            }
            None => return points,
        }
    }
}

proptest! {
    #[test]
    fn whoever_reads_gets_exactly_what_is_there(
        spans in prop::collection::vec((0i64..60, 0u32..3, 0i64..60, 1usize..2000), 1..30),
        step in 1usize..40,
        kept_bytes in prop::sample::select(vec![0usize, 3000, 1 << 20]),
    ) {
        let log = Log::new(50, 50, step);
        let reads = SharedReads::new(kept_bytes);
        for (revision, sub, to, bytes_max) in spans {
            let from = HistoryPoint { revision: Revision(revision), sub };
            let to = Revision(to);
            let expected: Vec<_> =
                log.events.iter().map(point).filter(|p| *p >= from && p.revision <= to).collect();
            prop_assert_eq!(all(&reads, &log, ReadSpan { from, to, bytes_max }), expected);
            let state = reads.state.lock();
            prop_assert!(state.bytes <= kept_bytes && state.under_way.is_empty());
            prop_assert_eq!(state.bytes, state.kept.iter().map(|kept| kept.bytes).sum::<usize>());
        }
    }
}

#[test]
fn those_who_stand_near_each_other_cost_one_read() {
    let log = Arc::new(Log { pause: Duration::from_millis(20), ..Log::new(500, 100, usize::MAX) });
    let reads = Arc::new(SharedReads::new(16 << 20));
    let threads: Vec<_> = (0..16)
        .map(|n| {
            let (log, reads) = (log.clone(), reads.clone());
            let from = HistoryPoint { revision: Revision(10 + n), sub: 0 };
            std::thread::spawn(move || all(&reads, &log, ReadSpan { from, to: Revision(400), bytes_max: 4000 }).len())
        })
        .collect();
    for (n, thread) in threads.into_iter().enumerate() {
        assert_eq!(thread.join().unwrap(), 3 * (391 - n));
    }
    // One for each that begins before all who have read so far.
    assert!(log.reads.load(Ordering::SeqCst) <= 8, "{} reads", log.reads.load(Ordering::SeqCst));
}

#[test]
fn what_is_kept_does_not_outlive_a_compaction_or_its_use() {
    let log = Log::new(50, 50, usize::MAX);
    let reads = SharedReads::new(1 << 20);
    let span = ReadSpan { from: HistoryPoint { revision: Revision(5), sub: 0 }, to: Revision(50), bytes_max: 100 };
    reads.read(&log, &key(), span, none).unwrap();
    let compacted = reads.read(&log, &key(), span, || Revision(6));
    assert!(matches!(compacted, Err(HistoryError::Compacted(Revision(6)))), "{compacted:?}");
    assert_eq!(reads.read(&log, &key(), span, || Revision(5)).unwrap().compacted, Revision(5));
    reads.forget_idle();
    assert!(reads.kept(&key(), span, none()).is_some());
    reads.forget_idle();
    reads.forget_idle();
    assert!(reads.kept(&key(), span, none()).is_none());
    assert_eq!(log.reads.load(Ordering::SeqCst), 1);
}
