//! Changes of the auth state, by etcd's rules.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use prost::Message;
use tailwater_api::write::{Caller, command::Command};
use tailwater_api::{authpb, etcdserverpb as pb};
use tailwater_eventlog::LeaseId;

use super::{Machine, encode};
use crate::auth::{AuthError, ROOT, Right, has_role};
use crate::{Answer, ApplyError};

impl Machine {
    /// Whether the client that a command comes from may have it applied.
    pub(super) fn check_caller(&self, caller: &Caller, command: &Command) -> Result<(), ApplyError> {
        let leases = &self.leases;
        let keys = |lease| leases.get(&lease).map(|record| &record.keys);
        Ok(self.auth.check_command(caller, command, &keys)?)
    }

    /// Whether a client may look at a lease, or at all of them (`None`), with its keys; or keep it alive, which is a write.
    pub(crate) fn check_lease_caller(
        &self,
        caller: &Caller,
        right: Right,
        lease: Option<LeaseId>,
    ) -> Result<(), ApplyError> {
        self.auth.check_known(caller)?;
        if !self.auth.is_enabled() || self.auth.check_root(caller).is_ok() {
            return Ok(());
        }
        let leases = &self.leases;
        let keys = |lease| leases.get(&lease).map(|record| &record.keys);
        match lease {
            Some(lease) => self.auth.check_lease(caller, right, lease, &keys)?,
            None => {
                for lease in leases.keys() {
                    self.auth.check_lease(caller, right, *lease, &keys)?;
                }
            }
        }
        Ok(())
    }

    /// Answers any command about auth.
    pub(super) fn auth(&mut self, command: Command) -> Result<Answer, ApplyError> {
        match command {
            Command::AuthEnable(request) => self.auth_enable(request.token_secret)?,
            Command::AuthDisable(_) => self.auth_disable(),
            Command::AuthTokenSecret(request) => self.auth_token_secret(request.token_secret),
            Command::AuthUserAdd(request) => self.user_add(request)?,
            Command::AuthUserDelete(request) => self.user_delete(&request.name)?,
            Command::AuthUserChangePassword(request) => self.user_change_password(&request)?,
            Command::AuthUserGrantRole(request) => self.user_grant_role(&request.user, request.role)?,
            Command::AuthUserRevokeRole(request) => self.user_revoke_role(&request.name, &request.role)?,
            Command::AuthRoleAdd(request) => self.role_add(request.name)?,
            Command::AuthRoleDelete(request) => self.role_delete(&request.role)?,
            Command::AuthRoleGrantPermission(request) => self.role_grant_permission(&request.name, request.perm)?,
            Command::AuthRoleRevokePermission(request) => self.role_revoke_permission(&request)?,
            other => unreachable!("not about auth: {other:?}"),
        }
        Ok(Answer::AuthChanged(self.state.revision))
    }

    fn auth_enable(&mut self, secret: Bytes) -> Result<(), AuthError> {
        if self.auth.is_enabled() {
            return Ok(());
        }
        let root = self.auth.user(ROOT).ok_or(AuthError::NoRootUser)?;
        if !has_role(root, ROOT) {
            return Err(AuthError::NoRootRole);
        }
        self.auth.set_enabled(true);
        self.auth.set_token_secret(secret);
        self.store_auth();
        Ok(())
    }

    /// Tokens end with it.
    fn auth_disable(&mut self) {
        if self.auth.is_enabled() {
            self.auth.set_enabled(false);
            self.auth.set_token_secret(Bytes::new());
            self.auth_changed();
        }
    }

    fn auth_token_secret(&mut self, secret: Bytes) {
        if self.auth.is_enabled() && self.auth.token_secret().is_empty() {
            self.auth.set_token_secret(secret);
            self.store_auth();
        }
    }

    fn user_add(&mut self, request: pb::AuthUserAddRequest) -> Result<(), AuthError> {
        if request.name.is_empty() {
            return Err(AuthError::UserEmpty);
        }
        if self.auth.user(&request.name).is_some() {
            return Err(AuthError::UserExists);
        }
        let options = request.options.unwrap_or_default();
        let password = if options.no_password { Vec::new() } else { password(&request.hashed_password)? };
        let name = request.name.into_bytes();
        self.put_user(authpb::User { name, password, roles: Vec::new(), options: Some(options) });
        self.auth_changed();
        Ok(())
    }

    fn user_delete(&mut self, name: &str) -> Result<(), AuthError> {
        if self.auth.is_enabled() && name == ROOT {
            return Err(AuthError::InvalidManagement);
        }
        self.user_named(name)?;
        self.auth.remove_user(name);
        self.store(encode::user_key(name.as_bytes()), None);
        self.auth_changed();
        Ok(())
    }

    fn user_change_password(&mut self, request: &pb::AuthUserChangePasswordRequest) -> Result<(), AuthError> {
        let mut user = self.user_named(&request.name)?;
        let has_none = user.options.as_ref().is_some_and(|options| options.no_password);
        user.password = if has_none { Vec::new() } else { password(&request.hashed_password)? };
        self.put_user(user);
        self.auth_changed();
        Ok(())
    }

    fn user_grant_role(&mut self, name: &str, role: String) -> Result<(), AuthError> {
        let mut user = self.user_named(name)?;
        // The role root permits everything without being there.
        if role != ROOT && self.auth.role(&role).is_none() {
            return Err(AuthError::RoleNotFound);
        }
        if has_role(&user, &role) {
            return Ok(());
        }
        user.roles.push(role);
        user.roles.sort();
        self.put_user(user);
        self.auth_changed();
        Ok(())
    }

    fn user_revoke_role(&mut self, name: &str, role: &str) -> Result<(), AuthError> {
        if self.auth.is_enabled() && name == ROOT && role == ROOT {
            return Err(AuthError::InvalidManagement);
        }
        let mut user = self.user_named(name)?;
        if !has_role(&user, role) {
            return Err(AuthError::RoleNotGranted);
        }
        user.roles.retain(|held| held != role);
        self.put_user(user);
        self.auth_changed();
        Ok(())
    }

    fn role_add(&mut self, name: String) -> Result<(), AuthError> {
        if name.is_empty() {
            return Err(AuthError::RoleEmpty);
        }
        if self.auth.role(&name).is_some() {
            return Err(AuthError::RoleExists);
        }
        self.put_role(authpb::Role { name: name.into_bytes(), key_permission: Vec::new() });
        self.auth_changed();
        Ok(())
    }

    /// The role goes from all its users too.
    fn role_delete(&mut self, name: &str) -> Result<(), AuthError> {
        if self.auth.is_enabled() && name == ROOT {
            return Err(AuthError::InvalidManagement);
        }
        self.role_named(name)?;
        self.auth.remove_role(name);
        self.store(encode::role_key(name.as_bytes()), None);
        let holders = self.auth.users().map(|user| &user.stored).filter(|user| has_role(user, name));
        let holders: Vec<_> = holders.cloned().collect();
        for mut user in holders {
            user.roles.retain(|held| held != name);
            self.put_user(user);
        }
        self.auth_changed();
        Ok(())
    }

    fn role_grant_permission(&mut self, name: &str, given: Option<authpb::Permission>) -> Result<(), AuthError> {
        let given = given.ok_or(AuthError::PermissionNotGiven)?;
        let (key, end) = (&given.key, &given.range_end);
        if key.is_empty() || !(end.is_empty() || end == &[0] || key < end) {
            return Err(AuthError::InvalidManagement);
        }
        let mut role = self.role_named(name)?;
        // etcd looks only at the first permission of this key or above; one of the same range behind it is not found.
        let at = role.key_permission.partition_point(|held| held.key < given.key);
        match role.key_permission.get_mut(at) {
            Some(held) if held.key == given.key && held.range_end == given.range_end => {
                held.perm_type = given.perm_type;
            }
            _ => {
                role.key_permission.push(given);
                role.key_permission.sort_by(|one, other| one.key.cmp(&other.key));
            }
        }
        self.put_role(role);
        self.auth_changed();
        Ok(())
    }

    fn role_revoke_permission(&mut self, request: &pb::AuthRoleRevokePermissionRequest) -> Result<(), AuthError> {
        let mut role = self.role_named(&request.role)?;
        let before = role.key_permission.len();
        role.key_permission.retain(|held| held.key != request.key || held.range_end != request.range_end);
        if role.key_permission.len() == before {
            return Err(AuthError::PermissionNotGranted);
        }
        self.put_role(role);
        self.auth_changed();
        Ok(())
    }

    fn user_named(&self, name: &str) -> Result<authpb::User, AuthError> {
        self.auth.user(name).cloned().ok_or(AuthError::UserNotFound)
    }

    fn role_named(&self, name: &str) -> Result<authpb::Role, AuthError> {
        self.auth.role(name).cloned().ok_or(AuthError::RoleNotFound)
    }

    fn put_user(&mut self, user: authpb::User) {
        self.store(encode::user_key(&user.name), Some(encode::sealed(user.encode_to_vec())));
        self.auth.insert_user(user);
    }

    fn put_role(&mut self, role: authpb::Role) {
        self.store(encode::role_key(&role.name), Some(encode::sealed(role.encode_to_vec())));
        self.auth.insert_role(role);
    }

    /// Ends a change: rights count anew, and so do the revision and what readers know.
    fn auth_changed(&mut self) {
        self.auth.refresh();
        self.auth.set_revision(self.auth.revision() + 1);
        self.store_auth();
    }

    fn store_auth(&mut self) {
        self.store(encode::AUTH.to_vec(), Some(encode::auth(&self.auth)));
        self.auth_fact = true;
    }
}

/// The hash of a password, which travels as text.
fn password(hashed: &str) -> Result<Vec<u8>, AuthError> {
    BASE64.decode(Cow::from(hashed).as_bytes()).map_err(|_| AuthError::NoPasswordUser)
}
