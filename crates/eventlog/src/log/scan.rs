//! Reading the log in order.

use bytes::Bytes;

use super::engine::{Engine, Family, Rows};
use super::{StorageError, format};
use crate::{Event, Revision};

/// A row and its (revision, sub).
pub(super) type PlacedRow = ((Revision, u32), Bytes);

/// Log rows in (revision, sub) order, as of the moment it was made; a gap between two rows is an error.
pub(crate) struct Scan<'a> {
    rows: Rows<'a>,
    last: Option<(Revision, u32)>,
}

impl<'a> Scan<'a> {
    pub(super) fn new(engine: &'a Engine, from: (Revision, u32), to: Revision) -> Self {
        let end = format::log_key(Revision(to.0.saturating_add(1)), 0);
        Self { rows: engine.rows(Family::Log, &format::log_key(from.0, from.1), Some(&end)), last: None }
    }

    /// The next event.
    ///
    /// # Errors
    /// The storage failed, a row is corrupt, or one is missing.
    pub(crate) fn next_event(&mut self) -> Result<Option<Event>, StorageError> {
        let Some(((revision, sub), row)) = self.next_row()? else { return Ok(None) };
        format::read_log_row(revision, sub, row).map(Some)
    }

    /// The next row as it is stored, and its place; the row itself is not checked.
    pub(super) fn next_row(&mut self) -> Result<Option<PlacedRow>, StorageError> {
        let Some((key, row)) = self.rows.next_row()? else { return Ok(None) };
        let place = format::parse_log_key(&key)?;
        if let Some(last) = self.last
            && !format::follows(last, place)
        {
            let (before, after) = (format::place_of_log(last.0, last.1), format::place_of_log(place.0, place.1));
            return Err(StorageError::Inconsistent(format!("a hole: {before} is followed by {after}")));
        }
        self.last = Some(place);
        Ok(Some((place, row)))
    }
}
