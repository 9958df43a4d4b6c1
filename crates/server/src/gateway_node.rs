//! A process without a store: one stable address in front of replicas that come and go.

use std::sync::Arc;

use tailwater_gateway::{Code, Forwarder};
use tailwater_transport::LinkConfig;

use crate::config::Config;
use crate::discovery;
use crate::front::{Front, Plain};
use crate::host::{Ending, Host, tell_ready, told_to_end};
use crate::telemetry;

const UNREADY: &str = "tailwater: no replica is known that answers reads";

/// The parts of a gateway's process.
pub(crate) struct GatewayNode {
    host: Host,
    front: Front,
    forwarder: Forwarder,
    upstream: Vec<String>,
    link: LinkConfig,
}

/// What probes are told.
struct Readiness(Forwarder);

impl Plain for Readiness {
    fn unserved(&self) -> (Code, String) {
        (Code::Unavailable, UNREADY.to_owned())
    }

    fn unready(&self) -> Option<String> {
        (!self.0.is_ready()).then(|| UNREADY.to_owned())
    }
}

impl GatewayNode {
    /// Binds the ports; nothing is served yet.
    ///
    /// # Errors
    /// A port is taken.
    pub(crate) fn build(config: &Config) -> anyhow::Result<Self> {
        let host = Host::bind(config)?;
        let forwarder = Forwarder::new(config.message_bytes_max(), Some(config.tls.client_dialer.clone()));
        let readiness = Arc::new(Readiness(forwarder.clone()));
        let front = Front::new(readiness, telemetry::start_metrics()?, config, host.control.handle());
        front.forward(forwarder.clone(), config.json_access());
        tracing::info!(
            name = config.name,
            roles = config.roles.names().join(","),
            upstream = config.upstream.join(","),
            version = env!("CARGO_PKG_VERSION"),
            "starting a tailwater server"
        );
        Ok(Self { host, front, forwarder, upstream: config.upstream.clone(), link: config.link() })
    }

    /// Serves until a signal comes.
    ///
    /// # Errors
    /// A listener can't be used, or signals can't be awaited.
    pub(crate) fn run(&self) -> anyhow::Result<Ending> {
        self.host.control.block_on(async {
            // Probes are answered while no replica is known.
            self.host.listen(&self.front)?;
            tokio::select! {
                () = self.discover() => Ok(Ending::Own),
                told = told_to_end() => told,
            }
        })
    }

    async fn discover(&self) {
        let tell = |is_ready| match is_ready {
            true => tell_ready(None),
            false => tracing::warn!("no replica is known that answers reads; calls are refused"),
        };
        let upstream = (self.upstream.clone(), self.link.clone());
        discovery::keep(&self.forwarder, upstream, self.host.clients.handle(), tell).await;
    }

    /// Stops accepting and lets clients go.
    pub(crate) fn drain(self) {
        let Self { host, forwarder, .. } = self;
        host.drain(|| forwarder.drain());
        tracing::info!("server stopped");
    }
}
