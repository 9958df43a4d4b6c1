//! JSON web tokens: signed by a key that the operator gives, so that they can also be made elsewhere.
//!
//! A token names a user and the auth revision that it was made at. Once users or roles have changed it is refused with
//! "revision of auth store is old", and its client logs in again; so it is in etcd, too.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair};
use ring::{hmac, rsa};
use serde::{Deserialize, Serialize};
use tailwater_api::write::Caller;
use tailwater_tls::PeerCertificate;

use super::keys;

/// How tokens are signed and checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JwtConfig {
    /// RS, PS or HS with 256, 384 or 512; ES256, ES384; EdDSA.
    pub sign_method: String,
    /// The file of the public key; alone it can check tokens and make none.
    pub public_key: Option<Vec<u8>>,
    /// The file of the private key, or of the shared secret of an HS method.
    pub private_key: Option<Vec<u8>>,
    /// Seconds that a token lives. Default 300.
    pub ttl_seconds: u64,
}

/// The methods that are known. etcd's ES512 is missing: the library that signs does not know its curve.
const SIGN_METHODS: &str = "RS256 RS384 RS512 PS256 PS384 PS512 ES256 ES384 HS256 HS384 HS512 EdDSA";

/// Makes and checks tokens.
pub(crate) struct JwtTokens {
    method: String,
    signer: Option<Signer>,
    verifier: Verifier,
    ttl_seconds: u64,
}

enum Signer {
    Rsa(Box<RsaKeyPair>, &'static dyn signature::RsaEncoding),
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Hmac(hmac::Key),
}

enum Verifier {
    Public(&'static dyn signature::VerificationAlgorithm, Vec<u8>),
    Hmac(hmac::Key),
}

#[derive(Deserialize)]
struct Header {
    alg: String,
}

/// In the order in which Go writes them.
#[derive(Serialize)]
struct Claims<'a> {
    exp: u64,
    revision: u64,
    username: &'a str,
}

/// As they may come from another maker.
#[derive(Deserialize)]
struct Claimed {
    exp: Option<f64>,
    nbf: Option<f64>,
    revision: f64,
    username: String,
}

impl JwtTokens {
    /// # Errors
    /// The method is unknown, or the keys are missing, unreadable, or none of one pair.
    pub(super) fn new(config: &JwtConfig) -> Result<Self, String> {
        let method = config.sign_method.clone();
        let (signer, verifier) = match method.as_str() {
            "HS256" => shared_secret(hmac::HMAC_SHA256, config)?,
            "HS384" => shared_secret(hmac::HMAC_SHA384, config)?,
            "HS512" => shared_secret(hmac::HMAC_SHA512, config)?,
            "RS256" => rsa(&signature::RSA_PKCS1_SHA256, &signature::RSA_PKCS1_2048_8192_SHA256, config)?,
            "RS384" => rsa(&signature::RSA_PKCS1_SHA384, &signature::RSA_PKCS1_2048_8192_SHA384, config)?,
            "RS512" => rsa(&signature::RSA_PKCS1_SHA512, &signature::RSA_PKCS1_2048_8192_SHA512, config)?,
            "PS256" => rsa(&signature::RSA_PSS_SHA256, &signature::RSA_PSS_2048_8192_SHA256, config)?,
            "PS384" => rsa(&signature::RSA_PSS_SHA384, &signature::RSA_PSS_2048_8192_SHA384, config)?,
            "PS512" => rsa(&signature::RSA_PSS_SHA512, &signature::RSA_PSS_2048_8192_SHA512, config)?,
            "ES256" => {
                let signing = &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
                ecdsa(signing, &signature::ECDSA_P256_SHA256_FIXED, config)?
            }
            "ES384" => {
                let signing = &signature::ECDSA_P384_SHA384_FIXED_SIGNING;
                ecdsa(signing, &signature::ECDSA_P384_SHA384_FIXED, config)?
            }
            "EdDSA" => ed25519(config)?,
            _ => return Err(format!("sign-method {method:?} is none of {SIGN_METHODS}")),
        };
        Ok(Self { method, signer, verifier, ttl_seconds: config.ttl_seconds })
    }

    /// A token of a user. `None`: there is no key to sign with.
    pub(super) fn assign(&self, user: &str, revision: u64, now_seconds: u64) -> Option<String> {
        let signer = self.signer.as_ref()?;
        let claims = Claims { exp: now_seconds.saturating_add(self.ttl_seconds), revision, username: user };
        let claims = serde_json::to_vec(&claims).expect("numbers and a text are JSON");
        let head = format!(r#"{{"alg":"{}","typ":"JWT"}}"#, self.method);
        let signed = format!("{}.{}", BASE64.encode(head), BASE64.encode(claims));
        let signature = signer.sign(signed.as_bytes())?;
        Some(format!("{signed}.{}", BASE64.encode(signature)))
    }

    /// Whom a token names that is good now.
    pub(super) fn caller(&self, token: &str, now_seconds: u64) -> Option<Caller> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (head, claims) = signed.split_once('.')?;
        let header: Header = serde_json::from_slice(&BASE64.decode(head).ok()?).ok()?;
        // Never what the token says, always what was agreed on.
        if header.alg != self.method || !self.verifier.holds(signed.as_bytes(), &BASE64.decode(signature).ok()?) {
            return None;
        }
        let claimed: Claimed = serde_json::from_slice(&BASE64.decode(claims).ok()?).ok()?;
        #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 are far below 2^53")]
        let now = now_seconds as f64;
        if claimed.exp.is_some_and(|exp| now >= exp) || claimed.nbf.is_some_and(|nbf| now < nbf) {
            return None;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it saturates, as a claim may be anything"
        )]
        let auth_revision = claimed.revision as u64;
        Some(Caller { user: claimed.username, auth_revision })
    }
}

impl Signer {
    fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        let random = SystemRandom::new();
        match self {
            Self::Rsa(pair, encoding) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(*encoding, &random, message, &mut signature).ok()?;
                Some(signature)
            }
            Self::Ecdsa(pair) => Some(pair.sign(&random, message).ok()?.as_ref().to_vec()),
            Self::Ed25519(pair) => Some(pair.sign(message).as_ref().to_vec()),
            Self::Hmac(key) => Some(hmac::sign(key, message).as_ref().to_vec()),
        }
    }
}

impl Verifier {
    fn holds(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Public(algorithm, key) => {
                signature::UnparsedPublicKey::new(*algorithm, key).verify(message, signature).is_ok()
            }
            Self::Hmac(key) => hmac::verify(key, message, signature).is_ok(),
        }
    }
}

type Keys = Result<(Option<Signer>, Verifier), String>;

fn shared_secret(algorithm: hmac::Algorithm, config: &JwtConfig) -> Keys {
    let secret = config.private_key.as_ref().filter(|secret| !secret.is_empty()).ok_or("a priv-key is needed")?;
    let key = hmac::Key::new(algorithm, secret);
    Ok((Some(Signer::Hmac(key.clone())), Verifier::Hmac(key)))
}

fn rsa(
    encoding: &'static dyn signature::RsaEncoding,
    verifying: &'static signature::RsaParameters,
    config: &JwtConfig,
) -> Keys {
    let pair = private_block(config)?.map(|(label, der)| {
        let pair = if label == "RSA PRIVATE KEY" { RsaKeyPair::from_der(&der) } else { RsaKeyPair::from_pkcs8(&der) };
        pair.map_err(|error| format!("the priv-key is no RSA key of 2048 bits or more: {error}"))
    });
    let pair: Option<RsaKeyPair> = pair.transpose()?;
    let public = pair.as_ref().map(|pair| {
        let public: &rsa::PublicKey = pair.public();
        public.as_ref().to_vec()
    });
    let public = one_public_key(public, config)?;
    Ok((pair.map(|pair| Signer::Rsa(Box::new(pair), encoding)), Verifier::Public(verifying, public)))
}

fn ecdsa(
    signing: &'static signature::EcdsaSigningAlgorithm,
    verifying: &'static signature::EcdsaVerificationAlgorithm,
    config: &JwtConfig,
) -> Keys {
    let pair = private_block(config)?.map(|(label, der)| {
        let (private, public) =
            keys::ec_private_key(&label, &der).ok_or("the priv-key is no EC key with its public key")?;
        EcdsaKeyPair::from_private_key_and_public_key(signing, &private, &public, &SystemRandom::new())
            .map_err(|error| format!("the priv-key is none of the method's curve: {error}"))
    });
    let pair: Option<EcdsaKeyPair> = pair.transpose()?;
    let public = one_public_key(pair.as_ref().map(|pair| pair.public_key().as_ref().to_vec()), config)?;
    Ok((pair.map(Signer::Ecdsa), Verifier::Public(verifying, public)))
}

fn ed25519(config: &JwtConfig) -> Keys {
    let pair = private_block(config)?.map(|(_, der)| {
        Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der)
            .map_err(|error| format!("the priv-key is no Ed25519 key: {error}"))
    });
    let pair: Option<Ed25519KeyPair> = pair.transpose()?;
    let public = one_public_key(pair.as_ref().map(|pair| pair.public_key().as_ref().to_vec()), config)?;
    Ok((pair.map(Signer::Ed25519), Verifier::Public(&signature::ED25519, public)))
}

fn private_block(config: &JwtConfig) -> Result<Option<(String, Vec<u8>)>, String> {
    let Some(file) = &config.private_key else { return Ok(None) };
    keys::pem_block(file).map(Some).ok_or_else(|| "the priv-key is no PEM file".to_owned())
}

/// The key that tokens are checked with: of the private key, which the other must match, else the other.
fn one_public_key(own: Option<Vec<u8>>, config: &JwtConfig) -> Result<Vec<u8>, String> {
    let given = match &config.public_key {
        None => None,
        Some(file) => {
            let (label, der) = keys::pem_block(file).ok_or("the pub-key is no PEM file")?;
            let key = match label.as_str() {
                "RSA PUBLIC KEY" => Some(der),
                // etcd takes the key out of a certificate, too.
                "CERTIFICATE" => PeerCertificate::public_key_info(&der).and_then(|info| keys::public_key(&info)),
                _ => keys::public_key(&der),
            };
            Some(key.ok_or("the pub-key is no public key")?)
        }
    };
    match (own, given) {
        (Some(own), Some(given)) if own != given => Err("public and private keys don't match".into()),
        (Some(key), _) | (None, Some(key)) => Ok(key),
        (None, None) => Err("missing key data".into()),
    }
}

#[cfg(test)]
mod tests;
