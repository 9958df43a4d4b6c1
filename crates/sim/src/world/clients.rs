//! Clients: one request at a time each, all kinds of them, on few keys.

use std::collections::BTreeMap;

use bytes::Bytes;
use tailwater_consensus::{ApplyError, ProposeError};
use tailwater_eventlog::{KeyRange, LeaseId, Position, Revision};
use tailwater_fanout::ReadError;

use super::admin::ADMIN;
use super::nodes::{NODE_READS, query};
use super::{Event, World};
use crate::member::At;
use crate::operation::{Kind, Operation, Reply};
use crate::plan::Bug;
use crate::violation::{Checked, Guarantee, broken, check};

/// Microseconds after which a client gives up.
const PATIENCE: u64 = 4_000_000;
/// Ticks of a second.
const TICKS_PER_SECOND: u64 = 10;

/// A client.
pub(super) struct Client {
    index: usize,
    state: State,
    /// Its gateway's member.
    member: usize,
    /// The lease that it keeps alive.
    lease: Option<LeaseId>,
    /// What it has read: each key's mod revision.
    seen: BTreeMap<Bytes, Revision>,
    /// Keys made of its lease.
    leased: u64,
}

enum State {
    Thinking,
    /// It waits for the leader.
    Asking {
        operation: Operation,
        gateway: At,
        ticks: Vec<u64>,
    },
    /// It waits until its node is at the position.
    Reading {
        operation: Operation,
        gateway: At,
        position: Position,
    },
}

impl Client {
    pub(super) fn new(index: usize) -> Self {
        Self { index, state: State::Thinking, member: index, lease: None, seen: BTreeMap::new(), leased: 0 }
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, State::Thinking)
    }

    fn operation(&self) -> Option<(&Operation, At)> {
        match &self.state {
            State::Thinking => None,
            State::Asking { operation, gateway, .. } | State::Reading { operation, gateway, .. } => {
                Some((operation, *gateway))
            }
        }
    }
}

impl World {
    fn key(&mut self) -> Bytes {
        let key = self.random.between(0, self.plan.keys - 1);
        Bytes::from(format!("k/{key:02}"))
    }

    /// A range of the clients' keys: one, some, or all, those of leases included.
    pub(super) fn some_range(&mut self) -> KeyRange {
        match self.random.index(4) {
            0 => KeyRange::all(),
            1 => {
                let (a, b) = (self.key(), self.key());
                if a < b { KeyRange::Span(a, b) } else { KeyRange::Key(a) }
            }
            2 => KeyRange::Span(Bytes::from_static(b"k/"), Bytes::from_static(b"k0")),
            _ => KeyRange::Key(self.key()),
        }
    }

    /// A client has thought enough.
    pub(super) fn client(&mut self, index: usize) -> Checked {
        if !self.clients[index].is_idle() || self.settle_by.is_some() {
            return Ok(());
        }
        if self.operations >= self.config.operations {
            self.end_faults();
            return Ok(());
        }
        let count = self.members.len();
        let random = &mut self.random;
        let client = &mut self.clients[index];
        let alive = self.members.get(client.member).is_some_and(|member| member.running.is_some());
        if !alive || random.chance(30) {
            client.member = random.index(count);
        }
        let member = &self.members[client.member];
        if member.running.is_none() {
            self.think(index);
            return Ok(());
        }
        let gateway = At { member: client.member, run: member.run };
        let kind = self.choose(index);
        self.operations += 1;
        let operation = self.oracle.asks(self.operations, kind);
        self.trace.say(self.now, || format!("client {index} at member {}: {operation:?}", gateway.member));
        self.begin(index, operation, gateway)
    }

    fn begin(&mut self, index: usize, operation: Operation, gateway: At) -> Checked {
        let id = operation.id;
        let ticks = self.all_ticks();
        match &operation.kind {
            Kind::Grant { lease, ttl } => {
                let seconds = u64::try_from(*ttl).expect("a TTL is positive");
                self.oracle.leases.asked(*lease, seconds * TICKS_PER_SECOND);
            }
            Kind::Revoke { lease } => self.oracle.leases.revoking(*lease),
            _ => {}
        }
        if operation.writes() {
            self.oracle.asked(id);
        }
        self.schedule(PATIENCE, Event::GiveUp { client: index, operation: id });
        let stale = self.config.bug == Some(Bug::StaleRead) && self.leads(gateway);
        match operation.ask() {
            Some(_) if stale && matches!(operation.kind, Kind::Read { .. }) => {
                self.clients[index].state = State::Reading { operation, gateway, position: Position(0) };
                self.reads(gateway)
            }
            Some(ask) => {
                self.clients[index].state = State::Asking { operation, gateway, ticks };
                self.send_request(gateway, id, ask)
            }
            None => {
                self.clients[index].state = State::Reading { operation, gateway, position: Position(0) };
                self.reads(gateway)
            }
        }
    }

    fn leads(&self, at: At) -> bool {
        let member = &self.members[at.member];
        member.running.as_ref().is_some_and(|running| running.consensus.status().leader == member.id)
    }

    fn choose(&mut self, index: usize) -> Kind {
        let roll = self.random.index(1000);
        if let Some(lease) = self.clients[index].lease
            && roll < 250
        {
            return match roll {
                0..100 => Kind::KeepAlive { lease },
                100..115 => {
                    self.clients[index].lease = None;
                    Kind::Revoke { lease }
                }
                // It lets the lease run out.
                115..125 => {
                    self.clients[index].lease = None;
                    Kind::KeepAlive { lease }
                }
                _ => {
                    let n = self.random.between(0, 5);
                    self.clients[index].leased += 1;
                    Kind::Put { key: Bytes::from(format!("l/{lease}/{n}")), lease, prev_kv: roll.is_multiple_of(2) }
                }
            };
        }
        if self.clients[index].lease.is_none() && roll < 60 {
            let lease = LeaseId(i64::try_from(self.operations + 1).expect("few operations"));
            return Kind::Grant { lease, ttl: i64::try_from(self.random.between(2, 5)).expect("small") };
        }
        if self.random.chance(self.plan.compactions) {
            let told = self.oracle.floor().0;
            let back = i64::try_from(self.random.between(0, 200)).expect("small");
            return Kind::Compact { at: Revision((told - back).max(1)), physical: roll.is_multiple_of(4) };
        }
        match roll {
            0..450 => Kind::Put { key: self.key(), lease: LeaseId(0), prev_kv: roll.is_multiple_of(3) },
            450..560 => {
                let key = self.key();
                let seen = self.clients[index].seen.get(&key).copied().unwrap_or(Revision(0));
                Kind::Swap { key, seen }
            }
            560..620 => {
                let first = self.random.between(0, self.plan.keys - 1);
                let key = |n: u64| Bytes::from(format!("k/{:02}", (first + n) % self.plan.keys));
                Kind::Together { puts: [key(0), key(1)], delete: key(2) }
            }
            620..700 => {
                let range = match self.random.index(3) {
                    0 => {
                        let (a, b) = (self.key(), self.key());
                        if a < b { KeyRange::Span(a, b) } else { KeyRange::Key(a) }
                    }
                    _ => KeyRange::Key(self.key()),
                };
                Kind::Delete { range, prev_kv: roll.is_multiple_of(2) }
            }
            _ => {
                let at = roll.is_multiple_of(10).then(|| {
                    let back = i64::try_from(self.random.between(0, 300)).expect("small");
                    Revision((self.oracle.floor().0 - back).max(1))
                });
                let limit = if roll.is_multiple_of(5) { self.random.index(5) } else { 0 };
                Kind::Read { range: self.some_range(), at, serializable: roll.is_multiple_of(3), limit }
            }
        }
    }

    fn think(&mut self, index: usize) {
        self.clients[index].state = State::Thinking;
        let delay = self.between(self.plan.think.0, self.plan.think.1);
        self.schedule(delay, Event::Client(index));
    }

    /// The client has its answer, or none, and goes on.
    fn finish(&mut self, index: usize, answered: bool) {
        self.answered += u64::from(answered);
        self.think(index);
    }

    pub(super) fn give_up(&mut self, index: usize, operation: u64) -> Checked {
        if self.clients[index].operation().is_none_or(|(under_way, _)| under_way.id != operation) {
            return Ok(());
        }
        self.trace.step(self.now, "give up", &[index as u64, operation]);
        self.clients[index].member = self.random.index(self.members.len());
        self.finish(index, false);
        Ok(())
    }

    /// The connection to a node is gone.
    pub(super) fn disconnect_clients(&mut self, member: usize) {
        for index in 0..self.clients.len() {
            if self.clients[index].operation().is_some_and(|(_, gateway)| gateway.member == member) {
                self.finish(index, false);
            }
        }
    }

    /// The leader's answer is at the gateway.
    pub(super) fn response(&mut self, gateway: At, operation: u64, reply: Reply) -> Checked {
        if !self.is_running(gateway) {
            return Ok(());
        }
        if operation >= NODE_READS {
            return self.node_barrier(operation, &reply);
        }
        if operation >= ADMIN {
            return self.administered(operation, &reply);
        }
        let asking = |client: &&Client| client.operation().is_some_and(|(under_way, _)| under_way.id == operation);
        let Some(index) = self.clients.iter().find(asking).map(|client| client.index) else {
            return self.late(operation, &reply);
        };
        if !matches!(self.clients[index].state, State::Asking { .. }) {
            return Ok(());
        }
        let State::Asking { operation, gateway, ticks } =
            std::mem::replace(&mut self.clients[index].state, State::Thinking)
        else {
            return Ok(());
        };
        self.trace.step(self.now, "response", &[index as u64, operation.id]);
        self.trace.say(self.now, || format!("client {index}: operation {}: {reply:?}", operation.id));
        match reply {
            Reply::Proposed(Ok(applied)) => {
                self.oracle.answered(&operation, &applied.answer)?;
                self.learn(index, &operation, ticks);
                self.finish(index, true);
            }
            Reply::Proposed(Err(error)) => {
                self.failed(&operation, &error)?;
                self.finish(index, false);
            }
            Reply::Barrier(Ok(position)) => {
                self.clients[index].state = State::Reading { operation, gateway, position };
                return self.reads(gateway);
            }
            Reply::KeepAlive(Ok(ttl)) => {
                self.kept_alive(index, &operation, ttl, ticks)?;
                self.finish(index, true);
            }
            Reply::Barrier(Err(_)) | Reply::KeepAlive(Err(_)) | Reply::MoveLeader => self.finish(index, false),
        }
        Ok(())
    }

    /// Nobody waits any more, but what the answer says must be true.
    fn late(&mut self, operation: u64, reply: &Reply) -> Checked {
        match reply {
            Reply::Proposed(Err(error)) if has_no_effect(error) => self.oracle.refused(operation, &error.to_string()),
            _ => Ok(()),
        }
    }

    fn learn(&mut self, index: usize, operation: &Operation, ticks: Vec<u64>) {
        let client = &mut self.clients[index];
        match &operation.kind {
            Kind::Grant { lease, .. } => {
                client.lease = Some(*lease);
                self.oracle.leases.renewed(*lease, ticks);
            }
            Kind::Put { key, .. } | Kind::Swap { key, .. } => {
                let newest = self.oracle.truth.live(key, self.oracle.truth.revision());
                client.seen.insert(key.clone(), newest.map_or(Revision(0), |event| event.revision()));
            }
            _ => {}
        }
    }

    fn failed(&mut self, operation: &Operation, error: &ProposeError) -> Checked {
        if has_no_effect(error) {
            self.oracle.refused(operation.id, &error.to_string())?;
        }
        let ProposeError::Refused(refused) = error else { return Ok(()) };
        let fits = match (&operation.kind, refused) {
            (Kind::Put { lease, .. } | Kind::Revoke { lease }, ApplyError::LeaseNotFound) => {
                let left = self.oracle.truth.leased(*lease).next().is_some();
                check(!left, Guarantee::Lease, || format!("lease {lease} is said to be gone, and has keys"))?;
                *lease != LeaseId(0)
            }
            // Another compaction may have gone further, and this one may be above what its own member had.
            (Kind::Compact { .. }, ApplyError::Compacted) => true,
            (Kind::Compact { at, .. }, ApplyError::FutureRevision) => *at > operation.floor,
            _ => false,
        };
        check(fits, Guarantee::Linearizable, || format!("{operation:?} was refused: {refused}"))?;
        if let Kind::Put { lease, .. } = operation.kind {
            self.clients.iter_mut().filter(|client| client.lease == Some(lease)).for_each(|client| client.lease = None);
        }
        Ok(())
    }

    fn kept_alive(&mut self, index: usize, operation: &Operation, ttl: Option<i64>, ticks: Vec<u64>) -> Checked {
        let Kind::KeepAlive { lease } = operation.kind else { return Ok(()) };
        match ttl {
            Some(_) => self.oracle.leases.renewed(lease, ticks),
            None => {
                let left = self.oracle.truth.leased(lease).next().is_some();
                check(!left, Guarantee::Lease, || format!("lease {lease} is said to be gone, and has keys"))?;
                self.clients[index].lease = None;
            }
        }
        Ok(())
    }

    /// Answers the reads of a member whose position is reached.
    pub(super) fn reads(&mut self, at: At) -> Checked {
        for index in 0..self.clients.len() {
            let State::Reading { operation, gateway, position } = &self.clients[index].state else { continue };
            if *gateway != at || self.members[at.member].paused_until > self.now {
                continue;
            }
            let Some(running) = &self.members[at.member].running else { continue };
            let Some((fanout, _)) = &running.fanout else { continue };
            let cursor = fanout.snapshot().cursor;
            if cursor.position < *position || cursor.history.0 == 0 {
                continue;
            }
            let operation = operation.clone();
            let Kind::Read { range, at: revision, limit, .. } = &operation.kind else { continue };
            let query = query(range.clone(), *revision, *limit);
            let shown = running.shown;
            match fanout.range_here(query) {
                Ok(answer) => {
                    self.oracle.read(&operation, &answer, shown)?;
                    let revision = answer.header_revision;
                    self.trace.step(self.now, "read", &[index as u64, operation.id, revision.0.unsigned_abs()]);
                    for event in &answer.events {
                        let key = Bytes::copy_from_slice(event.key());
                        self.clients[index].seen.insert(key, event.revision());
                    }
                    if let Some(running) = &mut self.members[at.member].running {
                        running.shown = running.shown.max(revision);
                    }
                    self.finish(index, true);
                }
                Err(error) => {
                    self.read_failed(&operation, &error)?;
                    self.finish(index, false);
                }
            }
        }
        Ok(())
    }

    pub(super) fn read_failed(&self, operation: &Operation, error: &ReadError) -> Checked {
        let Kind::Read { at, serializable, .. } = &operation.kind else { return Ok(()) };
        let at = at.unwrap_or(Revision(0));
        let fits = match error {
            ReadError::Compacted => at < self.oracle.truth.compacted(),
            // A linearizable read is at a node that has everything which its client can know of.
            ReadError::FutureRevision => *serializable || at > operation.floor,
            ReadError::History(_) | ReadError::OutOfScope | ReadError::TooManyRequests | ReadError::Stopped => false,
        };
        match fits {
            true => Ok(()),
            false => broken(Guarantee::Linearizable, format!("{operation:?} failed: {error}")),
        }
    }
}

/// Whether the error promises that the command was not applied and never will be.
fn has_no_effect(error: &ProposeError) -> bool {
    match error {
        ProposeError::Refused(_)
        | ProposeError::TooLarge
        | ProposeError::TooManyRequests
        | ProposeError::NotEnoughStarted
        | ProposeError::UnhealthyCluster
        | ProposeError::LearnerNotReady
        | ProposeError::BadTransferee
        | ProposeError::NoLeader => true,
        ProposeError::LeaderChanged | ProposeError::Timeout | ProposeError::Stopped | ProposeError::Storage(_) => false,
    }
}
