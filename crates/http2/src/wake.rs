//! Which streams have something to do. Whoever wakes one of them wakes the connection's task once for all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

/// The streams of a connection that were woken.
#[derive(Default)]
pub(crate) struct Woken {
    /// Each slot once.
    slots: Mutex<Vec<usize>>,
    task: AtomicWaker,
    /// The connection is at work, and looks here again before it sleeps.
    is_busy: AtomicBool,
}

impl Woken {
    /// The connection begins to work.
    pub(crate) fn begin(&self, cx: &Context<'_>) {
        self.task.register(cx.waker());
        self.is_busy.store(true, Ordering::SeqCst);
    }

    /// The connection sleeps, unless this says that something came meanwhile.
    pub(crate) fn end(&self) -> bool {
        self.is_busy.store(false, Ordering::SeqCst);
        !self.slots.lock().is_empty()
    }

    /// Moves the slots that were woken to the end of `into`.
    pub(crate) fn take(&self, into: &mut impl Extend<usize>) {
        into.extend(self.slots.lock().drain(..));
    }

    fn push(&self, slot: usize) {
        let is_first = {
            let mut slots = self.slots.lock();
            slots.push(slot);
            slots.len() == 1
        };
        // Whoever was first has woken the task, or is about to.
        if is_first && !self.is_busy.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }
}

/// Wakes one stream. It belongs to a slot and is used by one stream after another: to be woken for nothing costs little.
pub(crate) struct SlotWaker {
    woken: Arc<Woken>,
    slot: usize,
    /// It is among the woken, or in the connection's own queue.
    is_queued: AtomicBool,
}

impl SlotWaker {
    pub(crate) fn new(woken: Arc<Woken>, slot: usize) -> Arc<Self> {
        Arc::new(Self { woken, slot, is_queued: AtomicBool::new(false) })
    }

    /// Whether the connection has to put the slot into its queue, which the caller then does.
    pub(crate) fn queue(&self) -> bool {
        !self.is_queued.swap(true, Ordering::AcqRel)
    }

    /// It has left the queue; what wakes it from now on counts anew.
    pub(crate) fn leave(&self) {
        self.is_queued.store(false, Ordering::Release);
    }
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queue() {
            self.woken.push(self.slot);
        }
    }
}
