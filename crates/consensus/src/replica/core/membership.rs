//! Changes of the group: what the leader checks before it proposes one, and what raft is told once one is applied.

use raft::StateRole;
use raft::eraftpb::{ConfChange, ConfChangeType, ConfState};
use tailwater_api::write::command::Command;
use tailwater_eventlog::MemberId;

use super::{Pending, ReplicaCore};
use crate::ProposeError;
use crate::machine::Group;
use crate::reach::{self, quorum};

/// A learner may become a voter once it holds so much of the leader's log, in percent; etcd's number.
const READY_PERCENT: u64 = 90;

/// What a command changes in the group's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// A member is added.
    Add {
        /// Its id.
        id: MemberId,
        /// Whether it has no vote.
        is_learner: bool,
    },
    /// A member leaves.
    Remove(MemberId),
    /// A learner becomes a voter.
    Promote(MemberId),
}

impl Change {
    /// `None` for a command that changes nothing in raft's configuration.
    pub(crate) fn of(command: &Command) -> Option<Self> {
        match command {
            Command::MemberAdd(add) => {
                let member = add.member.as_ref()?;
                Some(Self::Add { id: MemberId(member.id), is_learner: member.is_learner })
            }
            Command::MemberRemove(remove) => Some(Self::Remove(MemberId(remove.id))),
            Command::MemberPromote(promote) => Some(Self::Promote(MemberId(promote.id))),
            _ => None,
        }
    }

    fn conf_change(self) -> ConfChange {
        let (change_type, id) = match self {
            Self::Add { id, is_learner: true } => (ConfChangeType::AddLearnerNode, id),
            Self::Add { id, is_learner: false } | Self::Promote(id) => (ConfChangeType::AddNode, id),
            Self::Remove(id) => (ConfChangeType::RemoveNode, id),
        };
        conf_change(change_type, id.0)
    }
}

fn conf_change(change_type: ConfChangeType, node_id: u64) -> ConfChange {
    let mut change = ConfChange::default();
    change.set_change_type(change_type);
    change.node_id = node_id;
    change
}

impl ReplicaCore {
    /// Proposes the next change of membership, unless one is still on its way: raft takes one at a time. One that a
    /// check of the leader refuses is answered at once; the others are checked again, by the same rules on every member,
    /// when they are applied.
    pub(super) fn propose_change(&mut self) {
        while !self.node.raft.has_pending_conf() {
            let Some(Pending { proposal_id, command, change: Some(change) }) = self.changes.pop_front() else { return };
            let proposed = self.check(change).and_then(|()| {
                let proposed = self.node.propose_conf_change(command.to_vec(), change.conf_change());
                proposed.map_err(|_| ProposeError::TooManyRequests)
            });
            if let Err(error) = proposed {
                self.refused.push((proposal_id, error));
            }
        }
    }

    /// The checks that rest on what the leader sees of its peers; the rules are etcd's.
    fn check(&self, change: Change) -> Result<(), ProposeError> {
        match change {
            Change::Promote(id) => self.check_promote(id),
            Change::Add { .. } | Change::Remove(_) if self.config.strict_reconfig_check => {
                let is_active = |id| self.is_active(id);
                reach::check(change, &self.members, is_active, is_active)
            }
            Change::Remove(id) if self.is_last_voter(id) => Err(ProposeError::NotEnoughStarted),
            Change::Add { .. } | Change::Remove(_) => Ok(()),
        }
    }

    fn is_last_voter(&self, id: MemberId) -> bool {
        let mut voters = self.members.iter().filter(|member| !member.is_learner);
        voters.next().is_some_and(|voter| voter.id == id) && voters.next().is_none()
    }

    fn check_promote(&self, id: MemberId) -> Result<(), ProposeError> {
        let progress = self.node.raft.prs();
        if let (Some(learner), Some(own)) = (progress.get(id.0), progress.get(self.config.member_id.0))
            && learner.matched.saturating_mul(100) < own.matched.saturating_mul(READY_PERCENT)
        {
            return Err(ProposeError::LearnerNotReady);
        }
        let (started, voters) = reach::started_voters(&self.members, None);
        match self.config.strict_reconfig_check && started + 1 < quorum(voters + 1) {
            true => Err(ProposeError::NotEnoughStarted),
            false => Ok(()),
        }
    }

    /// Whether a member was heard within an election timeout.
    pub(super) fn is_active(&self, id: MemberId) -> bool {
        id == self.config.member_id
            || self.heard.get(&id.0).is_some_and(|at| self.ticks - at <= self.config.election_ticks as u64)
    }

    /// The group has changed with the entry at `index`, which is applied here. Told in order, and before
    /// [`on_applied`](Self::on_applied) of that index or a later one.
    pub(crate) fn reconfigure(&mut self, index: u64, group: Group) {
        if index < self.group_index {
            // A state that was taken over when the log had gone on already.
            return;
        }
        self.group_index = index;
        self.removed = group.removed.contains(&self.config.member_id);
        let raft = &self.node.raft;
        if raft.state == StateRole::Leader && !group.conf_state.voters.contains(&raft.id) {
            self.step_down(&group.conf_state);
        }
        let before = self.node.raft.prs().conf().to_conf_state();
        for change in steps(&before, &group.conf_state) {
            let changed = self.node.apply_conf_change(&change);
            changed.expect("each step changes one voter of a group that is not joint");
        }
        let mut after = self.node.raft.prs().conf().to_conf_state();
        after.voters.sort_unstable();
        after.learners.sort_unstable();
        assert_eq!(after, group.conf_state, "raft and the machine agree on the group");
        let store = self.node.mut_store();
        store.applied = store.applied.max(index);
        store.conf_state = group.conf_state;
        let is_member = |id: &u64| group.members.iter().any(|member| member.id.0 == *id);
        self.heard.retain(|id, _| is_member(id));
        self.snapshots.retain(|id, _| is_member(id));
        self.members = group.members;
    }

    /// A leader that leaves the group hands over to the voter that is most likely to win at once.
    fn step_down(&mut self, after: &ConfState) {
        let progress = self.node.raft.prs();
        let matched = |id: &u64| progress.get(*id).map_or(0, |peer| peer.matched);
        let successor = after.voters.iter().copied().filter(|id| self.is_active(MemberId(*id))).max_by_key(matched);
        let raft = &mut self.node.raft;
        if let Some(successor) = successor {
            raft.send_timeout_now(successor);
        }
        raft.become_follower(raft.term, raft::INVALID_ID);
    }
}

/// Single changes that lead from one configuration to another: who comes first, so that voters are never missing.
fn steps(before: &ConfState, after: &ConfState) -> Vec<ConfChange> {
    let mut steps = Vec::new();
    for id in after.voters.iter().filter(|id| !before.voters.contains(id)) {
        steps.push(conf_change(ConfChangeType::AddNode, *id));
    }
    for id in after.learners.iter().filter(|id| !before.learners.contains(id)) {
        steps.push(conf_change(ConfChangeType::AddLearnerNode, *id));
    }
    for id in before.voters.iter().chain(&before.learners) {
        if !after.voters.contains(id) && !after.learners.contains(id) {
            steps.push(conf_change(ConfChangeType::RemoveNode, *id));
        }
    }
    steps
}
