//! The group as the log knows it: bootstrap, members and the raft configuration that follows from them, cluster version.
//!
//! Invariants: once founded, `conf_state` names exactly the members, learners apart from voters, each list sorted; no id
//! is both a member and removed.

use raft::eraftpb::ConfState;
use tailwater_api::{tail, write};
use tailwater_eventlog::{Fact, HistoryId, Member, MemberId, Revision, StorageError};

use super::{Machine, MachineError, encode};
use crate::{Answer, ApplyError};

/// Learners that a group may have; etcd's default.
const LEARNERS_MAX: usize = 1;

/// What raft and the transport must learn of the group at a position.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Group {
    /// The raft configuration.
    pub(crate) conf_state: ConfState,
    /// By id; empty before bootstrap.
    pub(crate) members: Vec<Member>,
    /// Ids that never return, sorted.
    pub(crate) removed: Vec<MemberId>,
}

impl Machine {
    /// Founds the history. A second one changes nothing: two leaders may both have proposed it.
    pub(super) fn bootstrap(&mut self, request: write::Bootstrap) -> Result<Answer, MachineError> {
        if self.bootstrapped() || request.history_id == 0 {
            return Ok(Answer::Done);
        }
        if request.restored != self.restored {
            let reason = "this member began with another backup than its group: restore all of them from the same file";
            return Err(StorageError::Inconsistent(reason.into()).into());
        }
        self.state.history = HistoryId(request.history_id);
        // A restored store stands at a later one.
        self.state.revision = self.state.revision.max(Revision(1));
        self.cluster_id = request.cluster_id;
        self.store(encode::CLUSTER_ID.to_vec(), Some(encode::number(request.cluster_id)));
        for member in request.members.into_iter().map(member) {
            self.put_member(member);
        }
        self.members_changed();
        Ok(Answer::Done)
    }

    /// The group goes on as one member alone, with a history of its own.
    pub(super) fn force_new_cluster(&mut self, request: &write::ForceNewCluster) -> Answer {
        let survivor = MemberId(request.member_id);
        if !self.members.contains_key(&survivor) || request.history_id == 0 {
            return Answer::Done;
        }
        self.state.history = HistoryId(request.history_id);
        let others: Vec<_> = self.members.keys().copied().filter(|id| *id != survivor).collect();
        for id in others {
            self.drop_member(id);
        }
        let survivor = Member { is_learner: false, ..self.members[&survivor].clone() };
        self.put_member(survivor);
        self.members_changed();
        Answer::Done
    }

    /// Name and client URLs of a member; one that was removed stays so.
    pub(super) fn publish_member(&mut self, request: write::PublishMember) -> Answer {
        let Some(published) = request.member.map(member) else { return Answer::Done };
        let Some(known) = self.members.get(&published.id) else { return Answer::Done };
        let mut changed = known.clone();
        changed.name = published.name;
        changed.client_urls = published.client_urls;
        if changed != *known {
            self.put_member(changed);
            self.members_changed();
        }
        Answer::Done
    }

    /// The order of the checks, here and below, is etcd's.
    pub(super) fn member_add(&mut self, request: write::MemberAdd) -> Result<Answer, ApplyError> {
        let member = request.member.map(member).ok_or(ApplyError::MemberNotFound)?;
        if self.removed.contains(&member.id) || member.id == MemberId(0) {
            return Err(ApplyError::MemberNotFound);
        }
        if self.members.contains_key(&member.id) {
            return Err(ApplyError::MemberExists);
        }
        self.check_peer_urls(member.id, &member.peer_urls)?;
        let learners = self.members.values().filter(|known| known.is_learner).count();
        if member.is_learner && learners >= LEARNERS_MAX {
            return Err(ApplyError::TooManyLearners);
        }
        self.put_member(member);
        Ok(self.changed_members())
    }

    pub(super) fn member_remove(&mut self, request: &write::MemberRemove) -> Result<Answer, ApplyError> {
        let id = MemberId(request.id);
        let member = self.members.get(&id).ok_or(ApplyError::MemberNotFound)?;
        // A group of none could decide nothing any more, and no check of the leader may be what keeps it from that.
        let voters = self.members.values().filter(|known| !known.is_learner).count();
        if !member.is_learner && voters == 1 {
            return Err(ApplyError::MemberNotFound);
        }
        self.drop_member(id);
        Ok(self.changed_members())
    }

    pub(super) fn member_promote(&mut self, request: &write::MemberPromote) -> Result<Answer, ApplyError> {
        let known = self.members.get(&MemberId(request.id)).ok_or(ApplyError::MemberNotFound)?;
        if !known.is_learner {
            return Err(ApplyError::NotLearner);
        }
        let promoted = Member { is_learner: false, ..known.clone() };
        self.put_member(promoted);
        Ok(self.changed_members())
    }

    pub(super) fn member_update(&mut self, request: write::MemberUpdate) -> Result<Answer, ApplyError> {
        let known = self.members.get(&MemberId(request.id)).ok_or(ApplyError::MemberNotFound)?;
        self.check_peer_urls(known.id, &request.peer_urls)?;
        let updated = Member { peer_urls: request.peer_urls, ..known.clone() };
        self.put_member(updated);
        Ok(self.changed_members())
    }

    fn check_peer_urls(&self, owner: MemberId, urls: &[String]) -> Result<(), ApplyError> {
        let taken = |url| self.members.values().any(|known| known.id != owner && known.peer_urls.contains(url));
        if urls.iter().any(taken) { Err(ApplyError::PeerUrlExists) } else { Ok(()) }
    }

    pub(super) fn set_cluster_version(&mut self, request: write::SetClusterVersion) -> Answer {
        if self.cluster_version != request.version {
            self.cluster_version = request.version;
            self.store(encode::CLUSTER_VERSION.to_vec(), Some(encode::text(&self.cluster_version)));
            self.output.facts.push(Fact::ClusterVersion(self.cluster_version.clone()));
            if self.cluster_version == self.downgrade {
                // It is done.
                self.set_downgrade(String::new());
            }
        }
        Answer::Done
    }

    /// Empty: none is under way.
    pub(super) fn set_downgrade(&mut self, target: String) -> Answer {
        if self.downgrade != target {
            let stored = (!target.is_empty()).then(|| encode::text(&target));
            self.store(encode::DOWNGRADE.to_vec(), stored);
            self.output.facts.push(Fact::Downgrade(target.clone()));
            self.downgrade = target;
        }
        Answer::Done
    }

    /// The group as it is now.
    pub(crate) fn group(&self) -> Group {
        Group {
            conf_state: self.conf_state.clone(),
            members: self.members.values().cloned().collect(),
            removed: self.removed.iter().copied().collect(),
        }
    }

    fn put_member(&mut self, member: Member) {
        self.store(encode::member_key(member.id), Some(encode::member(&member)));
        self.members.insert(member.id, member);
    }

    /// Its id never returns.
    fn drop_member(&mut self, id: MemberId) {
        self.members.remove(&id);
        self.store(encode::member_key(id), None);
        self.removed.insert(id);
        self.store(encode::removed_key(id), Some(vec![encode::FORMAT]));
    }

    fn changed_members(&mut self) -> Answer {
        self.members_changed();
        Answer::Members(self.members.values().cloned().collect())
    }

    fn members_changed(&mut self) {
        let members: Vec<_> = self.members.values().cloned().collect();
        self.conf_state = conf_state_of(&members);
        self.store(encode::CONF_STATE.to_vec(), Some(encode::conf_state(&self.conf_state)));
        self.output.facts.push(Fact::Members(members));
        self.output.group_changed = true;
    }
}

/// The raft configuration of these members.
pub(crate) fn conf_state_of(members: &[Member]) -> ConfState {
    let ids = |learner: bool| {
        let mut ids: Vec<_> = members.iter().filter(|m| m.is_learner == learner).map(|m| m.id.0).collect();
        ids.sort_unstable();
        ids
    };
    ConfState { voters: ids(false), learners: ids(true), ..Default::default() }
}

pub(super) fn member(member: tail::Member) -> Member {
    Member {
        id: MemberId(member.id),
        name: member.name,
        peer_urls: member.peer_urls,
        client_urls: member.client_urls,
        is_learner: member.is_learner,
    }
}

/// A member as the log's commands carry it.
pub(crate) fn member_message(member: &Member) -> tail::Member {
    tail::Member {
        id: member.id.0,
        name: member.name.clone(),
        peer_urls: member.peer_urls.clone(),
        client_urls: member.client_urls.clone(),
        is_learner: member.is_learner,
    }
}
