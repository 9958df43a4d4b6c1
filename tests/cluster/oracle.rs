//! What must hold of a record, each rule under the name of the guarantee that it checks.

mod operations;
mod watch;

use std::collections::BTreeMap;

use tailwater_api::mvccpb::Event;

use crate::history::{Record, States, Version, is_put, kv, text};

pub(crate) use operations::{claimed, operations};
pub(crate) use watch::watched;

/// Checks everything but linearizability by the outside checker.
///
/// # Errors
/// The first violation; it begins with the guarantee's name.
pub(crate) fn check(record: &Record) -> anyhow::Result<()> {
    log(&record.log, record.revision)?;
    operations(record)?;
    for (index, one) in record.watched.iter().enumerate() {
        watched(one, record).map_err(|error| error.context(format!("watcher {index}")))?;
    }
    Ok(())
}

/// The log itself: no revision is missing, each event says truthfully what it changed.
pub(crate) fn log(log: &[Event], revision: i64) -> anyhow::Result<()> {
    let mut last = 1;
    let mut in_revision: Vec<&[u8]> = Vec::new();
    let mut live: BTreeMap<&[u8], &Event> = BTreeMap::new();
    for event in log {
        let pair = kv(event);
        let (key, at) = (pair.key.as_ref(), pair.mod_revision);
        anyhow::ensure!(at >= last, "ordered: revision {at} comes after {last} in the log");
        if at > last {
            anyhow::ensure!(at == last + 1, "reliable: after revision {last} the log goes on with {at}");
            (last, in_revision) = (at, Vec::new());
        }
        anyhow::ensure!(at > 1, "no event has revision 1");
        anyhow::ensure!(!in_revision.contains(&key), "unique: {} twice in revision {at}", text(key));
        in_revision.push(key);
        let before = live.remove(key);
        let previous = before.and_then(|event| event.kv.as_ref());
        anyhow::ensure!(event.prev_kv.as_ref() == previous, "prev_kv: {event:?} follows {previous:?}");
        if is_put(event) {
            let (created, version) = previous.map_or((at, 1), |kv| (kv.create_revision, kv.version + 1));
            let matches = pair.create_revision == created && pair.version == version;
            anyhow::ensure!(matches, "create_revision {created} and version {version} expected: {event:?}");
            live.insert(key, event);
        } else {
            anyhow::ensure!(previous.is_some(), "a delete of what is not there: {event:?}");
        }
    }
    anyhow::ensure!(last == revision, "durable: the log ends at revision {last}, the cluster is at {revision}");
    Ok(())
}

/// What `key` is at `revision`, for an error's text.
fn state(states: &States, key: &str, revision: i64) -> Option<Version> {
    states.at(key, revision).cloned()
}
