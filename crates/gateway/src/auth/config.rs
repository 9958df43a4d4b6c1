//! Settings of auth.

use std::time::Duration;

use super::jwt::{JwtConfig, JwtTokens};
use super::simple::SimpleTokens;
use super::{Passwords, Tokens};

/// etcd's default work factor of bcrypt, which also stands in for one that can't be.
const BCRYPT_COST_DEFAULT: u32 = 10;
const BCRYPT_COSTS: std::ops::RangeInclusive<u32> = 4..=31;
/// Stands in for a TTL of nothing.
const TOKEN_TTL_DEFAULT: Duration = Duration::from_secs(300);

/// How clients show who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthConfig {
    /// What a login gives. Default: simple tokens.
    pub token: TokenConfig,
    /// Work factor of password hashes, 4 to 31; another one counts as 10. Default 10.
    pub bcrypt_cost: u32,
}

/// The kinds of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenConfig {
    /// None: only certificates tell who a client is.
    None,
    /// Signed with a secret of the cluster. They live for so long after their last use; zero: 300 s.
    Simple(Duration),
    /// Signed with a key that the operator gives.
    Jwt(JwtConfig),
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self { token: TokenConfig::Simple(TOKEN_TTL_DEFAULT), bcrypt_cost: BCRYPT_COST_DEFAULT }
    }
}

/// The keys of tokens can't be used; the text says why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("auth: {0}")]
pub struct AuthConfigError(String);

impl AuthConfig {
    /// What tokens are made and checked with.
    ///
    /// # Errors
    /// See [`AuthConfigError`].
    pub(crate) fn tokens(&self) -> Result<Tokens, AuthConfigError> {
        match &self.token {
            TokenConfig::None => Ok(Tokens::None),
            TokenConfig::Simple(ttl) => {
                let ttl = if ttl.is_zero() { TOKEN_TTL_DEFAULT } else { *ttl };
                let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
                Ok(Tokens::Simple(SimpleTokens::new(ttl_ms)))
            }
            TokenConfig::Jwt(config) => {
                JwtTokens::new(config).map(|tokens| Tokens::Jwt(Box::new(tokens))).map_err(AuthConfigError)
            }
        }
    }

    /// Whether the keys can be used.
    ///
    /// # Errors
    /// See [`AuthConfigError`].
    pub fn validate(&self) -> Result<(), AuthConfigError> {
        self.tokens().map(drop)
    }

    pub(crate) fn passwords(&self) -> Passwords {
        let cost = if BCRYPT_COSTS.contains(&self.bcrypt_cost) { self.bcrypt_cost } else { BCRYPT_COST_DEFAULT };
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Passwords::new(cost, (cpus / 2).max(1))
    }
}
