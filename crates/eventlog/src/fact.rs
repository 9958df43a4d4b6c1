//! Ordered changes that have no revision.

use bytes::Bytes;

use crate::{MemberId, Revision, Term};

/// What a tail reader must see in order beside the events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// History below this revision is gone for readers.
    Compacted(Revision),
    /// Users, roles and permissions changed.
    Auth(AuthFacts),
    /// All alarms that are raised now.
    Alarms(Vec<Alarm>),
    /// All members of the group now, sorted by id.
    Members(Vec<Member>),
    /// The leader as this source knows it, `None` when none is known.
    Leader(Option<MemberId>, Term),
    /// The cluster version, "major.minor.0".
    ClusterVersion(String),
}

/// Auth state as the gateway's checks need it; users and roles are encoded authpb messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuthFacts {
    /// Whether auth is on.
    pub enabled: bool,
    /// Grows with each change; 1 in a fresh store.
    pub revision: u64,
    /// Encoded `authpb.User`s, sorted by name.
    pub users: Vec<Bytes>,
    /// Encoded `authpb.Role`s, sorted by name.
    pub roles: Vec<Bytes>,
}

/// A raised alarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alarm {
    /// The member that it concerns.
    pub member: MemberId,
    /// What is wrong.
    pub kind: AlarmKind,
}

/// The kinds of alarm etcd knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AlarmKind {
    /// The space quota is used up.
    NoSpace,
    /// Members disagree about the data.
    Corrupt,
}

/// A member of the group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// As etcd computes it.
    pub id: MemberId,
    /// Empty until it has published itself.
    pub name: String,
    /// Where the other members reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it; empty until it has published itself.
    pub client_urls: Vec<String>,
    /// Whether it has no vote yet.
    pub is_learner: bool,
}
