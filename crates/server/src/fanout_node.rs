//! A process without a replica: it finds its group through its upstream, follows the tail, and serves clients from
//! memory. It keeps nothing on disk.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use anyhow::bail;
use tailwater_eventlog::{HistoryId, MemberId, Revision};
use tailwater_fanout::Fanout;
use tailwater_gateway::{Code, Forwarder, Gateway};
use tailwater_transport::{
    Description, Directory, Greeter, RemoteSource, RemoteSourceConfig, Router, RouterConfig, describe, tail_metrics,
};
use tokio::runtime::{Builder, Runtime};

use crate::config::Config;
use crate::data_dir::Identity;
use crate::discovery;
use crate::front::{Front, Plain};
use crate::host::{Bound, Ending, Host, bind_all, tell_ready, told_to_end};
use crate::relay_side::{Describer, RelaySide};
use crate::upstream::{self, Found, TELL_INTERVAL};
use crate::write_route::{RouteKeeper, TierPlane};
use crate::{hashes, process, snapshots, telemetry};

const WAITING: &str = "tailwater: waiting for an upstream";
const TRANSFERRING: &str = "tailwater: the state is being transferred";
const NOT_LIVE: &str = "tailwater: no live tail from any upstream";

/// How often the tail is looked at.
const WATCH_PERIOD: Duration = Duration::from_millis(50);
/// A tail that was silent for so many election timeouts is not live.
const SILENT_TIMEOUTS_MAX: u32 = 3;

/// The parts of a fanout's process.
pub(crate) struct FanoutNode {
    config: Config,
    /// Random: it names this run of the process and nothing else.
    id: MemberId,
    host: Host,
    front: Front,
    peer_listeners: parking_lot::Mutex<Vec<Bound>>,
    /// Streams to leaders, and what is served to other nodes.
    peers: Runtime,
    started: OnceLock<Started>,
}

/// What runs once the group is known.
struct Started {
    remote: Arc<RemoteSource>,
    fanout: Fanout,
    gateway: Gateway,
    /// Takes what is not held here; none where everything is.
    forwarder: Option<Forwarder>,
    relay: RelaySide,
    /// Whether clients are answered.
    is_ready: Arc<AtomicBool>,
}

/// What is served before that.
struct Waiting;

impl Plain for Waiting {
    fn unserved(&self) -> (Code, String) {
        (Code::Unavailable, WAITING.to_owned())
    }

    fn unready(&self) -> Option<String> {
        Some(WAITING.to_owned())
    }
}

impl FanoutNode {
    /// Binds the ports; nothing is served yet.
    ///
    /// # Errors
    /// A port is taken.
    pub(crate) fn build(config: &Config) -> anyhow::Result<Self> {
        let host = Host::bind(config)?;
        let peer_listeners = bind_all(&config.peer_listens, &config.tls.peer)?;
        let peers = Builder::new_multi_thread().worker_threads(1).thread_name("peers").enable_all().build()?;
        let front = Front::new(Arc::new(Waiting), telemetry::start_metrics()?, config, host.control.handle());
        front.shut(true);
        let id = MemberId(rand::random_range(1..=u64::MAX));
        tracing::info!(
            name = config.name,
            roles = config.roles.names().join(","),
            node_id = format!("{:x}", id.0),
            upstream = config.upstream.join(","),
            version = env!("CARGO_PKG_VERSION"),
            reported_version = config.reported_version,
            "starting a tailwater server"
        );
        let peer_listeners = parking_lot::Mutex::new(peer_listeners);
        let (config, started) = (config.clone(), OnceLock::new());
        Ok(Self { config, id, host, front, peer_listeners, peers, started })
    }

    /// Serves until a signal comes.
    ///
    /// # Errors
    /// Why this node could not begin to serve, or can't go on.
    pub(crate) fn run(&self) -> anyhow::Result<Ending> {
        self.host.control.block_on(async {
            tokio::select! {
                outcome = self.serve() => outcome.map(|()| Ending::Own),
                told = told_to_end() => told,
            }
        })
    }

    async fn serve(&self) -> anyhow::Result<()> {
        // Probes are answered while this node waits.
        self.host.listen(&self.front)?;
        let found = upstream::find(&self.config.upstream, &self.config.link()).await?;
        tracing::info!(
            cluster_id = format!("{:x}", found.cluster_id),
            members = found.members.len(),
            sources = found.urls.join(","),
            "found the cluster"
        );
        let (started, routes) = self.start(&found)?;
        self.front.open(started.gateway.clone());
        tokio::select! {
            () = routes.run() => bail!("the route of writes is kept without an end"),
            () = self.forward_rest(started) => bail!("replicas are looked for without an end"),
            () = self.tell_progress(started, &found) => bail!("progress is told without an end"),
            ended = self.watch_tail(started) => ended,
        }
    }

    /// Keeps whom to ask for what is not held here.
    async fn forward_rest(&self, started: &Started) {
        match &started.forwarder {
            Some(forwarder) => {
                let clients = self.host.clients.handle();
                discovery::keep(forwarder, (self.config.upstream.clone(), self.config.link()), clients, |_| {}).await;
            }
            None => std::future::pending().await,
        }
    }

    fn start(&self, found: &Found) -> anyhow::Result<(&Started, RouteKeeper)> {
        let identity = Identity { member_id: self.id.0, cluster_id: found.cluster_id };
        let remote = Arc::new(RemoteSource::new(self.remote_config(found))?);
        let directory = Arc::new(Directory::new(found.cluster_id));
        directory.set_members(&found.members);
        // As no member: its requests may come from anywhere.
        let greeter = Greeter::new(MemberId(0), directory.clone());
        let router_config =
            RouterConfig { link: self.config.link(), ..RouterConfig::new(self.config.request_timeout()) };
        let router = Router::new(None, greeter, router_config, self.peers.handle().clone());
        let inside = self.host.clients.enter();
        let fanout = Fanout::start(self.config.fanout(identity), remote.clone());
        drop(inside);
        let resident_bytes = Arc::new(AtomicU64::new(process::resident_bytes()));
        self.host.control.spawn(refresh(Arc::downgrade(&resident_bytes)));
        let write_plane = Arc::new(TierPlane { router: router.clone(), fanout: fanout.clone(), resident_bytes });
        let render = Box::new(self.front.render_metrics());
        let gateway = Gateway::new(write_plane, fanout.clone(), None, self.config.gateway(identity), render);
        gateway.set_unready(Some(TRANSFERRING));
        let (members, link) = (directory.clone(), self.config.link());
        gateway.forward_hashes(Box::new(move |at| {
            let asked = hashes::ask(members.clone(), link.clone(), at.unwrap_or(Revision(0)));
            Box::pin(async { asked.await.map_err(hashes::fault) })
        }));
        let (members, link) = (directory.clone(), self.config.link());
        gateway.forward_snapshots(Box::new(move || Box::pin(snapshots::ask(members.clone(), link.clone()))));
        let is_ready = Arc::new(AtomicBool::new(false));
        let relay = self.serve_peers(&fanout, &remote, &router, &directory, &is_ready)?;
        let routes = RouteKeeper {
            router,
            directory,
            fanout: fanout.clone(),
            remote: remote.clone(),
            upstream: self.config.upstream.clone(),
            link: self.config.link(),
            members: found.members.clone(),
        };
        let forwarder = (!self.config.ranges.is_empty())
            .then(|| Forwarder::new(self.config.message_bytes_max(), Some(self.config.tls.client_dialer.clone())));
        if let Some(forwarder) = &forwarder {
            gateway.forward_with(forwarder.clone());
        }
        let started = Started { remote, fanout, gateway, forwarder, relay, is_ready };
        assert!(self.started.set(started).is_ok(), "a node is started once");
        Ok((self.started.get().expect("just set"), routes))
    }

    fn serve_peers(
        &self,
        fanout: &Fanout,
        remote: &Arc<RemoteSource>,
        router: &Router,
        directory: &Arc<Directory>,
        is_ready: &Arc<AtomicBool>,
    ) -> anyhow::Result<RelaySide> {
        let is_ready = is_ready.clone();
        let describer = Describer {
            announced: self.config.announced(self.id, directory.cluster_id()),
            fanout: fanout.clone(),
            remote: remote.clone(),
            is_ready: Arc::new(move || is_ready.load(Ordering::Relaxed)),
        };
        let seen = describer.clone();
        let version = format!("{{\"etcdserver\":\"{0}\",\"etcdcluster\":\"{0}\"}}", self.config.reported_version);
        let listeners = std::mem::take(&mut *self.peer_listeners.lock());
        let at = (listeners, self.peers.handle(), self.config.link());
        let relay = RelaySide::serve(describer, router.clone(), directory.clone(), version, at)?;
        let readers = relay.tail.topology().clone();
        self.front.describe_with(move || Description { readers: readers.readers(), ..seen.describe() });
        Ok(relay)
    }

    fn remote_config(&self, found: &Found) -> RemoteSourceConfig {
        let election_timeout = self.config.election_timeout();
        RemoteSourceConfig {
            cluster_id: found.cluster_id,
            ranges: self.config.ranges.clone(),
            announced: self.config.announced(self.id, found.cluster_id),
            // Before this node itself counts as cut off, so that there is time for another source.
            silence_max: election_timeout,
            core_age_max: election_timeout * 2,
            link: self.config.link(),
            ..RemoteSourceConfig::new(found.urls.clone(), self.id)
        }
    }

    /// Says what this node waits for until it is caught up.
    async fn tell_progress(&self, started: &Started, found: &Found) {
        loop {
            tokio::time::sleep(TELL_INTERVAL).await;
            if started.fanout.is_ready() {
                continue;
            }
            let (rows, bytes) = started.remote.transferred();
            let keys = self.upstream_keys(found).await;
            let percent = keys.filter(|keys| *keys > 0).map(|keys| (rows * 100 / keys).min(100));
            tracing::info!(rows, bytes, percent, "transferring the state from an upstream");
        }
    }

    /// How many keys there are to be had, where a source tells.
    async fn upstream_keys(&self, found: &Found) -> Option<u64> {
        let url = found.urls.first()?;
        let answer = describe(url, found.cluster_id, Duration::from_secs(1), &self.config.link()).await;
        answer.ok().map(|described| described.node.load.keys)
    }

    /// Opens and closes the gateway with the tail.
    async fn watch_tail(&self, started: &Started) -> anyhow::Result<()> {
        let silence_max = self.config.election_timeout() * SILENT_TIMEOUTS_MAX;
        let (mut unready, mut history) = (Some(TRANSFERRING), None::<HistoryId>);
        let mut quiet_since = Instant::now();
        loop {
            tokio::time::sleep(WATCH_PERIOD).await;
            let snapshot = started.fanout.snapshot();
            let word = started.remote.core_word();
            if let Some(word) = &word {
                // Here and not where the word comes in, since it ages while nothing comes.
                metrics::gauge!(tail_metrics::CORE_AGE_SECONDS).set(word.age.as_secs_f64());
            }
            let is_leaderless = snapshot.leader.is_none();
            let is_quiet = word.is_none_or(|word| {
                let silence = started.remote.silence().unwrap_or(silence_max);
                // A core without a leader is told of by the tail itself, and is no reason to leave.
                silence >= silence_max || (word.age >= silence_max && !is_leaderless)
            });
            if !is_quiet {
                quiet_since = Instant::now();
            }
            let now = match (started.fanout.is_ready(), is_quiet) {
                (false, _) => Some(TRANSFERRING),
                // The tail that follows a transfer is not there yet.
                (true, true) if unready == Some(TRANSFERRING) => unready,
                (true, true) => Some(NOT_LIVE),
                (true, false) => None,
            };
            if history.is_some_and(|history| history != snapshot.cursor.history) {
                started.gateway.forget_answered();
            }
            if now.is_none() {
                history = Some(snapshot.cursor.history);
            }
            if now == unready {
                continue;
            }
            started.gateway.set_unready(now);
            started.is_ready.store(now.is_none(), Ordering::Relaxed);
            match now {
                None => {
                    self.front.shut(false);
                    tell_ready(Some(snapshot.cursor.revision.0));
                }
                Some(reason) => {
                    let quiet_ms = u64::try_from(quiet_since.elapsed().as_millis()).unwrap_or(u64::MAX);
                    tracing::warn!(reason, quiet_ms, "not ready: clients are sent elsewhere");
                    started.fanout.end_streams();
                }
            }
            unready = now;
        }
    }

    /// Stops accepting and lets clients go.
    pub(crate) fn drain(self) {
        let Self { host, started, peers, .. } = self;
        let started = started.into_inner();
        if let Some(started) = &started {
            started.gateway.drain();
        }
        host.drain(|| {
            if let Some(started) = &started {
                started.fanout.stop();
                started.forwarder.iter().for_each(Forwarder::drain);
            }
        });
        if let Some(started) = &started {
            peers.block_on(started.relay.stop());
        }
        peers.shutdown_timeout(Duration::from_millis(100));
        tracing::info!("server stopped");
    }
}

/// Looks at the memory of this process now and then, while anybody wants to know.
async fn refresh(resident_bytes: Weak<AtomicU64>) {
    while let Some(resident_bytes) = resident_bytes.upgrade() {
        resident_bytes.store(process::resident_bytes(), Ordering::Relaxed);
        drop(resident_bytes);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
