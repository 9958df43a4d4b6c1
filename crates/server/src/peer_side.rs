//! What this member serves to the others and asks of them: raft messages, the write plane, the tail, copies of the state.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tailwater_consensus::{CatchUp, Consensus, PeerTransport};
use tailwater_eventlog::{LocalSource, MemberId, Source};
use tailwater_fanout::{Fanout, MemberSource};
use tailwater_gateway::Snapshots;
use tailwater_transport::{
    CopyConfig, CoreWord, Description, Directory, LinkConfig, NodeDescription, NodeLoad, PeerPort, Peers, PeersConfig,
    PortInfo, PortServer, Router, RouterConfig, TailService, TailServiceConfig, WriteService, WriteServiceConfig,
    copy_member_state,
};
use tokio::runtime::{Builder, Runtime};

use crate::config::Config;
use crate::data_dir::Identity;
use crate::describe::node_load;
use crate::host::Bound;
use crate::no_source::NoSource;
use crate::{process, snapshots};

/// What other members have to go away in when this one stops.
const GRACE: Duration = Duration::from_secs(1);
/// Between two attempts to copy the state of another member.
const COPY_PAUSE: Duration = Duration::from_secs(1);

/// The peer URLs, on a runtime of their own: no client's request is before a heartbeat.
pub(crate) struct PeerSide {
    peers: Peers,
    runtime: Runtime,
    version: String,
    link: LinkConfig,
    /// What is known from the start.
    announced: NodeDescription,
    served: parking_lot::Mutex<Option<(PortServer, WriteService, TailService)>>,
    /// There once this member knows a history.
    source: Arc<OnceLock<LocalSource>>,
    /// There once this member reads its own tail, if it ever does.
    fanout: Arc<OnceLock<Fanout>>,
}

impl PeerSide {
    /// Nothing is served yet.
    ///
    /// # Errors
    /// No thread can be started.
    pub(crate) fn new(config: &Config, identity: Identity) -> anyhow::Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("peers").enable_all().build()?;
        let directory = Arc::new(Directory::new(identity.cluster_id));
        let peers_config = PeersConfig { link: config.link(), ..PeersConfig::new(MemberId(identity.member_id)) };
        let peers = Peers::new(peers_config, directory, runtime.handle().clone());
        let version = config.reported_version.clone();
        let announced = config.announced(MemberId(identity.member_id), identity.cluster_id);
        Ok(Self {
            peers,
            runtime,
            version,
            link: config.link(),
            announced,
            served: parking_lot::Mutex::default(),
            source: Arc::default(),
            fanout: Arc::default(),
        })
    }

    /// What the replica sends through.
    pub(crate) fn transport(&self) -> Arc<dyn PeerTransport> {
        Arc::new(self.peers.clone())
    }

    /// Lets messages in, and serves the listeners.
    ///
    /// # Errors
    /// A listener can't be used.
    pub(crate) fn serve(&self, consensus: &Consensus, listeners: Vec<Bound>) -> anyhow::Result<()> {
        self.peers.attach(Arc::new(consensus.clone()));
        let write =
            WriteService::new(Arc::new(consensus.clone()), self.peers.greeter().clone(), WriteServiceConfig::default());
        let tail = self.tail_service(consensus);
        let version = format!("{{\"etcdserver\":\"{0}\",\"etcdcluster\":\"{0}\"}}", self.version);
        let info = PortInfo { directory: self.peers.directory().clone(), version: Arc::new(move || version.clone()) };
        let port = PeerPort::new(info)
            .add_service(self.peers.service().into_server())
            .add_service(write.clone().into_server())
            .add_service(tail.clone().into_grpc())
            .into_server();
        for Bound { listener, door } in listeners {
            tracing::info!(address = %listener.local_addr()?, "serving peer traffic");
            let serving = port.clone().serve(listener, door);
            self.runtime.spawn(async move {
                if let Err(error) = serving.await {
                    tracing::error!(%error, "a peer listener failed");
                }
            });
        }
        *self.served.lock() = Some((port, write, tail));
        let directory = self.peers.directory().clone();
        self.runtime.spawn(catch_up(consensus.clone(), directory, self.link.clone()));
        Ok(())
    }

    /// What the tail is served from, from now on.
    pub(crate) fn serve_tail(&self, source: LocalSource) {
        assert!(self.source.set(source).is_ok(), "the history is found once");
    }

    /// The read plane whose load is told, from now on.
    pub(crate) fn tell_load_of(&self, fanout: Fanout) {
        assert!(self.fanout.set(fanout).is_ok(), "there is one read plane");
    }

    fn tail_service(&self, consensus: &Consensus) -> TailService {
        let (source, fanout) = (self.source.clone(), self.fanout.clone());
        let sources = move || -> Arc<dyn Source> {
            match source.get() {
                Some(source) => Arc::new(MemberSource::new(source.clone(), fanout.get().cloned())),
                None => Arc::new(NoSource),
            }
        };
        let teller = core_word(consensus.clone());
        let log = Some(consensus.event_log());
        let config = TailServiceConfig { cluster_id: self.peers.directory().cluster_id(), ..Default::default() };
        let service = TailService::new(config, Box::new(sources), log, Box::new(teller));
        let describer = self.describer(consensus);
        service.describe_with(Box::new(move || describer.describe()));
        service.serve_snapshots(snapshots::own(Snapshots::new(consensus.event_log())));
        service
    }

    fn describer(&self, consensus: &Consensus) -> Describer {
        Describer {
            announced: self.announced.clone(),
            consensus: consensus.clone(),
            directory: self.peers.directory().clone(),
            source: self.source.clone(),
            fanout: self.fanout.clone(),
        }
    }

    /// What this member says of itself, and who reads from it.
    pub(crate) fn description(&self, consensus: &Consensus) -> impl Fn() -> Description + Send + Sync + 'static {
        let describer = self.describer(consensus);
        let readers = self.served.lock().as_ref().map(|(_, _, tail)| tail.topology().clone()).unwrap_or_default();
        move || Description { readers: readers.readers(), ..describer.describe() }
    }

    /// Proposals and barriers of this process.
    pub(crate) fn router(&self, consensus: &Consensus, config: &Config) -> Router {
        Router::new(
            Some(Arc::new(consensus.clone())),
            self.peers.greeter().clone(),
            RouterConfig { link: config.link(), ..RouterConfig::new(config.request_timeout()) },
            self.runtime.handle().clone(),
        )
    }

    /// Who the members are.
    pub(crate) fn directory(&self) -> Arc<Directory> {
        self.peers.directory().clone()
    }

    /// Members to which a link is up.
    pub(crate) fn active(&self) -> Vec<MemberId> {
        self.peers.active()
    }

    /// Ends links and streams.
    pub(crate) fn stop(&self) {
        self.peers.stop();
        let Some((port, write, tail)) = self.served.lock().take() else { return };
        write.stop();
        tail.stop();
        self.runtime.block_on(async {
            port.stop(GRACE).await;
            if tokio::time::timeout(GRACE, tail.ended()).await.is_err() {
                tracing::warn!("readers of the tail did not let go in time");
            }
        });
    }
}

/// What a member says of itself.
struct Describer {
    announced: NodeDescription,
    consensus: Consensus,
    directory: Arc<Directory>,
    source: Arc<OnceLock<LocalSource>>,
    fanout: Arc<OnceLock<Fanout>>,
}

impl Describer {
    /// Without its readers.
    fn describe(&self) -> Description {
        let (status, source) = (self.consensus.status(), self.source.get());
        let node = NodeDescription {
            reached: source.map(|source| source.tail.end()).unwrap_or_default(),
            path: vec![self.announced.id.0],
            ready: source.is_some(),
            load: self
                .fanout
                .get()
                .map(node_load)
                .unwrap_or_else(|| NodeLoad { resident_bytes: process::resident_bytes(), ..Default::default() }),
            ..self.announced.clone()
        };
        let leader = (status.leader != MemberId(0)).then_some(status.leader);
        Description { node, readers: Vec::new(), members: self.directory.members(), leader, term: status.term }
    }
}

/// A member hears from the core while it knows a leader; its age counts from when that ended.
fn core_word(consensus: Consensus) -> impl Fn() -> CoreWord + Send + Sync {
    let own = consensus.member_id();
    let lost = parking_lot::Mutex::new(None::<Instant>);
    move || {
        let leader = consensus.status().leader;
        let mut lost = lost.lock();
        if leader == MemberId(0) {
            let age = lost.get_or_insert_with(Instant::now).elapsed();
            return CoreWord { path: vec![own.0], age };
        }
        *lost = None;
        let path = if leader == own { vec![own.0] } else { vec![leader.0, own.0] };
        CoreWord { path, age: Duration::ZERO }
    }
}

/// Copies the state of another member whenever the replica can't go on without.
async fn catch_up(consensus: Consensus, directory: Arc<Directory>, link: LinkConfig) {
    let mut wanted = consensus.catch_up_wanted();
    loop {
        let Ok(wish) = wanted.wait_for(Option::is_some).await.map(|wish| *wish) else { return };
        let wish = wish.expect("just waited for");
        match copy(&consensus, &directory, &link, wish).await {
            Ok(()) => tracing::info!(position = wish.position.0, "caught up with the state of another member"),
            Err(error) => {
                tracing::warn!(reason = format!("{error:#}"), "the state of another member was not taken over");
                tokio::time::sleep(COPY_PAUSE).await;
            }
        }
    }
}

async fn copy(consensus: &Consensus, directory: &Directory, link: &LinkConfig, wish: CatchUp) -> anyhow::Result<()> {
    let own = consensus.member_id();
    let mut sources: Vec<_> = directory.members().into_iter().filter(|member| member.id != own).collect();
    // The leader has enough to do: it is asked last.
    sources.sort_by_key(|member| member.id == wish.from);
    let urls: Vec<String> = sources.into_iter().flat_map(|member| member.peer_urls).collect();
    let log = consensus.event_log();
    let staging = tokio::task::spawn_blocking(move || log.staging()).await??;
    tracing::info!(position = wish.position.0, "copying the state of another member: the log does not reach back");
    let config = CopyConfig { cluster_id: directory.cluster_id(), link: link.clone(), ..CopyConfig::new(own) };
    let staged = copy_member_state(&urls, staging, wish.position, &config).await?;
    Ok(consensus.install(staged).await?)
}
