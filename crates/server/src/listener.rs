//! Listening sockets and their connections: HTTP/1.1 and HTTP/2 without TLS on one port.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use anyhow::Context as _;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::front::Front;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;
/// Kernel buffers of one connection, each way: a part of what a stalled client may hold.
const SOCKET_BUFFER_BYTES: usize = 128 * 1024;
/// What a client may send on one stream, and on all streams of a connection, before we have read it.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// Calls that a client may have given up before we have looked at them. Go's clients do so in bursts, whenever a context
/// that many calls share ends; beyond it the connection is closed, as a defence against floods.
const RESET_STREAMS_MAX: usize = 8192;
/// etcd's keepalive: asked after two hours of silence, gone after 20 s without an answer.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2 * 3600);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// The kernel's own probes of a silent connection: the first after this, and as far apart, as etcd's listener asks.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
/// Pause after a failed accept, for instance when file descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Binds one address.
///
/// # Errors
/// The address is taken or not of this machine.
pub(crate) fn bind(address: SocketAddr) -> anyhow::Result<std::net::TcpListener> {
    let open = || -> std::io::Result<std::net::TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // A restart must not wait for old connections to time out.
        socket.set_reuse_address(true)?;
        socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
        socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
        // Accepted connections inherit it: a client whose machine vanished is noticed long before HTTP/2 asks.
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(TCP_KEEPALIVE).with_interval(TCP_KEEPALIVE))?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    open().with_context(|| format!("cannot listen on {address}; free it or change the listen URL"))
}

/// What a listener serves.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Surface {
    /// The etcd API, metrics and health.
    Client,
    /// Metrics and health alone.
    Metrics,
}

/// What the connections of a listener share.
#[derive(Clone)]
pub(crate) struct Connections {
    front: Front,
    surface: Surface,
    send_buffer_bytes: usize,
    /// Set once, when the server drains.
    draining: watch::Receiver<bool>,
    tracker: TaskTracker,
}

impl Connections {
    pub(crate) fn new(
        front: Front,
        send_buffer_bytes: usize,
        draining: watch::Receiver<bool>,
        tracker: TaskTracker,
    ) -> Self {
        Self { front, surface: Surface::Client, send_buffer_bytes, draining, tracker }
    }

    /// The same for another surface.
    pub(crate) fn on(&self, surface: Surface) -> Self {
        Self { surface, ..self.clone() }
    }

    /// Accepts until the server drains.
    ///
    /// # Errors
    /// The listener can't be used with this runtime.
    pub(crate) async fn accept(mut self, listener: std::net::TcpListener) -> std::io::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = drained(&mut self.draining) => return Ok(()),
            };
            match accepted {
                Ok((stream, _)) => {
                    let connection = self.clone().serve(stream);
                    self.tracker.spawn(connection);
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn serve(mut self, stream: TcpStream) {
        // Watch events are small writes that must not wait for an acknowledgement.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "connection ended before it began");
            return;
        }
        let builder = self.builder();
        let (front, surface) = (self.front.clone(), self.surface);
        let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            let front = front.clone();
            async move {
                let request = request.map(axum::body::Body::new);
                Ok::<_, Infallible>(match surface {
                    Surface::Client => front.serve(request).await,
                    Surface::Metrics => front.serve_metrics(request).await,
                })
            }
        });
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = drained(&mut self.draining) => {
                // HTTP/2: GOAWAY, so that the client opens its next stream elsewhere.
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(error, "connection failed");
        }
    }

    fn builder(&self) -> auto::Builder<TokioExecutor> {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http2()
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(self.send_buffer_bytes)
            // Unlimited, as etcd's default.
            .max_concurrent_streams(None)
            .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
            .keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT);
        builder.http1().timer(TokioTimer::new());
        builder
    }
}

/// Resolves when the server drains, or is gone.
async fn drained(draining: &mut watch::Receiver<bool>) {
    draining.wait_for(|draining| *draining).await.ok();
}
