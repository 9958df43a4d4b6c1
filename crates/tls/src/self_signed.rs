//! Certificates that a process makes for itself: `--auto-tls`, `--peer-auto-tls`.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use time::{Duration, OffsetDateTime};

use crate::files::TlsError;

const DAYS_IN_YEAR: i64 = 365;

/// The certificate and the key in `dir`, made when they are not there: valid from now for `years`, for the hosts given (names or
/// addresses), and for both sides of a connection.
///
/// # Errors
/// The directory can't be written, or a host is no name.
pub fn self_signed(dir: &Path, hosts: &[String], years: u32) -> Result<(PathBuf, PathBuf), TlsError> {
    let (cert_file, key_file) = (dir.join("cert.pem"), dir.join("key.pem"));
    if cert_file.exists() && key_file.exists() {
        return Ok((cert_file, key_file));
    }
    let library = |error: rcgen::Error| TlsError::Library(format!("cannot make a certificate: {error}"));
    let mut params = CertificateParams::new(hosts.to_vec()).map_err(library)?;
    let now = OffsetDateTime::now_utc();
    params.not_before = now;
    params.not_after = now + Duration::days(DAYS_IN_YEAR) * i32::try_from(years).unwrap_or(i32::MAX / 1000);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "etcd");
    params.key_usages = vec![KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().map_err(library)?;
    let certificate = params.self_signed(&key).map_err(library)?;
    let open = |path: &Path, error: std::io::Error| TlsError::Open { path: path.to_owned(), reason: error.to_string() };
    fs::create_dir_all(dir).map_err(|error| open(dir, error))?;
    // The key first: who finds a certificate finds its key.
    for (path, text) in [(&key_file, key.serialize_pem()), (&cert_file, certificate.pem())] {
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
        file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|error| open(path, error))?;
    }
    Ok((cert_file, key_file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ServerTls, TlsConfig};

    #[test]
    fn a_certificate_is_made_once_and_can_be_served() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = dir.path().join("fixtures/client");
        let hosts = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let (cert, key) = self_signed(&at, &hosts, 1).expect("made");
        let first = fs::read(&cert).expect("written");
        assert_eq!(self_signed(&at, &hosts, 1).expect("there"), (cert.clone(), key.clone()));
        assert_eq!(fs::read(&cert).expect("still there"), first);
        let config = TlsConfig { cert_file: Some(cert), key_file: Some(key), ..TlsConfig::default() };
        ServerTls::new(&config).expect("usable");
    }
}
