//! What listeners serve: the gateway once there is one, before that why there is none.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use metrics_exporter_prometheus::PrometheusHandle;
use parking_lot::RwLock;
use tailwater_fanout::SocketShare;
use tailwater_gateway::{AccessControl, Code, Forwarder, Gateway, tell_whether_ready};
use tailwater_transport::Description;

use crate::process;
use crate::status::Status;

const TEXT: &str = "text/plain; charset=utf-8";

/// Answers HTTP requests of clients, operators and probes; clones share it.
#[derive(Clone)]
pub(crate) struct Front {
    gateway: Arc<RwLock<Option<Gateway>>>,
    /// Takes calls where there is no gateway with a store.
    forwarder: Arc<OnceLock<(Forwarder, Option<AccessControl>)>>,
    /// Answers while there is no gateway: for a member that serves no clients, always.
    plain: Arc<dyn Plain>,
    description: Arc<OnceLock<Describe>>,
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
    pub(crate) fn new(plain: Arc<dyn Plain>, metrics: PrometheusHandle) -> Self {
        Self { gateway: Arc::default(), forwarder: Arc::default(), plain, description: Arc::default(), metrics }
    }

    /// Answers `/status` from now on.
    ///
    /// # Panics
    /// When it was called before.
    pub(crate) fn describe_with(&self, describe: impl Fn() -> Description + Send + Sync + 'static) {
        assert!(self.description.set(Box::new(describe)).is_ok(), "a process is described in one way");
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

    /// Ends the watches of a client's connection.
    pub(crate) fn end_streams_of(&self, peer: SocketAddr) {
        if let Some(gateway) = &*self.gateway.read() {
            gateway.end_streams_of(peer);
        }
    }

    /// Answers a client's request.
    pub(crate) async fn serve(&self, request: Request<Body>) -> Response<Body> {
        if is_status(&request) {
            return self.status();
        }
        let gateway = self.gateway.read().clone();
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
        if is_status(&request) {
            return self.status();
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

    fn status(&self) -> Response<Body> {
        let Some(describe) = self.description.get() else {
            return response(StatusCode::SERVICE_UNAVAILABLE, TEXT, "this node does not know yet what it is\n".into());
        };
        let mut body = serde_json::to_string(&Status::from(describe())).expect("numbers and strings are JSON");
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

fn is_status(request: &Request<Body>) -> bool {
    request.method() == Method::GET && request.uri().path() == "/status"
}

fn response(status: StatusCode, content_type: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
