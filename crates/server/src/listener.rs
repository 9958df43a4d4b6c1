//! Accepts connections: gRPC over HTTP/2 and plain HTTP/1.1 on one port.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use socket2::SockRef;
use tailwater_gateway::Gateway;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// What a connection may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionBounds {
    /// Most streams on one connection.
    pub(crate) streams_max: u32,
    /// Bytes that are buffered for one stream before its body is asked for more.
    pub(crate) stream_send_bytes: usize,
}

/// What is served on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    /// The etcd API and everything beside it.
    Clients,
    /// Metrics and health only.
    Metrics,
}

/// Bytes of kernel buffer for what a client has not taken yet. It is set so that the kernel does not grow it to
/// megabytes per connection, which no bound of ours would count.
const SEND_BUFFER_BYTES: usize = 256 << 10;
/// What a client may send ahead on one stream, and on one connection: requests are at most a few MiB.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// As etcd: a ping after 2 h without traffic, and 20 s to answer it.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2 * 60 * 60);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Binds an address.
///
/// # Errors
/// The address is taken or not of this machine; the text names it.
pub(crate) async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("can't listen on {address}; free it or name another address"))
}

/// Serves connections until `stop`, then drains them: each gets a GOAWAY, and this returns when all have ended.
pub(crate) async fn serve(
    listener: TcpListener,
    port: Port,
    gateway: Gateway,
    bounds: ConnectionBounds,
    stop: CancellationToken,
) {
    let builder = connection_builder(bounds);
    let graceful = GracefulShutdown::new();
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, most likely: wait for some to be freed instead of spinning.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        if let Err(error) = prepare(&stream) {
            tracing::debug!(%error, "a connection ended before it was served");
            continue;
        }
        let gateway = gateway.clone();
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let gateway = gateway.clone();
            async move {
                let request = request.map(Body::new);
                Ok::<_, Infallible>(match port {
                    Port::Clients => gateway.serve(request).await,
                    Port::Metrics => gateway.serve_http(request).await,
                })
            }
        });
        let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a client connection broke");
            }
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_send_buffer_size(SEND_BUFFER_BYTES)
}

fn connection_builder(bounds: ConnectionBounds) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(bounds.streams_max)
        .max_send_buf_size(bounds.stream_send_bytes)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
    builder
}
