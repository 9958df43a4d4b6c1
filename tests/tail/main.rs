//! A fanout that follows over the network gives its clients what one in the core's process gives: the same random
//! worlds and the same oracles, with sources that are restarted, stalled and switched meanwhile.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "tests")]

#[path = "../../crates/fanout/tests/support/mod.rs"]
mod support;

mod relays;

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use support::worlds::{Reader, run};
use support::{Client, World, config, wait_until, watch};
use tailwater_eventlog::{Fact, KeyRange, MemberId, Revision, Source};
use tailwater_fanout::{Fanout, FanoutConfig, RangeQuery};
use tailwater_transport::{
    CoreWord, CoreWordTeller, Description, RemoteSource, RemoteSourceConfig, SourceFactory, TailService,
    TailServiceConfig,
};
use tokio::runtime::{Builder, Runtime};

const SEEDS: u64 = 40;
const READER: MemberId = MemberId(99);

/// A process that serves a source; dropping it breaks every connection.
struct Node {
    address: SocketAddr,
    service: TailService,
    runtime: Option<Runtime>,
}

impl Node {
    fn start(source: Arc<dyn Source>, word: CoreWord) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), source, word)
    }

    /// Waits until the port is free.
    fn start_at(address: SocketAddr, source: Arc<dyn Source>, word: CoreWord) -> Self {
        Self::serve(address, Box::new(move || source.clone()), Box::new(move || word.clone()), None)
    }

    fn serve(
        address: SocketAddr,
        source: SourceFactory,
        word: CoreWordTeller,
        description: Option<Description>,
    ) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let service = TailService::new(
            TailServiceConfig { heartbeat_interval: Duration::from_millis(20), ..TailServiceConfig::default() },
            source,
            None,
            word,
        );
        if let Some(description) = description {
            service.describe_with(Box::new(move || description.clone()));
        }
        let mut listener = None;
        wait_until("the port is free", || {
            listener = runtime.block_on(tokio::net::TcpListener::bind(address)).ok();
            listener.is_some()
        });
        let listener = listener.unwrap();
        let address = listener.local_addr().unwrap();
        let router = tonic::transport::Server::builder().add_service(service.clone().into_grpc());
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        runtime.spawn(router.serve_with_incoming(incoming));
        Self { address, service, runtime: Some(runtime) }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.service.stop();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        wait_until("the streams have ended", || self.service.streams() == 0);
    }
}

fn core_word() -> CoreWord {
    CoreWord { path: vec![1], age: Duration::ZERO }
}

fn remote(urls: Vec<String>) -> RemoteSource {
    RemoteSource::new(remote_config(urls, READER)).unwrap()
}

fn remote_config(urls: Vec<String>, reader: MemberId) -> RemoteSourceConfig {
    let mut config = RemoteSourceConfig::new(urls, reader);
    config.silence_max = Duration::from_millis(500);
    config.core_age_max = Duration::from_millis(300);
    config.link.backoff = (Duration::from_millis(1), Duration::from_millis(20));
    config
}

/// Two processes serve the world; at each disturbance one of them dies and comes back.
fn attach(world: &Arc<World>, config: FanoutConfig) -> Reader {
    let nodes: Vec<Node> = (0..2).map(|_| Node::start(world.clone(), core_word())).collect();
    let source = remote(nodes.iter().map(Node::url).collect());
    let fanout = Fanout::start(config, Arc::new(source));
    let world = world.clone();
    let nodes = Mutex::new(nodes);
    let disturb = move |rng: &mut StdRng| {
        let nodes = &mut *nodes.lock().unwrap();
        let at = rng.random_range(0..nodes.len());
        let node = nodes.swap_remove(at);
        let address = node.address;
        drop(node);
        nodes.push(Node::start_at(address, world.clone(), core_word()));
    };
    Reader { fanout, disturb: Box::new(disturb), scoped: false }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn watchers_behind_a_remote_source_get_what_etcd_guarantees() {
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(seed, &attach))) {
            eprintln!("SEED={seed}: replay with SEED={seed} cargo test -p tailwater-tests --test tail");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn a_fanout_outlives_its_only_source_and_goes_on_where_it_was() {
    let world = World::new();
    let node = Node::start(world.clone(), core_word());
    let address = node.address;
    let fanout = Fanout::start(config(), Arc::new(remote(vec![node.url()])));
    world.put("a", b"1");
    world.settle(&fanout);
    let mut client = Client::new(&world, &fanout);
    client.create(watch(KeyRange::all(), 0));
    client.poll_until("it watches", |client| !client.watchers.is_empty());
    drop(node);
    for _ in 0..50 {
        world.put("b", b"2");
    }
    std::thread::sleep(Duration::from_millis(700));
    assert!(fanout.snapshot().cursor.revision.0 < world.revision(), "nothing came meanwhile, and nothing ended");
    let _node = Node::start_at(address, world.clone(), core_word());
    client.poll_until("everything came", |client| client.is_complete());
    assert_eq!(client.watchers[&0].received, 50);
    fanout.stop();
}

/// A source that can reach nobody else is still a source; one among others that is cut off from the core is not.
#[test]
fn a_source_that_is_cut_off_or_below_its_reader_is_left_for_another() {
    let (stale, fresh) = (World::new(), World::new());
    for world in [&stale, &fresh] {
        world.put("a", b"1");
    }
    // What is read at one is read on at the other, which is further.
    fresh.tell(vec![]);
    fresh.put("c", b"1");
    let old = CoreWord { path: vec![1], age: Duration::from_secs(9) };
    let circle = CoreWord { path: vec![1, READER.0, 3], age: Duration::ZERO };
    for word in [old, circle] {
        let (behind, good) = (Node::start(stale.clone(), word), Node::start(fresh.clone(), core_word()));
        let fanout = Fanout::start(config(), Arc::new(remote(vec![behind.url(), good.url()])));
        fresh.settle(&fanout);
        fanout.stop();
    }
    // Without a leader for long.
    let (behind, good) = (Node::start(stale.clone(), core_word()), Node::start(fresh.clone(), core_word()));
    let fanout = Fanout::start(config(), Arc::new(remote(vec![behind.url(), good.url()])));
    stale.settle(&fanout);
    assert_eq!(fanout.snapshot().cursor.revision.0, stale.revision(), "so far it is good enough");
    stale.tell(vec![Fact::Leader(None, tailwater_eventlog::Term(3))]);
    wait_until("it is left", || fanout.snapshot().cursor.revision.0 == fresh.revision());
    fanout.stop();
}

#[test]
fn reads_at_every_revision_are_those_of_a_fanout_in_the_cores_process() {
    let world = World::new();
    for n in 0..300 {
        let key = format!("key/{:02}", n * 7 % 40);
        if n % 5 == 0 {
            world.delete(&key)
        } else {
            world.put(&key, &vec![b'v'; n * 13 % 900])
        };
    }
    world.compact(60);
    let node = Node::start(world.clone(), core_word());
    // Little memory, so that most reads need the source's history.
    let small = FanoutConfig { window_bytes_max: 2000, ..config() };
    let near = Fanout::start(small.clone(), world.clone());
    let far = Fanout::start(small, Arc::new(remote(vec![node.url()])));
    world.settle(&near);
    world.settle(&far);
    for n in 0..100 {
        world.put(&format!("key/{:02}", n % 50), b"newer");
    }
    world.settle(&near);
    world.settle(&far);
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for revision in (60..=world.revision()).step_by(9) {
        let query = RangeQuery {
            range: KeyRange::all(),
            revision: Some(Revision(revision)),
            limit: if revision % 2 == 0 { 0 } else { 7 },
            sort: None,
            count_only: false,
            keys_only: false,
            revision_bounds: (0, 0, 0, 0),
        };
        let read = |fanout: &Fanout| runtime.block_on(fanout.range(query.clone())).unwrap();
        let (near, far) = (read(&near), read(&far));
        assert_eq!(far.events, near.events, "at {revision}");
        assert_eq!((far.count, far.more, far.header_revision), (near.count, near.more, near.header_revision));
    }
    near.stop();
    far.stop();
}
