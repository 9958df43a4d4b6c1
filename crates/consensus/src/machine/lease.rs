//! Leases as the log knows them: what was granted and which keys are attached. When one expires is the leader's clock's
//! affair, not the machine's.

use std::collections::BTreeSet;

use bytes::Bytes;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::write;
use tailwater_eventlog::LeaseId;

use super::{Machine, MachineError, encode, header};
use crate::{Answer, ApplyError};

/// Seconds; etcd's bound.
const TTL_MAX: i64 = 9_000_000_000;

/// A lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LeaseRecord {
    /// Seconds, as granted.
    pub(crate) ttl: i64,
    /// Seconds left at the last checkpoint; 0: none was made.
    pub(crate) remaining: i64,
    /// Attached keys.
    pub(crate) keys: BTreeSet<Bytes>,
}

/// What the leader's clock must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeaseChange {
    /// A lease of so many seconds exists now.
    Granted(LeaseId, i64),
    /// It had so many seconds left when the leader looked; 0: its whole TTL.
    Checkpointed(LeaseId, i64),
    /// It is gone.
    Gone(LeaseId),
}

impl Machine {
    pub(super) fn lease_grant(&mut self, request: &pb::LeaseGrantRequest) -> Result<Answer, MachineError> {
        let id = LeaseId(request.id);
        // The proposer chooses ids; 0 is none.
        if id == LeaseId(0) {
            return Err(ApplyError::LeaseNotFound.into());
        }
        if request.ttl > TTL_MAX {
            return Err(ApplyError::LeaseTtlTooLarge.into());
        }
        if self.leases.contains_key(&id) {
            return Err(ApplyError::LeaseExists.into());
        }
        let lease = LeaseRecord { ttl: request.ttl, ..Default::default() };
        self.store(encode::lease_key(id), Some(encode::lease(&lease)));
        self.leases.insert(id, lease);
        self.output.leases.push(LeaseChange::Granted(id, request.ttl));
        let header = header(self.state.revision);
        Ok(Answer::LeaseGrant(pb::LeaseGrantResponse { header, id: id.0, ttl: request.ttl, error: String::new() }))
    }

    pub(super) fn lease_revoke(&mut self, request: &pb::LeaseRevokeRequest) -> Result<Answer, MachineError> {
        if !self.revoke(LeaseId(request.id)) {
            return Err(ApplyError::LeaseNotFound.into());
        }
        Ok(Answer::LeaseRevoke(pb::LeaseRevokeResponse { header: header(self.state.revision) }))
    }

    pub(super) fn lease_expire(&mut self, request: &write::LeaseExpire) -> Answer {
        for id in &request.ids {
            self.revoke(LeaseId(*id));
        }
        Answer::Done
    }

    pub(super) fn lease_checkpoint(&mut self, request: &pb::LeaseCheckpointRequest) -> Answer {
        for checkpoint in &request.checkpoints {
            let id = LeaseId(checkpoint.id);
            let Some(lease) = self.leases.get_mut(&id) else { continue };
            lease.remaining = checkpoint.remaining_ttl;
            let row = encode::lease(lease);
            self.store(encode::lease_key(id), Some(row));
            self.output.leases.push(LeaseChange::Checkpointed(id, checkpoint.remaining_ttl));
        }
        Answer::Done
    }

    /// Removes the lease and, in one revision and in key order, its keys. `false` when there is none.
    fn revoke(&mut self, id: LeaseId) -> bool {
        let Some(lease) = self.leases.remove(&id) else { return false };
        let mut step = self.begin();
        for key in lease.keys {
            let meta = self.index.latest(&key).expect("an attached key is live");
            self.delete_key(&mut step, &meta);
        }
        self.end(&step);
        self.store(encode::lease_key(id), None);
        self.output.leases.push(LeaseChange::Gone(id));
        true
    }

    /// Moves a key from one lease to another; 0 is none.
    pub(super) fn attach(&mut self, key: &[u8], old: LeaseId, new: LeaseId) {
        if old == new {
            return;
        }
        if let Some(lease) = self.leases.get_mut(&old) {
            lease.keys.remove(key);
        }
        if let Some(lease) = self.leases.get_mut(&new) {
            lease.keys.insert(Bytes::copy_from_slice(key));
        }
    }
}
