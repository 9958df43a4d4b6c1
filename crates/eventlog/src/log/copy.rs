//! What a member that is too far behind copies: everything at and above the compacted revision, as it is stored.
//!
//! A copy is made of three parts, read in this order: `base` at the fold point p, which is held meanwhile; the `log`
//! above p, which goes on growing; and the machine's own state as of one applied position, with the numbers there. The
//! receiver ([`super::Staging`]) drops what lies above that position's revision. Rows are equal on all members, so the
//! log can be read on at another source, and base too when that one's fold point is the same.

use std::ops::ControlFlow;
use std::time::Duration;

use bytes::Bytes;

use super::engine::Family;
use super::{EventLog, FoldHold, Generation, LogState, StorageError, format};
use crate::{HistoryId, Revision};

/// What the base of a copy belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyPoint {
    /// The source's history.
    pub history: HistoryId,
    /// Base holds what is live here; the log begins above.
    pub fold_point: Revision,
    /// Base may lack what was superseded below: a copy that has rows of it must not end at a lower compacted revision.
    pub compacted: Revision,
}

impl CopyPoint {
    /// Whether base and log are those of `other`.
    pub(super) fn is_at(self, other: Self) -> bool {
        (self.history, self.fold_point) == (other.history, other.fold_point)
    }
}

/// A piece of the log of a copy.
#[derive(Clone, Debug, Default)]
pub struct LogCopy {
    /// Rows in (revision, sub) order, without a gap behind the place that was asked for.
    pub rows: Vec<Bytes>,
    /// Records up to here are whole with these rows.
    pub complete: Revision,
    /// Whether this was all that there is now.
    pub is_end: bool,
}

/// A row of the machine's own state: key and value as they are stored, the value with its checksum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateRow {
    /// The key in the column family.
    pub key: Bytes,
    /// The stored value.
    pub value: Bytes,
}

/// A source can't go on with a copy.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// Rows that the copy still needs were folded, or belong to another history: begin again here.
    #[error("the copy can't go on: the source's base is at revision {} of history {:x}", .0.fold_point, .0.history.0)]
    Moved(CopyPoint),
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl EventLog {
    /// Where a copy that begins now stands. Folding does not move on for `lifetime` after the last
    /// [`FoldHold::renew`].
    #[must_use]
    pub fn copy_begin(&self, lifetime: Duration) -> FoldHold {
        let current = self.current();
        // A step that has begun ends first.
        let _no_fold = current.folding.lock();
        let state = current.state();
        FoldHold::new(&self.home.holds, point_of(&state), lifetime)
    }

    /// Rows of base at `point` after the key `after`, about `bytes_max` bytes of them; empty at the end.
    ///
    /// # Errors
    /// [`CopyError::Moved`] when base is at another point by now.
    pub fn copy_base(
        &self,
        point: CopyPoint,
        after: Option<&Bytes>,
        bytes_max: usize,
    ) -> Result<Vec<Bytes>, CopyError> {
        let current = self.current();
        // The first key that is greater.
        let start = after.map(|key| [key.as_ref(), &[0]].concat()).unwrap_or_default();
        let mut scan = current.engine.rows(Family::Base, &start, None);
        let (mut rows, mut bytes) = (Vec::new(), 0);
        while bytes < bytes_max
            && let Some((key, row)) = scan.next_row()?
        {
            format::read_base_row(&key, row.clone())?;
            bytes += row.len();
            rows.push(row);
        }
        // Asked after the rows were read: had the fold point moved before, it would show here.
        let now = stored_point(&current)?;
        if now.is_at(point) { Ok(rows) } else { Err(CopyError::Moved(now)) }
    }

    /// Log rows behind the place `after` (with the greatest sub-revision: behind that whole record), about `bytes_max`
    /// bytes of them.
    ///
    /// # Errors
    /// [`CopyError::Moved`] when the row that comes next was folded or the history is another.
    pub fn copy_log(&self, history: HistoryId, after: (Revision, u32), bytes_max: usize) -> Result<LogCopy, CopyError> {
        let current = self.current();
        // Asked before the rows are read: all of these records are found.
        let reached = current.state().revision;
        let start = after.1.checked_add(1).map_or((after.0.next(), 0), |sub| (after.0, sub));
        let mut scan = current.scan(start, Revision(i64::MAX - 1));
        let mut copy = LogCopy { is_end: true, ..LogCopy::default() };
        let (mut bytes, mut last) = (0, after);
        while copy.is_end
            && let Some((place, row)) = scan.next_row()?
        {
            if !format::comes_after(last, place) {
                return Err(CopyError::Moved(point_of(&current.state())));
            }
            format::read_log_row(place.0, place.1, row.clone())?;
            bytes += row.len();
            copy.rows.push(row);
            last = place;
            copy.is_end = bytes < bytes_max;
        }
        // A batch is written whole, so that the end of the log is the end of a record; elsewhere it may go on.
        copy.complete = if copy.is_end { last.0.max(reached) } else { Revision(last.0.0 - 1) };
        let now = stored_point(&current)?;
        let is_there = now.fold_point < start.0;
        if now.history == history && is_there { Ok(copy) } else { Err(CopyError::Moved(now)) }
    }

    /// Hands out the machine's own state as of one applied position, in pieces of about `bytes_max` bytes, each with
    /// the numbers of that position; at least one piece, until `each` breaks.
    ///
    /// # Errors
    /// The storage failed or a value is corrupt.
    pub fn copy_state(
        &self,
        bytes_max: usize,
        mut each: impl FnMut(&LogState, Vec<StateRow>) -> ControlFlow<()>,
    ) -> Result<(), StorageError> {
        let current = self.current();
        // One family is read at one moment, and the numbers are in the same.
        let mut scan = current.engine.rows(Family::State, &[], None);
        let mut state = LogState { revision: Revision(1), ..LogState::default() };
        let (mut rows, mut bytes) = (Vec::new(), 0);
        while let Some((key, value)) = scan.next_row()? {
            let content = format::unsealed(&key, value.clone())?;
            match key.as_ref() {
                format::NUMBERS_KEY => {
                    state = LogState { fold_point: state.fold_point, ..format::decode_numbers(&content)? };
                }
                format::FOLD_KEY => state.fold_point = format::decode_fold_point(&content)?,
                // The numbers come before all of these.
                own if own.starts_with(format::STATE_PREFIX) => {
                    bytes += key.len() + value.len();
                    rows.push(StateRow { key, value });
                }
                _ => {}
            }
            if bytes >= bytes_max {
                bytes = 0;
                if each(&state, std::mem::take(&mut rows)).is_break() {
                    return Ok(());
                }
            }
        }
        // Whoever breaks now has everything anyway.
        let _ = each(&state, rows);
        Ok(())
    }
}

pub(super) fn point_of(state: &LogState) -> CopyPoint {
    CopyPoint { history: state.history, fold_point: state.fold_point, compacted: state.compacted }
}

/// As rows read before show it; the fold point in memory follows a fold's batch a moment later.
pub(super) fn stored_point(generation: &Generation) -> Result<CopyPoint, StorageError> {
    let fold_point = match generation.engine.get(Family::State, format::FOLD_KEY)? {
        Some(value) => format::decode_fold_point(&format::unsealed(format::FOLD_KEY, value)?)?,
        None => Revision(0),
    };
    Ok(CopyPoint { fold_point, ..point_of(&generation.state()) })
}

#[cfg(test)]
mod tests;
