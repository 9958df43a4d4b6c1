//! The command line. Names are etcd's wherever etcd has the flag.
//!
//! Each flag can also be set as `TAILWATER_<NAME>` or `ETCD_<NAME>`; a flag on the command line wins over the first, and
//! that over the second. A flag given twice: the last wins, as with etcd.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::go_duration;

/// An etcd-compatible store that takes watch fan-out off the consensus write path.
#[derive(Parser)]
#[command(name = "tailwater", version, args_override_self = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What the binary does.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Serves the etcd v3 API with all roles in this process.
    Serve(Box<Flags>),
}

/// Flags of `tailwater serve`.
#[derive(Args, Clone, Debug)]
#[command(args_override_self = true)]
pub(crate) struct Flags {
    /// Name of this member.
    #[arg(long, default_value = "default")]
    pub(crate) name: String,

    /// Directory of everything that must survive; made if missing [default: <name>.tailwater].
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,

    /// URLs to serve clients on (gRPC and HTTP on one port), comma separated.
    #[arg(long, default_value = "http://localhost:2379")]
    pub(crate) listen_client_urls: String,

    /// Client URLs to tell others; required when --listen-client-urls is set.
    #[arg(long)]
    pub(crate) advertise_client_urls: Option<String>,

    /// URLs to serve other members and fanouts on.
    #[arg(long, default_value = "http://localhost:2380")]
    pub(crate) listen_peer_urls: String,

    /// Peer URLs to tell the other members.
    #[arg(long, default_value = "http://localhost:2380")]
    pub(crate) initial_advertise_peer_urls: String,

    /// The founding members, name=peerURL, comma separated [default: <name>=<initial-advertise-peer-urls>].
    #[arg(long)]
    pub(crate) initial_cluster: Option<String>,

    /// "new", or "existing" to join a group.
    #[arg(long, default_value = "new")]
    pub(crate) initial_cluster_state: String,

    /// Tells apart clusters that are founded with the same URLs.
    #[arg(long, default_value = "etcd-cluster")]
    pub(crate) initial_cluster_token: String,

    /// Extra URLs for /metrics and /health only.
    #[arg(long)]
    pub(crate) listen_metrics_urls: Option<String>,

    /// "periodic" (retention is a duration, or hours) or "revision" (retention is a number of revisions).
    #[arg(long, default_value = "periodic")]
    pub(crate) auto_compaction_mode: String,

    /// How much history to keep; 0 leaves compaction to clients, as Kubernetes does it.
    #[arg(long, default_value = "0")]
    pub(crate) auto_compaction_retention: String,

    /// Milliseconds between a leader's heartbeats.
    #[arg(long, default_value_t = 100)]
    pub(crate) heartbeat_interval: u64,

    /// Milliseconds without a heartbeat until an election; at least 5 heartbeats, at most 50000.
    #[arg(long, default_value_t = 1000)]
    pub(crate) election_timeout: u64,

    /// Largest request, in bytes.
    #[arg(long, default_value_t = 1_572_864)]
    pub(crate) max_request_bytes: usize,

    /// Most operations in a transaction.
    #[arg(long, default_value_t = 128)]
    pub(crate) max_txn_ops: usize,

    /// Most streams that one connection may have open.
    #[arg(long, default_value_t = u32::MAX)]
    pub(crate) max_concurrent_streams: u32,

    /// Interval of progress notifications on watches that ask for them; at least 100ms.
    #[arg(long, default_value = "10m", value_parser = go_duration::parse)]
    pub(crate) watch_progress_notify_interval: Duration,

    /// Bytes on disk at which writes are refused; 0: 2 GiB, negative: no limit.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) quota_backend_bytes: i64,

    /// Unary calls that take longer are logged.
    #[arg(long, default_value = "300ms", value_parser = go_duration::parse)]
    pub(crate) warning_unary_request_duration: Duration,

    /// Accepted for etcd's sake: the raft log is trimmed by bytes, not by a count of entries.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) snapshot_count: u64,

    /// "debug", "info", "warn" or "error".
    #[arg(long, default_value = "info")]
    pub(crate) log_level: String,

    /// Bytes of recent events kept in memory for reads and watches at older revisions; what is older comes from disk.
    #[arg(long, default_value_t = 256 << 20)]
    pub(crate) window_bytes: usize,

    /// Bytes that one watch stream holds ready for its client.
    #[arg(long, default_value_t = 64 << 10)]
    pub(crate) stream_chunk_bytes: usize,

    /// Bytes that all watch streams together may hold; with more streams each holds less.
    #[arg(long, default_value_t = 256 << 20)]
    pub(crate) watch_memory_bytes: usize,

    /// The etcd version that clients are told; some choose features by it.
    #[arg(long, default_value = "3.6.16")]
    pub(crate) reported_version: String,
}

/// Puts what variables set in front of what the command line says, so that the later wins.
pub(crate) fn with_environment(
    arguments: Vec<OsString>,
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Vec<OsString> {
    let Some(at) = arguments.iter().position(|argument| argument == "serve") else { return arguments };
    let variables: Vec<(OsString, OsString)> = variables.filter(|(_, value)| !value.is_empty()).collect();
    let command = Arguments::command();
    let names = command.find_subcommand("serve").into_iter().flat_map(clap::Command::get_arguments);
    let names: Vec<&str> = names.filter_map(clap::Arg::get_long).collect();
    let mut with = arguments[..=at].to_vec();
    for prefix in ["ETCD_", "TAILWATER_"] {
        for name in &names {
            let variable = format!("{prefix}{}", name.to_uppercase().replace('-', "_"));
            if let Some((_, value)) = variables.iter().find(|(found, _)| *found == *variable) {
                let mut flag = OsString::from(format!("--{name}="));
                flag.push(value);
                with.push(flag);
            }
        }
    }
    with.extend_from_slice(&arguments[at + 1..]);
    with
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str, variables: &[(&str, &str)]) -> Flags {
        let variables = variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
        let arguments = with_environment(line.split(' ').map(OsString::from).collect(), variables);
        let Command::Serve(flags) = Arguments::try_parse_from(arguments).expect("valid flags").command;
        *flags
    }

    #[test]
    fn a_flag_wins_over_tailwaters_variable_and_that_over_etcds() {
        let variables = [("ETCD_NAME", "etcd"), ("TAILWATER_NAME", "ours"), ("ETCD_MAX_TXN_OPS", "7")];
        assert_eq!(parse("tailwater serve", &variables[..1]).name, "etcd");
        assert_eq!(parse("tailwater serve", &variables).name, "ours");
        assert_eq!(parse("tailwater serve --name flag", &variables).name, "flag");
        assert_eq!(parse("tailwater serve", &variables).max_txn_ops, 7);
    }

    #[test]
    fn an_empty_variable_is_not_set_and_the_last_flag_wins() {
        assert_eq!(parse("tailwater serve --name a --name b", &[("ETCD_NAME", "")]).name, "b");
    }

    #[test]
    fn a_negative_quota_is_a_value() {
        assert_eq!(parse("tailwater serve --quota-backend-bytes -1", &[]).quota_backend_bytes, -1);
    }
}
