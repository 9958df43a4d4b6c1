//! What this member serves to the others and asks of them: raft messages, the write plane, the tail.

use std::sync::Arc;
use std::time::Duration;

use tailwater_consensus::{Consensus, PeerTransport};
use tailwater_eventlog::MemberId;
use tailwater_transport::{
    Directory, PeerPort, Peers, PeersConfig, PortInfo, PortServer, Router, RouterConfig, WriteService,
    WriteServiceConfig,
};
use tokio::runtime::{Builder, Runtime};

use crate::config::Config;
use crate::data_dir::Identity;

/// What other members have to go away in when this one stops.
const GRACE: Duration = Duration::from_secs(1);

/// The peer URLs, on a runtime of their own: no client's request is before a heartbeat.
pub(crate) struct PeerSide {
    peers: Peers,
    runtime: Runtime,
    version: String,
    served: parking_lot::Mutex<Option<(PortServer, WriteService)>>,
}

impl PeerSide {
    /// Nothing is served yet.
    ///
    /// # Errors
    /// No thread can be started.
    pub(crate) fn new(config: &Config, identity: Identity) -> anyhow::Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("peers").enable_all().build()?;
        let directory = Arc::new(Directory::new(identity.cluster_id));
        let peers = Peers::new(PeersConfig::new(MemberId(identity.member_id)), directory, runtime.handle().clone());
        let version = config.reported_version.clone();
        Ok(Self { peers, runtime, version, served: parking_lot::Mutex::default() })
    }

    /// What the replica sends through.
    pub(crate) fn transport(&self) -> Arc<dyn PeerTransport> {
        Arc::new(self.peers.clone())
    }

    /// Lets messages in, and serves the listeners.
    ///
    /// # Errors
    /// A listener can't be used.
    pub(crate) fn serve(&self, consensus: &Consensus, listeners: Vec<std::net::TcpListener>) -> anyhow::Result<()> {
        self.peers.attach(Arc::new(consensus.clone()));
        let write = WriteService::new(
            Arc::new(consensus.clone()),
            self.peers.greeter().clone(),
            WriteServiceConfig::default(),
        );
        let version = format!("{{\"etcdserver\":\"{0}\",\"etcdcluster\":\"{0}\"}}", self.version);
        let info = PortInfo { directory: self.peers.directory().clone(), version: Arc::new(move || version.clone()) };
        let port = PeerPort::new(info)
            .add_service(self.peers.service().into_server())
            .add_service(write.clone().into_server())
            .into_server();
        for listener in listeners {
            tracing::info!(address = %listener.local_addr()?, "now serving peer traffic");
            let serving = port.clone().serve(listener);
            self.runtime.spawn(async move {
                if let Err(error) = serving.await {
                    tracing::error!(%error, "a peer listener failed");
                }
            });
        }
        *self.served.lock() = Some((port, write));
        Ok(())
    }

    /// Proposals and barriers of this process.
    pub(crate) fn router(&self, consensus: &Consensus, config: &Config) -> Router {
        Router::new(
            Some(Arc::new(consensus.clone())),
            self.peers.greeter().clone(),
            RouterConfig::new(config.request_timeout()),
            self.runtime.handle().clone(),
        )
    }

    /// Members to which a link is up.
    pub(crate) fn active(&self) -> Vec<MemberId> {
        self.peers.active()
    }

    /// Ends links and streams.
    pub(crate) fn stop(&self) {
        self.peers.stop();
        let Some((port, write)) = self.served.lock().take() else { return };
        write.stop();
        self.runtime.block_on(port.stop(GRACE));
    }
}
