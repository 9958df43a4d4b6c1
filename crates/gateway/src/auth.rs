//! Who a client is, and what it may.
//!
//! Every process checks by the auth state in its own tail. Credentials are a token, or the common name of the client's
//! certificate where the listener asks for one; which user that is was true at the position of that state. Writes are
//! checked again where they are applied, so that here a refusal only keeps them out of the raft log; because the state here
//! may be older than a right that was granted elsewhere, nothing that changes something is refused before it was
//! looked at again behind a barrier.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Request, request};
use tailwater_api::write::{Caller, command::Command};
use tailwater_consensus::{Auth, AuthError};
use tailwater_eventlog::AuthFacts;

use crate::Gateway;
use crate::methods::Method;
use crate::status::Fault;

pub(crate) mod access;
mod config;
pub(crate) mod fuzzing;
mod jwt;
mod keys;
mod password;
mod service;
mod simple;
mod token;

use access::Access;
pub use config::{AuthConfig, AuthConfigError, TokenConfig};
pub use jwt::JwtConfig;
pub(crate) use password::Passwords;
pub(crate) use service::is_stale;
pub(crate) use token::Tokens;

/// What a connection knows of its client: an extension of each of its requests, beside the address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The common name of the certificate that the client showed and the listener has verified; `None` without one, and
    /// where certificates don't name users (`--client-cert-auth` is off).
    pub common_name: Option<Arc<str>>,
}

/// What a client shows with a call.
#[derive(Clone, Debug, Default)]
pub(crate) struct Credentials {
    token: Option<HeaderValue>,
    common_name: Option<Arc<str>>,
}

impl Credentials {
    /// Of a request: etcd's two names for the token, then the certificate. A certificate says nothing about calls that
    /// came through a JSON gateway, whose own it is.
    pub(crate) fn of(head: &request::Parts) -> Self {
        let token = token_of(&head.headers).cloned();
        let is_proxied = head.headers.contains_key("grpcgateway-accept");
        let peer = head.extensions.get::<PeerIdentity>().filter(|_| !is_proxied);
        Self { token, common_name: peer.and_then(|peer| peer.common_name.clone()) }
    }
}

/// The header that a token stands in.
pub(crate) fn token_of(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers.get("token").or_else(|| headers.get("authorization"))
}

/// The auth state of one moment, decoded.
pub(crate) struct AuthView {
    facts: Arc<AuthFacts>,
    pub(crate) rules: Auth,
}

impl AuthView {
    pub(crate) fn of(facts: Arc<AuthFacts>) -> Self {
        Self { rules: Auth::from_facts(&facts), facts }
    }

    /// Whether nothing has changed between the two.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.facts, &other.facts)
    }
}

impl Gateway {
    /// The auth state as it is visible here now.
    pub(crate) fn auth(&self) -> Arc<AuthView> {
        let cached = self.auth_view().load();
        if self.is_auth_at(&cached) {
            return Arc::clone(&cached);
        }
        let view = Arc::new(AuthView::of(self.fanout().snapshot().auth.clone()));
        self.auth_view().store(view.clone());
        view
    }

    /// Whether `view` is still the auth state that is visible here. Cheap.
    pub(crate) fn is_auth_at(&self, view: &AuthView) -> bool {
        self.fanout().is_auth(&view.facts)
    }

    /// The user behind credentials, by this state. With auth off everybody is nobody.
    pub(crate) fn identify(&self, view: &AuthView, credentials: &Credentials) -> Result<Caller, Fault> {
        let rules = &view.rules;
        if !rules.is_enabled() {
            return Ok(Caller::default());
        }
        if let Some(token) = &credentials.token {
            return self.tokens().caller(rules, token).ok_or(Fault::InvalidAuthToken);
        }
        let user = credentials.common_name.as_ref();
        let known = |user: &Arc<str>| Caller { user: user.to_string(), auth_revision: rules.revision() };
        Ok(user.map(known).unwrap_or_default())
    }

    /// Checks by what is visible here now.
    pub(crate) fn authorize_here(
        &self,
        credentials: &Credentials,
        check: impl Fn(&Auth, &Caller) -> Result<(), AuthError>,
    ) -> Result<(Caller, Arc<AuthView>), Fault> {
        let view = self.auth();
        let caller = self.identify(&view, credentials)?;
        check(&view.rules, &caller)?;
        Ok((caller, view))
    }

    /// Checks by a state that is no older than this call where the one that is visible here refuses.
    pub(crate) async fn authorize(
        &self,
        credentials: &Credentials,
        check: impl Fn(&Auth, &Caller) -> Result<(), AuthError>,
    ) -> Result<(Caller, Arc<AuthView>), Fault> {
        let view = self.auth();
        match self.authorize_here(credentials, &check) {
            Err(refused) => {
                // Without a leader it stays at what is known.
                if self.settle(false).await.is_err() || self.auth().is_same(&view) {
                    return Err(refused);
                }
                self.authorize_here(credentials, check)
            }
            permitted => permitted,
        }
    }

    /// Says who a client is that shows a certificate, where its call goes on to another process: with a token.
    pub(crate) fn vouch<B>(&self, request: Request<B>) -> Request<B> {
        let (mut head, body) = request.into_parts();
        let credentials = Credentials::of(&head);
        let view = self.auth();
        if let (None, Some(user)) = (credentials.token, credentials.common_name)
            && view.rules.is_enabled()
            && let Ok(token) = self.tokens().assign(&view.rules, &user)
            && let Ok(token) = HeaderValue::try_from(token)
        {
            head.headers.insert("token", token);
        }
        Request::from_parts(head, body)
    }

    /// What the method as such requires; the rest is the method's own affair.
    pub(crate) async fn admit(&self, method: &Method, credentials: &Credentials) -> Result<(), Fault> {
        match access::of(method.path) {
            Access::Anybody | Access::Own => Ok(()),
            Access::Known => self.require_known(credentials).await,
            Access::Root => self.require_root(credentials).await,
        }
    }

    /// Only who has shown who it is.
    pub(crate) async fn require_known(&self, credentials: &Credentials) -> Result<(), Fault> {
        self.authorize(credentials, Auth::check_known).await.map(drop)
    }

    /// Only who has the role root.
    pub(crate) async fn require_root(&self, credentials: &Credentials) -> Result<(), Fault> {
        self.authorize(credentials, Auth::check_root).await.map(drop)
    }

    /// Who a command is proposed for: nobody when auth is off here; whether it is off there too, applying tells.
    pub(crate) async fn authorize_command(
        &self,
        credentials: &Credentials,
        command: &Command,
    ) -> Result<(Caller, Arc<AuthView>), Fault> {
        self.authorize(credentials, |rules, caller| rules.check_command(caller, command, &|_| None)).await
    }

    /// Whether what was read may still be shown: users and roles may have changed since `before`.
    pub(crate) fn recheck(
        &self,
        before: &AuthView,
        credentials: &Credentials,
        check: impl Fn(&Auth, &Caller) -> Result<(), AuthError>,
    ) -> Result<(), Fault> {
        if self.is_auth_at(before) {
            return Ok(());
        }
        self.authorize_here(credentials, check).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(headers: &[(&'static str, &'static str)], common_name: Option<&str>) -> Credentials {
        let mut request = Request::new(());
        for (name, value) in headers {
            request.headers_mut().insert(*name, HeaderValue::from_static(value));
        }
        request.extensions_mut().insert(PeerIdentity { common_name: common_name.map(Arc::from) });
        Credentials::of(&request.into_parts().0)
    }

    #[test]
    fn a_token_stands_in_either_header() {
        let token = |headers| credentials(headers, None).token;
        assert_eq!(token(&[]), None);
        assert_eq!(token(&[("authorization", "b")]).expect("there"), "b");
        assert_eq!(token(&[("authorization", "b"), ("token", "a")]).expect("there"), "a");
    }

    /// CVE-2018-16886: a proxy's certificate named a user for everybody who came through it.
    #[test]
    fn a_proxys_certificate_names_nobody() {
        assert_eq!(credentials(&[], Some("u")).common_name.as_deref(), Some("u"));
        assert_eq!(credentials(&[("grpcgateway-accept", "*/*")], Some("u")).common_name, None);
        assert_eq!(credentials(&[], None).common_name, None);
    }
}
