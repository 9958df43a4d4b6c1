//! Flags, checked against each other once and turned into what each crate takes.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use tailwater_consensus::ConsensusConfig;
use tailwater_eventlog::{KeyRange, MemberId};
use tailwater_fanout::FanoutConfig;
use tailwater_gateway::{AuthConfig, AutoCompaction, GatewayConfig};
use tailwater_transport::NodeDescription;

use crate::connection::ConnectionLimits;
use crate::data_dir::{DataDir, Identity};
use crate::duration;
use crate::flags::Flags;
use crate::founding::Founding;
use crate::roles::{self, Roles};

/// Where clients are served when nothing is said.
const CLIENT_URL_DEFAULT: &str = "http://localhost:2379";
/// Where other nodes are served when nothing is said.
const PEER_URL_DEFAULT: &str = "http://localhost:2380";

/// etcd's default quota.
const QUOTA_BYTES_DEFAULT: u64 = 2 << 30;

/// Bytes of recent frames that a relay keeps for its readers, as a member's tail does.
const RELAY_BYTES_MAX: usize = 64 << 20;

/// A shorter raft log would have the state flushed all the time.
const RAFT_LOG_BYTES_MIN: u64 = 256 << 10;

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
    pub(crate) client_addresses: Vec<SocketAddr>,
    pub(crate) metrics_addresses: Vec<SocketAddr>,
    pub(crate) client_urls: Vec<String>,
    pub(crate) peer_urls: Vec<String>,
    pub(crate) peer_addresses: Vec<SocketAddr>,
    /// What a member's new data directory begins with; an existing one has its own.
    pub(crate) founding: Option<Founding>,
    pub(crate) log_level: tracing::Level,
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
    quota_bytes: u64,
    pub(crate) auto_compaction: AutoCompaction,
    progress_interval: Duration,
    raft_log_bytes: u64,
    window_bytes: usize,
    stream_chunk_bytes: usize,
    watch_memory_bytes: usize,
    connection_age_max: Duration,
    connection_age_grace: Duration,
    /// What clients have to go away in when the server stops.
    pub(crate) drain_grace: Duration,
    list_memory_bytes: usize,
    slow_request: Duration,
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
        let founding = if roles.is_member() { Some(Founding::from_flags(flags, &peer_urls)?) } else { None };
        let (heartbeat_interval, election_ticks) = ticks(flags)?;
        Ok(Self {
            name: flags.name.clone(),
            roles,
            upstream,
            ranges,
            data_dir: flags.data_dir.clone().unwrap_or_else(|| format!("{}.tailwater", flags.name)).into(),
            client_addresses: addresses("listen-client-urls", &listen_clients)?,
            metrics_addresses: addresses("listen-metrics-urls", &flags.listen_metrics_urls)?,
            client_urls,
            peer_addresses: addresses("listen-peer-urls", &listen_peers)?,
            peer_urls,
            founding,
            log_level: log_level(&flags.log_level)?,
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
            window_bytes: flags.window_bytes,
            stream_chunk_bytes: at_least("stream-chunk-bytes", flags.stream_chunk_bytes, 4096)?,
            watch_memory_bytes: at_least("watch-memory-bytes", flags.watch_memory_bytes, flags.stream_chunk_bytes)?,
            list_memory_bytes: flags.list_memory_bytes,
            connection_age_max: time("max-connection-age", &flags.max_connection_age)?,
            connection_age_grace: time("max-connection-age-grace", &flags.max_connection_age_grace)?,
            drain_grace: time("drain-grace", &flags.drain_grace)?,
            slow_request: duration::parse(&flags.warning_unary_request_duration)
                .map_err(|reason| format!("--warning-unary-request-duration: {reason}"))?,
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
            memtable_bytes: 64 << 20,
            block_cache_bytes: 128 << 20,
            raft_log_bytes: self.raft_log_bytes,
            tail_hot_bytes_max: 64 << 20,
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
            auto_compaction: self.auto_compaction,
            auth: self.auth.clone(),
        }
    }

    /// Whether other nodes may follow this one's memory.
    fn is_relay(&self) -> bool {
        !self.roles.is_member() && !self.peer_addresses.is_empty()
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

    /// For connections of clients.
    pub(crate) fn connections(&self) -> ConnectionLimits {
        ConnectionLimits {
            send_buffer_bytes: self.stream_chunk_bytes,
            age_max: self.connection_age_max,
            age_grace: self.connection_age_grace,
        }
    }
}

fn time(flag: &str, text: &str) -> Result<Duration, String> {
    duration::parse(text).map_err(|reason| format!("--{flag}: {reason}"))
}

/// The URLs of a list flag; only http is served by this build.
fn urls(flag: &str, text: &str) -> Result<Vec<String>, String> {
    let mut urls: Vec<String> = text.split(',').map(|url| url.trim().to_owned()).collect();
    for url in &urls {
        let Some(authority) = url.strip_prefix("http://") else {
            return Err(format!("--{flag}: {url:?} must begin with http://, the only scheme this version serves"));
        };
        let port = authority.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none() {
            return Err(format!(
                "--{flag}: {url:?} must name a host and a port and no path, as in http://10.0.0.1:2379"
            ));
        }
    }
    urls.sort();
    Ok(urls)
}

/// Where this node serves, and what it tells others of that.
struct Urls {
    /// Lists as flags hold them; empty: nowhere.
    listen_clients: String,
    client_urls: Vec<String>,
    listen_peers: String,
    peer_urls: Vec<String>,
}

impl Urls {
    fn from_flags(roles: Roles, flags: &Flags) -> Result<Self, String> {
        let or = |given: &Option<String>, default: &str| given.clone().unwrap_or_else(|| default.to_owned());
        let listen_clients =
            or(&flags.listen_client_urls, if roles.serves_clients() { CLIENT_URL_DEFAULT } else { "" });
        let client_urls = match &flags.advertise_client_urls {
            Some(text) => urls("advertise-client-urls", text)?,
            None if !roles.serves_clients() => Vec::new(),
            None if listen_clients == CLIENT_URL_DEFAULT => vec![listen_clients.clone()],
            None => return Err("--advertise-client-urls is required when --listen-client-urls is set".into()),
        };
        let peer_default = if roles.is_member() { PEER_URL_DEFAULT } else { "" };
        let listen_peers = or(&flags.listen_peer_urls, peer_default);
        if !roles.is_member() && listen_peers.is_empty() && flags.initial_advertise_peer_urls.is_some() {
            return Err("--initial-advertise-peer-urls is of no use without --listen-peer-urls on a fanout".into());
        }
        let advertised = match roles.is_member() {
            true => or(&flags.initial_advertise_peer_urls, PEER_URL_DEFAULT),
            false => or(&flags.initial_advertise_peer_urls, &listen_peers),
        };
        let peer_urls =
            if advertised.is_empty() { Vec::new() } else { urls("initial-advertise-peer-urls", &advertised)? };
        Ok(Self { listen_clients, client_urls, listen_peers, peer_urls })
    }
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
            urls("upstream", &flags.upstream)?;
            Ok(flags.upstream.split(',').map(|url| url.trim().to_owned()).collect())
        }
    }
}

/// Where to listen; a host name is resolved. Nothing given: nowhere.
fn addresses(flag: &str, text: &str) -> Result<Vec<SocketAddr>, String> {
    let mut found = Vec::new();
    if text.is_empty() {
        return Ok(found);
    }
    for url in urls(flag, text)? {
        let authority = &url["http://".len()..];
        let mut resolved: Vec<SocketAddr> = authority
            .to_socket_addrs()
            .map_err(|error| format!("--{flag}: {url:?}: {error}; give an address of this machine"))?
            .collect();
        // A name may stand for IPv4 and IPv6; the first family is enough, as with etcd.
        resolved.sort_by_key(SocketAddr::is_ipv6);
        found.extend(resolved.into_iter().take(1));
    }
    Ok(found)
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

fn log_level(text: &str) -> Result<tracing::Level, String> {
    match text {
        "debug" => Ok(tracing::Level::DEBUG),
        "info" => Ok(tracing::Level::INFO),
        "warn" => Ok(tracing::Level::WARN),
        "error" | "panic" | "fatal" | "dpanic" => Ok(tracing::Level::ERROR),
        _ => Err(format!("--log-level: {text:?} must be debug, info, warn, error, panic or fatal")),
    }
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
