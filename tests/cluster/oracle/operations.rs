//! Operations against the log.
//!
//! Every answer carries a revision, and the log says what each revision did. So reads can be compared with the state at
//! their revision, each acknowledged write with its record, and real time with the order of revisions. That is strict
//! serializability over all keys, given the revisions; the outside checker looks at the same history key by key
//! and takes no revision for granted.

use std::collections::BTreeMap;

use crate::history::{Action, Answer, Operation, Outcome, Record, States, is_put, kv, text};
use crate::workload::PREFIX;

use super::state;

/// What one revision did to the workload's keys: key to value; `None` is a delete.
type Change = BTreeMap<String, Option<String>>;

/// Checks all operations.
///
/// # Errors
/// The first violation.
pub(crate) fn operations(record: &Record) -> anyhow::Result<()> {
    let states = States::replay(&record.log);
    let changes = changes(record);
    let by_value = values(record)?;
    let claimed = claimed(record);
    for (index, operation) in record.operations.iter().enumerate() {
        answer(operation, &states, &changes)?;
        if let (Outcome::Refused, Some(value)) = (&operation.outcome, operation.value()) {
            anyhow::ensure!(!by_value.contains_key(value), "refused, but done: {operation:?}");
        }
        let Some(answer) = operation.answer().filter(|answer| answer.wrote) else { continue };
        let owner = claimed.get(&answer.revision);
        anyhow::ensure!(
            owner == Some(&index),
            "unique: revision {} acknowledged twice: {operation:?}",
            answer.revision
        );
    }
    phantoms(record, &changes, &claimed)?;
    real_time(record)
}

/// Who was told that he wrote a revision; the last one where several were.
pub(crate) fn claimed(record: &Record) -> BTreeMap<i64, usize> {
    let acknowledged = |(index, operation): (usize, &Operation)| {
        operation.answer().filter(|answer| answer.wrote).map(|answer| (answer.revision, index))
    };
    record.operations.iter().enumerate().filter_map(acknowledged).collect()
}

fn changes(record: &Record) -> BTreeMap<i64, Change> {
    let mut changes: BTreeMap<i64, Change> = BTreeMap::new();
    for event in record.log.iter() {
        let pair = kv(event);
        let key = text(&pair.key);
        if key.starts_with(PREFIX) {
            let value = is_put(event).then(|| text(&pair.value));
            changes.entry(pair.mod_revision).or_default().insert(key, value);
        }
    }
    changes
}

/// Where each value was written.
fn values(record: &Record) -> anyhow::Result<BTreeMap<String, i64>> {
    let mut values = BTreeMap::new();
    for event in record.log.iter().filter(|event| is_put(event)) {
        let pair = kv(event);
        let other = values.insert(text(&pair.value), pair.mod_revision);
        let same = other.is_none_or(|revision| revision == pair.mod_revision);
        let ours = pair.key.starts_with(PREFIX.as_bytes());
        anyhow::ensure!(same || !ours, "unique: a write was done in revisions {other:?} and {}", pair.mod_revision);
    }
    Ok(values)
}

fn answer(operation: &Operation, states: &States, changes: &BTreeMap<i64, Change>) -> anyhow::Result<()> {
    let Some(answer) = operation.answer() else { return Ok(()) };
    if answer.wrote {
        let expected = intended(operation);
        let found = changes.get(&answer.revision);
        anyhow::ensure!(
            found == Some(&expected),
            "durable: {operation:?} was acknowledged, but revision {} is {found:?}",
            answer.revision
        );
    }
    let key = &operation.keys[0];
    let now = state(states, key, answer.revision);
    match &operation.action {
        Action::Read { .. } => {
            anyhow::ensure!(answer.found == now, "a read is the state at its revision, {now:?}: {operation:?}");
        }
        Action::Swap { expected, .. } if answer.wrote => {
            let before = state(states, key, answer.revision - 1);
            let met = before.as_ref().map_or(0, |version| version.revision) == *expected;
            anyhow::ensure!(met, "a swap was done on {before:?}: {operation:?}");
        }
        Action::Swap { expected, .. } => {
            anyhow::ensure!(answer.found == now, "a swap reads the state at its revision, {now:?}: {operation:?}");
            let differs = now.as_ref().map_or(0, |version| version.revision) != *expected;
            anyhow::ensure!(differs, "a swap was refused though its condition holds: {operation:?}");
        }
        Action::Delete if !answer.wrote => {
            anyhow::ensure!(now.is_none(), "a delete did nothing, but there was {now:?}: {operation:?}");
        }
        Action::Delete | Action::Put { .. } => {}
    }
    Ok(())
}

/// What a write that was done has changed.
fn intended(operation: &Operation) -> Change {
    operation.keys.iter().map(|key| (key.clone(), operation.value().map(str::to_owned))).collect()
}

/// Each change must be one that somebody asked for, once.
fn phantoms(record: &Record, changes: &BTreeMap<i64, Change>, claimed: &BTreeMap<i64, usize>) -> anyhow::Result<()> {
    let mut possible: BTreeMap<Change, usize> = BTreeMap::new();
    for operation in record.operations.iter().filter(|operation| operation.outcome == Outcome::Unknown) {
        *possible.entry(intended(operation)).or_default() += 1;
    }
    for (revision, change) in changes.iter().filter(|(revision, _)| !claimed.contains_key(revision)) {
        let left = possible.get_mut(change).filter(|left| **left > 0);
        let Some(left) = left else {
            anyhow::bail!("nobody wrote revision {revision}, or it was done twice: {change:?}")
        };
        *left -= 1;
    }
    Ok(())
}

/// Whatever began after an answer came is at its revision or above; a write above.
fn real_time(record: &Record) -> anyhow::Result<()> {
    let mut ends: Vec<(u64, i64, usize)> = Vec::new();
    for (index, operation) in record.operations.iter().enumerate() {
        // A serializable read tells of a revision that was applied, so it counts as seen.
        ends.extend(operation.answer().map(|answer| (operation.end, answer.revision, index)));
    }
    ends.sort_unstable();
    let mut ended = ends.into_iter().peekable();
    let mut newest: Option<(i64, usize)> = None;
    // By call time already.
    for operation in record.operations.iter().filter(|operation| operation.is_linearizable()) {
        let Some(Answer { revision, wrote, .. }) = operation.answer() else { continue };
        while let Some((_, seen, index)) = ended.next_if(|(end, ..)| *end < operation.call) {
            newest = newest.max(Some((seen, index)));
        }
        let Some((seen, index)) = newest else { continue };
        let fresh = if *wrote { *revision > seen } else { *revision >= seen };
        let earlier = &record.operations[index];
        anyhow::ensure!(fresh, "linearizable: {operation:?} began after {earlier:?} had ended");
    }
    Ok(())
}
