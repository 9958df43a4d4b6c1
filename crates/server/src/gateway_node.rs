//! A process without a store: one stable address in front of replicas that come and go.

use std::sync::Arc;
use std::time::Duration;

use tailwater_gateway::{Code, Forwarder};
use tokio::time::MissedTickBehavior;

use crate::config::Config;
use crate::discovery::Discovery;
use crate::front::{Front, Plain};
use crate::host::{Host, told_to_end};
use crate::telemetry;

const UNREADY: &str = "tailwater: no replica is known that answers reads";
/// Between two rounds of questions.
const ROUND: Duration = Duration::from_secs(1);

/// The parts of a gateway's process.
pub(crate) struct GatewayNode {
    host: Host,
    front: Front,
    forwarder: Forwarder,
    upstream: Vec<String>,
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
        let forwarder = Forwarder::new(config.message_bytes_max());
        let front = Front::new(Arc::new(Readiness(forwarder.clone())), telemetry::start_metrics()?);
        front.forward(forwarder.clone());
        tracing::info!(
            name = config.name,
            roles = config.roles.names().join(","),
            upstream = config.upstream.join(","),
            version = env!("CARGO_PKG_VERSION"),
            "starting a tailwater server"
        );
        Ok(Self { host, front, forwarder, upstream: config.upstream.clone() })
    }

    /// Serves until a signal comes.
    ///
    /// # Errors
    /// A listener can't be used, or signals can't be awaited.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        self.host.control.block_on(async {
            // Probes are answered while no replica is known.
            self.host.listen(&self.front)?;
            tokio::select! {
                () = self.discover() => Ok(()),
                told = told_to_end() => told,
            }
        })
    }

    /// Keeps what is known of the replicas.
    async fn discover(&self) {
        let mut discovery = Discovery::new(self.upstream.clone());
        let mut rounds = tokio::time::interval(ROUND);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut was_ready = false;
        loop {
            rounds.tick().await;
            // Who can't be asked now may still serve: what was known stays, and a call that fails says more.
            if let Some(replicas) = discovery.round().await {
                let _inside = self.host.clients.enter();
                self.forwarder.update(replicas);
            }
            let is_ready = self.forwarder.is_ready();
            if is_ready != was_ready {
                was_ready = is_ready;
                match is_ready {
                    true => tracing::info!("ready to serve client requests"),
                    false => tracing::warn!("no replica is known that answers reads; calls are refused"),
                }
            }
        }
    }

    /// Stops accepting and lets clients go.
    pub(crate) fn drain(self) {
        let Self { host, forwarder, .. } = self;
        host.drain(|| forwarder.drain());
        tracing::info!("server stopped");
    }
}
