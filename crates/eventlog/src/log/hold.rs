//! Holding the fold point where it is while a copy reads base.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::CopyPoint;

/// Folding is never held longer than this at a stretch, however many copies follow each other.
const STRETCH_MAX: Duration = Duration::from_secs(2 * 3600);

/// Who holds folding, and until when.
#[derive(Debug, Default)]
pub(super) struct Holds {
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// One per copy; the copies are as many as the caller lets run.
    until: BTreeMap<u64, Instant>,
    last: u64,
    /// Since when there was always one.
    since: Option<Instant>,
}

impl Holds {
    /// Whether a hold is in force now.
    pub(super) fn is_held(&self) -> bool {
        self.held.lock().is_held(Instant::now())
    }
}

impl Held {
    fn is_held(&mut self, now: Instant) -> bool {
        self.until.retain(|_, until| *until > now);
        if self.until.is_empty() {
            self.since = None;
            return false;
        }
        now.duration_since(*self.since.get_or_insert(now)) < STRETCH_MAX
    }
}

/// Keeps folding from moving on, for a copy of the state. It expires by itself when it is not renewed, and ends when it
/// is dropped; readers notice in time, since [`super::EventLog::copy_base`] says when the fold point has moved.
#[derive(Debug)]
pub struct FoldHold {
    holds: Arc<Holds>,
    id: u64,
    point: CopyPoint,
    lingers: bool,
}

impl FoldHold {
    pub(super) fn new(holds: &Arc<Holds>, point: CopyPoint, lifetime: Duration) -> Self {
        let mut held = holds.held.lock();
        held.last += 1;
        let id = held.last;
        held.until.insert(id, Instant::now() + lifetime);
        drop(held);
        Self { holds: Arc::clone(holds), id, point, lingers: false }
    }

    /// Where folding stood when the hold was taken.
    #[must_use]
    pub fn point(&self) -> CopyPoint {
        self.point
    }

    /// It goes on holding until it expires, and can't be renewed any more.
    pub fn linger(mut self) {
        self.lingers = true;
    }

    /// From now on it holds for `lifetime`, also when it had expired.
    pub fn renew(&self, lifetime: Duration) {
        self.holds.held.lock().until.insert(self.id, Instant::now() + lifetime);
    }
}

impl Drop for FoldHold {
    fn drop(&mut self) {
        if !self.lingers {
            self.holds.held.lock().until.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_that_follow_each_other_end_together() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut held = Held::default();
        assert!(!held.is_held(begin));
        held.until.insert(1, at(100));
        assert!(held.is_held(begin));
        held.until.insert(2, at(100_000));
        assert!(held.is_held(at(7199)), "the first has expired, the second has not");
        assert!(!held.is_held(at(7200)));
        held.until.clear();
        assert!(!held.is_held(at(7201)));
        held.until.insert(3, at(100_000));
        assert!(held.is_held(at(7202)), "a new stretch");
    }
}
