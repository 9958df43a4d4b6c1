//! Members that are cut off, killed and lose power at random, from a seed: what was answered is there, once, on all.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tailwater_api::write;
use tailwater_eventlog::{History, HistoryPoint};

use super::cluster::{Call, Cluster, Node, member};
use super::*;
use crate::InstallError;
use crate::machine::member_message;
use crate::replica::driver::REMOVED;

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
    /// States that were copied and are being taken over, by member.
    installs: Vec<(u64, Call<Result<(), InstallError>>)>,
    installed: usize,
    /// Whether members come and go instead of losing power.
    changes: bool,
    /// Changes of the group on their way, and how many were made.
    changing: Vec<Call<Result<Applied, ProposeError>>>,
    changed: usize,
}

impl World {
    fn new(seed: u64, changes: bool) -> Self {
        let mut cluster = Cluster::empty();
        cluster.raft_log_bytes = 256 << 10;
        cluster.strict = false;
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
            installs: Vec::new(),
            installed: 0,
            changes,
            changing: Vec::new(),
            changed: 0,
        }
    }

    /// Any member that was ever there.
    fn any(&mut self) -> u64 {
        self.rng.random_range(1..=self.members.len() as u64)
    }

    fn step(&mut self) {
        let id = self.any();
        match self.rng.random_range(0..16) {
            0 => self.cluster.cut_off(id, true),
            1 => {
                let other = self.any();
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
            8 | 9 if self.changes => self.change(),
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
        self.upkeep();
    }

    /// Trims the logs, and copies the state for who needs it, from any other.
    fn upkeep(&mut self) {
        self.cluster.nodes.values_mut().for_each(Node::upkeep);
        self.installs.retain_mut(|(_, call)| match call.poll() {
            Some(Ok(())) => {
                self.installed += 1;
                false
            }
            Some(Err(InstallError::Behind { .. })) => false,
            Some(Err(error)) => panic!("{error}"),
            None => true,
        });
        let wants = |(id, node): (&u64, &Node)| {
            let wanted = (*node.consensus.catch_up_wanted().borrow())?;
            Some((*id, wanted.position))
        };
        let wanted: Vec<_> = self.cluster.nodes.iter().filter_map(wants).collect();
        for (id, position) in wanted {
            let far = self.cluster.nodes.iter().find(|(from, node)| **from != id && node.applied() >= position);
            let Some(from) = far.map(|(from, _)| *from) else { continue };
            if self.installs.iter().all(|(other, _)| *other != id) && self.rng.random_range(0..3) > 0 {
                let staged = self.cluster.copy(from, id);
                let consensus = self.cluster.node(id).consensus.clone();
                let call = self.cluster.call(async move { consensus.install(staged).await });
                self.installs.push((id, call));
            }
        }
    }

    /// A kill, or a loss of power that leaves of what was not synced whatever it likes.
    fn stop(&mut self, id: u64) {
        if self.down.len() == 2 || !self.cluster.nodes.contains_key(&id) || !self.down.insert(id) {
            return;
        }
        self.open.clear();
        self.changing.clear();
        self.installs.retain(|(installing, _)| *installing != id);
        self.cluster.stop(id);
        if !self.changes && self.rng.random() {
            let seed = self.rng.random();
            let after = self.cluster.disks[&id].cut(seed);
            self.cluster.disks.insert(id, after);
        }
    }

    fn bring_back(&mut self) {
        let Some(id) = self.down.pop_first() else { return };
        let members = self.members.clone();
        if let Err(error) = self.cluster.try_start(id, &members[..3], |config| config.founding = id <= 3) {
            assert!(error.to_string().contains(REMOVED), "{error}");
        }
    }

    /// A member is added, promoted or removed, as long as enough are left.
    fn change(&mut self) {
        let Some(leader) = self.cluster.leading() else { return };
        let group = self.cluster.node(leader).consensus.shared.group.lock().clone();
        let ids: Vec<u64> = group.members.iter().map(|member| member.id.0).collect();
        let any = ids[self.rng.random_range(0..ids.len())];
        let command = match self.rng.random_range(0..3) {
            0 if ids.len() < 5 && self.members.len() < 12 => {
                let id = self.members.len() as u64 + 1;
                self.members.push(member(id));
                let members = self.members.clone();
                self.cluster.start(id, &members, |config| config.founding = false);
                let added = Member { is_learner: true, ..member(id) };
                Command::MemberAdd(write::MemberAdd { member: Some(member_message(&added)) })
            }
            1 if group.conf_state.voters.len() > 2 => Command::MemberRemove(write::MemberRemove { id: any }),
            _ => match group.conf_state.learners.first() {
                Some(id) => Command::MemberPromote(write::MemberPromote { id: *id }),
                None => return,
            },
        };
        let call = self.cluster.propose(leader, command);
        self.changing.push(call);
    }

    /// On any member that runs: one that does not lead refuses.
    fn write(&mut self) {
        for _ in 0..self.rng.random_range(1..5) {
            let any = self.any();
            let id = self.cluster.leading().filter(|_| self.rng.random_range(0..5) > 0).unwrap_or(any);
            if self.cluster.nodes.get(&id).is_some_and(|node| node.reason.is_none()) {
                self.written += 1;
                let key = format!("key-{}", self.written);
                let value = vec![b'v'; self.rng.random_range(1..40 << 10)].into();
                let request = pb::PutRequest { key: key.clone().into(), value, ..Default::default() };
                let call = self.cluster.propose(id, Command::Put(request));
                self.open.push((key, call));
            }
        }
    }

    fn look(&mut self) {
        self.changing.retain_mut(|call| match call.poll() {
            Some(answer) => {
                self.changed += usize::from(answer.is_ok());
                false
            }
            None => true,
        });
        for (key, mut call) in std::mem::take(&mut self.open) {
            match call.poll() {
                Some(Ok(applied)) => drop(self.answered.insert(key, revision(&applied))),
                Some(Err(ProposeError::NoLeader)) => drop(self.refused.insert(key)),
                Some(Err(ProposeError::LeaderChanged | ProposeError::Timeout)) => {}
                // The member was removed.
                Some(Err(ProposeError::Stopped)) if self.changes => {}
                Some(Err(error)) => panic!("{key}: {error}"),
                None => self.open.push((key, call)),
            }
        }
    }

    /// Returns how many writes were answered, copies taken over, and changes made.
    fn check(mut self) -> [usize; 3] {
        self.cluster.broken.clear();
        while !self.down.is_empty() {
            self.bring_back();
        }
        for _ in 0..20 {
            self.cluster.ticks(10);
            self.look();
            self.upkeep();
        }
        let leader = self.cluster.leader();
        self.cluster.put(leader, "last");
        let group = self.cluster.node(leader).consensus.shared.group.lock().clone();
        // Who was removed and never heard of it, or was never added.
        self.cluster.nodes.retain(|id, _| group.members.iter().any(|member| member.id.0 == *id));
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
        [self.answered.len(), self.installed, self.changed]
    }
}

#[expect(clippy::print_stdout, reason = "the last seed named is the one that failed")]
fn run(changes: bool) -> [usize; 3] {
    let seeds = std::env::var("SEED").map_or(0..SEEDS, |seed| {
        let seed = seed.parse().unwrap();
        seed..seed + 1
    });
    let mut done = [0; 3];
    for seed in seeds {
        println!("SEED={seed}");
        let mut world = World::new(seed, changes);
        (0..STEPS).for_each(|_| world.step());
        for (sum, more) in done.iter_mut().zip(world.check()) {
            *sum += more;
        }
    }
    println!("{} writes answered, {} states taken over, {} changes of the group", done[0], done[1], done[2]);
    done
}

#[test]
fn what_was_answered_is_there_once_on_all() {
    let [answered, installed, _] = run(false);
    // One seed alone may see little.
    assert!(answered > 20 && installed > 0 || std::env::var("SEED").is_ok(), "too little happened");
}

#[test]
fn what_was_answered_outlives_the_members_that_come_and_go() {
    let [answered, _, changed] = run(true);
    assert!(answered > 20 && changed > 5 || std::env::var("SEED").is_ok(), "too little happened");
}
