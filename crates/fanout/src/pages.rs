//! How many keys are left of lists in pages.
//!
//! Each page says how many keys its range holds, and the next one begins behind its last key, at the same revision. At the newest
//! revision the tree knows the number; at an older one every key would be looked at for each page. But what a page held, less
//! what it brought, is what the next one holds.
//!
//! Invariant: a number never changes once it is known, since its revision is of the past.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tailwater_eventlog::{HistoryId, KeyRange, Revision};

/// Lists under way that are remembered; the oldest is counted again.
const LISTS_MAX: usize = 256;
/// Bytes of a range that is remembered, so that none of them holds much.
const RANGE_BYTES_MAX: usize = 4 << 10;

/// What pages have left.
#[derive(Default)]
pub(crate) struct Pages {
    left: Mutex<VecDeque<Left>>,
}

/// The keys of one range at one revision.
struct Left {
    history: HistoryId,
    at: Revision,
    /// A copy: what the request came in is not held for it.
    range: KeyRange,
    keys: usize,
}

impl Pages {
    /// Remembers how many keys of `range` were live at `at`.
    pub(crate) fn note(&self, history: HistoryId, at: Revision, range: &KeyRange, keys: usize) {
        let (start, end) = range.to_etcd();
        if start.len() + end.len() > RANGE_BYTES_MAX {
            return;
        }
        let range = KeyRange::from_etcd(start.to_vec().into(), end.to_vec().into());
        let mut left = self.left.lock();
        if left.len() == LISTS_MAX {
            left.pop_front();
        }
        left.push_back(Left { history, at, range, keys });
    }

    /// How many keys of `range` were live at `at`, if a page before has told. It is forgotten then: the answer will be noted
    /// for what comes behind it.
    pub(crate) fn take(&self, history: HistoryId, at: Revision, range: &KeyRange) -> Option<usize> {
        let mut left = self.left.lock();
        let place = left.iter().rposition(|left| (left.history, left.at) == (history, at) && left.range == *range)?;
        left.remove(place).map(|left| left.keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn behind(key: &'static str) -> KeyRange {
        KeyRange::Span(key.into(), "z".into())
    }

    #[test]
    fn what_is_left_is_known_once_and_of_its_own_range_revision_and_history() {
        let pages = Pages::default();
        let (history, at) = (HistoryId(1), Revision(7));
        pages.note(history, at, &behind("k"), 5);
        assert_eq!(pages.take(HistoryId(2), at, &behind("k")), None);
        assert_eq!(pages.take(history, Revision(8), &behind("k")), None);
        assert_eq!(pages.take(history, at, &behind("l")), None);
        assert_eq!(pages.take(history, at, &behind("k")), Some(5));
        assert_eq!(pages.take(history, at, &behind("k")), None);
    }

    #[test]
    fn it_is_bounded() {
        let pages = Pages::default();
        let (history, long) = (HistoryId(1), "k".repeat(RANGE_BYTES_MAX));
        pages.note(history, Revision(1), &KeyRange::Span(long.into(), "z".into()), 5);
        assert!(pages.left.lock().is_empty());
        for at in 0..1000 {
            pages.note(history, Revision(at), &behind("k"), 5);
        }
        assert_eq!(pages.left.lock().len(), LISTS_MAX);
        assert_eq!(pages.take(history, Revision(999), &behind("k")), Some(5));
        assert_eq!(pages.take(history, Revision(1), &behind("k")), None);
    }
}
