//! Who is let in, and whom this process trusts: the verification of the library, and etcd's rules beyond it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::files::{TlsError, roots};
use crate::{PeerCertificate, TlsConfig};

/// Names that certificates of the other side must have.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    cns: Vec<String>,
    hostnames: Vec<String>,
}

impl Names {
    /// # Errors
    /// Two rules exclude each other.
    pub(crate) fn of(config: &TlsConfig) -> Result<Self, TlsError> {
        let (cns, hostnames) = (config.allowed_cns.clone(), config.allowed_hostnames.clone());
        if !cns.is_empty() && !hostnames.is_empty() {
            return Err(TlsError::Rules { cns, hostnames });
        }
        Ok(Self { cns, hostnames })
    }

    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        if self.cns.is_empty() && self.hostnames.is_empty() {
            return Ok(());
        }
        let read = PeerCertificate::read(certificate).ok_or(CertificateError::BadEncoding)?;
        let is_named = self.cns.contains(&read.common_name);
        if is_named || self.hostnames.iter().any(|host| read.is_valid_for(host)) {
            return Ok(());
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }
}

/// Which use a certificate is shown for.
#[derive(Clone, Copy, Debug)]
enum Use {
    Client,
    Server,
}

/// Certificates that are trusted as they are, whoever has signed them.
#[derive(Debug)]
struct Trusted(BTreeSet<Vec<u8>>);

impl Trusted {
    /// Takes a refusal back that the library gives for a certificate of an authority which is shown as one's own, when
    /// that very certificate is trusted: as people make them with one command, and as etcd takes them.
    fn forgive(&self, error: Error, shown: &CertificateDer<'_>, now: UnixTime, purpose: Use) -> Result<(), Error> {
        // The library has no word of its own for it. Whatever else it is, this very certificate was named as trusted.
        let is_authority = matches!(error, Error::InvalidCertificate(CertificateError::Other(_)));
        if !is_authority || !self.0.contains(shown.as_ref()) {
            return Err(error);
        }
        let (_, read) = X509Certificate::from_der(shown).map_err(|_| CertificateError::BadEncoding)?;
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let instant =
            |seconds: i64| UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)));
        let (from, until) = (read.validity().not_before.timestamp(), read.validity().not_after.timestamp());
        if seconds < from {
            return Err(CertificateError::NotValidYetContext { time: now, not_before: instant(from) }.into());
        }
        if seconds > until {
            return Err(CertificateError::ExpiredContext { time: now, not_after: instant(until) }.into());
        }
        let uses = read.extended_key_usage().map_err(|_| CertificateError::BadEncoding)?;
        let is_meant = uses.is_none_or(|uses| {
            let uses = uses.value;
            uses.any
                || match purpose {
                    Use::Client => uses.client_auth,
                    Use::Server => uses.server_auth,
                }
        });
        if is_meant { Ok(()) } else { Err(CertificateError::InvalidPurpose.into()) }
    }
}

/// Judges those who connect.
#[derive(Debug)]
pub(crate) struct Clients {
    library: Arc<dyn ClientCertVerifier>,
    trusted: Trusted,
    names: Names,
}

impl Clients {
    /// Reads who is trusted.
    ///
    /// # Errors
    /// The file can't be used, or the rules exclude each other.
    pub(crate) fn new(config: &TlsConfig, provider: &Arc<CryptoProvider>) -> Result<Self, TlsError> {
        let (store, own) = roots(config.trusted_ca_file.as_ref())?;
        let builder = WebPkiClientVerifier::builder_with_provider(store.into(), provider.clone());
        let library = builder.build().map_err(|error| TlsError::Library(error.to_string()))?;
        Ok(Self { library, trusted: Trusted(own), names: Names::of(config)? })
    }
}

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.library.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let judged = self.library.verify_client_cert(end_entity, intermediates, now);
        judged.map(drop).or_else(|error| self.trusted.forgive(error, end_entity, now, Use::Client))?;
        self.names.check(end_entity)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.library.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.library.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.library.supported_verify_schemes()
    }
}

/// Judges those that this process connects to.
#[derive(Debug)]
pub(crate) struct Servers {
    library: Arc<WebPkiServerVerifier>,
    trusted: Trusted,
    names: Names,
    /// Certificates that this process and its like have made for themselves: nobody vouches for them.
    is_unverified: bool,
}

impl Servers {
    /// Reads who is trusted.
    ///
    /// # Errors
    /// The file can't be used, or the rules exclude each other.
    pub(crate) fn new(config: &TlsConfig, provider: &Arc<CryptoProvider>) -> Result<Self, TlsError> {
        let is_unverified = config.is_self_signed;
        // Signatures of handshakes are checked in any case, for which the library wants an authority.
        let ca_file = if is_unverified { config.cert_file.as_ref() } else { config.trusted_ca_file.as_ref() };
        let (store, own) = roots(ca_file)?;
        let builder = WebPkiServerVerifier::builder_with_provider(store.into(), provider.clone());
        let library = builder.build().map_err(|error| TlsError::Library(error.to_string()))?;
        Ok(Self { library, trusted: Trusted(own), names: Names::of(config)?, is_unverified })
    }
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.is_unverified {
            return Ok(ServerCertVerified::assertion());
        }
        let judged = self.library.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        if let Err(error) = judged {
            self.trusted.forgive(error, end_entity, now, Use::Server)?;
            let read = PeerCertificate::read(end_entity).ok_or(CertificateError::BadEncoding)?;
            if !read.is_valid_for(&server_name.to_str()) {
                return Err(CertificateError::NotValidForName.into());
            }
        }
        self.names.check(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.library.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.library.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.library.supported_verify_schemes()
    }
}
