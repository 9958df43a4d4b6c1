//! Whether a connection comes from where its certificate says, as etcd's members judge each other.

use std::net::IpAddr;

use crate::PeerCertificate;

/// A certificate without names may be used anywhere; one with addresses from those; one with DNS names from where they
/// lead to, and one with a pattern from an address whose own name it stands for.
///
/// # Errors
/// etcd's sentence.
pub(crate) async fn check_address(certificate: &PeerCertificate, remote: IpAddr) -> Result<(), String> {
    let PeerCertificate { dns_names, ip_addresses, .. } = certificate;
    if dns_names.is_empty() && ip_addresses.is_empty() {
        return Ok(());
    }
    let remote = remote.to_canonical();
    if ip_addresses.iter().any(|address| address.to_canonical() == remote) {
        return Ok(());
    }
    if dns_names.is_empty() {
        let own: Vec<_> = ip_addresses.iter().map(IpAddr::to_string).collect();
        return Err(format!("x509: certificate is valid for {}, not {remote}", own.join(", ")));
    }
    let (mut patterns, mut failed) = (Vec::new(), None);
    for name in dns_names {
        if let Some(suffix) = name.strip_prefix("*.") {
            patterns.push(suffix);
            continue;
        }
        match tokio::net::lookup_host((name.as_str(), 0)).await {
            Ok(mut found) => {
                if found.any(|address| address.ip().to_canonical() == remote) {
                    return Ok(());
                }
            }
            Err(error) => failed = Some(format!("lookup {name}: {error}")),
        }
    }
    if !patterns.is_empty() {
        match name_of(remote).await {
            Ok(own) if patterns.iter().any(|suffix| is_directly_below(&own, suffix)) => return Ok(()),
            Ok(_) => {}
            Err(error) => failed = Some(format!("lookup {remote}: {error}")),
        }
    }
    let words = failed.map(|failed| format!(" ({failed})")).unwrap_or_default();
    let quoted: Vec<_> = dns_names.iter().map(|name| format!("{name:?}")).collect();
    Err(format!("tls: \"{remote}\" does not match any of DNSNames [{}]{words}", quoted.join(" ")))
}

/// The name that the system knows an address by.
async fn name_of(address: IpAddr) -> Result<String, String> {
    // The system's resolver blocks.
    let asked = tokio::task::spawn_blocking(move || dns_lookup::lookup_addr(&address)).await;
    asked.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

/// Whether `name` has one label more than `suffix`, and ends with it.
fn is_directly_below(name: &str, suffix: &str) -> bool {
    let above = name.trim_end_matches('.').split_once('.').map(|(_, above)| above);
    above.is_some_and(|above| above.eq_ignore_ascii_case(suffix.trim_end_matches('.')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(dns_names: &[&str], ip_addresses: &[&str]) -> PeerCertificate {
        PeerCertificate {
            dns_names: dns_names.iter().map(|&name| name.to_owned()).collect(),
            ip_addresses: ip_addresses.iter().map(|text| text.parse().expect("an address")).collect(),
            ..PeerCertificate::default()
        }
    }

    #[tokio::test]
    async fn a_certificate_is_used_from_where_it_says() {
        let here: IpAddr = "127.0.0.1".parse().expect("an address");
        let check = |dns: &'static [&str], ips: &'static [&str]| async move {
            check_address(&certificate(dns, ips), here).await
        };
        assert_eq!(check(&[], &[]).await, Ok(()));
        assert_eq!(check(&[], &["10.9.9.9", "127.0.0.1"]).await, Ok(()));
        assert_eq!(check(&["localhost"], &["10.9.9.9"]).await, Ok(()));
        let reason = check(&[], &["10.9.9.9"]).await.expect_err("another address");
        assert_eq!(reason, "x509: certificate is valid for 10.9.9.9, not 127.0.0.1");
        let reason = check(&["10.9.9.8", "*.tailwater.invalid"], &[]).await.expect_err("other names");
        let expected = "tls: \"127.0.0.1\" does not match any of DNSNames [\"10.9.9.8\" \"*.tailwater.invalid\"]";
        assert!(reason.starts_with(expected), "{reason}");
    }

    #[test]
    fn a_pattern_stands_for_one_label() {
        assert!(is_directly_below("a.example.com", "example.com"));
        assert!(is_directly_below("A.Example.com.", "example.com"));
        for other in ["example.com", "a.b.example.com", "aexample.com", ""] {
            assert!(!is_directly_below(other, "example.com"), "{other}");
        }
    }
}
