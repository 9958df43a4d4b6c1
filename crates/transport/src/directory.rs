//! Who the members are, and where.

use parking_lot::RwLock;
use tailwater_eventlog::{Member, MemberId};

/// The members of the group as this node knows them now.
#[derive(Debug)]
pub struct Directory {
    cluster_id: u64,
    members: RwLock<Vec<Member>>,
}

impl Directory {
    /// Nobody is known yet.
    #[must_use]
    pub fn new(cluster_id: u64) -> Self {
        Self { cluster_id, members: RwLock::default() }
    }

    /// The group.
    #[must_use]
    pub fn cluster_id(&self) -> u64 {
        self.cluster_id
    }

    /// The members from now on.
    pub fn set_members(&self, members: &[Member]) {
        *self.members.write() = members.to_vec();
    }

    /// A copy.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        self.members.read().clone()
    }

    /// Where a member is reached; empty when it is unknown.
    #[must_use]
    pub fn peer_urls(&self, id: MemberId) -> Vec<String> {
        let members = self.members.read();
        members.iter().find(|member| member.id == id).map(|member| member.peer_urls.clone()).unwrap_or_default()
    }
}
