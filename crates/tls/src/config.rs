//! What the flags say of TLS.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::{CipherSuite, SupportedProtocolVersion, version};

/// Suites that Go, and so etcd, knows by name and that this server does not have: without forward secrecy, without
/// authenticated encryption, or broken.
const UNSERVED_SUITES: &[&str] = &[
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
];

/// TLS of one side: of the client URLs, or of the peer URLs.
#[derive(Clone, Debug, Default)]
pub struct TlsConfig {
    /// The certificate with its chain, as PEM. Served, and shown to others unless there is a `client_cert_file`.
    pub cert_file: Option<PathBuf>,
    /// The key of `cert_file`, as PEM.
    pub key_file: Option<PathBuf>,
    /// What is shown to others instead of `cert_file`.
    pub client_cert_file: Option<PathBuf>,
    /// The key of `client_cert_file`.
    pub client_key_file: Option<PathBuf>,
    /// Who may sign the certificates of the other side. Set: whoever connects must have one.
    pub trusted_ca_file: Option<PathBuf>,
    /// Whoever connects must have a certificate; without `trusted_ca_file` one that the machine trusts.
    pub client_cert_auth: bool,
    /// Serial numbers that are turned away, as DER or PEM.
    pub crl_file: Option<PathBuf>,
    /// Common names of the other side that are let in; none: all. Excludes `allowed_hostnames`.
    pub allowed_cns: Vec<String>,
    /// Host names one of which the other side's certificate must be valid for; none: all.
    pub allowed_hostnames: Vec<String>,
    /// Whether the address that a connection comes from must be one that its certificate names. Default off.
    pub check_remote_address: bool,
    /// The certificate was made by this process: those of others are made likewise, and can't be verified.
    pub is_self_signed: bool,
    /// The suites of TLS 1.2.
    pub cipher_suites: CipherSuites,
    /// The versions to speak.
    pub versions: TlsVersions,
}

impl TlsConfig {
    /// Whether there is a certificate to serve.
    #[must_use]
    pub fn has_certificate(&self) -> bool {
        self.cert_file.is_some() && self.key_file.is_some()
    }

    /// Whether whoever connects must have a certificate.
    #[must_use]
    pub fn wants_client_certificates(&self) -> bool {
        self.client_cert_auth || self.trusted_ca_file.is_some()
    }

    /// The cryptography to use, with the suites that are allowed.
    pub(crate) fn provider(&self) -> Arc<CryptoProvider> {
        let mut provider = ring::default_provider();
        provider.cipher_suites.retain(|suite| self.cipher_suites.allows(suite.suite()));
        Arc::new(provider)
    }
}

/// The suites of TLS 1.2 that may be used; those of TLS 1.3 are all good, and always are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CipherSuites(Option<Vec<CipherSuite>>);

impl CipherSuites {
    /// Reads names as Go spells them. Returned beside: names that are known and not served here. No names: every suite.
    ///
    /// # Errors
    /// A name that etcd does not know either, or no suite is left for TLS 1.2 and nothing but those was named.
    pub fn parse(names: &[String]) -> Result<(Self, Vec<String>), String> {
        if names.is_empty() {
            return Ok((Self(None), Vec::new()));
        }
        let (mut suites, mut unserved) = (Vec::new(), Vec::new());
        for name in names {
            match known(name) {
                Some(suite) => suites.push(suite),
                None if UNSERVED_SUITES.contains(&name.as_str()) => unserved.push(name.clone()),
                None => return Err(format!("unexpected TLS cipher suite {name:?}")),
            }
        }
        if suites.is_empty() {
            return Err(format!("none of the cipher suites is served here: {}", unserved.join(", ")));
        }
        Ok((Self(Some(suites)), unserved))
    }

    /// Whether any were named.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.0.is_some()
    }

    fn allows(&self, suite: CipherSuite) -> bool {
        let is_of_tls13 = suite.as_str().is_some_and(|name| name.starts_with("TLS13_"));
        is_of_tls13 || self.0.as_ref().is_none_or(|allowed| allowed.contains(&suite))
    }
}

/// The suite that Go calls so, where it is served.
fn known(name: &str) -> Option<CipherSuite> {
    // Go's older names leave out the hash.
    let name = match name {
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305" => "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305" => "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        name => name,
    };
    let served = ring::ALL_CIPHER_SUITES.iter().map(|suite| suite.suite());
    let mut named = served.filter(|suite| suite.as_str().is_some_and(|own| own.replace("TLS13_", "TLS_") == name));
    named.next()
}

/// The versions of TLS to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsVersions {
    has_tls12: bool,
    has_tls13: bool,
}

impl Default for TlsVersions {
    fn default() -> Self {
        Self { has_tls12: true, has_tls13: true }
    }
}

impl TlsVersions {
    /// Reads the flags' words: "TLS1.2", "TLS1.3", or nothing for no bound.
    ///
    /// # Errors
    /// etcd's sentence.
    pub fn parse(min: &str, max: &str, suites: &CipherSuites) -> Result<Self, String> {
        let number = |text: &str| match text {
            "TLS1.2" => Ok(12),
            "TLS1.3" => Ok(13),
            text => Err(format!("unexpected TLS version {text:?} (must be one of: TLS1.2, TLS1.3)")),
        };
        let least = if min.is_empty() { 12 } else { number(min)? };
        let most = if max.is_empty() { 13 } else { number(max)? };
        if least > most {
            return Err(format!("min version ({min}) is greater than max version ({max})"));
        }
        if least == 13 && suites.is_limited() {
            return Err("cipher suites cannot be configured when only TLS1.3 is enabled".into());
        }
        Ok(Self { has_tls12: least == 12, has_tls13: most == 13 })
    }

    pub(crate) fn supported(self) -> Vec<&'static SupportedProtocolVersion> {
        let all = [(self.has_tls13, &version::TLS13), (self.has_tls12, &version::TLS12)];
        all.into_iter().filter_map(|(is_on, version)| is_on.then_some(version)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suites(names: &[&str]) -> Result<(CipherSuites, Vec<String>), String> {
        CipherSuites::parse(&names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn suites_have_gos_names() {
        let (one, unserved) = suites(&["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]).expect("known");
        assert!(unserved.is_empty());
        assert!(one.allows(CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256));
        assert!(!one.allows(CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384));
        assert!(one.allows(CipherSuite::TLS13_AES_256_GCM_SHA384));
        for name in ["TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"] {
            let (chacha, _) = suites(&[name]).expect("known");
            assert!(chacha.allows(CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256));
        }
        assert!(suites(&["TLS_AES_128_GCM_SHA256"]).is_ok());
        assert_eq!(suites(&["TLS_FOO"]).expect_err("unknown"), "unexpected TLS cipher suite \"TLS_FOO\"");
    }

    #[test]
    fn suites_that_are_not_served_are_named_and_refused_when_nothing_else_is_left() {
        let old = "TLS_RSA_WITH_AES_128_CBC_SHA";
        let (_, unserved) = suites(&[old, "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"]).expect("one is served");
        assert_eq!(unserved, [old]);
        assert!(suites(&[old]).expect_err("nothing is left").contains(old));
    }

    #[test]
    fn versions_are_bounded_as_etcd_bounds_them() {
        let parse = |min, max| TlsVersions::parse(min, max, &CipherSuites::default());
        assert_eq!(parse("TLS1.2", ""), Ok(TlsVersions::default()));
        assert_eq!(parse("TLS1.3", "").map(|versions| versions.supported().len()), Ok(1));
        assert_eq!(parse("", "TLS1.2").map(|versions| versions.supported().len()), Ok(1));
        let error = parse("TLS1.3", "TLS1.2").expect_err("nothing is left");
        assert_eq!(error, "min version (TLS1.3) is greater than max version (TLS1.2)");
        let error = parse("TLS1.1", "").expect_err("too old");
        assert_eq!(error, "unexpected TLS version \"TLS1.1\" (must be one of: TLS1.2, TLS1.3)");
        let (limited, _) = suites(&["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]).expect("known");
        let error = TlsVersions::parse("TLS1.3", "", &limited).expect_err("they would mean nothing");
        assert_eq!(error, "cipher suites cannot be configured when only TLS1.3 is enabled");
    }
}
