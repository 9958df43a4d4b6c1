//! How much of a node's requests may wait for a leader elsewhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use metrics::{Gauge, gauge};

use crate::metrics::ROUTED_PENDING;

/// What a request costs besides its bytes.
const REQUEST_OVERHEAD_BYTES: usize = 256;

/// Counts requests and their bytes against two bounds.
#[derive(Clone)]
pub(super) struct Permits {
    shared: Arc<Shared>,
}

struct Shared {
    count: AtomicUsize,
    bytes: AtomicUsize,
    count_max: usize,
    bytes_max: usize,
    pending: Gauge,
}

/// Room for one request, until its last clone is dropped.
#[derive(Clone)]
pub(super) struct Permit {
    _held: Arc<Held>,
}

struct Held {
    shared: Arc<Shared>,
    cost: usize,
}

impl Permits {
    pub(super) fn new(count_max: usize, bytes_max: usize) -> Self {
        let (count, bytes) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let pending = gauge!(ROUTED_PENDING);
        Self { shared: Arc::new(Shared { count, bytes, count_max, bytes_max, pending }) }
    }

    /// Room for a request of `bytes`; `None` when there is none.
    pub(super) fn take(&self, bytes: usize) -> Option<Permit> {
        let shared = &self.shared;
        let cost = bytes + REQUEST_OVERHEAD_BYTES;
        let count = shared.count.fetch_add(1, Ordering::Relaxed) + 1;
        let total = shared.bytes.fetch_add(cost, Ordering::Relaxed) + cost;
        // Dropped at once where it is refused.
        let held = Held { shared: shared.clone(), cost };
        if count > shared.count_max || total > shared.bytes_max {
            return None;
        }
        shared.pending.set(count as f64);
        Some(Permit { _held: Arc::new(held) })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.bytes.fetch_sub(self.cost, Ordering::Relaxed);
        let before = self.shared.count.fetch_sub(1, Ordering::Relaxed);
        self.shared.pending.set((before - 1) as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_given_back_with_the_last_clone() {
        let permits = Permits::new(2, 10_000);
        let first = permits.take(1000).expect("room");
        let copy = first.clone();
        let second = permits.take(1000).expect("room");
        assert!(permits.take(0).is_none(), "two are the most");
        drop(first);
        assert!(permits.take(0).is_none(), "its copy lives");
        drop(copy);
        assert!(permits.take(9000).is_none(), "too many bytes");
        drop(second);
        assert!(permits.take(9000).is_some());
    }
}
