//! The data directory: who it belongs to, and that one process uses it.
//!
//! `IDENTITY` is one line of JSON, `{"format":1,"member_id":"<hex>","cluster_id":"<hex>","check":"<hex>"}`; `check` is
//! the first eight bytes of the SHA-1 of "<member_id>/<cluster_id>" in hex. `LOCK` is locked while the process lives.
//! `raft/` and `state/` belong to the consensus and eventlog crates.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};

use tailwater_eventlog::Member;

use crate::config::Config;
use crate::join;

const FORMAT: u32 = 1;
const IDENTITY_FILE: &str = "IDENTITY";
const LOCK_FILE: &str = "LOCK";

/// Who this member is; made once, then found in the data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) member_id: u64,
    pub(crate) cluster_id: u64,
}

/// The data directory can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DataDirError {
    #[error("data directory {path}: {reason}; make it writable or change --data-dir")]
    Unusable { path: String, reason: std::io::Error },
    #[error("data directory {path} is used by another process; stop that one or change --data-dir")]
    Locked { path: String },
    #[error("data directory {path} holds {found:?}, which tailwater did not write; use an empty --data-dir")]
    Foreign { path: String, found: String },
    #[error("data directory {path} has format {found}, this build reads {FORMAT}; use the version that wrote it")]
    Format { path: String, found: u32 },
    #[error("{path}: {reason}; restore the file from a backup")]
    Corrupt { path: String, reason: String },
}

/// A data directory that this process owns.
#[derive(Debug)]
pub(crate) struct DataDir {
    pub(crate) identity: Identity,
    /// The members as far as the command line, or the group that this member joins, tells.
    pub(crate) members: Vec<Member>,
    /// Whether it held data before.
    pub(crate) is_existing: bool,
    /// Unlocked when dropped.
    _lock: File,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    member_id: String,
    cluster_id: String,
    check: String,
}

impl DataDir {
    /// Opens or founds it. A member that joins asks the group who it is.
    ///
    /// # Errors
    /// See [`DataDirError`]; the group can't be asked, or does not know this member.
    pub(crate) fn open(config: &Config) -> anyhow::Result<Self> {
        let founding = &config.founding;
        if !founding.joins {
            return Self::open_at(&config.data_dir, founding.members.clone(), || Ok(founding.identity));
        }
        match join::ask(&founding.other_urls()) {
            Ok(group) => {
                let identity = || group.identity_of(&config.peer_urls);
                Self::open_at(&config.data_dir, group.members.clone(), identity)
            }
            // One that has joined already may be the first to be started again.
            Err(error) => Self::open_at(&config.data_dir, founding.members.clone(), || Err(error)),
        }
    }

    fn open_at(
        path: &Path,
        members: Vec<Member>,
        founding: impl FnOnce() -> anyhow::Result<Identity>,
    ) -> anyhow::Result<Self> {
        let unusable = |reason| DataDirError::Unusable { path: path.display().to_string(), reason };
        fs::create_dir_all(path).map_err(unusable)?;
        let identity_file = path.join(IDENTITY_FILE);
        let is_existing = identity_file.exists();
        if !is_existing {
            refuse_foreign(path)?;
        }
        let lock = File::create(path.join(LOCK_FILE)).map_err(unusable)?;
        if lock.try_lock().is_err() {
            return Err(DataDirError::Locked { path: path.display().to_string() }.into());
        }
        let identity = if is_existing {
            read(&identity_file)?
        } else {
            let founding = founding()?;
            write(path, &identity_file, founding).map_err(unusable)?;
            founding
        };
        Ok(Self { identity, members, is_existing, _lock: lock })
    }
}

/// Another program's data is never written into.
fn refuse_foreign(path: &Path) -> Result<(), DataDirError> {
    let unusable = |reason| DataDirError::Unusable { path: path.display().to_string(), reason };
    for entry in fs::read_dir(path).map_err(unusable)? {
        let name = entry.map_err(unusable)?.file_name().to_string_lossy().into_owned();
        // Left behind by a start that was killed before the identity was in place; a fresh volume has lost+found.
        if name != LOCK_FILE && name != "IDENTITY.tmp" && name != "lost+found" {
            return Err(DataDirError::Foreign { path: path.display().to_string(), found: name });
        }
    }
    Ok(())
}

fn read(file: &PathBuf) -> Result<Identity, DataDirError> {
    let corrupt = |reason: String| DataDirError::Corrupt { path: file.display().to_string(), reason };
    let text = fs::read_to_string(file).map_err(|error| corrupt(error.to_string()))?;
    let stored: Stored = serde_json::from_str(&text).map_err(|error| corrupt(error.to_string()))?;
    if stored.format != FORMAT {
        return Err(DataDirError::Format { path: file.display().to_string(), found: stored.format });
    }
    if stored.check != check(&stored.member_id, &stored.cluster_id) {
        return Err(corrupt("its checksum does not fit".into()));
    }
    let hex = |text: &str| u64::from_str_radix(text, 16).map_err(|error| corrupt(error.to_string()));
    Ok(Identity { member_id: hex(&stored.member_id)?, cluster_id: hex(&stored.cluster_id)? })
}

/// Durable when it returns: the file is synced before it gets its name, the directory after.
fn write(directory: &Path, file: &Path, identity: Identity) -> std::io::Result<()> {
    let (member_id, cluster_id) = (format!("{:x}", identity.member_id), format!("{:x}", identity.cluster_id));
    let check = check(&member_id, &cluster_id);
    let text = serde_json::to_string(&Stored { format: FORMAT, member_id, cluster_id, check })?;
    let staged = directory.join("IDENTITY.tmp");
    let mut out = File::create(&staged)?;
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")?;
    out.sync_all()?;
    fs::rename(staged, file)?;
    File::open(directory)?.sync_all()
}

fn check(member_id: &str, cluster_id: &str) -> String {
    let digest = Sha1::digest(format!("{member_id}/{cluster_id}"));
    digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOUNDING: Identity = Identity { member_id: 0xd622_0a2b, cluster_id: 0x6656 };

    #[test]
    fn an_existing_directory_keeps_its_identity() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("made");
        assert!(!DataDir::open_at(&path, Vec::new(), || Ok(FOUNDING)).expect("founded").is_existing);
        let other = Identity { member_id: 1, cluster_id: 2 };
        let again = DataDir::open_at(&path, Vec::new(), || Ok(other)).expect("reused");
        assert_eq!((again.identity, again.is_existing), (FOUNDING, true));
    }

    #[test]
    fn two_processes_do_not_share_a_directory() {
        let directory = tempfile::tempdir().expect("a directory");
        let _first = DataDir::open_at(directory.path(), Vec::new(), || Ok(FOUNDING)).expect("founded");
        let second = DataDir::open_at(directory.path(), Vec::new(), || Ok(FOUNDING)).expect_err("locked");
        assert!(matches!(second.downcast_ref(), Some(DataDirError::Locked { .. })));
    }

    #[test]
    fn what_another_program_wrote_is_refused_by_name() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("member")).expect("made");
        let error = DataDir::open_at(directory.path(), Vec::new(), || Ok(FOUNDING)).expect_err("foreign");
        assert!(error.to_string().contains("holds \"member\""), "{error}");
    }

    #[test]
    fn any_flipped_byte_of_the_identity_is_noticed() {
        let directory = tempfile::tempdir().expect("a directory");
        drop(DataDir::open_at(directory.path(), Vec::new(), || Ok(FOUNDING)).expect("founded"));
        let file = directory.path().join(IDENTITY_FILE);
        let good = fs::read(&file).expect("readable");
        for at in 0..good.len() - 1 {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&file, &bad).expect("written");
            let found = DataDir::open_at(directory.path(), Vec::new(), || Ok(FOUNDING));
            assert!(found.is_err(), "byte {at}: {}", String::from_utf8_lossy(&bad));
        }
    }
}
