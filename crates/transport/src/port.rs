//! The peer port: everything that is spoken on peer URLs, on one listener.
//!
//! gRPC for other nodes; beside it, over HTTP/1.1 or HTTP/2, what tools ask of etcd's peer URLs: `/version`, `/members`
//! and `/raft/probing`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tailwater_tls::Door;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tonic::server::NamedService;
use tower::ServiceExt as _;

use crate::Directory;
use crate::http_client::{CLUSTER_ID_HEADER, MemberView};

/// What another node may send on one stream, and on all of a connection, before we have read it.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// What of an answer waits between a stream and the socket.
const SEND_BUFFER_BYTES: usize = 256 << 10;
/// A node whose machine vanished is noticed after these two.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failed accept, for instance when file descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const TEXT: &str = "text/plain; charset=utf-8";

/// What the plain HTTP paths tell.
#[derive(Clone)]
pub struct PortInfo {
    /// Who the members are.
    pub directory: Arc<Directory>,
    /// The body of `/version`: the same JSON as on the client port.
    pub version: Arc<dyn Fn() -> String + Send + Sync>,
}

/// The services of a peer port.
#[derive(Clone)]
pub struct PeerPort {
    router: Router,
}

impl PeerPort {
    /// With the plain HTTP paths alone.
    #[must_use]
    pub fn new(info: PortInfo) -> Self {
        let directory = info.directory;
        let version = info.version;
        let router = Router::new()
            .route("/version", get(move || std::future::ready(json(version()))))
            .route("/members", get(move || std::future::ready(members(&directory))))
            .route("/raft/probing", get(|| std::future::ready(json("{\"OK\":true}".into()))))
            .method_not_allowed_fallback(|| {
                std::future::ready(plain(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n"))
            })
            .fallback(not_found);
        Self { router }
    }

    /// With a gRPC service more.
    #[must_use]
    pub fn add_service<S>(mut self, service: S) -> Self
    where
        S: tower::Service<Request<tonic::body::Body>, Response = Response<tonic::body::Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        let service = service.map_request(|request: Request<Body>| request.map(tonic::body::Body::new));
        self.router = self.router.route_service(&format!("/{}/{{*method}}", S::NAME), service);
        self
    }

    /// Ready to serve listeners on the runtime that polls [`PortServer::serve`].
    #[must_use]
    pub fn into_server(self) -> PortServer {
        PortServer { router: self.router, stopping: watch::channel(false).0, connections: TaskTracker::new() }
    }
}

/// Serves a peer port; clones share it.
#[derive(Clone)]
pub struct PortServer {
    router: Router,
    stopping: watch::Sender<bool>,
    connections: TaskTracker,
}

impl PortServer {
    /// Accepts until the server stops.
    ///
    /// # Errors
    /// The listener can't be used with this runtime; it must be in non-blocking mode.
    pub async fn serve(self, listener: std::net::TcpListener, door: Door) -> std::io::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        let mut stopping = self.stopping.subscribe();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stopped(&mut stopping) => return Ok(()),
            };
            match accepted {
                Ok((stream, remote)) => {
                    let (door, router, stopping) = (door.clone(), self.router.clone(), self.stopping.subscribe());
                    self.connections.spawn(connection(door, (stream, remote), router, stopping));
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a peer's connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Stops accepting, tells connections to end (GOAWAY), and waits up to `grace` for them; what is left is closed when
    /// its runtime ends. Streams end by their own services: [`crate::Peers::stop`], [`crate::WriteService::stop`].
    pub async fn stop(&self, grace: Duration) {
        self.stopping.send_replace(true);
        self.connections.close();
        if tokio::time::timeout(grace, self.connections.wait()).await.is_err() {
            tracing::warn!(connections = self.connections.len(), "peers did not leave in time; closing on them");
        }
    }
}

async fn connection(
    door: Door,
    (stream, remote): (TcpStream, SocketAddr),
    router: Router,
    mut stopping: watch::Receiver<bool>,
) {
    // Small messages must not wait for an acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "connection ended before it began");
        return;
    }
    let entered = tokio::select! {
        entered = door.accept(stream, remote) => entered,
        () = stopped(&mut stopping) => return,
    };
    let stream = match entered {
        Ok(accepted) => accepted.stream,
        Err(rejected) => return rejected.log_peer(),
    };
    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        let mut request = request.map(Body::new);
        request
            .extensions_mut()
            .insert(tonic::transport::server::TcpConnectInfo { local_addr: None, remote_addr: Some(remote) });
        router.clone().oneshot(request)
    });
    let builder = builder();
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "a peer's connection failed");
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    builder.http1().timer(TokioTimer::new());
    builder
}

/// Resolves when the server stops, or is gone.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    drop(stopping.wait_for(|stopping| *stopping).await);
}

/// A gRPC call of a service that is not here gets gRPC's answer for it, everything else etcd's.
async fn not_found(request: Request<Body>) -> Response<Body> {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    if content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc")) {
        return tonic::Status::unimplemented("this service is not on the peer port").into_http();
    }
    plain(StatusCode::NOT_FOUND, "404 page not found\n")
}

fn members(directory: &Directory) -> Response<Body> {
    let mut members = directory.members();
    members.sort_unstable_by_key(|member| member.id);
    let mut body = serde_json::to_string(&members.into_iter().map(MemberView::from).collect::<Vec<_>>())
        .expect("numbers and strings are JSON");
    body.push('\n');
    let mut response = json(body);
    let cluster_id = format!("{:x}", directory.cluster_id());
    let cluster_id = HeaderValue::from_str(&cluster_id).expect("hex digits are a header's value");
    response.headers_mut().insert(CLUSTER_ID_HEADER, cluster_id);
    response
}

fn json(body: String) -> Response<Body> {
    with_type("application/json", body)
}

fn plain(status: StatusCode, body: &str) -> Response<Body> {
    let mut response = with_type(TEXT, body.to_owned());
    *response.status_mut() = status;
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn with_type(content_type: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tailwater_eventlog::{Member, MemberId};

    use super::*;
    use crate::{FetchError, LinkConfig, MemberList, fetch_members};

    const PATIENCE: Duration = Duration::from_secs(20);

    fn members() -> Vec<Member> {
        let member = |id, name: &str, is_learner| Member {
            id: MemberId(id),
            name: name.into(),
            peer_urls: vec![format!("http://127.0.0.1:{id}")],
            client_urls: Vec::new(),
            is_learner,
        };
        vec![member(7, "", true), member(3, "three", false)]
    }

    fn port() -> PeerPort {
        let directory = Arc::new(Directory::new(0xc1));
        directory.set_members(&members());
        PeerPort::new(PortInfo { directory, version: Arc::new(|| "{\"etcdserver\":\"3.6.0\"}".into()) })
    }

    async fn ask(request: http::request::Builder) -> (StatusCode, http::HeaderMap, String) {
        let request = request.body(Body::empty()).expect("a request");
        let response = port().router.oneshot(request).await.expect("an answer");
        let (head, body) = response.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        (head.status, head.headers, String::from_utf8(body.to_vec()).expect("text"))
    }

    #[tokio::test]
    async fn tools_find_what_etcd_serves() {
        let (status, _, body) = ask(Request::get("/version")).await;
        assert_eq!((status, body.as_str()), (StatusCode::OK, "{\"etcdserver\":\"3.6.0\"}"));
        let (status, headers, body) = ask(Request::get("/members")).await;
        let expected = "[{\"id\":3,\"peerURLs\":[\"http://127.0.0.1:3\"],\"name\":\"three\"},\
                        {\"id\":7,\"peerURLs\":[\"http://127.0.0.1:7\"],\"isLearner\":true}]\n";
        assert_eq!((status, body.as_str()), (StatusCode::OK, expected));
        assert_eq!(headers[CLUSTER_ID_HEADER], "c1");
        let (status, headers, _) = ask(Request::post("/members")).await;
        assert_eq!(
            (status, &headers[header::CONTENT_TYPE]),
            (StatusCode::METHOD_NOT_ALLOWED, &TEXT.parse().expect("text"))
        );
        let (status, _, body) = ask(Request::get("/health")).await;
        assert_eq!((status, body.as_str()), (StatusCode::NOT_FOUND, "404 page not found\n"));
        let call = Request::post("/other.Service/Call").header(header::CONTENT_TYPE, "application/grpc");
        let (status, headers, _) = ask(call).await;
        assert_eq!((status, &headers["grpc-status"]), (StatusCode::OK, &HeaderValue::from_static("12")));
    }

    #[tokio::test]
    async fn a_node_that_joins_asks_for_the_members() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let server = port().into_server();
        let serving = tokio::spawn(server.clone().serve(listener, Door::plain()));
        let fetched = fetch_members(&url, PATIENCE, &LinkConfig::default()).await.expect("a list");
        let mut members = members();
        members.reverse();
        assert_eq!(fetched, MemberList { cluster_id: 0xc1, members });
        server.stop(PATIENCE).await;
        serving.await.expect("no panic").expect("served");
        let gone = fetch_members(&url, PATIENCE, &LinkConfig::default()).await.expect_err("nobody is there");
        assert!(matches!(gone, FetchError::Unreachable { .. }), "{gone}");
        for url in ["https://127.0.0.1:1", "unix:///x", "", "http://"] {
            let bad =
                fetch_members(url, PATIENCE, &LinkConfig::default()).await.expect_err("not a URL that can be asked");
            assert!(matches!(bad, FetchError::Url(_)), "{bad}");
        }
    }
}
