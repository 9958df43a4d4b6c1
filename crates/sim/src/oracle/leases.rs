//! Leases: none ends before its time, and one that ends takes all of its keys along.
//!
//! Time is ticks that a member has processed. A lease was granted, or renewed, not before its client asked for it; so
//! when it expires, at least one member must have processed as many ticks as its TTL has since then. Whichever member led
//! counted no more than that.

use std::collections::BTreeMap;
use std::sync::Arc;

use tailwater_eventlog::{Event, EventKind, LeaseId};

use super::truth::{Truth, show};
use crate::violation::{Checked, Guarantee, check};

#[derive(Debug)]
struct Lease {
    ttl_ticks: u64,
    /// The members' ticks when the newest acknowledged grant or renewal was asked for; `None`: none was acknowledged.
    since: Option<Vec<u64>>,
    /// A client asked for its end.
    revoked: bool,
}

/// All leases that clients asked for.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    leases: BTreeMap<LeaseId, Lease>,
    /// Those whose keys the record in hand deletes.
    ending: Vec<LeaseId>,
    expired: u64,
}

impl Leases {
    pub(crate) fn asked(&mut self, id: LeaseId, ttl_ticks: u64) {
        self.leases.insert(id, Lease { ttl_ticks, since: None, revoked: false });
    }

    /// A grant or renewal that was asked at these ticks is acknowledged.
    pub(crate) fn renewed(&mut self, id: LeaseId, asked_at: Vec<u64>) {
        let lease = self.leases.get_mut(&id).expect("only what was asked for is acknowledged");
        let newer = lease.since.as_ref().is_none_or(|since| since.iter().sum::<u64>() < asked_at.iter().sum());
        if newer {
            lease.since = Some(asked_at);
        }
    }

    pub(crate) fn revoking(&mut self, id: LeaseId) {
        self.leases.get_mut(&id).expect("only granted leases are revoked").revoked = true;
    }

    /// Leases that ended by themselves, with keys.
    pub(crate) fn expired(&self) -> u64 {
        self.expired
    }

    /// A record that deletes a key of a lease deletes them all. Keys with a lease are not deleted in any other way.
    pub(crate) fn before(&mut self, truth: &Truth, events: &[Arc<Event>]) -> Checked {
        self.ending.clear();
        if events[0].revision() <= truth.revision() {
            return Ok(());
        }
        let before = truth.revision();
        for event in events.iter().filter(|event| event.kind() == EventKind::Delete) {
            let lease = truth.live(event.key(), before).map_or(LeaseId(0), |live| live.lease());
            if lease == LeaseId(0) || self.ending.contains(&lease) {
                continue;
            }
            self.ending.push(lease);
            let left: Vec<_> = truth
                .leased(lease)
                .filter(|live| !events.iter().any(|event| event.key() == live.key()))
                .cloned()
                .collect();
            check(left.is_empty(), Guarantee::Lease, || {
                format!("lease {lease} ended at revision {} without {}", event.revision(), show(&left))
            })?;
        }
        Ok(())
    }

    /// The record is new: what ended with it had to.
    pub(crate) fn ended(&mut self, events: &[Arc<Event>], ticks: &[u64]) -> Checked {
        for id in std::mem::take(&mut self.ending) {
            let Some(lease) = self.leases.get(&id) else { continue };
            if lease.revoked {
                continue;
            }
            self.expired += 1;
            let Some(since) = &lease.since else { continue };
            // A member that joined since began at 0.
            let since = since.iter().copied().chain(std::iter::repeat(0));
            let passed = ticks.iter().zip(since).map(|(now, then)| now - then).max().unwrap_or(0);
            check(passed >= lease.ttl_ticks, Guarantee::Lease, || {
                let (revision, ttl) = (events[0].revision(), lease.ttl_ticks);
                format!("lease {id} of {ttl} ticks expired at revision {revision} after {passed}")
            })?;
        }
        Ok(())
    }
}
