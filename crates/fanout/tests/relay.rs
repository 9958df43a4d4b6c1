//! Fanouts behind fanouts: what they answer is what a fanout at the core answers, whatever becomes of those between.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;
use support::worlds::{Reader, part, range, run};
use support::{Client, World, config, start, wait_until, watch};
use tailwater_eventlog::{
    Cursor, EventKind, Fact, Frame, History, HistoryChunk, HistoryError, HistoryPoint, KeyRange, LiveChunk, MemberId,
    Position, Revision, Source, SourceError, StateChunk, StateQuery, TailError, Term,
};
use tailwater_fanout::{Fanout, FanoutConfig, RangeQuery, ReadError};

/// Goes from one source to another, as a reader does whose sources die.
struct Choice {
    sources: Mutex<Vec<Arc<dyn Source>>>,
    current: AtomicUsize,
    /// A transfer that began elsewhere.
    moved: AtomicBool,
}

impl Choice {
    fn new(sources: Vec<Arc<dyn Source>>) -> Arc<Self> {
        Arc::new(Self { sources: Mutex::new(sources), current: AtomicUsize::new(0), moved: AtomicBool::new(false) })
    }

    fn source(&self) -> Arc<dyn Source> {
        self.sources.lock().unwrap()[self.current.load(Ordering::SeqCst)].clone()
    }

    fn go(&self, to: usize) {
        self.current.store(to, Ordering::SeqCst);
        self.moved.store(true, Ordering::SeqCst);
    }

    fn replace(&self, at: usize, source: Arc<dyn Source>) {
        self.sources.lock().unwrap()[at] = source;
        self.moved.store(true, Ordering::SeqCst);
    }
}

impl History for Choice {
    fn read(
        &self,
        ranges: &[KeyRange],
        from: HistoryPoint,
        to: Revision,
        with_prev: bool,
        bytes_max: usize,
    ) -> Result<HistoryChunk, HistoryError> {
        // As over the wire: one that is behind, or dead, is not the end.
        let begin = Instant::now();
        loop {
            match self.source().read(ranges, from, to, with_prev, bytes_max) {
                Err(HistoryError::Unavailable(_)) if begin.elapsed() < Duration::from_secs(3) => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                answer => return answer,
            }
        }
    }

    fn state_at(&self, query: &StateQuery) -> Result<StateChunk, HistoryError> {
        let begin = Instant::now();
        loop {
            match self.source().state_at(query) {
                Err(HistoryError::Unavailable(_)) if begin.elapsed() < Duration::from_secs(3) => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                answer => return answer,
            }
        }
    }
}

impl Source for Choice {
    fn transfer_begin(&self) -> Result<(Cursor, Vec<Fact>), SourceError> {
        self.moved.store(false, Ordering::SeqCst);
        self.source().transfer_begin()
    }

    fn transfer_end(&self) -> Revision {
        self.source().transfer_end()
    }

    fn transfer(&self, range: &KeyRange, after: Option<&Bytes>, bytes_max: usize) -> Result<LiveChunk, SourceError> {
        let rows = self.source().transfer(range, after, bytes_max.min(300));
        if self.moved.load(Ordering::SeqCst) { Err(SourceError::Restart("moved".into())) } else { rows }
    }

    fn follow(&self, cursor: Cursor, bytes_max: usize, timeout: Duration) -> Result<Vec<Arc<Frame>>, TailError> {
        match self.source().follow(cursor, bytes_max, timeout.min(Duration::from_millis(5))) {
            Err(TailError::Closed) if !self.sources.lock().unwrap().is_empty() => {
                std::thread::sleep(Duration::from_millis(1));
                Ok(Vec::new())
            }
            frames => frames,
        }
    }
}

/// Stops with the last that knows it.
struct Stops(Fanout);

impl Drop for Stops {
    fn drop(&mut self) {
        self.0.stop();
    }
}

fn relay_config(rng_bytes: usize) -> FanoutConfig {
    FanoutConfig { relay_bytes_max: rng_bytes, window_bytes_max: 8000, ..config() }
}

fn live(world: &World, range: &KeyRange, at: i64) -> Vec<(Vec<u8>, i64)> {
    let mut live = BTreeMap::new();
    let state = world.state.lock().unwrap();
    for event in state.events.iter().take_while(|event| event.revision().0 <= at) {
        match event.kind() {
            EventKind::Put => live.insert(event.key().to_vec(), event.revision().0),
            EventKind::Delete => live.remove(event.key()),
        };
    }
    live.into_iter().filter(|(key, _)| range.contains(key)).collect()
}

fn query(range: KeyRange, revision: i64) -> RangeQuery {
    RangeQuery {
        range,
        revision: Some(Revision(revision)),
        limit: 0,
        sort: None,
        count_only: false,
        keys_only: false,
        revision_bounds: (0, 0, 0, 0),
    }
}

/// Lists at a revision are those of all that was written.
fn check_list(rng: &mut StdRng, world: &World, fanout: &Fanout, scoped: bool) {
    let range = range(rng, scoped);
    let at = rng.random_range(1..=fanout.snapshot().cursor.revision.0);
    match fanout.range_here(query(range.clone(), at)) {
        Ok(answer) => {
            let found: Vec<_> = answer.events.iter().map(|e| (e.key().to_vec(), e.revision().0)).collect();
            assert_eq!(found, live(world, &range, at), "{range:?} at {at}");
            assert_eq!(usize::try_from(answer.count).unwrap(), found.len());
        }
        Err(ReadError::Compacted) => assert!(at < world.state.lock().unwrap().compacted, "{at} is not compacted"),
        Err(error) => panic!("{range:?} at {at}: {error}"),
    }
}

/// A fanout that goes to and fro between two relays, one behind the other, and the core itself; relays die now and then
/// and come back with an empty memory.
fn attach(world: &Arc<World>, config: FanoutConfig, scoped: bool) -> Reader {
    let ranges = if scoped { vec![part()] } else { Vec::new() };
    let first = Stops(Fanout::start(relay_config(2000), world.clone()));
    world.settle(&first.0);
    let second_config = FanoutConfig { ranges: ranges.clone(), ..relay_config(0) };
    let second = Stops(Fanout::start(second_config.clone(), first.0.source()));
    let choice = Choice::new(vec![world.clone(), first.0.source(), second.0.source()]);
    choice.go(2);
    let fanout = Fanout::start(FanoutConfig { ranges, ..config }, choice.clone());
    let (world, reader) = (world.clone(), fanout.clone());
    let mut relays = (first, second);
    let disturb = move |rng: &mut StdRng| {
        let relays = &mut relays;
        match rng.random_range(0..6) {
            0 => {
                relays.1 = Stops(Fanout::start(second_config.clone(), relays.0.0.source()));
                choice.replace(2, relays.1.0.source());
            }
            1 => {
                relays.0 = Stops(Fanout::start(relay_config(2000), world.clone()));
                choice.replace(1, relays.0.0.source());
                relays.1 = Stops(Fanout::start(second_config.clone(), relays.0.0.source()));
                choice.replace(2, relays.1.0.source());
            }
            2 => choice.go(0),
            3 => choice.go(1),
            _ => choice.go(2),
        }
        for _ in 0..3 {
            check_list(rng, &world, &reader, scoped);
        }
    };
    Reader { fanout, disturb: Box::new(disturb), scoped }
}

fn run_all(seeds: impl Iterator<Item = u64>, scoped: bool) {
    for seed in seeds {
        let run = || run(seed, &|world: &Arc<World>, config| attach(world, config, scoped));
        if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
            eprintln!("SEED={seed}: replay with SEED={seed} cargo test -p tailwater-fanout --test relay");
            std::panic::resume_unwind(panic);
        }
    }
}

fn seeds() -> Box<dyn Iterator<Item = u64>> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match number("SEED") {
        Some(seed) => Box::new(std::iter::once(seed)),
        None => Box::new(0..number("SEEDS").unwrap_or(80)),
    }
}

#[test]
fn behind_relays_that_die_everything_is_as_at_the_core() {
    run_all(seeds(), false);
}

#[test]
fn scoped_replicas_behind_relays_that_die_answer_their_part_as_the_core_does() {
    run_all(seeds(), true);
}

/// Where a transfer from this relay begins, once it can be asked for one.
fn begin(relay: &Fanout) -> Cursor {
    let source = relay.source();
    wait_until("the relay serves readers", || source.transfer_begin().is_ok());
    source.transfer_begin().unwrap().0
}

/// What a reader that asks again and again gets first.
fn follow(relay: &Fanout, cursor: Cursor) -> Vec<Arc<Frame>> {
    let source = relay.source();
    for _ in 0..1000 {
        let frames = source.follow(cursor, 1 << 20, Duration::from_millis(10)).unwrap();
        if !frames.is_empty() {
            return frames;
        }
    }
    panic!("nothing comes from {cursor:?} on");
}

#[test]
fn facts_and_notices_are_passed_on_in_order() {
    let world = World::new();
    let relay = start(&world, relay_config(1 << 20));
    let source = relay.source();
    let begin = begin(&relay);
    world.put("a", b"1");
    world.tell(vec![Fact::Leader(None, Term(4))]);
    world.put("a", b"2");
    world.tell(vec![Fact::Leader(Some(MemberId(3)), Term(5))]);
    world.settle(&relay);
    let (mut cursor, mut told) = (begin, Vec::new());
    while cursor != relay.snapshot().cursor {
        for frame in source.follow(cursor, 1, Duration::from_secs(1)).unwrap() {
            told.extend(frame.events.iter().map(|event| format!("{}", event.revision().0)));
            told.extend(frame.facts.iter().map(|fact| format!("{fact:?}")));
            cursor = Cursor { position: frame.position, revision: frame.revision, ..cursor };
        }
    }
    assert_eq!(told, ["2", "Leader(None, Term(4))", "3", "Leader(Some(MemberId(3)), Term(5))"]);
    // A reader that is far behind gets what counts now.
    let behind = Cursor { position: Position(0), ..begin };
    let frames = follow(&relay, behind);
    assert!(frames[0].facts.contains(&Fact::Leader(Some(MemberId(3)), Term(5))), "{frames:?}");
    assert_eq!((frames.len(), frames[0].events.len(), frames[0].position), (1, 2, cursor.position));
    relay.stop();
    assert_eq!(source.follow(cursor, 1, Duration::from_secs(60)).unwrap_err(), TailError::Closed);
}

#[test]
fn a_reader_from_before_the_relay_reads_through_or_is_told_to_transfer() {
    let world = World::new();
    for i in 0..50 {
        world.put(&format!("k{}", i % 7), b"v");
    }
    let relay = start(&world, relay_config(1 << 20));
    let now = relay.snapshot().cursor;
    let at =
        |revision| Cursor { revision: Revision(revision), position: Position(u64::try_from(revision).unwrap()), ..now };
    let frames = follow(&relay, at(20));
    let revisions: Vec<_> = frames[0].events.iter().map(|event| event.revision().0).collect();
    assert_eq!(revisions, (21..=51).collect::<Vec<_>>());
    assert_eq!((frames[0].position, frames[0].revision), (now.position, now.revision));
    world.compact(30);
    world.settle(&relay);
    assert_eq!(relay.source().follow(at(20), 1, Duration::ZERO).unwrap_err(), TailError::Behind(at(20)));
    relay.stop();
}

#[test]
fn a_scoped_relay_holds_its_part_and_says_so() {
    let world = World::new();
    for key in ["a", "b1", "b2", "c", "d1"] {
        world.put(key, b"v");
    }
    let ranges = vec![KeyRange::Span("d".into(), "e".into()), part()];
    let relay = start(&world, FanoutConfig { ranges, ..relay_config(1 << 20) });
    assert_eq!(relay.source().ranges(), [part(), KeyRange::Span("d".into(), "e".into())]);
    let list = |range, at| relay.range_here(query(range, at)).map(|answer| answer.count);
    assert_eq!(list(part(), 6).unwrap(), 2);
    assert_eq!(list(KeyRange::Key("d1".into()), 6).unwrap(), 1);
    assert!(matches!(list(KeyRange::all(), 6), Err(ReadError::OutOfScope)));
    assert!(matches!(list(KeyRange::Key("c".into()), 6), Err(ReadError::OutOfScope)));
    // The revision goes on, though nothing that it holds changes; progress says so.
    let mut client = Client::new(&world, &relay);
    client.create(watch(part(), 0));
    client.poll_until("created", |client| !client.answers.is_empty());
    let revision = world.put("a", b"w");
    world.settle(&relay);
    client.control.progress();
    client.poll_until("progress", |client| client.progress.last() == Some(&revision));
    assert_eq!(relay.snapshot().cursor.revision.0, revision);
    // A watcher outside ends the stream as a node does that goes: the client resumes elsewhere.
    let (control, mut stream) = relay.open_stream();
    control.create(watch(KeyRange::all(), 0), None);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert_eq!(std::pin::Pin::new(&mut stream).poll_next(&mut context), std::task::Poll::Ready(None));
    assert_eq!(stream.status().0, 14);
    // A reader that asks for more than there is gets nothing.
    let source = relay.source();
    let all = source.read(&[], HistoryPoint { revision: Revision(2), sub: 0 }, Revision(3), false, 1000);
    assert!(matches!(all, Err(HistoryError::Unavailable(_))));
    drop(client);
    relay.stop();
}

#[test]
fn another_history_is_not_read_before_it_is_there() {
    let (old, new) = (World::new(), World::of_history(2));
    for i in 0..30 {
        old.put(&format!("k{i}"), b"v");
    }
    new.put("other", b"v");
    let choice = Choice::new(vec![old.clone(), new.clone()]);
    let fanout = Fanout::start(relay_config(1 << 20), choice.clone());
    old.settle(&fanout);
    let reader = fanout.source();
    let cursor = begin(&fanout);
    let (_control, mut stream) = fanout.open_stream();
    choice.go(1);
    wait_until("the other history is there", || fanout.snapshot().cursor.history.0 == 2);
    let answer = fanout.range_here(query(KeyRange::all(), 2)).unwrap();
    assert_eq!((answer.header_revision.0, answer.events.len()), (2, 1));
    wait_until("streams of the old one have ended", || {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        std::pin::Pin::new(&mut stream).poll_next(&mut context).is_ready()
    });
    assert_eq!(stream.status().0, 14);
    wait_until("a reader of the old one is told", || {
        matches!(reader.follow(cursor, 1, Duration::ZERO), Err(TailError::OtherHistory))
    });
    fanout.stop();
}

#[test]
fn a_source_that_is_behind_does_not_take_readers_back() {
    let world = World::new();
    for i in 0..40 {
        world.put(&format!("k{i}"), b"v");
    }
    let late = World::new();
    let choice = Choice::new(vec![world.clone(), late.clone()]);
    let fanout = Fanout::start(relay_config(0), choice.clone());
    world.settle(&fanout);
    let before = fanout.snapshot().cursor;
    // It has lost the tail, and what it transfers from now is older than what it shows.
    choice.go(1);
    late.put("k0", b"v");
    late.behind.store(true, Ordering::SeqCst);
    wait_until("it transfers", || !late.behind.load(Ordering::SeqCst));
    for i in 1..40 {
        std::thread::sleep(Duration::from_micros(500));
        assert_eq!(fanout.snapshot().cursor, before);
        late.put(&format!("k{i}"), b"v");
    }
    late.put("k", b"v");
    late.settle(&fanout);
    assert_eq!(fanout.range_here(query(KeyRange::all(), 42)).unwrap().count, 41);
    fanout.stop();
}

/// A fanout has died, and all who watched there resume here, some of them through a relay.
#[test]
fn watchers_that_resume_together_read_history_together() {
    let world = World::new();
    for i in 0..2000 {
        world.put(&format!("k{}", i % 100), &[b'v'; 100]);
    }
    let relay = start(&world, FanoutConfig { window_bytes_max: 4000, ..config() });
    let child = Fanout::start(FanoutConfig { window_bytes_max: 4000, ..config() }, relay.source());
    world.settle(&child);
    let before = world.reads.load(Ordering::SeqCst);
    let mut clients: Vec<_> = (0..500)
        .map(|i| {
            let mut client = Client::new(&world, if i % 2 == 0 { &relay } else { &child });
            client.create(watch(KeyRange::all(), 1000 + i64::from(i * 37 % 50)));
            client
        })
        .collect();
    let begin = Instant::now();
    while !clients.iter().all(Client::is_complete) {
        clients.iter_mut().for_each(|client| {
            client.poll();
        });
        assert!(begin.elapsed() < Duration::from_secs(60));
    }
    let reads = world.reads.load(Ordering::SeqCst) - before;
    assert!((1..=40).contains(&reads), "{reads} reads for 500 watchers");
    drop(clients);
    child.stop();
    relay.stop();
}
