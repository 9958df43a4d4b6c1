//! What must hold, whatever happens: the judge of a world.
//!
//! # Why the check of linearizability is sound
//!
//! The log orders all writes, and a revision names the place of each in that order. [`Truth`] is that order as members
//! showed it; they must show it alike. Then a history of operations is linearizable, with the writes in the order of
//! their revisions and each read directly behind the write of its header's revision, exactly when
//!
//! 1. each answer is what the order gives at its place: the record at a write's revision is its effect, computed from the
//!    state before it; a read's result is the state at its header's revision;
//! 2. the order keeps to real time: an operation that began after another had ended has no smaller revision, and a
//!    greater one if it changed something. `floor` holds the newest revision that anybody had been told;
//! 3. what failed with an error that says so has no place in it, and nothing has two. An operation without an answer may
//!    have a place or none: both are legal.
//!
//! A lost acknowledged write shows in 1 (its record is another, or is not there when all has settled); a stale read
//! in 2. Nothing legal is refused, since 1 to 3 follow from the existence of a linearization: an acknowledged operation
//! takes effect before its answer, so whoever asks later comes behind it in every order.

pub(crate) mod answers;
pub(crate) mod leases;
pub(crate) mod truth;

use std::collections::BTreeMap;
use std::sync::Arc;

use tailwater_eventlog::{Event, EventKind, Fact, Frame, Revision};

use crate::operation::{Kind, Operation, writer};
use crate::violation::{Checked, Guarantee, broken, check};
use leases::Leases;
use truth::{Truth, show};

/// What became of an operation that writes values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Asked, and perhaps never answered.
    Open,
    /// It failed with an error that says that it has no effect.
    Refused,
}

#[derive(Debug)]
struct Write {
    outcome: Outcome,
    /// Where its effect is.
    revision: Option<Revision>,
}

/// Everything that is known.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    pub(crate) truth: Truth,
    pub(crate) leases: Leases,
    writes: BTreeMap<u64, Write>,
    /// The newest revision that any client was told.
    told: Revision,
    /// The newest compaction that was answered.
    compacted: Revision,
}

impl Oracle {
    /// The newest revision that any client was told: whoever asks now must not be told less.
    pub(crate) fn floor(&self) -> Revision {
        self.told
    }

    /// A request that is about to be made.
    pub(crate) fn asks(&self, id: u64, kind: Kind) -> Operation {
        Operation { id, kind, floor: self.told, compacted: self.compacted }
    }

    /// A client was told of a revision.
    pub(crate) fn tell(&mut self, revision: Revision) {
        self.told = self.told.max(revision);
    }

    /// An operation that writes values was asked.
    pub(crate) fn asked(&mut self, id: u64) {
        self.writes.insert(id, Write { outcome: Outcome::Open, revision: None });
    }

    /// It failed, and says that it has no effect.
    pub(crate) fn refused(&mut self, id: u64, why: &str) -> Checked {
        let Some(write) = self.writes.get_mut(&id) else { return Ok(()) };
        write.outcome = Outcome::Refused;
        match write.revision {
            None => Ok(()),
            Some(revision) => {
                let what = format!("operation {id} was refused ({why}) and took effect at revision {revision}");
                broken(Guarantee::AtMostOnce, what)
            }
        }
    }

    /// A member's tail brought a frame. `reached` is the revision before it.
    pub(crate) fn frame(&mut self, member: usize, reached: Revision, frame: &Frame, ticks: &[u64]) -> Checked {
        let mut reached = reached;
        for events in frame.events.chunk_by(|a, b| a.revision() == b.revision()) {
            check(events[0].revision() == reached.next(), Guarantee::Identical, || {
                format!("the tail of member {member} goes from revision {reached} to {}", events[0].revision())
            })?;
            reached = reached.next();
            self.record(member, events, ticks)?;
        }
        check(frame.revision == reached, Guarantee::Identical, || {
            format!("a frame of member {member} names revision {} and ends at {reached}", frame.revision)
        })?;
        for fact in &frame.facts {
            if let Fact::Compacted(at) = fact {
                self.truth.compact(*at);
            }
        }
        Ok(())
    }

    /// A member shows what it holds as a revision.
    pub(crate) fn record(&mut self, member: usize, events: &[Arc<Event>], ticks: &[u64]) -> Checked {
        self.leases.before(&self.truth, events)?;
        if !self.truth.record(member, events)? {
            return Ok(());
        }
        self.leases.ended(events, ticks)?;
        for event in events.iter().filter(|event| event.kind() == EventKind::Put) {
            self.wrote(event)?;
        }
        Ok(())
    }

    fn wrote(&mut self, event: &Arc<Event>) -> Checked {
        let revision = event.revision();
        let known = writer(event.value()).and_then(|id| self.writes.get_mut(&id).map(|write| (id, write)));
        let Some((id, write)) = known else {
            return broken(Guarantee::Linearizable, format!("nobody wrote {}", show(std::slice::from_ref(event))));
        };
        let before = write.revision.replace(revision).unwrap_or(revision);
        check(before == revision, Guarantee::AtMostOnce, || {
            format!("operation {id} took effect at revision {before} and at {revision}")
        })?;
        check(write.outcome != Outcome::Refused, Guarantee::AtMostOnce, || {
            format!("operation {id} was refused and took effect at revision {revision}")
        })
    }
}
