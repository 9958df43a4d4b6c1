//! `--auth-token` and its options: etcd's "simple" or "jwt,pub-key=FILE,priv-key=FILE,sign-method=METHOD,ttl=DURATION".

use std::collections::BTreeMap;
use std::time::Duration;

use tailwater_gateway::{AuthConfig, JwtConfig, TokenConfig};

use crate::duration;
use crate::flags::Flags;

/// Of a JSON web token without `ttl`.
const JWT_TTL_DEFAULT: Duration = Duration::from_secs(300);
const JWT_OPTIONS: [&str; 4] = ["sign-method", "pub-key", "priv-key", "ttl"];

/// Checks the flags and reads the files that they name.
///
/// # Errors
/// One sentence that names the flag and says what is wrong.
pub(crate) fn parse(flags: &Flags) -> Result<AuthConfig, String> {
    let ttl = Duration::from_secs(flags.auth_token_ttl.into());
    let token = token(&flags.auth_token, ttl).map_err(|reason| format!("--auth-token: {reason}"))?;
    let config = AuthConfig { token, bcrypt_cost: flags.bcrypt_cost };
    config.validate().map_err(|error| format!("--auth-token: {error}"))?;
    Ok(config)
}

fn token(text: &str, ttl: Duration) -> Result<TokenConfig, String> {
    let mut parts = text.split(',');
    let kind = parts.next().unwrap_or_default();
    let mut options = BTreeMap::new();
    for part in parts {
        let (name, value) = part.split_once('=').ok_or_else(|| format!("{part:?} is not NAME=VALUE"))?;
        if value.contains('=') || options.insert(name, value).is_some() {
            return Err(format!("{name:?} is given twice or has no value"));
        }
    }
    match kind {
        "" => Ok(TokenConfig::None),
        "simple" => Ok(TokenConfig::Simple(ttl)),
        "jwt" => jwt(&options).map(TokenConfig::Jwt),
        _ => Err(format!("{kind:?} is neither simple nor jwt")),
    }
}

fn jwt(options: &BTreeMap<&str, &str>) -> Result<JwtConfig, String> {
    for name in options.keys().filter(|name| !JWT_OPTIONS.contains(name)) {
        tracing::warn!(option = name, "unknown JWT option");
    }
    let given = |name: &str| options.get(name).copied().filter(|value| !value.is_empty());
    let file = |name: &str| given(name).map(|path| std::fs::read(path).map_err(|error| format!("{path}: {error}")));
    let ttl = given("ttl").map_or(Ok(JWT_TTL_DEFAULT), duration::parse)?;
    Ok(JwtConfig {
        sign_method: given("sign-method").unwrap_or_default().to_owned(),
        public_key: file("pub-key").transpose()?,
        private_key: file("priv-key").transpose()?,
        ttl_seconds: ttl.as_secs(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kinds_are_etcds() {
        let ttl = Duration::from_secs(5);
        assert_eq!(token("simple", ttl), Ok(TokenConfig::Simple(ttl)));
        assert_eq!(token("", ttl), Ok(TokenConfig::None));
        for bad in
            ["complex", "jwt,pub-key", "jwt,ttl=1s,ttl=2s", "jwt,ttl=x", "jwt,priv-key=/nowhere/at/all", "jwt,a=b=c"]
        {
            assert!(token(bad, ttl).is_err(), "{bad}");
        }
    }

    #[test]
    fn options_and_files_are_read() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "secret").expect("written");
        let text = format!("jwt,priv-key={},sign-method=HS256,ttl=1m", file.path().display());
        let expected = JwtConfig {
            sign_method: "HS256".into(),
            public_key: None,
            private_key: Some(b"secret".to_vec()),
            ttl_seconds: 60,
        };
        assert_eq!(token(&text, Duration::ZERO), Ok(TokenConfig::Jwt(expected)));
    }
}
