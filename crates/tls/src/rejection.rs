//! Connections that were not let in, in the words that people who run etcd look for.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::net::SocketAddr;

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};
use time::OffsetDateTime;

use crate::PeerCertificate;

/// A connection was not let in.
#[derive(Debug)]
pub struct Rejected {
    remote: SocketAddr,
    refusal: Box<Refusal>,
}

/// Why a handshake was given up.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// The host that the other side asked for; empty when it did not say.
    pub(crate) server_name: String,
    /// What it has shown, if that was verified.
    pub(crate) peer: Option<PeerCertificate>,
    pub(crate) cause: Cause,
}

#[derive(Debug)]
pub(crate) enum Cause {
    /// What came first was no beginning of a handshake.
    Hello(io::Error),
    /// The handshake failed.
    Io(io::Error),
    /// A revocation list names this serial number.
    Revoked(Vec<u8>),
    /// The certificate is for other addresses; the sentence.
    Address(String),
    /// It took too long.
    Slow,
}

impl Refusal {
    /// Before anything was learnt.
    pub(crate) fn early(cause: Cause) -> Box<Self> {
        Box::new(Self { server_name: String::new(), peer: None, cause })
    }
}

impl Rejected {
    pub(crate) fn new(remote: SocketAddr, refusal: Box<Refusal>) -> Self {
        Self { remote, refusal }
    }

    /// Writes etcd's line for a client.
    pub fn log_client(&self) {
        let Refusal { server_name, peer, .. } = self.refusal.as_ref();
        let (remote_addr, error) = (self.remote.to_string(), self.to_string());
        match peer {
            Some(peer) => tracing::warn!(
                remote_addr,
                server_name,
                ip_addresses = ?addresses(peer),
                dns_names = ?peer.dns_names,
                error,
                "rejected connection on client endpoint"
            ),
            None => tracing::warn!(remote_addr, server_name, error, "rejected connection on client endpoint"),
        }
    }

    /// Writes etcd's line for a peer.
    pub fn log_peer(&self) {
        let Refusal { server_name, peer, .. } = self.refusal.as_ref();
        let (remote_addr, error) = (self.remote.to_string(), self.to_string());
        match peer {
            Some(peer) => tracing::warn!(
                remote_addr,
                server_name,
                ip_addresses = ?addresses(peer),
                dns_names = ?peer.dns_names,
                error,
                "rejected connection on peer endpoint"
            ),
            None => tracing::warn!(remote_addr, server_name, error, "rejected connection on peer endpoint"),
        }
    }
}

fn addresses(peer: &PeerCertificate) -> Vec<String> {
    peer.ip_addresses.iter().map(ToString::to_string).collect()
}

/// The reason alone.
impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.refusal.cause {
            Cause::Hello(error) => match library_error(error) {
                Some(Error::InvalidMessage(_)) => f.write_str("tls: first record does not look like a TLS handshake"),
                _ => io_words(error, f),
            },
            Cause::Io(error) => io_words(error, f),
            Cause::Revoked(serial) => {
                f.write_str("transport: certificate serial ")?;
                serial.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
                f.write_str(" revoked")
            }
            Cause::Address(reason) => f.write_str(reason),
            Cause::Slow => f.write_str("tls: handshake timeout"),
        }
    }
}

fn library_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

fn io_words(error: &io::Error, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match library_error(error) {
        Some(error) => f.write_str(&words(error)),
        None if error.kind() == io::ErrorKind::UnexpectedEof => f.write_str("EOF"),
        None => match error.source() {
            Some(source) => write!(f, "{error}: {source}"),
            None => write!(f, "{error}"),
        },
    }
}

/// Go's words for what the library says.
fn words(error: &Error) -> String {
    match error {
        Error::NoCertificatesPresented => "tls: client didn't provide a certificate".into(),
        Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure) => {
            "client certificate authentication failed".into()
        }
        Error::InvalidCertificate(error) => {
            format!("tls: failed to verify certificate: {}", certificate_words(error))
        }
        Error::AlertReceived(alert) => format!("remote error: tls: {}", alert_words(*alert)),
        Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon | PeerIncompatible::NoKxGroupsInCommon) => {
            "tls: no cipher suite supported by both client and server".into()
        }
        Error::PeerIncompatible(
            // Whoever speaks TLS 1.2 sends it.
            PeerIncompatible::SignatureAlgorithmsExtensionRequired
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::Tls13RequiredForQuic
            | PeerIncompatible::SupportedVersionsExtensionRequired,
        ) => "tls: client offered only unsupported versions".into(),
        Error::InvalidMessage(_) => format!("tls: {error}"),
        Error::DecryptError => "local error: tls: bad record MAC".into(),
        error => format!("tls: {error}"),
    }
}

fn certificate_words(error: &CertificateError) -> String {
    const PERIOD: &str = "x509: certificate has expired or is not yet valid";
    match error {
        CertificateError::ExpiredContext { time, not_after } => {
            format!("{PERIOD}: current time {} is after {}", instant(*time), instant(*not_after))
        }
        CertificateError::NotValidYetContext { time, not_before } => {
            format!("{PERIOD}: current time {} is before {}", instant(*time), instant(*not_before))
        }
        CertificateError::Expired | CertificateError::NotValidYet => PERIOD.into(),
        CertificateError::UnknownIssuer => "x509: certificate signed by unknown authority".into(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "x509: certificate specifies an incompatible key usage".into()
        }
        CertificateError::UnhandledCriticalExtension => "x509: unhandled critical extension".into(),
        CertificateError::BadEncoding => "x509: malformed certificate".into(),
        error => format!("x509: {error}"),
    }
}

/// Go's names of the alerts that people see.
fn alert_words(alert: AlertDescription) -> String {
    let words = match alert {
        AlertDescription::BadCertificate => "bad certificate",
        AlertDescription::UnknownCA => "unknown certificate authority",
        AlertDescription::CertificateExpired => "expired certificate",
        AlertDescription::CertificateRevoked => "revoked certificate",
        AlertDescription::CertificateUnknown => "unknown certificate",
        AlertDescription::CertificateRequired => "certificate required",
        AlertDescription::UnsupportedCertificate => "unsupported certificate",
        AlertDescription::HandshakeFailure => "handshake failure",
        AlertDescription::ProtocolVersion => "protocol version not supported",
        AlertDescription::AccessDenied => "access denied",
        AlertDescription::DecryptError => "error decrypting message",
        AlertDescription::InternalError => "internal error",
        AlertDescription::UnrecognisedName => "unrecognized name",
        AlertDescription::NoApplicationProtocol => "no application protocol",
        AlertDescription::BadRecordMac => "bad record MAC",
        alert => return format!("{alert:?}"),
    };
    words.into()
}

/// RFC 3339 in UTC, to the second.
fn instant(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let Ok(time) = OffsetDateTime::from_unix_timestamp(seconds) else { return "the end of time".into() };
    let (year, month, day) = (time.year(), u8::from(time.month()), time.day());
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", time.hour(), time.minute(), time.second())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn text(cause: Cause) -> String {
        Rejected::new(([127, 0, 0, 1], 1).into(), Refusal::early(cause)).to_string()
    }

    #[test]
    fn reasons_are_gos() {
        let of = |error: Error| text(Cause::Io(io::Error::new(io::ErrorKind::InvalidData, error)));
        assert_eq!(of(Error::NoCertificatesPresented), "tls: client didn't provide a certificate");
        assert_eq!(
            of(CertificateError::UnknownIssuer.into()),
            "tls: failed to verify certificate: x509: certificate signed by unknown authority"
        );
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        assert_eq!(
            of(CertificateError::ExpiredContext { time: at(951_782_400), not_after: at(0) }.into()),
            "tls: failed to verify certificate: x509: certificate has expired or is not yet valid: current time \
             2000-02-29T00:00:00Z is after 1970-01-01T00:00:00Z"
        );
        assert_eq!(of(Error::AlertReceived(AlertDescription::BadCertificate)), "remote error: tls: bad certificate");
        assert_eq!(text(Cause::Io(io::ErrorKind::UnexpectedEof.into())), "EOF");
        assert_eq!(text(Cause::Revoked(vec![0x0b, 0xff])), "transport: certificate serial 0bff revoked");
    }
}
