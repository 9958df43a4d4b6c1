//! What every process has, whatever its roles: listeners, the runtimes that serve them, and how they end.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::ExitCode;
use std::time::Duration;

use tailwater_tls::{Door, ServerTls, TlsConfig};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::config::{Config, Listen};
use crate::connection::{ConnectionLimits, Draining};
use crate::front::Front;
use crate::listener::{Connections, Surface, bind};

/// Connections are told to end so far apart when the server stops, and all of them within a second.
const DRAIN_STEP: Duration = Duration::from_millis(10);
const DRAIN_MAX: Duration = Duration::from_secs(1);

/// Sockets and runtimes.
pub(crate) struct Host {
    /// Bound before anything else is started, so that a taken port is the first thing to be known.
    client_listeners: Vec<Bound>,
    /// Of what is not gRPC; none: the client listeners serve it too.
    http_listeners: Vec<Bound>,
    metrics_listeners: Vec<Bound>,
    limits: ConnectionLimits,
    /// What clients have to go away in when the server stops.
    drain_grace: Duration,
    draining: watch::Sender<Draining>,
    connections: TaskTracker,
    /// Signals, publication, compaction and metrics: small, and never behind a client's request.
    pub(crate) control: Runtime,
    /// Client connections. A burst of them costs the write plane CPU share at worst.
    pub(crate) clients: Runtime,
}

impl Host {
    /// Binds the ports for clients and metrics; nothing is accepted yet.
    ///
    /// # Errors
    /// A port is taken, or no thread can be started.
    pub(crate) fn bind(config: &Config) -> anyhow::Result<Self> {
        Ok(Self {
            client_listeners: bind_all(&config.client_listens, &config.tls.client)?,
            http_listeners: bind_all(&config.http_listens, &config.tls.client)?,
            metrics_listeners: bind_all(&config.metrics_listens, &config.tls.client)?,
            limits: config.connections(),
            drain_grace: config.drain_grace,
            draining: watch::channel(Draining::No).0,
            connections: TaskTracker::new(),
            control: Builder::new_multi_thread().worker_threads(1).thread_name("control").enable_all().build()?,
            clients: Builder::new_multi_thread().thread_name("clients").enable_all().build()?,
        })
    }

    /// Accepts clients and probes from now on.
    ///
    /// # Errors
    /// A listener can't be used.
    pub(crate) fn listen(&self, front: &Front) -> anyhow::Result<()> {
        let connections =
            Connections::new(front.clone(), self.limits, self.draining.subscribe(), self.connections.clone());
        let (surface, traffic) = match self.http_listeners.is_empty() {
            true => (Surface::Client, "grpc+http"),
            false => (Surface::Grpc, "grpc"),
        };
        for Bound { listener, door } in &self.client_listeners {
            let listener = listener.try_clone()?;
            let address = listener.local_addr()?;
            if door.is_secure() {
                tracing::info!(traffic, %address, "serving client traffic securely");
            }
            if door.is_plain() {
                tracing::warn!(
                    traffic,
                    %address,
                    "serving client traffic insecurely; this is strongly discouraged!"
                );
            }
            let accepting = connections.on(surface).accept(listener, door.clone());
            self.connections.spawn_on(report_end(accepting), self.clients.handle());
        }
        for Bound { listener, door } in &self.http_listeners {
            let listener = listener.try_clone()?;
            tracing::info!(traffic = "http", address = %listener.local_addr()?, "serving client traffic");
            let accepting = connections.on(Surface::Http).accept(listener, door.clone());
            self.connections.spawn_on(report_end(accepting), self.clients.handle());
        }
        for Bound { listener, door } in &self.metrics_listeners {
            let listener = listener.try_clone()?;
            tracing::info!(address = %listener.local_addr()?, "serving metrics");
            let accepting = connections.on(Surface::Metrics).accept(listener, door.clone());
            self.connections.spawn_on(report_end(accepting), self.control.handle());
        }
        Ok(())
    }

    /// Stops accepting and lets clients go, each connection a little after another: GOAWAY, then the end of its watches.
    /// `end_streams` is called once all have been told.
    pub(crate) fn drain(self, end_streams: impl FnOnce()) {
        let count = u32::try_from(self.connections.len()).unwrap_or(u32::MAX);
        let within = DRAIN_STEP.saturating_mul(count).min(DRAIN_MAX).min(self.drain_grace / 2);
        self.draining.send_replace(Draining::Within(within));
        self.connections.close();
        let is_in_time = self.control.block_on(async {
            tokio::time::timeout(within, self.connections.wait()).await.ok();
            end_streams();
            tokio::time::timeout(self.drain_grace - within, self.connections.wait()).await.is_ok()
        });
        if !is_in_time {
            tracing::warn!(connections = self.connections.len(), "clients did not leave in time; closing on them");
        }
        self.clients.shutdown_timeout(Duration::from_millis(100));
    }
}

/// A port that is bound, and how it is entered.
pub(crate) struct Bound {
    pub(crate) listener: std::net::TcpListener,
    pub(crate) door: Door,
}

/// Binds each address; the files of TLS are read where one is secure.
///
/// # Errors
/// One is taken or not of this machine, or the files can't be used.
pub(crate) fn bind_all(listens: &[Listen], tls: &TlsConfig) -> anyhow::Result<Vec<Bound>> {
    let is_secure = listens.iter().any(|listen| listen.is_secure);
    let server = if is_secure { Some(ServerTls::new(tls)?) } else { None };
    let bind_one = |listen: &Listen| {
        let door = match (&server, listen.is_secure, listen.is_plain) {
            (Some(server), true, true) => Door::either(server.clone()),
            (Some(server), true, false) => Door::secure(server.clone()),
            _ => Door::plain(),
        };
        Ok(Bound { listener: bind(listen.address)?, door })
    };
    listens.iter().map(bind_one).collect()
}

/// How a process came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// By itself: this member was removed.
    Own,
    /// By this signal.
    Signal(i32),
}

/// Resolves when the process is told to end.
///
/// # Errors
/// Signals can't be awaited here.
pub(crate) async fn told_to_end() -> anyhow::Result<Ending> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (kind, name) = tokio::select! {
        _ = terminate.recv() => (SignalKind::terminate(), "terminated"),
        _ = interrupt.recv() => (SignalKind::interrupt(), "interrupt"),
    };
    tracing::info!(signal = name, "received signal; shutting down");
    Ok(Ending::Signal(kind.as_raw_value()))
}

/// Ends this process as the signal would have without anybody listening for it. The first process of a container can't
/// be ended so, and ends well.
pub(crate) fn end_by(signal: i32) -> ExitCode {
    if std::process::id() != 1 {
        signal_hook::low_level::emulate_default_handler(signal).ok();
    }
    ExitCode::SUCCESS
}

/// Says that clients are served: in the log, and to the service manager that started this process, if it wants to know.
pub(crate) fn tell_ready(revision: Option<i64>) {
    tracing::info!(revision, "ready to serve client requests");
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = notify(&socket) {
        tracing::warn!(%error, "the service manager was not told");
    }
}

fn notify(socket: &OsStr) -> std::io::Result<()> {
    let datagram = UnixDatagram::unbound()?;
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    datagram.send_to_addr(b"READY=1", &address).map(drop)
}

async fn report_end(accepting: impl Future<Output = std::io::Result<()>>) {
    if let Err(error) = accepting.await {
        tracing::error!(%error, "a listener failed");
    }
}
