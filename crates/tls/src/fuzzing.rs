//! What must hold of certificates, keys and revocation lists, whatever bytes they are. Called by the fuzz targets and by
//! the tests that replay what those have found.

use std::path::Path;

use crate::PeerCertificate;
use crate::files::{certificates_in, key_in, revoked_in, trimmed};

/// Hosts and patterns that certificates are asked for.
const HOSTS: [&str; 6] = ["a.example.com", "localhost", "10.0.0.1", "[::1]", "", "*.example.com"];

/// A certificate.
///
/// # Panics
/// Its names are none that are asked for in another way.
#[must_use]
pub fn certificate(der: &[u8]) -> bool {
    let Some(read) = PeerCertificate::read(der) else { return false };
    assert_eq!(trimmed(&read.serial), read.serial, "a serial number has one form");
    let _asked = HOSTS.map(|host| read.is_valid_for(host));
    for address in &read.ip_addresses {
        assert!(read.is_valid_for(&address.to_string()), "{address} of {read:?}");
    }
    true
}

/// Files: certificates, a key and a revocation list, in whatever form.
///
/// # Panics
/// A list in PEM form says something else than in its own.
#[must_use]
pub fn files(bytes: &[u8]) -> bool {
    let path = Path::new("file");
    let mut known = key_in(path, bytes).is_ok();
    if let Ok(found) = certificates_in(path, bytes) {
        known = true;
        found.iter().for_each(|der| drop(PeerCertificate::read(der)));
    }
    if let Ok(serials) = revoked_in(path, bytes) {
        assert!(serials.iter().all(|serial| trimmed(serial) == *serial), "a serial number has one form");
        known = true;
    }
    known
}
