//! What a write and its delivery cost in the cores, without IO, threads or clients: apply, index, match, encode.
//!
//! `cargo bench -p tailwater-micro` measures times; `tailwater-micro NAME ROUNDS` does the same work for an instruction
//! counter, whose result does not depend on how busy a machine is (`scripts/instructions.sh`).

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use tailwater_consensus::measuring::Applying;
use tailwater_eventlog::{Envelope, Event, EventKind, KeyIndex, KeyRange, LeaseId, Revision};
use tailwater_fanout::measuring::{Matching, put_head};

/// Keys of a store.
const KEYS: u64 = 10_000;
const VALUE_BYTES: usize = 256;

/// A piece of work; it is told how often it was done before.
pub type Work = Box<dyn FnMut(u64)>;

/// Its name, and how it is prepared.
pub type Core = (&'static str, fn() -> Work);

/// What is measured.
pub const CORES: [Core; 8] = [
    ("apply", apply),
    ("index-insert", index_insert),
    ("index-get", index_get),
    ("match-10", || matching(10)),
    ("match-100000", || matching(100_000)),
    ("encode-event", encode_event),
    ("encode-key-only", encode_key_only),
    ("encode-head", encode_head),
];

fn key(number: u64) -> Bytes {
    // A prime that does not divide the number of keys visits each once before any twice.
    let mut number = number.wrapping_mul(7_919) % KEYS;
    // By hand: how formatting is compiled changes with code that has nothing to do with what is counted.
    let mut key = *b"/registry/pods/default/pod-00000000";
    for digit in key.iter_mut().rev().take(8) {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
    Bytes::copy_from_slice(&key)
}

fn event(number: u64) -> Event {
    let revision = Revision(i64::try_from(number).expect("few rounds") + 2);
    let envelope = Envelope {
        kind: EventKind::Put,
        revision,
        sub: 0,
        create_revision: Revision(2),
        version: 7,
        lease: LeaseId(0),
        prev: (number >= KEYS).then(|| (Revision(revision.0 - 1), 0)),
    };
    Event::put(envelope, &key(number), &[b'v'; VALUE_BYTES])
}

/// A put of a key that is there: the command's way through the state machine.
fn apply() -> Work {
    let mut applying = Applying::default();
    let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
    (0..KEYS).for_each(|number| applying.put(key(number), value.clone()));
    Box::new(move |number| applying.put(key(number), value.clone()))
}

fn filled() -> KeyIndex {
    let mut index = KeyIndex::default();
    (0..KEYS).for_each(|number| index.insert(&event(number)));
    index
}

fn index_insert() -> Work {
    let mut index = filled();
    Box::new(move |number| index.insert(&event(KEYS + number)))
}

fn index_get() -> Work {
    let index = filled();
    Box::new(move |number| drop(black_box(index.latest(&key(number)))))
}

/// One event among so many watchers of disjoint ranges.
fn matching(watchers: u64) -> Work {
    let mut matching = Matching::default();
    for watcher in 0..watchers {
        let range = match watcher % 2 {
            0 => KeyRange::Span(format!("/k/{watcher:06}/").into(), format!("/k/{watcher:06}0").into()),
            _ => KeyRange::Key(format!("/k/{watcher:06}").into()),
        };
        matching.watch(&range);
    }
    Box::new(move |number| {
        let watcher = number * 7 % watchers;
        let key = if watcher.is_multiple_of(2) { format!("/k/{watcher:06}/x") } else { format!("/k/{watcher:06}") };
        assert_eq!(matching.find(key.as_bytes()), 1, "ranges are disjoint");
    })
}

fn encode_event() -> Work {
    Box::new(|number| drop(black_box(event(number))))
}

fn encode_key_only() -> Work {
    let event = event(0);
    Box::new(move |_| {
        black_box(event.key_value_without_value());
    })
}

fn encode_head() -> Work {
    let mut out = BytesMut::with_capacity(256);
    Box::new(move |number| {
        out.clear();
        put_head(&mut out, Revision(i64::try_from(number).expect("few rounds")));
        black_box(&out);
    })
}
