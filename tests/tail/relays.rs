//! Fanouts behind fanouts, over the network: trees that lose their parts, circles, parts of the keys.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::StdRng;
use tailwater_eventlog::{KeyRange, MemberId, Position};
use tailwater_fanout::{Fanout, FanoutConfig};
use tailwater_transport::{CoreWord, Description, NodeDescription, RemoteSource};
use tokio::runtime::Builder;

use super::support::worlds::{Reader, part, run};
use super::support::{World, config, wait_until};
use super::{Node, READER, core_word, remote, remote_config};

/// A fanout in a process of its own, and what it serves to others.
struct Relay {
    address: SocketAddr,
    source: Arc<RemoteSource>,
    fanout: Fanout,
    /// Let go of first.
    node: Option<Node>,
}

/// A port that nobody has now.
fn port() -> SocketAddr {
    ([127, 0, 0, 1], tailwater_tests::free_port()).into()
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

impl Relay {
    fn start(id: u64, address: SocketAddr, urls: Vec<String>, ranges: Vec<KeyRange>) -> Self {
        let mut remote = remote_config(urls, MemberId(id));
        remote.ranges.clone_from(&ranges);
        let source = Arc::new(RemoteSource::new(remote).unwrap());
        let memory = FanoutConfig { relay_bytes_max: 4000, window_bytes_max: 8000, ranges, ..config() };
        let fanout = Fanout::start(memory, source.clone());
        let (served, words) = (fanout.clone(), source.clone());
        let unheard = move || CoreWord { path: vec![id], age: Duration::from_secs(1 << 30) };
        let word = move || words.core_word().unwrap_or_else(unheard);
        let node = Node::serve(address, Box::new(move || served.source()), Box::new(word), None);
        Self { address, source, fanout, node: Some(node) }
    }

    fn url(&self) -> String {
        url(self.address)
    }

    fn path(&self) -> Vec<u64> {
        path(&self.source)
    }
}

fn path(source: &RemoteSource) -> Vec<u64> {
    source.core_word().map(|word| word.path).unwrap_or_default()
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.fanout.stop();
        self.node.take();
    }
}

/// Two relays, one behind the other, before the reader; they and the core's node die now and then.
fn attach(world: &Arc<World>, config: FanoutConfig, scoped: bool) -> Reader {
    let ranges = if scoped { vec![part()] } else { Vec::new() };
    let addresses = [port(), port(), port()];
    let urls = addresses.map(url);
    let core = Node::start_at(addresses[0], world.clone(), core_word());
    let first = Relay::start(11, addresses[1], vec![urls[0].clone()], Vec::new());
    let second = Relay::start(12, addresses[2], vec![urls[1].clone(), urls[0].clone()], ranges.clone());
    let mut remote = remote_config(vec![urls[2].clone(), urls[1].clone()], READER);
    remote.ranges.clone_from(&ranges);
    let fanout =
        Fanout::start(FanoutConfig { ranges: ranges.clone(), ..config }, Arc::new(RemoteSource::new(remote).unwrap()));
    let world = world.clone();
    let (mut nodes, mut next_id) = ((Some(core), Some(first), Some(second)), 13);
    let disturb = move |rng: &mut StdRng| {
        let nodes = &mut nodes;
        next_id += 1;
        match rng.random_range(0..4) {
            0 => {
                nodes.0 = None;
                nodes.0 = Some(Node::start_at(addresses[0], world.clone(), core_word()));
            }
            1 => {
                nodes.1 = None;
                nodes.1 = Some(Relay::start(next_id, addresses[1], vec![urls[0].clone()], Vec::new()));
            }
            _ => {
                nodes.2 = None;
                let urls = vec![urls[1].clone(), urls[0].clone()];
                nodes.2 = Some(Relay::start(next_id, addresses[2], urls, ranges.clone()));
            }
        }
    };
    Reader { fanout, disturb: Box::new(disturb), scoped }
}

#[test]
fn watchers_behind_relays_get_what_etcd_guarantees() {
    for seed in 0..super::number("SEEDS").unwrap_or(12) {
        eprintln!("seed {seed}");
        run(seed, &|world: &Arc<World>, config| attach(world, config, seed % 2 == 1));
    }
}

#[test]
fn a_circle_of_relays_is_never_its_own_core() {
    let world = World::new();
    world.put("a", b"1");
    let (address, ports) = (port(), [port(), port(), port()]);
    let mut core = Some(Node::start_at(address, world.clone(), core_word()));
    let first = Relay::start(11, ports[0], vec![url(address), url(ports[2])], Vec::new());
    let second = Relay::start(12, ports[1], vec![url(ports[0])], Vec::new());
    let third = Relay::start(13, ports[2], vec![url(ports[1])], Vec::new());
    for relay in [&first, &second, &third] {
        world.settle(&relay.fanout);
    }
    wait_until("the core is heard", || third.path() == [1, 11, 12, 13]);
    drop(core.take());
    let since = Instant::now();
    while since.elapsed() < Duration::from_millis(1500) {
        assert_eq!((first.path(), second.path()), (vec![1, 11], vec![1, 11, 12]));
        std::thread::sleep(Duration::from_millis(5));
    }
    // Each adds the time since it heard from the one before.
    let age = |relay: &Relay| relay.source.core_word().unwrap().age;
    assert!(age(&first) > Duration::from_millis(1300) && age(&third) > Duration::from_millis(1200));
    core = Some(Node::start_at(address, world.clone(), core_word()));
    world.put("a", b"2");
    for relay in [&first, &second, &third] {
        world.settle(&relay.fanout);
    }
    wait_until("the core is heard again", || age(&third) < Duration::from_millis(300));
    drop((third, second, first, core));
}

#[test]
fn a_reader_goes_past_a_relay_that_does_not_hold_what_it_wants() {
    let world = World::new();
    for key in ["a", "b1", "b2", "c"] {
        world.put(key, b"v");
    }
    let core = Node::start(world.clone(), core_word());
    let ranges = vec![KeyRange::Span("c".into(), "d".into()), part()];
    let relay = Relay::start(11, port(), vec![core.url()], ranges);
    world.settle(&relay.fanout);
    assert_eq!(relay.fanout.load(0).keys, 3);
    let source = Arc::new(remote(vec![relay.url(), core.url()]));
    let all = Fanout::start(config(), source.clone());
    world.settle(&all);
    assert_eq!(all.load(0).keys, 4);
    wait_until("the core is heard", || path(&source) == [1, READER.0]);
    all.stop();
    let mut within = remote_config(vec![relay.url(), core.url()], READER);
    within.ranges = vec![part()];
    let source = Arc::new(RemoteSource::new(within).unwrap());
    let some = Fanout::start(FanoutConfig { ranges: vec![part()], ..config() }, source.clone());
    world.settle(&some);
    assert_eq!(some.load(0).keys, 2);
    wait_until("the relay is heard", || path(&source) == [1, 11, READER.0]);
    some.stop();
}

#[test]
fn a_source_that_is_not_where_reads_wait_for_is_left() {
    let (stale, fresh) = (World::new(), World::new());
    for world in [&stale, &fresh] {
        world.put("a", b"1");
    }
    let nodes = [Node::start(stale.clone(), core_word()), Node::start(fresh.clone(), core_word())];
    let fanout = Fanout::start(config(), Arc::new(remote(nodes.iter().map(Node::url).collect())));
    stale.settle(&fanout);
    fresh.put("b", b"2");
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(fanout.snapshot().cursor.revision.0, stale.revision(), "while nobody waits it is good enough");
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let position = Position(fanout.snapshot().cursor.position.0 + 1);
    let reached = async { tokio::time::timeout(Duration::from_secs(10), fanout.reach(position)).await };
    runtime.block_on(reached).unwrap().unwrap();
    assert_eq!(fanout.snapshot().cursor.revision.0, fresh.revision());
    fanout.stop();
}

#[test]
fn a_follower_is_read_rather_than_the_leader() {
    let world = World::new();
    world.put("a", b"1");
    let node = |id: u64| {
        let node = NodeDescription { id: MemberId(id), path: vec![id], ready: true, ..Default::default() };
        let description = Description { node, leader: Some(MemberId(1)), ..Default::default() };
        let (source, word) = (world.clone(), CoreWord { path: vec![id], age: Duration::ZERO });
        Node::serve(port(), Box::new(move || source.clone()), Box::new(move || word.clone()), Some(description))
    };
    let (leader, follower) = (node(1), node(2));
    let source = Arc::new(remote(vec![leader.url(), follower.url()]));
    let fanout = Fanout::start(config(), source.clone());
    world.settle(&fanout);
    wait_until("the follower is heard", || path(&source) == [2, READER.0]);
    drop(follower);
    world.put("a", b"2");
    world.settle(&fanout);
    wait_until("the leader is heard", || path(&source) == [1, READER.0]);
    fanout.stop();
}
