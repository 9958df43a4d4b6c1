//! What this server reads of a certificate beyond what a handshake needs.

use std::net::IpAddr;

use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::files::trimmed;

/// The certificate that the other side has shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerCertificate {
    /// The subject's common name; empty when it has none.
    pub common_name: String,
    /// DNS names, as they stand.
    pub dns_names: Vec<String>,
    /// IP addresses.
    pub ip_addresses: Vec<IpAddr>,
    /// Big endian, without leading zeros.
    pub(crate) serial: Vec<u8>,
}

impl PeerCertificate {
    /// Reads a certificate; `None` when it can't be read.
    #[must_use]
    pub fn read(der: &[u8]) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(der).ok()?;
        let mut read = Self { serial: trimmed(parsed.raw_serial()), ..Self::default() };
        // The last one counts, as in Go.
        if let Some(name) = parsed.subject().iter_common_name().last() {
            name.as_str().unwrap_or_default().clone_into(&mut read.common_name);
        }
        let names = parsed.subject_alternative_name().ok()?;
        for name in names.iter().flat_map(|extension| &extension.value.general_names) {
            match name {
                GeneralName::DNSName(name) => read.dns_names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => read.ip_addresses.extend(address(bytes)),
                _ => {}
            }
        }
        Some(read)
    }

    /// The SubjectPublicKeyInfo of a certificate, DER; `None` when it can't be read.
    #[must_use]
    pub fn public_key_info(der: &[u8]) -> Option<Vec<u8>> {
        let (_, parsed) = X509Certificate::from_der(der).ok()?;
        Some(parsed.public_key().raw.to_vec())
    }

    /// Whether it is valid for a host: an address, or a name that one of its names or patterns stands for.
    #[must_use]
    pub fn is_valid_for(&self, host: &str) -> bool {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        match bare.parse::<IpAddr>() {
            Ok(address) => self.ip_addresses.contains(&address),
            Err(_) => self.dns_names.iter().any(|pattern| matches_host(pattern, host)),
        }
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// RFC 6125 as Go reads it: a star stands for the whole first label and nothing else.
fn matches_host(pattern: &str, host: &str) -> bool {
    let host = host.trim_end_matches('.');
    if host.is_empty() || pattern.is_empty() {
        return false;
    }
    let (patterns, labels): (Vec<&str>, Vec<&str>) = (pattern.split('.').collect(), host.split('.').collect());
    let pairs = || patterns.iter().zip(&labels).enumerate();
    patterns.len() == labels.len()
        && pairs().all(|(at, (pattern, label))| (at == 0 && *pattern == "*") || pattern.eq_ignore_ascii_case(label))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_matched_as_go_matches_them() {
        let certificate = PeerCertificate {
            dns_names: vec!["*.example.com".into(), "Localhost".into()],
            ip_addresses: vec!["10.0.0.1".parse().expect("an address"), "::1".parse().expect("an address")],
            ..PeerCertificate::default()
        };
        for host in ["a.example.com", "A.Example.COM.", "localhost", "10.0.0.1", "[::1]", "::1"] {
            assert!(certificate.is_valid_for(host), "{host}");
        }
        for host in ["example.com", "a.b.example.com", "10.0.0.2", "", "localhost2"] {
            assert!(!certificate.is_valid_for(host), "{host}");
        }
    }

    #[test]
    fn rubbish_is_no_certificate() {
        assert_eq!(PeerCertificate::read(b""), None);
        assert_eq!(PeerCertificate::read(&[0x30, 0x80, 1, 2]), None);
    }
}
