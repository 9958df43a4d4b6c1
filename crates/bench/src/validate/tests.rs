use super::*;

/// A key's writes 1, 2, 3 … at revisions 2, 3, 4 …, as two watchers of a correct server see them.
struct World {
    validator: Validator,
    watchers: [WatcherId; 2],
}

const KEYS: u64 = 3;

fn key(number: u64) -> Bytes {
    format!("/w/{}", number % KEYS).into()
}

fn kv(number: u64) -> mvccpb::KeyValue {
    let value = Mark { number, sent: 0 }.value(20);
    let mod_revision = i64::try_from(number).expect("small") + 1;
    let version = i64::try_from((number - 1) / KEYS).expect("small") + 1;
    mvccpb::KeyValue { key: key(number), value, mod_revision, version, ..Default::default() }
}

fn event(number: u64) -> mvccpb::Event {
    let prev_kv = number.checked_sub(KEYS).filter(|before| *before > 0).map(kv);
    mvccpb::Event { kv: Some(kv(number)), prev_kv, ..Default::default() }
}

impl World {
    fn new() -> Self {
        let validator = Validator::default();
        let group = validator.group(("/w/".into(), "/w0".into()), true);
        let watchers = [validator.watcher(group), validator.watcher(group)];
        Self { validator, watchers }
    }

    fn acknowledge(&self, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            self.validator.acknowledged(&key(number), i64::try_from(number).expect("small") + 1, number);
        }
    }

    fn receive(&self, watcher: usize, events: Vec<mvccpb::Event>) {
        let response = pb::WatchResponse { events, ..Default::default() };
        self.validator.received(self.watchers[watcher], &response);
    }

    /// Each event in a response of its own, changed on the way to one of them.
    fn run(&self, change: impl Fn(u64) -> Vec<mvccpb::Event>) -> (u64, Vec<String>) {
        for number in 1..=20 {
            self.receive(0, vec![event(number)]);
            if number % 2 == 0 {
                self.acknowledge([number - 1, number]);
            }
            self.receive(1, change(number));
        }
        self.validator.finish()
    }
}

#[test]
fn a_correct_server_is_found_correct() {
    let world = World::new();
    assert_eq!(world.run(|number| vec![event(number)]), (0, vec![]));
    assert!(world.validator.is_settled());
    let world = World::new();
    world.receive(1, vec![event(1), event(2), event(3)]);
    world.acknowledge(1..=4);
    assert!(!world.validator.is_settled());
    world.receive(1, vec![event(4)]);
    world.receive(0, vec![event(1), event(2), event(3), event(4)]);
    assert_eq!(world.validator.finish(), (0, vec![]));
}

#[test]
fn a_dropped_a_doubled_and_a_reordered_event_are_found() {
    let dropped = |number| if number == 7 { vec![] } else { vec![event(number)] };
    assert!(World::new().run(dropped).0 > 0);
    let doubled = |number| if number == 7 { vec![event(7), event(7)] } else { vec![event(number)] };
    assert!(World::new().run(doubled).0 > 0);
    let reordered = |number| match number {
        7 => vec![event(8)],
        8 => vec![event(7)],
        number => vec![event(number)],
    };
    assert!(World::new().run(reordered).0 > 0);
    let foreign = |number| if number == 7 { vec![event(7), event(8)] } else { vec![event(number)] };
    assert!(World::new().run(foreign).0 > 0);
}

#[test]
fn what_all_watchers_are_told_wrong_is_found() {
    let all = |change: fn(u64) -> Vec<mvccpb::Event>| {
        let world = World::new();
        for number in 1..=20 {
            world.receive(0, change(number));
            world.receive(1, change(number));
            world.acknowledge([number]);
        }
        world.validator.finish().0
    };
    assert_eq!(all(|number| vec![event(number)]), 0);
    assert!(all(|number| if number == 20 { vec![] } else { vec![event(number)] }) > 0, "the last one is lost");
    assert!(all(|number| if number == 7 { vec![] } else { vec![event(number)] }) > 0, "one is lost");
    let no_prev = |number| vec![mvccpb::Event { prev_kv: None, ..event(number) }];
    assert!(all(no_prev) > 0, "the previous version is missing");
    let old_prev = |number: u64| {
        let prev_kv = number.checked_sub(2 * KEYS).filter(|before| *before > 0).map(kv);
        vec![mvccpb::Event { prev_kv, ..event(number) }]
    };
    assert!(all(old_prev) > 0, "an older version");
    let phantom = |number| {
        let kv = mvccpb::KeyValue { key: "/w/x".into(), ..kv(number) };
        vec![event(number), mvccpb::Event { kv: Some(kv), ..Default::default() }]
    };
    assert!(all(phantom) > 0, "nobody wrote it");
}

#[test]
fn a_revision_in_two_responses_is_found() {
    let world = World::new();
    let other = |number| mvccpb::KeyValue { key: "/w/other".into(), version: 1, ..kv(number) };
    world.receive(0, vec![event(1)]);
    world.receive(0, vec![mvccpb::Event { kv: Some(other(1)), ..Default::default() }]);
    let (count, told) = world.validator.finish();
    assert!(count > 0 && told.iter().any(|text| text.starts_with("atomic")), "{told:?}");
}

#[test]
fn writes_with_an_unknown_answer_may_have_happened() {
    let world = World::new();
    world.validator.unknown(1);
    world.receive(0, vec![event(1)]);
    world.receive(1, vec![event(1)]);
    assert_eq!(world.validator.finish().0, 0);
}

#[test]
fn a_stale_read_is_found() {
    let validator = Validator::default();
    let read = |revision, kvs: Vec<mvccpb::KeyValue>| {
        let header = pb::ResponseHeader { revision, ..Default::default() };
        pb::RangeResponse { header: Some(header), kvs, ..Default::default() }
    };
    for number in 1..=4 {
        validator.acknowledged(&key(number), i64::try_from(number).expect("small") + 1, number);
    }
    let begin = validator.begin_read(&key(4));
    validator.end_read(begin, &key(4), &read(5, vec![kv(4)]));
    validator.end_read(begin, &key(4), &read(9, vec![kv(4)]));
    assert_eq!(validator.finish().0, 0);
    validator.end_read(begin, &key(4), &read(4, vec![kv(4)]));
    assert_eq!(validator.finish().0, 1, "an older revision");
    validator.end_read(begin, &key(4), &read(5, vec![kv(1)]));
    assert_eq!(validator.finish().0, 2, "an older version");
}
