//! One number for what a member holds, to be compared with another member's.
//!
//! Kept are, as etcd's `HashKV` has it, each key's version that is live at the compacted revision, and every event above
//! that up to the revision asked for. The hash is the sum, modulo 2^32, of one number for each: the CRC-32C of revision
//! and sub-revision (12 bytes, big endian) and the event bytes, times an odd constant. A sum, so that it does not matter
//! which of the rows are folded into base already, which differs between members.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::engine::Family;
use super::generation::Generation;
use super::{EventLog, StorageError, format};
use crate::{Event, EventKind, Revision};

/// Spreads a checksum over all bits, since sums of checksums alone would cancel more easily.
const SPREAD: u32 = 0x9e37_79b1;

/// What a member holds, as one number. Equal histories give equal hashes; hashes of different compacted revisions say
/// nothing about each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreHash {
    /// The number.
    pub hash: u32,
    /// The compacted revision that it was taken at; 0 before the first compaction.
    pub compacted: Revision,
    /// The newest revision that it covers.
    pub revision: Revision,
}

/// There is no hash at that revision.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// Below the compacted revision, which is this.
    #[error("compacted at {0}")]
    Compacted(Revision),
    /// Above the newest revision, which is this.
    #[error("the newest revision is {0}")]
    Future(Revision),
    /// The storage failed or a row is corrupt.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl EventLog {
    /// Hashes everything up to `at`, or up to the newest revision. Reads the whole store, off every path that somebody
    /// waits on; folding waits meanwhile.
    ///
    /// # Errors
    /// See [`HashError`].
    pub fn hash(&self, at: Option<Revision>) -> Result<StoreHash, HashError> {
        let log = self.current();
        let _fold_point_stays = log.folding.lock();
        let state = log.state();
        let revision = at.unwrap_or(state.revision);
        if revision > state.revision {
            return Err(HashError::Future(state.revision));
        }
        if revision < state.compacted {
            return Err(HashError::Compacted(state.compacted));
        }
        let superseding = superseding(&log, state.fold_point, state.compacted)?;
        let mut hash = superseding.values().copied().fold(0, u32::wrapping_add);
        let mut base = log.engine.rows(Family::Base, &[], None);
        while let Some((key, row)) = base.next_row()? {
            if !superseding.contains_key(&key) {
                hash = hash.wrapping_add(number(&format::read_base_row(&key, row)?));
            }
        }
        let mut scan = log.scan((state.compacted.max(state.fold_point).next(), 0), revision);
        while let Some(event) = scan.next_event()? {
            hash = hash.wrapping_add(number(&event));
        }
        Ok(StoreHash { hash, compacted: state.compacted, revision })
    }
}

/// What the log says, between the fold point and the compacted revision, of the keys that it names: the number of the
/// last version, 0 for a deleted key. Empty once folding has caught up but for one revision.
fn superseding(
    log: &Generation,
    fold_point: Revision,
    compacted: Revision,
) -> Result<BTreeMap<Bytes, u32>, StorageError> {
    let mut last = BTreeMap::new();
    let mut scan = log.scan((fold_point.next(), 0), compacted);
    while let Some(event) = scan.next_event()? {
        let number = if event.kind() == EventKind::Put { number(&event) } else { 0 };
        last.insert(Bytes::copy_from_slice(event.key()), number);
    }
    Ok(last)
}

fn number(event: &Event) -> u32 {
    let checksum = crc32c::crc32c(&format::log_key(event.revision(), event.sub()));
    crc32c::crc32c_append(checksum, event.bytes()).wrapping_mul(SPREAD)
}

#[cfg(test)]
mod tests;
