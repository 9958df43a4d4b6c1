//! Builds the crates, serves, and takes them down in order.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tailwater_api::tail;
use tailwater_api::write::command::Command;
use tailwater_api::write::{PublishMember, SetClusterVersion};
use tailwater_consensus::Consensus;
use tailwater_eventlog::Member;
use tailwater_fanout::Fanout;
use tailwater_gateway::{Gateway, run_auto_compaction};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::data_dir::{DataDir, Identity};
use crate::listener::{self, ConnectionBounds, Port};
use crate::telemetry;

/// Clients have so long to take what is on its way to them.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);

/// Why the server ends.
enum End {
    Signal(&'static str),
    /// The replica stopped by itself, for this reason.
    Failed(String),
}

/// Runs one node with all roles until it is told to stop.
pub(crate) async fn serve(mut config: Config) -> anyhow::Result<()> {
    let metrics = telemetry::start_metrics().context("starting metrics")?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        data_dir = %config.data_dir.display(),
        "starting a tailwater server"
    );
    let founding = Identity { member_id: config.member.id.0, cluster_id: config.consensus.cluster_id };
    let data_dir = DataDir::open(&config.data_dir, founding)?;
    config.adopt_ids(data_dir.identity.member_id, data_dir.identity.cluster_id);

    // Listening first: a taken port is said before anything is recovered.
    let clients = bind_all(&config.client_addresses).await?;
    let scrapers = bind_all(&config.metrics_addresses).await?;

    let consensus_config = config.consensus.clone();
    let (consensus, source) =
        tokio::task::spawn_blocking(move || Consensus::start(consensus_config)).await?.context("starting the write plane")?;
    let fanout = Fanout::start(config.fanout.clone(), Arc::new(source));
    let gateway = Gateway::new(
        consensus.clone(),
        fanout.clone(),
        config.gateway.clone(),
        Box::new(move || metrics.render()),
    );

    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let bounds = ConnectionBounds {
        streams_max: config.concurrent_streams_max,
        stream_send_bytes: config.stream_chunk_bytes,
    };
    for listener in scrapers {
        tasks.spawn(listener::serve(listener, Port::Metrics, gateway.clone(), bounds, stop.clone()));
    }
    let ended = tokio::select! {
        ended = end(&consensus) => ended,
        ready = become_ready(&config, &consensus, &fanout) => {
            ready?;
            for listener in clients {
                log_ready(&listener);
                tasks.spawn(listener::serve(listener, Port::Clients, gateway.clone(), bounds, stop.clone()));
            }
            let compaction = tokio::spawn(run_auto_compaction(gateway.clone()));
            let ended = end(&consensus).await;
            compaction.abort();
            ended
        }
    };
    take_down(&ended, gateway, fanout, consensus, stop, tasks).await;
    drop(data_dir);
    match ended {
        End::Signal(_) => Ok(()),
        End::Failed(reason) => anyhow::bail!(reason),
    }
}

async fn bind_all(addresses: &[std::net::SocketAddr]) -> anyhow::Result<Vec<TcpListener>> {
    let mut listeners = Vec::with_capacity(addresses.len());
    for &address in addresses {
        listeners.push(listener::bind(address).await?);
    }
    Ok(listeners)
}

/// Waits for the state, then publishes what others should know of this member.
async fn become_ready(config: &Config, consensus: &Consensus, fanout: &Fanout) -> anyhow::Result<()> {
    fanout.ready().await;
    // The first proposal also waits until there is a leader and the stored log has been applied.
    let position = consensus.barrier().await.context("waiting for a leader")?;
    fanout.reach(position).await.context("waiting for the stored state")?;
    let snapshot = fanout.snapshot();
    if !snapshot.members.contains(&config.member) {
        let member = Some(published(&config.member));
        consensus.propose(Command::PublishMember(PublishMember { member })).await.context("publishing this member")?;
        tracing::info!(member_id = %format!("{:x}", config.member.id.0), "published local member to cluster through raft");
    }
    if snapshot.cluster_version != config.cluster_version {
        let version = config.cluster_version.clone();
        let command = Command::SetClusterVersion(SetClusterVersion { version });
        let applied = consensus.propose(command).await.context("setting the cluster version")?;
        fanout.reach(applied.position).await?;
    }
    Ok(())
}

fn published(member: &Member) -> tail::Member {
    tail::Member {
        id: member.id.0,
        name: member.name.clone(),
        peer_urls: member.peer_urls.clone(),
        client_urls: member.client_urls.clone(),
        is_learner: member.is_learner,
    }
}

fn log_ready(listener: &TcpListener) {
    let address = listener.local_addr().map(|address| address.to_string()).unwrap_or_default();
    tracing::warn!(address, "serving client traffic insecurely; this is strongly discouraged!");
    tracing::info!(address, "ready to serve client requests");
}

/// Waits for a reason to end.
async fn end(consensus: &Consensus) -> End {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return End::Failed("signals can't be received".to_owned());
    };
    tokio::select! {
        _ = terminate.recv() => End::Signal("SIGTERM"),
        _ = interrupt.recv() => End::Signal("SIGINT"),
        reason = consensus.stopped() => End::Failed(reason.unwrap_or_else(|| "the write plane stopped".to_owned())),
    }
}

/// Not ready → GOAWAY → streams end → the log is synced and the state flushed.
async fn take_down(
    ended: &End,
    gateway: Gateway,
    fanout: Fanout,
    consensus: Consensus,
    stop: CancellationToken,
    mut tasks: JoinSet<()>,
) {
    match ended {
        End::Signal(name) => tracing::info!(signal = name, "draining"),
        End::Failed(reason) => tracing::error!(reason, "draining after a failure"),
    }
    gateway.drain();
    stop.cancel();
    fanout.stop();
    let drained = tokio::time::timeout(DRAIN_TIME_MAX, async { while tasks.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::warn!(listeners = tasks.len(), "clients were still connected after the drain time; closing them");
        tasks.abort_all();
    }
    let stopped = tokio::task::spawn_blocking(move || consensus.stop()).await;
    if let Err(error) = stopped {
        tracing::error!(%error, "the write plane did not stop in order");
    }
    tracing::info!("stopped");
}
