//! Listening sockets and their connections: HTTP/1.1 and HTTP/2, with TLS and without, on one port.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tailwater_tls::Door;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::connection::{ConnectionLimits, Draining, serve};
use crate::front::Front;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;
/// Kernel buffers of one connection, each way, until a connection is given its share.
const SOCKET_BUFFER_BYTES: usize = 128 * 1024;
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
    /// gRPC alone.
    Grpc,
    /// All but gRPC.
    Http,
    /// Metrics and health alone.
    Metrics,
}

/// What the connections of a listener share.
#[derive(Clone)]
pub(crate) struct Connections {
    front: Front,
    surface: Surface,
    limits: ConnectionLimits,
    /// Set once, when the server drains.
    draining: watch::Receiver<Draining>,
    tracker: TaskTracker,
}

impl Connections {
    pub(crate) fn new(
        front: Front,
        limits: ConnectionLimits,
        draining: watch::Receiver<Draining>,
        tracker: TaskTracker,
    ) -> Self {
        Self { front, surface: Surface::Client, limits, draining, tracker }
    }

    /// The same for another surface.
    pub(crate) fn on(&self, surface: Surface) -> Self {
        Self { surface, ..self.clone() }
    }

    /// Accepts until the server drains.
    ///
    /// # Errors
    /// The listener can't be used with this runtime.
    pub(crate) async fn accept(mut self, listener: std::net::TcpListener, door: Door) -> std::io::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = self.draining.wait_for(|draining| matches!(draining, Draining::Within(_))) => return Ok(()),
            };
            match accepted {
                Ok((stream, peer)) => {
                    let Self { front, surface, limits, draining, .. } = self.clone();
                    self.tracker.spawn(serve(front, surface, limits, draining, (door.clone(), stream, peer)));
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}
