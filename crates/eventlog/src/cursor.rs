//! Where a tail reader stands.

use crate::{HistoryId, Position, Revision};

/// Everything up to here has been read. A reader with this cursor continues from any source of the same history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The history that `revision` and `position` belong to.
    pub history: HistoryId,
    /// The revision reached.
    pub revision: Revision,
    /// The position reached.
    pub position: Position,
}
