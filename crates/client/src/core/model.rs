//! The core beside a naive server: any history, delivered in any pieces, broken off anywhere, compacted at any time.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use tailwater_api::etcdserverpb::{RangeRequest, RangeResponse, WatchResponse};

use super::tests::header;
use super::*;

const WATCH: i64 = 0;
/// Values from here on can't be decoded.
const GOOD_VALUES: u8 = 6;

#[derive(Clone, Debug)]
enum Action {
    /// A transaction: these keys are put, or deleted where they are there.
    Write(BTreeMap<u8, Option<u8>>),
    /// The stream delivers up to so many revisions in one answer, cut into fragments of so many events, and breaks before
    /// that fragment, if there is one of the number.
    Deliver { revisions: usize, fragment_events: usize, breaks_before: usize },
    /// The server tells how far the stream is.
    Progress,
    /// The connection ends; the next one begins so many revisions further back than it was asked to.
    Break { repeated: i64 },
    /// So many of the newest revisions are kept.
    Compact { kept: i64 },
    /// A list that is taken in pages is interrupted by a compaction.
    ListInPages { is_compacted: bool },
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let write = proptest::collection::btree_map(0..5u8, proptest::option::weighted(0.7, 0..8u8), 1..4);
    let action = prop_oneof![
        6 => write.prop_map(Action::Write),
        5 => (1..5usize, 1..4usize, 0..6usize).prop_map(|(revisions, fragment_events, breaks_before)| {
            Action::Deliver { revisions, fragment_events, breaks_before }
        }),
        2 => Just(Action::Progress),
        2 => (0..3i64).prop_map(|repeated| Action::Break { repeated }),
        1 => (0..4i64).prop_map(|kept| Action::Compact { kept }),
        1 => any::<bool>().prop_map(|is_compacted| Action::ListInPages { is_compacted }),
    ];
    vec(action, 1..80)
}

/// Everything that was ever written, by revision; computed from the begin for each question.
#[derive(Default)]
struct Server {
    /// The changes of revision 2 and on.
    history: Vec<BTreeMap<u8, Option<u8>>>,
    compacted: i64,
}

impl Server {
    fn revision(&self) -> i64 {
        i64::try_from(self.history.len()).expect("few") + 1
    }

    fn write(&mut self, mut changes: BTreeMap<u8, Option<u8>>) {
        let live = self.at(self.revision());
        changes.retain(|key, value| value.is_some() || live.contains_key(key));
        if !changes.is_empty() {
            self.history.push(changes);
        }
    }

    /// The live keys at a revision.
    fn at(&self, revision: i64) -> BTreeMap<u8, KeyValue> {
        let mut live: BTreeMap<u8, KeyValue> = BTreeMap::new();
        for (mod_revision, changes) in (2..=revision).zip(&self.history) {
            for (&key, value) in changes {
                let Some(value) = value else {
                    live.remove(&key);
                    continue;
                };
                let kv =
                    live.entry(key).or_insert_with(|| KeyValue { create_revision: mod_revision, ..Default::default() });
                kv.key = vec![key].into();
                kv.value = vec![*value].into();
                kv.mod_revision = mod_revision;
                kv.version += 1;
            }
        }
        live
    }

    /// The events of one revision.
    fn events(&self, revision: i64) -> Vec<Event> {
        let index = usize::try_from(revision - 2).expect("a revision that was written");
        let (before, after) = (self.at(revision - 1), self.at(revision));
        let event = |key: &u8| match after.get(key) {
            Some(kv) => Event { kv: Some(kv.clone()), prev_kv: before.get(key).cloned(), ..Default::default() },
            None => {
                let kv = KeyValue { key: vec![*key].into(), mod_revision: revision, ..Default::default() };
                Event { r#type: EventType::Delete as i32, kv: Some(kv), prev_kv: before.get(key).cloned() }
            }
        };
        self.history[index].keys().map(event).collect()
    }

    fn range(&self, request: &RangeRequest) -> Option<RangeResponse> {
        let at = if request.revision == 0 { self.revision() } else { request.revision };
        let limit = usize::try_from(request.limit).expect("not negative");
        let behind = |kv: &KeyValue| kv.key >= request.key;
        let kvs: Vec<KeyValue> = self.at(at).into_values().filter(behind).collect();
        let taken = if limit == 0 { kvs.len() } else { kvs.len().min(limit) };
        let more = taken < kvs.len();
        let answer = RangeResponse { header: header(self.revision()), count: 0, kvs: kvs[..taken].to_vec(), more };
        (at >= self.compacted).then_some(answer)
    }
}

/// The core, driven as the driver does it, and what a subscriber is told.
struct World {
    server: Server,
    core: Core<u8>,
    /// The next revision of the stream, where one is open.
    stream: Option<i64>,
    repeated: i64,
    told: Vec<Change<u8>>,
    compactions: usize,
}

impl World {
    fn new() -> Self {
        let decode = |_: &[u8], value: Bytes| -> Result<u8, BoxError> {
            match value[0] {
                good if good < GOOD_VALUES => Ok(good),
                bad => Err(format!("{bad} is too much").into()),
            }
        };
        let core = Core::new(KeyRange::prefix(""), Arc::new(decode), 2, true);
        Self { server: Server::default(), core, stream: None, repeated: 0, told: Vec::new(), compactions: 0 }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Write(changes) => self.server.write(changes),
            Action::Deliver { revisions, fragment_events, breaks_before } => {
                self.deliver(revisions, fragment_events, breaks_before);
            }
            Action::Progress => self.progress(),
            Action::Break { repeated } => {
                self.stream = None;
                self.core.on_stream_end();
                self.repeated = repeated;
            }
            Action::Compact { kept } => {
                self.server.compacted = self.server.compacted.max(self.server.revision() - kept);
            }
            Action::ListInPages { is_compacted } => self.list_in_pages(is_compacted),
        }
    }

    fn take(&mut self, batch: Batch<u8>) {
        self.told.extend(if batch.is_first { batch.state.into_changes().collect() } else { batch.changes });
    }

    fn answer(&mut self, answer: WatchResponse) {
        match self.core.on_answer(answer) {
            Step::Nothing | Step::Created { .. } => {}
            Step::Changed(batch) => self.take(batch),
            Step::Relist(_) => self.stream = None,
            Step::Ended(reason) => panic!("{reason}"),
        }
    }

    /// A watch is open afterwards, unless its begin is compacted.
    fn open(&mut self) {
        if self.core.next() == Next::List {
            let answer = self.server.range(&self.core.list_request()).expect("never compacted: it is the newest");
            // The revision comes with the last piece.
            let (header, pieces) = (answer.header, answer.kvs.chunks(2).map(<[_]>::to_vec));
            for kvs in pieces {
                self.core.on_piece(RangeResponse { kvs, ..Default::default() }).expect("a good piece");
            }
            self.core.on_piece(RangeResponse { header, ..Default::default() }).expect("a good piece");
            let batch = self.core.on_list_end().expect("whole");
            self.take(batch);
        }
        if self.stream.is_none() {
            let start = self.core.watch_request().start_revision - std::mem::take(&mut self.repeated);
            self.stream = Some(start.max(self.server.compacted).max(2));
            self.core.on_stream_begin();
            let created = WatchResponse { created: true, header: header(self.server.revision()), ..Default::default() };
            self.answer(created);
            if self.core.watch_request().start_revision < self.server.compacted {
                self.cancel();
            }
        }
    }

    fn cancel(&mut self) {
        self.compactions += 1;
        let compact_revision = self.server.compacted;
        self.answer(WatchResponse { canceled: true, compact_revision, ..Default::default() });
        assert_eq!(self.core.next(), Next::List);
    }

    fn deliver(&mut self, revisions: usize, fragment_events: usize, breaks_before: usize) {
        self.open();
        let Some(from) = self.stream else { return };
        if from < self.server.compacted {
            return self.cancel();
        }
        let revisions: Vec<i64> = (from..=self.server.revision()).take(revisions).collect();
        let Some(last) = revisions.last() else { return };
        let events: Vec<Event> = revisions.iter().flat_map(|revision| self.server.events(*revision)).collect();
        let fragments = events.chunks(fragment_events).collect::<Vec<_>>();
        for (number, events) in fragments.iter().enumerate() {
            if number + 1 == breaks_before {
                self.stream = None;
                self.core.on_stream_end();
                return;
            }
            let fragment = number + 1 < fragments.len();
            let header = header(self.server.revision());
            self.answer(WatchResponse {
                header,
                watch_id: WATCH,
                fragment,
                events: events.to_vec(),
                ..Default::default()
            });
        }
        self.stream = self.stream.and(Some(last + 1));
    }

    /// Only a stream that has been sent everything is told the newest revision.
    fn progress(&mut self) {
        self.open();
        if self.stream.is_some_and(|next| next > self.server.revision()) {
            let header = header(self.server.revision());
            self.answer(WatchResponse { header, watch_id: ALL_WATCHES, ..Default::default() });
        }
    }

    /// If a list is wanted, takes it in pages; a compaction between two of them makes it begin anew.
    fn list_in_pages(&mut self, mut is_compacted: bool) {
        while self.core.next() == Next::List {
            match self.server.range(&self.core.page_request()) {
                Some(page) => {
                    if let Some(batch) = self.core.on_page(page).expect("a good page") {
                        self.take(batch);
                    }
                }
                None => self.core.restart_list(),
            }
            if std::mem::take(&mut is_compacted) {
                self.server.write(BTreeMap::from([(4, Some(1))]));
                self.server.compacted = self.server.revision();
            }
        }
    }

    /// Delivers what is left.
    fn finish(&mut self) {
        for _ in 0..3 {
            self.deliver(usize::MAX, usize::MAX, 0);
        }
        self.progress();
    }
}

/// What a subscriber believes: the revision of each object, and of each key that it was told can't be decoded.
type Belief = BTreeMap<u8, (i64, bool)>;

/// What is true at a revision.
fn truth(server: &Server, revision: i64) -> Belief {
    let live = server.at(revision).into_iter();
    live.map(|(key, kv)| (key, (kv.mod_revision, kv.value[0] < GOOD_VALUES))).collect()
}

/// One change in short: the key and what it is believed to be then.
fn read(change: &Change<u8>, belief: &Belief) -> (u8, Option<(i64, bool)>) {
    let (key, now, old) = match change {
        Change::Applied { old, new } => (new.key[0], Some((new.mod_revision(), true)), old.clone()),
        Change::Undecodable { what, old } => (what.key[0], Some((what.stamp.mod_revision, false)), old.clone()),
        Change::Deleted { old, .. } => (old.key[0], None, Some(old.clone())),
        Change::Relisted { .. } | Change::Synced { .. } => panic!("a change was expected: {change:?}"),
    };
    let held = belief.get(&key).filter(|(_, is_good)| *is_good).map(|(revision, _)| *revision);
    assert_eq!(old.map(|old| old.mod_revision()), held, "what was before {change:?}");
    (key, now)
}

/// Revision, key, and what it is then.
type Told = (i64, u8, Option<(i64, bool)>);

/// What must be told of the revisions behind `since`, one by one.
fn expected(server: &Server, since: i64) -> Vec<Told> {
    let mut expected = Vec::new();
    for revision in since + 1..=server.revision() {
        let (before, after) = (truth(server, revision - 1), truth(server, revision));
        for event in server.events(revision) {
            let key = event.kv.expect("an event has a key").key[0];
            let is_told = after.contains_key(&key) || before.get(&key).is_some_and(|(_, is_good)| *is_good);
            if is_told {
                expected.push((revision, key, after.get(&key).copied()));
            }
        }
    }
    expected
}

/// Each change was told once, in order; or a difference that is right and was called one. The number of differences.
fn judge(server: &Server, told: Vec<Change<u8>>) -> usize {
    let mut belief = Belief::new();
    let mut left = Vec::<Told>::new().into_iter().peekable();
    // Where a difference, or the state at the begin, started.
    let mut listed_since = Some(0);
    let mut lists = 0;
    for change in told {
        match (&change, listed_since) {
            (Change::Relisted { cause, since }, None) => {
                assert!(matches!(cause, RelistCause::Compacted { .. }), "{change:?}");
                let missed = left.peek().copied().filter(|(revision, ..)| revision <= since);
                assert_eq!(missed, None, "told before {change:?}");
                assert_eq!(truth(server, *since).values().filter(|(_, good)| *good).count(), goods(&belief));
                listed_since = Some(*since);
            }
            (Change::Synced { revision }, Some(_)) => {
                forget_gone(&mut belief, server, *revision);
                assert_eq!(belief, truth(server, *revision), "at {change:?}");
                left = expected(server, *revision).into_iter().peekable();
                listed_since = None;
                lists += 1;
            }
            (change, Some(_)) => {
                let (key, now) = read(change, &belief);
                assert_ne!(belief.get(&key).copied(), now, "{change:?} says nothing new");
                set(&mut belief, key, now);
            }
            (change, None) => {
                let (key, now) = read(change, &belief);
                let (_, next_key, next) = left.next().expect("nothing more was written");
                assert_eq!((key, now), (next_key, next), "at {change:?}");
                set(&mut belief, key, now);
            }
        }
    }
    assert_eq!(left.next(), None, "not told");
    forget_gone(&mut belief, server, server.revision());
    assert_eq!(belief, truth(server, server.revision()));
    lists - 1
}

fn goods(belief: &Belief) -> usize {
    belief.values().filter(|(_, is_good)| *is_good).count()
}

fn set(belief: &mut Belief, key: u8, now: Option<(i64, bool)>) {
    match now {
        Some(now) => drop(belief.insert(key, now)),
        None => drop(belief.remove(&key)),
    }
}

/// Nothing is told of the end of a key that could not be decoded.
fn forget_gone(belief: &mut Belief, server: &Server, revision: i64) {
    let live = truth(server, revision);
    belief.retain(|key, (_, is_good)| *is_good || live.contains_key(key));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_change_comes_once_whatever_breaks(actions in actions()) {
        let mut world = World::new();
        for action in actions {
            world.act(action);
        }
        world.finish();
        let state = world.core.state().clone();
        prop_assert_eq!(state.revision(), world.server.revision());
        let cached: Vec<(u8, i64, u8)> = state.iter().map(|o| (o.key[0], o.mod_revision(), o.value)).collect();
        let live = world.server.at(state.revision()).into_iter().filter(|(_, kv)| kv.value[0] < GOOD_VALUES);
        prop_assert_eq!(cached, live.map(|(key, kv)| (key, kv.mod_revision, kv.value[0])).collect::<Vec<_>>());
        prop_assert_eq!(judge(&world.server, world.told), world.compactions);
    }
}
