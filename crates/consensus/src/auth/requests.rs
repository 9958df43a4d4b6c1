//! What a command needs.

use std::collections::BTreeSet;

use bytes::Bytes;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::alarm_request::AlarmAction;
use tailwater_api::etcdserverpb::request_op::Request;
use tailwater_api::write::{Caller, command::Command};
use tailwater_eventlog::LeaseId;

use super::{Auth, AuthError, Right};

/// The keys attached to a lease, where they are known.
pub type LeaseKeys<'a> = &'a dyn Fn(LeaseId) -> Option<&'a BTreeSet<Bytes>>;

impl Auth {
    /// Whether the caller may have a command applied. The same rules hold where it is proposed, without
    /// the keys of leases, and where it is applied, with them.
    ///
    /// # Errors
    /// As the checks of this type say.
    pub fn check_command(
        &self,
        caller: &Caller,
        command: &Command,
        lease_keys: LeaseKeys<'_>,
    ) -> Result<(), AuthError> {
        if !self.enabled {
            return Ok(());
        }
        match command {
            Command::Put(put) => self.check_put(caller, put, lease_keys),
            Command::DeleteRange(delete) => self.check_delete(caller, delete),
            Command::Txn(txn) => self.check_txn(caller, txn, lease_keys),
            Command::LeaseGrant(_) => self.check_known(caller),
            Command::LeaseRevoke(revoke) => {
                self.check_known(caller)?;
                self.check_lease(caller, Right::Write, LeaseId(revoke.id), lease_keys)
            }
            Command::Alarm(alarm) if alarm.action == AlarmAction::Get as i32 => self.check_known(caller),
            Command::Alarm(_)
            | Command::Compact(_)
            | Command::MemberAdd(_)
            | Command::MemberRemove(_)
            | Command::MemberPromote(_)
            | Command::MemberUpdate(_)
            | Command::AuthEnable(_)
            | Command::AuthDisable(_)
            | Command::AuthUserAdd(_)
            | Command::AuthUserDelete(_)
            | Command::AuthUserChangePassword(_)
            | Command::AuthUserGrantRole(_)
            | Command::AuthUserRevokeRole(_)
            | Command::AuthRoleAdd(_)
            | Command::AuthRoleDelete(_)
            | Command::AuthRoleGrantPermission(_)
            | Command::AuthRoleRevokePermission(_) => self.check_root(caller),
            // The system's own: no client's request becomes one of these.
            Command::LeaseExpire(_)
            | Command::LeaseCheckpoint(_)
            | Command::SetClusterVersion(_)
            | Command::SetDowngrade(_)
            | Command::Bootstrap(_)
            | Command::PublishMember(_)
            | Command::ForceNewCluster(_)
            | Command::AuthTokenSecret(_) => Err(AuthError::PermissionDenied),
        }
    }

    /// Every operation of both branches counts, nested ones and those that will not be executed included.
    ///
    /// # Errors
    /// See [`Auth::check_range`].
    pub fn check_txn(&self, caller: &Caller, txn: &pb::TxnRequest, lease_keys: LeaseKeys<'_>) -> Result<(), AuthError> {
        for compare in &txn.compare {
            self.check_range(caller, Right::Read, &compare.key, &compare.range_end)?;
        }
        for op in txn.success.iter().chain(&txn.failure) {
            match &op.request {
                Some(Request::RequestRange(range)) => {
                    self.check_range(caller, Right::Read, &range.key, &range.range_end)?;
                }
                Some(Request::RequestPut(put)) => self.check_put(caller, put, lease_keys)?,
                Some(Request::RequestDeleteRange(delete)) => self.check_delete(caller, delete)?,
                Some(Request::RequestTxn(inner)) => self.check_txn(caller, inner, lease_keys)?,
                None => {}
            }
        }
        Ok(())
    }

    /// Who may not write every key of a lease could not revoke it, and so may not attach a key to it.
    fn check_put(&self, caller: &Caller, put: &pb::PutRequest, lease_keys: LeaseKeys<'_>) -> Result<(), AuthError> {
        self.check_range(caller, Right::Write, &put.key, &[])?;
        self.check_lease(caller, Right::Write, LeaseId(put.lease), lease_keys)?;
        if put.prev_kv { self.check_range(caller, Right::Read, &put.key, &[]) } else { Ok(()) }
    }

    fn check_delete(&self, caller: &Caller, delete: &pb::DeleteRangeRequest) -> Result<(), AuthError> {
        self.check_range(caller, Right::Write, &delete.key, &delete.range_end)?;
        if delete.prev_kv {
            return self.check_range(caller, Right::Read, &delete.key, &delete.range_end);
        }
        Ok(())
    }

    /// Whether the caller may read, or write, every key attached to a lease. Of a lease that does not exist there are
    /// none.
    ///
    /// # Errors
    /// See [`Auth::check_range`].
    pub fn check_lease(
        &self,
        caller: &Caller,
        right: Right,
        lease: LeaseId,
        lease_keys: LeaseKeys<'_>,
    ) -> Result<(), AuthError> {
        if self.check_root(caller).is_ok() {
            return Ok(());
        }
        let keys = lease_keys(lease).into_iter().flatten();
        keys.map(|key| self.check_range(caller, right, key, &[])).find(Result::is_err).unwrap_or(Ok(()))
    }
}
