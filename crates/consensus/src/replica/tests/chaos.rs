//! Members that are cut off, killed and lose power at random, from a seed: what was answered is there, once, on all.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tailwater_eventlog::{History, HistoryPoint};

use super::cluster::{Call, Cluster, member};
use super::*;

const SEEDS: u64 = 6;
const STEPS: usize = 80;

struct World {
    cluster: Cluster,
    rng: StdRng,
    members: Vec<Member>,
    down: BTreeSet<u64>,
    /// Puts on their way: key and answer.
    open: Vec<(String, Call<Result<Applied, ProposeError>>)>,
    /// Keys that were answered, with their revision.
    answered: BTreeMap<String, i64>,
    /// Keys that were refused for good.
    refused: BTreeSet<String>,
    written: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut cluster = Cluster::empty();
        let members: Vec<_> = (1..=3).map(member).collect();
        for id in 1..=3 {
            cluster.start(id, &members, |_| {});
        }
        Self {
            cluster,
            rng: StdRng::seed_from_u64(seed),
            members,
            down: BTreeSet::new(),
            open: Vec::new(),
            answered: BTreeMap::new(),
            refused: BTreeSet::new(),
            written: 0,
        }
    }

    fn step(&mut self) {
        let id = self.rng.random_range(1..=3);
        match self.rng.random_range(0..16) {
            0 => self.cluster.cut_off(id, true),
            1 => {
                let other = self.rng.random_range(1..=3);
                self.cluster.broken.insert((id, other));
            }
            2 | 3 => self.cluster.broken.clear(),
            4 => {
                self.write();
                let turns = self.rng.random_range(0..60);
                self.cluster.shuffle(&mut self.rng, turns);
                self.stop(id);
            }
            5..8 => self.bring_back(),
            _ => self.write(),
        }
        if self.rng.random() {
            let turns = self.rng.random_range(0..100);
            self.cluster.shuffle(&mut self.rng, turns);
            self.look();
        }
        let ticks = self.rng.random_range(0..12);
        for _ in 0..ticks {
            self.cluster.ticks(1);
            self.look();
        }
    }

    /// A kill, or a loss of power that leaves of what was not synced whatever it likes.
    fn stop(&mut self, id: u64) {
        if self.down.len() == 2 || !self.down.insert(id) {
            return;
        }
        self.open.clear();
        self.cluster.stop(id);
        if self.rng.random() {
            let seed = self.rng.random();
            let after = self.cluster.disks[&id].cut(seed);
            self.cluster.disks.insert(id, after);
        }
    }

    fn bring_back(&mut self) {
        if let Some(id) = self.down.pop_first() {
            let members = self.members.clone();
            self.cluster.start(id, &members, |_| {});
        }
    }

    /// On any member that runs: one that does not lead refuses.
    fn write(&mut self) {
        for _ in 0..self.rng.random_range(1..5) {
            let any = self.rng.random_range(1..=3);
            let id = self.cluster.leading().filter(|_| self.rng.random_range(0..5) > 0).unwrap_or(any);
            if self.cluster.nodes.get(&id).is_some_and(|node| node.reason.is_none()) {
                self.written += 1;
                let key = format!("key-{}", self.written);
                let call = self.cluster.propose(id, put(key.clone(), 0));
                self.open.push((key, call));
            }
        }
    }

    fn look(&mut self) {
        for (key, mut call) in std::mem::take(&mut self.open) {
            match call.poll() {
                Some(Ok(applied)) => drop(self.answered.insert(key, revision(&applied))),
                Some(Err(ProposeError::NoLeader)) => drop(self.refused.insert(key)),
                Some(Err(ProposeError::LeaderChanged | ProposeError::Timeout)) => {}
                Some(Err(error)) => panic!("{key}: {error}"),
                None => self.open.push((key, call)),
            }
        }
    }

    fn check(mut self) -> usize {
        self.cluster.broken.clear();
        while !self.down.is_empty() {
            self.bring_back();
        }
        self.cluster.ticks(60);
        self.look();
        let leader = self.cluster.leader();
        self.cluster.put(leader, "last");
        self.cluster.assert_same();
        for (id, node) in &self.cluster.nodes {
            assert_eq!(node.reason, None, "member {id}");
            let mut stored = BTreeMap::new();
            let source = node.source();
            let from = HistoryPoint { revision: Revision(0), sub: 0 };
            let chunk = source.read(&[], from, source.log.state().revision, false, 1 << 30).unwrap();
            for found in chunk.events {
                let key = String::from_utf8(found.event.key().to_vec()).unwrap();
                let before = stored.insert(key, found.event.revision().0);
                assert_eq!(before, None, "member {id} applied a command twice");
            }
            for (key, revision) in &self.answered {
                assert_eq!(stored.get(key), Some(revision), "member {id}, {key}");
            }
            for key in &self.refused {
                assert_eq!(stored.get(key), None, "member {id}: {key} was refused");
            }
        }
        self.answered.len()
    }
}

#[test]
fn what_was_answered_is_there_once_on_all() {
    let seeds = std::env::var("SEED").map_or(0..SEEDS, |seed| {
        let seed = seed.parse().unwrap();
        seed..seed + 1
    });
    let mut answered = 0;
    for seed in seeds {
        println!("SEED={seed}");
        let mut world = World::new(seed);
        (0..STEPS).for_each(|_| world.step());
        answered += world.check();
    }
    assert!(answered > 20, "only {answered} writes were answered");
}
