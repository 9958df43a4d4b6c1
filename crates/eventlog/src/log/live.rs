//! The live keys in key order, for a transfer.
//!
//! A chunk is read at `at`, the newest revision when it began; `at >= B`. A key is left out when its version at `at`
//! was superseded, compacted and folded away meanwhile: what superseded it lies above B, so the reader's tail brings it.

use std::sync::Arc;

use bytes::Bytes;

use super::{Family, Generation, LiveChunk, StorageError, format};
use crate::{Event, KeyRange, Revision, StateChunk, StateQuery, TreeKey};

/// Keys looked up at once; with values of the largest size they are about 50 MB.
const KEYS_PER_LOOKUP: usize = 32;

/// A key and where its version stands.
type Wanted<'a> = (TreeKey<'a>, Revision, u32);

pub(super) fn read(
    log: &Generation,
    range: &KeyRange,
    resume_after: Option<&Bytes>,
    bytes_max: usize,
) -> Result<LiveChunk, StorageError> {
    // In this order: the tree may know events above `at` that are not written yet, but none up to `at` is missing.
    let at = log.state().revision;
    let tree = log.tree.lock().clone();
    let mut versions = tree
        .range_after(range, resume_after.map(Bytes::as_ref))
        .filter_map(|(key, history, _)| history.live_at(at).map(|version| (key, version.revision, version.sub)));
    let mut chunk = LiveChunk::default();
    let mut bytes = 0;
    loop {
        let wanted: Vec<Wanted<'_>> = versions.by_ref().take(KEYS_PER_LOOKUP).collect();
        let Some((last, ..)) = wanted.last() else { return Ok(chunk) };
        for event in lookup(log, &wanted)? {
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
    let mut versions = tree
        .range_after(&query.range, query.after.as_ref().map(Bytes::as_ref))
        .filter_map(|(key, history, _)| history.live_at(query.at).map(|version| (key, version.revision, version.sub)))
        .peekable();
    let mut chunk = StateChunk::default();
    let (mut bytes, mut keys, mut per_lookup) = (0, 0, 1);
    let mut last = None;
    while keys < query.keys_max && bytes < query.bytes_max {
        let wanted: Vec<Wanted<'_>> = versions.by_ref().take(per_lookup.min(query.keys_max - keys)).collect();
        let Some((key, ..)) = wanted.last() else { break };
        (last, keys) = (Some(*key), keys + wanted.len());
        for event in lookup(log, &wanted)? {
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

fn lookup(log: &Generation, wanted: &[Wanted<'_>]) -> Result<Vec<Arc<Event>>, StorageError> {
    let keys: Vec<_> = wanted.iter().map(|(_, revision, sub)| format::log_key(*revision, *sub)).collect();
    let rows = log.engine.multi_get(Family::Log, &keys)?;
    let mut events = Vec::with_capacity(wanted.len());
    for (&(key, revision, sub), row) in wanted.iter().zip(rows) {
        let event = match row {
            Some(row) => Some(Arc::new(format::read_log_row(revision, sub, row)?.detached())),
            None => log.event(&key.to_vec(), revision, sub)?,
        };
        if event.is_none() {
            check_superseded(log, &key.to_vec(), revision, sub)?;
        }
        events.extend(event);
    }
    Ok(events)
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
