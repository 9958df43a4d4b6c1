//! Flags, checked against each other once and turned into what each crate takes.

mod tls;
mod urls;

use std::path::PathBuf;
use std::time::Duration;

use tailwater_consensus::ConsensusConfig;
use tailwater_eventlog::{KeyRange, MemberId};
use tailwater_fanout::FanoutConfig;
use tailwater_gateway::{AccessControl, AuthConfig, AutoCompaction, GatewayConfig};
use tailwater_transport::{LinkConfig, NodeDescription};

pub(crate) use self::tls::TlsSides;
use self::urls::Urls;
pub(crate) use self::urls::{Listen, authority};
use crate::connection::{ConnectionLimits, Keepalive};
use crate::data_dir::{DataDir, Identity};
use crate::duration;
use crate::flags::Flags;
use crate::founding::Founding;
use crate::roles::{self, Roles};
use crate::telemetry::LogConfig;

/// Default of a member's `--window-bytes`, whose reads of older events go no further than its disk.
const WINDOW_BYTES_OF_MEMBER: usize = 64 << 20;
/// Default of a fanout's, which asks another node for older events.
const WINDOW_BYTES_OF_FANOUT: usize = 256 << 20;
/// Where clients are served when nothing is said.
const CLIENT_URL_DEFAULT: &str = "http://localhost:2379";
/// Where other nodes are served when nothing is said.
const PEER_URL_DEFAULT: &str = "http://localhost:2380";

/// etcd's default quota.
const QUOTA_BYTES_DEFAULT: u64 = 2 << 30;

/// Bytes of recent frames that a relay keeps for its readers, as a member's tail does.
const RELAY_BYTES_MAX: usize = 64 << 20;

/// Requests beyond this hold up those behind them.
const REQUEST_BYTES_ADVISED: usize = 10 << 20;

/// A shorter raft log would have the state flushed all the time.
const RAFT_LOG_BYTES_MIN: u64 = 256 << 10;

/// A fifth is 1 MiB, about the largest request: less would have the state flushed with each.
const CACHE_BYTES_MIN: usize = 5 << 20;

/// Everything that `tailwater serve` was told, checked.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) name: String,
    pub(crate) roles: Roles,
    /// Peer URLs that a node without a replica follows, the preferred first; none for a member.
    pub(crate) upstream: Vec<String>,
    /// What a fanout holds; none: every key.
    pub(crate) ranges: Vec<KeyRange>,
    pub(crate) data_dir: PathBuf,
    pub(crate) client_listens: Vec<Listen>,
    /// Where only what is not gRPC is served; the client URLs serve gRPC alone then.
    pub(crate) http_listens: Vec<Listen>,
    pub(crate) metrics_listens: Vec<Listen>,
    pub(crate) client_urls: Vec<String>,
    pub(crate) peer_urls: Vec<String>,
    pub(crate) peer_listens: Vec<Listen>,
    pub(crate) tls: TlsSides,
    /// What a member's new data directory begins with; an existing one has its own.
    pub(crate) founding: Option<Founding>,
    pub(crate) log: LogConfig,
    pub(crate) reported_version: String,
    pub(crate) initial_corrupt_check: bool,
    /// Zero: off.
    pub(crate) corrupt_check_interval: Duration,
    force_new_cluster: bool,
    strict_reconfig_check: bool,
    heartbeat_interval: Duration,
    election_ticks: usize,
    request_bytes_max: usize,
    txn_ops_max: usize,
    pub(crate) quota_bytes: u64,
    pub(crate) auto_compaction: AutoCompaction,
    progress_interval: Duration,
    raft_log_bytes: u64,
    cache_bytes: usize,
    window_bytes: usize,
    stream_chunk_bytes: usize,
    watch_memory_bytes: usize,
    connection_age_max: Duration,
    connection_age_grace: Duration,
    max_concurrent_streams: u32,
    keepalive: Keepalive,
    /// What clients have to go away in when the server stops.
    pub(crate) drain_grace: Duration,
    list_memory_bytes: usize,
    slow_request: Duration,
    access: AccessControl,
    json_gateway: bool,
    extensive_metrics: bool,
    auth: AuthConfig,
}

impl Config {
    /// Checks the flags.
    ///
    /// # Errors
    /// One sentence that names the flag and says what to change.
    pub(crate) fn from_flags(flags: &Flags) -> Result<Self, String> {
        let roles = Roles::parse(&flags.roles)?;
        let upstream = upstream(roles, flags)?;
        if roles == Roles::Gateway && !flags.prefixes.is_empty() {
            return Err("--prefixes is for fanouts; a gateway holds nothing and forwards to those that do".into());
        }
        if roles == Roles::Gateway && flags.listen_peer_urls.is_some() {
            return Err("--listen-peer-urls is of no use with --roles=gateway, which no other node follows".into());
        }
        let ranges = roles::ranges(&flags.prefixes)?;
        let Urls { listen_clients, client_urls, listen_peers, peer_urls } = Urls::from_flags(roles, flags)?;
        let (heartbeat_interval, election_ticks) = ticks(flags)?;
        let data_dir = PathBuf::from(flags.data_dir.clone().unwrap_or_else(|| format!("{}.tailwater", flags.name)));
        // A directory that holds a member knows its group better than flags that were written for its first start.
        let founding = match roles.is_member() && !DataDir::is_founded(&data_dir) {
            true => Some(Founding::from_flags(flags, &peer_urls)?),
            false => None,
        };
        let client_listens = urls::listens("listen-client-urls", &listen_clients)?;
        let http_listens = urls::listens("listen-client-http-urls", &flags.listen_client_http_urls)?;
        let metrics_listens = urls::listens("listen-metrics-urls", &flags.listen_metrics_urls)?;
        let peer_listens = urls::listens("listen-peer-urls", &listen_peers)?;
        let listens = (client_listens.as_slice(), peer_listens.as_slice(), metrics_listens.as_slice());
        let tls = TlsSides::from_flags(&flags.tls, &data_dir, &upstream, listens)?;
        Ok(Self {
            name: flags.name.clone(),
            roles,
            upstream,
            ranges,
            data_dir,
            client_listens,
            http_listens,
            metrics_listens,
            client_urls,
            peer_listens,
            tls,
            peer_urls,
            founding,
            log: LogConfig::from_flags(flags)?,
            reported_version: reported_version(&flags.reported_version)?,
            initial_corrupt_check: flags.initial_corrupt_check,
            corrupt_check_interval: duration::parse(&flags.corrupt_check_time)
                .map_err(|reason| format!("--corrupt-check-time: {reason}"))?,
            force_new_cluster: flags.force_new_cluster,
            strict_reconfig_check: flags.strict_reconfig_check,
            heartbeat_interval,
            election_ticks,
            request_bytes_max: flags.max_request_bytes as usize,
            txn_ops_max: flags.max_txn_ops as usize,
            quota_bytes: match flags.quota_backend_bytes {
                0 => QUOTA_BYTES_DEFAULT,
                bytes => u64::try_from(bytes).unwrap_or(0),
            },
            auto_compaction: auto_compaction(flags)?,
            progress_interval: progress_interval(flags)?,
            raft_log_bytes: flags.raft_log_bytes.max(RAFT_LOG_BYTES_MIN),
            cache_bytes: at_least("cache-bytes", flags.cache_bytes, CACHE_BYTES_MIN)?,
            window_bytes: flags.window_bytes.unwrap_or(if roles.is_member() {
                WINDOW_BYTES_OF_MEMBER
            } else {
                WINDOW_BYTES_OF_FANOUT
            }),
            stream_chunk_bytes: at_least("stream-chunk-bytes", flags.stream_chunk_bytes, 4096)?,
            watch_memory_bytes: at_least("watch-memory-bytes", flags.watch_memory_bytes, flags.stream_chunk_bytes)?,
            list_memory_bytes: flags.list_memory_bytes,
            connection_age_max: time("max-connection-age", &flags.max_connection_age)?,
            connection_age_grace: time("max-connection-age-grace", &flags.max_connection_age_grace)?,
            max_concurrent_streams: flags.max_concurrent_streams,
            keepalive: Keepalive {
                pings_apart: time("grpc-keepalive-min-time", &flags.grpc_keepalive_min_time)?,
                interval: time("grpc-keepalive-interval", &flags.grpc_keepalive_interval)?,
                timeout: time("grpc-keepalive-timeout", &flags.grpc_keepalive_timeout)?,
            },
            drain_grace: time("drain-grace", &flags.drain_grace)?,
            slow_request: duration::parse(&flags.warning_unary_request_duration)
                .map_err(|reason| format!("--warning-unary-request-duration: {reason}"))?,
            access: AccessControl { origins: list(&flags.cors), hosts: list(&flags.host_whitelist) },
            json_gateway: flags.enable_grpc_gateway,
            extensive_metrics: flags.metrics == "extensive",
            auth: crate::auth_flags::parse(flags)?,
        })
    }

    pub(crate) fn election_timeout(&self) -> Duration {
        self.heartbeat_interval * u32::try_from(self.election_ticks).unwrap_or(u32::MAX)
    }

    /// A proposal without an answer fails after this.
    pub(crate) fn request_timeout(&self) -> Duration {
        Duration::from_secs(5) + 2 * self.election_timeout()
    }

    /// For the write plane.
    pub(crate) fn consensus(&self, data_dir: &DataDir) -> ConsensusConfig {
        let identity = data_dir.identity;
        // etcd's rule: one and a half election timeouts, in whole seconds.
        let lease_ttl_min = (3 * self.election_timeout().as_millis() / 2).div_ceil(1000);
        ConsensusConfig {
            data_dir: self.data_dir.clone(),
            member_id: MemberId(identity.member_id),
            cluster_id: identity.cluster_id,
            initial_members: data_dir.members.clone(),
            founding: data_dir.founds,
            force_new_cluster: self.force_new_cluster,
            strict_reconfig_check: self.strict_reconfig_check,
            heartbeat_interval: self.heartbeat_interval,
            election_ticks: self.election_ticks,
            request_bytes_max: self.request_bytes_max,
            batch_bytes_max: 4 << 20,
            proposal_queue_bytes_max: 256 << 20,
            apply_lag_max: 5000,
            request_timeout: self.request_timeout(),
            lease_ttl_min: i64::try_from(lease_ttl_min).unwrap_or(i64::MAX),
            quota_bytes: self.quota_bytes,
            memtable_bytes: self.cache_bytes / 5,
            block_cache_bytes: self.cache_bytes / 5 * 2,
            raft_log_bytes: self.raft_log_bytes,
            raft_recent_bytes_max: self.cache_bytes / 5,
            tail_hot_bytes_max: self.cache_bytes / 5,
            sync_delay: Duration::ZERO,
        }
    }

    /// For the read plane.
    pub(crate) fn fanout(&self, identity: Identity) -> FanoutConfig {
        FanoutConfig {
            cluster_id: identity.cluster_id,
            member_id: identity.member_id,
            window_bytes_max: self.window_bytes,
            stream_chunk_bytes: self.stream_chunk_bytes,
            watch_memory_bytes_max: self.watch_memory_bytes,
            list_memory_bytes_max: self.list_memory_bytes,
            response_bytes_max: 1 << 20,
            fragment_bytes_max: self.request_bytes_max + 512 * 1024,
            progress_interval: self.progress_interval,
            ranges: self.ranges.clone(),
            relay_bytes_max: if self.is_relay() { RELAY_BYTES_MAX } else { 0 },
            ..FanoutConfig::default()
        }
    }

    /// For the gateway.
    pub(crate) fn gateway(&self, identity: Identity) -> GatewayConfig {
        GatewayConfig {
            cluster_id: identity.cluster_id,
            member_id: identity.member_id,
            request_bytes_max: self.request_bytes_max,
            txn_ops_max: self.txn_ops_max,
            request_timeout: self.request_timeout(),
            election_timeout: self.election_timeout(),
            slow_request: self.slow_request,
            reported_version: self.reported_version.clone(),
            quota_bytes: self.quota_bytes,
            access: self.access.clone(),
            json_gateway: self.json_gateway,
            extensive_metrics: self.extensive_metrics,
            auto_compaction: self.auto_compaction,
            auth: self.auth.clone(),
        }
    }

    /// Who may speak JSON; none: nobody.
    pub(crate) fn json_access(&self) -> Option<AccessControl> {
        self.json_gateway.then(|| self.access.clone())
    }

    /// Whether other nodes may follow this one's memory.
    fn is_relay(&self) -> bool {
        !self.roles.is_member() && !self.peer_listens.is_empty()
    }

    /// What this node says of itself to others.
    pub(crate) fn announced(&self, id: MemberId, cluster_id: u64) -> NodeDescription {
        NodeDescription {
            id,
            name: self.name.clone(),
            roles: self.roles.names(),
            client_urls: self.client_urls.clone(),
            peer_urls: self.peer_urls.clone(),
            ranges: self.ranges.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster_id,
            ..Default::default()
        }
    }

    /// Largest message that is read from a client.
    pub(crate) fn message_bytes_max(&self) -> usize {
        self.request_bytes_max + 512 * 1024
    }

    /// Says what is allowed and not advised.
    pub(crate) fn warn(&self) {
        if self.request_bytes_max > REQUEST_BYTES_ADVISED {
            tracing::warn!(
                max_request_bytes = self.request_bytes_max,
                recommended_request_bytes = REQUEST_BYTES_ADVISED,
                "exceeded recommended request limit"
            );
        }
    }

    /// For connections to other nodes.
    pub(crate) fn link(&self) -> LinkConfig {
        LinkConfig { tls: Some(self.tls.peer_dialer.clone()), ..LinkConfig::default() }
    }

    /// For connections of clients.
    pub(crate) fn connections(&self) -> ConnectionLimits {
        ConnectionLimits {
            age_max: self.connection_age_max,
            age_grace: self.connection_age_grace,
            streams_max: self.max_concurrent_streams,
            keepalive: self.keepalive,
            has_named_users: self.tls.client.client_cert_auth,
        }
    }
}

/// What stands between commas.
fn list(text: &str) -> Vec<String> {
    text.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
}

fn time(flag: &str, text: &str) -> Result<Duration, String> {
    duration::parse(text).map_err(|reason| format!("--{flag}: {reason}"))
}

/// What a node without a replica follows, in the order given.
fn upstream(roles: Roles, flags: &Flags) -> Result<Vec<String>, String> {
    match (roles.is_member(), flags.upstream.is_empty()) {
        (true, true) if !flags.prefixes.is_empty() => {
            Err("--prefixes is for fanouts: a member holds every key; leave it out or use --roles=fanout,gateway"
                .into())
        }
        (true, true) => Ok(Vec::new()),
        (true, false) => {
            Err("--upstream is for nodes without the consensus role; leave it out or use --roles=fanout,gateway".into())
        }
        (false, true) => {
            Err(format!("--roles={} needs --upstream, the peer URLs of members or of fanouts to follow", flags.roles))
        }
        (false, false) => {
            urls::parse("upstream", &flags.upstream)?;
            Ok(flags.upstream.split(',').map(|url| url.trim().to_owned()).collect())
        }
    }
}

fn ticks(flags: &Flags) -> Result<(Duration, usize), String> {
    let (heartbeat, election) = (flags.heartbeat_interval, flags.election_timeout);
    if heartbeat == 0 {
        return Err("--heartbeat-interval must be at least 1 ms".into());
    }
    if election < 5 * heartbeat {
        return Err(format!(
            "--election-timeout ({election} ms) must be at least five times --heartbeat-interval ({heartbeat} ms)"
        ));
    }
    if election > 50_000 {
        return Err(format!("--election-timeout ({election} ms) must be at most 50000 ms"));
    }
    Ok((Duration::from_millis(heartbeat.into()), (election / heartbeat) as usize))
}

fn auto_compaction(flags: &Flags) -> Result<AutoCompaction, String> {
    let text = flags.auto_compaction_retention.as_str();
    match flags.auto_compaction_mode.as_str() {
        "revision" => match text.parse::<i64>() {
            Ok(0) => Ok(AutoCompaction::Off),
            Ok(kept) if kept > 0 => Ok(AutoCompaction::Revisions(kept)),
            _ => Err(format!("--auto-compaction-retention: {text:?} must be a number of revisions in revision mode")),
        },
        "periodic" => {
            let period = match text.parse::<u32>() {
                Ok(hours) => Duration::from_secs(u64::from(hours) * 3600),
                Err(_) => duration::parse(text).map_err(|reason| format!("--auto-compaction-retention: {reason}"))?,
            };
            Ok(if period.is_zero() { AutoCompaction::Off } else { AutoCompaction::Periodic(period) })
        }
        other => Err(format!("--auto-compaction-mode: {other:?} must be periodic or revision")),
    }
}

fn progress_interval(flags: &Flags) -> Result<Duration, String> {
    let interval = duration::parse(&flags.watch_progress_notify_interval)
        .map_err(|reason| format!("--watch-progress-notify-interval: {reason}"))?;
    if interval.is_zero() {
        return Ok(Duration::from_secs(600));
    }
    if interval < Duration::from_millis(100) {
        return Err("--watch-progress-notify-interval must be at least 100ms, or 0 for 10m".into());
    }
    Ok(interval)
}

fn at_least(flag: &str, value: usize, least: usize) -> Result<usize, String> {
    if value < least { Err(format!("--{flag} ({value}) must be at least {least}")) } else { Ok(value) }
}

fn reported_version(text: &str) -> Result<String, String> {
    let parts: Vec<&str> = text.split('.').collect();
    if parts.len() == 3 && parts[..2].iter().all(|part| part.parse::<u32>().is_ok()) {
        return Ok(text.to_owned());
    }
    Err(format!("--reported-version: {text:?} must have the form major.minor.patch, as in 3.7.3"))
}

#[cfg(test)]
mod tests;
