//! Fanouts in processes of their own: what they follow, their turns, what goes wrong with them, and reads on them.

use tailwater_eventlog::{KeyRange, MemberId, Revision, Source};
use tailwater_fanout::{Fanout, MemberSource, RangeQuery, ReadError};

use super::{Event, World};
use crate::link::Parcel;
use crate::member::{At, Thread};
use crate::node::{NodeRead, Place, Spot};
use crate::operation::{Ask, Kind, Reply};
use crate::plan::Bug;
use crate::violation::{Checked, Guarantee, broken};

/// Numbers of their reads begin here, above those of whoever changes the group.
pub(super) const NODE_READS: u64 = 1 << 41;
/// Microseconds after which a read is given up.
const PATIENCE: u64 = 4_000_000;
/// Parcels that leave at once.
const PARCELS_MAX: usize = 8;

impl World {
    /// Where a process is, if it is the run that is meant and has not ended.
    pub(super) fn is_there(&self, spot: Spot) -> bool {
        match spot.place {
            Place::Member(member) => self.is_running(At { member, run: spot.run }),
            Place::Node(node) => self.nodes[node].run == spot.run && self.nodes[node].running.is_some(),
        }
    }

    pub(super) fn paused_until(&self, place: Place) -> u64 {
        match place {
            Place::Member(member) => self.members[member].paused_until,
            Place::Node(node) => self.nodes[node].paused_until,
        }
    }

    /// The processes that clients may turn to, those included that do not run.
    pub(super) fn some_place(&mut self) -> Place {
        let (members, nodes) = (self.members.len(), self.nodes.len());
        // Those of their own are few, and as interesting.
        match self.random.index(members + 2 * nodes) {
            index if index < members => Place::Member(index),
            index => Place::Node((index - members) / 2),
        }
    }

    /// Its fanout, once that has a state, and which run it is.
    pub(super) fn fanout_at(&self, place: Place) -> Option<(Spot, &Fanout)> {
        if self.paused_until(place) > self.now {
            return None;
        }
        let (run, fanout) = match place {
            Place::Member(member) => {
                let member = &self.members[member];
                (member.run, &member.running.as_ref()?.fanout.as_ref()?.0)
            }
            Place::Node(node) => (self.nodes[node].run, &self.nodes[node].running.as_ref()?.fanout),
        };
        // The first transfer of one in a process of its own must have ended.
        let serves = match place {
            Place::Member(_) => fanout.snapshot().cursor.history.0 != 0,
            Place::Node(_) => fanout.is_ready(),
        };
        serves.then_some((Spot { place, run }, fanout))
    }

    pub(super) fn start_node(&mut self, node: usize) {
        if self.nodes[node].running.is_some() {
            return;
        }
        self.nodes[node].start(node, &self.plan, &self.clock);
        let run = self.nodes[node].run;
        self.trace.step(self.now, "start node", &[node as u64, run]);
        self.schedule(1, Event::KeepNode { node, run });
    }

    /// From time to time: it finds a source, leaves one, asks what is new, and somebody reads.
    pub(super) fn keep_node(&mut self, node: usize, run: u64) {
        if !self.is_there(Spot { place: Place::Node(node), run }) {
            return;
        }
        let delay = self.between(20_000, 150_000);
        self.schedule(delay, Event::KeepNode { node, run });
        if self.nodes[node].paused_until > self.now {
            return;
        }
        let is_cut = self.nodes[node].cut_until > self.now;
        let Some(running) = &self.nodes[node].running else { return };
        let upstream = running.upstream.filter(|spot| self.is_there(*spot) && !is_cut);
        let leaves = running.link.is_awaited() || self.settle_by.is_none() && self.random.chance(10);
        if upstream.is_none() || leaves {
            self.connect(node, None);
            if !is_cut && let Some(found) = self.choose_upstream(node) {
                self.connect(node, Some(found));
            }
        }
        self.feed_soon(node);
        self.wake_node(node, Thread::Tail);
        self.wake_node(node, Thread::Deliver);
        if self.settle_by.is_none() && self.random.chance(300) {
            self.begin_node_read(node);
        }
    }

    /// A source that holds what this one holds, and does not itself live on it.
    fn choose_upstream(&mut self, node: usize) -> Option<Place> {
        let place = self.some_place();
        if self.paused_until(place) > self.now {
            return None;
        }
        match place {
            Place::Member(member) => {
                let running = self.members[member].running.as_ref()?;
                running.source.is_some().then_some(place)
            }
            Place::Node(other) => {
                let candidate = &self.nodes[other];
                let fits = candidate.relays
                    && candidate.cut_until <= self.now
                    && candidate.scope.covers_all(self.nodes[node].scope.ranges())
                    && candidate.running.as_ref().is_some_and(|running| running.fanout.is_ready());
                let mut above = Some(Place::Node(other));
                while let Some(Place::Node(next)) = above {
                    if next == node {
                        return None;
                    }
                    above =
                        self.nodes[next].running.as_ref().and_then(|running| running.upstream).map(|spot| spot.place);
                }
                fits.then_some(place)
            }
        }
    }

    fn connect(&mut self, node: usize, to: Option<Place>) {
        let found: Option<(Spot, std::sync::Arc<dyn Source>)> = to.and_then(|place| match place {
            Place::Member(member) => {
                let running = self.members[member].running.as_ref()?;
                let fanout = running.fanout.as_ref().map(|(fanout, _)| fanout.clone());
                let source = MemberSource::new(running.source.clone()?, fanout);
                Some((Spot { place, run: self.members[member].run }, std::sync::Arc::new(source) as _))
            }
            Place::Node(other) => {
                let running = self.nodes[other].running.as_ref()?;
                Some((Spot { place, run: self.nodes[other].run }, running.fanout.source()))
            }
        });
        let (upstream, source) = found.unzip();
        let Some(running) = &mut self.nodes[node].running else { return };
        if running.upstream.is_some() || upstream.is_some() {
            running.upstream = upstream;
            running.link.connect(source);
            let to = match upstream.map(|spot| spot.place) {
                None => 0,
                Some(Place::Member(member)) => 1 + member as u64,
                Some(Place::Node(other)) => 1000 + other as u64,
            };
            self.trace.step(self.now, "connect", &[node as u64, to]);
        }
    }

    /// A process has ended, and with it the connections of those who followed it.
    pub(super) fn disconnect_nodes(&mut self, place: Place) {
        for node in 0..self.nodes.len() {
            let upstream = self.nodes[node].running.as_ref().and_then(|running| running.upstream);
            if upstream.is_some_and(|spot| spot.place == place) {
                self.connect(node, None);
            }
        }
    }

    /// There is something new at a source.
    pub(super) fn feed_readers(&mut self, place: Place) {
        for node in 0..self.nodes.len() {
            let upstream = self.nodes[node].running.as_ref().and_then(|running| running.upstream);
            if upstream.is_some_and(|spot| spot.place == place) {
                self.feed_soon(node);
            }
        }
    }

    fn feed_soon(&mut self, node: usize) {
        let delay = self.between(10, 400);
        let Some(running) = &mut self.nodes[node].running else { return };
        if !std::mem::replace(&mut running.feed_due, true) {
            let run = self.nodes[node].run;
            self.schedule(delay, Event::FeedNode { node, run });
        }
    }

    /// The other end of its connection sends what there is.
    pub(super) fn feed_node(&mut self, node: usize, run: u64) {
        if !self.is_there(Spot { place: Place::Node(node), run }) {
            return;
        }
        let Some(running) = &mut self.nodes[node].running else { return };
        running.feed_due = false;
        let Some(upstream) = running.upstream else { return };
        if self.nodes[node].cut_until > self.now || self.paused_until(upstream.place) > self.now {
            // Whoever keeps it looks again.
            return;
        }
        for _ in 0..PARCELS_MAX {
            let lose = self.config.bug == Some(Bug::FrameLost) && self.random.chance(20);
            let delay = self.network.delay(&mut self.random);
            let now = self.now;
            let Some(running) = &mut self.nodes[node].running else { return };
            let Some((epoch, parcel)) = running.link.feed(lose) else { return };
            running.arrival = running.arrival.max(now + delay);
            let delay = running.arrival - now;
            self.schedule(delay, Event::NodeFed { node, run, epoch, parcel });
        }
        self.feed_soon(node);
    }

    pub(super) fn node_fed(&mut self, node: usize, run: u64, epoch: u64, parcel: Parcel) {
        if !self.is_there(Spot { place: Place::Node(node), run }) || self.nodes[node].cut_until > self.now {
            return;
        }
        if let Some(running) = &self.nodes[node].running {
            running.link.arrive(epoch, parcel);
            self.wake_node(node, Thread::Tail);
        }
    }

    pub(super) fn wake_node(&mut self, node: usize, thread: Thread) {
        let delay = match thread {
            Thread::History => self.between(100, 3_000),
            _ => self.between(10, 400),
        };
        let Some(running) = &mut self.nodes[node].running else { return };
        if !std::mem::replace(&mut running.due[thread as usize], true) {
            let run = self.nodes[node].run;
            self.schedule(delay, Event::NodeTurn { node, run, thread });
        }
    }

    pub(super) fn turn_node(&mut self, node: usize, run: u64, thread: Thread) -> Checked {
        let spot = Spot { place: Place::Node(node), run };
        if !self.is_there(spot) {
            return Ok(());
        }
        let paused = self.nodes[node].paused_until.saturating_sub(self.now);
        if paused > 0 {
            self.schedule(paused, Event::NodeTurn { node, run, thread });
            return Ok(());
        }
        let Some(running) = &mut self.nodes[node].running else { return Ok(()) };
        running.due[thread as usize] = false;
        match thread {
            Thread::Tail => {
                if !running.parts.step_tail(std::time::Duration::ZERO) {
                    return broken(Guarantee::Sound, format!("the fanout of node {node} has ended"));
                }
                let again = running.link.has_arrived() || !running.fanout.is_ready() && running.upstream.is_some();
                let reached = running.fanout.snapshot().cursor.position.0;
                self.trace.step(self.now, "node tail", &[node as u64, reached]);
                self.wake_node(node, Thread::Deliver);
                self.feed_soon(node);
                self.feed_readers(spot.place);
                if again {
                    self.wake_node(node, Thread::Tail);
                }
                self.node_reads(node)
            }
            Thread::History => {
                if running.parts.step_history() {
                    self.trace.step(self.now, "node history", &[node as u64]);
                    self.wake_node(node, Thread::History);
                    self.wake_watchers(spot);
                }
                Ok(())
            }
            _ => {
                running.parts.step_deliver();
                self.wake_watchers(spot);
                Ok(())
            }
        }
    }

    /// One thing that goes wrong with one of them.
    pub(super) fn node_fault(&mut self) {
        let node = self.random.index(self.nodes.len());
        match self.random.index(5) {
            0 | 1 => self.kill_node(node),
            2 => {
                let end = self.now + self.between(50_000, 4_000_000);
                self.trace.step(self.now, "pause node", &[node as u64, end]);
                self.nodes[node].paused_until = end;
            }
            3 => {
                let end = self.now + self.between(100_000, 6_000_000);
                self.trace.step(self.now, "cut node", &[node as u64, end]);
                self.nodes[node].cut_until = end;
                self.connect(node, None);
                self.disconnect_nodes(Place::Node(node));
            }
            _ => self.connect(node, None),
        }
    }

    fn kill_node(&mut self, node: usize) {
        if self.nodes[node].running.is_none() {
            return;
        }
        self.trace.step(self.now, "kill node", &[node as u64]);
        self.close_watchers(Place::Node(node));
        self.disconnect_nodes(Place::Node(node));
        self.nodes[node].running = None;
        (self.nodes[node].paused_until, self.nodes[node].cut_until) = (0, 0);
        let away = self.between(1_000, 3_000_000);
        self.schedule(away, Event::StartNode(node));
    }

    /// The faults are over.
    pub(super) fn heal_nodes(&mut self) {
        for node in 0..self.nodes.len() {
            let this = &mut self.nodes[node];
            (this.paused_until, this.cut_until) = (this.paused_until.min(self.now), 0);
            self.start_node(node);
        }
    }

    fn begin_node_read(&mut self, node: usize) {
        let Some(running) = &self.nodes[node].running else { return };
        if !running.fanout.is_ready() || running.reads.len() >= 4 {
            return;
        }
        let leader = running.fanout.snapshot().leader;
        let spans = self.nodes[node].scope.spans().to_vec();
        let range =
            if self.random.chance(300) { self.some_range() } else { spans[self.random.index(spans.len())].clone() };
        if !self.nodes[node].scope.covers(&range) {
            return;
        }
        let serializable = self.random.chance(300);
        let at = self.random.chance(200).then(|| {
            let back = i64::try_from(self.random.between(0, 300)).expect("small");
            Revision((self.oracle.floor().0 - back).max(1))
        });
        let limit = if self.random.chance(200) { self.random.index(5) } else { 0 };
        self.node_operations += 1;
        let id = NODE_READS + self.node_operations;
        let operation = self.oracle.asks(id, Kind::Read { range, at, serializable, limit });
        self.trace.say(self.now, || format!("node {node}: {operation:?}"));
        if !serializable && !self.ask_leader(node, leader, id) {
            return;
        }
        let position = serializable.then_some(tailwater_eventlog::Position(0));
        let since = self.now;
        if let Some(running) = &mut self.nodes[node].running {
            running.reads.push(NodeRead { operation, since, position });
        }
    }

    /// Asks the leader that the tail names what must be reached; the way back is that of the leader's own clients.
    fn ask_leader(&mut self, node: usize, leader: Option<MemberId>, id: u64) -> bool {
        let to = leader.and_then(|leader| self.index_of(leader)).filter(|_| self.nodes[node].cut_until <= self.now);
        let Some(to) = to else { return false };
        let gateway = At { member: to, run: self.members[to].run };
        let delay = self.network.delay(&mut self.random);
        self.schedule(delay, Event::Request { gateway, to, operation: id, ask: Box::new(Ask::Barrier) });
        true
    }

    /// What the leader says of such a read.
    pub(super) fn node_barrier(&mut self, id: u64, reply: &Reply) -> Checked {
        for node in 0..self.nodes.len() {
            let Some(running) = &mut self.nodes[node].running else { continue };
            let Some(at) = running.reads.iter().position(|read| read.operation.id == id) else { continue };
            match reply {
                Reply::Barrier(Ok(position)) => running.reads[at].position = Some(*position),
                _ => drop(running.reads.swap_remove(at)),
            }
            return self.node_reads(node);
        }
        Ok(())
    }

    /// Answers those whose position is reached.
    fn node_reads(&mut self, node: usize) -> Checked {
        let now = self.now;
        if self.nodes[node].paused_until > now {
            return Ok(());
        }
        let Some(running) = &mut self.nodes[node].running else { return Ok(()) };
        running.reads.retain(|read| now - read.since < PATIENCE);
        let reached = running.fanout.snapshot().cursor.position;
        if !running.fanout.is_ready() {
            return Ok(());
        }
        let is_due = |read: &mut NodeRead| read.position.is_some_and(|position| position <= reached);
        let due: Vec<NodeRead> = running.reads.extract_if(.., is_due).collect();
        for read in due {
            let Some(running) = &self.nodes[node].running else { return Ok(()) };
            let Kind::Read { range, at, limit, .. } = &read.operation.kind else { continue };
            let answer = running.fanout.range_here(query(range.clone(), *at, *limit));
            let shown = running.shown;
            match answer {
                Ok(answer) => {
                    self.oracle.read(&read.operation, &answer, shown)?;
                    self.trace.step(now, "node read", &[node as u64, answer.header_revision.0.unsigned_abs()]);
                    if let Some(running) = &mut self.nodes[node].running {
                        running.shown = running.shown.max(answer.header_revision);
                    }
                }
                // Its source is away, or it must begin anew.
                Err(ReadError::History(_) | ReadError::Stopped) => {}
                Err(error) => self.read_failed(&read.operation, &error)?,
            }
        }
        Ok(())
    }
}

/// A plain read.
pub(super) fn query(range: KeyRange, revision: Option<Revision>, limit: usize) -> RangeQuery {
    RangeQuery {
        range,
        revision,
        limit,
        sort: None,
        count_only: false,
        keys_only: false,
        revision_bounds: (0, 0, 0, 0),
    }
}
