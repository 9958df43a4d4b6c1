//! Connections to other nodes: one way to open them for everything that is spoken on peer URLs.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use tailwater_tls::{ClientTls, Protocol, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tonic::transport::{Channel, Endpoint};

/// How a connection between nodes behaves.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// An attempt to connect fails after this. Default 1 s.
    pub connect_timeout: Duration,
    /// After so much silence the other side is asked whether it lives. Default 1 s.
    pub keepalive_interval: Duration,
    /// Without an answer for this long the connection is broken. Default 4 s: with the interval, etcd's 5 s.
    pub keepalive_timeout: Duration,
    /// What the other side may send on one stream before it was read. Default 1 MiB.
    pub stream_window_bytes: u32,
    /// The first pause after a failure, and the longest. Default 50 ms and 1 s.
    pub backoff: (Duration, Duration),
    /// For https: URLs. Default none: they can't be used.
    pub tls: Option<ClientTls>,
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(1),
            keepalive_interval: Duration::from_secs(1),
            keepalive_timeout: Duration::from_secs(4),
            stream_window_bytes: 1 << 20,
            backoff: (Duration::from_millis(50), Duration::from_secs(1)),
            tls: None,
        }
    }
}

/// No connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URL can't be used.
    #[error("{url}: {reason}")]
    Url {
        /// As given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody answers there.
    #[error("{url}: {}", innermost(source))]
    Unreachable {
        /// As given.
        url: String,
        /// What the attempt ended with.
        source: tonic::transport::Error,
    },
    /// Nobody answers there in time.
    #[error("{url}: no answer")]
    Silent {
        /// As given.
        url: String,
    },
}

/// Connects to a peer URL, HTTP/2 with TLS or without as its scheme says. The connection is closed when the channel is dropped and its calls have
/// ended.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(url: &str, config: &LinkConfig) -> Result<Channel, ConnectError> {
    open(url, config, CancellationToken::new()).await
}

/// Connects as [`connect`] does; the connection is cut when the guard is dropped. A call whose stream waits for the other
/// side to make room would hold its connection, and what it buffers, for as long as the other side likes.
///
/// # Errors
/// See [`ConnectError`].
pub(crate) async fn connect_for_session(url: &str, config: &LinkConfig) -> Result<(Channel, DropGuard), ConnectError> {
    let cut = CancellationToken::new();
    let guard = cut.clone().drop_guard();
    Ok((open(url, config, cut).await?, guard))
}

/// What an error comes from; those around it say that something failed.
fn innermost(error: &tonic::transport::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

async fn open(url: &str, config: &LinkConfig, cut: CancellationToken) -> Result<Channel, ConnectError> {
    let bad = |reason: String| ConnectError::Url { url: url.to_owned(), reason };
    let tls = tls_for(url, config).map_err(bad)?;
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| bad(error.to_string()))?;
    let connector = tower::service_fn(move |uri: Uri| dial(uri, tls.clone(), cut.clone()));
    let endpoint = endpoint
        .http2_keep_alive_interval(config.keepalive_interval)
        .keep_alive_timeout(config.keepalive_timeout)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(config.stream_window_bytes)
        .initial_connection_window_size(config.stream_window_bytes.saturating_mul(2));
    match tokio::time::timeout(config.connect_timeout, endpoint.connect_with_connector(connector)).await {
        Ok(connected) => connected.map_err(|source| ConnectError::Unreachable { url: url.to_owned(), source }),
        Err(_) => Err(ConnectError::Silent { url: url.to_owned() }),
    }
}

/// How a URL is reached: with TLS or without.
///
/// # Errors
/// Why not at all.
pub(crate) fn tls_for(url: &str, config: &LinkConfig) -> Result<Option<ClientTls>, String> {
    if url.starts_with("http://") {
        return Ok(None);
    }
    if !url.starts_with("https://") {
        return Err("neither an http: nor an https: URL".into());
    }
    config.tls.clone().map(Some).ok_or_else(|| "nothing is known about TLS here".into())
}

/// Connects to a host and a port.
///
/// # Errors
/// Nobody is there, or the handshake failed.
pub(crate) async fn dial_host(uri: &Uri, tls: Option<&ClientTls>, protocol: Protocol) -> io::Result<Stream> {
    let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
    tailwater_tls::dial(uri.host().unwrap_or_default(), port, tls, protocol).await
}

async fn dial(uri: Uri, tls: Option<ClientTls>, cut: CancellationToken) -> io::Result<TokioIo<Cuttable>> {
    let stream = dial_host(&uri, tls.as_ref(), Protocol::Http2).await?;
    Ok(TokioIo::new(Cuttable { stream, cut: Box::pin(cut.cancelled_owned()) }))
}

/// A connection that fails once it is cut, whatever it waits for. HTTP/2 always reads, so that is where it learns of it.
struct Cuttable {
    stream: Stream,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl AsyncRead for Cuttable {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.cut.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Cuttable {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
