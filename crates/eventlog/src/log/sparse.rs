//! Where the events of a few keys stand, as the key index knows it: a watcher of one key that is a million revisions
//! behind costs by what it gets, not by what others have written meanwhile.

use super::Generation;
use crate::{HistoryPoint, KeyRange, Revision};

/// Rows of a scan that take about as long as one row that is looked up.
const ROWS_PER_LOOKUP: i64 = 16;

/// An event's place and its key's number in [`Places::keys`].
type Place = (Revision, u32, usize);

/// Events in (revision, sub) order.
#[derive(Debug, Default)]
pub(crate) struct Places {
    keys: Vec<Vec<u8>>,
    places: Vec<Place>,
}

impl Places {
    /// Each event's revision, sub and key.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Revision, u32, &[u8])> {
        self.places.iter().map(|&(revision, sub, key)| (revision, sub, self.keys[key].as_slice()))
    }
}

/// The events from `from` up to `to` inside `ranges`; `None` when a scan of all rows between is about as cheap, or when the
/// index may lack one of them: it forgets tombstones at the compacted revision, and what is above the newest is not written.
pub(super) fn places(log: &Generation, ranges: &[KeyRange], from: HistoryPoint, to: Revision) -> Option<Places> {
    // In this order: the tree may know events that are not written yet, but none up to the revision is missing; and it
    // forgets only what the state says is compacted.
    let newest = log.state().revision;
    let tree = log.tree.lock().clone();
    if ranges.is_empty() || to > newest || log.state().compacted >= from.revision {
        return None;
    }
    let mut left = usize::try_from((to.0 - from.revision.0) / ROWS_PER_LOOKUP).ok()?;
    let mut found = Places::default();
    for (key, history, _) in ranges.iter().flat_map(|range| tree.range(range)) {
        let versions = history.between((from.revision, from.sub), to);
        left = left.checked_sub(1 + versions.clone().count())?;
        let number = found.keys.len();
        found.places.extend(versions.map(|version| (version.revision, version.sub, number)));
        if found.places.last().is_some_and(|last| last.2 == number) {
            found.keys.push(key.to_vec());
        }
    }
    // Ranges may overlap.
    found.places.sort_unstable();
    found.places.dedup_by_key(|place| (place.0, place.1));
    Some(found)
}
