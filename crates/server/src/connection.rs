//! One connection of a client, from its first byte to its end.

use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::Request;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tailwater_gateway::{OverTls, PeerIdentity};
use tailwater_http2::{Call, Connection, ConnectionError, Incoming, PREFACE, Service};
use tailwater_tls::{Accepted, Door, Stream};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::front::Front;
use crate::listener::Surface;

/// What a client may send on one stream, and on all streams of a connection, before we have read it.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// Bytes of a request's headers: a token of some kilobytes has room in it.
const HEADERS_BYTES_MAX: u32 = 64 * 1024;
/// Who connects says within this time which protocol it speaks; grpc-go's limit.
const HELLO_MAX: Duration = Duration::from_secs(120);
/// What the kernel takes beyond what it could send at once. A client that stops reading then leaves so much with us, not
/// a whole send buffer.
const UNSENT_BYTES: u32 = 32 * 1024;

/// How connections are served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionLimits {
    /// A connection older than this, 10 % more or less, is asked to end; zero: never.
    pub(crate) age_max: Duration,
    /// What its calls have left to end by themselves.
    pub(crate) age_grace: Duration,
    /// Calls of one connection at a time; the largest number: no limit.
    pub(crate) streams_max: u32,
    pub(crate) keepalive: Keepalive,
    /// Whether the common name of a client's certificate is the user.
    pub(crate) has_named_users: bool,
}

/// Who asks whom, and how often, whether it lives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keepalive {
    /// A client's pings must be so far apart; zero: no limit.
    pub(crate) pings_apart: Duration,
    /// A client that is silent for so long is asked; zero: never.
    pub(crate) interval: Duration,
    /// It has so long to answer.
    pub(crate) timeout: Duration,
}

/// How connections are told that the server drains.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Draining {
    #[default]
    No,
    /// They end within this time, not all at once.
    Within(Duration),
}

/// Serves a connection until it ends.
pub(crate) async fn serve(
    front: Front,
    surface: Surface,
    limits: ConnectionLimits,
    mut draining: watch::Receiver<Draining>,
    (door, stream, peer): (Door, TcpStream, SocketAddr),
) {
    // Watch events are small writes that must not wait for an acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "connection ended before it began");
        return;
    }
    let share = front.share_for_socket();
    if let Some(share) = &share
        && let Err(error) = bound_socket(&stream, share.bytes())
    {
        tracing::debug!(%error, "the buffers of a connection keep their size");
    }
    let entered = tokio::select! {
        entered = door.accept(stream, peer) => entered,
        _ = drained(&mut draining) => return,
    };
    let (stream, certificate) = match entered {
        Ok(Accepted { stream, peer }) => (stream, peer),
        Err(rejected) => return rejected.log_client(),
    };
    let is_secure = matches!(stream, Stream::Tls(_));
    let named = certificate.filter(|certificate| limits.has_named_users && !certificate.common_name.is_empty());
    let identity = PeerIdentity { common_name: named.map(|certificate| certificate.common_name.into()) };
    let chance = RandomState::new().hash_one(peer);
    let hello = tokio::select! {
        hello = tokio::time::timeout(HELLO_MAX, hello(stream)) => hello,
        _ = drained(&mut draining) => return,
    };
    let (stream, protocol) = match hello {
        Ok(Ok(hello)) => hello,
        Ok(Err(error)) => return tracing::debug!(%error, "connection ended before it began"),
        Err(_) => return tracing::debug!("closed a connection that said nothing"),
    };
    if matches!(protocol, Protocol::Http2) && front.is_shut() {
        return tracing::debug!("turned a connection away: this node can't answer yet");
    }
    let end = End { limits, draining, chance, end_streams: || front.end_streams_of(peer) };
    let answering = Answering { front: Arc::new(front.clone()), surface, peer, is_secure, identity };
    match protocol {
        Protocol::Http2 => end.serve(pin!(Connection::new(stream, limits.http2(), answering))).await,
        Protocol::Http1(read) => {
            let answering = Arc::new(answering);
            let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                let answer = answering.answer(request.map(Body::new));
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let (reading, writing) = tokio::io::split(stream);
            let stream = tokio::io::join(std::io::Cursor::new(read).chain(reading), writing);
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new());
            end.serve(pin!(builder.serve_connection(TokioIo::new(stream), service))).await;
        }
    }
}

/// What answers the requests of one connection.
struct Answering {
    front: Arc<Front>,
    surface: Surface,
    peer: SocketAddr,
    is_secure: bool,
    identity: PeerIdentity,
}

impl Answering {
    fn answer(&self, mut request: Request<Body>) -> Call<Body> {
        request.extensions_mut().insert(self.peer);
        if self.is_secure {
            request.extensions_mut().insert(OverTls);
        }
        request.extensions_mut().insert(self.identity.clone());
        let (front, surface) = (self.front.clone(), self.surface);
        // Boxed: a watch lives for hours and would keep room for all that it took to open it.
        Box::pin(async move {
            match surface {
                Surface::Client => front.serve(request).await,
                Surface::Grpc => front.serve_one(request, true).await,
                Surface::Http => front.serve_one(request, false).await,
                Surface::Metrics => front.serve_metrics(request).await,
            }
        })
    }
}

impl Service<Body> for Answering {
    fn call(&self, request: Request<Incoming>) -> Call<Body> {
        self.answer(request.map(Body::new))
    }
}

/// Which protocol is spoken.
enum Protocol {
    Http2,
    /// Or none that is known; what was read of it.
    Http1(Vec<u8>),
}

/// Reads what tells the protocols apart: HTTP/2 begins with its preface.
async fn hello<S: AsyncRead + Unpin>(mut stream: S) -> std::io::Result<(S, Protocol)> {
    let mut read = [0; PREFACE.len()];
    let mut len = 0;
    while len < read.len() {
        let more = stream.read(&mut read[len..]).await?;
        len += more;
        if more == 0 || read[..len] != PREFACE[..len] {
            return Ok((stream, Protocol::Http1(read[..len].to_vec())));
        }
    }
    Ok((stream, Protocol::Http2))
}

/// A connection that can be told to end.
trait Serving: Future<Output = Result<(), Self::Error>> {
    type Error: std::fmt::Debug;

    /// What is under way is answered, nothing new is taken.
    fn graceful_shutdown(self: Pin<&mut Self>);
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Serving for Connection<IO, Answering, Body> {
    type Error = ConnectionError;

    fn graceful_shutdown(self: Pin<&mut Self>) {
        Connection::graceful_shutdown(self.get_mut());
    }
}

impl<IO, S> Serving for http1::Connection<IO, S>
where
    IO: hyper::rt::Read + hyper::rt::Write + Unpin,
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = Body>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Error = hyper::Error;

    fn graceful_shutdown(self: Pin<&mut Self>) {
        http1::Connection::graceful_shutdown(self);
    }
}

/// How a connection comes to its end.
struct End<F> {
    limits: ConnectionLimits,
    draining: watch::Receiver<Draining>,
    /// Differs from connection to connection.
    chance: u64,
    /// Ends the connection's watches.
    end_streams: F,
}

impl<F: FnOnce()> End<F> {
    /// Serves until the client has left, the server drains, or the connection has grown old.
    async fn serve<C: Serving>(mut self, mut connection: Pin<&mut C>) {
        let grace = tokio::select! {
            ended = connection.as_mut() => return report(ended),
            within = drained(&mut self.draining) => {
                // Spread, so that the clients do not all begin anew in one instant.
                tokio::select! {
                    ended = connection.as_mut() => return report(ended),
                    () = tokio::time::sleep(part_of(within, self.chance)) => {}
                }
                // The server's own grace ends whoever stays.
                Duration::MAX
            }
            () = grown_old(self.limits.age_max, self.chance) => self.limits.age_grace,
        };
        // HTTP/2: GOAWAY, so that the client opens its next stream elsewhere. Its watches come next, in this order: what it
        // resumes must not come back here.
        connection.as_mut().graceful_shutdown();
        (self.end_streams)();
        tokio::select! {
            ended = connection.as_mut() => report(ended),
            () = tokio::time::sleep(grace) => tracing::debug!("closed a connection whose calls outlived its age"),
        }
    }
}

fn report<E: std::fmt::Debug>(ended: Result<(), E>) {
    if let Err(error) = ended {
        tracing::debug!(?error, "connection failed");
    }
}

fn bound_socket(stream: &TcpStream, bytes: usize) -> std::io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_send_buffer_size(bytes)?;
    socket.set_tcp_notsent_lowat(UNSENT_BYTES)
}

/// Resolves with the time to drain in when the server drains, or is gone.
async fn drained(draining: &mut watch::Receiver<Draining>) -> Duration {
    match draining.wait_for(|draining| matches!(draining, Draining::Within(_))).await.as_deref() {
        Ok(Draining::Within(within)) => *within,
        Ok(Draining::No) | Err(_) => Duration::ZERO,
    }
}

async fn grown_old(age_max: Duration, chance: u64) {
    if age_max.is_zero() {
        std::future::pending::<()>().await;
    }
    // From 90 % to 110 %: connections that began together end apart.
    tokio::time::sleep(age_max * 9 / 10 + part_of(age_max / 5, chance)).await;
}

/// The part of `whole` that falls to a connection.
fn part_of(whole: Duration, chance: u64) -> Duration {
    whole * u32::try_from(chance % 1000).expect("below 1000") / 1000
}

impl ConnectionLimits {
    fn http2(&self) -> tailwater_http2::Config {
        tailwater_http2::Config {
            stream_window_bytes: STREAM_WINDOW_BYTES,
            connection_window_bytes: CONNECTION_WINDOW_BYTES,
            streams_max: self.streams_max,
            headers_bytes_max: HEADERS_BYTES_MAX,
            pings_apart: self.keepalive.pings_apart,
            keepalive_interval: self.keepalive.interval,
            keepalive_timeout: self.keepalive.timeout,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn protocols_are_told_apart_by_their_beginning() {
        for (sent, is_http2) in [
            (&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nmore"[..], true),
            (b"PRINT / HTTP/1.1\r\n\r\n", false),
            (b"PRI", false),
            (b"", false),
        ] {
            let (_, protocol) = hello(sent).await.expect("what was sent can be read");
            match protocol {
                Protocol::Http2 => assert!(is_http2),
                Protocol::Http1(read) => {
                    assert!(!is_http2 && sent.starts_with(&read) && read.len() >= sent.len().min(4))
                }
            }
        }
    }

    #[test]
    fn every_connection_has_its_own_part() {
        let whole = Duration::from_secs(10);
        assert_eq!(part_of(whole, 0), Duration::ZERO);
        assert_eq!(part_of(whole, 1999), Duration::from_millis(9990));
        assert!(part_of(whole, u64::MAX) < whole);
    }
}
