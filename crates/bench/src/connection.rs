//! How an endpoint is reached: with TLS where its URL says so, in a user's name where one is given. The flags are etcdctl's.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::Context as _;
use clap::Args;
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tailwater_api::etcdserverpb as pb;
use tailwater_tls::{ClientTls, Protocol, TlsConfig};
use tonic::body::Body;
use tower::Service;

/// The header that etcd's own clients use.
const TOKEN: &str = "token";

/// Whom servers must be signed by, and in whose name clients come.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Access {
    /// A file with the authorities that may sign the certificates of https endpoints (PEM); else those that this machine trusts.
    #[arg(long, value_name = "FILE", global = true)]
    cacert: Option<PathBuf>,
    /// A file with the certificate that clients show (PEM).
    #[arg(long, value_name = "FILE", requires = "key", global = true)]
    cert: Option<PathBuf>,
    /// A file with the key of --cert (PEM).
    #[arg(long, value_name = "FILE", requires = "cert", global = true)]
    key: Option<PathBuf>,
    /// The user that all clients are: NAME:PASSWORD.
    #[arg(long, value_name = "NAME:PASSWORD", global = true)]
    user: Option<String>,
}

impl Access {
    /// Opens `count` connections, to the endpoints in turn.
    ///
    /// # Errors
    /// One can't be reached or doesn't take the certificate, or the user isn't known there.
    pub(crate) async fn connect(&self, endpoints: &[String], count: usize) -> anyhow::Result<Vec<Connection>> {
        let tls = ClientTls::new(TlsConfig {
            cert_file: self.cert.clone(),
            key_file: self.key.clone(),
            trusted_ca_file: self.cacert.clone(),
            ..TlsConfig::default()
        });
        let mut token = None;
        let mut connections = Vec::with_capacity(count);
        for endpoint in endpoints.iter().cycle().take(count) {
            let url = self.url(endpoint);
            let reached = Connection::open(&url, &tls).await;
            let connection = reached.with_context(|| format!("{url} can't be reached"))?;
            if let (None, Some(user)) = (&token, &self.user) {
                token = Some(authenticate(connection.clone(), user).await?);
            }
            connections.push(Connection { token: token.clone(), ..connection });
        }
        Ok(connections)
    }

    /// As etcdctl takes an endpoint without a scheme: with TLS when certificates are named.
    fn url(&self, endpoint: &str) -> String {
        if endpoint.contains("://") {
            return endpoint.to_owned();
        }
        let is_secure = self.cacert.is_some() || self.cert.is_some();
        format!("{}://{endpoint}", if is_secure { "https" } else { "http" })
    }
}

/// What a request of this user carries.
async fn authenticate(connection: Connection, user: &str) -> anyhow::Result<HeaderValue> {
    let (name, password) = user.split_once(':').context("--user wants NAME:PASSWORD")?;
    let request = pb::AuthenticateRequest { name: name.to_owned(), password: password.to_owned() };
    let mut auth = pb::auth_client::AuthClient::new(connection);
    let answer = auth.authenticate(request).await.with_context(|| format!("authenticating {name}"))?;
    let mut token = HeaderValue::try_from(answer.into_inner().token).context("a token is text")?;
    token.set_sensitive(true);
    Ok(token)
}

/// Where a connection leads, and the one that is open.
struct Link {
    scheme: Scheme,
    authority: Authority,
    tls: Option<ClientTls>,
    current: Mutex<SendRequest<Body>>,
    /// Held by who opens it again.
    redial: tokio::sync::Mutex<()>,
}

/// A connection to an endpoint, opened again when it has broken; clones share it. Requests go to HTTP/2 directly: tonic's
/// channel would hand each to a task of its own first, which costs a hand-over each.
#[derive(Clone)]
pub(crate) struct Connection {
    link: Arc<Link>,
    sender: SendRequest<Body>,
    token: Option<HeaderValue>,
}

/// A response may begin long after the request has left.
type Responding = Pin<Box<dyn Future<Output = anyhow::Result<Response<Incoming>>> + Send>>;

impl Connection {
    async fn open(url: &str, tls: &ClientTls) -> anyhow::Result<Self> {
        let parts = url.parse::<Uri>()?.into_parts();
        let (scheme, authority) = parts.scheme.zip(parts.authority).context("an endpoint is http://HOST:PORT")?;
        let tls = (scheme == Scheme::HTTPS).then(|| tls.clone());
        let sender = dial(&authority, tls.as_ref()).await?;
        let (current, redial) = (Mutex::new(sender.clone()), tokio::sync::Mutex::default());
        Ok(Self { link: Arc::new(Link { scheme, authority, tls, current, redial }), sender, token: None })
    }
}

async fn dial(authority: &Authority, tls: Option<&ClientTls>) -> anyhow::Result<SendRequest<Body>> {
    let port = authority.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
    let stream = tailwater_tls::dial(authority.host(), port, tls, Protocol::Http2).await?;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    // Its end is seen by who sends next.
    tokio::spawn(connection);
    Ok(sender)
}

impl Link {
    async fn reopened(&self) -> anyhow::Result<SendRequest<Body>> {
        let _turn = self.redial.lock().await;
        let current = self.current.lock().clone();
        if !current.is_closed() {
            return Ok(current);
        }
        let sender = dial(&self.authority, self.tls.as_ref()).await?;
        *self.current.lock() = sender.clone();
        Ok(sender)
    }
}

impl Service<Request<Body>> for Connection {
    type Response = Response<Incoming>;
    type Error = anyhow::Error;
    type Future = Responding;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<anyhow::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Responding {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        (parts.scheme, parts.authority) = (Some(self.link.scheme.clone()), Some(self.link.authority.clone()));
        *request.uri_mut() = Uri::from_parts(parts).expect("a method's path, and a URL's scheme and authority");
        if let Some(token) = &self.token {
            request.headers_mut().insert(TOKEN, token.clone());
        }
        if self.sender.is_closed() {
            self.sender = self.link.current.lock().clone();
        }
        if self.sender.is_closed() {
            let link = self.link.clone();
            return Box::pin(async move { Ok(link.reopened().await?.send_request(request).await?) });
        }
        let responding = self.sender.send_request(request);
        Box::pin(async move { Ok(responding.await?) })
    }
}
