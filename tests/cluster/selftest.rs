//! The checks themselves: they pass what is right and find what is planted.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tailwater_api::mvccpb::event::EventType;
use tailwater_api::mvccpb::{Event, KeyValue};
use tailwater_tests::left_out;

use crate::history::{Action, Answer, Operation, Outcome, Record, Reply, Session, Version, Watched, is_put, kv, text};
use crate::oracle;
use crate::porcupine::Checker;

/// Operations of the made-up history.
const OPERATIONS: u64 = 400;
/// From one call to the next.
const STEP: u64 = 10;
/// From a call to its answer: each operation overlaps two others.
const TAKES: u64 = 25;

/// A store that does right, one operation after the other.
#[derive(Default)]
struct Model {
    live: BTreeMap<String, KeyValue>,
    log: Vec<Event>,
    revision: i64,
}

impl Model {
    fn found(&self, key: &str) -> Option<Version> {
        self.live.get(key).map(Version::of)
    }

    fn change(&mut self, keys: &[String], value: Option<&str>) {
        self.revision += 1;
        for key in keys {
            let previous = self.live.remove(key);
            let mut pair = KeyValue { key: key.clone().into(), mod_revision: self.revision, ..Default::default() };
            let mut kind = EventType::Delete;
            if let Some(value) = value {
                kind = EventType::Put;
                pair.value = value.to_owned().into();
                pair.create_revision = previous.as_ref().map_or(self.revision, |kv| kv.create_revision);
                pair.version = previous.as_ref().map_or(1, |kv| kv.version + 1);
                self.live.insert(key.clone(), pair.clone());
            }
            self.log.push(Event { r#type: kind.into(), kv: Some(pair), prev_kv: previous });
        }
    }

    fn perform(&mut self, action: &Action, keys: &[String]) -> Answer {
        let found = self.found(&keys[0]);
        let (wrote, found) = match action {
            Action::Read { .. } => (false, found),
            Action::Put { .. } => (true, None),
            Action::Swap { expected, .. } if found.as_ref().map_or(0, |kv| kv.revision) == *expected => (true, None),
            Action::Swap { .. } => (false, found),
            Action::Delete => (found.is_some(), None),
        };
        if wrote {
            let value = match action {
                Action::Put { value } | Action::Swap { value, .. } => Some(value.as_str()),
                Action::Read { .. } | Action::Delete => None,
            };
            self.change(keys, value);
        }
        Answer { revision: self.revision, wrote, found }
    }
}

/// A history without fault: operations, some of unknown outcome, and two watchers, one of which was interrupted.
fn flawless(seed: u64) -> Record {
    let mut random = StdRng::seed_from_u64(seed);
    let mut model = Model { revision: 1, ..Default::default() };
    let mut operations = Vec::new();
    for number in 0..OPERATIONS {
        let key = |index: u64| format!("kv/{index}");
        let (first, value) = (random.random_range(0..3_u64), format!("value {number}"));
        let seen = model.found(&key(first)).map_or(0, |version| version.revision);
        let (action, keys) = match random.random_range(0..10) {
            0..3 => (Action::Read { serializable: random.random_bool(0.2) }, vec![key(first)]),
            3..5 => (Action::Put { value }, vec![key(first)]),
            5 => (Action::Put { value }, vec![key(first), key((first + 1) % 3)]),
            6..8 => (Action::Swap { expected: seen - random.random_range(0..2), value }, vec![key(first)]),
            _ => (Action::Delete, vec![key(first)]),
        };
        let (call, client) = (number * STEP, usize::try_from(number % 3).expect("small"));
        let outcome = match random.random_range(0..20) {
            0 => Outcome::Unknown,
            1 => {
                model.perform(&action, &keys);
                Outcome::Unknown
            }
            2 => Outcome::Refused,
            _ => Outcome::Ok(model.perform(&action, &keys)),
        };
        operations.push(Operation { client, keys, action, call, end: call + TAKES, outcome });
    }
    let watched = vec![watch(&model.log, &[]), watch(&model.log, &[model.revision / 3, model.revision / 2])];
    Record { operations, watched, log: Arc::new(model.log), revision: model.revision }
}

/// A watcher of the whole log, whose stream broke after each revision of `broken`, with progress after every answer.
fn watch(log: &[Event], broken: &[i64]) -> Watched {
    let mut watched = Watched { sessions: vec![Session { slot: 0, start: 1, replies: Vec::new() }] };
    for events in log.chunk_by(|a, b| kv(a).mod_revision == kv(b).mod_revision) {
        let revision = kv(&events[0]).mod_revision;
        let session = watched.sessions.last_mut().expect("one at least");
        let at = OPERATIONS * STEP * 2;
        session.replies.push(Reply { at, revision, events: events.to_vec() });
        session.replies.push(Reply { at, revision, events: Vec::new() });
        if broken.contains(&revision) {
            watched.sessions.push(Session { slot: 1, start: revision + 1, replies: Vec::new() });
        }
    }
    watched
}

/// The named guarantee must be what the oracles miss after `plant`.
fn finds(guarantee: &str, plant: impl Fn(&mut Record)) {
    for seed in 0..5 {
        let mut record = flawless(seed);
        plant(&mut record);
        let error = oracle::check(&record).expect_err(guarantee);
        assert!(format!("{error:#}").contains(guarantee), "seed {seed}: not {guarantee}: {error:#}");
    }
}

fn replies(record: &mut Record) -> &mut Vec<Reply> {
    &mut record.watched[0].sessions[0].replies
}

/// Where the log has a change of two keys that was acknowledged.
fn acknowledged_pair(record: &Record) -> usize {
    let claimed = oracle::claimed(record);
    let revision = |event: &Event| kv(event).mod_revision;
    let fits = |pair: &[Event]| revision(&pair[0]) == revision(&pair[1]) && claimed.contains_key(&revision(&pair[0]));
    record.log.windows(2).position(fits).expect("several puts are of two keys")
}

/// The last operation that `is` says yes to.
fn last(record: &mut Record, is: impl Fn(&Operation) -> bool) -> &mut Operation {
    record.operations.iter_mut().rev().find(|operation| is(operation)).expect("there is one in each history")
}

fn wrote(operation: &Operation) -> bool {
    operation.answer().is_some_and(|answer| answer.wrote)
}

/// Makes a read late in the history answer with an old version; which still is the state at the revision it tells.
fn plant_stale_read(record: &mut Record) {
    let old = record.log.iter().find(|event| is_put(event)).map(kv).expect("something was put").clone();
    let read = last(record, |operation| {
        operation.action == Action::Read { serializable: false } && operation.answer().is_some()
    });
    read.keys = vec![text(&old.key)];
    read.outcome = Outcome::Ok(Answer { revision: old.mod_revision, wrote: false, found: Some(Version::of(&old)) });
}

#[test]
fn what_is_right_passes() {
    for seed in 0..50 {
        let record = flawless(seed);
        if let Err(error) = oracle::check(&record) {
            panic!("seed {seed}: {error:#}");
        }
    }
}

#[test]
fn planted_faults_of_the_store_are_found() {
    finds("linearizable", plant_stale_read);
    finds("durable", |record| {
        // The last acknowledged write is gone, with all that came after it.
        let revision = last(record, wrote).answer().expect("it wrote").revision;
        Arc::make_mut(&mut record.log).retain(|event| kv(event).mod_revision < revision);
        record.revision = revision - 1;
    });
    finds("durable", |record| {
        // Half of a transaction is gone.
        let at = acknowledged_pair(record);
        let log = Arc::make_mut(&mut record.log);
        log.remove(at);
        // What follows it would show first.
        repair(log);
    });
    finds("unique", |record| {
        let (revision, end) = (last(record, wrote).answer().expect("it wrote").revision, u64::MAX);
        let mut again = last(record, wrote).clone();
        again.outcome = Outcome::Ok(Answer { revision, wrote: true, found: None });
        again.end = end;
        record.operations.push(again);
    });
    finds("nobody wrote", |record| {
        let revision = record.revision + 1;
        let pair = KeyValue {
            key: "kv/new".into(),
            mod_revision: revision,
            create_revision: revision,
            version: 1,
            ..Default::default()
        };
        Arc::make_mut(&mut record.log).push(Event { kv: Some(pair), ..Default::default() });
        record.revision = revision;
    });
    finds("refused, but done", |record| {
        last(record, |operation| wrote(operation) && operation.value().is_some()).outcome = Outcome::Refused;
    });
    finds("a swap was done on", |record| {
        let is = |operation: &Operation| wrote(operation) && matches!(operation.action, Action::Swap { .. });
        if let Action::Swap { expected, .. } = &mut last(record, is).action {
            *expected += 1;
        }
    });
    finds("prev_kv", |record| {
        let log = Arc::make_mut(&mut record.log);
        log.iter_mut().rev().find(|event| event.prev_kv.is_some()).expect("keys are written again").prev_kv = None;
    });
}

/// Makes versions and previous pairs fit again after a change in the log's middle.
fn repair(log: &mut Vec<Event>) {
    let mut live: BTreeMap<bytes::Bytes, KeyValue> = BTreeMap::new();
    log.retain_mut(|event| {
        let put = is_put(event);
        let pair = event.kv.as_mut().expect("events have one");
        event.prev_kv = live.remove(&pair.key);
        if put {
            let previous = event.prev_kv.as_ref();
            pair.create_revision = previous.map_or(pair.mod_revision, |kv| kv.create_revision);
            pair.version = previous.map_or(1, |kv| kv.version + 1);
            live.insert(pair.key.clone(), pair.clone());
        }
        put || event.prev_kv.is_some()
    });
}

#[test]
fn planted_faults_of_a_watch_are_found() {
    finds("reliable", |record| drop(replies(record).remove(10)));
    finds("reliable", |record| {
        let end = replies(record).len() - 4;
        replies(record).truncate(end);
    });
    finds("unique", |record| {
        let again = replies(record)[10].clone();
        replies(record)[11] = again.clone();
        // On a stream of its own, so that it is not merely out of order.
        let rest = replies(record).split_off(11);
        let start = again.events.first().map_or(1, |event| kv(event).mod_revision);
        record.watched[0].sessions.push(Session { slot: 1, start, replies: rest });
    });
    finds("ordered", |record| replies(record).swap(10, 14));
    finds("atomic", |record| {
        let whole = replies(record).iter().position(|reply| reply.events.len() == 2).expect("some put two keys");
        let mut half = replies(record)[whole].clone();
        half.events.remove(0);
        replies(record)[whole].events.pop();
        replies(record).insert(whole + 1, half);
    });
    finds("bookmarkable", |record| replies(record)[11].revision += 1);
    finds("resumable", |record| record.watched[1].sessions[1].start += 1);
    finds("prev_kv", |record| {
        let mut events = replies(record).iter_mut().flat_map(|reply| &mut reply.events);
        events.find(|event| event.prev_kv.is_some()).expect("keys are written again").prev_kv = None;
    });
}

#[test]
fn the_outside_checker_finds_a_stale_read() {
    let Some(checker) = Checker::build().expect("the checker builds") else {
        left_out("cluster: linearizability by porcupine", "Go is not installed");
        return;
    };
    for seed in 0..5 {
        let mut record = flawless(seed);
        checker.check(&record).expect("what is right passes");
        plant_stale_read(&mut record);
        let error = checker.check(&record).expect_err("a stale read");
        assert!(format!("{error:#}").contains("not linearizable"), "{error:#}");
    }
}
