//! The machine's own state as a backup takes and gives it.

use bytes::Bytes;
use prost::DecodeError;
use tailwater_eventlog::{Alarm, AuthFacts, EventLog, KeyIndex, LeaseId, LogState, Member, MemberId, StorageError};

use crate::machine::{LeaseRecord, Machine, rows_of};

/// A lease as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredLease {
    /// Its id.
    pub id: LeaseId,
    /// Seconds, as granted.
    pub ttl: i64,
    /// Seconds left at the last checkpoint; 0: none was made.
    pub remaining: i64,
}

/// What a stored state says beside its events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredState {
    /// By id.
    pub leases: Vec<StoredLease>,
    /// Those that are raised.
    pub alarms: Vec<Alarm>,
    /// By id.
    pub members: Vec<Member>,
    /// Ids that never return.
    pub removed: Vec<MemberId>,
    /// "major.minor.0"; empty before it is decided.
    pub cluster_version: String,
    /// Users, roles and whether they matter.
    pub auth: AuthFacts,
}

impl StoredState {
    /// From the rows of the machine's own state, in any order.
    ///
    /// # Errors
    /// A row can't be read.
    pub fn from_rows(state: LogState, rows: &[(Bytes, Bytes)]) -> Result<Self, StorageError> {
        // Attachments aside, which stand in the events, an index of no key is enough.
        let machine = Machine::load(KeyIndex::default(), state, rows.iter().cloned())?;
        let lease = |(id, ttl, remaining)| StoredLease { id, ttl, remaining };
        let group = machine.group();
        Ok(Self {
            leases: machine.lease_times().map(lease).collect(),
            alarms: machine.alarms().collect(),
            members: group.members,
            removed: group.removed,
            cluster_version: machine.cluster_version().to_owned(),
            auth: machine.auth_facts(),
        })
    }
}

/// Key and value of a row of the machine's own state.
pub type StoredRow = (Vec<u8>, Vec<u8>);

/// What a restored store begins with beside its events. Its members, their configuration and the cluster version come
/// with the start of its group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RestoredState {
    /// Leases, by id.
    pub leases: Vec<StoredLease>,
    /// Alarms that are raised.
    pub alarms: Vec<Alarm>,
    /// Users, roles and whether they matter. Without a secret for tokens, which is chosen anew.
    pub auth: AuthFacts,
    /// Of what was restored: members that begin with different contents refuse each other. Not empty.
    pub digest: Vec<u8>,
}

impl RestoredState {
    /// As rows of the machine's own state.
    ///
    /// # Errors
    /// A user or a role is no message.
    pub fn to_rows(&self) -> Result<Vec<StoredRow>, DecodeError> {
        let lease = |lease: &StoredLease| {
            let record = LeaseRecord { ttl: lease.ttl, remaining: lease.remaining, ..Default::default() };
            rows_of::lease(lease.id, &record)
        };
        let mut rows: Vec<_> = self.leases.iter().map(lease).collect();
        rows.extend(self.alarms.iter().map(|alarm| rows_of::alarm(*alarm)));
        rows.extend(rows_of::auth(&self.auth)?);
        rows.push(rows_of::restored(&self.digest));
        Ok(rows)
    }
}

/// What the store in a data directory was restored from, for the group's first command; empty: it was not.
pub(crate) fn restored_digest(events: &EventLog) -> Result<Bytes, StorageError> {
    rows_of::restored_digest(events)
}
