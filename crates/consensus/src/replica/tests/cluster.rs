//! Whole members without their threads, in one: each gets its turns here, and messages go through memory.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::StdRng;
use tailwater_eventlog::{CopyStep, EventLog, LogState, Position, Staged, Tail};

use super::*;
use crate::raft_log::{Disk, SimDisk, SyncMode};
use crate::{Chosen, Parts, PeerTransport, SourceReady, assemble};

/// What was sent and not yet delivered.
type Mail = Arc<Mutex<VecDeque<(u64, u64, Bytes)>>>;

struct Wire {
    from: u64,
    mail: Mail,
    members: Arc<Mutex<Vec<Member>>>,
    /// Who has sent something: it told where it is reached.
    strangers: Arc<Mutex<BTreeSet<u64>>>,
}

impl PeerTransport for Wire {
    fn send(&self, to: MemberId, message: Bytes) {
        let is_member = self.members.lock().iter().any(|member| member.id == to);
        if is_member || self.strangers.lock().contains(&to.0) {
            self.mail.lock().push_back((self.from, to.0, message));
        }
    }

    fn set_members(&self, members: &[Member]) {
        *self.members.lock() = members.to_vec();
    }
}

/// A call under way.
pub(super) struct Call<T>(Pin<Box<dyn Future<Output = T>>>);

impl<T> Call<T> {
    pub(super) fn new(call: impl Future<Output = T> + 'static) -> Self {
        Self(Box::pin(call))
    }

    /// The answer, if it is there.
    pub(super) fn poll(&mut self) -> Option<T> {
        match self.0.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answer) => Some(answer),
            Poll::Pending => None,
        }
    }
}

pub(super) struct Node {
    pub(super) consensus: Consensus,
    parts: Option<Parts>,
    ready: SourceReady,
    source: Option<LocalSource>,
    /// Whom the transport was told of last.
    pub(super) told: Arc<Mutex<Vec<Member>>>,
    strangers: Arc<Mutex<BTreeSet<u64>>>,
    /// Why it stopped.
    pub(super) reason: Option<String>,
}

impl Node {
    /// Gives each thread its turns until it has nothing to do.
    fn work(&mut self, is_tick: bool) {
        let Some(parts) = &mut self.parts else { return };
        let mut work = || -> Result<(), String> {
            parts.step_replica(is_tick)?;
            while parts.step_log()? {}
            while parts.step_apply()? {}
            parts.step_replica(false)
        };
        if let Err(reason) = work() {
            self.reason = Some(reason);
            // The log thread does what it was given until everybody is gone.
            let _ = self.parts.take().map(|mut parts| parts.step_log());
        }
        if self.source.is_none() {
            self.source = self.ready.poll();
        }
    }

    pub(super) fn tail(&self) -> &Tail {
        &self.source.as_ref().expect("founded").tail
    }

    pub(super) fn source(&self) -> &LocalSource {
        self.source.as_ref().expect("founded")
    }

    pub(super) fn applied(&self) -> Position {
        self.consensus.status().applied
    }

    /// One turn of one thread: 0 the replica, 1 the log, 2 apply, else upkeep.
    fn turn(&mut self, thread: u32) {
        let Some(parts) = &mut self.parts else { return };
        let end = match thread {
            0 => parts.step_replica(false),
            1 => parts.step_log().map(drop),
            2 => parts.step_apply().map(drop),
            _ => parts.step_upkeep(),
        };
        if let Err(reason) = end {
            self.reason = Some(reason);
            self.parts = None;
        }
    }

    /// A turn of the apply thread alone.
    pub(super) fn apply(&mut self) {
        self.parts.as_mut().unwrap().step_apply().unwrap();
    }

    pub(super) fn upkeep(&mut self) {
        if let Some(parts) = &mut self.parts {
            parts.step_upkeep().unwrap();
        }
    }
}

pub(super) struct Cluster {
    runtime: tokio::runtime::Runtime,
    mail: Mail,
    pub(super) nodes: BTreeMap<u64, Node>,
    dirs: BTreeMap<u64, tempfile::TempDir>,
    pub(super) disks: BTreeMap<u64, SimDisk>,
    /// Links that carry nothing: from, to.
    pub(super) broken: BTreeSet<(u64, u64)>,
    pub(super) raft_log_bytes: u64,
    pub(super) strict: bool,
    runs: u64,
}

pub(super) fn member(id: u64) -> Member {
    Member {
        id: MemberId(id),
        name: format!("m{id}"),
        peer_urls: vec![format!("http://peer-{id}:2380")],
        ..Default::default()
    }
}

impl Cluster {
    /// That many members, none of which has run yet.
    pub(super) fn new(members: u64) -> Self {
        let mut cluster = Self::empty();
        let initial: Vec<_> = (1..=members).map(member).collect();
        for id in 1..=members {
            cluster.start(id, &initial, |_| {});
        }
        cluster
    }

    pub(super) fn empty() -> Self {
        Self {
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
            mail: Mail::default(),
            nodes: BTreeMap::new(),
            dirs: BTreeMap::new(),
            disks: BTreeMap::new(),
            broken: BTreeSet::new(),
            raft_log_bytes: 64 << 20,
            strict: true,
            runs: 0,
        }
    }

    /// Starts a member, for the first time or again.
    pub(super) fn start(&mut self, id: u64, initial: &[Member], adjust: impl Fn(&mut ConsensusConfig)) {
        let result = self.try_start(id, initial, adjust);
        result.unwrap();
    }

    pub(super) fn try_start(
        &mut self,
        id: u64,
        initial: &[Member],
        adjust: impl Fn(&mut ConsensusConfig),
    ) -> Result<(), crate::StartError> {
        self.stop(id);
        self.runs += 1;
        let dir = self.dirs.entry(id).or_insert_with(|| tempfile::tempdir().unwrap());
        let disk = self.disks.entry(id).or_insert_with(|| SimDisk::new(SyncMode::Honest)).clone();
        let mut config = ConsensusConfig {
            member_id: MemberId(id),
            initial_members: initial.to_vec(),
            raft_log_bytes: self.raft_log_bytes,
            strict_reconfig_check: self.strict,
            ..config(dir.path())
        };
        adjust(&mut config);
        let told = Arc::new(Mutex::new(Vec::new()));
        let strangers = Arc::default();
        let wire = Wire {
            from: id,
            mail: Arc::clone(&self.mail),
            members: Arc::clone(&told),
            strangers: Arc::clone(&strangers),
        };
        let run = self.runs * 100 + id;
        let chosen = Chosen { salt: run, proposer_id: run, history_id: run, seed: run };
        let (consensus, parts, ready) = assemble(config, Arc::new(disk), Arc::new(wire), chosen)?;
        let source = ready.poll();
        self.nodes.insert(id, Node { consensus, parts: Some(parts), ready, source, told, strangers, reason: None });
        Ok(())
    }

    /// Ends a member as a kill does: nothing is flushed.
    pub(super) fn stop(&mut self, id: u64) {
        self.nodes.remove(&id);
    }

    /// As if the member had a new, empty disk.
    pub(super) fn wipe(&mut self, id: u64) {
        self.stop(id);
        self.dirs.remove(&id);
        self.disks.remove(&id);
    }

    /// Ends a member as it ends by itself or when it is asked to: its state is flushed.
    pub(super) fn halt(&mut self, id: u64) {
        self.node(id).consensus.events.flush().unwrap();
        self.stop(id);
    }

    pub(super) fn node(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).unwrap()
    }

    /// Lets everything happen that follows, without time.
    pub(super) fn settle(&mut self) {
        for _ in 0..500 {
            self.nodes.values_mut().for_each(|node| node.work(false));
            let mail = std::mem::take(&mut *self.mail.lock());
            if mail.is_empty() {
                return;
            }
            self.deliver(mail);
        }
        panic!("never quiet");
    }

    /// Some turns of any threads, and messages that come late, twice or never, without time.
    pub(super) fn shuffle(&mut self, rng: &mut StdRng, turns: usize) {
        for _ in 0..turns {
            let ids: Vec<u64> = self.nodes.keys().copied().collect();
            let id = ids[rng.random_range(0..ids.len())];
            let message = {
                let mut mail = self.mail.lock();
                let at = if rng.random_range(0..4) == 0 { rng.random_range(0..=mail.len()) } else { 0 };
                match rng.random_range(0..40) {
                    0 => mail.remove(at).and(None),
                    1 => mail.get(at).cloned(),
                    2..20 => mail.remove(at),
                    _ => None,
                }
            };
            match message {
                Some(message) => self.deliver([message].into()),
                None => {
                    if let Some(node) = self.nodes.get_mut(&id) {
                        node.turn(rng.random_range(0..4));
                    }
                }
            }
        }
    }

    fn deliver(&mut self, mail: VecDeque<(u64, u64, Bytes)>) {
        for (from, to, message) in mail {
            if let Some(node) = self.nodes.get(&to).filter(|_| !self.broken.contains(&(from, to))) {
                node.strangers.lock().insert(from);
                node.consensus.receive(&message);
                let refuses = node.consensus.is_removed(MemberId(from)) && !self.broken.contains(&(to, from));
                if let Some(sender) = self.nodes.get(&from).filter(|_| refuses) {
                    sender.consensus.report_removed();
                }
            }
        }
    }

    pub(super) fn ticks(&mut self, ticks: usize) {
        for _ in 0..ticks {
            self.nodes.values_mut().for_each(|node| node.work(true));
            self.settle();
        }
    }

    /// Time passes until a member leads that can serve; its id.
    pub(super) fn leader(&mut self) -> u64 {
        for _ in 0..200 {
            self.ticks(1);
            if let Some(id) = self.leading() {
                return id;
            }
        }
        panic!("no leader");
    }

    /// The member that leads with the highest term and has founded or found its history.
    pub(super) fn leading(&self) -> Option<u64> {
        let leading = |(id, node): (&u64, &Node)| {
            let status = node.consensus.status();
            let leads = node.parts.is_some() && status.leader == MemberId(*id) && node.source.is_some();
            leads.then_some((status.term, *id))
        };
        self.nodes.iter().filter_map(leading).max().map(|(_, id)| id)
    }

    /// Cuts a member off, or connects it again.
    pub(super) fn cut_off(&mut self, id: u64, cut: bool) {
        for other in 1..=20 {
            for link in [(id, other), (other, id)] {
                match cut {
                    true => self.broken.insert(link),
                    false => self.broken.remove(&link),
                };
            }
        }
    }

    pub(super) fn call<T: 'static>(&mut self, call: impl Future<Output = T> + 'static) -> Call<T> {
        let _guard = self.runtime.enter();
        let mut call = Call::new(call);
        // What is refused by the handle itself has its answer at once.
        match call.poll() {
            Some(answer) => Call(Box::pin(std::future::ready(answer))),
            None => call,
        }
    }

    pub(super) fn propose(&mut self, id: u64, command: Command) -> Call<Result<Applied, ProposeError>> {
        let consensus = self.node(id).consensus.clone();
        self.call(async move { consensus.propose(command).await })
    }

    pub(super) fn barrier(&mut self, id: u64) -> Call<Result<Position, ProposeError>> {
        let consensus = self.node(id).consensus.clone();
        self.call(async move { consensus.barrier().await })
    }

    pub(super) fn wait<T>(&mut self, mut call: Call<T>) -> T {
        for _ in 0..200 {
            self.settle();
            if let Some(answer) = call.poll() {
                return answer;
            }
            self.ticks(1);
        }
        panic!("no answer");
    }

    /// Proposes on a member and waits for the answer.
    pub(super) fn ask(&mut self, id: u64, command: Command) -> Result<Answer, ProposeError> {
        let call = self.propose(id, command);
        self.wait(call).map(|applied| applied.answer)
    }

    pub(super) fn put(&mut self, id: u64, key: &str) {
        self.ask(id, put(key.to_owned(), 0)).unwrap();
    }

    /// A copy of one member's state in the staging directory of another.
    pub(super) fn copy(&mut self, from: u64, to: u64) -> Staged {
        let source = self.node(from).consensus.events.clone();
        copy(&source, &self.node(to).consensus.events)
    }

    /// All members that run stand at one position and hold the same.
    pub(super) fn assert_same(&mut self) {
        self.ticks(3);
        let ends: Vec<_> =
            self.nodes.values().filter(|node| node.parts.is_some()).map(|node| node.tail().end()).collect();
        assert!(ends.windows(2).all(|pair| pair[0] == pair[1]), "{ends:?}");
    }

    /// Leaves bytes behind the end of a stopped member's log, as a loss of power in the middle of a write does.
    pub(super) fn tear_log(&mut self, id: u64) {
        let disk = &self.disks[&id];
        let name = disk.list().unwrap().into_iter().rfind(|name| name.ends_with(".log")).unwrap();
        let file = disk.open(&name).unwrap();
        file.write_at(file.size().unwrap(), &[b't'; 40]).unwrap();
    }
}

/// A copy of one state in the staging directory of another.
pub(super) fn copy(source: &EventLog, target: &EventLog) -> Staged {
    let mut staging = target.staging().unwrap();
    let hold = source.copy_begin(Duration::from_secs(60));
    staging.begin(hold.point()).unwrap();
    let mut at = None;
    let mut add = |state: &LogState, rows: Vec<_>| {
        if at.replace(*state).is_none() {
            staging.begin_state(*state).unwrap();
        }
        staging.add_state(&rows).unwrap();
        ControlFlow::Continue(())
    };
    source.copy_state(1 << 20, &mut add).unwrap();
    let revision = at.unwrap().revision;
    while staging.complete() < revision {
        match staging.next_step() {
            CopyStep::Base { after } => {
                let rows = source.copy_base(staging.point(), after.as_ref(), 1 << 20).unwrap();
                staging.add_base(&rows, rows.is_empty()).unwrap();
            }
            CopyStep::Log { after } => {
                let copy = source.copy_log(staging.point().history, after, 1 << 20).unwrap();
                staging.add_log(&copy.rows, copy.complete).unwrap();
            }
        }
    }
    staging.finish().unwrap()
}

/// Hands messages over at once, on the sender's thread.
#[derive(Clone, Default)]
pub(super) struct Direct(pub(super) Arc<Mutex<BTreeMap<u64, Consensus>>>);

impl PeerTransport for Direct {
    fn send(&self, to: MemberId, message: Bytes) {
        let peer = self.0.lock().get(&to.0).cloned();
        if let Some(peer) = peer {
            peer.receive(&message);
        }
    }

    fn set_members(&self, _members: &[Member]) {}
}

impl Direct {
    /// Waits for a leader among those that run.
    pub(super) fn leader(&self) -> (u64, Consensus) {
        let began = Instant::now();
        loop {
            let running = self.0.lock().clone();
            if let Some((id, leader)) = running.iter().find(|(id, node)| node.status().leader == MemberId(**id)) {
                return (*id, leader.clone());
            }
            assert!(began.elapsed() < Duration::from_secs(20), "no leader");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
