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
    /// The older version that members are about to be replaced by, as "major.minor.0"; empty: none.
    Downgrade(String),
}

impl Fact {
    /// Bytes of memory that the fact holds, about.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let held = match self {
            Self::Compacted(_) | Self::Leader(..) => 0,
            Self::Auth(auth) => auth.users.iter().chain(&auth.roles).map(|message| message.len() + 64).sum(),
            Self::Alarms(alarms) => alarms.len() * size_of::<Alarm>(),
            Self::Members(members) => members.iter().map(Member::memory_bytes).sum(),
            Self::ClusterVersion(version) | Self::Downgrade(version) => version.len(),
        };
        size_of::<Self>() + held
    }
}

/// The newest fact of each kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct LatestFacts {
    /// One place per variant of [`Fact`], in the order of their declaration.
    places: [Option<Fact>; 7],
}

impl LatestFacts {
    /// Takes in newer facts, in order.
    pub(crate) fn apply(&mut self, facts: &[Fact]) {
        for fact in facts {
            let place = match fact {
                Fact::Compacted(_) => 0,
                Fact::Auth(_) => 1,
                Fact::Alarms(_) => 2,
                Fact::Members(_) => 3,
                Fact::Leader(..) => 4,
                Fact::ClusterVersion(_) => 5,
                Fact::Downgrade(_) => 6,
            };
            self.places[place] = Some(fact.clone());
        }
    }

    /// All that are known.
    pub(crate) fn to_vec(&self) -> Vec<Fact> {
        self.places.iter().flatten().cloned().collect()
    }
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
    /// What tokens are made and checked with, anywhere in the cluster; empty: none was chosen.
    pub token_secret: Bytes,
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

impl Member {
    fn memory_bytes(&self) -> usize {
        let urls: usize = self.peer_urls.iter().chain(&self.client_urls).map(|url| url.len() + 24).sum();
        size_of::<Self>() + self.name.len() + urls
    }
}
