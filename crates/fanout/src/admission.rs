//! How much big lists may hold together.
//!
//! A list that is answered in one message holds every version that it shows until the last byte has left, also those
//! that the store has replaced meanwhile. So big ones are counted, and refused at once when there are too many: who
//! waited would hold its client's place in a queue that nobody sees. Small ones are not counted.
//!
//! Invariant: `held` is above the bound only while one list alone is larger than it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::ReadError;

/// Answers up to this are not counted, and neither are those of one key.
const SMALL_BYTES_MAX: usize = 64 << 10;

/// The bytes of all big lists.
#[derive(Debug, Default)]
pub(crate) struct ListMemory {
    held: Arc<AtomicUsize>,
    refused: AtomicUsize,
    bytes_max: usize,
}

impl ListMemory {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, ..Self::default() }
    }

    /// Bytes of the lists that are on their way.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Lists refused so far.
    pub(crate) fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }

    /// Admits nothing yet; see [`ListMemory::grow`].
    pub(crate) fn begin(&self) -> ListPermit {
        ListPermit { held: self.held.clone(), bytes: 0, uncounted: 0 }
    }

    /// Admits `bytes` more of a list.
    ///
    /// # Errors
    /// [`ReadError::TooManyRequests`] when the others hold too much; a list that is alone is never too large.
    pub(crate) fn grow(&self, permit: &mut ListPermit, bytes: usize) -> Result<(), ReadError> {
        permit.uncounted += bytes;
        if permit.bytes == 0 && permit.uncounted <= SMALL_BYTES_MAX {
            return Ok(());
        }
        let (own, more) = (permit.bytes, permit.uncounted);
        let admit = |held: usize| (held == own || held + more <= self.bytes_max).then(|| held + more);
        if self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, admit).is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(ReadError::TooManyRequests);
        }
        (permit.bytes, permit.uncounted) = (own + more, 0);
        Ok(())
    }
}

/// What one list holds of the memory of all; freed when it is dropped.
#[derive(Debug, Default)]
pub struct ListPermit {
    held: Arc<AtomicUsize>,
    bytes: usize,
    uncounted: usize,
}

impl ListPermit {
    /// Whether nothing was admitted yet.
    pub(crate) fn is_new(&self) -> bool {
        self.bytes == 0 && self.uncounted == 0
    }
}

impl Drop for ListPermit {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_lists_are_not_counted() {
        let memory = ListMemory::new(0);
        let mut permits: Vec<_> = (0..3).map(|_| memory.begin()).collect();
        for permit in &mut permits {
            assert!(memory.grow(permit, SMALL_BYTES_MAX).is_ok());
        }
        assert_eq!((memory.held(), memory.refused()), (0, 0));
    }

    #[test]
    fn a_list_is_refused_while_others_hold_the_memory() {
        let memory = ListMemory::new(1 << 20);
        let (mut one, mut other) = (memory.begin(), memory.begin());
        assert!(memory.grow(&mut one, 3 << 18).is_ok());
        assert!(matches!(memory.grow(&mut other, 1 << 19), Err(ReadError::TooManyRequests)));
        assert_eq!((memory.held(), memory.refused()), (3 << 18, 1));
        drop(one);
        let mut other = memory.begin();
        assert!(memory.grow(&mut other, 1 << 19).is_ok());
        assert_eq!(memory.held(), 1 << 19);
    }

    #[test]
    fn a_list_that_is_alone_may_be_larger_than_the_bound() {
        let memory = ListMemory::new(1 << 20);
        let (mut one, mut other) = (memory.begin(), memory.begin());
        for _ in 0..4 {
            assert!(memory.grow(&mut one, 1 << 20).is_ok());
        }
        assert!(memory.grow(&mut other, 1 << 17).is_err());
        drop(one);
        assert_eq!(memory.held(), 0);
    }
}
