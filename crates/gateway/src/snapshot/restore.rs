//! From a snapshot, or the database of an etcd's data directory, to the store that a new group begins with.
//!
//! The file is read twice. The first pass finds up to where its history has gaps: etcd leaves them at and below the
//! compacted revision, and where a restore has raised the revision. What lies above is whole, and becomes the log; what
//! was live there becomes base.

use std::path::Path;

use prost::Message as _;
use sha2::{Digest, Sha256};
use tailwater_consensus::{RestoredState, StoredLease};
use tailwater_eventlog::{
    Alarm, AlarmKind, AuthFacts, Founder, LeaseId, LogState, MemberId, RestoredPut, Revision, StorageError,
};
use tailwater_snapshot::{Auth, Change, Facts, ReadAt, RowRevision, SnapshotError, SnapshotReader};

/// What is to be restored, and how.
#[derive(Clone, Copy, Debug)]
pub struct Restoring<'a> {
    /// The directory of the store; must not exist.
    pub state_dir: &'a Path,
    /// The newest revision is raised by this, and all below it is compacted, so that whoever watched the lost group
    /// finds out. 0: it stays.
    pub bump_revision: u64,
}

/// What was restored.
#[derive(Clone, Debug, PartialEq)]
pub struct Restored {
    /// The store's numbers.
    pub numbers: LogState,
    /// Changes of keys that were read.
    pub rows: u64,
    /// Leases.
    pub leases: u64,
    /// History below this was given up, though the file said that it is there, since it has a gap.
    pub cut: Option<Revision>,
}

/// A snapshot can't be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The file can't be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The store can't be written.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The revision can't be raised that far.
    #[error("revision {revision} can't be raised by {by}")]
    Bump {
        /// As it is.
        revision: i64,
        /// As asked.
        by: u64,
    },
    /// A user or a role is no message.
    #[error(transparent)]
    Auth(#[from] prost::DecodeError),
    /// More changes in one revision than a store takes.
    #[error("revision {0} has too many changes")]
    TooManyChanges(i64),
}

/// Makes the store. The file's trailer is not looked at.
///
/// # Errors
/// See [`RestoreError`]; what was written by then is of no use.
pub fn restore<R: ReadAt>(reader: &SnapshotReader<R>, restoring: &Restoring<'_>) -> Result<Restored, RestoreError> {
    let facts = reader.facts()?;
    let shape = Shape::of(reader, &facts)?;
    let revision = match i64::try_from(restoring.bump_revision).ok().and_then(|by| shape.revision.checked_add(by)) {
        // Above it there must be room for what is written.
        Some(revision) if revision < i64::MAX >> 1 => revision,
        _ => return Err(RestoreError::Bump { revision: shape.revision, by: restoring.bump_revision }),
    };
    let is_raised = restoring.bump_revision > 0;
    let (compacted, fold_point) = if is_raised { (revision, revision) } else { (shape.compacted, shape.fold_point) };
    let mut founder = Founder::new(restoring.state_dir, Revision(fold_point))?;
    let mut digest = Sha256::new();
    digest.update(restoring.bump_revision.to_be_bytes());
    let rows = copy_history(reader, &mut founder, &mut digest)?;
    let state = state(reader, &facts, digest)?;
    let numbers = founder.finish(Revision(revision), Revision(compacted), &state.to_rows()?)?;
    let cut = (!is_raised && shape.compacted > facts.compacted().unwrap_or(0)).then_some(numbers.compacted);
    Ok(Restored { numbers, rows, leases: state.leases.len() as u64, cut })
}

/// What the first pass finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    /// The newest revision.
    revision: i64,
    compacted: i64,
    /// Every record above is there, and whole.
    fold_point: i64,
}

impl Shape {
    fn of<R: ReadAt>(reader: &SnapshotReader<R>, facts: &Facts) -> Result<Self, RestoreError> {
        let compacted = facts.compacted().unwrap_or(0).max(0);
        // Nothing is written at revision 1, so that nothing is missing there.
        let mut last = RowRevision { main: 1, sub: 0 };
        let mut whole_above = 0;
        let mut history = reader.history()?;
        while let Some((at, change)) = history.next()? {
            let is_next = at == RowRevision { main: last.main, sub: last.sub + 1 }
                || at == RowRevision { main: last.main + 1, sub: 0 };
            if change == Change::Bump {
                whole_above = at.main;
            } else if !is_next {
                whole_above = if at.sub == 0 { at.main - 1 } else { at.main };
            }
            last = at;
        }
        let revision = last.main.max(compacted);
        if compacted > last.main {
            // The record at the compacted revision is gone, and none is above.
            whole_above = compacted;
        }
        // A watch may begin at the compacted revision: its record stays in the log if it is there.
        let fold_point = whole_above.max(compacted - 1).max(0);
        Ok(Self { revision, compacted: compacted.max(whole_above.min(fold_point)), fold_point })
    }
}

fn copy_history<R: ReadAt>(
    reader: &SnapshotReader<R>,
    founder: &mut Founder,
    digest: &mut Sha256,
) -> Result<u64, RestoreError> {
    let mut rows = 0;
    let mut history = reader.history()?;
    while let Some((at, change)) = history.next()? {
        let sub = u32::try_from(at.sub).map_err(|_| RestoreError::TooManyChanges(at.main))?;
        let revision = Revision(at.main);
        digest.update(at.main.to_be_bytes());
        digest.update(at.sub.to_be_bytes());
        match &change {
            Change::Bump => continue,
            Change::Delete { key } => {
                digest.update([0]);
                digest.update(key);
                founder.delete(revision, sub, key)?;
            }
            Change::Put { key_value, encoded } => {
                digest.update([1]);
                digest.update(encoded);
                let put = RestoredPut {
                    key: &key_value.key,
                    value: &key_value.value,
                    create_revision: Revision(key_value.create_revision),
                    version: key_value.version,
                    lease: LeaseId(key_value.lease),
                };
                founder.put(revision, sub, &put)?;
            }
        }
        rows += 1;
    }
    Ok(rows)
}

/// Leases and alarms, and what all of it amounts to.
fn state<R: ReadAt>(
    reader: &SnapshotReader<R>,
    facts: &Facts,
    mut digest: Sha256,
) -> Result<RestoredState, RestoreError> {
    let mut state = RestoredState::default();
    let mut leases = reader.leases()?;
    while let Some(lease) = leases.next()? {
        for number in [lease.id, lease.ttl, lease.remaining_ttl] {
            digest.update(number.to_be_bytes());
        }
        let id = LeaseId(lease.id);
        state.leases.push(StoredLease { id, ttl: lease.ttl, remaining: lease.remaining_ttl });
    }
    for alarm in &facts.alarms {
        let kind = match alarm.alarm {
            1 => AlarmKind::NoSpace,
            2 => AlarmKind::Corrupt,
            // None at all, or one of a version to come, about which nothing could be done here.
            _ => continue,
        };
        digest.update(alarm.member_id.to_be_bytes());
        state.alarms.push(Alarm { member: MemberId(alarm.member_id), kind });
    }
    state.auth = auth(&facts.auth, &mut digest);
    state.digest = digest.finalize().to_vec();
    Ok(state)
}

fn auth(auth: &Auth, digest: &mut Sha256) -> AuthFacts {
    let encoded = AuthFacts {
        enabled: auth.is_enabled,
        // etcd begins at 1.
        revision: auth.revision.max(1),
        users: auth.users.iter().map(|user| user.encode_to_vec().into()).collect(),
        roles: auth.roles.iter().map(|role| role.encode_to_vec().into()).collect(),
        ..AuthFacts::default()
    };
    digest.update([u8::from(encoded.enabled)]);
    digest.update(encoded.revision.to_be_bytes());
    for message in encoded.users.iter().chain(&encoded.roles) {
        digest.update(message);
    }
    encoded
}

#[cfg(test)]
mod tests;
