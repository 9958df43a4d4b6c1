//! One connection per endpoint, and which of them is in use.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rand::Rng as _;
use rand::seq::SliceRandom as _;
use tailwater_tls::{ClientTls, Protocol, Stream};
use tonic::transport::{Channel, Endpoint};

use crate::Error;
use crate::config::Builder;

/// What a server may send on one stream, and on one connection, before it was read.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// The pause after each endpoint has failed once; it doubles.
const BACKOFF: Duration = Duration::from_millis(50);

/// The connections of one user: of the client's own calls, or of one informer. An informer has its own so that one that
/// does not read fills no window that another needs.
#[derive(Debug)]
pub(crate) struct Connections {
    nodes: Vec<Arc<Node>>,
    at: AtomicUsize,
}

/// An endpoint.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) url: String,
    pub(crate) channel: Channel,
    /// It has said so.
    pub(crate) lacks_range_stream: AtomicBool,
}

impl Connections {
    /// Connects when it is needed first, to the endpoints in an order of its own.
    pub(crate) fn new(config: &Builder, tls: Option<&ClientTls>) -> Result<Self, Error> {
        let nodes = config.endpoints.iter().map(|url| Node::new(url, config, tls).map(Arc::new));
        let mut nodes = nodes.collect::<Result<Vec<_>, _>>()?;
        if nodes.is_empty() {
            return Err(Error::NoEndpoints);
        }
        nodes.shuffle(&mut rand::rng());
        Ok(Self { nodes, at: AtomicUsize::new(0) })
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The endpoint in use.
    pub(crate) fn current(&self) -> Arc<Node> {
        self.nodes[self.at.load(Ordering::Relaxed) % self.nodes.len()].clone()
    }

    /// Takes the next one, unless another call has left `node` already.
    pub(crate) fn leave(&self, node: &Arc<Node>) {
        let at = self.at.load(Ordering::Relaxed);
        if Arc::ptr_eq(&self.nodes[at % self.nodes.len()], node) {
            // Somebody else was faster: as good.
            self.at.compare_exchange(at, at.wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed).ok();
        }
    }
}

impl Node {
    fn new(url: &str, config: &Builder, tls: Option<&ClientTls>) -> Result<Self, Error> {
        let url = match (url.contains("://"), tls) {
            (true, _) => url.to_owned(),
            (false, Some(_)) => format!("https://{url}"),
            (false, None) => format!("http://{url}"),
        };
        let unusable = |reason: String| Error::Endpoint { url: url.clone(), reason };
        let origin: Uri = url.parse().map_err(|error: http::uri::InvalidUri| unusable(error.to_string()))?;
        let tls = match (origin.scheme_str(), tls) {
            (Some("http"), _) => None,
            (Some("https"), Some(tls)) => Some(tls.clone()),
            (Some("https"), None) => return Err(unusable("it wants TLS".to_owned())),
            _ => return Err(unusable("it is neither http nor https".to_owned())),
        };
        // TLS is spoken by the connector. A tonic that some other crate has built with TLS would refuse an https: URL here.
        let target = format!("http://{}", origin.authority().map_or("", |authority| authority.as_str()));
        let endpoint = Endpoint::from_shared(target).map_err(|error| unusable(error.to_string()))?.origin(origin);
        let connector = tower::service_fn(move |uri: Uri| dial(uri, tls.clone()));
        let channel = endpoint
            .connect_timeout(config.connect_timeout)
            .http2_keep_alive_interval(config.keepalive_interval)
            .keep_alive_timeout(config.keepalive_timeout)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .connect_with_connector_lazy(connector);
        Ok(Self { url, channel, lacks_range_stream: AtomicBool::new(false) })
    }
}

async fn dial(uri: Uri, tls: Option<ClientTls>) -> io::Result<TokioIo<Stream>> {
    let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
    let stream = tailwater_tls::dial(uri.host().unwrap_or_default(), port, tls.as_ref(), Protocol::Http2).await?;
    Ok(TokioIo::new(stream))
}

/// The pauses between attempts: none until each endpoint has failed once, then growing ones.
#[derive(Debug)]
pub(crate) struct Backoff {
    endpoints: usize,
    max: Duration,
    failures: usize,
}

impl Backoff {
    pub(crate) fn new(endpoints: usize, max: Duration) -> Self {
        Self { endpoints, max, failures: 0 }
    }

    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Waits as long as one more failure demands.
    pub(crate) async fn pause(&mut self) {
        self.failures += 1;
        let Some(rounds) = self.failures.checked_sub(self.endpoints) else { return };
        let pause = BACKOFF.saturating_mul(1 << rounds.min(16)).min(self.max);
        // A random part, so that those who lost the same server do not come back all at once.
        let part = rand::rng().random_range(0.5..1.0);
        tokio::time::sleep(pause.mul_f64(part)).await;
    }
}
