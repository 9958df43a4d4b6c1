//! Authorities and certificates for tests, as files.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use tailwater_tls::{ClientTls, TlsConfig};
use time::{Duration, OffsetDateTime};

/// An authority, and where its certificates are written.
pub(crate) struct Authority {
    dir: PathBuf,
    name: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate to be made.
#[derive(Clone, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) common_name: &'a str,
    pub(crate) hosts: &'a [&'a str],
    pub(crate) usages: &'a [ExtendedKeyUsagePurpose],
    /// From and until, in days from now.
    pub(crate) days: (i64, i64),
    pub(crate) serial: u64,
}

/// For both sides of a connection on this machine.
pub(crate) const NODE: Wanted<'static> = Wanted {
    common_name: "node",
    hosts: &["127.0.0.1", "localhost"],
    usages: &[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
    days: (-1, 2),
    serial: 7,
};

/// For a client.
pub(crate) const CLIENT: Wanted<'static> =
    Wanted { common_name: "alice", hosts: &[], usages: &[ExtendedKeyUsagePurpose::ClientAuth], ..NODE };

/// A certificate and its key.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl Files {
    /// Puts other files in the place of these, each at once.
    pub(crate) fn become_like(&self, other: &Files) {
        for (from, to) in [(&other.key, &self.key), (&other.cert, &self.cert)] {
            replace(to, &fs::read(from).unwrap());
        }
    }
}

/// Writes a file beside and renames it, as tools that rotate certificates do.
pub(crate) fn replace(file: &Path, bytes: &[u8]) {
    let beside = file.with_extension("new");
    fs::write(&beside, bytes).unwrap();
    fs::rename(&beside, file).unwrap();
}

impl Authority {
    /// Its own certificate is `name`.crt in `dir`.
    pub(crate) fn new(dir: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        fs::write(dir.join(format!("{name}.crt")), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { dir: dir.to_owned(), name: name.to_owned(), issuer: Issuer::new(params, key) }
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.dir.join(format!("{}.crt", self.name))
    }

    /// Signs a certificate, into files named after `file`.
    pub(crate) fn sign(&self, file: &str, wanted: &Wanted<'_>) -> Files {
        let hosts: Vec<String> = wanted.hosts.iter().map(|&host| host.to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, wanted.common_name);
        params.extended_key_usages = wanted.usages.to_vec();
        params.serial_number = Some(SerialNumber::from(wanted.serial));
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) =
            (now + Duration::days(wanted.days.0), now + Duration::days(wanted.days.1));
        let key = KeyPair::generate().unwrap();
        let files = Files { cert: self.dir.join(format!("{file}.crt")), key: self.dir.join(format!("{file}.key")) };
        fs::write(&files.cert, params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    /// A list that revokes the serial number, in DER.
    pub(crate) fn revoke(&self, serial: u64) -> Vec<u8> {
        let now = OffsetDateTime::now_utc();
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: now,
            next_update: now + Duration::days(1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().der().to_vec()
    }

    /// Trusts this authority, and shows these files if there are any.
    pub(crate) fn client(&self, own: Option<&Files>) -> ClientTls {
        ClientTls::new(TlsConfig {
            cert_file: own.map(|own| own.cert.clone()),
            key_file: own.map(|own| own.key.clone()),
            trusted_ca_file: Some(self.file()),
            ..TlsConfig::default()
        })
    }
}
