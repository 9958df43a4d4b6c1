//! The numbers that order things. Each is a type of its own, so that none is taken for another.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// Counts the writes that changed something. A fresh store is at 1; the first write makes 2. 0 means "none".
    Revision(i64)
);
number!(
    /// Raft's applied index, equal on all members: the order of everything, also of what has no revision.
    Position(u64)
);
number!(
    /// Raft's term.
    Term(u64)
);
number!(
    /// A lease; 0 means "no lease". May be negative, since a client chooses it.
    LeaseId(i64)
);
number!(
    /// A member of the group, or a fanout where it answers for itself; 0 means "none".
    MemberId(u64)
);
number!(
    /// Random, made at bootstrap, restore and force-new-cluster: a cursor of another history is refused.
    HistoryId(u64)
);

impl Revision {
    /// The revision of the next write.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}
