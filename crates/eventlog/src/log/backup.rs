//! Everything that is stored, as of one revision and in the order of revisions, for a backup.
//!
//! Base is ordered by key and a backup by revision, so base is sorted first, with bounded memory and, beyond it, a file
//! ([`Sorted`]). The log above the fold point is in order already and is read where it stands. Both stay as they are
//! meanwhile, since folding is held, between two folds; whoever reads for longer than a hold may last is told so, and never given less.

use std::ops::ControlFlow;
use std::time::Duration;

use bytes::Bytes;

use super::copy::{CopyError, stored_point};
use super::{EventLog, FoldHold, LogState, StorageError, fold, format, generations};
use crate::Event;

mod sorted;

use sorted::{Merge, Sorted};

/// Folding waits for a backup that nobody reads from for no longer than this.
const HOLD: Duration = Duration::from_secs(120);
/// Rows of the log that are read at once.
const PIECE_BYTES: usize = 1 << 20;

/// How a backup is read.
#[derive(Clone, Copy, Debug)]
pub struct BackupConfig {
    /// Rows sorted in memory at once, in bytes; more of them go through a file beside the state, which has no name and is
    /// gone with its handle. Default 32 MiB.
    pub memory_bytes_max: usize,
    /// Bytes that such a file leaves free on its disk: a backup never takes the space that writes need. Default 512 MiB.
    pub spare_bytes_min: u64,
}

impl Default for BackupConfig {
    fn default() -> Self {
        Self { memory_bytes_max: 32 << 20, spare_bytes_min: 512 << 20 }
    }
}

/// The store at one revision. Reading it stops nothing but folding.
pub struct Backup {
    log: EventLog,
    hold: FoldHold,
    numbers: LogState,
    state: Vec<(Bytes, Bytes)>,
    base: Sorted,
}

impl EventLog {
    /// Gathers what a backup of this moment consists of. Reads base whole. Blocks.
    ///
    /// # Errors
    /// The storage failed or a row is corrupt; base does not fit beside what must stay free; or the state was replaced
    /// by another member's meanwhile: try again.
    pub fn backup(&self, config: &BackupConfig) -> Result<Backup, CopyError> {
        // Who restores it may count a key's versions, so none may be missing between two that are there.
        let hold = fold::hold_exact(self, HOLD)?;
        let (mut numbers, mut state) = (LogState::default(), Vec::new());
        self.copy_state(PIECE_BYTES, |now, rows| {
            numbers = *now;
            // The value's checksum was looked at; the key begins with the byte that marks the machine's own.
            state.extend(rows.into_iter().map(|row| {
                let value = row.value.slice(..row.value.len() - format::CHECKSUM_BYTES);
                (row.key.slice(format::STATE_PREFIX.len()..), value)
            }));
            ControlFlow::Continue(())
        })?;
        let point = hold.point();
        if point.history != numbers.history {
            return Err(CopyError::Moved(point));
        }
        let mut sorted = Sorted::new(config, generations::parent_of(&self.home.config.path));
        let mut after = None;
        loop {
            hold.renew(HOLD);
            let rows = self.copy_base(point, after.as_ref(), PIECE_BYTES)?;
            let Some(last) = rows.last() else { break };
            let last = Event::from_row(last.clone()).map_err(unreadable)?;
            after = Some(Bytes::copy_from_slice(last.key()));
            for row in rows {
                sorted.add(row)?;
            }
        }
        sorted.finish();
        Ok(Backup { log: self.clone(), hold, numbers, state, base: sorted })
    }
}

impl Backup {
    /// The numbers of its moment.
    #[must_use]
    pub fn numbers(&self) -> &LogState {
        &self.numbers
    }

    /// The machine's own state: keys and values, in key order.
    #[must_use]
    pub fn state(&self) -> &[(Bytes, Bytes)] {
        &self.state
    }

    /// What was live at the fold point and every event above it, in (revision, sub) order; the same each time.
    ///
    /// # Errors
    /// The file that was sorted into can't be read.
    pub fn events(&self) -> Result<BackupEvents<'_>, StorageError> {
        let next = (self.hold.point().fold_point.next(), 0);
        Ok(BackupEvents { backup: self, base: Some(self.base.merge()?), piece: Vec::new().into_iter(), next })
    }
}

/// The events of a [`Backup`].
pub struct BackupEvents<'a> {
    backup: &'a Backup,
    /// Until all of it was read.
    base: Option<Merge<'a>>,
    piece: std::vec::IntoIter<Event>,
    /// Where the next piece of the log begins.
    next: (crate::Revision, u32),
}

impl BackupEvents<'_> {
    /// The next event; none behind the last.
    ///
    /// # Errors
    /// The storage failed, or [`CopyError::Moved`] when this took longer than folding waits.
    #[expect(clippy::should_implement_trait, reason = "it fails, and ends when it has failed")]
    pub fn next(&mut self) -> Result<Option<Event>, CopyError> {
        if let Some(base) = &mut self.base {
            if let Some(row) = base.next()? {
                return Ok(Some(Event::from_row(row).map_err(unreadable)?));
            }
            self.base = None;
        }
        if let Some(event) = self.piece.next() {
            return Ok(Some(event));
        }
        self.piece = self.read_piece()?.into_iter();
        Ok(self.piece.next())
    }

    fn read_piece(&mut self) -> Result<Vec<Event>, CopyError> {
        let Backup { log, hold, numbers, .. } = self.backup;
        hold.renew(HOLD);
        let current = log.current();
        let mut scan = current.scan(self.next, numbers.revision);
        let (mut events, mut bytes) = (Vec::new(), 0);
        while bytes < PIECE_BYTES
            && let Some(event) = scan.next_event()?
        {
            bytes += event.bytes().len();
            self.next = (event.revision(), event.sub() + 1);
            events.push(event);
        }
        // Asked after the rows were read: had any of them been folded, it would show.
        let point = stored_point(&current)?;
        if point.is_at(hold.point()) { Ok(events) } else { Err(CopyError::Moved(point)) }
    }
}

fn unreadable(source: crate::RowError) -> StorageError {
    StorageError::Row { place: "a row of a backup".into(), source }
}

#[cfg(test)]
mod tests;
