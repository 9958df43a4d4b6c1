//! The dialing side of a handshake.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, TlsStream};

use crate::files::{self, TlsError};
use crate::reload::Reloading;
use crate::verify::Servers;
use crate::{Stream, TlsConfig};

/// What will be spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// Connects to others, with the certificate of the files as they are; clones share it.
#[derive(Clone)]
pub struct ClientTls {
    config: Arc<TlsConfig>,
    /// Read when it is needed first: a process without secure URLs needs nothing.
    state: Arc<parking_lot::Mutex<Option<Arc<Reloading<State>>>>>,
}

/// One configuration per protocol.
struct State {
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").finish_non_exhaustive()
    }
}

impl ClientTls {
    /// Nothing is read yet; see [`ClientTls::check`].
    #[must_use]
    pub fn new(config: TlsConfig) -> Self {
        Self { config: Arc::new(config), state: Arc::default() }
    }

    /// Reads the files.
    ///
    /// # Errors
    /// They can't be used, or what the configuration asks for excludes itself.
    pub fn check(&self) -> Result<(), TlsError> {
        self.current().map(drop)
    }

    fn current(&self) -> Result<Arc<State>, TlsError> {
        let mut state = self.state.lock();
        if let Some(state) = &*state {
            return Ok(state.current());
        }
        let config = self.config.clone();
        let shown = [&config.client_cert_file, &config.client_key_file, &config.cert_file, &config.key_file];
        let files: Vec<PathBuf> = shown.into_iter().chain([&config.trusted_ca_file]).flatten().cloned().collect();
        let read = Arc::new(Reloading::new(files, move || load(&config))?);
        let current = read.current();
        *state = Some(read);
        Ok(current)
    }

    /// Shakes hands with `host`, a name or an address, which the certificate there must be valid for.
    ///
    /// # Errors
    /// The handshake failed; the text says why.
    pub async fn connect(&self, host: &str, protocol: Protocol, stream: TcpStream) -> io::Result<Stream> {
        let state = self.current().map_err(io::Error::other)?;
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(bare.to_owned()).map_err(io::Error::other)?;
        let config = match protocol {
            Protocol::Http1 => state.http1.clone(),
            Protocol::Http2 => state.http2.clone(),
        };
        let stream = TlsConnector::from(config).connect(name, stream).await?;
        Ok(Stream::Tls(Box::new(TlsStream::Client(stream))))
    }
}

/// Connects to a host, a name or an address, with TLS or without. Small messages are not held back.
///
/// # Errors
/// Nobody is there, or the handshake failed.
pub async fn dial(host: &str, port: u16, tls: Option<&ClientTls>, protocol: Protocol) -> io::Result<Stream> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((bare, port)).await?;
    stream.set_nodelay(true)?;
    match tls {
        Some(tls) => tls.connect(bare, protocol, stream).await,
        None => Ok(Stream::Plain(stream)),
    }
}

fn load(config: &TlsConfig) -> Result<State, TlsError> {
    let own = match config.client_cert_file.is_some() || config.client_key_file.is_some() {
        true => files::pair(config.client_cert_file.as_ref(), config.client_key_file.as_ref())?,
        false => files::pair(config.cert_file.as_ref(), config.key_file.as_ref())?,
    };
    let provider = config.provider();
    let servers = Arc::new(Servers::new(config, &provider)?);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&config.versions.supported())?
        .dangerous()
        .with_custom_certificate_verifier(servers);
    let mut made = match own {
        Some(own) => builder.with_client_auth_cert(own.chain, own.key)?,
        None => builder.with_no_client_auth(),
    };
    made.resumption = Resumption::disabled();
    let with = |protocol: &[u8]| {
        let mut with = made.clone();
        with.alpn_protocols = vec![protocol.to_vec()];
        Arc::new(with)
    };
    Ok(State { http1: with(b"http/1.1"), http2: with(b"h2") })
}
