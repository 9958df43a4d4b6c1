//! Folding: moving the log's oldest records into base, behind the compaction that made them unreadable.
//!
//! Invariant: `fold_point < compacted`. A step is one batch: base as it is at the new fold point, the new fold point,
//! and the folded rows gone. So a crash leaves the state before or after a step, and the next step goes on from there.
//!
//! A put that a later event below the compacted revision supersedes is not written: a key that was put 30 times between
//! two compactions, as a lease of Kubernetes is, costs one row. So between two steps base may lack such a version, or have
//! one older still, while the event that superseded it is in the log. No read at or above the compacted revision looks
//! for it, and a copy never ends below the compacted revision of where its base came from ([`super::CopyPoint`]). A backup, which
//! others read, is made where nothing is missing ([`hold_exact`]).

use std::time::Duration;

use rocksdb::WriteBatch;

use super::copy::point_of;
use super::engine::{Engine, Family};
use super::hold::Holds;
use super::{EventLog, FoldHold, FoldProgress, Generation, StorageError, base, format};
use crate::{Event, EventKind, Revision};

/// A step's batch in bytes, the last record aside: it stays in memory until it is written.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// Events of a step that a reader waits for.
const EVENTS_PER_STEP: usize = 1000;
/// Between two looks whether folding may go on.
const HELD_WAIT: Duration = Duration::from_millis(50);

pub(super) fn step(log: &Generation, holds: &Holds, events_max: usize) -> Result<FoldProgress, StorageError> {
    let mut folding = log.folding.lock();
    let state = log.state();
    let target = Revision(state.compacted.0 - 1);
    if state.fold_point >= target {
        return Ok(FoldProgress::Done);
    }
    // Asked with the lock held: a hold that is taken from now on finds the fold point after this step.
    if holds.is_held() {
        return Ok(FoldProgress::Held);
    }
    *folding = target;
    let engine = &log.engine;
    // Whole up to the target, which was written before. A snapshot, since this thread may be put off while it looks.
    let tree = log.tree.lock().clone();
    let is_superseded = |event: &Event| {
        let newest = tree.get(event.key()).and_then(|history| history.newest_at(target));
        newest.is_some_and(|newest| (newest.revision, newest.sub) > (event.revision(), event.sub()))
    };
    let mut batch = WriteBatch::default();
    let mut folded = 0;
    let mut fold_point = state.fold_point;
    let mut reached = target;
    let mut scan = log.scan((state.fold_point.next(), 0), target);
    while let Some(event) = scan.next_event()? {
        let full = folded >= events_max || batch.size_in_bytes() >= BATCH_BYTES_MAX;
        if full && event.revision() != fold_point && folded > 0 {
            reached = fold_point;
            break;
        }
        fold_point = event.revision();
        if event.kind() == EventKind::Delete || !is_superseded(&event) {
            match event.kind() {
                EventKind::Put => base::put(engine, &mut batch, &event, &event.to_row()),
                EventKind::Delete => base::delete(engine, &mut batch, event.key()),
            }
        }
        folded += 1;
    }
    // All rows up to `reached` were seen, and it may lie above the last: revision 1 has no record.
    let (start, end) = (format::log_key(state.fold_point.next(), 0), format::log_key(reached.next(), 0));
    batch.delete_range_cf(engine.family(Family::Log), start, end);
    let value = format::sealed(format::FOLD_KEY, format::encode_fold_point(reached));
    batch.put_cf(engine.family(Family::State), format::FOLD_KEY, value);
    engine.write(batch)?;
    log.state.lock().fold_point = reached;
    metrics::counter!(crate::metrics::ROWS_FOLDED).increment(folded as u64);
    let lag = u64::try_from(target.0 - reached.0).expect("a step does not go beyond its target");
    metrics::gauge!(crate::metrics::FOLD_LAG_REVISIONS).set(crate::metrics::gauge(lag));
    Ok(if reached == target { FoldProgress::Done } else { FoldProgress::More })
}

/// Holds folding where base is exactly what was live at the fold point; folds on until it is. Waits while another hold keeps it
/// from that, which was taken between two steps.
pub(super) fn hold_exact(log: &EventLog, lifetime: Duration) -> Result<FoldHold, StorageError> {
    loop {
        let current = log.current();
        let folding = current.folding.lock();
        if current.state().fold_point >= *folding {
            return Ok(FoldHold::new(&log.home.holds, point_of(&current.state()), lifetime));
        }
        drop(folding);
        if log.fold_step(EVENTS_PER_STEP)? == FoldProgress::Held {
            std::thread::sleep(HELD_WAIT);
        }
    }
}

/// Frees the files that hold only folded rows, without waiting for a compaction of RocksDB to find them. The fold
/// point must have been flushed.
pub(super) fn drop_files(engine: &Engine, fold_point: Revision) -> Result<(), StorageError> {
    if fold_point == Revision(0) {
        return Ok(());
    }
    // A file that reaches the first row above is kept.
    engine.drop_files(Family::Log, &format::log_key(Revision(0), 0), &format::log_key(fold_point, u32::MAX))
}
