//! Settings of auth.

use std::time::Duration;

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
    /// The kind of tokens and its options, as etcd's `--auth-token` gives them. Default "simple".
    pub token: String,
    /// How long a simple token lives after its last use. Default 300 s.
    pub token_ttl: Duration,
    /// Work factor of password hashes, 4 to 31; another one counts as 10. Default 10.
    pub bcrypt_cost: u32,
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self { token: "simple".into(), token_ttl: TOKEN_TTL_DEFAULT, bcrypt_cost: BCRYPT_COST_DEFAULT }
    }
}

/// The options of tokens can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("auth: invalid auth options: {0}")]
pub struct AuthConfigError(pub(super) String);

impl AuthConfig {
    /// What tokens are made and checked with; reads the files that the options name.
    ///
    /// # Errors
    /// See [`AuthConfigError`].
    pub(crate) fn tokens(&self) -> Result<Tokens, AuthConfigError> {
        let (kind, options) = self.token.split_once(',').unwrap_or((&self.token, ""));
        match (kind, options) {
            ("simple", "") => {
                let ttl = if self.token_ttl.is_zero() { TOKEN_TTL_DEFAULT } else { self.token_ttl };
                let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
                Ok(Tokens::Simple(SimpleTokens::new(ttl_ms)))
            }
            _ => Err(AuthConfigError(self.token.clone())),
        }
    }

    pub(crate) fn passwords(&self) -> Passwords {
        let cost = if BCRYPT_COSTS.contains(&self.bcrypt_cost) { self.bcrypt_cost } else { BCRYPT_COST_DEFAULT };
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Passwords::new(cost, (cpus / 2).max(1))
    }

    /// Whether the options can be used.
    ///
    /// # Errors
    /// See [`AuthConfigError`].
    pub fn validate(&self) -> Result<(), AuthConfigError> {
        self.tokens().map(drop)
    }
}
