//! A member of the group, with the read plane and the gateway beside it or alone: built, run until something ends it,
//! drained.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tailwater_api::tail;
use tailwater_api::write::{SetClusterVersion, command::Command};
use tailwater_consensus::{Consensus, ProposeError, WritePlane};
use tailwater_eventlog::{Fact, LocalSource, Member, MemberId, Source as _};
use tailwater_fanout::{Fanout, FanoutConfig};
use tailwater_gateway::{Gateway, run_auto_compaction};

use crate::config::Config;
use crate::corruption::CorruptionCheck;
use crate::data_dir::{DataDir, Identity};
use crate::front::Front;
use crate::host::{Ending, Host, bind_all, tell_ready, told_to_end};
use crate::member_front::MemberFront;
use crate::peer_side::PeerSide;
use crate::telemetry;

/// Between attempts to publish this member while no leader is elected.
const PUBLISH_PAUSE: Duration = Duration::from_millis(50);

/// Smaller values take less than what is held in their place would save.
const UNREAD_VALUE_BYTES_MIN: usize = 128;

/// The planes of a member.
pub(crate) struct MemberNode {
    config: Config,
    identity: Identity,
    consensus: Consensus,
    source: LocalSource,
    /// Where this member's own proposals go: to the leader, wherever it is.
    write_plane: Arc<dyn WritePlane>,
    /// Unless this process serves no clients.
    read: Option<(Fanout, Gateway)>,
    front: Front,
    peer: PeerSide,
    host: Host,
}

impl MemberNode {
    /// Opens the storage, starts the planes and serves the other members; clients are not served yet. Returns once
    /// this member knows a history: at once where the data directory holds one, else when the group has founded it.
    ///
    /// # Errors
    /// A port is taken, the storage can't be used, or no group was found.
    pub(crate) fn build(config: &Config, data_dir: &DataDir) -> anyhow::Result<Self> {
        let identity = data_dir.identity;
        let host = Host::bind(config)?;
        let peer_listeners = bind_all(&config.peer_listens, &config.tls.peer)?;
        let metrics = telemetry::start_metrics()?;
        tracing::info!(
            name = config.name,
            roles = config.roles.names().join(","),
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
            let _inside = host.control.enter();
            Consensus::start(config.consensus(data_dir), peer.transport()).context("cannot start the write plane")?
        };
        peer.serve(&consensus, peer_listeners)?;
        let source = source.wait().context("cannot start the write plane")?;
        peer.serve_tail(source.clone());
        let write_plane: Arc<dyn WritePlane> = Arc::new(peer.router(&consensus, config));
        let plain = Arc::new(MemberFront::new(config, &consensus, &source));
        let front = Front::new(plain, metrics, config, host.control.handle());
        front.describe_with(peer.description(&consensus));
        let read = config.roles.serves_clients().then(|| {
            let _inside = host.clients.enter();
            // What nobody asks for lies in the log beside it; docs/design/0010.
            let fanout = FanoutConfig {
                unread_value_bytes_min: Some(UNREAD_VALUE_BYTES_MIN),
                is_beside_writes: true,
                ..config.fanout(identity)
            };
            let fanout = Fanout::start(fanout, Arc::new(source.clone()));
            peer.tell_load_of(fanout.clone());
            let storage = Some(consensus.event_log());
            let render = Box::new(front.render_metrics());
            let gateway = Gateway::new(write_plane.clone(), fanout.clone(), storage, config.gateway(identity), render);
            (fanout, gateway)
        });
        Ok(Self { config: config.clone(), identity, consensus, source, write_plane, read, front, peer, host })
    }

    /// Serves until a signal comes or the write plane stops by itself.
    ///
    /// # Errors
    /// Why the write plane stopped, or why this member could not begin to serve.
    pub(crate) fn run(&self) -> anyhow::Result<Ending> {
        self.host.control.block_on(async {
            let serving = async {
                self.join().await?;
                let check = self.corruption_check();
                if self.config.initial_corrupt_check {
                    check.at_start().await?;
                }
                if let Some((_, gateway)) = &self.read {
                    self.front.open(gateway.clone());
                }
                self.host.listen(&self.front)?;
                tell_ready(None);
                let own = MemberId(self.identity.member_id);
                let newest = || self.source.tail.end().revision;
                let mode = self.config.auto_compaction;
                let compaction = run_auto_compaction(mode, self.write_plane.clone(), own, newest);
                tokio::join!(compaction, check.run(self.config.corrupt_check_interval));
                Ok(Ending::Own)
            };
            tokio::select! {
                outcome = serving => outcome,
                reason = self.consensus.stopped() => match reason {
                    Some(reason) => bail!("the write plane stopped: {reason}"),
                    None => Ok(Ending::Own),
                },
                told = told_to_end() => told,
            }
        })
    }

    /// Waits for the state and a leader, and publishes this member.
    async fn join(&self) -> anyhow::Result<()> {
        if let Some((fanout, _)) = &self.read {
            fanout.ready().await;
        }
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
        let (_, facts) = self.source.transfer_begin()?;
        let decided = Fact::ClusterVersion(version.clone());
        if !facts.contains(&decided) {
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
                    let Some((fanout, _)) = &self.read else { return Ok(()) };
                    return fanout.reach(applied.position).await.map_err(|_| ProposeError::Stopped);
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
            link: self.config.link(),
            write_plane: self.write_plane.clone(),
        }
    }

    /// Hands over leadership, stops accepting, lets clients go, syncs, and closes the files.
    pub(crate) fn drain(self) {
        if let Some((_, gateway)) = &self.read {
            gateway.drain();
        }
        self.host.control.block_on(self.hand_over());
        let Self { consensus, read, peer, host, .. } = self;
        host.drain(|| {
            if let Some((fanout, _)) = &read {
                fanout.stop();
            }
        });
        peer.stop();
        consensus.stop();
        tracing::info!("server stopped");
    }

    /// A leader that goes names its successor, so that writes need not wait for an election.
    async fn hand_over(&self) {
        let own = MemberId(self.identity.member_id);
        if self.consensus.status().leader != own {
            return;
        }
        let members = self.peer.directory().members();
        let active = self.peer.active();
        let is_successor = |member: &&Member| !member.is_learner && member.id != own && active.contains(&member.id);
        let Some(successor) = members.iter().find(is_successor) else { return };
        match self.consensus.move_leader(successor.id).await {
            Ok(()) => tracing::info!(successor = format!("{:x}", successor.id.0), "handed over leadership"),
            Err(error) => tracing::warn!(%error, "leadership was not handed over"),
        }
    }
}
