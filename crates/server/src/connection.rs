//! One connection of a client, from its first byte to its end.

use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use socket2::SockRef;
use tailwater_gateway::{OverTls, PeerIdentity};
use tailwater_tls::{Accepted, Door, Stream};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::front::Front;
use crate::listener::Surface;
use crate::pings::Guarded;

/// What a client may send on one stream, and on all streams of a connection, before we have read it.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// Calls that a client may have given up before we have looked at them. Go's clients do so in bursts, whenever a context
/// that many calls share ends; beyond it the connection is closed, as a defence against floods.
const RESET_STREAMS_MAX: usize = 8192;
/// What the kernel takes beyond what it could send at once. A client that stops reading then leaves so much with us, not
/// a whole send buffer.
const UNSENT_BYTES: u32 = 32 * 1024;

/// How connections are served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionLimits {
    /// HTTP/2 buffers at most so much of one response.
    pub(crate) send_buffer_bytes: usize,
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
    let serving = front.clone();
    let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        let front = serving.clone();
        request.extensions_mut().insert(peer);
        if is_secure {
            request.extensions_mut().insert(OverTls);
        }
        request.extensions_mut().insert(identity.clone());
        // Boxed: a watch lives for hours and would keep room for all that it took to open it.
        let answer: Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(async move {
            let request = request.map(axum::body::Body::new);
            Ok::<_, Infallible>(match surface {
                Surface::Client => front.serve(request).await,
                Surface::Grpc => front.serve_one(request, true).await,
                Surface::Http => front.serve_one(request, false).await,
                Surface::Metrics => front.serve_metrics(request).await,
            })
        });
        answer
    });
    let builder = builder(limits);
    let mut connection =
        pin!(builder.serve_connection(TokioIo::new(Guarded::new(stream, limits.keepalive.pings_apart)), service));
    let grace = tokio::select! {
        ended = connection.as_mut() => return report(ended),
        within = drained(&mut draining) => {
            // Spread, so that the clients do not all begin anew in one instant.
            tokio::select! {
                ended = connection.as_mut() => return report(ended),
                () = tokio::time::sleep(part_of(within, chance)) => {}
            }
            // The server's own grace ends whoever stays.
            Duration::MAX
        }
        () = grown_old(limits.age_max, chance) => limits.age_grace,
    };
    // HTTP/2: GOAWAY, so that the client opens its next stream elsewhere. Its watches come next, in this order: what it
    // resumes must not come back here.
    connection.as_mut().graceful_shutdown();
    front.end_streams_of(peer);
    tokio::select! {
        ended = connection.as_mut() => report(ended),
        () = tokio::time::sleep(grace) => tracing::debug!("closed a connection whose calls outlived its age"),
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

fn builder(limits: ConnectionLimits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(limits.send_buffer_bytes)
        .max_concurrent_streams(Some(limits.streams_max).filter(|streams| *streams != u32::MAX))
        .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
        .keep_alive_interval(Some(limits.keepalive.interval).filter(|interval| !interval.is_zero()))
        .keep_alive_timeout(limits.keepalive.timeout);
    builder.http1().timer(TokioTimer::new());
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_connection_has_its_own_part() {
        let whole = Duration::from_secs(10);
        assert_eq!(part_of(whole, 0), Duration::ZERO);
        assert_eq!(part_of(whole, 1999), Duration::from_millis(9990));
        assert!(part_of(whole, u64::MAX) < whole);
    }
}
