//! TLS for the client and the peer port, as etcd configures it.
//!
//! It knows files, certificates and handshakes; it knows neither HTTP nor what is served. A certificate's common name is
//! handed on; what it may do is decided by whoever asks.
//!
//! Start at [`TlsConfig`] (what the flags say), [`Door`] (what a listener does with a new connection: plain, TLS, or
//! either) and [`ClientTls`] (how this process reaches others). Files are looked at in every handshake and read again when
//! they have changed; changed files that can't be used are named in the log, and the former ones stay in use.
//!
//! Invariants:
//! - With a CA file or `client_cert_auth` nobody gets past a [`Door`]'s TLS side without a certificate that is verified,
//!   in time, not revoked, and of an allowed name.
//! - No session is resumed: each connection's certificate is judged by the files of its own time.
//! - A handshake ends within [`HANDSHAKE_MAX`].

mod certificate;
mod client;
mod config;
mod door;
mod files;
#[doc(hidden)]
pub mod fuzzing;
mod names;
mod rejection;
mod reload;
mod self_signed;
mod server;
mod stream;
mod verify;

pub use certificate::PeerCertificate;
pub use client::{ClientTls, Protocol, dial};
pub use config::{CipherSuites, TlsConfig, TlsVersions};
pub use door::{Accepted, Door, HANDSHAKE_MAX};
pub use files::TlsError;
pub use rejection::Rejected;
pub use self_signed::self_signed;
pub use server::ServerTls;
pub use stream::Stream;
