//! The live keys in key order, for a transfer.
//!
//! A chunk is read at `at`, the newest revision when it began; `at >= B`. A key is left out when its version at `at`
//! was superseded, compacted and folded away meanwhile: what superseded it lies above B, so the reader's tail brings it.

use std::sync::Arc;

use bytes::Bytes;

use super::engine::Rows;
use super::{Family, Generation, LiveChunk, StorageError, format};
use crate::index::Version;
use crate::{Event, KeyRange, Revision, StateChunk, StateQuery, TreeKey};

/// Keys looked up at once; with values of the largest size they are about 50 MB.
const KEYS_PER_LOOKUP: usize = 32;

/// A key and its version.
type Wanted<'a> = (TreeKey<'a>, Version);

pub(super) fn read(
    log: &Generation,
    range: &KeyRange,
    resume_after: Option<&Bytes>,
    bytes_max: usize,
    unread_bytes_min: Option<usize>,
) -> Result<LiveChunk, StorageError> {
    // In this order: the tree may know events above `at` that are not written yet, but none up to `at` is missing.
    let at = log.state().revision;
    let tree = log.tree.lock().clone();
    let mut versions = tree
        .range_after(range, resume_after.map(Bytes::as_ref))
        .filter_map(|(key, history, _)| history.live_at(at).map(|version| (key, *version)));
    let mut chunk = LiveChunk::default();
    let (mut bytes, mut lookup) = (0, Lookup { unread_bytes_min, ..Lookup::new(log, tree.count_live(range)) });
    loop {
        let wanted: Vec<Wanted<'_>> = versions.by_ref().take(KEYS_PER_LOOKUP).collect();
        let Some((last, ..)) = wanted.last() else { return Ok(chunk) };
        for event in lookup.read(&wanted)? {
            bytes += event.bytes().len();
            chunk.events.push(event);
        }
        if bytes >= bytes_max {
            chunk.resume_after = Some(last.to_vec().into());
            return Ok(chunk);
        }
    }
}

/// What was live at an older revision. Rows that are gone were compacted meanwhile; the caller looks for that afterwards.
pub(super) fn read_at(log: &Generation, query: &StateQuery) -> Result<StateChunk, StorageError> {
    let tree = log.tree.lock().clone();
    // The tree knows how many are live now, which is about as many.
    let expected = tree.count_live(&query.range).min(query.keys_max);
    let mut versions = tree
        .range_after(&query.range, query.after.as_ref().map(Bytes::as_ref))
        .filter_map(|(key, history, _)| history.live_at(query.at).map(|version| (key, *version)))
        .peekable();
    let mut chunk = StateChunk::default();
    let (mut bytes, mut keys, mut per_lookup) = (0, 0, 1);
    let (mut last, mut lookup) = (None, Lookup::new(log, expected));
    while keys < query.keys_max && bytes < query.bytes_max {
        let wanted: Vec<Wanted<'_>> = versions.by_ref().take(per_lookup.min(query.keys_max - keys)).collect();
        let Some((key, ..)) = wanted.last() else { break };
        (last, keys) = (Some(*key), keys + wanted.len());
        for event in lookup.read(&wanted)? {
            bytes += event.bytes().len();
            chunk.events.push(event);
        }
        // So that the last lookup brings at most about as much as all before it, whatever the values' size.
        per_lookup = (2 * per_lookup).min(KEYS_PER_LOOKUP);
    }
    if versions.peek().is_some() {
        chunk.resume_after = last.map(|last| last.to_vec().into()).or_else(|| query.after.clone());
        chunk.rest = if query.count { versions.count() } else { 0 };
    }
    Ok(chunk)
}

/// Reads the rows of keys that come in order.
struct Lookup<'a> {
    log: &'a Generation,
    /// What is at or below it is in base, or superseded.
    fold_point: Revision,
    /// Whether rows are read one after the other, which costs a fraction of each by itself. A few may be asked for again:
    /// these are looked up, and stay in the block cache.
    scans_base: bool,
    /// Open from the first row that it is asked for.
    base: Option<Rows<'a>>,
    /// The same, for what is wanted without its value.
    heads: Option<Rows<'a>>,
    unread_bytes_min: Option<usize>,
}

impl<'a> Lookup<'a> {
    /// For about so many keys.
    fn new(log: &'a Generation, keys: usize) -> Self {
        let (fold_point, scans_base) = (log.state().fold_point, keys >= KEYS_PER_LOOKUP);
        Self { log, fold_point, scans_base, base: None, heads: None, unread_bytes_min: None }
    }

    /// The events of `wanted`, whose keys lie behind those of the call before; without those that are gone.
    fn read(&mut self, wanted: &[Wanted<'_>]) -> Result<Vec<Arc<Event>>, StorageError> {
        let fold_point = self.fold_point;
        let is_folded = |revision: Revision| revision <= fold_point;
        let above = wanted.iter().filter(|(_, version)| !is_folded(version.revision));
        let above: Vec<_> = above.map(|(_, version)| format::log_key(version.revision, version.sub)).collect();
        let mut above = self.log.engine.multi_get(Family::Log, &above)?.into_iter();
        let mut events = Vec::with_capacity(wanted.len());
        for (key, version) in wanted {
            let (key, Version { revision, sub, .. }) = (key.to_vec(), *version);
            let found = if !is_folded(revision) {
                let row = above.next().flatten();
                row.map(|row| format::copy_log_row(revision, sub, &row)).transpose()?.map(Arc::new)
            } else if self.scans_base {
                match self.find_head(&key, version)? {
                    Some(head) => Some(head),
                    None => self.find_in_base(&key, version)?,
                }
            } else {
                None
            };
            let event = match found {
                Some(event) => Some(event),
                // Folded meanwhile.
                None => self.log.event(&key, revision, sub)?,
            };
            if event.is_none() {
                check_superseded(self.log, &key, revision, sub)?;
            }
            events.extend(event);
        }
        Ok(events)
    }

    /// The put without its value, where that is enough.
    fn find_head(&mut self, key: &[u8], version: &Version) -> Result<Option<Arc<Event>>, StorageError> {
        let Some(bytes_min) = self.unread_bytes_min.filter(|_| version.is_first()) else { return Ok(None) };
        let heads = self.heads.get_or_insert_with(|| self.log.engine.rows(Family::Heads, key, None));
        let Some(head) = heads.find(key)? else { return Ok(None) };
        let (event, value_bytes) = format::decode_head(key, head)?;
        Ok((value_bytes >= bytes_min && version.is_of(&event)).then(|| Arc::new(event)))
    }

    fn find_in_base(&mut self, key: &[u8], version: &Version) -> Result<Option<Arc<Event>>, StorageError> {
        let base = self.base.get_or_insert_with(|| self.log.engine.rows(Family::Base, key, None));
        let Some(row) = base.find(key)? else { return Ok(None) };
        let event = format::copy_base_row(key, row)?;
        Ok(version.is_of(&event).then(|| Arc::new(event)))
    }
}

/// A missing row is in order only when the version is not the newest any more.
fn check_superseded(log: &Generation, key: &[u8], revision: Revision, sub: u32) -> Result<(), StorageError> {
    let at = log.state().revision;
    let tree = log.tree.lock();
    let newest = tree.get(key).and_then(|history| history.live_at(at));
    if newest.is_some_and(|version| (version.revision, version.sub) == (revision, sub)) {
        let (key, place) = (key.escape_ascii(), format::place_of_log(revision, sub));
        return Err(StorageError::Inconsistent(format!("live key {key}: {place} is neither in the log nor in base")));
    }
    Ok(())
}
