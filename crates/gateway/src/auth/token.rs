//! The kind of tokens that this process makes and knows.

use std::time::{SystemTime, UNIX_EPOCH};

use http::HeaderValue;
use tailwater_api::write::Caller;
use tailwater_consensus::Auth;

use super::jwt::JwtTokens;
use super::simple::SimpleTokens;
use crate::status::Fault;

/// Makes and checks tokens.
pub(crate) enum Tokens {
    /// No token is known, and no login succeeds.
    None,
    /// See [`SimpleTokens`].
    Simple(SimpleTokens),
    /// See [`JwtTokens`].
    Jwt(Box<JwtTokens>),
}

impl Tokens {
    /// A token for a user whose password was right.
    ///
    /// # Errors
    /// `AuthFailed`: the user is gone meanwhile; `VerifyOnly`.
    pub(crate) fn assign(&self, rules: &Auth, user: &str) -> Result<String, Fault> {
        match self {
            Self::None => Err(Fault::AuthFailed),
            Self::Simple(tokens) => tokens.assign(rules, user, now_ms()).ok_or(Fault::AuthFailed),
            Self::Jwt(tokens) => tokens.assign(user, rules.revision(), now_ms() / 1000).ok_or(Fault::VerifyOnly),
        }
    }

    /// Who shows this token. A "Bearer " in front of it is no part of it.
    pub(crate) fn caller(&self, rules: &Auth, token: &HeaderValue) -> Option<Caller> {
        let token = token.to_str().ok()?;
        let token = token.strip_prefix("Bearer ").unwrap_or(token);
        match self {
            Self::None => None,
            Self::Jwt(tokens) => tokens.caller(token, now_ms() / 1000),
            Self::Simple(tokens) => {
                let user = tokens.user(rules, token, now_ms())?;
                Some(Caller { user, auth_revision: rules.revision() })
            }
        }
    }

    /// Whether tokens are made with the secret in the auth state.
    pub(crate) fn needs_secret(&self) -> bool {
        matches!(self, Self::Simple(_))
    }
}

/// Milliseconds since 1970.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
