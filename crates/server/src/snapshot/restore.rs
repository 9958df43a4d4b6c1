//! `tailwater snapshot restore`: the data directory of a member that begins with a snapshot.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use tailwater_gateway::{Restored, Restoring, restore};
use tailwater_snapshot::{Limits, SnapshotReader};

use crate::config::Config;
use crate::data_dir::{self, DataDir};
use crate::flags::{RestoreFlags, serve_flags};

/// Where an etcd keeps its database.
const ETCD_DATABASE: &str = "member/snap/db";

/// Makes the data directory. Each founding member is restored from the same file.
///
/// # Errors
/// The flags don't fit together, the file is damaged, or the directory can't be made.
pub(super) fn run(flags: &RestoreFlags) -> anyhow::Result<()> {
    if flags.bump_revision > 0 && !flags.mark_compacted {
        bail!("--mark-compacted required if --bump-revision > 0");
    }
    if flags.bump_revision == 0 && flags.mark_compacted {
        bail!("--mark-compacted disallowed without --bump-revision");
    }
    let config = config(flags)?;
    let founding = config.founding.as_ref().ok_or_else(|| data_dir::occupied(&config.data_dir))?;
    let (path, is_snapshot) = database(&flags.file);
    let named = || path.display().to_string();
    let file = File::open(&path).with_context(named)?;
    // An etcd locks the database that it uses, and goes on writing into it.
    if file.try_lock_shared().is_err() {
        bail!("{} is used by another process: stop that etcd first, or take a snapshot of it", path.display());
    }
    let reader = SnapshotReader::open(file, Limits::default()).with_context(named)?;
    if is_snapshot && !flags.skip_hash_check {
        reader.verify_trailer().with_context(|| {
            format!("{}; use --skip-hash-check for a database that was copied from a data directory", path.display())
        })?;
    }
    reader.bolt().check().with_context(named)?;
    tracing::info!(path = %path.display(), data_dir = %config.data_dir.display(), "restoring snapshot");
    let restoring = Restoring { state_dir: &config.data_dir.join("state"), bump_revision: flags.bump_revision };
    let fill = || restore(&reader, &restoring).with_context(named);
    let Restored { numbers, rows, leases, cut } = DataDir::found(&config.data_dir, founding, fill)?;
    if let Some(cut) = cut {
        tracing::warn!(revision = cut.0, "the history has a hole below this revision, and is compacted there");
    }
    tracing::info!(
        data_dir = %config.data_dir.display(),
        revision = numbers.revision.0,
        compacted = numbers.compacted.0,
        rows,
        leases,
        "restored snapshot"
    );
    Ok(())
}

/// The same checks as for a member that is started so.
fn config(flags: &RestoreFlags) -> anyhow::Result<Config> {
    let mut arguments = vec![
        format!("--name={}", flags.name),
        format!("--initial-cluster={}", flags.initial_cluster),
        format!("--initial-cluster-token={}", flags.initial_cluster_token),
        format!("--initial-advertise-peer-urls={}", flags.initial_advertise_peer_urls),
    ];
    arguments.extend(flags.data_dir.as_ref().map(|path| format!("--data-dir={}", path.display())));
    serve_flags(&arguments).and_then(|flags| Config::from_flags(&flags)).map_err(anyhow::Error::msg)
}

/// The file to read, and whether it is a snapshot rather than the database of a data directory.
fn database(path: &Path) -> (PathBuf, bool) {
    if path.is_dir() { (path.join(ETCD_DATABASE), false) } else { (path.to_owned(), true) }
}
