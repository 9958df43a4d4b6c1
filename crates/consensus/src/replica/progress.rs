//! How far another thread has come, for the replica thread.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A number that one thread raises. The replica thread sees it whenever something wakes it, and is woken for it alone only
/// where it waits for that: most of the time nothing depends on it, and a wake-up costs more than what it would then do.
pub(crate) struct Progress {
    reached: AtomicU64,
    awaited: AtomicBool,
}

impl Progress {
    /// Awaited until the replica thread says otherwise.
    pub(crate) fn new(reached: u64) -> Self {
        Self { reached: AtomicU64::new(reached), awaited: AtomicBool::new(true) }
    }

    pub(crate) fn get(&self) -> u64 {
        self.reached.load(Ordering::SeqCst)
    }

    /// Raises it; `true` when the replica thread is to be woken.
    #[must_use]
    pub(crate) fn raise(&self, reached: u64) -> bool {
        // Each side writes its own half before it reads the other's, so at least one of them sees that there is
        // something to do.
        self.reached.store(reached, Ordering::SeqCst);
        self.awaited.load(Ordering::SeqCst)
    }

    /// The replica thread, which has seen `seen`, says whether it waits for more; `true` when there is more already.
    pub(crate) fn set_awaited(&self, awaited: bool, seen: u64) -> bool {
        self.awaited.store(awaited, Ordering::SeqCst);
        awaited && self.get() > seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_is_woken_or_sees_it_by_itself() {
        let progress = Progress::new(3);
        assert!(progress.raise(4), "at first it is awaited");
        assert!(!progress.set_awaited(false, 4));
        assert!(!progress.raise(5));
        assert!(progress.set_awaited(true, 4), "5 came in between");
        assert!(!progress.set_awaited(true, 5));
        assert!(progress.raise(6));
        assert_eq!(progress.get(), 6);
    }
}
