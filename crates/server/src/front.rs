//! What listeners serve: the gateway once there is one, before that why there is none.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use metrics_exporter_prometheus::PrometheusHandle;
use parking_lot::{Mutex, RwLock};
use tailwater_fanout::SocketShare;
use tailwater_gateway::{AccessControl, Code, Forwarder, Gateway, tell_whether_ready};
use tailwater_transport::{Description, LinkConfig};
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::config::Config;
use crate::process;
use crate::status::Status;
use crate::survey::{Asking, Door, Doors, Lately, ask_all};
use crate::ui::{Surveying, Ui};

const TEXT: &str = "text/plain; charset=utf-8";

/// How long nodes may take to answer for `/ui`, which asks every second, and how many are asked.
const PATIENCE: Duration = Duration::from_millis(700);
const PATIENCE_IN_ALL: Duration = Duration::from_millis(900);
const NODES_MAX: usize = 256;

/// Answers HTTP requests of clients, operators and probes; clones share it.
#[derive(Clone)]
pub(crate) struct Front {
    gateway: Arc<RwLock<Option<Gateway>>>,
    /// Takes calls where there is no gateway with a store.
    forwarder: Arc<OnceLock<(Forwarder, Option<AccessControl>)>>,
    /// Answers while there is no gateway: for a member that serves no clients, always.
    plain: Arc<dyn Plain>,
    /// Whether connections for calls are turned away.
    is_shut: Arc<AtomicBool>,
    description: Arc<OnceLock<Describe>>,
    ui: Ui,
    metrics: PrometheusHandle,
}

/// Tells what this process is now.
type Describe = Box<dyn Fn() -> Description + Send + Sync>;

/// A process that has no gateway, as operators see it.
pub(crate) trait Plain: Send + Sync {
    /// Why calls are not answered.
    fn unserved(&self) -> (Code, String);

    /// Why this process can't do its work now, if it can't.
    fn unready(&self) -> Option<String>;

    /// What is wrong, be it that work goes on.
    fn unhealthy(&self) -> Option<String> {
        self.unready()
    }

    /// Sets gauges that are read rather than counted.
    fn refresh_gauges(&self) {}
}

impl Front {
    /// `control` is where `/ui` is drawn.
    pub(crate) fn new(plain: Arc<dyn Plain>, metrics: PrometheusHandle, config: &Config, control: &Handle) -> Self {
        let gateway: Arc<RwLock<Option<Gateway>>> = Arc::default();
        let description = Arc::default();
        let opened = gateway.clone();
        let is_open = move || opened.read().as_ref().is_some_and(Gateway::is_open);
        let ui = Ui::new(config.name.clone(), surveyor(config, &description), is_open, control.clone());
        Self { gateway, forwarder: Arc::default(), plain, is_shut: Arc::default(), description, ui, metrics }
    }

    /// Answers `/status` from now on.
    ///
    /// # Panics
    /// When it was called before.
    pub(crate) fn describe_with(&self, describe: impl Fn() -> Description + Send + Sync + 'static) {
        assert!(self.description.set(Box::new(describe)).is_ok(), "a process is described in one way");
    }

    /// Turns connections for calls away, or takes them again. A client counts a connection as good as soon as HTTP/2 has
    /// begun on it, and gives it its share of calls; only one that does not come about sends it elsewhere.
    pub(crate) fn shut(&self, is_shut: bool) {
        self.is_shut.store(is_shut, Ordering::Relaxed);
    }

    pub(crate) fn is_shut(&self) -> bool {
        self.is_shut.load(Ordering::Relaxed)
    }

    /// Serves this gateway from now on.
    pub(crate) fn open(&self, gateway: Gateway) {
        *self.gateway.write() = Some(gateway);
    }

    /// Passes calls on from now on, those in JSON too where it is said who may make them.
    ///
    /// # Panics
    /// When it was called before.
    pub(crate) fn forward(&self, forwarder: Forwarder, json: Option<AccessControl>) {
        assert!(self.forwarder.set((forwarder, json)).is_ok(), "a process forwards in one way");
    }

    /// The body of `/metrics`.
    pub(crate) fn render_metrics(&self) -> impl Fn() -> String + Send + Sync + 'static {
        let metrics = self.metrics.clone();
        move || metrics.render() + &process::render()
    }

    /// The send buffer of a new connection, where there is a bound to count it towards.
    pub(crate) fn share_for_socket(&self) -> Option<SocketShare> {
        self.gateway.read().as_ref().map(Gateway::share_for_socket)
    }

    /// Ends the watches of a client's connection, and what it looks at.
    pub(crate) fn end_streams_of(&self, peer: SocketAddr) {
        self.ui.end_streams_of(peer);
        if let Some(gateway) = &*self.gateway.read() {
            gateway.end_streams_of(peer);
        }
    }

    /// Answers a client's request.
    pub(crate) async fn serve(&self, request: Request<Body>) -> Response<Body> {
        let gateway = self.gateway.read().clone();
        if let Some(seen) = self.overview(&request, gateway.as_ref().is_some_and(|gateway| gateway.admits(&request))) {
            return seen;
        }
        if let Some(gateway) = gateway {
            return gateway.serve(request).await;
        }
        match self.forwarder.get() {
            Some((forwarder, _)) if is_call(&request) => forwarder.call(request).await,
            Some((forwarder, Some(access))) => match Box::pin(forwarder.call_json(request, access)).await {
                Ok(response) => response,
                Err(request) => self.serve_plain(&request),
            },
            _ => self.serve_plain(&request),
        }
    }

    /// Answers a client's request on a listener for gRPC alone, or for all but gRPC.
    pub(crate) async fn serve_one(&self, request: Request<Body>, grpc: bool) -> Response<Body> {
        if is_call(&request) == grpc {
            return self.serve(request).await;
        }
        response(StatusCode::NOT_FOUND, TEXT, "404 page not found\n".into())
    }

    /// Answers a request on a listener for metrics and health alone.
    pub(crate) async fn serve_metrics(&self, request: Request<Body>) -> Response<Body> {
        // Who reads metrics may not read keys.
        if let Some(seen) = self.overview(&request, false) {
            return seen;
        }
        let gateway = self.gateway.read().clone();
        match gateway {
            Some(gateway) => gateway.serve_metrics(request).await,
            None => self.serve_plain(&request),
        }
    }

    fn serve_plain(&self, request: &Request<Body>) -> Response<Body> {
        if is_call(request) {
            return self.refuse_call();
        }
        match request.uri().path() {
            "/metrics" => {
                self.plain.refresh_gauges();
                tell_whether_ready(self.plain.unready().is_none());
                response(StatusCode::OK, TEXT, (self.render_metrics())())
            }
            "/livez" => response(StatusCode::OK, TEXT, "ok\n".into()),
            "/readyz" => match self.plain.unready() {
                None => response(StatusCode::OK, TEXT, "ok\n".into()),
                Some(reason) => {
                    response(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("[-]serving failed: {reason}\n"))
                }
            },
            "/health" => {
                let reason = self.plain.unhealthy();
                let status = if reason.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                let health = if reason.is_none() { "true" } else { "false" };
                let body = serde_json::json!({ "health": health, "reason": reason.unwrap_or_default() });
                response(status, TEXT, body.to_string())
            }
            _ => response(StatusCode::NOT_FOUND, TEXT, "404 page not found\n".into()),
        }
    }

    /// What is said of this process and its cluster on every port that speaks HTTP. Whoever is `admitted` is shown keys
    /// and clients too, while everybody who is may read every key.
    fn overview(&self, request: &Request<Body>, admitted: bool) -> Option<Response<Body>> {
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/status") => Some(self.status(admitted)),
            (&Method::GET, _) => self.ui.serve(request, admitted),
            _ => None,
        }
    }

    fn status(&self, admitted: bool) -> Response<Body> {
        let Some(describe) = self.description.get() else {
            return response(StatusCode::SERVICE_UNAVAILABLE, TEXT, "this node does not know yet what it is\n".into());
        };
        let is_open = self.gateway.read().as_ref().is_some_and(Gateway::is_open);
        let status = Status::from(describe());
        let status = if admitted && is_open { status } else { status.without_keys() };
        let mut body = serde_json::to_string(&status).expect("numbers and strings are JSON");
        body.push('\n');
        response(StatusCode::OK, "application/json", body)
    }

    /// An answer that consists of its status alone.
    fn refuse_call(&self) -> Response<Body> {
        let (code, text) = self.plain.unserved();
        let mut response = Response::new(Body::empty());
        let headers: HeaderMap = tailwater_api::grpc::trailers(code as i32, &text);
        *response.headers_mut() = headers;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        response
    }
}

fn is_call(request: &Request<Body>) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Asks the nodes of the cluster, from what this process knows of it; before it knows anything, from its upstream.
fn surveyor(config: &Config, description: &Arc<OnceLock<Describe>>) -> impl Fn() -> Surveying + Send + Sync + 'static {
    let asking = Asking {
        clients: LinkConfig { tls: Some(config.tls.client_dialer.clone()), ..LinkConfig::default() },
        peers: config.link(),
        prefers_peers: true,
        patience: PATIENCE,
        patience_in_all: PATIENCE_IN_ALL,
        nodes_max: NODES_MAX,
    };
    let upstream: Vec<Doors> = config.upstream.iter().map(|url| vec![Door::Peer(url.clone())]).collect();
    let description = description.clone();
    let lately = Arc::new(Mutex::new(Lately::default()));
    move || {
        let own = description.get().map(|describe| Status::from(describe()));
        let knows_members = own.as_ref().is_some_and(|own| !own.members.is_empty());
        let doors = if knows_members { Vec::new() } else { upstream.clone() };
        let (asking, lately) = (asking.clone(), lately.clone());
        Box::pin(async move {
            let known = lately.lock().nodes();
            let survey = ask_all(doors, own, known, &asking).await;
            lately.lock().note(&survey, Instant::now());
            survey
        })
    }
}

fn response(status: StatusCode, content_type: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
