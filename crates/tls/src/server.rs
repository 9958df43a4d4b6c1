//! The listening side of a handshake.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::{Acceptor, NoServerSessionStorage, WebPkiClientVerifier};
use tokio::net::TcpStream;
use tokio_rustls::{LazyConfigAcceptor, TlsStream, server};

use crate::files::{self, TlsError};
use crate::rejection::{Cause, Refusal};
use crate::reload::Reloading;
use crate::verify::{Clients, Names};
use crate::{PeerCertificate, Stream, TlsConfig, names};

/// What a connection may have encrypted and not yet sent, beside what the kernel holds.
const BUFFER_BYTES_MAX: usize = 32 << 10;

/// Answers handshakes with the certificate of the files as they are; clones share it.
#[derive(Clone)]
pub struct ServerTls {
    state: Arc<Reloading<State>>,
    check_remote_address: bool,
}

/// What is made of the files.
struct State {
    config: Arc<ServerConfig>,
    revoked: BTreeSet<Vec<u8>>,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").field("check_remote_address", &self.check_remote_address).finish_non_exhaustive()
    }
}

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// They can't be used, or what the configuration asks for excludes itself.
    pub fn new(config: &TlsConfig) -> Result<Self, TlsError> {
        let files: Vec<PathBuf> = [&config.cert_file, &config.key_file, &config.trusted_ca_file, &config.crl_file]
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        let check_remote_address = config.check_remote_address;
        let config = config.clone();
        let state = Arc::new(Reloading::new(files, move || load(&config))?);
        Ok(Self { state, check_remote_address })
    }

    /// Shakes hands. The stream is given up when it fails.
    pub(crate) async fn accept(&self, stream: TcpStream) -> Result<(Stream, Option<PeerCertificate>), Box<Refusal>> {
        let remote = stream.peer_addr().map_err(|error| Refusal::early(Cause::Io(error)))?;
        let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await;
        let hello = hello.map_err(|error| Refusal::early(Cause::Hello(error)))?;
        let server_name = hello.client_hello().server_name().unwrap_or_default().to_owned();
        let refusal = |cause, peer| Box::new(Refusal { server_name: server_name.clone(), peer, cause });
        let state = self.state.current();
        let bounded = |connection: &mut rustls::ServerConnection| connection.set_buffer_limit(Some(BUFFER_BYTES_MAX));
        let stream = hello.into_stream_with(state.config.clone(), bounded).await;
        let stream = stream.map_err(|error| refusal(Cause::Io(error), None))?;
        let peer = shown(&stream);
        if let Some(revoked) = state.revoked_of(&stream) {
            return Err(refusal(Cause::Revoked(revoked), peer));
        }
        if self.check_remote_address
            && let Some(certificate) = &peer
            && let Err(reason) = names::check_address(certificate, remote.ip()).await
        {
            return Err(refusal(Cause::Address(reason), peer));
        }
        Ok((Stream::Tls(Box::new(TlsStream::Server(stream))), peer))
    }
}

impl State {
    /// The serial number that a list names of the certificates shown, if it does.
    fn revoked_of(&self, stream: &server::TlsStream<TcpStream>) -> Option<Vec<u8>> {
        if self.revoked.is_empty() {
            return None;
        }
        let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let serials = shown.iter().filter_map(|shown| Some(PeerCertificate::read(shown)?.serial));
        serials.into_iter().find(|serial| self.revoked.contains(serial))
    }
}

fn shown(stream: &server::TlsStream<TcpStream>) -> Option<PeerCertificate> {
    let first: &CertificateDer<'_> = stream.get_ref().1.peer_certificates()?.first()?;
    // It was verified, so it can be read.
    Some(PeerCertificate::read(first).unwrap_or_default())
}

fn load(config: &TlsConfig) -> Result<State, TlsError> {
    let pair = files::pair(config.cert_file.as_ref(), config.key_file.as_ref())?;
    let pair = pair.ok_or_else(|| TlsError::Pair { key: String::new(), cert: String::new() })?;
    // Also where nobody is asked for a certificate: such rules can never be what was meant.
    Names::of(config)?;
    let provider = config.provider();
    let verifier: Arc<dyn rustls::server::danger::ClientCertVerifier> = match config.wants_client_certificates() {
        true => Arc::new(Clients::new(config, &provider)?),
        false => WebPkiClientVerifier::no_client_auth(),
    };
    let builder = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&config.versions.supported())?
        .with_client_cert_verifier(verifier);
    let mut made = builder.with_single_cert(pair.chain, pair.key)?;
    made.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // A resumed session would not be asked for its certificate again.
    made.session_storage = Arc::new(NoServerSessionStorage {});
    made.send_tls13_tickets = 0;
    Ok(State { config: Arc::new(made), revoked: files::revoked(config.crl_file.as_ref())? })
}
