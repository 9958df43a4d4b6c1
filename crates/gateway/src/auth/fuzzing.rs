//! What must hold of tokens, whatever bytes come.

use bytes::Bytes;
use prost::Message as _;
use tailwater_api::authpb;
use tailwater_consensus::Auth;
use tailwater_eventlog::AuthFacts;

use super::jwt::{JwtConfig, JwtTokens};
use super::simple::SimpleTokens;

const NOW_MS: u64 = 5_000_000;
const SECRET: &[u8] = b"a secret of the operator";

fn rules() -> Auth {
    let user = |name: &str| {
        let user = authpb::User { name: name.into(), password: "hash".into(), ..Default::default() };
        Bytes::from(user.encode_to_vec())
    };
    let users = vec![user("root"), user("u")];
    let token_secret = Bytes::from_static(b"secret");
    Auth::from_facts(&AuthFacts { enabled: true, revision: 3, users, roles: Vec::new(), token_secret })
}

fn jwt() -> JwtTokens {
    let private_key = Some(SECRET.to_vec());
    let config = JwtConfig { sign_method: "HS256".into(), public_key: None, private_key, ttl_seconds: 300 };
    JwtTokens::new(&config).expect("a shared secret")
}

/// A token that nobody with the secret has made: it is nobody's. One byte says where the token of a user is changed, the
/// rest is also taken for a token as it stands.
///
/// # Panics
/// It is somebody's.
#[must_use]
pub fn token(data: &[u8]) -> bool {
    let (rules, simple, jwt) = (rules(), SimpleTokens::new(1000), jwt());
    if let Ok(text) = std::str::from_utf8(data) {
        assert_eq!(simple.user(&rules, text, NOW_MS), None, "nobody has made {text:?}");
        assert_eq!(jwt.caller(text, NOW_MS / 1000), None, "nobody has made {text:?}");
    }
    let [at, byte, rest @ ..] = data else { return false };
    let made = simple.assign(&rules, "u", NOW_MS).expect("a user");
    assert_eq!(simple.user(&rules, &made, NOW_MS).as_deref(), Some("u"));
    let signed = jwt.assign("u", 3, NOW_MS / 1000).expect("a secret");
    assert_eq!(jwt.caller(&signed, NOW_MS / 1000).map(|caller| caller.user).as_deref(), Some("u"));
    for good in [made, signed] {
        let mut bytes = good.clone().into_bytes();
        let at = usize::from(*at) % bytes.len();
        bytes[at] = *byte;
        if rest.first().is_some_and(|first| first & 1 == 1) {
            bytes.splice(at..at, rest.iter().copied());
        }
        let Ok(changed) = String::from_utf8(bytes) else { continue };
        if changed != good {
            assert_eq!(simple.user(&rules, &changed, NOW_MS), None, "{changed} for {good}");
            assert_eq!(jwt.caller(&changed, NOW_MS / 1000), None, "{changed} for {good}");
        }
    }
    true
}

/// Claims under a signature that is right: those of another maker with the same secret. `true` when they name somebody.
#[must_use]
pub fn claims(data: &[u8]) -> bool {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
    use ring::hmac;

    let signed = format!("{}.{}", BASE64.encode(br#"{"alg":"HS256","typ":"JWT"}"#), BASE64.encode(data));
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET), signed.as_bytes());
    let token = format!("{signed}.{}", BASE64.encode(signature));
    jwt().caller(&token, NOW_MS / 1000).is_some()
}
