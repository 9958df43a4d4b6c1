//! Random worlds: writes, compactions and watchers of all kinds, checked against everything that was written.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tailwater_eventlog::{KeyRange, Revision, Scope};
use tailwater_fanout::{CreateWatch, Fanout, FanoutConfig, WatchFilter};

use super::{Change, Client, World, config, wait_until};

const STEPS: usize = 60;

/// What reads the world, and how it is disturbed.
pub struct Reader {
    pub fanout: Fanout,
    /// Called now and then; nothing that a watcher receives may change by it.
    pub disturb: Box<dyn FnMut(&mut StdRng)>,
    /// Whether it holds nothing but [`part`].
    pub scoped: bool,
}

/// What a scoped reader holds.
pub fn part() -> KeyRange {
    KeyRange::Span(b"b".to_vec().into(), b"c".to_vec().into())
}

fn key(rng: &mut StdRng) -> Vec<u8> {
    let group = ["a", "b", "b/", "c"][rng.random_range(0..4)];
    format!("{group}{}", rng.random_range(0..4)).into_bytes()
}

fn changes(rng: &mut StdRng) -> Vec<Change> {
    let count = [1, 1, 1, 2, 5, 12][rng.random_range(0..6)];
    let mut changes: Vec<Change> = Vec::new();
    for _ in 0..count {
        let key = key(rng);
        if changes.iter().any(|(other, _)| *other == key) {
            continue;
        }
        let len = [0, 3, 40, 40, 700, 6000][rng.random_range(0..6)];
        let value = rng.random_bool(0.75).then(|| vec![rng.random_range(b'a'..=b'z'); len]);
        changes.push((key, value));
    }
    changes
}

/// A range that somebody asks for; within [`part`] when `scoped`.
pub fn range(rng: &mut StdRng, scoped: bool) -> KeyRange {
    let scope = Scope::new(&if scoped { vec![part()] } else { vec![] });
    loop {
        let range = any_range(rng);
        if scope.covers(&range) {
            return range;
        }
    }
}

fn any_range(rng: &mut StdRng) -> KeyRange {
    match rng.random_range(0..5) {
        0 => KeyRange::all(),
        1 => KeyRange::Key(key(rng).into()),
        2 => part(),
        3 => KeyRange::From(key(rng).into()),
        _ => {
            let (a, b) = (key(rng), key(rng));
            KeyRange::Span(a.clone().min(b.clone()).into(), a.max(b).into())
        }
    }
}

fn create(rng: &mut StdRng, world: &World, scoped: bool) -> CreateWatch {
    let (now, compacted) = {
        let state = world.state.lock().unwrap();
        (state.revision, state.compacted)
    };
    let start = match rng.random_range(0..6) {
        0 | 1 => 0,
        2 => rng.random_range(1..=now),
        3 => compacted.max(1),
        4 => now + rng.random_range(1..6),
        _ => now + 1,
    };
    CreateWatch {
        range: range(rng, scoped),
        start: Revision(start),
        progress_notify: rng.random_bool(0.3),
        filter: WatchFilter { no_put: rng.random_bool(0.1), no_delete: rng.random_bool(0.2) },
        prev_kv: rng.random_bool(0.5),
        watch_id: if rng.random_bool(0.2) { rng.random_range(1..5) } else { 0 },
        fragment: rng.random_bool(0.3),
    }
}

fn random_config(rng: &mut StdRng) -> FanoutConfig {
    FanoutConfig {
        window_bytes_max: [2000, 20_000, 1 << 20][rng.random_range(0..3)],
        stream_chunk_bytes: [500, 4096, 64 << 10][rng.random_range(0..3)],
        watch_memory_bytes_max: [10_000, 1 << 20][rng.random_range(0..2)],
        response_bytes_max: [2000, 1 << 20][rng.random_range(0..2)],
        fragment_bytes_max: [1000, 1 << 21][rng.random_range(0..2)],
        progress_interval: Duration::from_millis(100),
        unread_value_bytes_min: [None, Some(1)][rng.random_range(0..2)],
        ..config()
    }
}

fn step(rng: &mut StdRng, world: &Arc<World>, fanout: &Fanout, scoped: bool, clients: &mut Vec<Client>) {
    let at = if clients.is_empty() { 0 } else { rng.random_range(0..clients.len()) };
    match rng.random_range(0..100) {
        0..40 => {
            world.commit(&changes(rng));
        }
        40..44 => {
            let state = world.state.lock().unwrap();
            let target = rng.random_range(state.compacted.max(1)..=state.revision);
            drop(state);
            world.compact(target);
        }
        44..46 => world.settle(fanout),
        46 if rng.random_bool(0.5) => world.behind.store(true, Ordering::SeqCst),
        46 => {
            let records: Vec<_> = (0..rng.random_range(0..30)).map(|_| changes(rng)).collect();
            let compacted = if rng.random_bool(0.5) { rng.random_range(0..=world.revision() + 30) } else { 0 };
            world.jump(&records, compacted);
        }
        47..50 if clients.len() < 4 => clients.push(Client::new(world, fanout)),
        _ if clients.is_empty() => {}
        50..60 => {
            let create = create(rng, world, scoped);
            clients[at].create(create);
        }
        60..64 => {
            let ids: Vec<i64> = clients[at].watchers.keys().copied().collect();
            let id = if ids.is_empty() { 3 } else { ids[rng.random_range(0..ids.len())] };
            clients[at].control.cancel(id);
        }
        64..70 => clients[at].control.progress(),
        70..72 => drop(clients.swap_remove(at)),
        _ => {
            for _ in 0..rng.random_range(1..12) {
                clients[at].poll();
            }
        }
    }
}

/// One world from one seed, read by what `attach` makes.
pub fn run(seed: u64, attach: &dyn Fn(&Arc<World>, FanoutConfig) -> Reader) {
    let mut rng = StdRng::seed_from_u64(seed);
    let world = World::new();
    for _ in 0..rng.random_range(0..20) {
        world.commit(&changes(&mut rng));
    }
    if rng.random_bool(0.3) {
        world.compact(rng.random_range(1..=world.revision()));
    }
    let Reader { fanout, mut disturb, scoped } = attach(&world, random_config(&mut rng));
    world.settle(&fanout);
    let mut clients = Vec::new();
    for _ in 0..STEPS {
        step(&mut rng, &world, &fanout, scoped, &mut clients);
        if rng.random_range(0..12) == 0 {
            disturb(&mut rng);
        }
    }
    world.settle(&fanout);
    for client in &mut clients {
        client.poll_until("everything is delivered", |client| client.ended || client.is_complete());
        if client.ended {
            continue;
        }
        // Cancels may still wait to be answered.
        client.poll_until("requests are answered", |client| client.ended || client.control.backlog() == 0);
        while client.poll() {}
        // A watcher that starts in the future keeps the stream silent.
        let now = fanout.snapshot().cursor.revision.0;
        let expects =
            !client.watchers.is_empty() && client.watchers.values().all(|w| !w.compacted && w.create.start.0 <= now);
        if expects {
            client.control.progress();
            client.poll_until("progress is told", |client| {
                // One that was long silent may turn out to be compacted away when it has to scan.
                client.progress.last() == Some(&now) || client.watchers.values().all(|w| w.compacted)
            });
        }
        assert!(client.progress.is_sorted(), "progress goes back: {:?}", client.progress);
    }
    drop((clients, disturb));
    fanout.stop();
    drop(fanout);
    wait_until("the fanout lets its source go", || Arc::strong_count(&world) <= 1);
}
