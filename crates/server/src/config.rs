//! Flags, checked once and turned into what the crates take.
//!
//! Every refusal is one sentence that says what to change.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tailwater_consensus::ConsensusConfig;
use tailwater_eventlog::{Member, MemberId};
use tailwater_fanout::FanoutConfig;
use tailwater_gateway::{AutoCompaction, GatewayConfig};
use tracing::level_filters::LevelFilter;

use crate::flags::Flags;
use crate::{go_duration, ids};

/// etcd's default quota.
const QUOTA_BYTES_DEFAULT: u64 = 2 << 30;

/// Everything that the process needs to know.
#[derive(Debug)]
pub(crate) struct Config {
    /// Where the data is.
    pub(crate) data_dir: PathBuf,
    /// Where clients are served.
    pub(crate) client_addresses: Vec<SocketAddr>,
    /// Where metrics and health are served besides.
    pub(crate) metrics_addresses: Vec<SocketAddr>,
    /// This member as it publishes itself.
    pub(crate) member: Member,
    /// "major.minor.0" of the reported version.
    pub(crate) cluster_version: String,
    /// From this level on lines are logged.
    pub(crate) log_level: LevelFilter,
    /// Most streams on one connection.
    pub(crate) concurrent_streams_max: u32,
    /// Bytes that a connection buffers per stream, in user space and in the kernel.
    pub(crate) stream_chunk_bytes: usize,
    /// Of the write plane.
    pub(crate) consensus: ConsensusConfig,
    /// Of the read plane.
    pub(crate) fanout: FanoutConfig,
    /// Of the API.
    pub(crate) gateway: GatewayConfig,
}

/// A flag says something that can't be done.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ConfigError(String);

fn refuse<T>(sentence: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError(sentence.into()))
}

impl Config {
    /// Checks the flags.
    pub(crate) fn from_flags(flags: Flags) -> Result<Self, ConfigError> {
        let client_urls = urls("--listen-client-urls", &flags.listen_client_urls)?;
        let advertised = advertised_client_urls(&flags)?;
        let peer_urls = urls("--initial-advertise-peer-urls", &flags.initial_advertise_peer_urls)?;
        urls("--listen-peer-urls", &flags.listen_peer_urls)?;
        check_cluster(&flags, &peer_urls)?;
        check_timing(&flags)?;
        check_sizes(&flags)?;
        let metrics_urls = match &flags.listen_metrics_urls {
            Some(text) => urls("--listen-metrics-urls", text)?,
            None => Vec::new(),
        };
        let member = Member {
            id: MemberId(ids::member_id(&peer_urls, &flags.initial_cluster_token)),
            name: flags.name.clone(),
            peer_urls,
            client_urls: advertised,
            is_learner: false,
        };
        let cluster_id = ids::cluster_id(&[member.id.0]);
        let data_dir = flags.data_dir.clone().unwrap_or_else(|| PathBuf::from(format!("{}.tailwater", flags.name)));
        Ok(Self {
            client_addresses: addresses("--listen-client-urls", &client_urls)?,
            metrics_addresses: addresses("--listen-metrics-urls", &metrics_urls)?,
            cluster_version: cluster_version(&flags.reported_version)?,
            log_level: log_level(&flags.log_level)?,
            concurrent_streams_max: flags.max_concurrent_streams,
            stream_chunk_bytes: flags.stream_chunk_bytes,
            consensus: consensus(&flags, data_dir.clone(), &member, cluster_id),
            fanout: fanout(&flags, member.id, cluster_id),
            gateway: gateway(&flags, member.id, cluster_id)?,
            data_dir,
            member,
        })
    }

    /// Takes the ids that the data directory was founded with; the flags about the founding are then without effect.
    pub(crate) fn adopt_ids(&mut self, member_id: u64, cluster_id: u64) {
        self.member.id = MemberId(member_id);
        for member in &mut self.consensus.initial_members {
            member.id = MemberId(member_id);
        }
        self.consensus.member_id = MemberId(member_id);
        self.consensus.cluster_id = cluster_id;
        self.fanout.member_id = member_id;
        self.fanout.cluster_id = cluster_id;
        self.gateway.member_id = member_id;
        self.gateway.cluster_id = cluster_id;
    }
}

fn urls(flag: &str, text: &str) -> Result<Vec<String>, ConfigError> {
    let mut found = Vec::new();
    for url in text.split(',').map(str::trim).filter(|url| !url.is_empty()) {
        if url.starts_with("https://") || url.starts_with("unix") {
            return refuse(format!("{flag}: \"{url}\": this version serves plain http:// only; use an http:// URL"));
        }
        let Some(authority) = url.strip_prefix("http://") else {
            return refuse(format!("{flag}: \"{url}\" is not a URL; write it like http://127.0.0.1:2379"));
        };
        if authority.trim_end_matches('/').rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
            return refuse(format!("{flag}: \"{url}\" needs a port; write it like http://127.0.0.1:2379"));
        }
        found.push(url.trim_end_matches('/').to_owned());
    }
    if found.is_empty() {
        return refuse(format!("{flag} needs at least one URL, like http://127.0.0.1:2379"));
    }
    Ok(found)
}

fn addresses(flag: &str, urls: &[String]) -> Result<Vec<SocketAddr>, ConfigError> {
    let mut found = Vec::new();
    for url in urls {
        let authority = url.trim_start_matches("http://").replace("localhost", "127.0.0.1");
        match authority.parse() {
            Ok(address) => found.push(address),
            Err(_) => {
                return refuse(format!("{flag}: \"{url}\": listen on an IP address, like http://127.0.0.1:2379"));
            }
        }
    }
    Ok(found)
}

fn advertised_client_urls(flags: &Flags) -> Result<Vec<String>, ConfigError> {
    match &flags.advertise_client_urls {
        Some(text) => urls("--advertise-client-urls", text),
        None if flags.listen_client_urls == "http://localhost:2379" => Ok(vec![flags.listen_client_urls.clone()]),
        None => refuse("--advertise-client-urls is required when --listen-client-urls is set; name the URLs that clients use"),
    }
}

fn check_cluster(flags: &Flags, peer_urls: &[String]) -> Result<(), ConfigError> {
    if flags.name.is_empty() {
        return refuse("--name must not be empty");
    }
    if !matches!(flags.initial_cluster_state.as_str(), "new" | "existing") {
        return refuse(format!("--initial-cluster-state is \"{}\"; use new or existing", flags.initial_cluster_state));
    }
    let Some(text) = &flags.initial_cluster else { return Ok(()) };
    let mut ours = Vec::new();
    for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        let Some((name, url)) = entry.split_once('=') else {
            return refuse(format!("--initial-cluster: \"{entry}\" must be name=peerURL"));
        };
        if name != flags.name {
            return refuse(format!(
                "--initial-cluster names the member \"{name}\" beside \"{}\": this version runs groups of one; \
                 name only this member",
                flags.name
            ));
        }
        ours.push(url.trim_end_matches('/').to_owned());
    }
    ours.sort();
    let mut advertised = peer_urls.to_vec();
    advertised.sort();
    if ours != advertised {
        return refuse(format!(
            "--initial-cluster must name {}={} as --name and --initial-advertise-peer-urls do",
            flags.name,
            peer_urls.join(",")
        ));
    }
    Ok(())
}

fn check_timing(flags: &Flags) -> Result<(), ConfigError> {
    let (heartbeat, election) = (flags.heartbeat_interval, flags.election_timeout);
    if heartbeat == 0 {
        return refuse("--heartbeat-interval must be at least 1 ms");
    }
    if election < heartbeat * 5 {
        return refuse(format!(
            "--election-timeout {election} ms must be at least 5 times --heartbeat-interval {heartbeat} ms"
        ));
    }
    if election > 50_000 {
        return refuse(format!("--election-timeout {election} ms is too long; use at most 50000"));
    }
    if flags.watch_progress_notify_interval < Duration::from_millis(100) {
        return refuse("--watch-progress-notify-interval must be at least 100ms");
    }
    Ok(())
}

fn check_sizes(flags: &Flags) -> Result<(), ConfigError> {
    if flags.max_request_bytes == 0 {
        return refuse("--max-request-bytes must be at least 1");
    }
    if flags.stream_chunk_bytes < 4096 {
        return refuse("--stream-chunk-bytes must be at least 4096");
    }
    if flags.watch_memory_bytes < 1 << 20 {
        return refuse("--watch-memory-bytes must be at least 1048576 (1 MiB)");
    }
    if flags.max_concurrent_streams == 0 {
        return refuse("--max-concurrent-streams must be at least 1");
    }
    Ok(())
}

fn cluster_version(reported: &str) -> Result<String, ConfigError> {
    let parts: Vec<&str> = reported.splitn(3, '.').collect();
    match parts.as_slice() {
        [major, minor, _patch] if major.parse::<u8>().is_ok() && minor.parse::<u8>().is_ok() => {
            Ok(format!("{major}.{minor}.0"))
        }
        _ => refuse(format!("--reported-version: \"{reported}\" must be like 3.6.16")),
    }
}

fn log_level(text: &str) -> Result<LevelFilter, ConfigError> {
    match text {
        "debug" => Ok(LevelFilter::DEBUG),
        "info" => Ok(LevelFilter::INFO),
        "warn" => Ok(LevelFilter::WARN),
        "error" | "panic" | "fatal" => Ok(LevelFilter::ERROR),
        _ => refuse(format!("--log-level is \"{text}\"; use debug, info, warn or error")),
    }
}

fn auto_compaction(flags: &Flags) -> Result<AutoCompaction, ConfigError> {
    let retention = flags.auto_compaction_retention.as_str();
    if matches!(retention, "" | "0") {
        return Ok(AutoCompaction::Off);
    }
    match flags.auto_compaction_mode.as_str() {
        // A bare number is hours, as in etcd.
        "periodic" => match retention.parse::<u64>() {
            Ok(hours) => Ok(AutoCompaction::Periodic(Duration::from_secs(hours * 3600))),
            Err(_) => go_duration::parse(retention)
                .map(AutoCompaction::Periodic)
                .map_err(|reason| ConfigError(format!("--auto-compaction-retention: {reason}"))),
        },
        "revision" => match retention.parse() {
            Ok(revisions) if revisions > 0 => Ok(AutoCompaction::Revisions(revisions)),
            _ => refuse(format!("--auto-compaction-retention: \"{retention}\" must be a number of revisions")),
        },
        other => refuse(format!("--auto-compaction-mode is \"{other}\"; use periodic or revision")),
    }
}

fn quota_bytes(flags: &Flags) -> u64 {
    match flags.quota_backend_bytes {
        0 => QUOTA_BYTES_DEFAULT,
        bytes => u64::try_from(bytes).unwrap_or(0),
    }
}

fn request_timeout(flags: &Flags) -> Duration {
    // etcd's: 5 s for the disk and the network, and two elections.
    Duration::from_secs(5) + 2 * Duration::from_millis(flags.election_timeout)
}

fn election_ticks(flags: &Flags) -> u64 {
    flags.election_timeout / flags.heartbeat_interval
}

fn consensus(flags: &Flags, data_dir: PathBuf, member: &Member, cluster_id: u64) -> ConsensusConfig {
    let minimum_millis = (3 * election_ticks(flags)).div_ceil(2) * flags.heartbeat_interval;
    ConsensusConfig {
        data_dir,
        member_id: member.id,
        cluster_id,
        initial_members: vec![Member { name: String::new(), client_urls: Vec::new(), ..member.clone() }],
        heartbeat_interval: Duration::from_millis(flags.heartbeat_interval),
        election_ticks: usize::try_from(election_ticks(flags)).expect("at most 50000"),
        request_bytes_max: flags.max_request_bytes,
        batch_bytes_max: 4 << 20,
        proposal_queue_bytes_max: 256 << 20,
        apply_lag_max: 5000,
        request_timeout: request_timeout(flags),
        lease_ttl_min: i64::try_from(minimum_millis.div_ceil(1000)).expect("at most 75 s"),
        quota_bytes: quota_bytes(flags),
        memtable_bytes: 64 << 20,
        block_cache_bytes: 64 << 20,
        raft_log_bytes: 64 << 20,
        tail_hot_bytes_max: 64 << 20,
        sync_delay: Duration::ZERO,
    }
}

fn fanout(flags: &Flags, member: MemberId, cluster_id: u64) -> FanoutConfig {
    FanoutConfig {
        cluster_id,
        member_id: member.0,
        window_bytes_max: flags.window_bytes,
        stream_chunk_bytes: flags.stream_chunk_bytes,
        watch_memory_bytes_max: flags.watch_memory_bytes,
        response_bytes_max: 1 << 20,
        fragment_bytes_max: flags.max_request_bytes + (512 << 10),
        progress_interval: flags.watch_progress_notify_interval,
    }
}

fn gateway(flags: &Flags, member: MemberId, cluster_id: u64) -> Result<GatewayConfig, ConfigError> {
    Ok(GatewayConfig {
        cluster_id,
        member_id: member.0,
        request_bytes_max: flags.max_request_bytes,
        txn_ops_max: flags.max_txn_ops,
        request_timeout: request_timeout(flags),
        election_timeout: Duration::from_millis(flags.election_timeout),
        slow_request: flags.warning_unary_request_duration,
        reported_version: flags.reported_version.clone(),
        quota_bytes: quota_bytes(flags),
        auto_compaction: auto_compaction(flags)?,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::flags::{Arguments, Command};

    fn config(line: &str) -> Result<Config, ConfigError> {
        let line = format!("tailwater serve {line}");
        let Command::Serve(flags) = Arguments::try_parse_from(line.split_whitespace()).expect("known flags").command;
        Config::from_flags(*flags)
    }

    #[test]
    fn the_defaults_are_etcds() {
        let config = config("").expect("defaults are valid");
        assert_eq!(config.member.id, MemberId(0x8e9e_05c5_2164_694d));
        assert_eq!(config.consensus.lease_ttl_min, 2);
        assert_eq!(config.consensus.request_timeout, Duration::from_secs(7));
        assert_eq!(config.consensus.quota_bytes, 2 << 30);
        assert_eq!(config.cluster_version, "3.6.0");
        assert_eq!(config.data_dir, PathBuf::from("default.tailwater"));
    }

    #[test]
    fn a_refusal_says_what_to_change() {
        for (line, part) in [
            ("--listen-client-urls https://127.0.0.1:1 --advertise-client-urls http://a:1", "use an http:// URL"),
            ("--listen-client-urls http://127.0.0.1:1", "--advertise-client-urls is required"),
            ("--listen-client-urls http://127.0.0.1 --advertise-client-urls http://a:1", "needs a port"),
            ("--initial-cluster default=http://other:2380", "must name default=http://localhost:2380"),
            ("--initial-cluster default=http://localhost:2380,b=http://b:2380", "groups of one"),
            ("--election-timeout 300", "at least 5 times"),
            ("--auto-compaction-retention 5x", "write it like"),
            ("--auto-compaction-mode weekly --auto-compaction-retention 5", "use periodic or revision"),
            ("--reported-version 3", "like 3.6.16"),
            ("--log-level loud", "use debug, info, warn or error"),
            ("--watch-progress-notify-interval 1ms", "at least 100ms"),
        ] {
            let refused = config(line).expect_err(line);
            assert!(refused.0.contains(part), "{line}: {refused}");
        }
    }

    #[test]
    fn retention_follows_its_mode() {
        let periodic = config("--auto-compaction-retention 2").expect("hours");
        assert_eq!(periodic.gateway.auto_compaction, AutoCompaction::Periodic(Duration::from_secs(7200)));
        let revisions = config("--auto-compaction-mode revision --auto-compaction-retention 1000").expect("revisions");
        assert_eq!(revisions.gateway.auto_compaction, AutoCompaction::Revisions(1000));
    }
}
