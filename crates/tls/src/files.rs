//! The files that TLS is configured by: read, and looked at for changes.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use x509_parser::prelude::{CertificateRevocationList, FromDer as _};

/// TLS can't be used as it is configured. The sentences are etcd's where it has one.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("open {path}: {reason}")]
    Open {
        /// As given.
        path: PathBuf,
        /// In the system's words.
        reason: String,
    },
    /// A file holds something else.
    #[error("{path}: {reason}")]
    Content {
        /// As given.
        path: PathBuf,
        /// What is expected.
        reason: String,
    },
    /// One of the two is missing.
    #[error("KeyFile and CertFile must both be present[key: {key}, cert: {cert}]")]
    Pair {
        /// As given.
        key: String,
        /// As given.
        cert: String,
    },
    /// The key is of another certificate.
    #[error("tls: private key does not match public key")]
    KeyMismatch,
    /// Two rules that exclude each other.
    #[error("AllowedCNs and AllowedHostnames are mutually exclusive (cns={cns:?}, hostnames={hostnames:?})")]
    Rules {
        /// Of one rule.
        cns: Vec<String>,
        /// Of the other.
        hostnames: Vec<String>,
    },
    /// What the machine trusts can't be found out, or is nothing.
    #[error("no certificate that this machine trusts was found; name a CA file")]
    NoRoots,
    /// The library refuses the configuration.
    #[error("{0}")]
    Library(String),
}

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> Self {
        match error {
            rustls::Error::InconsistentKeys(_) => Self::KeyMismatch,
            error => Self::Library(error.to_string()),
        }
    }
}

/// A certificate with its chain, and its key.
pub(crate) struct Pair {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

/// What a file was when it was looked at; another file, or other content, has another stamp.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// `None` while there is no file that can be looked at.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        Some(Self {
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|error| TlsError::Open { path: path.to_owned(), reason: words(&error) })
}

/// The system's words without Rust's number.
fn words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file or directory".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        _ => error.to_string(),
    }
}

fn content(path: &Path, reason: impl Into<String>) -> TlsError {
    TlsError::Content { path: path.to_owned(), reason: reason.into() }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    certificates_in(path, &read(path)?)
}

/// The certificates of a file's content.
pub(crate) fn certificates_in(path: &Path, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    let found = read.map_err(|error| content(path, format!("not PEM: {error}")))?;
    if found.is_empty() {
        return Err(content(path, "holds no certificate in PEM form"));
    }
    Ok(found)
}

/// Reads a certificate and its key; none when neither is given.
pub(crate) fn pair(cert: Option<&PathBuf>, key: Option<&PathBuf>) -> Result<Option<Pair>, TlsError> {
    let (cert, key) = match (cert, key) {
        (None, None) => return Ok(None),
        (Some(cert), Some(key)) => (cert, key),
        (cert, key) => {
            let text = |path: Option<&PathBuf>| path.map(|path| path.display().to_string()).unwrap_or_default();
            return Err(TlsError::Pair { key: text(key), cert: text(cert) });
        }
    };
    let chain = certificates(cert)?;
    let key = key_in(key, &read(key)?)?;
    Ok(Some(Pair { chain, key }))
}

/// The key of a file's content.
pub(crate) fn key_in(path: &Path, bytes: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(bytes)
        .map_err(|error| content(path, format!("holds no private key in PEM form: {error}")))
}

/// Reads who is trusted: a file, or else what the machine trusts. Returned beside: the certificates themselves.
pub(crate) fn roots(path: Option<&PathBuf>) -> Result<(RootCertStore, BTreeSet<Vec<u8>>), TlsError> {
    let mut store = RootCertStore::empty();
    let Some(path) = path else {
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return if store.is_empty() { Err(TlsError::NoRoots) } else { Ok((store, BTreeSet::new())) };
    };
    let mut own = BTreeSet::new();
    for certificate in certificates(path)? {
        own.insert(certificate.to_vec());
        store.add(certificate).map_err(|error| content(path, error.to_string()))?;
    }
    Ok((store, own))
}

/// Reads the serial numbers of a revocation list, big endian and without leading zeros.
pub(crate) fn revoked(path: Option<&PathBuf>) -> Result<BTreeSet<Vec<u8>>, TlsError> {
    let Some(path) = path else { return Ok(BTreeSet::new()) };
    revoked_in(path, &read(path)?)
}

/// The serial numbers of a file's content.
pub(crate) fn revoked_in(path: &Path, bytes: &[u8]) -> Result<BTreeSet<Vec<u8>>, TlsError> {
    let pem = CertificateRevocationListDer::from_pem_slice(bytes);
    // Not PEM: etcd's own form.
    let der = pem.as_ref().map_or(bytes, |der| der.as_ref());
    let (_, list) = CertificateRevocationList::from_der(der)
        .map_err(|_| content(path, "is no revocation list, neither in DER nor in PEM form"))?;
    let serials = list.iter_revoked_certificates().map(|revoked| trimmed(revoked.raw_serial()));
    Ok(serials.collect())
}

/// A serial number without leading zeros, so that equal numbers are equal bytes.
pub(crate) fn trimmed(serial: &[u8]) -> Vec<u8> {
    serial.iter().copied().skip_while(|byte| *byte == 0).collect()
}
