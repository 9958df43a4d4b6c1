//! The group as the log knows it: bootstrap, members, cluster version.

use raft::eraftpb::ConfState;
use tailwater_api::{tail, write};
use tailwater_eventlog::{Fact, HistoryId, Member, MemberId, Revision};

use super::{Machine, encode};
use crate::Answer;

impl Machine {
    /// Founds the history. A second one changes nothing: two leaders may both have proposed it.
    pub(super) fn bootstrap(&mut self, request: write::Bootstrap) -> Answer {
        if self.bootstrapped() || request.history_id == 0 {
            return Answer::Done;
        }
        self.state.history = HistoryId(request.history_id);
        self.state.revision = Revision(1);
        self.cluster_id = request.cluster_id;
        self.store(encode::CLUSTER_ID.to_vec(), Some(encode::number(request.cluster_id)));
        let members: Vec<_> = request.members.into_iter().map(member).collect();
        self.conf_state = founding_conf_state(&members);
        self.store(encode::CONF_STATE.to_vec(), Some(encode::conf_state(&self.conf_state)));
        for member in members {
            self.put_member(member);
        }
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

    pub(super) fn set_cluster_version(&mut self, request: write::SetClusterVersion) -> Answer {
        if self.cluster_version != request.version {
            self.cluster_version = request.version;
            self.store(encode::CLUSTER_VERSION.to_vec(), Some(encode::text(&self.cluster_version)));
            self.output.facts.push(Fact::ClusterVersion(self.cluster_version.clone()));
        }
        Answer::Done
    }

    fn put_member(&mut self, member: Member) {
        self.store(encode::member_key(member.id), Some(encode::member(&member)));
        self.members.insert(member.id, member);
    }

    fn members_changed(&mut self) {
        self.output.facts.push(Fact::Members(self.members.values().cloned().collect()));
    }
}

/// The raft configuration that a group is founded with.
pub(crate) fn founding_conf_state(members: &[Member]) -> ConfState {
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
