//! Whoever changes the group: adds members, promotes learners, removes members, one step after another.

use tailwater_api::write::command::Command;
use tailwater_api::{tail, write};
use tailwater_eventlog::{Member as Listed, MemberId, Position};

use super::{Event, World};
use crate::member::{At, Member, listed};
use crate::operation::{Ask, Reply};
use crate::violation::{Checked, Guarantee, broken};

/// Numbers of its requests begin here, above those of clients.
pub(super) const ADMIN: u64 = 1 << 40;
/// Members of a world, those that have left included.
const MEMBERS_MAX: usize = 9;
/// Voters that a group grows to.
const VOTERS_MAX: usize = 5;

/// What is known of the group.
pub(super) struct Admin {
    requests: u64,
    changes: u64,
    group: Vec<Listed>,
    at: Position,
}

impl Admin {
    pub(super) fn new(members: usize) -> Self {
        Self { requests: ADMIN, changes: 0, group: (1..=members as u64).map(listed).collect(), at: Position(0) }
    }

    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// Whether a member is in the group.
    pub(super) fn has(&self, id: MemberId) -> bool {
        self.group.iter().any(|member| member.id == id)
    }

    /// A member's tail showed the group.
    pub(super) fn group_is(&mut self, at: Position, members: &[Listed]) {
        if at > self.at {
            self.at = at;
            self.group = members.to_vec();
        }
    }
}

impl World {
    pub(super) fn administer(&mut self) -> Checked {
        let Some((low, high)) = self.plan.admin_gap else { return Ok(()) };
        if self.settle_by.is_some() {
            return Ok(());
        }
        let gap = self.between(low, high);
        self.schedule(gap, Event::Admin);
        self.start_listed();
        let Some(command) = self.choose_change() else { return Ok(()) };
        let alive: Vec<usize> =
            (0..self.members.len()).filter(|member| self.members[*member].running.is_some()).collect();
        if alive.is_empty() {
            return Ok(());
        }
        let member = alive[self.random.index(alive.len())];
        let gateway = At { member, run: self.members[member].run };
        self.admin.requests += 1;
        let number = self.admin.requests;
        self.trace.step(self.now, "admin", &[member as u64, number]);
        self.trace.say(self.now, || format!("{command:?}"));
        self.send_request(gateway, number, Ask::Propose(command))
    }

    fn choose_change(&mut self) -> Option<Command> {
        let voters: Vec<MemberId> =
            self.admin.group.iter().filter(|member| !member.is_learner).map(|member| member.id).collect();
        let learner = self.admin.group.iter().find(|member| member.is_learner).map(|member| member.id);
        if let Some(learner) = learner
            && self.random.chance(700)
        {
            return Some(Command::MemberPromote(write::MemberPromote { id: learner.0 }));
        }
        let full = voters.len() >= VOTERS_MAX || self.members.len() >= MEMBERS_MAX;
        let shrinks = voters.len() > 2 && self.random.chance(if full { 800 } else { 350 });
        if shrinks {
            let all = &self.admin.group;
            let id = all[self.random.index(all.len())].id;
            return Some(Command::MemberRemove(write::MemberRemove { id: id.0 }));
        }
        if full {
            return None;
        }
        let id = self.members.len() as u64 + 1;
        let Listed { name, peer_urls, .. } = listed(id);
        let is_learner = self.random.chance(700);
        let member = tail::Member { id, name, peer_urls, client_urls: Vec::new(), is_learner };
        Some(Command::MemberAdd(write::MemberAdd { member: Some(member) }))
    }

    /// Starts members that the group lists and that have never run.
    pub(super) fn start_listed(&mut self) {
        for member in self.admin.group.clone() {
            let index = usize::try_from(member.id.0 - 1).expect("ids are small");
            if index < self.members.len() {
                continue;
            }
            let mut new = Member::new(index, self.root.path());
            new.joined = Some(self.admin.group.clone());
            self.members.push(new);
            self.network.grow();
            self.schedule(1, Event::Start(index));
        }
    }

    pub(super) fn administered(&mut self, number: u64, reply: &Reply) -> Checked {
        self.trace.step(self.now, "administered", &[number]);
        self.trace.say(self.now, || format!("{reply:?}"));
        if matches!(reply, Reply::Proposed(Ok(_))) {
            self.admin.changes += 1;
        }
        Ok(())
    }

    /// A member says that it was removed, and stops.
    pub(super) fn left(&mut self, member: usize) -> Checked {
        let id = self.members[member].id;
        if self.admin.has(id) {
            return broken(
                Guarantee::Sound,
                format!("member {member} says that it was removed, and the group lists it"),
            );
        }
        self.trace.step(self.now, "left", &[member as u64]);
        self.crash(member, None);
        self.members[member].gone = true;
        Ok(())
    }
}
