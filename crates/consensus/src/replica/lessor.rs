//! The leader's clock over leases, counted in processed ticks: a paused process expires nothing.
//!
//! Invariants: `by_expiry` holds exactly the leases of `leases`, at their expiry; `by_checkpoint` those that have a
//! checkpoint due, and none unless this member leads; a lease that is announced is not proposed for expiry.

use std::collections::{BTreeMap, BTreeSet};

use tailwater_eventlog::LeaseId;
use tokio::sync::oneshot;

use crate::machine::LeaseChange;

/// Expired leases proposed at once.
const EXPIRE_MAX: usize = 500;
/// Checkpoints proposed at once; etcd's number.
const CHECKPOINT_MAX: usize = 1000;
/// Seconds between two checkpoints of a lease; one with less time left gets none. etcd's number.
const CHECKPOINT_SECONDS: i64 = 300;

#[derive(Debug, Default)]
struct Lease {
    ttl: i64,
    /// Seconds left as last checkpointed, 0: the whole TTL. What a new leader starts from.
    checkpointed: i64,
    expiry: u64,
    /// Tick of the next checkpoint.
    checkpoint: Option<u64>,
    /// Tick at which its expiry was proposed.
    expiring: Option<u64>,
    /// Told when it is gone.
    waiting: Vec<oneshot::Sender<()>>,
}

/// What a keepalive finds.
#[derive(Debug)]
pub(crate) enum Renewal {
    /// Renewed for its granted TTL.
    Renewed {
        /// The granted TTL in seconds.
        ttl: i64,
        /// A checkpoint says less: it must be taken back before the keepalive is answered, or a new leader would expire
        /// the lease too early.
        checkpointed: bool,
    },
    /// It has expired and is being revoked: gone when this resolves, undecided when the sender is dropped.
    Expiring(oneshot::Receiver<()>),
    /// There is none.
    Unknown,
    /// This member does not lead any more.
    NotLeader,
}

/// All leases with their time. Guarded by a lock that is held for one call.
#[derive(Debug)]
pub(crate) struct Lessor {
    leases: BTreeMap<LeaseId, Lease>,
    by_expiry: BTreeSet<(u64, LeaseId)>,
    by_checkpoint: BTreeSet<(u64, LeaseId)>,
    /// Keepalives that wait for their barrier: they go before expiry. Apart from the leases, so that the count stays
    /// right when a lease comes or goes between an announcement and its end.
    announced: BTreeMap<LeaseId, u32>,
    now: u64,
    tick_ms: u64,
    /// Whether this member leads and its clock counts.
    primary: bool,
}

impl Lessor {
    /// Nothing granted yet; a tick lasts `tick_ms` milliseconds.
    pub(crate) fn new(tick_ms: u64) -> Self {
        Self {
            leases: BTreeMap::new(),
            by_expiry: BTreeSet::new(),
            by_checkpoint: BTreeSet::new(),
            announced: BTreeMap::new(),
            now: 0,
            tick_ms: tick_ms.max(1),
            primary: false,
        }
    }

    /// What the machine applied.
    pub(crate) fn apply(&mut self, change: LeaseChange) {
        match change {
            LeaseChange::Granted(id, ttl) => {
                self.leases.insert(id, Lease { ttl, ..Default::default() });
                self.schedule(id, self.now.saturating_add(self.ticks(ttl)));
            }
            LeaseChange::Checkpointed(id, remaining) => {
                if let Some(lease) = self.leases.get_mut(&id) {
                    lease.checkpointed = remaining;
                }
            }
            LeaseChange::Gone(id) => {
                let Some(lease) = self.leases.remove(&id) else { return };
                self.by_expiry.remove(&(lease.expiry, id));
                unschedule(&mut self.by_checkpoint, lease.checkpoint, id);
                for waiting in lease.waiting {
                    // Whoever no longer waits needs no answer.
                    let _ = waiting.send(());
                }
            }
        }
    }

    /// The leases are these from now on, with their TTL and what was checkpointed, after a state was taken over. Keepalives
    /// that are announced stay so.
    pub(crate) fn replace(&mut self, leases: impl IntoIterator<Item = (LeaseId, i64, i64)>) {
        self.demote();
        self.leases.clear();
        self.by_expiry.clear();
        self.by_checkpoint.clear();
        for (id, ttl, checkpointed) in leases {
            self.apply(LeaseChange::Granted(id, ttl));
            self.apply(LeaseChange::Checkpointed(id, checkpointed));
        }
    }

    /// This member leads now: each lease gets what its checkpoint left or its whole TTL, and an election timeout, since
    /// the old leader may have renewed it without telling.
    pub(crate) fn promote(&mut self, election_ticks: u64) {
        self.demote();
        self.primary = true;
        let ids: Vec<LeaseId> = self.leases.keys().copied().collect();
        for id in ids {
            let lease = &self.leases[&id];
            let left = if lease.checkpointed > 0 { lease.checkpointed.min(lease.ttl) } else { lease.ttl };
            self.schedule(id, self.now.saturating_add(self.ticks(left)).saturating_add(election_ticks));
        }
    }

    /// It leads no longer: who waits for a revoke must ask the next leader.
    pub(crate) fn demote(&mut self) {
        self.primary = false;
        self.by_checkpoint.clear();
        for lease in self.leases.values_mut() {
            lease.checkpoint = None;
            lease.expiring = None;
            lease.waiting.clear();
        }
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
            // Part of the tick in which it was granted or renewed had passed, so the tick that is named must be over too.
            if *expiry >= self.now || expired.len() == EXPIRE_MAX {
                break;
            }
            let lease = self.leases.get_mut(id).expect("each scheduled lease is known");
            let proposed = lease.expiring.is_some_and(|at| self.now - at < retry_ticks);
            if !proposed && !self.announced.contains_key(id) {
                lease.expiring = Some(self.now);
                expired.push(id.0);
            }
        }
        expired
    }

    /// Leases whose remaining seconds are to be proposed now, a bounded number; the next ones of each are scheduled.
    pub(crate) fn take_checkpoints(&mut self) -> Vec<(LeaseId, i64)> {
        let mut due = Vec::new();
        while due.len() < CHECKPOINT_MAX {
            let Some((_, id)) = self.by_checkpoint.first().copied().filter(|(at, _)| *at <= self.now) else { break };
            let left = self.left(self.leases[&id].expiry, u64::div_ceil);
            let lease = self.leases.get_mut(&id).expect("each scheduled lease is known");
            // At once, not when it is applied: a renewal that comes between must take it back.
            lease.checkpointed = left;
            due.push((id, left));
            self.schedule_checkpoint(id);
        }
        due
    }

    /// A keepalive arrived and goes to confirm the leadership; [`Lessor::give_up`] must follow.
    pub(crate) fn announce(&mut self, id: LeaseId) {
        *self.announced.entry(id).or_default() += 1;
    }

    /// An announced keepalive has renewed the lease, or does not any more.
    pub(crate) fn give_up(&mut self, id: LeaseId) {
        let count = self.announced.get_mut(&id).expect("given up as often as announced");
        *count -= 1;
        if *count == 0 {
            self.announced.remove(&id);
        }
    }

    /// Renews, with the leadership confirmed.
    pub(crate) fn renew(&mut self, id: LeaseId) -> Renewal {
        if !self.primary {
            return Renewal::NotLeader;
        }
        let Some(lease) = self.leases.get_mut(&id) else { return Renewal::Unknown };
        if lease.expiring.is_some() {
            let (told, gone) = oneshot::channel();
            lease.waiting.retain(|waiting| !waiting.is_closed());
            lease.waiting.push(told);
            return Renewal::Expiring(gone);
        }
        let (ttl, checkpointed, scheduled) = (lease.ttl, lease.checkpointed > 0, lease.expiry);
        let expiry = self.now.saturating_add(self.ticks(ttl));
        // Renewed before within this tick.
        if expiry != scheduled {
            self.schedule(id, expiry);
        }
        Renewal::Renewed { ttl, checkpointed }
    }

    /// Granted TTL and whole seconds left; `None` when there is no such lease. Some of the running tick is over, so a
    /// lease of 100 s has 99 left at once, as in etcd.
    pub(crate) fn time_to_live(&self, id: LeaseId) -> Option<(i64, i64)> {
        let lease = self.leases.get(&id)?;
        Some((lease.ttl, self.left(lease.expiry, |ms, second| ms.saturating_sub(1) / second)))
    }

    /// All leases, the first to expire first.
    pub(crate) fn ids(&self) -> Vec<LeaseId> {
        self.by_expiry.iter().map(|(_, id)| *id).collect()
    }

    fn ticks(&self, seconds: i64) -> u64 {
        u64::try_from(seconds).unwrap_or(0).saturating_mul(1000).div_ceil(self.tick_ms)
    }

    /// Seconds until a tick.
    fn left(&self, expiry: u64, seconds_of: impl Fn(u64, u64) -> u64) -> i64 {
        let ms = expiry.saturating_sub(self.now).saturating_mul(self.tick_ms);
        i64::try_from(seconds_of(ms, 1000)).unwrap_or(i64::MAX)
    }

    fn schedule(&mut self, id: LeaseId, expiry: u64) {
        let lease = self.leases.get_mut(&id).expect("only known leases are scheduled");
        self.by_expiry.remove(&(lease.expiry, id));
        lease.expiry = expiry;
        self.by_expiry.insert((expiry, id));
        self.schedule_checkpoint(id);
    }

    fn schedule_checkpoint(&mut self, id: LeaseId) {
        let next = self.now.saturating_add(self.ticks(CHECKPOINT_SECONDS));
        let primary = self.primary;
        let lease = self.leases.get_mut(&id).expect("only known leases are scheduled");
        unschedule(&mut self.by_checkpoint, lease.checkpoint, id);
        lease.checkpoint = Some(next).filter(|next| primary && lease.expiry > *next);
        self.by_checkpoint.extend(lease.checkpoint.map(|at| (at, id)));
    }
}

fn unschedule(schedule: &mut BTreeSet<(u64, LeaseId)>, at: Option<u64>, id: LeaseId) {
    if let Some(at) = at {
        schedule.remove(&(at, id));
    }
}

#[cfg(test)]
mod tests;
