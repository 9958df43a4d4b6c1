//! One replica that calls may be forwarded to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tailwater_eventlog::{KeyRange, Scope};
use tailwater_tls::{ClientTls, Protocol, Stream};
use tonic::transport::{Channel, Endpoint};
use tower::{Service, ServiceExt};

use super::position::Place;
use crate::Gateway;
use crate::status::{Code, Fault};

/// Connections to one replica; calls are spread over them.
const CONNECTIONS: usize = 4;
/// What a replica may send on one call ahead of its client; with this much per call memory is bounded.
const STREAM_WINDOW_BYTES: u32 = 64 << 10;
/// Of a whole connection: above what all of its calls may hold, so that stalled clients never hold up the others.
const CONNECTION_WINDOW_BYTES: u32 = (1 << 31) - 1;
/// What etcd's JSON gateway marks its calls with.
const PROXIED: HeaderName = HeaderName::from_static("grpcgateway-accept");
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// What a gateway must know of a replica.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaInfo {
    /// The node's id.
    pub id: u64,
    /// Where it serves clients, "http://host:port" or "https://host:port".
    pub url: String,
    /// What it holds; empty: every key.
    pub ranges: Vec<KeyRange>,
    /// Whether it is a member of the group: asked only where no other replica will do.
    pub is_member: bool,
    /// Whether it answers reads.
    pub is_ready: bool,
    /// Watch streams that it carries.
    pub streams: u64,
}

/// How a replica is reached.
enum Link {
    /// In this process: a fanout that holds a part itself.
    Here(Gateway),
    /// Over connections of our own.
    Remote(Vec<Channel>),
}

/// A replica and the connections to it.
pub(super) struct Replica {
    id: u64,
    url: String,
    ranges: Vec<KeyRange>,
    scope: Scope,
    link: Link,
    turn: AtomicUsize,
    is_member: AtomicBool,
    is_ready: AtomicBool,
    /// As it said last.
    streams: AtomicU64,
    /// Calls from here.
    active: Arc<AtomicUsize>,
}

/// A call that is answered.
pub(super) struct Call {
    pub(super) response: Response<Body>,
    pub(super) guard: ActiveCall,
}

/// Counts a call while it lasts.
pub(super) struct ActiveCall {
    active: Arc<AtomicUsize>,
}

impl ActiveCall {
    fn begin(active: &Arc<AtomicUsize>) -> Self {
        active.fetch_add(1, Ordering::Relaxed);
        Self { active: Arc::clone(active) }
    }
}

impl Drop for ActiveCall {
    fn drop(&mut self) {
        self.active.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Replica {
    /// Connects when it is needed first.
    pub(super) fn new(info: &ReplicaInfo, tls: Option<&ClientTls>) -> Result<Self, tonic::transport::Error> {
        let tls = tls.filter(|_| info.url.starts_with("https://")).cloned();
        let connector = tower::service_fn(move |uri: Uri| dial(uri, tls.clone()));
        let endpoint = Endpoint::from_shared(info.url.clone())?
            .connect_timeout(CONNECT_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT);
        Ok(Self {
            id: info.id,
            url: info.url.clone(),
            ranges: info.ranges.clone(),
            scope: Scope::new(&info.ranges),
            link: Link::Remote(
                (0..CONNECTIONS).map(|_| endpoint.connect_with_connector_lazy(connector.clone())).collect(),
            ),
            turn: AtomicUsize::new(0),
            is_member: AtomicBool::new(info.is_member),
            is_ready: AtomicBool::new(false),
            streams: AtomicU64::new(0),
            active: Arc::default(),
        })
    }

    /// The fanout behind `gateway`, in this process.
    pub(super) fn here(gateway: Gateway) -> Self {
        let scope = gateway.fanout().scope().clone();
        Self {
            id: gateway.config().member_id,
            url: String::new(),
            ranges: scope.ranges().to_vec(),
            scope,
            link: Link::Here(gateway),
            turn: AtomicUsize::new(0),
            is_member: AtomicBool::new(false),
            is_ready: AtomicBool::new(false),
            streams: AtomicU64::new(0),
            active: Arc::default(),
        }
    }

    /// What has been answered in this process, if this replica is here.
    pub(super) fn place_here(&self) -> Option<Place> {
        match &self.link {
            Link::Here(gateway) => Some(gateway.place()),
            Link::Remote(_) => None,
        }
    }

    /// What can change about it.
    pub(super) fn refresh(&self, info: &ReplicaInfo) {
        self.is_member.store(info.is_member, Ordering::Relaxed);
        self.is_ready.store(info.is_ready, Ordering::Relaxed);
        self.streams.store(info.streams, Ordering::Relaxed);
    }

    /// By this it is the same replica as before.
    pub(super) fn key(&self) -> (u64, String, Vec<KeyRange>) {
        (self.id, self.url.clone(), self.ranges.clone())
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn is_member(&self) -> bool {
        self.is_member.load(Ordering::Relaxed)
    }

    pub(super) fn is_ready(&self) -> bool {
        match &self.link {
            Link::Here(gateway) => gateway.unready().is_none(),
            Link::Remote(_) => self.is_ready.load(Ordering::Relaxed),
        }
    }

    /// Whether it holds all of these.
    pub(super) fn covers(&self, ranges: &[KeyRange]) -> bool {
        ranges.iter().all(|range| self.scope.covers(range))
    }

    /// One of the keys that it may hold.
    pub(super) fn a_key(&self) -> Bytes {
        self.scope.spans().first().map(|span| span.start().clone()).unwrap_or_default()
    }

    /// Calls from here count twice, since others can't be known as soon as they begin.
    pub(super) fn load(&self) -> u64 {
        self.streams.load(Ordering::Relaxed) + self.active.load(Ordering::Relaxed) as u64
    }

    /// Sends a call; answered with the first headers.
    ///
    /// # Errors
    /// UNAVAILABLE when the replica can't be reached or the connection is lost; it may have begun the call then. It counts
    /// as not ready until it is heard of again.
    pub(super) async fn call(&self, mut request: Request<Body>) -> Result<Call, Fault> {
        let guard = ActiveCall::begin(&self.active);
        let channels = match &self.link {
            Link::Here(gateway) => return Ok(Call { response: Box::pin(gateway.call(request)).await, guard }),
            Link::Remote(channels) => channels,
        };
        // The certificate that is shown there is this process's own, and names no user.
        request.headers_mut().entry(PROXIED).or_insert(HeaderValue::from_static("tailwater"));
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut channel = channels[turn % CONNECTIONS].clone();
        let answered = async { channel.ready().await?.call(request.map(tonic::body::Body::new)).await }.await;
        match answered {
            Ok(response) => Ok(Call { response: response.map(Body::new), guard }),
            Err(error) => {
                tracing::debug!(url = self.url, %error, "a replica can't be reached");
                self.is_ready.store(false, Ordering::Relaxed);
                Err(Fault::Other(Code::Unavailable, "tailwater: the replica can't be reached".into()))
            }
        }
    }
}

async fn dial(uri: Uri, tls: Option<ClientTls>) -> std::io::Result<TokioIo<Stream>> {
    let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
    let stream = tailwater_tls::dial(uri.host().unwrap_or_default(), port, tls.as_ref(), Protocol::Http2).await?;
    Ok(TokioIo::new(stream))
}
