//! A broken guarantee.

use std::fmt;

/// The guarantees that are checked. The names of those of a watch are etcd's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Guarantee {
    /// Each operation takes effect at one moment between its request and its answer.
    Linearizable,
    /// Events of a watcher come in revision order.
    Ordered,
    /// An event comes once.
    Unique,
    /// The events of a revision come in one response.
    Atomic,
    /// No event is left out.
    Reliable,
    /// A watcher that resumes at its cursor goes on without a gap.
    Resumable,
    /// Progress R comes after everything up to R.
    Bookmarkable,
    /// The previous version is the newest one below the event's revision.
    PrevKv,
    /// What members hold at and above the compacted revision is equal to the byte.
    Identical,
    /// What was acknowledged stays.
    Durable,
    /// A command is applied at most once, and not at all after an error that says so.
    AtMostOnce,
    /// A lease ends with all its keys, and not before its time.
    Lease,
    /// Once the faults end, everything goes on.
    Live,
    /// A member does not stop by itself, and starts from what its disk holds.
    Sound,
}

/// A guarantee that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub guarantee: Guarantee,
    /// What was seen.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.guarantee, self.what)
    }
}

/// What a check returns.
pub(crate) type Checked<T = ()> = Result<T, Violation>;

/// The guarantee holds if the condition does.
pub(crate) fn check(holds: bool, guarantee: Guarantee, what: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(Violation { guarantee, what: what() }) }
}

/// It does not hold.
pub(crate) fn broken<T>(guarantee: Guarantee, what: impl Into<String>) -> Checked<T> {
    Err(Violation { guarantee, what: what.into() })
}
