//! A source in memory, and a client that checks what it receives against all events that were ever written.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod worlds;

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use tailwater_api::etcdserverpb::WatchResponse;
use tailwater_eventlog::{
    Cursor, Envelope, Event, EventKind, Fact, Frame, History, HistoryChunk, HistoryError, HistoryEvent, HistoryId,
    HistoryPoint, KeyRange, LeaseId, LiveChunk, Position, Revision, Source, SourceError, StateChunk, StateQuery, Tail,
    TailConfig, TailError,
};
use tailwater_fanout::{CreateWatch, Fanout, FanoutConfig, WatchControl, WatchFilter, WatchStream};

/// A change of one key; no value: a delete.
pub type Change = (Vec<u8>, Option<Vec<u8>>);

#[derive(Default)]
pub struct State {
    pub events: Vec<Arc<Event>>,
    pub live: BTreeMap<Vec<u8>, Arc<Event>>,
    pub revision: i64,
    pub compacted: i64,
    position: u64,
}

impl State {
    /// Writes a record, if there is anything to write.
    fn change(&mut self, changes: &[Change]) -> Vec<Arc<Event>> {
        let revision = Revision(self.revision + 1);
        let mut events = Vec::new();
        for (key, value) in changes {
            let old = self.live.get(key).cloned();
            let sub = u32::try_from(events.len()).unwrap();
            let prev = old.as_ref().map(|o| (o.revision(), o.sub()));
            let event = match (value, &old) {
                (None, None) => continue,
                (None, Some(_)) => Event::delete(revision, sub, key, prev),
                (Some(value), _) => {
                    let envelope = Envelope {
                        kind: EventKind::Put,
                        revision,
                        sub,
                        create_revision: old.as_ref().map_or(revision, |o| o.envelope().create_revision),
                        version: old.as_ref().map_or(1, |o| o.envelope().version + 1),
                        lease: LeaseId(0),
                        prev,
                    };
                    Event::put(envelope, key, value)
                }
            };
            events.push(Arc::new(event));
        }
        for event in &events {
            match event.kind() {
                EventKind::Put => self.live.insert(event.key().to_vec(), event.clone()),
                EventKind::Delete => self.live.remove(event.key()),
            };
        }
        if !events.is_empty() {
            self.revision = revision.0;
            self.events.extend(events.iter().cloned());
        }
        events
    }
}

fn frame(state: &mut State, events: Vec<Arc<Event>>, facts: Vec<Fact>) -> Arc<Frame> {
    state.position += 1;
    let (position, revision) = (Position(state.position), Revision(state.revision));
    Arc::new(Frame { position, revision, events, facts, ..Frame::default() })
}

/// Everything that was written; the fanout's source.
pub struct World {
    pub state: Mutex<State>,
    tail: Tail,
    /// The next `follow` says that the tail has left the reader behind.
    pub behind: AtomicBool,
    /// Reads of history that it has answered.
    pub reads: AtomicUsize,
    /// Reads of older states that it has answered, and those of them that asked it to count.
    pub states: [AtomicUsize; 2],
}

impl World {
    pub fn new() -> Arc<Self> {
        Self::of_history(1)
    }

    pub fn of_history(history: u64) -> Arc<Self> {
        let cursor = Cursor { history: HistoryId(history), revision: Revision(1), position: Position(1) };
        let tail = Tail::new(TailConfig { hot_bytes_max: 1 << 27 }, cursor, vec![]);
        let state = State { revision: 1, position: 1, ..State::default() };
        let (behind, reads, states) = (AtomicBool::new(false), AtomicUsize::new(0), Default::default());
        Arc::new(Self { state: Mutex::new(state), tail, behind, reads, states })
    }

    /// One record; deletes of what is not there are left out. Returns the revision that is reached.
    pub fn commit(&self, changes: &[Change]) -> i64 {
        let mut state = self.state.lock().unwrap();
        let events = state.change(changes);
        if !events.is_empty() {
            self.publish(&mut state, events, vec![]);
        }
        state.revision
    }

    pub fn put(&self, key: &str, value: &[u8]) -> i64 {
        self.commit(&[(key.into(), Some(value.into()))])
    }

    pub fn delete(&self, key: &str) -> i64 {
        self.commit(&[(key.into(), None)])
    }

    pub fn compact(&self, revision: i64) {
        let mut state = self.state.lock().unwrap();
        state.compacted = state.compacted.max(revision);
        let fact = Fact::Compacted(Revision(state.compacted));
        self.publish(&mut state, vec![], vec![fact]);
    }

    /// Facts without an event.
    pub fn tell(&self, facts: Vec<Fact>) {
        let mut state = self.state.lock().unwrap();
        self.publish(&mut state, vec![], facts);
    }

    /// As a member that was far behind and has taken over the state of another: `records` of changes that no tail of
    /// this source ever held, a compaction, and a tail that goes on behind them.
    pub fn jump(&self, records: &[Vec<Change>], compacted: i64) {
        let mut state = self.state.lock().unwrap();
        for changes in records {
            state.change(changes);
            state.position += 1;
        }
        state.position += 1;
        state.compacted = state.compacted.max(compacted.min(state.revision));
        let (position, revision) = (Position(state.position), Revision(state.revision));
        let facts = [Fact::Compacted(Revision(state.compacted))];
        self.tail.restart(Cursor { history: HistoryId(1), revision, position }, &facts);
    }

    /// Several records that readers of the tail get together.
    pub fn commit_together(&self, records: &[Vec<Change>]) {
        let mut state = self.state.lock().unwrap();
        let frames = records.iter().map(|changes| {
            let events = state.change(changes);
            frame(&mut state, events, vec![])
        });
        self.tail.publish(frames.collect());
    }

    fn publish(&self, state: &mut State, events: Vec<Arc<Event>>, facts: Vec<Fact>) {
        self.tail.publish(vec![frame(state, events, facts)]);
    }

    pub fn revision(&self) -> i64 {
        self.state.lock().unwrap().revision
    }

    /// Waits until the fanout shows everything.
    pub fn settle(&self, fanout: &Fanout) {
        let position = self.tail.end().position;
        wait_until("the fanout follows", || fanout.snapshot().cursor.position >= position);
    }
}

pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(20), "waited too long until {what}");
        std::thread::sleep(Duration::from_micros(50));
    }
}

impl History for World {
    fn read(
        &self,
        ranges: &[KeyRange],
        from: HistoryPoint,
        to: Revision,
        with_prev: bool,
        bytes_max: usize,
    ) -> Result<HistoryChunk, HistoryError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let state = self.state.lock().unwrap();
        let compacted = Revision(state.compacted);
        if from.revision < compacted {
            return Err(HistoryError::Compacted(compacted));
        }
        let mut chunk = HistoryChunk { events: Vec::new(), next: None, compacted };
        let mut bytes = 0;
        let at = |e: &Arc<Event>| (e.revision(), e.sub());
        let begin = state.events.partition_point(|e| at(e) < (from.revision, from.sub));
        for event in state.events[begin..].iter().take_while(|e| e.revision() <= to) {
            if bytes >= bytes_max {
                chunk.next = Some(HistoryPoint { revision: event.revision(), sub: event.sub() });
                break;
            }
            if ranges.iter().any(|r| r.contains(event.key())) {
                bytes += event.bytes().len();
                let prev = event.prev().filter(|_| with_prev && event.revision() > compacted);
                let prev = prev.map(|prev| state.events[state.events.partition_point(|e| at(e) < prev)].clone());
                chunk.events.push(HistoryEvent { event: event.clone(), prev });
            }
        }
        Ok(chunk)
    }

    fn state_at(&self, query: &StateQuery) -> Result<StateChunk, HistoryError> {
        self.states[0].fetch_add(1, Ordering::SeqCst);
        self.states[1].fetch_add(usize::from(query.count), Ordering::SeqCst);
        let state = self.state.lock().unwrap();
        if query.at.0 < state.compacted {
            return Err(HistoryError::Compacted(Revision(state.compacted)));
        }
        let events = &state.events;
        let mut live = BTreeMap::new();
        for event in events.iter().filter(|e| e.revision() <= query.at && query.range.contains(e.key())) {
            match event.kind() {
                EventKind::Put => live.insert(event.key().to_vec(), event.clone()),
                EventKind::Delete => live.remove(event.key()),
            };
        }
        live.retain(|key, _| query.after.as_ref().is_none_or(|after| after.as_ref() < key.as_slice()));
        let mut chunk = StateChunk::default();
        let mut bytes = 0;
        while chunk.events.len() < query.keys_max && bytes < query.bytes_max {
            let Some((_, event)) = live.pop_first() else { break };
            bytes += event.bytes().len();
            chunk.events.push(event);
        }
        let last = chunk.events.last().map(|event| Bytes::copy_from_slice(event.key()));
        chunk.resume_after = last.or(query.after.clone()).filter(|_| !live.is_empty());
        chunk.rest = if query.count { live.len() } else { 0 };
        Ok(chunk)
    }
}

impl Source for World {
    fn transfer_begin(&self) -> Result<(Cursor, Vec<Fact>), SourceError> {
        Ok(self.tail.snapshot())
    }

    fn transfer_end(&self) -> Revision {
        Revision(self.revision())
    }

    fn transfer(&self, range: &KeyRange, after: Option<&Bytes>, _: usize) -> Result<LiveChunk, SourceError> {
        let state = self.state.lock().unwrap();
        let rest = state.live.iter().filter(|(key, _)| after.is_none_or(|after| after.as_ref() < key.as_slice()));
        let rest = rest.filter(|(key, _)| range.contains(key));
        let events: Vec<_> = rest.map(|(_, event)| event.clone()).take(7).collect();
        let resume_after = events.last().filter(|_| events.len() == 7).map(|e| Bytes::copy_from_slice(e.key()));
        Ok(LiveChunk { events, resume_after })
    }

    fn transfer_leaving_values(
        &self,
        range: &KeyRange,
        after: Option<&Bytes>,
        bytes_max: usize,
        unread_bytes_min: usize,
    ) -> Result<LiveChunk, SourceError> {
        let mut chunk = self.transfer(range, after, bytes_max)?;
        for event in &mut chunk.events {
            if event.envelope().version == 1 && event.value().len() >= unread_bytes_min {
                *event = Arc::new(event.without_value());
            }
        }
        Ok(chunk)
    }

    fn follow(&self, cursor: Cursor, bytes_max: usize, timeout: Duration) -> Result<Vec<Arc<Frame>>, TailError> {
        if self.behind.swap(false, Ordering::SeqCst) {
            return Err(TailError::Behind(cursor));
        }
        self.tail.wait(cursor, bytes_max, timeout)
    }
}

pub fn config() -> FanoutConfig {
    FanoutConfig {
        cluster_id: 1,
        member_id: 2,
        window_bytes_max: 1 << 20,
        stream_chunk_bytes: 4096,
        watch_memory_bytes_max: 1 << 20,
        list_memory_bytes_max: 1 << 20,
        response_bytes_max: 1 << 20,
        fragment_bytes_max: 1 << 21,
        progress_interval: Duration::from_secs(600),
        ..FanoutConfig::default()
    }
}

/// A fanout on `world` that is ready.
pub fn start(world: &Arc<World>, config: FanoutConfig) -> Fanout {
    let fanout = Fanout::start(config, world.clone());
    world.settle(&fanout);
    fanout
}

pub fn watch(range: KeyRange, start: i64) -> CreateWatch {
    CreateWatch {
        range,
        start: Revision(start),
        progress_notify: false,
        filter: WatchFilter::default(),
        prev_kv: false,
        watch_id: 0,
        fragment: false,
    }
}

/// What the client knows of one watcher.
pub struct Watching {
    pub create: CreateWatch,
    start: i64,
    /// Index of the event after the last one that was received or passed over.
    next: usize,
    pub received: usize,
    /// Events with a previous version.
    pub prevs: usize,
    /// In the middle of a fragmented revision.
    fragment: bool,
    pub progress: Option<i64>,
    pub compacted: bool,
}

/// A stream with its checks. `poll` panics when a guarantee is broken.
pub struct Client {
    pub world: Arc<World>,
    pub control: WatchControl,
    pub stream: WatchStream,
    asked: VecDeque<CreateWatch>,
    pub watchers: BTreeMap<i64, Watching>,
    buffer: Vec<u8>,
    pub progress: Vec<i64>,
    /// Responses that are about no event of a watcher: created, canceled.
    pub answers: Vec<WatchResponse>,
    pub responses: usize,
    /// The stream ended because what a message had begun with was compacted; resume from the cursors.
    pub ended: bool,
}

impl Client {
    pub fn new(world: &Arc<World>, fanout: &Fanout) -> Self {
        let (control, stream) = fanout.open_stream();
        Self {
            world: world.clone(),
            control,
            stream,
            asked: VecDeque::new(),
            watchers: BTreeMap::new(),
            buffer: Vec::new(),
            progress: Vec::new(),
            answers: Vec::new(),
            responses: 0,
            ended: false,
        }
    }

    pub fn create(&mut self, create: CreateWatch) {
        self.asked.push_back(create.clone());
        self.control.create(create, None);
    }

    /// Pulls one piece; false when there was none.
    pub fn poll(&mut self) -> bool {
        match Pin::new(&mut self.stream).poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(piece)) => self.buffer.extend_from_slice(&piece),
            Poll::Ready(None) => {
                self.ended_by_compaction();
                return false;
            }
            Poll::Pending => return false,
        }
        let mut begin = 0;
        while let Some(prefix) = self.buffer.get(begin..begin + 5) {
            let len = u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize;
            let Some(message) = self.buffer.get(begin + 5..begin + 5 + len) else { break };
            let response = WatchResponse::decode(message).unwrap();
            begin += 5 + len;
            self.check(response);
        }
        self.buffer.drain(..begin);
        true
    }

    fn ended_by_compaction(&mut self) {
        let state = self.world.state.lock().unwrap();
        let mut missing = self.watchers.values().filter_map(|w| w.missing(&state, i64::MAX));
        let legal = missing.any(|event| event.revision().0 <= state.compacted);
        assert!(legal && self.stream.status().0 == 14, "ended: {:?}", self.stream.status());
        self.ended = true;
    }

    pub fn poll_until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let begin = Instant::now();
        while !done(self) {
            if !self.poll() {
                assert!(begin.elapsed() < Duration::from_secs(20), "waited too long until {what}");
                std::thread::sleep(Duration::from_micros(20));
            }
        }
    }

    /// Pulls for a moment.
    pub fn poll_for(&mut self, time: Duration) {
        let begin = Instant::now();
        while begin.elapsed() < time {
            if !self.poll() {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    }

    /// Whether every watcher has received everything.
    pub fn is_complete(&self) -> bool {
        let state = self.world.state.lock().unwrap();
        self.asked.is_empty()
            && self.buffer.is_empty()
            && self.watchers.values().all(|w| w.compacted || w.missing(&state, i64::MAX).is_none())
    }

    fn check(&mut self, response: WatchResponse) {
        let world = self.world.clone();
        let state = world.state.lock().unwrap();
        self.responses += 1;
        let (id, header) = (response.watch_id, response.header.as_ref().unwrap());
        if response.created {
            let create = self.asked.pop_front().expect("created answers follow requests");
            if !response.canceled {
                let start = if create.start.0 == 0 { header.revision + 1 } else { create.start.0 };
                let next = state.events.partition_point(|e| e.revision().0 < start);
                let watching = Watching {
                    create,
                    start,
                    next,
                    received: 0,
                    prevs: 0,
                    fragment: false,
                    progress: None,
                    compacted: false,
                };
                assert!(self.watchers.insert(id, watching).is_none(), "id {id} was in use");
            }
            self.answers.push(response);
        } else if response.canceled {
            if response.compact_revision > 0 {
                let watching = self.watchers.get_mut(&id).expect("a watcher is ended once");
                assert!(!watching.fragment, "ended within a revision");
                let from = state.events.get(watching.next).map_or(state.revision + 1, |e| e.revision().0);
                let from = from.min(watching.create.start.0.max(1)).max(0);
                assert!(from <= response.compact_revision && response.compact_revision <= state.compacted);
                watching.compacted = true;
            } else {
                assert!(self.watchers.remove(&id).is_some(), "canceled {id} without a watcher");
            }
            self.answers.push(response);
        } else if response.events.is_empty() && id == -1 {
            for watching in self.watchers.values().filter(|w| !w.compacted) {
                assert!(!watching.fragment, "progress within a revision");
                assert!(watching.create.start.0 <= header.revision, "progress before the start is reached");
                if let Some(missing) = watching.missing(&state, header.revision) {
                    panic!("progress {} overtook {missing:?}", header.revision);
                }
            }
            self.progress.push(header.revision);
        } else {
            let watching = self.watchers.get_mut(&id).expect("nothing for a watcher before created or after canceled");
            watching.check(&state, &response);
        }
    }
}

impl Watching {
    fn wants(&self, event: &Event) -> bool {
        let filter = self.create.filter;
        self.create.range.contains(event.key())
            && event.revision().0 >= self.start
            && match event.kind() {
                EventKind::Put => !filter.no_put,
                EventKind::Delete => !filter.no_delete,
            }
    }

    /// The next event up to `revision` that was not received.
    fn missing<'a>(&self, state: &'a State, revision: i64) -> Option<&'a Arc<Event>> {
        let rest = state.events.get(self.next..).unwrap_or_default();
        rest.iter().take_while(|e| e.revision().0 <= revision).find(|e| self.wants(e))
    }

    fn check(&mut self, state: &State, response: &WatchResponse) {
        let header = response.header.as_ref().unwrap().revision;
        assert!(!self.compacted, "something came after the end");
        if response.events.is_empty() && std::mem::replace(&mut self.fragment, response.fragment) {
            return;
        }
        if response.events.is_empty() {
            assert!(!self.fragment && self.create.progress_notify && self.create.start.0 <= header);
            assert!(self.missing(state, header).is_none(), "bookmarkable: progress {header} overtook events");
            self.progress = Some(header);
            return;
        }
        let mut last = 0;
        for event in &response.events {
            let kv = event.kv.as_ref().unwrap();
            let expected = self.missing(state, i64::MAX).expect("unique: an event that was not written");
            assert_eq!(
                (&kv.key[..], kv.mod_revision),
                (expected.key(), expected.revision().0),
                "ordered, unique, reliable: {:?}",
                self.create
            );
            let envelope = expected.envelope();
            assert_eq!(event.r#type == 1, envelope.kind == EventKind::Delete);
            assert_eq!(&kv.value[..], expected.value());
            assert_eq!((kv.version, kv.create_revision), (envelope.version, envelope.create_revision.0));
            self.check_prev(state, expected, event.prev_kv.as_ref());
            last = kv.mod_revision;
            let (revision, sub) = (expected.revision(), expected.sub());
            self.next = state.events.partition_point(|e| (e.revision(), e.sub()) <= (revision, sub));
            self.received += 1;
            self.prevs += usize::from(event.prev_kv.is_some());
        }
        assert!(header >= last, "the header is behind the events");
        self.fragment = response.fragment;
        assert!(self.create.fragment || !response.fragment, "fragments that nobody asked for");
        if !response.fragment {
            assert!(self.missing(state, last).is_none(), "atomic: revision {last} was split");
        }
    }

    fn check_prev(&self, state: &State, event: &Event, prev: Option<&tailwater_api::mvccpb::KeyValue>) {
        if prev.is_none() && !self.create.prev_kv {
            return;
        }
        let below = state.events.partition_point(|e| e.revision() < event.revision());
        let expected = state.events[..below].iter().rev().find(|e| e.key() == event.key());
        // A put that makes the key has none, as in etcd, also in the revision that deleted it.
        let creates = event.kind() == EventKind::Put && event.envelope().create_revision == event.revision();
        let expected = expected.filter(|e| self.create.prev_kv && e.kind() == EventKind::Put && !creates);
        match prev {
            Some(prev) => {
                let expected = expected.expect("prev_kv: there was none");
                assert_eq!((prev.mod_revision, &prev.value[..]), (expected.revision().0, expected.value()), "prev_kv");
            }
            None => assert!(
                expected.is_none() || event.revision().0 <= state.compacted,
                "prev_kv is missing: {:?} without {:?}; compacted {}, at {}",
                event.envelope(),
                expected.map(|e| e.envelope()),
                state.compacted,
                state.revision
            ),
        }
    }
}
