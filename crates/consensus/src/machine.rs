//! The apply machine: (state, command) → events, facts, state changes, answer.
//!
//! Plain synchronous code without a clock, randomness, hash order or IO of its own: every member that applies the same
//! commands in the same order reaches the same state and the same bytes. What a command changes gathers in a batch
//! that the driver takes ([`Machine::take_output`]), writes and publishes; until then the machine reads its own
//! unwritten events from it.
//!
//! Invariants: a command makes at most one revision (a `LeaseExpire` one per lease), and none
//! when it changes nothing or is refused; `compacted <= revision`; a key attached to a lease is in that lease's set.

mod alarm;
mod auth;
mod encode;
#[doc(hidden)]
pub mod fuzzing;
mod kv;
mod lease;
pub mod measuring;
mod members;
pub(crate) mod quota;
mod range;
pub(crate) mod rows_of;
mod txn;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use raft::eraftpb::ConfState;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::write::{Caller, command::Command};
use tailwater_eventlog::{
    Alarm, AuthFacts, Event, EventLog, Fact, HistoryId, KeyIndex, KeyRange, LeaseId, LogState, Member, MemberId,
    Position, Revision, StorageError, Term, WriteBatch,
};

use crate::{Answer, ApplyError, Auth};
use encode::PREFIXES;
pub(crate) use lease::{LeaseChange, LeaseRecord};
pub(crate) use members::{Group, conf_state_of, member_message};

/// What the machine reads from storage: single events, by where the key index says they are.
pub(crate) trait Values {
    /// The event at (revision, sub) of `key`; `None` when there is none.
    fn event(&self, key: &[u8], revision: Revision, sub: u32) -> Result<Option<Arc<Event>>, StorageError>;
}

impl Values for EventLog {
    fn event(&self, key: &[u8], revision: Revision, sub: u32) -> Result<Option<Arc<Event>>, StorageError> {
        EventLog::event(self, key, revision, sub)
    }
}

/// Why a command has no answer but a refusal, or stops the member.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    /// Refused; nothing changed. The same on every member.
    #[error(transparent)]
    Refused(#[from] ApplyError),
    /// The member must stop.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A command of a newer version, which the cluster version should have kept away.
    #[error("unknown command")]
    Unknown,
}

/// What one batch of commands did.
#[derive(Debug, Default)]
pub(crate) struct Output {
    /// To be written, all or nothing.
    pub(crate) write: WriteBatch,
    /// To be published with the events.
    pub(crate) facts: Vec<Fact>,
    /// For the leader's clock.
    pub(crate) leases: Vec<LeaseChange>,
    /// Whether a compaction was accepted.
    pub(crate) compacted: bool,
    /// Whether the members or the raft configuration have changed.
    pub(crate) group_changed: bool,
}

/// The deterministic state machine. One owner: the apply thread.
pub(crate) struct Machine {
    index: KeyIndex,
    state: LogState,
    cluster_id: u64,
    leases: BTreeMap<LeaseId, LeaseRecord>,
    alarms: BTreeSet<Alarm>,
    auth: Auth,
    /// Whether readers must be told of the auth state.
    auth_fact: bool,
    members: BTreeMap<MemberId, Member>,
    removed: BTreeSet<MemberId>,
    cluster_version: String,
    /// What members are about to be replaced by; empty: nothing older.
    downgrade: String,
    conf_state: ConfState,
    /// Whether a compaction at revision 0 was accepted.
    compacted_at_zero: bool,
    /// Of the backup that the store began with; empty: none.
    restored: Vec<u8>,
    /// Whether [`Machine::index_step`] has work left.
    index_behind: bool,
    /// Not yet taken; events are in (revision, sub) order.
    output: Output,
    /// Bytes of the events in `output`.
    output_bytes: usize,
}

impl Machine {
    /// The machine of what is stored, given the index of its keys.
    pub(crate) fn open(events: &EventLog, index: KeyIndex) -> Result<Self, StorageError> {
        let mut rows = Vec::new();
        for prefix in PREFIXES {
            rows.extend(events.state_scan(prefix)?);
        }
        Self::load(index, events.state(), rows)
    }

    /// The machine of a stored state: what `state_scan` found under the machine's prefixes, and the index of all keys.
    pub(crate) fn load(
        index: KeyIndex,
        state: LogState,
        rows: impl IntoIterator<Item = (Bytes, Bytes)>,
    ) -> Result<Self, StorageError> {
        let mut machine = Self {
            index_behind: state.compacted > Revision(0),
            index,
            state,
            cluster_id: 0,
            leases: BTreeMap::new(),
            alarms: BTreeSet::new(),
            auth: Auth::default(),
            auth_fact: false,
            members: BTreeMap::new(),
            removed: BTreeSet::new(),
            cluster_version: String::new(),
            downgrade: String::new(),
            conf_state: ConfState::default(),
            compacted_at_zero: false,
            restored: Vec::new(),
            output: Output::default(),
            output_bytes: 0,
        };
        for (key, value) in rows {
            encode::load_row(&mut machine, &key, &value)
                .ok_or_else(|| StorageError::Inconsistent(format!("state row {key:?} can't be read")))?;
        }
        machine.auth.refresh();
        machine.attach_all();
        Ok(machine)
    }

    /// Attachments are not stored: each live key's own lease field tells them.
    fn attach_all(&mut self) {
        if self.leases.is_empty() {
            return;
        }
        for meta in self.index.range(&KeyRange::all(), self.state.revision, 0) {
            if let Some(lease) = self.leases.get_mut(&meta.lease) {
                lease.keys.insert(meta.key);
            }
        }
    }

    /// The numbers after everything applied so far.
    pub(crate) fn state(&self) -> LogState {
        self.state
    }

    /// Whether a bootstrap command was applied.
    pub(crate) fn bootstrapped(&self) -> bool {
        self.state.history != HistoryId(0)
    }

    /// Whether the group has changed since the last call.
    pub(crate) fn take_group_changed(&mut self) -> bool {
        std::mem::take(&mut self.output.group_changed)
    }

    /// The leases, by id.
    #[cfg(test)]
    pub(crate) fn leases(&self) -> &BTreeMap<LeaseId, LeaseRecord> {
        &self.leases
    }

    /// The leases as the leader's clock starts from them: id, TTL, seconds left at the last checkpoint.
    pub(crate) fn lease_times(&self) -> impl Iterator<Item = (LeaseId, i64, i64)> {
        self.leases.iter().map(|(id, lease)| (*id, lease.ttl, lease.remaining))
    }

    /// Alarms that are raised.
    pub(crate) fn alarms(&self) -> impl Iterator<Item = Alarm> {
        self.alarms.iter().copied()
    }

    /// "major.minor.0"; empty before it is decided.
    pub(crate) fn cluster_version(&self) -> &str {
        &self.cluster_version
    }

    /// Users, roles and whether they matter.
    pub(crate) fn auth_facts(&self) -> AuthFacts {
        self.auth.to_facts()
    }

    /// Keys attached to a lease, sorted; `None` when there is no such lease.
    pub(crate) fn lease_keys(&self, id: LeaseId) -> Option<Vec<Bytes>> {
        self.leases.get(&id).map(|lease| lease.keys.iter().cloned().collect())
    }

    /// What a reader that starts here must know.
    pub(crate) fn facts(&self) -> Vec<Fact> {
        let mut facts = vec![
            Fact::Compacted(self.state.compacted),
            Fact::Auth(self.auth.to_facts()),
            Fact::Alarms(self.alarms.iter().copied().collect()),
            Fact::Members(self.members.values().cloned().collect()),
        ];
        if !self.cluster_version.is_empty() {
            facts.push(Fact::ClusterVersion(self.cluster_version.clone()));
        }
        facts.push(Fact::Downgrade(self.downgrade.clone()));
        facts
    }

    /// Bytes of events that wait to be taken.
    pub(crate) fn output_bytes(&self) -> usize {
        self.output_bytes
    }

    /// Everything since the last call, with the numbers that hold after it.
    pub(crate) fn take_output(&mut self) -> Output {
        self.output_bytes = 0;
        let mut output = std::mem::take(&mut self.output);
        // Once per batch: it tells the whole state.
        if std::mem::take(&mut self.auth_fact) {
            output.facts.push(Fact::Auth(self.auth.to_facts()));
        }
        output.write.log_state = self.state;
        output
    }

    /// The entry at `position` was applied; also told for entries without a command.
    pub(crate) fn advance(&mut self, position: Position, term: Term) {
        assert!(position > self.state.applied, "entry {position} applied twice");
        self.state.applied = position;
        self.state.applied_term = term;
    }

    /// Applies one command, if the client that it comes from may: `None` is the system itself. `waiting` says whether
    /// somebody waits for the answer: without, prev_kv and range results are not computed.
    pub(crate) fn apply(
        &mut self,
        values: &dyn Values,
        caller: Option<&Caller>,
        command: Option<Command>,
        waiting: bool,
    ) -> Result<Answer, MachineError> {
        let command = command.ok_or(MachineError::Unknown)?;
        self.refuse_for_alarms(&command)?;
        if let Some(caller) = caller {
            self.check_caller(caller, &command)?;
        }
        match command {
            Command::Put(request) => self.put(values, request, waiting),
            Command::DeleteRange(request) => self.delete_range(values, request, waiting),
            Command::Txn(request) => self.txn(values, request, waiting),
            Command::Compact(request) => self.compact(request),
            Command::LeaseGrant(request) => self.lease_grant(&request),
            Command::LeaseRevoke(request) => self.lease_revoke(&request),
            Command::LeaseExpire(request) => Ok(self.lease_expire(&request)),
            Command::LeaseCheckpoint(request) => Ok(self.lease_checkpoint(&request)),
            Command::Alarm(request) => Ok(self.alarm(&request)),
            Command::SetClusterVersion(request) => Ok(self.set_cluster_version(request)),
            Command::SetDowngrade(request) => Ok(self.set_downgrade(request.target_version)),
            Command::Bootstrap(request) => Ok(self.bootstrap(request)?),
            Command::PublishMember(request) => Ok(self.publish_member(request)),
            Command::MemberAdd(request) => Ok(self.member_add(request)?),
            Command::MemberRemove(request) => Ok(self.member_remove(&request)?),
            Command::MemberPromote(request) => Ok(self.member_promote(&request)?),
            Command::MemberUpdate(request) => Ok(self.member_update(request)?),
            Command::ForceNewCluster(request) => Ok(self.force_new_cluster(&request)),
            Command::AuthEnable(_)
            | Command::AuthDisable(_)
            | Command::AuthUserAdd(_)
            | Command::AuthUserDelete(_)
            | Command::AuthUserChangePassword(_)
            | Command::AuthUserGrantRole(_)
            | Command::AuthUserRevokeRole(_)
            | Command::AuthRoleAdd(_)
            | Command::AuthRoleDelete(_)
            | Command::AuthRoleGrantPermission(_)
            | Command::AuthRoleRevokePermission(_)
            | Command::AuthTokenSecret(_) => Ok(self.auth(command)?),
        }
    }

    /// Forgets index entries that no read can see, at most `keys_max` keys of them. `true` when nothing is left.
    pub(crate) fn index_step(&mut self, keys_max: usize) -> bool {
        if self.index_behind && self.index.compact_step(self.state.compacted, keys_max) {
            self.index_behind = false;
        }
        !self.index_behind
    }

    fn compact(&mut self, request: pb::CompactionRequest) -> Result<Answer, MachineError> {
        let at = Revision(request.revision);
        // A store that was never compacted accepts 0, once, as etcd does: it counts from -1.
        let first_at_zero = at == Revision(0) && self.state.compacted == Revision(0) && !self.compacted_at_zero;
        if !first_at_zero && at <= self.state.compacted {
            return Err(ApplyError::Compacted.into());
        }
        if at > self.state.revision {
            return Err(ApplyError::FutureRevision.into());
        }
        if first_at_zero {
            self.compacted_at_zero = true;
            self.store(encode::COMPACTED_AT_ZERO.to_vec(), Some(vec![encode::FORMAT]));
        } else {
            self.state.compacted = at;
            self.index_behind = true;
            self.output.compacted = true;
            self.output.facts.push(Fact::Compacted(at));
        }
        Ok(Answer::Compact(pb::CompactionResponse { header: header(self.state.revision) }))
    }

    /// Stores and indexes an event of the revision in the making.
    fn record(&mut self, event: Event) {
        self.index.insert(&event);
        self.output_bytes += event.bytes().len();
        self.output.write.events.push(Arc::new(event));
    }

    /// A change of the machine's own state; `None` deletes the row.
    fn store(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.output.write.state.push((key, value));
    }

    /// An event that the index says exists: of this batch, else stored.
    fn event(&self, values: &dyn Values, key: &[u8], revision: Revision, sub: u32) -> Result<Arc<Event>, StorageError> {
        let fresh = &self.output.write.events;
        let found = fresh.binary_search_by_key(&(revision, sub), |event| (event.revision(), event.sub()));
        match found {
            Ok(at) => Ok(Arc::clone(&fresh[at])),
            Err(_) => values.event(key, revision, sub)?.ok_or_else(|| {
                StorageError::Inconsistent(format!("no event at {revision}.{sub} though the key index has it"))
            }),
        }
    }
}

/// A header as the machine fills it: the revision only.
#[expect(clippy::unnecessary_wraps, reason = "the field it fills is optional")]
fn header(revision: Revision) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader { revision: revision.0, ..Default::default() })
}
