//! etcd's flags, of 3.5 to 3.7: what they take, and what they mean here.

use self::Kind::{Bool, Choice, Duration, Gates, Int, Text, Uint, Urls};
use self::Meaning::{As, Nothing, Ours, Refused};

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Bool,
    Int,
    Uint,
    Duration,
    /// URLs of listeners or of this member, separated by commas.
    Urls,
    Choice(&'static [&'static str]),
    /// name=bool, separated by commas.
    Gates,
}

/// What a flag means here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The flag of the same name, where this build has one; else nothing.
    Ours,
    /// The flag of this name.
    As(&'static str),
    /// Accepted and told once: why it means nothing.
    Nothing(&'static str),
    /// Not accepted but with one of these values: why, since to go on would be worse.
    Refused(&'static [&'static str], &'static str),
}

/// A flag.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) meaning: Meaning,
}

const fn row(name: &'static str, kind: Kind, meaning: Meaning) -> Row {
    Row { name, kind, meaning }
}

const NO_BBOLT: &str = "the storage is not bbolt";
const NO_DISCOVERY: &str = "discovery is not served; name the members with --initial-cluster";
const NO_V2: &str = "there is no v2 API";
const NO_RAFT_SNAPSHOTS: &str = "raft entries are trimmed by bytes; see --raft-log-bytes";
const NO_TRACING: &str = "spans are not exported; use /metrics and the log";
const ALWAYS: &str = "it is always so";
const IGNORED: &str = "etcd ignores it as well";

/// Every flag of etcd.
pub(super) const ROWS: &[Row] = &[
    // Member.
    row("name", Text, Ours),
    row("data-dir", Text, Ours),
    row("wal-dir", Text, Nothing("the raft log lies in the data directory")),
    row("snapshot-count", Uint, Ours),
    row("snapshot-catchup-entries", Uint, Nothing(NO_RAFT_SNAPSHOTS)),
    row("experimental-snapshot-catchup-entries", Uint, Nothing(NO_RAFT_SNAPSHOTS)),
    row("heartbeat-interval", Uint, Ours),
    row("election-timeout", Uint, Ours),
    row("initial-election-tick-advance", Bool, Nothing("a start waits for no more than one election timeout")),
    row("listen-peer-urls", Urls, Ours),
    row("listen-client-urls", Urls, Ours),
    row("listen-client-http-urls", Urls, Ours),
    row("listen-metrics-urls", Urls, Ours),
    row("max-snapshots", Uint, Nothing(NO_RAFT_SNAPSHOTS)),
    row("max-wals", Uint, Nothing(NO_RAFT_SNAPSHOTS)),
    row("quota-backend-bytes", Int, Ours),
    row("backend-bbolt-freelist-type", Text, Nothing(NO_BBOLT)),
    row("experimental-backend-bbolt-freelist-type", Text, Nothing(NO_BBOLT)),
    row("backend-batch-interval", Duration, Nothing(NO_BBOLT)),
    row("backend-batch-limit", Int, Nothing(NO_BBOLT)),
    row("max-txn-ops", Uint, Ours),
    row("max-request-bytes", Uint, Ours),
    row("max-concurrent-streams", Uint, Ours),
    row("grpc-keepalive-min-time", Duration, Ours),
    row("grpc-keepalive-interval", Duration, Ours),
    row("grpc-keepalive-timeout", Duration, Ours),
    row("socket-reuse-port", Bool, Nothing("a port belongs to one process")),
    row("socket-reuse-address", Bool, Nothing(ALWAYS)),
    row("raft-read-timeout", Duration, Nothing("links between members have their own timeouts")),
    row("raft-write-timeout", Duration, Nothing("links between members have their own timeouts")),
    row("memory-mlock", Bool, Nothing("memory is not locked")),
    row("experimental-memory-mlock", Bool, Nothing("memory is not locked")),
    row("warning-apply-duration", Duration, Nothing("see --warning-unary-request-duration")),
    row("experimental-warning-apply-duration", Duration, Nothing("see --warning-unary-request-duration")),
    row("warning-unary-request-duration", Duration, Ours),
    row("experimental-warning-unary-request-duration", Duration, As("warning-unary-request-duration")),
    row("bootstrap-defrag-threshold-megabytes", Uint, Nothing(NO_BBOLT)),
    row("experimental-bootstrap-defrag-threshold-megabytes", Uint, Nothing(NO_BBOLT)),
    row("max-learners", Int, Nothing("the rules of membership are fixed")),
    row("experimental-max-learners", Int, Nothing("the rules of membership are fixed")),
    row("compaction-batch-limit", Int, Nothing("compaction stops nobody")),
    row("experimental-compaction-batch-limit", Int, Nothing("compaction stops nobody")),
    row("compaction-sleep-interval", Duration, Nothing("compaction stops nobody")),
    row("experimental-compaction-sleep-interval", Duration, Nothing("compaction stops nobody")),
    row("watch-progress-notify-interval", Duration, Ours),
    row("experimental-watch-progress-notify-interval", Duration, As("watch-progress-notify-interval")),
    row("feature-gates", Gates, Ours),
    // Clustering.
    row("initial-advertise-peer-urls", Urls, Ours),
    row("initial-cluster", Text, Ours),
    row("initial-cluster-state", Choice(&["new", "existing"]), Ours),
    row("initial-cluster-token", Text, Ours),
    row("advertise-client-urls", Urls, Ours),
    row("discovery", Text, Refused(&[""], NO_DISCOVERY)),
    row("discovery-proxy", Text, Nothing(NO_DISCOVERY)),
    row("discovery-token", Text, Refused(&[""], NO_DISCOVERY)),
    row("discovery-endpoints", Text, Refused(&[""], NO_DISCOVERY)),
    row("discovery-dial-timeout", Duration, Nothing(NO_DISCOVERY)),
    row("discovery-request-timeout", Duration, Nothing(NO_DISCOVERY)),
    row("discovery-keepalive-time", Duration, Nothing(NO_DISCOVERY)),
    row("discovery-keepalive-timeout", Duration, Nothing(NO_DISCOVERY)),
    row("discovery-insecure-transport", Bool, Nothing(NO_DISCOVERY)),
    row("discovery-insecure-skip-tls-verify", Bool, Nothing(NO_DISCOVERY)),
    row("discovery-cert", Text, Nothing(NO_DISCOVERY)),
    row("discovery-key", Text, Nothing(NO_DISCOVERY)),
    row("discovery-cacert", Text, Nothing(NO_DISCOVERY)),
    row("discovery-user", Text, Nothing(NO_DISCOVERY)),
    row("discovery-password", Text, Nothing(NO_DISCOVERY)),
    row("discovery-fallback", Text, Nothing(NO_DISCOVERY)),
    row("discovery-srv", Text, Refused(&[""], NO_DISCOVERY)),
    row("discovery-srv-name", Text, Nothing(NO_DISCOVERY)),
    row("strict-reconfig-check", Bool, Ours),
    row("pre-vote", Bool, Nothing(ALWAYS)),
    row("auto-compaction-mode", Text, Ours),
    row("auto-compaction-retention", Text, Ours),
    row("force-new-cluster", Bool, Ours),
    row("unsafe-no-fsync", Bool, Nothing("nothing is answered before the disk has it")),
    row(
        "v2-deprecation",
        Choice(&["", "not-yet", "write-only", "write-only-skip-check", "write-only-drop-data", "gone"]),
        Nothing(NO_V2),
    ),
    row("enable-v2", Bool, Refused(&["false"], NO_V2)),
    row("experimental-enable-v2v3", Text, Refused(&[""], NO_V2)),
    row("proxy", Text, Refused(&["", "off"], NO_V2)),
    row("proxy-failure-wait", Uint, Nothing(NO_V2)),
    row("proxy-refresh-interval", Uint, Nothing(NO_V2)),
    row("proxy-dial-timeout", Uint, Nothing(NO_V2)),
    row("proxy-write-timeout", Uint, Nothing(NO_V2)),
    row("proxy-read-timeout", Uint, Nothing(NO_V2)),
    // Security.
    row("cert-file", Text, Ours),
    row("key-file", Text, Ours),
    row("client-cert-file", Text, Ours),
    row("client-key-file", Text, Ours),
    row("client-cert-auth", Bool, Ours),
    row("client-crl-file", Text, Ours),
    row("client-cert-allowed-hostname", Text, Ours),
    row("trusted-ca-file", Text, Ours),
    row("auto-tls", Bool, Ours),
    row("peer-cert-file", Text, Ours),
    row("peer-key-file", Text, Ours),
    row("peer-client-cert-file", Text, Ours),
    row("peer-client-key-file", Text, Ours),
    row("peer-client-cert-auth", Bool, Ours),
    row("peer-trusted-ca-file", Text, Ours),
    row("peer-auto-tls", Bool, Ours),
    row("peer-crl-file", Text, Ours),
    row("peer-cert-allowed-cn", Text, Ours),
    row("peer-cert-allowed-hostname", Text, Ours),
    row("peer-skip-client-san-verification", Bool, Ours),
    row("experimental-peer-skip-client-san-verification", Bool, As("peer-skip-client-san-verification")),
    row("self-signed-cert-validity", Uint, Ours),
    row("cipher-suites", Text, Ours),
    row("tls-min-version", Text, Ours),
    row("tls-max-version", Text, Ours),
    row("cors", Text, Ours),
    row("host-whitelist", Text, Ours),
    row("auth-token", Text, Ours),
    row("auth-token-ttl", Uint, Ours),
    row("bcrypt-cost", Uint, Ours),
    // Logs, metrics and the rest.
    row("logger", Choice(&["zap"]), Nothing("the log has etcd's form")),
    row("log-outputs", Text, Ours),
    row("log-level", Text, Ours),
    row("log-format", Text, Ours),
    row("log-package-levels", Text, Nothing("see --log-level")),
    row("debug", Bool, Nothing("see --log-level")),
    row("enable-log-rotation", Bool, Nothing("log files are rotated from outside")),
    row("log-rotation-config-json", Text, Nothing("log files are rotated from outside")),
    row("metrics", Choice(&["basic", "extensive"]), Ours),
    row("enable-pprof", Bool, Nothing("it profiles Go")),
    row("enable-grpc-gateway", Bool, Ours),
    row("experimental-enable-distributed-tracing", Bool, Nothing(NO_TRACING)),
    row("enable-distributed-tracing", Bool, Nothing(NO_TRACING)),
    row("experimental-distributed-tracing-address", Text, Nothing(NO_TRACING)),
    row("distributed-tracing-address", Text, Nothing(NO_TRACING)),
    row("experimental-distributed-tracing-service-name", Text, Nothing(NO_TRACING)),
    row("distributed-tracing-service-name", Text, Nothing(NO_TRACING)),
    row("experimental-distributed-tracing-instance-id", Text, Nothing(NO_TRACING)),
    row("distributed-tracing-instance-id", Text, Nothing(NO_TRACING)),
    row("experimental-distributed-tracing-sampling-rate", Int, Nothing(NO_TRACING)),
    row("distributed-tracing-sampling-rate", Int, Nothing(NO_TRACING)),
    row("corrupt-check-time", Duration, Ours),
    row("experimental-corrupt-check-time", Duration, As("corrupt-check-time")),
    row("experimental-initial-corrupt-check", Bool, As("initial-corrupt-check")),
    row("compact-hash-check-time", Duration, Nothing("see --corrupt-check-time")),
    row("experimental-compact-hash-check-enabled", Bool, Nothing("see --corrupt-check-time")),
    row("experimental-compact-hash-check-time", Duration, Nothing("see --corrupt-check-time")),
    row("downgrade-check-time", Duration, Nothing("the cluster version is set when it is decided")),
    row("experimental-downgrade-check-time", Duration, Nothing("the cluster version is set when it is decided")),
    row("experimental-enable-lease-checkpoint", Bool, Nothing(ALWAYS)),
    row("experimental-enable-lease-checkpoint-persist", Bool, Nothing(ALWAYS)),
    row("experimental-txn-mode-write-with-shared-buffer", Bool, Nothing(NO_BBOLT)),
    row("experimental-stop-grpc-service-on-defrag", Bool, Nothing("a defragmentation stops nothing")),
    row("experimental-set-member-localaddr", Bool, Nothing("the system chooses the address")),
    row("experimental-wait-cluster-ready-timeout", Duration, Nothing("clients are served once there is a leader")),
    row("config-file", Text, Ours),
    row("version", Bool, Ours),
    // Of the first versions.
    row("cluster-active-size", Text, Nothing(IGNORED)),
    row("cluster-remove-delay", Text, Nothing(IGNORED)),
    row("cluster-sync-interval", Text, Nothing(IGNORED)),
    row("config", Text, Nothing(IGNORED)),
    row("force", Bool, Nothing(IGNORED)),
    row("max-result-buffer", Text, Nothing(IGNORED)),
    row("max-retry-attempts", Text, Nothing(IGNORED)),
    row("peer-heartbeat-interval", Text, Nothing(IGNORED)),
    row("peer-election-timeout", Text, Nothing(IGNORED)),
    row("retry-interval", Text, Nothing(IGNORED)),
    row("snapshot", Bool, Nothing(IGNORED)),
    row("v", Bool, Nothing(IGNORED)),
    row("vv", Bool, Nothing(IGNORED)),
];

/// The gates that etcd knows, and the flag that one of them is here.
pub(super) const GATES: &[(&str, Option<&str>)] = &[
    ("AllAlpha", None),
    ("AllBeta", None),
    ("StopGRPCServiceOnDefrag", None),
    ("InitialCorruptCheck", Some("initial-corrupt-check")),
    ("CompactHashCheck", None),
    ("TxnModeWriteWithSharedBuffer", None),
    ("LeaseCheckpoint", None),
    ("LeaseCheckpointPersist", None),
    ("SetMemberLocalAddr", None),
    ("FastLeaseKeepAlive", None),
    ("PriorityRequest", None),
];

/// The flag of this name.
pub(super) fn find(name: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.name == name)
}
