//! How an endpoint is reached: with TLS where its URL says so, in a user's name where one is given. The flags are etcdctl's.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker, ready};

use anyhow::Context as _;
use bytes::Bytes;
use clap::Args;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Request, Response, Uri};
use http_body::{Body as _, Frame};
use parking_lot::Mutex;
use prost::Message;
use tailwater_api::etcdserverpb as pb;
use tailwater_tls::{ClientTls, Protocol, TlsConfig};
use tokio::sync::oneshot;
use tonic::body::Body;
use tower::Service;

use crate::messages::{self, Messages};

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

/// Bytes that a server may send before they are read: of a stream, and of all streams of a connection.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 5 << 20;

/// Where a connection leads, and the one that is open.
struct Link {
    scheme: Scheme,
    authority: Authority,
    tls: Option<ClientTls>,
    current: Mutex<Open>,
    /// Held by who opens it again.
    redial: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Open {
    sender: SendRequest<Bytes>,
    has_ended: Arc<AtomicBool>,
}

impl Open {
    fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Relaxed)
    }
}

/// A connection to an endpoint, opened again when it has broken; clones share it. Requests go to HTTP/2 directly: tonic's
/// channel would hand each to a task of its own first, and so would hyper's client. What a call costs here is taken from the
/// load that one core can send.
#[derive(Clone)]
pub(crate) struct Connection {
    link: Arc<Link>,
    open: Open,
    token: Option<HeaderValue>,
}

/// What gRPC wants of a request.
fn head(uri: Uri, token: Option<&HeaderValue>) -> Request<()> {
    let mut request = Request::post(uri)
        .header(http::header::CONTENT_TYPE, "application/grpc")
        .header(http::header::TE, "trailers")
        .body(())
        .expect("constant headers are valid");
    if let Some(token) = token {
        request.headers_mut().insert(TOKEN, token.clone());
    }
    request
}

/// A response may begin long after the request has left.
type Responding = Pin<Box<dyn Future<Output = anyhow::Result<Response<Answer>>> + Send>>;

impl Connection {
    /// Calls the method at this path, with these requests to begin with.
    ///
    /// # Errors
    /// The server refuses it, or the connection breaks.
    pub(crate) async fn stream<T: Message>(&self, path: &str, requests: &[T]) -> anyhow::Result<Messages> {
        let open = if self.open.has_ended() { self.link.reopened().await? } else { self.open.clone() };
        let (scheme, authority) = (self.link.scheme.clone(), self.link.authority.clone());
        let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build()?;
        let mut sender = open.sender.ready().await?;
        let (response, mut stream) = sender.send_request(head(uri, self.token.as_ref()), false)?;
        stream.send_data(messages::framed(requests), false)?;
        let (head, answers) = response.await?.into_parts();
        if head.headers.contains_key("grpc-status") {
            return Err(messages::ended(&head.headers));
        }
        Ok(Messages::new(answers, stream))
    }

    async fn open(url: &str, tls: &ClientTls) -> anyhow::Result<Self> {
        let parts = url.parse::<Uri>()?.into_parts();
        let (scheme, authority) = parts.scheme.zip(parts.authority).context("an endpoint is http://HOST:PORT")?;
        let tls = (scheme == Scheme::HTTPS).then(|| tls.clone());
        let open = dial(&authority, tls.as_ref()).await?;
        let (current, redial) = (Mutex::new(open.clone()), tokio::sync::Mutex::default());
        Ok(Self { link: Arc::new(Link { scheme, authority, tls, current, redial }), open, token: None })
    }
}

async fn dial(authority: &Authority, tls: Option<&ClientTls>) -> anyhow::Result<Open> {
    let port = authority.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
    let stream = tailwater_tls::dial(authority.host(), port, tls, Protocol::Http2).await?;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW).enable_push(false);
    let (sender, connection) = builder.handshake(stream).await?;
    let has_ended = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&has_ended);
    // Why it ended is told to who waits for an answer.
    tokio::spawn(async move {
        _ = connection.await;
        ended.store(true, Ordering::Relaxed);
    });
    Ok(Open { sender, has_ended })
}

impl Link {
    async fn reopened(&self) -> anyhow::Result<Open> {
        let _turn = self.redial.lock().await;
        let current = self.current.lock().clone();
        if !current.has_ended() {
            return Ok(current);
        }
        let open = dial(&self.authority, self.tls.as_ref()).await?;
        *self.current.lock() = open.clone();
        Ok(open)
    }
}

impl Service<Request<Body>> for Connection {
    type Response = Response<Answer>;
    type Error = anyhow::Error;
    type Future = Responding;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<anyhow::Result<()>> {
        // A connection that has broken is opened again by the call.
        self.open.sender.poll_ready(cx).map(|_| Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Responding {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        (parts.scheme, parts.authority) = (Some(self.link.scheme.clone()), Some(self.link.authority.clone()));
        *request.uri_mut() = Uri::from_parts(parts).expect("a method's path, and a URL's scheme and authority");
        if let Some(token) = &self.token {
            request.headers_mut().insert(TOKEN, token.clone());
        }
        if self.open.has_ended() {
            self.open = self.link.current.lock().clone();
        }
        if self.open.has_ended() {
            let link = self.link.clone();
            return Box::pin(async move {
                let mut sender = link.reopened().await?.sender.ready().await?;
                answer(send(&mut sender, request)?).await
            });
        }
        let sent = send(&mut self.open.sender, request);
        Box::pin(async move { answer(sent?).await })
    }
}

/// A request that has left, all of it or its beginning.
struct Sent {
    response: h2::client::ResponseFuture,
    /// Dropped when nobody wants the answer any more: ends the task that sends the rest.
    is_wanted: Option<oneshot::Sender<()>>,
}

/// Sends what there is of the request at once, which is all of a unary call's; the rest is sent by a task.
fn send(sender: &mut SendRequest<Bytes>, request: Request<Body>) -> anyhow::Result<Sent> {
    let (head, mut body) = request.into_parts();
    let (response, mut stream) = sender.send_request(Request::from_parts(head, ()), false)?;
    let mut last: Option<Bytes> = None;
    let is_wanted = loop {
        match Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(frame)) => {
                // Clients send no trailers.
                let data = frame?.into_data().unwrap_or_default();
                if let Some(before) = last.replace(data) {
                    stream.send_data(before, false)?;
                }
            }
            Poll::Ready(None) => {
                stream.send_data(last.take().unwrap_or_default(), true)?;
                break None;
            }
            Poll::Pending => {
                if let Some(before) = last.take() {
                    stream.send_data(before, false)?;
                }
                let (wanted, unwanted) = oneshot::channel();
                tokio::spawn(Rest { body, stream, unwanted });
                break Some(wanted);
            }
        }
    };
    Ok(Sent { response, is_wanted })
}

async fn answer(sent: Sent) -> anyhow::Result<Response<Answer>> {
    let Sent { response, is_wanted } = sent;
    Ok(response.await?.map(|stream| Answer { stream, _is_wanted: is_wanted }))
}

/// Sends what a caller adds to a request, until it has no more or the call is over.
struct Rest {
    body: Body,
    stream: SendStream<Bytes>,
    unwanted: oneshot::Receiver<()>,
}

impl Future for Rest {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if Pin::new(&mut this.unwanted).poll(cx).is_ready() || this.stream.poll_reset(cx).is_ready() {
            return Poll::Ready(());
        }
        loop {
            let sent = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => this.stream.send_data(frame.into_data().unwrap_or_default(), false),
                None | Some(Err(_)) => {
                    _ = this.stream.send_data(Bytes::new(), true);
                    return Poll::Ready(());
                }
            };
            if sent.is_err() {
                return Poll::Ready(());
            }
        }
    }
}

/// The body of an answer. What is not read stays within the window of its stream.
pub(crate) struct Answer {
    stream: RecvStream,
    _is_wanted: Option<oneshot::Sender<()>>,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let Some(data) = ready!(self.stream.poll_data(cx)) else {
            return self.stream.poll_trailers(cx).map(|trailers| trailers.transpose()).map_ok(Frame::trailers);
        };
        let data = data?;
        self.stream.flow_control().release_capacity(data.len())?;
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }
}
