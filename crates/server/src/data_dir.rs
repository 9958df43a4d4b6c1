//! The data directory: who it belongs to, and that one process uses it.
//!
//! `IDENTITY` is one line of JSON, `{"format":1,"group":{"member_id":"<hex>","cluster_id":"<hex>","founds":<bool>,
//! "members":[{"id":"<hex>","name":"…","peer_urls":["…"],"is_learner":<bool>}]},"check":"<hex>"}`; `check` is the first
//! eight bytes of the SHA-1 of the group's JSON in hex. The members are those that the directory began with: what the
//! command line says later changes nothing. `LOCK` is locked while the process lives.
//! `raft/` and `state/` belong to the consensus and eventlog crates.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};

use tailwater_eventlog::{Member, MemberId};

use crate::config::Config;
use crate::founding::Founding;
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
    /// Whether it began together with its group; else it joined one.
    pub(crate) founds: bool,
    /// The members that it began with, by id.
    pub(crate) members: Vec<Member>,
    /// Whether it held data before.
    pub(crate) is_existing: bool,
    /// Unlocked when dropped.
    _lock: File,
}

/// What a directory begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Beginning {
    pub(crate) identity: Identity,
    pub(crate) founds: bool,
    pub(crate) members: Vec<Member>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: u32,
    group: StoredGroup,
    check: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredGroup {
    member_id: String,
    cluster_id: String,
    founds: bool,
    members: Vec<StoredMember>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredMember {
    id: String,
    name: String,
    peer_urls: Vec<String>,
    is_learner: bool,
}

impl DataDir {
    /// Whether a member has begun here.
    pub(crate) fn is_founded(path: &Path) -> bool {
        path.join(IDENTITY_FILE).exists()
    }

    /// Opens or founds it. A member that joins asks the group who it is.
    ///
    /// # Errors
    /// See [`DataDirError`]; the group can't be asked, or does not know this member.
    pub(crate) fn open(config: &Config) -> anyhow::Result<Self> {
        Self::open_at(&config.data_dir, || {
            let founding =
                config.founding.as_ref().context("the data directory was emptied while this member started")?;
            if !founding.joins {
                let (identity, members) = (founding.identity, founding.members.clone());
                return Ok(Beginning { identity, founds: true, members });
            }
            let group = join::ask(&founding.other_urls(), &config.link())?;
            let identity = group.identity_of(&config.peer_urls)?;
            Ok(Beginning { identity, founds: false, members: group.members })
        })
    }

    /// Makes the directory of a member that founds its group, over what `fill` puts into it first. Until all of that is
    /// there, no start takes it for one.
    ///
    /// # Errors
    /// See [`DataDirError`]; the directory holds something already; or `fill` fails, whose traces are left.
    pub(crate) fn found<T>(
        path: &Path,
        founding: &Founding,
        fill: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let unusable = |reason| DataDirError::Unusable { path: path.display().to_string(), reason };
        fs::create_dir_all(path).map_err(unusable)?;
        if fs::read_dir(path).map_err(unusable)?.next().is_some() {
            return Err(occupied(path));
        }
        let filled = fill()?;
        let beginning = Beginning { identity: founding.identity, founds: true, members: founding.members.clone() };
        write(path, &path.join(IDENTITY_FILE), &beginning).map_err(unusable)?;
        Ok(filled)
    }

    fn open_at(path: &Path, begin: impl FnOnce() -> anyhow::Result<Beginning>) -> anyhow::Result<Self> {
        let unusable = |reason| DataDirError::Unusable { path: path.display().to_string(), reason };
        fs::create_dir_all(path).map_err(unusable)?;
        let identity_file = path.join(IDENTITY_FILE);
        let is_existing = Self::is_founded(path);
        if !is_existing {
            refuse_foreign(path)?;
        }
        let lock = File::create(path.join(LOCK_FILE)).map_err(unusable)?;
        if lock.try_lock().is_err() {
            return Err(DataDirError::Locked { path: path.display().to_string() }.into());
        }
        let beginning = if is_existing {
            read(&identity_file)?
        } else {
            let beginning = begin()?;
            write(path, &identity_file, &beginning).map_err(unusable)?;
            beginning
        };
        let Beginning { identity, founds, members } = beginning;
        Ok(Self { identity, founds, members, is_existing, _lock: lock })
    }
}

/// Why no member can be made here.
pub(crate) fn occupied(path: &Path) -> anyhow::Error {
    anyhow::anyhow!("data-dir {:?} not empty or could not be read", path.display().to_string())
}

/// Another program's data is never written into.
fn refuse_foreign(path: &Path) -> Result<(), DataDirError> {
    let unusable = |reason| DataDirError::Unusable { path: path.display().to_string(), reason };
    for entry in fs::read_dir(path).map_err(unusable)? {
        let name = entry.map_err(unusable)?.file_name().to_string_lossy().into_owned();
        // Left behind by a start that was killed before the identity was in place; a fresh volume has lost+found. Certificates
        // that are made at the first start come before all else.
        if name != LOCK_FILE && name != "IDENTITY.tmp" && name != "lost+found" && name != "fixtures" {
            return Err(DataDirError::Foreign { path: path.display().to_string(), found: name });
        }
    }
    Ok(())
}

fn read(file: &Path) -> Result<Beginning, DataDirError> {
    let corrupt = |reason: String| DataDirError::Corrupt { path: file.display().to_string(), reason };
    let text = fs::read_to_string(file).map_err(|error| corrupt(error.to_string()))?;
    let stored: Stored = serde_json::from_str(&text).map_err(|error| corrupt(error.to_string()))?;
    if stored.format != FORMAT {
        return Err(DataDirError::Format { path: file.display().to_string(), found: stored.format });
    }
    if stored.check != check(&stored.group).map_err(|error| corrupt(error.to_string()))? {
        return Err(corrupt("its checksum does not fit".into()));
    }
    let hex = |text: &str| u64::from_str_radix(text, 16).map_err(|error| corrupt(error.to_string()));
    let StoredGroup { member_id, cluster_id, founds, members } = stored.group;
    let identity = Identity { member_id: hex(&member_id)?, cluster_id: hex(&cluster_id)? };
    let member = |StoredMember { id, name, peer_urls, is_learner }: StoredMember| {
        Ok(Member { id: MemberId(hex(&id)?), name, peer_urls, is_learner, ..Default::default() })
    };
    let members = members.into_iter().map(member).collect::<Result<_, DataDirError>>()?;
    Ok(Beginning { identity, founds, members })
}

/// Durable when it returns: the file is synced before it gets its name, the directory after.
fn write(directory: &Path, file: &Path, beginning: &Beginning) -> std::io::Result<()> {
    let member = |member: &Member| StoredMember {
        id: format!("{:x}", member.id.0),
        name: member.name.clone(),
        peer_urls: member.peer_urls.clone(),
        is_learner: member.is_learner,
    };
    let group = StoredGroup {
        member_id: format!("{:x}", beginning.identity.member_id),
        cluster_id: format!("{:x}", beginning.identity.cluster_id),
        founds: beginning.founds,
        members: beginning.members.iter().map(member).collect(),
    };
    let check = check(&group)?;
    let text = serde_json::to_string(&Stored { format: FORMAT, group, check })?;
    let staged = directory.join("IDENTITY.tmp");
    let mut out = File::create(&staged)?;
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")?;
    out.sync_all()?;
    fs::rename(staged, file)?;
    File::open(directory)?.sync_all()
}

fn check(group: &StoredGroup) -> serde_json::Result<String> {
    let digest = Sha1::digest(serde_json::to_string(group)?);
    Ok(digest[..8].iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beginning() -> Beginning {
        let peer_urls = vec!["http://h:1".to_owned()];
        let member = Member { id: MemberId(0xd622_0a2b), name: "a".into(), peer_urls, ..Default::default() };
        let identity = Identity { member_id: 0xd622_0a2b, cluster_id: 0x6656 };
        Beginning { identity, founds: true, members: vec![member] }
    }

    #[test]
    fn an_existing_directory_keeps_its_identity() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("made");
        assert!(!DataDir::open_at(&path, || Ok(beginning())).expect("founded").is_existing);
        let again = DataDir::open_at(&path, || panic!("it knows who it is")).expect("reused");
        let Beginning { identity, founds, members } = beginning();
        assert_eq!((again.identity, again.founds, again.members), (identity, founds, members));
        assert!(again.is_existing);
    }

    #[test]
    fn two_processes_do_not_share_a_directory() {
        let directory = tempfile::tempdir().expect("a directory");
        let _first = DataDir::open_at(directory.path(), || Ok(beginning())).expect("founded");
        let second = DataDir::open_at(directory.path(), || Ok(beginning())).expect_err("locked");
        assert!(matches!(second.downcast_ref(), Some(DataDirError::Locked { .. })));
    }

    #[test]
    fn what_another_program_wrote_is_refused_by_name() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("member")).expect("made");
        let error = DataDir::open_at(directory.path(), || Ok(beginning())).expect_err("foreign");
        assert!(error.to_string().contains("holds \"member\""), "{error}");
    }

    #[test]
    fn any_flipped_byte_of_the_identity_is_noticed() {
        let directory = tempfile::tempdir().expect("a directory");
        drop(DataDir::open_at(directory.path(), || Ok(beginning())).expect("founded"));
        let file = directory.path().join(IDENTITY_FILE);
        let good = fs::read(&file).expect("readable");
        for at in 0..good.len() - 1 {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&file, &bad).expect("written");
            let found = DataDir::open_at(directory.path(), || Ok(beginning()));
            assert!(found.is_err(), "byte {at}: {}", String::from_utf8_lossy(&bad));
        }
    }
}
