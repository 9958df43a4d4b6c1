//! Holding the fold point where it is while a copy reads base.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::CopyPoint;

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
}

impl Holds {
    /// Whether a hold is in force now.
    pub(super) fn is_held(&self) -> bool {
        let mut held = self.held.lock();
        if held.until.is_empty() {
            return false;
        }
        let now = Instant::now();
        held.until.retain(|_, until| *until > now);
        !held.until.is_empty()
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
