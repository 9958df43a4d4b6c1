//! Certificates, keys and revocation lists.

use tailwater_gateway::{AuthConfig, JwtConfig, TokenConfig};
use tailwater_tls::fuzzing;

const SIGN_METHODS: [&str; 7] = ["RS256", "PS512", "ES256", "ES384", "HS256", "EdDSA", "none"];

/// The first byte says what the rest is: a certificate, a file, a private key of tokens, a public one.
pub(crate) fn check(data: &[u8]) -> bool {
    let Some((&kind, rest)) = data.split_first() else { return false };
    match kind % 4 {
        0 => fuzzing::certificate(rest),
        1 => fuzzing::files(rest),
        2 => token_key(kind, Some(rest), None),
        _ => token_key(kind, None, Some(rest)),
    }
}

fn token_key(kind: u8, private: Option<&[u8]>, public: Option<&[u8]>) -> bool {
    let sign_method = SIGN_METHODS[usize::from(kind / 4) % SIGN_METHODS.len()].to_owned();
    let jwt = JwtConfig {
        sign_method,
        private_key: private.map(<[u8]>::to_vec),
        public_key: public.map(<[u8]>::to_vec),
        ttl_seconds: 1,
    };
    AuthConfig { token: TokenConfig::Jwt(jwt), ..AuthConfig::default() }.validate().is_ok()
}

/// Made anew each time, since keys are random.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
    let ed25519 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
    let names = ["*.example.com", "localhost", "10.0.0.1", "::1"].map(str::to_owned);
    let mut params = rcgen::CertificateParams::new(names).expect("names");
    params.distinguished_name.push(rcgen::DnType::CommonName, "name");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).expect("signed");
    let when = rcgen::date_time_ymd(2026, 1, 1);
    let revoked = rcgen::RevokedCertParams {
        serial_number: vec![0, 1, 2].into(),
        revocation_time: when,
        reason_code: None,
        invalidity_date: None,
    };
    let list = rcgen::CertificateRevocationListParams {
        this_update: when,
        next_update: rcgen::date_time_ymd(2027, 1, 1),
        crl_number: vec![1].into(),
        issuing_distribution_point: None,
        revoked_certs: vec![revoked],
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&rcgen::Issuer::from_params(&params, &key)).expect("signed");
    let seed = |kind: u8, bytes: &[u8]| [&[kind][..], bytes].concat();
    let method = |name: &str| {
        let at = SIGN_METHODS.iter().position(|known| *known == name).expect("a method");
        u8::try_from(at * 4).expect("there are few")
    };
    vec![
        seed(0, certificate.der()),
        seed(1, certificate.pem().as_bytes()),
        seed(1, list.der()),
        seed(1, list.pem().expect("text").as_bytes()),
        seed(1, key.serialize_pem().as_bytes()),
        seed(method("ES256") + 2, key.serialize_pem().as_bytes()),
        seed(method("EdDSA") + 2, ed25519.serialize_pem().as_bytes()),
        seed(method("ES256") + 3, key.public_key_pem().as_bytes()),
    ]
}
