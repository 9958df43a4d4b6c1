//! The command line: etcd's names where etcd has one. A flag wins over `TAILWATER_*`, which wins over `ETCD_*`; under
//! etcd's own name its rules come before (see `etcd_name`).

mod snapshot;
mod tls;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

pub(crate) use self::snapshot::{RestoreFlags, SaveFlags, SnapshotCommand, SnapshotStatusFlags};
pub(crate) use self::tls::TlsFlags;
use crate::etcd_name::{self, Asked, Note};
use crate::telemetry::{self, LogConfig};

/// The etcd version that clients are told unless a flag says another.
pub(crate) const REPORTED_VERSION: &str = "3.7.3";

/// An etcd-compatible store that takes watch fan-out off the consensus write path.
#[derive(Debug, Parser)]
#[command(name = "tailwater", version, args_override_self = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the etcd v3 API, with all roles in this process or some.
    #[command(args_override_self = true)]
    Serve(Box<Flags>),
    /// Show members, fanouts as a tree, their lag, and the slowest watch streams.
    #[command(args_override_self = true)]
    Status(StatusFlags),
    /// Save, look at and restore snapshots, in the format of etcd's.
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Print the flags with which kube-apiserver keeps some resources in groups of their own.
    Cells(CellsFlags),
    /// Load on any etcd v3 endpoint: what it takes, how fast, and whether its answers are right.
    Bench(Box<tailwater_bench::LoadArguments>),
}

/// Flags of `tailwater status`.
#[derive(Clone, Debug, Args)]
pub(crate) struct StatusFlags {
    /// Client URLs to ask first, separated by commas; the others are found from there
    #[arg(long, default_value = "http://127.0.0.1:2379")]
    pub(crate) endpoints: String,
    /// Who signs the servers' certificates [default: whom this machine trusts]
    #[arg(long, default_value = "")]
    pub(crate) cacert: String,
    /// Certificate to show
    #[arg(long, default_value = "")]
    pub(crate) cert: String,
    /// Key of --cert
    #[arg(long, default_value = "")]
    pub(crate) key: String,
    /// "table" or "json"
    #[arg(short = 'w', long, default_value = "table", value_parser = ["table", "json"])]
    pub(crate) write_out: String,
}

/// Flags of `tailwater cells`.
#[derive(Clone, Debug, Args)]
pub(crate) struct CellsFlags {
    /// Client URLs of the group that holds everything else, separated by commas
    #[arg(long)]
    pub(crate) servers: String,
    /// Resources, named as kubectl does, and the client URLs of the group that holds them: events,leases.coordination.k8s.io=URL,URL
    #[arg(long, required = true, value_name = "RESOURCE,…=URL,…")]
    pub(crate) cell: Vec<String>,
}

/// Flags of `tailwater serve`. Each may also be given as TAILWATER_NAME or ETCD_NAME in the environment.
#[derive(Clone, Debug, Args)]
pub(crate) struct Flags {
    /// Name of this member
    #[arg(long, default_value = "default")]
    pub(crate) name: String,
    /// Directory of all data [default: NAME.tailwater]
    #[arg(long)]
    pub(crate) data_dir: Option<String>,
    /// URLs to serve clients on, separated by commas [default: http://localhost:2379; none with --roles=consensus]
    #[arg(long)]
    pub(crate) listen_client_urls: Option<String>,
    /// Client URLs to tell others; needed with --listen-client-urls [default: http://localhost:2379]
    #[arg(long)]
    pub(crate) advertise_client_urls: Option<String>,
    /// What this process does: "all", "consensus", "fanout,gateway", or "gateway"
    #[arg(long, default_value = "all")]
    pub(crate) roles: String,
    /// Peer URLs of members or fanouts that a fanout follows, or a gateway finds replicas by, the preferred first
    #[arg(long, default_value = "")]
    pub(crate) upstream: String,
    /// Prefixes that a fanout holds, separated by commas [default: every key]
    #[arg(long, default_value = "")]
    pub(crate) prefixes: String,
    /// URLs to serve other nodes on [default: http://localhost:2380; none for a fanout]
    #[arg(long)]
    pub(crate) listen_peer_urls: Option<String>,
    /// Peer URLs of this node as others reach it [default: http://localhost:2380; for a fanout, where it listens]
    #[arg(long)]
    pub(crate) initial_advertise_peer_urls: Option<String>,
    /// The founding members, name=URL separated by commas [default: this member alone]
    #[arg(long)]
    pub(crate) initial_cluster: Option<String>,
    /// "new", or "existing" to join
    #[arg(long, default_value = "new")]
    pub(crate) initial_cluster_state: String,
    /// Part of the ids of a new cluster, so that two of them never mix
    #[arg(long, default_value = "etcd-cluster")]
    pub(crate) initial_cluster_token: String,
    /// Go on alone with the data of this directory, as a group of one with a new history
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub(crate) force_new_cluster: bool,
    /// Refuse a change of membership that could cost the group its quorum
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub(crate) strict_reconfig_check: bool,
    /// Compare this member's data with that of the others before it serves; reads the whole store on each
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub(crate) initial_corrupt_check: bool,
    /// Duration between two comparisons of the members' data by the leader; 0: off
    #[arg(long, default_value = "0s")]
    pub(crate) corrupt_check_time: String,
    /// "periodic" or "revision"
    #[arg(long, default_value = "periodic")]
    pub(crate) auto_compaction_mode: String,
    /// Hours or a duration (periodic), or revisions (revision) to keep; 0: off
    #[arg(long, default_value = "0")]
    pub(crate) auto_compaction_retention: String,
    /// Bytes of the largest request
    #[arg(long, default_value_t = 1_572_864)]
    pub(crate) max_request_bytes: u32,
    /// Operations in a transaction
    #[arg(long, default_value_t = 128)]
    pub(crate) max_txn_ops: u32,
    /// Calls that one connection of a client may have at a time
    #[arg(long, default_value_t = u32::MAX)]
    pub(crate) max_concurrent_streams: u32,
    /// Least duration between two pings of a client; who pings more often is told to go away; 0: no limit
    #[arg(long, default_value = "5s")]
    pub(crate) grpc_keepalive_min_time: String,
    /// Silence of a client after which it is asked whether it lives; 0: never
    #[arg(long, default_value = "2h")]
    pub(crate) grpc_keepalive_interval: String,
    /// Duration that it has to answer
    #[arg(long, default_value = "20s")]
    pub(crate) grpc_keepalive_timeout: String,
    /// Interval of progress notifications; 0: 10m
    #[arg(long, default_value = "0s")]
    pub(crate) watch_progress_notify_interval: String,
    /// More URLs that serve only metrics and health
    #[arg(long, default_value = "")]
    pub(crate) listen_metrics_urls: String,
    /// Origins whose pages may read answers over plain HTTP, separated by commas
    #[arg(long, default_value = "*")]
    pub(crate) cors: String,
    /// Hosts that the server may be called by without TLS, separated by commas
    #[arg(long, default_value = "*")]
    pub(crate) host_whitelist: String,
    /// URLs that serve what is not gRPC, which the client URLs then don't [default: the client URLs serve both]
    #[arg(long, default_value = "")]
    pub(crate) listen_client_http_urls: String,
    /// "basic", or "extensive" to record the duration of every call
    #[arg(long, default_value = "basic", value_parser = ["basic", "extensive"])]
    pub(crate) metrics: String,
    /// Serve the API as JSON too, under /v3/
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub(crate) enable_grpc_gateway: bool,
    /// debug, info, warn, error, panic or fatal
    #[arg(long, default_value = "info")]
    pub(crate) log_level: String,
    /// Where the log goes: stderr, stdout, or files to append to, separated by commas
    #[arg(long, default_value = "default")]
    pub(crate) log_outputs: String,
    /// "json", or "console" for lines with tabs
    #[arg(long, default_value = "json")]
    pub(crate) log_format: String,
    #[command(flatten)]
    pub(crate) tls: TlsFlags,
    /// Milliseconds between heartbeats
    #[arg(long, default_value_t = 100)]
    pub(crate) heartbeat_interval: u32,
    /// Milliseconds without a leader before an election
    #[arg(long, default_value_t = 1000)]
    pub(crate) election_timeout: u32,
    /// Bytes on disk above which writes are refused; 0: 2 GiB, negative: no limit
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) quota_backend_bytes: i64,
    /// Accepted for etcd's sake; raft entries are trimmed by bytes here
    #[arg(long, default_value_t = 10_000)]
    pub(crate) snapshot_count: u64,
    /// Bytes of raft log kept for members that are away; who is away for longer copies the state
    #[arg(long, default_value_t = 64 << 20)]
    pub(crate) raft_log_bytes: u64,
    /// Bytes of a member's caches: a fifth each for what is not in files yet, the newest raft entries and the newest frames for its readers, two fifths for blocks of files
    #[arg(long, default_value_t = 320 << 20)]
    pub(crate) cache_bytes: usize,
    /// Bytes of recent events kept in memory [default: 268435456; 67108864 on a member, which has older ones on its disk]
    #[arg(long)]
    pub(crate) window_bytes: Option<usize>,
    /// Bytes that one watch stream holds ready for its client
    #[arg(long, default_value_t = 64 << 10)]
    pub(crate) stream_chunk_bytes: usize,
    /// Bytes that all watch streams and lists in pieces together may hold
    #[arg(long, default_value_t = 256 << 20)]
    pub(crate) watch_memory_bytes: usize,
    /// Bytes that big lists in one message may hold together; more of them are refused
    #[arg(long, default_value_t = 256 << 20)]
    pub(crate) list_memory_bytes: usize,
    /// Duration after which a connection of a client is asked to end, 10 % more or less, so that new replicas get load; 0: never
    #[arg(long, default_value = "0s")]
    pub(crate) max_connection_age: String,
    /// Duration that the calls of such a connection have left to end
    #[arg(long, default_value = "10s")]
    pub(crate) max_connection_age_grace: String,
    /// Duration that clients have to go away in when the server stops
    #[arg(long, default_value = "5s")]
    pub(crate) drain_grace: String,
    /// The etcd version that is reported to clients
    #[arg(long, default_value = REPORTED_VERSION)]
    pub(crate) reported_version: String,
    /// "simple", or "jwt" with its options: jwt,pub-key=FILE,priv-key=FILE,sign-method=METHOD,ttl=DURATION
    #[arg(long, default_value = "simple")]
    pub(crate) auth_token: String,
    /// Seconds that a simple token lives after its last use
    #[arg(long, default_value_t = 300)]
    pub(crate) auth_token_ttl: u32,
    /// Work factor of password hashes, 4 to 31
    #[arg(long, default_value_t = 10)]
    pub(crate) bcrypt_cost: u32,
    /// Duration after which a unary call is logged
    #[arg(long, default_value = "300ms")]
    pub(crate) warning_unary_request_duration: String,
}

/// What the command line asks for.
pub(crate) enum Parsed {
    /// `tailwater serve`, or this program under etcd's name.
    Serve(Box<Flags>, Option<Vec<Note>>),
    /// `tailwater status`.
    Status(StatusFlags),
    /// Print flags of kube-apiserver.
    Cells(CellsFlags),
    /// `tailwater snapshot`.
    Snapshot(SnapshotCommand),
    /// `tailwater bench`.
    Bench(Box<tailwater_bench::LoadArguments>),
    /// Help or version was printed, or the command line is wrong.
    Exit(ExitCode),
}

/// Reads the arguments, the program's name first, and the environment.
pub(crate) fn parse(program: &str, arguments: Vec<String>) -> Parsed {
    if etcd_name::is_meant_by(program) {
        return parse_as_etcd(&arguments);
    }
    match read(arguments, |name| std::env::var(name).ok()) {
        Ok(Command::Serve(flags)) => Parsed::Serve(flags, None),
        Ok(Command::Status(flags)) => Parsed::Status(flags),
        Ok(Command::Cells(flags)) => Parsed::Cells(flags),
        Ok(Command::Snapshot(command)) => Parsed::Snapshot(command),
        Ok(Command::Bench(arguments)) => Parsed::Bench(arguments),
        Err(error) => Parsed::Exit(report(&error)),
    }
}

/// The flags of `tailwater serve` that these arguments give, without the environment.
///
/// # Errors
/// What is wrong with them.
pub(crate) fn serve_flags(arguments: &[String]) -> Result<Flags, String> {
    let command = Flags::augment_args(clap::Command::new("serve"));
    let line = std::iter::once("serve".to_owned()).chain(arguments.iter().cloned());
    let matches = command.try_get_matches_from(line).map_err(|error| error.to_string())?;
    Flags::from_arg_matches(&matches).map_err(|error| error.to_string())
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "no log exists yet, and none is asked for")]
fn parse_as_etcd(arguments: &[String]) -> Parsed {
    let environment: Vec<_> = std::env::vars().collect();
    match etcd_name::read(arguments, &environment, |path| std::fs::read_to_string(path)) {
        Asked::Print(text) => {
            print!("{text}");
            Parsed::Exit(ExitCode::SUCCESS)
        }
        Asked::Misspelt(text) => {
            eprint!("{text}");
            Parsed::Exit(ExitCode::from(2))
        }
        Asked::Refused(refused) => {
            telemetry::start_log(&LogConfig::default());
            refused.log();
            Parsed::Exit(ExitCode::FAILURE)
        }
        Asked::Serve(line, notes) => {
            let line = std::iter::once("serve".to_owned()).chain(line).collect();
            // etcd's variables are among the flags already.
            let own = |name: &str| std::env::var(name).ok().filter(|_| name.starts_with("TAILWATER_"));
            match read(line, own) {
                Ok(Command::Serve(flags)) => Parsed::Serve(flags, Some(notes)),
                Ok(Command::Status(_) | Command::Cells(_) | Command::Snapshot(_) | Command::Bench(_)) => {
                    unreachable!("the line begins with serve")
                }
                Err(error) => Parsed::Exit(report(&error)),
            }
        }
    }
}

/// The names of all flags of `tailwater serve`.
pub(crate) fn names() -> Vec<String> {
    described().into_iter().map(|(name, _)| name).collect()
}

/// All flags of `tailwater serve`, and what each is for.
pub(crate) fn described() -> Vec<(String, String)> {
    let command = Flags::augment_args(clap::Command::new("serve"));
    let described = command.get_arguments().filter_map(|argument| {
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        Some((argument.get_long()?.to_owned(), help))
    });
    described.collect()
}

/// Whether a flag of `tailwater serve` needs no value.
pub(crate) fn is_switch(name: &str) -> bool {
    let command = Flags::augment_args(clap::Command::new("serve"));
    let mut arguments = command.get_arguments();
    arguments.any(|argument| argument.get_long() == Some(name) && argument.is_require_equals_set())
}

fn read(arguments: Vec<String>, environment: impl Fn(&str) -> Option<String>) -> Result<Command, clap::Error> {
    let mut line = vec!["tailwater".to_owned()];
    let mut arguments = arguments.into_iter();
    if let Some(command) = arguments.next() {
        let is_serve = command == "serve";
        line.push(command);
        if is_serve {
            // In front of the flags, since the last one wins.
            line.extend(from_environment(environment));
        }
    }
    line.extend(arguments);
    let matches = Cli::command().try_get_matches_from(line)?;
    Ok(Cli::from_arg_matches(&matches)?.command)
}

/// The flags that the environment sets. An empty variable counts as unset.
fn from_environment(environment: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let command = Flags::augment_args(clap::Command::new("serve"));
    let names = command.get_arguments().filter_map(clap::Arg::get_long);
    let set = names.filter_map(|name| {
        let suffix = name.to_uppercase().replace('-', "_");
        let variables = [format!("TAILWATER_{suffix}"), format!("ETCD_{suffix}")];
        let value = variables.iter().find_map(|variable| environment(variable).filter(|value| !value.is_empty()))?;
        Some(format!("--{name}={value}"))
    });
    set.collect()
}

/// Prints help, version or what is wrong. A bad value is one sentence and exit code 1, a flag that doesn't exist 2.
#[expect(clippy::print_stderr, reason = "no log exists yet")]
fn report(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Nothing is left to do when the terminal is gone.
            error.print().ok();
            ExitCode::SUCCESS
        }
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => {
            let text = error.to_string();
            eprintln!("{}", text.lines().next().unwrap_or_default());
            ExitCode::FAILURE
        }
        _ => {
            error.print().ok();
            ExitCode::from(2)
        }
    }
}

/// Prints why the flags don't fit together.
#[expect(clippy::print_stderr, reason = "no log exists yet")]
pub(crate) fn refuse(reason: &str) -> ExitCode {
    eprintln!("error: {reason}");
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Box<Flags>, ErrorKind> {
        let lookup =
            |name: &str| environment.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned());
        let arguments = std::iter::once("serve").chain(arguments.iter().copied()).map(str::to_owned).collect();
        match read(arguments, lookup) {
            Ok(Command::Serve(flags)) => Ok(flags),
            Ok(other) => panic!("not serve: {other:?}"),
            Err(error) => Err(error.kind()),
        }
    }

    #[test]
    fn a_flag_wins_over_our_variable_which_wins_over_etcds() {
        let both = [("ETCD_NAME", "etcd"), ("TAILWATER_NAME", "ours")];
        assert_eq!(flags(&[], &both[..1]).expect("valid").name, "etcd");
        assert_eq!(flags(&[], &both).expect("valid").name, "ours");
        assert_eq!(flags(&["--name", "flag"], &both).expect("valid").name, "flag");
        assert_eq!(flags(&[], &[("ETCD_NAME", "")]).expect("valid").name, "default");
    }

    #[test]
    fn the_last_of_a_repeated_flag_wins() {
        assert_eq!(flags(&["--name=a", "--name=b"], &[]).expect("valid").name, "b");
        assert_eq!(flags(&["--quota-backend-bytes=-1"], &[]).expect("valid").quota_backend_bytes, -1);
    }

    #[test]
    fn a_bad_value_and_an_unknown_flag_differ() {
        assert_eq!(flags(&["--max-txn-ops=x"], &[]).expect_err("bad"), ErrorKind::ValueValidation);
        assert_eq!(flags(&["--nope=1"], &[]).expect_err("unknown"), ErrorKind::UnknownArgument);
        assert_eq!(flags(&["positional"], &[]).expect_err("unknown"), ErrorKind::UnknownArgument);
    }
}
