//! Flags of `tailwater snapshot`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `tailwater snapshot`.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Store a snapshot of a server in a file.
    #[command(args_override_self = true)]
    Save(SaveFlags),
    /// Show what is in a snapshot, and whether it is whole.
    #[command(args_override_self = true)]
    Status(SnapshotStatusFlags),
    /// Make the data directory of a member that begins with a snapshot, or with the data of an etcd.
    #[command(args_override_self = true)]
    Restore(Box<RestoreFlags>),
}

/// Flags of `tailwater snapshot save`.
#[derive(Clone, Debug, Args)]
pub(crate) struct SaveFlags {
    /// Where to store it
    pub(crate) file: PathBuf,
    /// Client URLs, separated by commas; the first that answers is asked
    #[arg(long, default_value = "127.0.0.1:2379")]
    pub(crate) endpoints: String,
    /// Who may sign the server's certificate
    #[arg(long)]
    pub(crate) cacert: Option<PathBuf>,
    /// Certificate to show the server
    #[arg(long, requires = "key")]
    pub(crate) cert: Option<PathBuf>,
    /// Its key
    #[arg(long, requires = "cert")]
    pub(crate) key: Option<PathBuf>,
    /// Who asks: NAME:PASSWORD, or NAME with --password
    #[arg(long)]
    pub(crate) user: Option<String>,
    /// The user's password
    #[arg(long, requires = "user")]
    pub(crate) password: Option<String>,
}

/// Flags of `tailwater snapshot status`.
#[derive(Clone, Debug, Args)]
pub(crate) struct SnapshotStatusFlags {
    /// The snapshot
    pub(crate) file: PathBuf,
    /// "simple", "table" or "json"
    #[arg(short = 'w', long, default_value = "simple", value_parser = ["simple", "table", "json"])]
    pub(crate) write_out: String,
}

/// Flags of `tailwater snapshot restore`: those of etcdutl, with its defaults.
#[derive(Clone, Debug, Args)]
pub(crate) struct RestoreFlags {
    /// A snapshot, the file member/snap/db of an etcd's data directory, or that data directory
    pub(crate) file: PathBuf,
    /// Directory to make [default: NAME.tailwater]
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,
    /// Name of this member
    #[arg(long, default_value = "default")]
    pub(crate) name: String,
    /// The members that begin with this snapshot, name=URL separated by commas
    #[arg(long, default_value = "default=http://localhost:2380")]
    pub(crate) initial_cluster: String,
    /// Part of the ids of the new cluster, so that two of them never mix
    #[arg(long, default_value = "etcd-cluster")]
    pub(crate) initial_cluster_token: String,
    /// Peer URLs of this member as others reach it
    #[arg(long, default_value = "http://localhost:2380")]
    pub(crate) initial_advertise_peer_urls: String,
    /// Don't compare the file with the checksum behind it; a database that was copied has none
    #[arg(long)]
    pub(crate) skip_hash_check: bool,
    /// Raise the newest revision by so many, so that no client takes old for new
    #[arg(long, default_value_t = 0)]
    pub(crate) bump_revision: u64,
    /// Compact all history below the raised revision, so that watchers notice; needed with --bump-revision
    #[arg(long)]
    pub(crate) mark_compacted: bool,
}
