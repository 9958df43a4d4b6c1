use super::*;

macro_rules! key {
    ($name:literal) => {
        Some(include_bytes!(concat!("../../../testdata/jwt/", $name)).to_vec())
    };
}

const NOW: u64 = 1_800_000_000;

fn config(sign_method: &str, private_key: Option<Vec<u8>>, public_key: Option<Vec<u8>>) -> JwtConfig {
    JwtConfig { sign_method: sign_method.into(), private_key, public_key, ttl_seconds: 300 }
}

fn tokens(sign_method: &str, private_key: Option<Vec<u8>>, public_key: Option<Vec<u8>>) -> JwtTokens {
    JwtTokens::new(&config(sign_method, private_key, public_key)).expect("usable keys")
}

fn caller(user: &str, auth_revision: u64) -> Option<Caller> {
    Some(Caller { user: user.into(), auth_revision })
}

#[test]
fn each_method_signs_what_its_public_key_knows() {
    let rsa =
        ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"].map(|method| (method, key!("rsa.pem"), key!("rsa.pub")));
    let others = [
        ("RS256", key!("rsa-pkcs1.pem"), key!("rsa-pkcs1.pub")),
        ("ES256", key!("p256.pem"), key!("p256.pub")),
        ("ES256", key!("p256-sec1.pem"), key!("p256.pub")),
        ("ES384", key!("p384.pem"), key!("p384.pub")),
        ("EdDSA", key!("ed25519.pem"), key!("ed25519.pub")),
    ];
    for (method, private, public) in rsa.into_iter().chain(others) {
        let signing = tokens(method, private.clone(), public.clone());
        let verifying = tokens(method, None, public);
        let token = signing.assign("u", 7, NOW).expect("signed");
        assert_eq!(verifying.caller(&token, NOW), caller("u", 7), "{method}");
        assert_eq!(verifying.caller(&token, NOW + 299), caller("u", 7));
        assert_eq!(verifying.caller(&token, NOW + 300), None);
        assert_eq!(verifying.assign("u", 7, NOW), None, "only a private key signs");
        // Another user in the same token.
        let (head, rest) = token.split_once('.').expect("three parts");
        let (_, signature) = rest.split_once('.').expect("three parts");
        let claims = BASE64.encode(format!(r#"{{"exp":{},"revision":7,"username":"root"}}"#, NOW + 300));
        assert_eq!(verifying.caller(&format!("{head}.{claims}.{signature}"), NOW), None);
    }
}

#[test]
fn a_shared_secret_signs_and_knows() {
    for method in ["HS256", "HS384", "HS512"] {
        let tokens = tokens(method, Some(b"secret".to_vec()), None);
        let token = tokens.assign("u", 1, NOW).expect("signed");
        assert_eq!(tokens.caller(&token, NOW), caller("u", 1));
        assert_eq!(self::tokens(method, Some(b"other".to_vec()), None).caller(&token, NOW), None);
    }
}

/// The classic: a token that says itself how it is to be checked.
#[test]
fn the_method_is_what_was_agreed_on() {
    let rsa = tokens("RS256", None, key!("rsa.pub"));
    let public = keys::public_key(&keys::pem_block(&key!("rsa.pub").expect("there")).expect("PEM").1).expect("a key");
    for secret in [public, key!("rsa.pub").expect("there")] {
        let forged = tokens("HS256", Some(secret), None).assign("root", 1, NOW).expect("signed");
        assert_eq!(rsa.caller(&forged, NOW), None);
    }
    let claims = BASE64.encode(r#"{"revision":1,"username":"root"}"#);
    for head in [r#"{"alg":"none"}"#, r#"{"alg":"RS256"}"#, r#"{"alg":""}"#, "{}", "?"] {
        let head = BASE64.encode(head);
        for token in [format!("{head}.{claims}."), format!("{head}.{claims}"), format!("{head}.{claims}.AAAA")] {
            assert_eq!(rsa.caller(&token, NOW), None, "{token}");
        }
    }
    for noise in ["", ".", "..", "...", "a.b.c"] {
        assert_eq!(rsa.caller(noise, NOW), None);
    }
}

#[test]
fn what_others_claim_is_read_as_etcd_reads_it() {
    let secret = hmac::Key::new(hmac::HMAC_SHA256, b"secret");
    let tokens = tokens("HS256", Some(b"secret".to_vec()), None);
    let found = |claims: &str| {
        let signed = format!("{}.{}", BASE64.encode(r#"{"typ":"JWT","alg":"HS256"}"#), BASE64.encode(claims));
        let token = format!("{signed}.{}", BASE64.encode(hmac::sign(&secret, signed.as_bytes())));
        tokens.caller(&token, NOW)
    };
    assert_eq!(found(r#"{"username":"u","revision":3.0,"more":[]}"#), caller("u", 3));
    assert_eq!(found(r#"{"username":"u","revision":-1}"#), caller("u", 0));
    for refused in [
        r#"{"username":"u"}"#,
        r#"{"revision":1}"#,
        r#"{"username":"u","revision":"1"}"#,
        r#"{"username":7,"revision":1}"#,
        r#"{"username":"u","revision":1,"exp":1}"#,
        r#"{"username":"u","revision":1,"exp":"never"}"#,
        r#"{"username":"u","revision":1,"nbf":1900000000}"#,
    ] {
        assert_eq!(found(refused), None, "{refused}");
    }
}

#[test]
fn a_public_key_may_stand_in_a_certificate() {
    let token = tokens("RS256", key!("rsa.pem"), key!("rsa.crt")).assign("u", 3, NOW).expect("signed");
    let verifier = tokens("RS256", None, key!("rsa.crt"));
    assert_eq!(verifier.caller(&token, NOW).map(|caller| caller.user), Some("u".to_owned()));
}

#[test]
fn keys_that_cannot_be_used_are_named() {
    let refused = |method, private, public| JwtTokens::new(&config(method, private, public)).err().expect("refused");
    assert_eq!(refused("RS256", None, None), "missing key data");
    assert_eq!(refused("HS256", None, key!("rsa.pub")), "a priv-key is needed");
    assert!(refused("ES512", key!("p256.pem"), None).starts_with("sign-method \"ES512\" is none of RS256"));
    assert_eq!(refused("ES256", key!("p256.pem"), key!("p384.pub")), "public and private keys don't match");
    assert_eq!(refused("RS256", Some(b"x".to_vec()), None), "the priv-key is no PEM file");
    assert_eq!(refused("RS256", None, Some(b"x".to_vec())), "the pub-key is no PEM file");
    assert!(refused("RS256", key!("p256.pem"), None).starts_with("the priv-key is no RSA key"));
    assert!(refused("ES384", key!("p256.pem"), None).starts_with("the priv-key is none of the method's curve"));
    assert!(refused("EdDSA", key!("rsa.pem"), None).starts_with("the priv-key is no Ed25519 key"));
}
