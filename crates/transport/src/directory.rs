//! Who the members are, and where.

use std::collections::BTreeSet;

use parking_lot::RwLock;
use tailwater_eventlog::{Member, MemberId};

/// The members of the group as this node knows them now.
#[derive(Debug)]
pub struct Directory {
    cluster_id: u64,
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    members: Vec<Member>,
    /// Were members once. An id never comes back, so one per removal is all that this grows.
    removed: BTreeSet<MemberId>,
}

impl Directory {
    /// Nobody is known yet.
    #[must_use]
    pub fn new(cluster_id: u64) -> Self {
        Self { cluster_id, state: RwLock::default() }
    }

    /// The group.
    #[must_use]
    pub fn cluster_id(&self) -> u64 {
        self.cluster_id
    }

    /// The members from now on. Who was one and is not among them counts as removed.
    pub fn set_members(&self, members: &[Member]) {
        let mut state = self.state.write();
        let State { members: known, removed } = &mut *state;
        let gone = known.iter().map(|member| member.id).filter(|id| members.iter().all(|member| member.id != *id));
        removed.extend(gone);
        removed.retain(|id| members.iter().all(|member| member.id != *id));
        *known = members.to_vec();
    }

    /// Members that were removed before this node started: they are refused too.
    pub fn add_removed(&self, ids: impl IntoIterator<Item = MemberId>) {
        self.state.write().removed.extend(ids);
    }

    /// Whether it was a member and is none any more.
    #[must_use]
    pub fn is_removed(&self, id: MemberId) -> bool {
        self.state.read().removed.contains(&id)
    }

    /// A copy.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        self.state.read().members.clone()
    }

    /// Where a member is reached; empty when it is unknown.
    #[must_use]
    pub fn peer_urls(&self, id: MemberId) -> Vec<String> {
        let state = self.state.read();
        state.members.iter().find(|member| member.id == id).map(|member| member.peer_urls.clone()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64) -> Member {
        let peer_urls = vec![format!("http://10.0.0.{id}:2380")];
        Member { id: MemberId(id), name: String::new(), peer_urls, client_urls: Vec::new(), is_learner: false }
    }

    #[test]
    fn who_disappears_was_removed() {
        let directory = Directory::new(7);
        directory.set_members(&[member(1), member(2)]);
        assert!(!directory.is_removed(MemberId(3)), "a stranger may be a member that this node has yet to hear of");
        directory.set_members(&[member(1), member(3)]);
        assert!(directory.is_removed(MemberId(2)));
        assert!(!directory.is_removed(MemberId(3)));
        assert_eq!(directory.peer_urls(MemberId(3)), ["http://10.0.0.3:2380"]);
        assert!(directory.peer_urls(MemberId(2)).is_empty());
    }
}
