//! The world: virtual time, the queue of what happens next, and what happens.

mod admin;
mod calls;
mod clients;
mod copy;
mod faults;
mod nodes;
mod settle;
mod turns;
mod watchers;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use bytes::Bytes;
use tailwater_consensus::Chosen;

use crate::link::Parcel;
use crate::member::{At, Clock, Member, Thread};
use crate::network::{Network, Outbox};
use crate::node::Node;
use crate::operation::{Ask, Reply};
use crate::oracle::Oracle;
use crate::plan::{Bug, Plan, WorldConfig};
use crate::random::Random;
use crate::trace::{Sink, Trace};
use crate::violation::{Checked, Guarantee, Violation, broken};

use admin::Admin;
use clients::Client;
pub(crate) use copy::Copy;
use faults::Lift;
use watchers::Watcher;

/// Something that happens at its time.
enum Event {
    Tick(At),
    Turn(At, Thread),
    Deliver {
        from: usize,
        to: usize,
        message: Bytes,
    },
    /// A member hears that it was removed, as its connection to another one is refused.
    Refused(At),
    /// A request reaches the member that was taken for the leader.
    Request {
        gateway: At,
        to: usize,
        operation: u64,
        ask: Box<Ask>,
    },
    /// Its answer reaches the gateway.
    Response {
        gateway: At,
        operation: u64,
        reply: Box<Reply>,
    },
    /// A client has thought enough.
    Client(usize),
    /// A client gives its operation up.
    GiveUp {
        client: usize,
        operation: u64,
    },
    Watcher(usize),
    /// A watcher's client does something.
    Whim(usize),
    Fault,
    Lift(Lift),
    Start(usize),
    StartNode(usize),
    /// Whoever looks after a fanout in a process of its own looks again.
    KeepNode {
        node: usize,
        run: u64,
    },
    NodeTurn {
        node: usize,
        run: u64,
        thread: Thread,
    },
    /// Its source may have something new.
    FeedNode {
        node: usize,
        run: u64,
    },
    /// Frames reach it.
    NodeFed {
        node: usize,
        run: u64,
        epoch: u64,
        parcel: Parcel,
    },
    /// A step of a member's copy of another's state.
    Copy(At),
    /// Whoever changes the group does its next step.
    Admin,
    /// Time to look whether everything has settled.
    Settle,
}

struct Scheduled {
    at: u64,
    seq: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.seq == other.seq
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.seq).cmp(&(other.at, other.seq))
    }
}

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Equal for equal runs.
    pub trace: u64,
    /// Steps of the world.
    pub steps: u64,
    /// Operations of clients that began.
    pub operations: u64,
    /// Of these, answered.
    pub answered: u64,
    /// Members at the end.
    pub members: usize,
    /// Processes that ended by a crash.
    pub crashes: u64,
    /// Faults of all kinds.
    pub faults: u64,
    /// Revisions made.
    pub revisions: u64,
    /// Events that watchers received.
    pub events: u64,
    /// Leases with keys that expired.
    pub expired: u64,
    /// States that were copied from another member and taken over.
    pub copies: u64,
    /// Changes of the group.
    pub changes: u64,
    /// Virtual time, milliseconds.
    pub virtual_ms: u64,
    /// What did not hold.
    pub violation: Option<Violation>,
}

/// A cluster, its clients, its network and its disks.
pub(crate) struct World {
    config: WorldConfig,
    plan: Plan,
    random: Random,
    now: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    seq: u64,
    network: Network,
    outbox: Outbox,
    members: Vec<Member>,
    /// Fanouts in processes of their own.
    nodes: Vec<Node>,
    clients: Vec<Client>,
    watchers: Vec<Watcher>,
    admin: Admin,
    oracle: Oracle,
    trace: Trace,
    clock: Clock,
    /// Holds the clock of what waits by tokio's time; nothing ever runs on it.
    runtime: tokio::runtime::Runtime,
    /// Where that clock stands, microseconds.
    advanced: u64,
    operations: u64,
    /// Reads on such fanouts, which are not counted among them.
    node_operations: u64,
    answered: u64,
    crashes: u64,
    faults: u64,
    copies: u64,
    /// The faults have ended; settled by then or it is a violation.
    settle_by: Option<u64>,
    done: bool,
    /// Removed with everything in it.
    root: tempfile::TempDir,
}

impl World {
    pub(crate) fn new(config: WorldConfig, sink: Option<Sink>) -> std::io::Result<Self> {
        let mut random = Random::new(config.seed);
        let mut plan = Plan::new(&mut random);
        if config.bug == Some(Bug::StateBeforeNumbers) {
            // States are copied often, and slowly.
            (plan.raft_log_bytes, plan.copy_bytes) = (1 << 10, 1 << 9);
        }
        let network = Network::new(plan.members, &mut random);
        let root = directory()?;
        let members = (0..plan.members).map(|index| Member::new(index, root.path())).collect();
        let clients = (0..plan.clients).map(Client::new).collect();
        let nodes = (0..plan.nodes).map(|_| Node::new(&plan, &mut random)).collect();
        let watchers = (0..plan.watchers).map(|_| Watcher::new(&plan, &mut random)).collect();
        let mut world = Self {
            config,
            random,
            now: 0,
            queue: BinaryHeap::new(),
            seq: 0,
            network,
            outbox: Outbox::default(),
            members,
            nodes,
            clients,
            watchers,
            admin: Admin::new(plan.members),
            oracle: Oracle::default(),
            trace: Trace::new(sink),
            clock: Clock::new(),
            runtime: tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?,
            advanced: 0,
            operations: 0,
            node_operations: 0,
            answered: 0,
            crashes: 0,
            faults: 0,
            copies: 0,
            settle_by: None,
            done: false,
            plan,
            root,
        };
        world.populate();
        Ok(world)
    }

    fn populate(&mut self) {
        for member in 0..self.members.len() {
            self.schedule(0, Event::Start(member));
        }
        for node in 0..self.nodes.len() {
            self.schedule(1_000_000, Event::StartNode(node));
        }
        for client in 0..self.clients.len() {
            self.schedule(2_000_000, Event::Client(client));
        }
        for watcher in 0..self.watchers.len() {
            self.schedule(2_500_000, Event::Whim(watcher));
        }
        if self.plan.fault_gap.is_some() {
            self.schedule(2_000_000, Event::Fault);
        }
        if self.plan.admin_gap.is_some() {
            self.schedule(3_000_000, Event::Admin);
        }
        let plan = &self.plan;
        self.trace.say(0, || format!("{plan:?}"));
    }

    /// Runs to the end.
    pub(crate) fn run(mut self) -> Report {
        let mut violation = None;
        while !self.done {
            if let Err(found) = self.step() {
                self.trace.say(self.now, || format!("VIOLATION {found}"));
                violation = Some(found);
                break;
            }
        }
        Report {
            trace: self.trace.hash(),
            steps: self.trace.steps(),
            operations: self.operations,
            answered: self.answered,
            members: self.members.len(),
            crashes: self.crashes,
            faults: self.faults,
            revisions: u64::try_from(self.oracle.truth.revision().0 - 1).unwrap_or(0),
            events: self.watchers.iter().map(Watcher::received).sum(),
            expired: self.oracle.leases.expired(),
            copies: self.copies,
            changes: self.admin.changes(),
            virtual_ms: self.now / 1000,
            violation,
        }
    }

    fn step(&mut self) -> Checked {
        let Some(Reverse(Scheduled { at, event, .. })) = self.queue.pop() else {
            return broken(Guarantee::Live, "nothing is left to happen");
        };
        self.now = at;
        self.clock.set(at);
        self.happen(event)?;
        self.collect();
        Ok(())
    }

    fn happen(&mut self, event: Event) -> Checked {
        match event {
            Event::Tick(at) => self.tick(at),
            Event::Turn(at, thread) => self.turn(at, thread),
            Event::Deliver { from, to, message } => self.deliver(from, to, &message),
            Event::Refused(at) => {
                self.refused(at);
                Ok(())
            }
            Event::Request { gateway, to, operation, ask } => {
                self.request(gateway, to, operation, *ask);
                Ok(())
            }
            Event::Response { gateway, operation, reply } => self.response(gateway, operation, *reply),
            Event::Client(client) => self.client(client),
            Event::GiveUp { client, operation } => self.give_up(client, operation),
            Event::Watcher(watcher) => self.poll_watcher(watcher),
            Event::Whim(watcher) => self.whim(watcher),
            Event::Fault => {
                self.fault();
                Ok(())
            }
            Event::Lift(lift) => {
                self.lift(&lift);
                Ok(())
            }
            Event::Start(member) => self.start(member),
            Event::StartNode(node) => {
                self.start_node(node);
                Ok(())
            }
            Event::KeepNode { node, run } => {
                self.keep_node(node, run);
                Ok(())
            }
            Event::NodeTurn { node, run, thread } => self.turn_node(node, run, thread),
            Event::FeedNode { node, run } => {
                self.feed_node(node, run);
                Ok(())
            }
            Event::NodeFed { node, run, epoch, parcel } => {
                self.node_fed(node, run, epoch, parcel);
                Ok(())
            }
            Event::Copy(at) => self.copy(at),
            Event::Admin => self.administer(),
            Event::Settle => self.settle(),
        }
    }

    /// Something happens so many microseconds from now.
    fn schedule(&mut self, delay: u64, event: Event) {
        self.seq += 1;
        self.queue.push(Reverse(Scheduled { at: self.now + delay, seq: self.seq, event }));
    }

    fn between(&mut self, low: u64, high: u64) -> u64 {
        self.random.between(low, high)
    }

    /// Takes what members have given out, and sends it on its way.
    fn collect(&mut self) {
        let sent = std::mem::take(&mut *self.outbox.lock());
        for message in sent {
            let Some(to) = self.members.iter().position(|member| member.id == message.to) else { continue };
            self.trace.bytes(&message.message);
            for delay in self.network.route(message.from, to, &mut self.random) {
                self.schedule(delay, Event::Deliver { from: message.from, to, message: message.message.clone() });
            }
            if self.network.is_cut(message.from, to) && self.random.chance(100) {
                let to = self.members[to].id;
                if let Some(running) = &self.members[message.from].running {
                    running.consensus.report_unreachable(to);
                }
            }
        }
    }

    fn start(&mut self, member: usize) -> Checked {
        if self.members[member].running.is_some() {
            return Ok(());
        }
        let random = &mut self.random;
        let chosen =
            Chosen { salt: random.any(), proposer_id: random.any(), history_id: random.any(), seed: random.any() };
        // A clock that is fast or slow by up to a tenth.
        let tick = random.between(90_000, 110_000);
        let this = &mut self.members[member];
        if this.gone {
            return Ok(());
        }
        this.tick = tick;
        if let Err(error) = this.start(member, &self.plan, chosen, &self.outbox) {
            if error.to_string().contains("removed") {
                return self.left(member);
            }
            if error.to_string().contains("no power") {
                // A disk that fails during the start; the next attempt finds it repaired.
                this.disk.fail_after(None);
                let delay = self.between(1000, 1_000_000);
                self.schedule(delay, Event::Start(member));
                return Ok(());
            }
            return broken(Guarantee::Sound, format!("member {member} does not start: {error}"));
        }
        let at = At { member, run: this.run };
        let doubtful = this.is_doubtful();
        self.trace.step(self.now, "start", &[member as u64, at.run, u64::from(doubtful)]);
        self.wake(at, Thread::Replica, 0);
        self.wake(at, Thread::Apply, 0);
        self.wake(at, Thread::Upkeep, 20_000);
        self.schedule(tick, Event::Tick(at));
        self.look_for_source(at)
    }

    /// Lets tokio's clock follow the world's.
    fn advance(&mut self) {
        let passed = self.now - self.advanced;
        if passed > 0 {
            self.advanced = self.now;
            self.runtime.block_on(tokio::time::advance(Duration::from_micros(passed)));
        }
    }

    fn is_running(&self, at: At) -> bool {
        self.members[at.member].run == at.run && self.members[at.member].running.is_some()
    }
}

/// In memory if the system has a place for that.
fn directory() -> std::io::Result<tempfile::TempDir> {
    let memory = std::path::Path::new("/dev/shm");
    let builder = || {
        let mut builder = tempfile::Builder::new();
        builder.prefix("tailwater-sim-");
        builder
    };
    if memory.is_dir()
        && let Ok(dir) = builder().tempdir_in(memory)
    {
        return Ok(dir);
    }
    builder().tempdir()
}
