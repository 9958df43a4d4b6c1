//! What goes wrong, and when it ends.

use super::{Event, World};
use crate::member::{At, Thread};
use crate::node::Place;
use crate::operation::Ask;
use crate::plan::Bug;

/// The end of a fault.
pub(super) enum Lift {
    /// These links work again.
    Links(Vec<(usize, usize)>),
}

impl World {
    /// One fault, and the time of the next.
    pub(super) fn fault(&mut self) {
        let Some((low, high)) = self.plan.fault_gap else { return };
        if self.settle_by.is_some() {
            return;
        }
        let gap = self.between(low, high);
        self.schedule(gap, Event::Fault);
        self.faults += 1;
        if !self.nodes.is_empty() && self.random.chance(300) {
            return self.node_fault();
        }
        let member = self.random.index(self.members.len());
        match self.random.index(20) {
            0..5 => self.cut_some(),
            5..10 => self.crash_some(member),
            10 if self.random.chance(300) => {
                // All at once, as when the power goes.
                for member in 0..self.members.len() {
                    self.crash_some(member);
                }
            }
            10..13 => {
                let end = self.now + self.between(50_000, 4_000_000);
                self.trace.step(self.now, "pause", &[member as u64, end]);
                self.members[member].paused_until = end;
            }
            13 | 14 => {
                let end = self.now + self.between(200_000, 5_000_000);
                self.trace.step(self.now, "slow disk", &[member as u64, end]);
                self.members[member].slow_until = end;
            }
            15 => {
                let more = self.between(1, 40);
                let disk = &self.members[member].disk;
                self.trace.step(self.now, "failing disk", &[member as u64, more]);
                disk.fail_after(Some(disk.writes() + more));
            }
            16 => self.move_leader(member),
            _ => self.flush(member),
        }
    }

    /// Writes a member's state to its files, as upkeep does from time to time.
    fn flush(&mut self, member: usize) {
        if self.config.bug == Some(Bug::AnswerBeforeQuorum) {
            // The state would be ahead of what the log keeps, and the member would not start.
            return;
        }
        self.trace.step(self.now, "flush", &[member as u64]);
        if let Some(source) = self.members[member].running.as_ref().and_then(|running| running.source.as_ref()) {
            // What was flushed before is there; the raft log has the rest.
            if let Err(error) = source.log.flush() {
                self.trace.say(self.now, || format!("flush: {error}"));
            }
        }
    }

    fn move_leader(&mut self, to: usize) {
        let leader = (0..self.members.len()).find(|index| {
            let member = &self.members[*index];
            member.running.as_ref().is_some_and(|running| running.consensus.status().leader == member.id)
        });
        let Some(leader) = leader.filter(|leader| *leader != to) else { return };
        self.trace.step(self.now, "move leader", &[leader as u64, to as u64]);
        let at = At { member: leader, run: self.members[leader].run };
        self.request(at, leader, 0, Ask::MoveLeader(self.members[to].id));
        self.wake_soon(at, Thread::Replica);
    }

    fn crash_some(&mut self, member: usize) {
        if self.members[member].running.is_none() {
            return;
        }
        let cut = self.random.chance(700).then(|| self.random.any());
        self.crash(member, cut);
        let often = if self.config.bug == Some(Bug::VoteAfterCutLog) { 1000 } else { 300 };
        if cut.is_some() && self.random.chance(often) {
            self.lose_synced(member);
        }
        let away = match self.random.index(6) {
            0 | 1 => self.between(1_000, 100_000),
            2 => self.between(3_000_000, 12_000_000),
            _ => self.between(100_000, 4_000_000),
        };
        self.schedule(away, Event::Start(member));
    }

    /// Now and then a loss of power takes more than it should. A group stands that of one member at a time, since who
    /// notices it does not vote before it has everything back.
    fn lose_synced(&mut self, member: usize) {
        let mut others = (0..self.members.len()).filter(|other| *other != member);
        let sure = |other: usize| {
            let other = &self.members[other];
            other.gone || other.running.is_some() && !other.is_doubtful()
        };
        let fixed = self.plan.admin_gap.is_none() && self.members.len() > 1;
        if self.config.bug == Some(Bug::AnswerBeforeQuorum) || !fixed || !others.all(sure) {
            return;
        }
        let bytes = self.random.index(600) + 10;
        let noticed = self.config.bug != Some(Bug::VoteAfterCutLog);
        if self.members[member].lose_synced(bytes, noticed) {
            self.trace.step(self.now, "lose synced", &[member as u64, bytes as u64]);
        }
    }

    /// Ends a process, and whatever hung on it.
    pub(super) fn crash(&mut self, member: usize, cut: Option<u64>) {
        self.trace.step(self.now, "crash", &[member as u64, cut.unwrap_or(0)]);
        self.crashes += 1;
        self.close_watchers(Place::Member(member));
        self.disconnect_nodes(Place::Member(member));
        // A connection ends with the process at its other end; what is staged stays.
        for other in self.members.iter_mut().filter_map(|other| other.running.as_mut()) {
            other.copy.take_if(|copy| copy.comes_from(member));
        }
        let this = &mut self.members[member];
        this.crash(cut);
        (this.paused_until, this.slow_until) = (0, 0);
        self.disconnect_clients(member);
    }

    /// Cuts links: two sides, one member off, or one direction.
    fn cut_some(&mut self) {
        let count = self.members.len();
        let mut links = Vec::new();
        match self.random.index(4) {
            0 => {
                let (from, to) = (self.random.index(count), self.random.index(count));
                links.push((from, to));
            }
            1 => {
                let alone = self.random.index(count);
                let (hears, speaks) = (self.random.chance(300), self.random.chance(300));
                for other in 0..count {
                    if !speaks || hears {
                        links.push((alone, other));
                    }
                    if !hears {
                        links.push((other, alone));
                    }
                }
            }
            _ => {
                let sides: Vec<bool> = (0..count).map(|_| self.random.chance(500)).collect();
                for from in 0..count {
                    links.extend((0..count).filter(|to| sides[from] != sides[*to]).map(|to| (from, to)));
                }
            }
        }
        links.retain(|(from, to)| from != to);
        for (from, to) in &links {
            self.trace.step(self.now, "cut", &[*from as u64, *to as u64]);
            self.network.set_cut(*from, *to, true);
        }
        let end = self.between(100_000, 6_000_000);
        self.schedule(end, Event::Lift(Lift::Links(links)));
    }

    pub(super) fn lift(&mut self, lift: &Lift) {
        match lift {
            Lift::Links(links) => {
                self.trace.step(self.now, "mend", &[links.len() as u64]);
                links.iter().for_each(|(from, to)| self.network.set_cut(*from, *to, false));
            }
        }
    }
}
