//! The leader's clock over leases, counted in processed ticks: a paused process expires nothing.
//!
//! Invariant: `by_expiry` holds exactly the leases of `leases`, at their expiry.

use std::collections::{BTreeMap, BTreeSet};

use tailwater_eventlog::LeaseId;
use tokio::sync::oneshot;

use crate::machine::LeaseChange;

/// Expired leases proposed at once.
const EXPIRE_MAX: usize = 500;

#[derive(Debug, Default)]
struct Lease {
    ttl: i64,
    expiry: u64,
    /// Keepalives that wait for their barrier: they go before expiry.
    renewing: u32,
    /// Tick at which its expiry was proposed.
    expiring: Option<u64>,
    /// Told when it is gone.
    waiting: Vec<oneshot::Sender<()>>,
}

/// What a keepalive finds.
#[derive(Debug)]
pub(crate) enum Renewal {
    /// Renewed; granted TTL in seconds.
    Renewed(i64),
    /// It has expired and is being revoked: gone when this resolves.
    Expiring(oneshot::Receiver<()>),
    /// There is none.
    Unknown,
}

/// All leases with their time. Guarded by a lock that is held for one call.
#[derive(Debug)]
pub(crate) struct Lessor {
    leases: BTreeMap<LeaseId, Lease>,
    by_expiry: BTreeSet<(u64, LeaseId)>,
    now: u64,
    tick_ms: u64,
    /// Whether this member leads and its clock counts.
    primary: bool,
}

impl Lessor {
    /// Nothing granted yet; a tick lasts `tick_ms` milliseconds.
    pub(crate) fn new(tick_ms: u64) -> Self {
        Self { leases: BTreeMap::new(), by_expiry: BTreeSet::new(), now: 0, tick_ms: tick_ms.max(1), primary: false }
    }

    fn ticks(&self, seconds: i64) -> u64 {
        u64::try_from(seconds).unwrap_or(0).saturating_mul(1000).div_ceil(self.tick_ms)
    }

    /// What the machine applied.
    pub(crate) fn apply(&mut self, change: LeaseChange) {
        match change {
            LeaseChange::Granted(id, ttl) => self.schedule(id, ttl, self.now + self.ticks(ttl)),
            LeaseChange::Gone(id) => {
                if let Some(lease) = self.leases.remove(&id) {
                    self.by_expiry.remove(&(lease.expiry, id));
                    for waiting in lease.waiting {
                        // Whoever no longer waits needs no answer.
                        let _ = waiting.send(());
                    }
                }
            }
        }
    }

    fn schedule(&mut self, id: LeaseId, ttl: i64, expiry: u64) {
        let lease = self.leases.entry(id).or_default();
        self.by_expiry.remove(&(lease.expiry, id));
        lease.ttl = ttl;
        lease.expiry = expiry;
        self.by_expiry.insert((expiry, id));
    }

    /// This member leads now: each lease gets what its checkpoint left or its whole TTL, and an election timeout, since
    /// the old leader may have renewed it without telling.
    pub(crate) fn promote(&mut self, election_ticks: u64, remaining: impl Fn(LeaseId) -> i64) {
        self.primary = true;
        self.by_expiry.clear();
        for (id, lease) in &mut self.leases {
            let left = match remaining(*id) {
                0 => lease.ttl,
                left => left,
            };
            let ticks = u64::try_from(left).unwrap_or(0).saturating_mul(1000).div_ceil(self.tick_ms);
            lease.expiry = self.now.saturating_add(ticks).saturating_add(election_ticks);
            lease.expiring = None;
            self.by_expiry.insert((lease.expiry, *id));
        }
    }

    /// It leads no longer.
    pub(crate) fn demote(&mut self) {
        self.primary = false;
    }

    /// One processed tick.
    pub(crate) fn tick(&mut self) {
        self.now += 1;
    }

    /// Leases whose time is up and that are not being revoked, a bounded number; marks them. One whose revoke was not
    /// heard of for `retry_ticks` is named again.
    pub(crate) fn take_expired(&mut self, retry_ticks: u64) -> Vec<i64> {
        let mut expired = Vec::new();
        if !self.primary {
            return expired;
        }
        for (expiry, id) in &self.by_expiry {
            if *expiry > self.now || expired.len() == EXPIRE_MAX {
                break;
            }
            let lease = self.leases.get_mut(id).expect("each scheduled lease is known");
            let proposed = lease.expiring.is_some_and(|at| self.now - at < retry_ticks);
            if lease.renewing == 0 && !proposed {
                lease.expiring = Some(self.now);
                expired.push(id.0);
            }
        }
        expired
    }

    /// A keepalive arrived and goes to confirm the leadership; [`Lessor::renew`] or [`Lessor::give_up`] must follow.
    pub(crate) fn announce(&mut self, id: LeaseId) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.renewing = lease.renewing.saturating_add(1);
        }
    }

    /// The keepalive got no confirmation.
    pub(crate) fn give_up(&mut self, id: LeaseId) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.renewing = lease.renewing.saturating_sub(1);
        }
    }

    /// Renews, with the leadership confirmed.
    pub(crate) fn renew(&mut self, id: LeaseId) -> Renewal {
        let Some(lease) = self.leases.get_mut(&id) else { return Renewal::Unknown };
        if lease.expiring.is_some() {
            let (told, gone) = oneshot::channel();
            lease.waiting.retain(|waiting| !waiting.is_closed());
            lease.waiting.push(told);
            return Renewal::Expiring(gone);
        }
        let ttl = lease.ttl;
        self.schedule(id, ttl, self.now + self.ticks(ttl));
        Renewal::Renewed(ttl)
    }

    /// Granted TTL and whole seconds left; `None` when there is no such lease.
    pub(crate) fn time_to_live(&self, id: LeaseId) -> Option<(i64, i64)> {
        let lease = self.leases.get(&id)?;
        let left = lease.expiry.saturating_sub(self.now).saturating_mul(self.tick_ms) / 1000;
        Some((lease.ttl, i64::try_from(left).unwrap_or(i64::MAX)))
    }

    /// All leases, the first to expire first.
    pub(crate) fn ids(&self) -> Vec<LeaseId> {
        self.by_expiry.iter().map(|(_, id)| *id).collect()
    }
}
