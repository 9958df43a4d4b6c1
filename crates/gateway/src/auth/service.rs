//! The Auth service. What reads, reads the auth state in this process's tail behind a barrier; what changes, is proposed
//! with the password hashed already.

use prost::Message;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::write::{self, command::Command};
use tailwater_consensus::{Answer, ProposeError};

use super::Credentials;
use crate::Gateway;
use crate::kv::mismatched;
use crate::status::Fault;

/// Bytes of the secret that tokens are made with.
const SECRET_BYTES: usize = 32;
/// Logins begun anew because users or roles changed while the password was compared.
const LOGINS_MAX: usize = 8;

impl Gateway {
    /// `Auth.AuthStatus`: open to everybody, as in etcd 3.7.
    pub(crate) async fn auth_status(&self) -> Result<pb::AuthStatusResponse, Fault> {
        self.settle(false).await?;
        let view = self.auth();
        let (enabled, auth_revision) = (view.rules.is_enabled(), view.rules.revision());
        Ok(pb::AuthStatusResponse { header: Some(self.current_header()), enabled, auth_revision })
    }

    /// `Auth.Authenticate`. Costs no raft entry: see [`super::simple`].
    pub(crate) async fn authenticate(
        &self,
        request: pb::AuthenticateRequest,
    ) -> Result<pb::AuthenticateResponse, Fault> {
        self.settle(false).await?;
        for _ in 0..LOGINS_MAX {
            let view = self.auth();
            if !view.rules.is_enabled() {
                return Err(Fault::AuthNotEnabled);
            }
            let user = view.rules.user(&request.name).ok_or(Fault::AuthFailed)?;
            if user.options.as_ref().is_some_and(|options| options.no_password) {
                return Err(Fault::NoPasswordUser);
            }
            let fits = self.passwords().fits(request.password.clone(), user.password.clone()).await?;
            if !self.auth().is_same(&view) {
                continue;
            }
            if !fits {
                tracing::warn!(user = request.name, "invalid authentication was requested");
                return Err(Fault::AuthFailed);
            }
            if view.rules.token_secret().is_empty() && self.tokens().needs_secret() {
                self.choose_secret().await?;
                continue;
            }
            let token = self.tokens().assign(&view.rules, &request.name)?;
            return Ok(pb::AuthenticateResponse { header: Some(self.current_header()), token });
        }
        Err(Fault::AuthOldRevision)
    }

    /// A state that was restored with auth on brings no secret; whoever logs in first sees to it.
    async fn choose_secret(&self) -> Result<(), Fault> {
        let secret = write::AuthTokenSecret { token_secret: secret() };
        let applied = self.write_plane().propose(Command::AuthTokenSecret(secret)).await?;
        self.reach(applied.position).await
    }

    /// `Auth.AuthEnable`.
    pub(crate) async fn auth_enable(&self, credentials: &Credentials) -> Result<pb::AuthEnableResponse, Fault> {
        let command = Command::AuthEnable(write::AuthEnable { token_secret: secret() });
        let header = self.change_auth(credentials, 0, command).await?;
        Ok(pb::AuthEnableResponse { header })
    }

    /// `Auth.AuthDisable`.
    pub(crate) async fn auth_disable(
        &self,
        credentials: &Credentials,
        request: pb::AuthDisableRequest,
    ) -> Result<pb::AuthDisableResponse, Fault> {
        let header = self.change_auth(credentials, 0, Command::AuthDisable(request)).await?;
        Ok(pb::AuthDisableResponse { header })
    }

    /// `Auth.UserAdd`.
    pub(crate) async fn user_add(
        &self,
        credentials: &Credentials,
        mut request: pb::AuthUserAddRequest,
    ) -> Result<pb::AuthUserAddResponse, Fault> {
        let password = std::mem::take(&mut request.password);
        if !request.options.as_ref().is_some_and(|options| options.no_password) {
            request.hashed_password = self.passwords().hash(password).await?;
        }
        let bytes = request.encoded_len();
        let header = self.change_auth(credentials, bytes, Command::AuthUserAdd(request)).await?;
        Ok(pb::AuthUserAddResponse { header })
    }

    /// `Auth.UserGet`: oneself, or anybody for root.
    pub(crate) async fn user_get(
        &self,
        credentials: &Credentials,
        request: &pb::AuthUserGetRequest,
    ) -> Result<pb::AuthUserGetResponse, Fault> {
        self.settle(false).await?;
        let (_, view) = self.authorize_here(credentials, |rules, caller| match rules.check_root(caller) {
            Err(_) if caller.user == request.name => Ok(()),
            checked => checked,
        })?;
        let roles = view.rules.user(&request.name).ok_or(Fault::UserNotFound)?.roles.clone();
        Ok(pb::AuthUserGetResponse { header: Some(self.current_header()), roles })
    }

    /// `Auth.UserList`.
    pub(crate) async fn user_list(&self, credentials: &Credentials) -> Result<pb::AuthUserListResponse, Fault> {
        self.settle(false).await?;
        let (_, view) = self.authorize_here(credentials, tailwater_consensus::Auth::check_root)?;
        let users = view.rules.user_names().cloned().collect();
        Ok(pb::AuthUserListResponse { header: Some(self.current_header()), users })
    }

    /// `Auth.UserDelete`.
    pub(crate) async fn user_delete(
        &self,
        credentials: &Credentials,
        request: pb::AuthUserDeleteRequest,
    ) -> Result<pb::AuthUserDeleteResponse, Fault> {
        let bytes = request.encoded_len();
        let header = self.change_auth(credentials, bytes, Command::AuthUserDelete(request)).await?;
        Ok(pb::AuthUserDeleteResponse { header })
    }

    /// `Auth.UserChangePassword`. Without a password a hash may be given, as newer clients do.
    pub(crate) async fn user_change_password(
        &self,
        credentials: &Credentials,
        mut request: pb::AuthUserChangePasswordRequest,
    ) -> Result<pb::AuthUserChangePasswordResponse, Fault> {
        let password = std::mem::take(&mut request.password);
        if !password.is_empty() {
            request.hashed_password = self.passwords().hash(password).await?;
        }
        let bytes = request.encoded_len();
        let header = self.change_auth(credentials, bytes, Command::AuthUserChangePassword(request)).await?;
        Ok(pb::AuthUserChangePasswordResponse { header })
    }

    /// `Auth.UserGrantRole`.
    pub(crate) async fn user_grant_role(
        &self,
        credentials: &Credentials,
        request: pb::AuthUserGrantRoleRequest,
    ) -> Result<pb::AuthUserGrantRoleResponse, Fault> {
        let bytes = request.encoded_len();
        let header = self.change_auth(credentials, bytes, Command::AuthUserGrantRole(request)).await?;
        Ok(pb::AuthUserGrantRoleResponse { header })
    }

    /// `Auth.UserRevokeRole`.
    pub(crate) async fn user_revoke_role(
        &self,
        credentials: &Credentials,
        request: pb::AuthUserRevokeRoleRequest,
    ) -> Result<pb::AuthUserRevokeRoleResponse, Fault> {
        let bytes = request.encoded_len();
        let header = self.change_auth(credentials, bytes, Command::AuthUserRevokeRole(request)).await?;
        Ok(pb::AuthUserRevokeRoleResponse { header })
    }

    /// `Auth.RoleAdd`.
    pub(crate) async fn role_add(
        &self,
        credentials: &Credentials,
        request: pb::AuthRoleAddRequest,
    ) -> Result<pb::AuthRoleAddResponse, Fault> {
        let bytes = request.encoded_len();
        let header = self.change_auth(credentials, bytes, Command::AuthRoleAdd(request)).await?;
        Ok(pb::AuthRoleAddResponse { header })
    }

    /// `Auth.RoleGet`: a role that one has, or any for root.
    pub(crate) async fn role_get(
        &self,
        credentials: &Credentials,
        request: &pb::AuthRoleGetRequest,
    ) -> Result<pb::AuthRoleGetResponse, Fault> {
        self.settle(false).await?;
        let (_, view) = self.authorize_here(credentials, |rules, caller| match rules.check_root(caller) {
            Err(_) if rules.has_role(&caller.user, &request.role) => Ok(()),
            checked => checked,
        })?;
        let perm = view.rules.role_permissions(&request.role).ok_or(Fault::RoleNotFound)?;
        Ok(pb::AuthRoleGetResponse { header: Some(self.current_header()), perm })
    }

    /// `Auth.RoleList`.
    pub(crate) async fn role_list(&self, credentials: &Credentials) -> Result<pb::AuthRoleListResponse, Fault> {
        self.settle(false).await?;
        let (_, view) = self.authorize_here(credentials, tailwater_consensus::Auth::check_root)?;
        let roles = view.rules.role_names().cloned().collect();
        Ok(pb::AuthRoleListResponse { header: Some(self.current_header()), roles })
    }

    /// `Auth.RoleDelete`.
    pub(crate) async fn role_delete(
        &self,
        credentials: &Credentials,
        request: pb::AuthRoleDeleteRequest,
    ) -> Result<pb::AuthRoleDeleteResponse, Fault> {
        let bytes = request.encoded_len();
        let header = self.change_auth(credentials, bytes, Command::AuthRoleDelete(request)).await?;
        Ok(pb::AuthRoleDeleteResponse { header })
    }

    /// `Auth.RoleGrantPermission`.
    pub(crate) async fn role_grant_permission(
        &self,
        credentials: &Credentials,
        request: pb::AuthRoleGrantPermissionRequest,
    ) -> Result<pb::AuthRoleGrantPermissionResponse, Fault> {
        let bytes = request.encoded_len();
        let header = self.change_auth(credentials, bytes, Command::AuthRoleGrantPermission(request)).await?;
        Ok(pb::AuthRoleGrantPermissionResponse { header })
    }

    /// `Auth.RoleRevokePermission`.
    pub(crate) async fn role_revoke_permission(
        &self,
        credentials: &Credentials,
        request: pb::AuthRoleRevokePermissionRequest,
    ) -> Result<pb::AuthRoleRevokePermissionResponse, Fault> {
        let bytes = request.encoded_len();
        let header = self.change_auth(credentials, bytes, Command::AuthRoleRevokePermission(request)).await?;
        Ok(pb::AuthRoleRevokePermissionResponse { header })
    }

    async fn change_auth(
        &self,
        credentials: &Credentials,
        request_bytes: usize,
        command: Command,
    ) -> Result<Option<pb::ResponseHeader>, Fault> {
        match self.propose(credentials, request_bytes, command).await? {
            Answer::AuthChanged(revision) => {
                // Whoever is answered will be judged here by what it has done.
                self.settle(true).await?;
                Ok(self.complete(Some(pb::ResponseHeader { revision: revision.0, ..Default::default() })))
            }
            other => mismatched("change of auth", &other),
        }
    }
}

fn secret() -> bytes::Bytes {
    rand::random::<[u8; SECRET_BYTES]>().to_vec().into()
}

/// Whether the rights of a caller were looked at in a state that may be older than the one that a write met.
pub(crate) fn is_stale(error: &ProposeError) -> bool {
    use tailwater_consensus::{ApplyError, AuthError};
    matches!(error, ProposeError::Refused(ApplyError::Auth(AuthError::OldRevision)))
}
