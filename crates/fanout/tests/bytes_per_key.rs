//! What a key costs in a fanout beside its value. A process of its own: the heap is what is measured, so nothing
//! else may run beside.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tailwater_eventlog::{
    Cursor, Envelope, Event, EventKind, Fact, Frame, History, HistoryChunk, HistoryError, HistoryId, HistoryPoint,
    KeyRange, LeaseId, LiveChunk, Position, Revision, Source, SourceError, StateChunk, StateQuery, TailError,
};
use tailwater_fanout::{Fanout, FanoutConfig};

const KEYS: i64 = 100_000;
const VALUE_BYTES: i64 = 512;
/// Beside the value: key (36 bytes), the other fields of the event, and all that finds it; 215 were measured.
const PER_KEY_MAX: i64 = 235;
const WINDOW_BYTES: i64 = 4 << 20;

fn resident_bytes() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<i64>().unwrap() * 1024
}

fn event(number: i64, revision: i64) -> Event {
    let envelope = Envelope {
        kind: EventKind::Put,
        revision: Revision(revision),
        sub: 0,
        create_revision: Revision(1_000_000 + number),
        version: 9,
        lease: LeaseId(0),
        prev: Some((Revision(revision - KEYS), 0)),
    };
    let value = vec![7; usize::try_from(VALUE_BYTES).unwrap()];
    Event::put(envelope, format!("/registry/pods/default/pod-{number:09}").as_bytes(), &value)
}

/// Makes its events when they are asked for, as if they came over a wire.
struct Made {
    /// Events that are to be followed.
    followed: AtomicI64,
}

const BEGIN: Cursor = Cursor { history: HistoryId(1), revision: Revision(2_000_000), position: Position(1) };

impl History for Made {
    fn read(
        &self,
        _: &[KeyRange],
        _: HistoryPoint,
        _: Revision,
        _: bool,
        _: usize,
    ) -> Result<HistoryChunk, HistoryError> {
        Err(HistoryError::Unavailable("nobody asks".into()))
    }

    fn state_at(&self, _: &StateQuery) -> Result<StateChunk, HistoryError> {
        Err(HistoryError::Unavailable("nobody asks".into()))
    }
}

impl Source for Made {
    fn transfer_begin(&self) -> Result<(Cursor, Vec<Fact>), SourceError> {
        Ok((BEGIN, Vec::new()))
    }

    fn transfer_end(&self) -> Revision {
        BEGIN.revision
    }

    fn transfer(&self, _: &KeyRange, after: Option<&Bytes>, _: usize) -> Result<LiveChunk, SourceError> {
        let begin = after.map_or(0, |after| std::str::from_utf8(&after[27..]).unwrap().parse::<i64>().unwrap() + 1);
        let end = (begin + 1700).min(KEYS);
        let events: Vec<_> = (begin..end).map(|number| Arc::new(event(number, 1_000_000 + number))).collect();
        let resume_after = events.last().filter(|_| end < KEYS).map(|last| Bytes::copy_from_slice(last.key()));
        Ok(LiveChunk { events, resume_after })
    }

    fn follow(&self, cursor: Cursor, _: usize, timeout: Duration) -> Result<Vec<Arc<Frame>>, TailError> {
        let left = self.followed.load(Ordering::SeqCst) - (cursor.revision.0 - BEGIN.revision.0);
        if left <= 0 {
            std::thread::sleep(timeout);
            return Ok(Vec::new());
        }
        // Neighbours in time are not neighbours in order.
        let revisions = cursor.revision.0 + 1..=cursor.revision.0 + left.min(500);
        let events = revisions.clone().map(|revision| Arc::new(event(revision * 7919 % KEYS, revision))).collect();
        let (position, revision) = (Position(cursor.position.0 + 1), Revision(*revisions.end()));
        Ok(vec![Arc::new(Frame { position, revision, events, ..Frame::default() })])
    }
}

#[test]
fn a_key_costs_a_bounded_number_of_bytes_beside_its_value() {
    let empty = resident_bytes();
    let source = Arc::new(Made { followed: AtomicI64::new(0) });
    let window_bytes_max = usize::try_from(WINDOW_BYTES).unwrap();
    let fanout = Fanout::start(FanoutConfig { window_bytes_max, ..FanoutConfig::default() }, source.clone());
    while fanout.load(0).keys < usize::try_from(KEYS).unwrap() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let per_key = |bytes: i64| (bytes - empty) / KEYS - VALUE_BYTES;
    let transferred = per_key(resident_bytes());
    eprintln!("{transferred} bytes per key after the transfer");
    assert!(transferred > 36 && transferred <= PER_KEY_MAX, "{transferred} bytes per key");
    // Every key is changed, and what the window holds of it goes.
    source.followed.store(3 * KEYS, Ordering::SeqCst);
    while fanout.snapshot().cursor.revision.0 < BEGIN.revision.0 + 3 * KEYS {
        std::thread::sleep(Duration::from_millis(1));
    }
    let changed = per_key(resident_bytes() - WINDOW_BYTES);
    eprintln!("{changed} bytes per key after changes");
    assert!(changed <= PER_KEY_MAX + 15, "{changed} bytes per key");
    fanout.stop();
}
