//! One process with all roles: built, run until something ends it, drained.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tailwater_api::tail;
use tailwater_api::write::{SetClusterVersion, command::Command};
use tailwater_consensus::{Consensus, ProposeError, WritePlane};
use tailwater_eventlog::{Member, MemberId};
use tailwater_fanout::Fanout;
use tailwater_gateway::{Gateway, run_auto_compaction};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::corruption::CorruptionCheck;
use crate::data_dir::{DataDir, Identity};
use crate::listener::{Connections, Surface, bind};
use crate::peer_side::PeerSide;
use crate::{process, telemetry};

/// What clients have to go away in when the server stops.
const GRACE: Duration = Duration::from_secs(5);
/// Between attempts to publish this member while no leader is elected.
const PUBLISH_PAUSE: Duration = Duration::from_millis(50);

/// The roles and the runtimes that they run on.
pub(crate) struct Node {
    config: Config,
    identity: Identity,
    consensus: Consensus,
    /// Where this member's own proposals go: to the leader, wherever it is.
    write_plane: Arc<dyn WritePlane>,
    fanout: Fanout,
    gateway: Gateway,
    peer: PeerSide,
    /// Bound before anything else is started, so that a taken port is the first thing to be known.
    client_listeners: Vec<std::net::TcpListener>,
    metrics_listeners: Vec<std::net::TcpListener>,
    draining: watch::Sender<bool>,
    connections: TaskTracker,
    /// Signals, publication, compaction and metrics: small, and never behind a client's request.
    control: Runtime,
    /// Client connections. A burst of them costs the write plane CPU share at worst.
    clients: Runtime,
}

impl Node {
    /// Opens the storage, starts both planes and serves the other members; clients are not served yet. Returns once
    /// this member knows a history: at once where the data directory holds one, else when the group has founded it.
    ///
    /// # Errors
    /// A port is taken, the storage can't be used, or no group was found.
    pub(crate) fn build(config: &Config, data_dir: &DataDir) -> anyhow::Result<Self> {
        let identity = data_dir.identity;
        let client_listeners = bind_all(&config.client_addresses)?;
        let metrics_listeners = bind_all(&config.metrics_addresses)?;
        let peer_listeners = bind_all(&config.peer_addresses)?;
        let control = Builder::new_multi_thread().worker_threads(1).thread_name("control").enable_all().build()?;
        let clients = Builder::new_multi_thread().thread_name("clients").enable_all().build()?;
        let metrics = telemetry::start_metrics()?;
        tracing::info!(
            name = config.name,
            member_id = format!("{:x}", identity.member_id),
            cluster_id = format!("{:x}", identity.cluster_id),
            data_dir = %config.data_dir.display(),
            existing = data_dir.is_existing,
            version = env!("CARGO_PKG_VERSION"),
            reported_version = config.reported_version,
            "starting a tailwater server"
        );
        let peer = PeerSide::new(config, identity)?;
        let (consensus, source) = {
            let _inside = control.enter();
            Consensus::start(config.consensus(data_dir), peer.transport()).context("cannot start the write plane")?
        };
        peer.serve(&consensus, peer_listeners)?;
        let source = source.wait().context("cannot start the write plane")?;
        peer.serve_tail(source.clone());
        let write_plane: Arc<dyn WritePlane> = Arc::new(peer.router(&consensus, config));
        let fanout = {
            let _inside = clients.enter();
            Fanout::start(config.fanout(identity), Arc::new(source))
        };
        let render = Box::new(move || metrics.render() + &process::render());
        let gateway = Gateway::new(
            write_plane.clone(),
            fanout.clone(),
            Some(consensus.event_log()),
            config.gateway(identity),
            render,
        );
        Ok(Self {
            config: config.clone(),
            identity,
            consensus,
            write_plane,
            fanout,
            gateway,
            peer,
            client_listeners,
            metrics_listeners,
            draining: watch::channel(false).0,
            connections: TaskTracker::new(),
            control,
            clients,
        })
    }

    /// Serves until a signal comes or the write plane stops by itself.
    ///
    /// # Errors
    /// Why the write plane stopped, or why this member could not begin to serve.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        self.control.block_on(async {
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            let serving = async {
                self.join().await?;
                let check = self.corruption_check();
                if self.config.initial_corrupt_check {
                    check.at_start().await?;
                }
                self.listen()?;
                tokio::join!(run_auto_compaction(self.gateway.clone()), check.run(self.config.corrupt_check_interval));
                Ok(())
            };
            tokio::select! {
                outcome = serving => outcome,
                reason = self.consensus.stopped() => match reason {
                    Some(reason) => bail!("the write plane stopped: {reason}"),
                    None => Ok(()),
                },
                _ = terminate.recv() => { tracing::info!(signal = "terminated", "received signal; shutting down"); Ok(()) }
                _ = interrupt.recv() => { tracing::info!(signal = "interrupt", "received signal; shutting down"); Ok(()) }
            }
        })
    }

    /// Waits for the state and a leader, and publishes this member.
    async fn join(&self) -> anyhow::Result<()> {
        self.fanout.ready().await;
        let member = tail::Member {
            id: self.identity.member_id,
            name: self.config.name.clone(),
            peer_urls: self.config.peer_urls.clone(),
            client_urls: self.config.client_urls.clone(),
            is_learner: false,
        };
        let publish = tailwater_api::write::PublishMember { member: Some(member) };
        self.propose(Command::PublishMember(publish)).await.context("cannot publish this member")?;
        tracing::info!(name = self.config.name, "published local member to cluster through raft");
        if self.consensus.catch_up_wanted().borrow().is_none() {
            // Up without it: a copy that an earlier run began is of no use any more.
            if let Err(error) = self.consensus.event_log().discard_staging() {
                tracing::warn!(%error, "an interrupted copy was not removed; the next start tries again");
            }
        }
        let version = self.config.gateway(self.identity).storage_version();
        if self.fanout.snapshot().cluster_version != version {
            let set = SetClusterVersion { version };
            self.propose(Command::SetClusterVersion(set)).await.context("cannot set the cluster version")?;
        }
        Ok(())
    }

    /// Proposes until it is answered: the lack of a leader and a long replay are waited out.
    async fn propose(&self, command: Command) -> Result<(), ProposeError> {
        loop {
            match self.write_plane.propose(command.clone()).await {
                Ok(applied) => {
                    // What was set is seen by the first client.
                    return self.fanout.reach(applied.position).await.map_err(|_| ProposeError::Stopped);
                }
                // Also while what the raft log holds above the stored state is applied: after a crash that may be much.
                Err(
                    ProposeError::NoLeader
                    | ProposeError::LeaderChanged
                    | ProposeError::TooManyRequests
                    | ProposeError::Timeout,
                ) => tokio::time::sleep(PUBLISH_PAUSE).await,
                Err(error) => return Err(error),
            }
        }
    }

    fn corruption_check(&self) -> CorruptionCheck {
        CorruptionCheck {
            consensus: self.consensus.clone(),
            directory: self.peer.directory(),
            write_plane: self.write_plane.clone(),
        }
    }

    fn listen(&self) -> anyhow::Result<()> {
        let connections = Connections::new(
            self.gateway.clone(),
            self.config.send_buffer_bytes(),
            self.draining.subscribe(),
            self.connections.clone(),
        );
        for listener in &self.client_listeners {
            let listener = listener.try_clone()?;
            tracing::warn!(
                address = %listener.local_addr()?,
                "serving client traffic insecurely; this is strongly discouraged!"
            );
            self.connections.spawn_on(report_end(connections.clone().accept(listener)), self.clients.handle());
        }
        for listener in &self.metrics_listeners {
            let listener = listener.try_clone()?;
            tracing::info!(address = %listener.local_addr()?, "serving metrics");
            let accepting = connections.on(Surface::Metrics).accept(listener);
            self.connections.spawn_on(report_end(accepting), self.control.handle());
        }
        tracing::info!("ready to serve client requests");
        Ok(())
    }

    /// Hands over leadership, stops accepting, lets clients go, syncs, and closes the files.
    pub(crate) fn drain(self) {
        self.gateway.drain();
        self.control.block_on(self.hand_over());
        self.draining.send_replace(true);
        self.fanout.stop();
        self.connections.close();
        let is_in_time =
            self.control.block_on(async { tokio::time::timeout(GRACE, self.connections.wait()).await.is_ok() });
        if !is_in_time {
            tracing::warn!(connections = self.connections.len(), "clients did not leave in time; closing on them");
        }
        self.clients.shutdown_timeout(Duration::from_millis(100));
        self.peer.stop();
        self.consensus.stop();
        tracing::info!("server stopped");
    }

    /// A leader that goes names its successor, so that writes need not wait for an election.
    async fn hand_over(&self) {
        let own = MemberId(self.identity.member_id);
        if self.consensus.status().leader != own {
            return;
        }
        let snapshot = self.fanout.snapshot();
        let active = self.peer.active();
        let is_successor = |member: &&Member| !member.is_learner && member.id != own && active.contains(&member.id);
        let Some(successor) = snapshot.members.iter().find(is_successor) else { return };
        match self.consensus.move_leader(successor.id).await {
            Ok(()) => tracing::info!(successor = format!("{:x}", successor.id.0), "handed over leadership"),
            Err(error) => tracing::warn!(%error, "leadership was not handed over"),
        }
    }
}

fn bind_all(addresses: &[std::net::SocketAddr]) -> anyhow::Result<Vec<std::net::TcpListener>> {
    addresses.iter().copied().map(bind).collect()
}

async fn report_end(accepting: impl Future<Output = std::io::Result<()>>) {
    if let Err(error) = accepting.await {
        tracing::error!(%error, "a listener failed");
    }
}
