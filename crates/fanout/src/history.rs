//! Threads that read history from the source, for watchers that are behind the window.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use tailwater_eventlog::{HistoryChunk, HistoryError, HistoryPoint, KeyRange, Revision, Source};

use crate::inbox::Inbox;

/// Below so many queued reads none is looked for that could go.
const PURGE_MIN: usize = 64;

/// What to read.
#[derive(Clone, Debug)]
pub(crate) struct HistoryRequest {
    pub(crate) range: KeyRange,
    pub(crate) from: HistoryPoint,
    pub(crate) to: Revision,
    pub(crate) with_prev: bool,
    pub(crate) bytes_max: usize,
}

/// Where the answer arrives.
#[derive(Debug, Default)]
pub(crate) struct HistorySlot {
    answer: Mutex<Option<Result<HistoryChunk, HistoryError>>>,
}

impl HistorySlot {
    pub(crate) fn take(&self) -> Option<Result<HistoryChunk, HistoryError>> {
        self.answer.lock().take()
    }
}

struct Job {
    request: HistoryRequest,
    slot: Arc<HistorySlot>,
    inbox: Arc<Inbox>,
}

impl Job {
    fn is_wanted(&self) -> bool {
        Arc::strong_count(&self.slot) > 1
    }

    fn serve(self, source: &dyn Source) {
        if !self.is_wanted() {
            return;
        }
        let HistoryRequest { range, from, to, with_prev, bytes_max } = self.request;
        let answer = source.read(&[range], from, to, with_prev, bytes_max);
        *self.slot.answer.lock() = Some(answer);
        self.inbox.wake();
    }
}

#[derive(Default)]
struct Queue {
    /// At most one per stream that is still wanted.
    jobs: VecDeque<Job>,
    /// Reads that nobody wants any more are taken out when there are so many.
    purge_at: usize,
    stopped: bool,
}

/// The queue that the threads serve, first come first served, one bounded step per turn.
#[derive(Default)]
pub(crate) struct HistoryQueue {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl HistoryQueue {
    /// Queues a read; the inbox is woken when its answer is in the slot. Dropping the slot cancels a read that has
    /// not begun. A stream has at most one.
    pub(crate) fn submit(&self, request: HistoryRequest, inbox: &Arc<Inbox>) -> Arc<HistorySlot> {
        let slot = Arc::new(HistorySlot::default());
        let mut queue = self.queue.lock();
        if queue.jobs.len() >= queue.purge_at {
            queue.jobs.retain(Job::is_wanted);
            queue.purge_at = PURGE_MIN.max(2 * queue.jobs.len());
        }
        queue.jobs.push_back(Job { request, slot: slot.clone(), inbox: inbox.clone() });
        drop(queue);
        self.changed.notify_one();
        slot
    }

    /// Serves until [`HistoryQueue::stop`].
    pub(crate) fn run(&self, source: &dyn Source) {
        loop {
            let job = {
                let mut queue = self.queue.lock();
                loop {
                    if queue.stopped {
                        return;
                    }
                    match queue.jobs.pop_front() {
                        Some(job) => break job,
                        None => self.changed.wait(&mut queue),
                    }
                }
            };
            job.serve(source);
        }
    }

    /// Serves one read; `false` when none waits.
    pub(crate) fn step(&self, source: &dyn Source) -> bool {
        let job = self.queue.lock().jobs.pop_front();
        let found = job.is_some();
        job.into_iter().for_each(|job| job.serve(source));
        found
    }

    pub(crate) fn stop(&self) {
        let mut queue = self.queue.lock();
        queue.stopped = true;
        queue.jobs.clear();
        self.changed.notify_all();
    }
}
