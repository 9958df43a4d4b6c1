//! The data directory: one server at a time, and the ids that it was founded with.
//!
//! `member.json` holds `{"format": 1, "member_id": …, "cluster_id": …, "checksum": …}`, the ids and the CRC-32C of
//! "<member_id> <cluster_id>" in hexadecimal. It is written and synced before anything else is stored, and never
//! changed.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

const FORMAT: u32 = 1;

/// Held while the server uses the directory.
#[derive(Debug)]
pub(crate) struct DataDir {
    _lock: File,
    /// Who was founded here.
    pub(crate) identity: Identity,
}

/// The ids of this member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Of this member.
    pub(crate) member_id: u64,
    /// Of the group.
    pub(crate) cluster_id: u64,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    member_id: String,
    cluster_id: String,
    checksum: String,
}

impl Stored {
    fn expected_checksum(&self) -> String {
        format!("{:08x}", crc32c::crc32c(format!("{} {}", self.member_id, self.cluster_id).as_bytes()))
    }
}

impl DataDir {
    /// Makes the directory if it is missing, takes its lock, and reads or writes its identity.
    pub(crate) fn open(path: &Path, founding: Identity) -> anyhow::Result<Self> {
        make(path).with_context(|| format!("--data-dir {} can't be made", path.display()))?;
        let lock = File::create(path.join("LOCK"))
            .with_context(|| format!("--data-dir {} can't be written", path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                anyhow::bail!("--data-dir {} is in use by another tailwater; stop it or name another directory", path.display());
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("--data-dir {} can't be locked", path.display()));
            }
        }
        let identity = identity(path, founding)?;
        Ok(Self { _lock: lock, identity })
    }
}

fn make(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if path.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    // The name is durable only when the directory above it is synced.
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

fn identity(path: &Path, founding: Identity) -> anyhow::Result<Identity> {
    let file = path.join("member.json");
    match fs::read(&file) {
        Ok(bytes) => read(&bytes).with_context(|| format!("{} at byte 0: not readable", file.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            anyhow::ensure!(
                !path.join("raft").exists() && !path.join("state").exists(),
                "{} is missing though {} holds data; restore it from a backup",
                file.display(),
                path.display()
            );
            write(path, &file, founding).with_context(|| format!("{} can't be written", file.display()))?;
            Ok(founding)
        }
        Err(error) => Err(error).with_context(|| format!("{} can't be read", file.display())),
    }
}

fn read(bytes: &[u8]) -> anyhow::Result<Identity> {
    let stored: Stored = serde_json::from_slice(bytes)?;
    anyhow::ensure!(stored.format == FORMAT, "it has format {}, this build reads {FORMAT}", stored.format);
    anyhow::ensure!(stored.checksum == stored.expected_checksum(), "its checksum does not fit its ids");
    let checked = |text: &str| anyhow::Ok(u64::from_str_radix(text, 16)?);
    Ok(Identity { member_id: checked(&stored.member_id)?, cluster_id: checked(&stored.cluster_id)? })
}

fn write(path: &Path, file: &Path, identity: Identity) -> anyhow::Result<()> {
    let mut stored = Stored {
        format: FORMAT,
        member_id: format!("{:016x}", identity.member_id),
        cluster_id: format!("{:016x}", identity.cluster_id),
        checksum: String::new(),
    };
    stored.checksum = stored.expected_checksum();
    let temporary = path.join("member.json.new");
    let mut out = File::create(&temporary)?;
    out.write_all(&serde_json::to_vec(&stored)?)?;
    out.sync_all()?;
    fs::rename(&temporary, file)?;
    Ok(File::open(path)?.sync_all()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOUNDING: Identity = Identity { member_id: 7, cluster_id: 9 };

    #[test]
    fn the_identity_of_the_first_start_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("data");
        drop(DataDir::open(&path, FOUNDING).expect("founded"));
        let again = DataDir::open(&path, Identity { member_id: 1, cluster_id: 2 }).expect("opened");
        assert_eq!(again.identity, FOUNDING);
    }

    #[test]
    fn a_second_server_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let _held = DataDir::open(dir.path(), FOUNDING).expect("founded");
        let refused = DataDir::open(dir.path(), FOUNDING).expect_err("in use");
        assert!(refused.to_string().contains("is in use by another tailwater"), "{refused}");
    }

    #[test]
    fn a_broken_or_foreign_identity_names_the_file() {
        let dir = tempfile::tempdir().expect("a directory");
        for text in ["", "{\"format\":1,", "{\"format\":1,\"member_id\":\"1\",\"cluster_id\":\"1\",\"checksum\":\"0\"}"] {
            fs::write(dir.path().join("member.json"), text).expect("written");
            let refused = format!("{:#}", DataDir::open(dir.path(), FOUNDING).expect_err("unreadable"));
            assert!(refused.contains("member.json"), "{refused}");
        }
    }

    #[test]
    fn data_without_an_identity_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("raft")).expect("made");
        let refused = DataDir::open(dir.path(), FOUNDING).expect_err("no identity");
        assert!(refused.to_string().contains("member.json is missing"), "{refused}");
    }
}
