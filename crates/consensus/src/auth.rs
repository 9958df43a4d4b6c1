//! Users, roles and what they permit: etcd's rules, as state and as checks.
//!
//! The apply machine owns one [`Auth`] and changes it; a gateway makes its own from the facts in the tail and checks
//! reads against it. Both ask the same questions in the same words, so a right means the same everywhere.
//!
//! Invariants: the roles of a user are sorted and without duplicates; `revision` grows with each change of a user or a role
//! and when auth is turned off, as in etcd, and never goes back.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use tailwater_api::authpb;
use tailwater_api::write::Caller;
use tailwater_eventlog::AuthFacts;

mod permits;
mod requests;

#[cfg(test)]
mod tests;

pub use permits::Right;
use permits::UserPermits;
pub use requests::LeaseKeys;

/// The user that may turn auth on, and the role that permits everything.
pub const ROOT: &str = "root";
/// Of a store in which nothing was changed yet.
const FIRST_REVISION: u64 = 1;

/// Why auth refuses; etcd's reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// No credentials where some are needed, or a user without a name.
    #[error("user name is empty")]
    UserEmpty,
    /// There is no such user.
    #[error("user not found")]
    UserNotFound,
    /// A user of this name exists.
    #[error("user exists")]
    UserExists,
    /// A role without a name.
    #[error("role name is empty")]
    RoleEmpty,
    /// There is no such role.
    #[error("role not found")]
    RoleNotFound,
    /// A role of this name exists.
    #[error("role exists")]
    RoleExists,
    /// Auth can't be turned on without the user root.
    #[error("no root user")]
    NoRootUser,
    /// Auth can't be turned on while the user root does not have the role root.
    #[error("root user without root role")]
    NoRootRole,
    /// The user may not.
    #[error("permission denied")]
    PermissionDenied,
    /// A permission to be granted is missing.
    #[error("permission not given")]
    PermissionNotGiven,
    /// The role has no such permission.
    #[error("permission not granted")]
    PermissionNotGranted,
    /// The user does not have the role.
    #[error("role not granted")]
    RoleNotGranted,
    /// It would break auth: root without its role, a permission for no key.
    #[error("invalid auth management")]
    InvalidManagement,
    /// Users or roles changed since the caller's credentials were checked.
    #[error("old auth revision")]
    OldRevision,
    /// The password can't be read.
    #[error("no password")]
    NoPasswordUser,
}

/// A user, and what its roles permit together.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct User {
    pub(crate) stored: authpb::User,
    permits: UserPermits,
}

/// The auth state.
#[derive(Clone, Debug, PartialEq)]
pub struct Auth {
    enabled: bool,
    revision: u64,
    token_secret: Bytes,
    users: BTreeMap<String, User>,
    roles: BTreeMap<String, authpb::Role>,
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            enabled: false,
            revision: FIRST_REVISION,
            token_secret: Bytes::new(),
            users: BTreeMap::new(),
            roles: BTreeMap::new(),
        }
    }
}

impl Auth {
    /// What a tail says. Users and roles that can't be read are left out: they permit nothing then.
    #[must_use]
    pub fn from_facts(facts: &AuthFacts) -> Self {
        let mut auth = Self {
            enabled: facts.enabled,
            revision: facts.revision.max(FIRST_REVISION),
            token_secret: facts.token_secret.clone(),
            ..Self::default()
        };
        facts.users.iter().filter_map(|user| authpb::User::decode(user.clone()).ok()).for_each(|user| {
            auth.insert_user(user);
        });
        facts.roles.iter().filter_map(|role| authpb::Role::decode(role.clone()).ok()).for_each(|role| {
            auth.insert_role(role);
        });
        auth.refresh();
        auth
    }

    /// The state as a tail carries it.
    #[must_use]
    pub fn to_facts(&self) -> AuthFacts {
        AuthFacts {
            enabled: self.enabled,
            revision: self.revision,
            users: self.users.values().map(|user| user.stored.encode_to_vec().into()).collect(),
            roles: self.roles.values().map(|role| role.encode_to_vec().into()).collect(),
            token_secret: self.token_secret.clone(),
        }
    }

    /// Whether auth is on.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Of the users and roles; 1 in a fresh store.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// What tokens are made and checked with; empty: none was chosen.
    #[must_use]
    pub fn token_secret(&self) -> &[u8] {
        &self.token_secret
    }

    /// A user as it is stored, with the hash of its password.
    #[must_use]
    pub fn user(&self, name: &str) -> Option<&authpb::User> {
        self.users.get(name).map(|user| &user.stored)
    }

    /// The names of all users, sorted.
    pub fn user_names(&self) -> impl Iterator<Item = &String> {
        self.users.keys()
    }

    /// The names of all roles, sorted.
    pub fn role_names(&self) -> impl Iterator<Item = &String> {
        self.roles.keys()
    }

    /// What a role permits; root permits everything.
    #[must_use]
    pub fn role_permissions(&self, name: &str) -> Option<Vec<authpb::Permission>> {
        let role = self.roles.get(name)?;
        if name != ROOT {
            return Some(role.key_permission.clone());
        }
        let perm_type = authpb::permission::Type::Readwrite as i32;
        Some(vec![authpb::Permission { perm_type, key: Vec::new(), range_end: vec![0] }])
    }

    /// Whether a user has a role.
    #[must_use]
    pub fn has_role(&self, user: &str, role: &str) -> bool {
        self.users.get(user).is_some_and(|user| has_role(&user.stored, role))
    }

    /// Whether the caller has shown who it is.
    ///
    /// # Errors
    /// `UserEmpty`.
    pub fn check_known(&self, caller: &Caller) -> Result<(), AuthError> {
        if self.enabled && caller.auth_revision == 0 { Err(AuthError::UserEmpty) } else { Ok(()) }
    }

    /// Whether the caller has the role root.
    ///
    /// # Errors
    /// `UserEmpty`, `UserNotFound`, `PermissionDenied`.
    pub fn check_root(&self, caller: &Caller) -> Result<(), AuthError> {
        if !self.enabled {
            return Ok(());
        }
        if caller.user.is_empty() {
            return Err(AuthError::UserEmpty);
        }
        let user = self.users.get(&caller.user).ok_or(AuthError::UserNotFound)?;
        if has_role(&user.stored, ROOT) { Ok(()) } else { Err(AuthError::PermissionDenied) }
    }

    /// Whether the caller may read or write every key of a range, given as etcd's pair: the roles of a user permit
    /// together what each permits alone.
    ///
    /// # Errors
    /// `UserEmpty`, `OldRevision`, `PermissionDenied`.
    pub fn check_range(&self, caller: &Caller, right: Right, key: &[u8], range_end: &[u8]) -> Result<(), AuthError> {
        if !self.enabled {
            return Ok(());
        }
        if caller.auth_revision == 0 {
            return Err(AuthError::UserEmpty);
        }
        if caller.auth_revision < self.revision {
            return Err(AuthError::OldRevision);
        }
        let user = self.users.get(&caller.user).ok_or(AuthError::PermissionDenied)?;
        if has_role(&user.stored, ROOT) || user.permits.covers(right, key, range_end) {
            return Ok(());
        }
        Err(AuthError::PermissionDenied)
    }

    pub(crate) fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
    }

    pub(crate) fn set_revision(&mut self, revision: u64) {
        self.revision = revision;
    }

    pub(crate) fn set_token_secret(&mut self, secret: Bytes) {
        self.token_secret = secret;
    }

    pub(crate) fn users(&self) -> impl Iterator<Item = &User> {
        self.users.values()
    }

    pub(crate) fn role(&self, name: &str) -> Option<&authpb::Role> {
        self.roles.get(name)
    }

    /// The permits are those of before until [`Auth::refresh`]. A name that is no text is left out: no request can name it.
    pub(crate) fn insert_user(&mut self, mut user: authpb::User) {
        user.roles.sort();
        user.roles.dedup();
        if let Ok(name) = String::from_utf8(user.name.clone()) {
            self.users.entry(name).or_default().stored = user;
        }
    }

    pub(crate) fn insert_role(&mut self, role: authpb::Role) {
        if let Ok(name) = String::from_utf8(role.name.clone()) {
            self.roles.insert(name, role);
        }
    }

    pub(crate) fn remove_user(&mut self, name: &str) {
        self.users.remove(name);
    }

    pub(crate) fn remove_role(&mut self, name: &str) {
        self.roles.remove(name);
    }

    /// Works out anew what every user may.
    pub(crate) fn refresh(&mut self) {
        for user in self.users.values_mut() {
            let roles = user.stored.roles.iter().filter_map(|role| self.roles.get(role));
            user.permits = UserPermits::of(roles.flat_map(|role| &role.key_permission));
        }
    }
}

/// Whether a stored user has a role.
pub(crate) fn has_role(user: &authpb::User, role: &str) -> bool {
    user.roles.binary_search_by(|held| held.as_str().cmp(role)).is_ok()
}
