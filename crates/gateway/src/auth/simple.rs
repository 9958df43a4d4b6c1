//! Simple tokens: made by any process of the cluster, and checked by any, without a word between them.
//!
//! etcd keeps its simple tokens in the memory of each member, put there by a raft entry per login. Here a token says itself
//! whose it is and when it was made, under a signature whose key rests on the secret in the auth state and on the hash of
//! the user's password. So a login costs no raft entry, a fanout knows the token of a member at once, a restart ends none,
//! and a new password, a deleted user, or turning auth off ends all that it concerns.
//!
//! A token lives for the TTL from when it was made or from when this process has seen it last, as in etcd. Who goes to
//! another process with an older one is asked to log in again, which clients do by themselves. The clocks of processes
//! may differ by less than the TTL.
//!
//! Format: `tw1.` + base64url(time, 8 bytes big endian, milliseconds since 1970; 8 random bytes; user) + `.` + base64url
//! (HMAC-SHA-256 of what stands before the second dot).

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use parking_lot::Mutex;
use ring::hmac;
use tailwater_consensus::Auth;

const PREFIX: &str = "tw1.";
/// Time and random bytes before the user.
const HEAD_BYTES: usize = 16;
/// Tokens remembered as seen; those beyond it live for the TTL from when they were made.
const SEEN_MAX: usize = 1 << 16;

/// Makes and checks tokens.
pub(crate) struct SimpleTokens {
    ttl_ms: u64,
    /// When a token was seen last, milliseconds since 1970; by its signature.
    seen: Mutex<HashMap<[u8; 32], u64>>,
}

impl SimpleTokens {
    pub(super) fn new(ttl_ms: u64) -> Self {
        Self { ttl_ms, seen: Mutex::default() }
    }

    /// A token of a user, made now. `None`: there is no such user, or no secret.
    pub(super) fn assign(&self, rules: &Auth, user: &str, now_ms: u64) -> Option<String> {
        let key = key(rules, user)?;
        let mut body = now_ms.to_be_bytes().to_vec();
        body.extend(rand::random::<[u8; 8]>());
        body.extend(user.as_bytes());
        let signed = format!("{PREFIX}{}", BASE64.encode(body));
        let signature = BASE64.encode(hmac::sign(&key, signed.as_bytes()));
        Some(format!("{signed}.{signature}"))
    }

    /// The user of a token that is good now.
    pub(super) fn user(&self, rules: &Auth, token: &str, now_ms: u64) -> Option<String> {
        let (signed, signature) = token.rsplit_once('.')?;
        let body = BASE64.decode(signed.strip_prefix(PREFIX)?).ok()?;
        let signature = BASE64.decode(signature).ok()?;
        let made_ms = u64::from_be_bytes(*body.first_chunk()?);
        let user = String::from_utf8(body.get(HEAD_BYTES..)?.to_vec()).ok()?;
        hmac::verify(&key(rules, &user)?, signed.as_bytes(), &signature).ok()?;
        let signature: [u8; 32] = signature.try_into().ok()?;
        self.is_alive(signature, made_ms, now_ms).then_some(user)
    }

    fn is_alive(&self, signature: [u8; 32], made_ms: u64, now_ms: u64) -> bool {
        let mut seen = self.seen.lock();
        let last_ms = seen.get(&signature).copied().unwrap_or(made_ms);
        // A clock elsewhere may be ahead.
        if last_ms.abs_diff(now_ms) >= self.ttl_ms {
            seen.remove(&signature);
            return false;
        }
        if seen.len() >= SEEN_MAX && !seen.contains_key(&signature) {
            seen.retain(|_, last_ms| last_ms.abs_diff(now_ms) < self.ttl_ms);
        }
        if seen.len() < SEEN_MAX || seen.contains_key(&signature) {
            seen.insert(signature, now_ms.max(last_ms));
        }
        true
    }
}

/// Another for each user, and for each password of it.
fn key(rules: &Auth, user: &str) -> Option<hmac::Key> {
    let secret = rules.token_secret();
    let stored = rules.user(user)?;
    if secret.is_empty() {
        return None;
    }
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret));
    context.update(&(user.len() as u64).to_be_bytes());
    context.update(user.as_bytes());
    context.update(&stored.password);
    Some(hmac::Key::new(hmac::HMAC_SHA256, context.sign().as_ref()))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message;
    use tailwater_api::authpb;
    use tailwater_eventlog::AuthFacts;

    use super::*;

    const TTL: u64 = 1000;

    fn rules(secret: &'static str, users: &[(&str, &str)]) -> Auth {
        let user = |(name, password): &(&str, &str)| {
            let user = authpb::User { name: (*name).into(), password: (*password).into(), ..Default::default() };
            Bytes::from(user.encode_to_vec())
        };
        let users = users.iter().map(user).collect();
        Auth::from_facts(&AuthFacts { enabled: true, revision: 3, users, roles: vec![], token_secret: secret.into() })
    }

    #[test]
    fn any_process_with_the_secret_knows_the_user() {
        let rules_here = rules("s", &[("u", "hash"), ("v", "hash")]);
        let token = SimpleTokens::new(TTL).assign(&rules_here, "u", 5000).expect("made");
        let elsewhere = SimpleTokens::new(TTL);
        assert_eq!(elsewhere.user(&rules_here, &token, 5900).as_deref(), Some("u"));
        for changed in
            [rules("t", &[("u", "hash")]), rules("s", &[("u", "new")]), rules("s", &[]), rules("", &[("u", "hash")])]
        {
            assert_eq!(elsewhere.user(&changed, &token, 5900), None);
        }
        assert_eq!(elsewhere.assign(&rules_here, "stranger", 0), None);
    }

    #[test]
    fn a_changed_token_is_none() {
        let rules = rules("s", &[("u", "hash"), ("t", "hash")]);
        let tokens = SimpleTokens::new(TTL);
        let token = tokens.assign(&rules, "u", 5000).expect("made");
        for at in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).expect("letters");
            assert_eq!(tokens.user(&rules, &changed, 5000), None, "{changed}");
        }
        for bad in ["", ".", "tw1.", "tw1..", "abcdefghijklmnop.17", "tw1.AAAA.AAAA", &token[1..], &format!("{token}A")]
        {
            assert_eq!(tokens.user(&rules, bad, 5000), None, "{bad}");
        }
    }

    #[test]
    fn a_token_lives_as_long_as_it_is_used() {
        let rules = rules("s", &[("u", "hash")]);
        let (used, unused) = (SimpleTokens::new(TTL), SimpleTokens::new(TTL));
        let token = used.assign(&rules, "u", 5000).expect("made");
        for now in [5000, 5999, 6998, 7900] {
            assert!(used.user(&rules, &token, now).is_some(), "{now}");
        }
        assert_eq!(unused.user(&rules, &token, 6000), None);
        assert_eq!(used.user(&rules, &token, 8900), None);
        assert_eq!(used.user(&rules, &token, 8901), None);
        // A clock that is a little behind.
        assert!(SimpleTokens::new(TTL).user(&rules, &token, 4001).is_some());
        assert!(SimpleTokens::new(TTL).user(&rules, &token, 4000).is_none());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let tokens = SimpleTokens::new(TTL);
        for count in 0..=SEEN_MAX {
            let mut signature = [0; 32];
            signature[..8].copy_from_slice(&count.to_be_bytes());
            assert!(tokens.is_alive(signature, 5000, 5000));
        }
        assert_eq!(tokens.seen.lock().len(), SEEN_MAX);
        assert!(tokens.is_alive([1; 32], 6500, 6500));
        assert_eq!(tokens.seen.lock().len(), 1);
    }
}
