//! Connections to other nodes: one way to open them for everything that is spoken on peer URLs.

use std::time::Duration;

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
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(1),
            keepalive_interval: Duration::from_secs(1),
            keepalive_timeout: Duration::from_secs(4),
            stream_window_bytes: 1 << 20,
            backoff: (Duration::from_millis(50), Duration::from_secs(1)),
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
    #[error("{url}: {source}")]
    Unreachable {
        /// As given.
        url: String,
        /// What the attempt ended with.
        source: tonic::transport::Error,
    },
}

/// Connects to a peer URL, HTTP/2 without TLS. The connection is closed when the channel is dropped.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(url: &str, config: &LinkConfig) -> Result<Channel, ConnectError> {
    let bad = |reason: String| ConnectError::Url { url: url.to_owned(), reason };
    if !url.starts_with("http://") {
        return Err(bad("only http:// is served between nodes".into()));
    }
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| bad(error.to_string()))?;
    let endpoint = endpoint
        .connect_timeout(config.connect_timeout)
        // Small messages must not wait for an acknowledgement.
        .tcp_nodelay(true)
        .http2_keep_alive_interval(config.keepalive_interval)
        .keep_alive_timeout(config.keepalive_timeout)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(config.stream_window_bytes)
        .initial_connection_window_size(config.stream_window_bytes.saturating_mul(2));
    // The endpoint's own limit ends with TCP; a listener that accepts and says nothing must not hold us either.
    match tokio::time::timeout(config.connect_timeout * 2, endpoint.connect()).await {
        Ok(connected) => connected.map_err(|source| ConnectError::Unreachable { url: url.to_owned(), source }),
        Err(_) => Err(bad("no answer".into())),
    }
}
