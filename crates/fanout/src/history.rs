//! Threads that read history from the source: for watchers that are behind the window, and for those within it that want
//! previous values which are not in memory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tailwater_eventlog::{HistoryChunk, HistoryError, HistoryPoint, KeyRange, Revision};

use crate::core::Core;
use crate::inbox::Inbox;

pub(crate) mod shared;

use shared::{ReadKey, ReadSpan};

/// Below so many queued reads none is looked for that could go.
const PURGE_MIN: usize = 64;
/// What nobody has used for so long is not kept.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// What to read.
#[derive(Clone, Debug)]
pub(crate) struct HistoryRequest {
    pub(crate) range: KeyRange,
    pub(crate) from: HistoryPoint,
    pub(crate) to: Revision,
    pub(crate) with_prev: bool,
    pub(crate) bytes_max: usize,
    /// Whether all of it lies in the window, and only previous values are missing.
    pub(crate) is_recent: bool,
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
    span: ReadSpan,
    slot: Arc<HistorySlot>,
    inbox: Arc<Inbox>,
}

impl Job {
    fn is_wanted(&self) -> bool {
        Arc::strong_count(&self.slot) > 1
    }

    fn answer(self, answer: Result<HistoryChunk, HistoryError>) {
        *self.slot.answer.lock() = Some(answer);
        self.inbox.wake();
    }
}

#[derive(Default)]
struct Queue {
    /// By what can be read together. At most one job per stream that is still wanted. A key whose read is under way
    /// stays, also without a job.
    jobs: BTreeMap<Arc<ReadKey>, VecDeque<Job>>,
    /// Keys with jobs that no thread serves, each once.
    turns: VecDeque<Arc<ReadKey>>,
    count: usize,
    /// Reads that nobody wants any more are taken out when there are so many.
    purge_at: usize,
    stopped: bool,
}

impl Queue {
    fn purge(&mut self) {
        for jobs in self.jobs.values_mut() {
            jobs.retain(Job::is_wanted);
        }
        self.count = self.jobs.values().map(VecDeque::len).sum();
        self.purge_at = PURGE_MIN.max(2 * self.count);
    }

    /// The jobs of the key whose turn it is.
    fn take(&mut self) -> Option<(Arc<ReadKey>, VecDeque<Job>)> {
        let key = self.turns.pop_front()?;
        let jobs = std::mem::take(self.jobs.get_mut(&key).expect("a key that has a turn is there"));
        self.count -= jobs.len();
        Some((key, jobs))
    }

    /// What is left of them after a read; newer ones are behind them.
    fn give_back(&mut self, key: Arc<ReadKey>, mut left: VecDeque<Job>) {
        let jobs = self.jobs.get_mut(&key).expect("a key that is served stays");
        self.count += left.len();
        left.append(jobs);
        if left.is_empty() {
            self.jobs.remove(&key);
        } else {
            *jobs = left;
            self.turns.push_back(key);
        }
    }
}

/// The queue that the threads serve: one bounded read per turn, for everybody who waits for what it brings; first come
/// first served among those who want the same, and in turn among others.
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
        let HistoryRequest { range, from, to, with_prev, bytes_max, is_recent } = request;
        let key = Arc::new(ReadKey { ranges: vec![range], with_prev, is_recent });
        let job = Job { span: ReadSpan { from, to, bytes_max }, slot: slot.clone(), inbox: inbox.clone() };
        let mut queue = self.queue.lock();
        if queue.count >= queue.purge_at {
            queue.purge();
        }
        queue.count += 1;
        if let Some(jobs) = queue.jobs.get_mut(&key) {
            jobs.push_back(job);
        } else {
            queue.jobs.insert(key.clone(), VecDeque::from([job]));
            queue.turns.push_back(key);
        }
        drop(queue);
        self.changed.notify_one();
        slot
    }

    /// Serves until [`HistoryQueue::stop`].
    pub(crate) fn run(&self, core: &Core) {
        loop {
            let (key, jobs) = {
                let mut queue = self.queue.lock();
                loop {
                    if queue.stopped {
                        return;
                    }
                    if let Some(taken) = queue.take() {
                        break taken;
                    }
                    if self.changed.wait_for(&mut queue, IDLE_MAX).timed_out() {
                        core.reads.forget_idle();
                    }
                }
            };
            self.serve(core, key, jobs);
        }
    }

    /// Serves one turn; `false` when nothing waits.
    pub(crate) fn step(&self, core: &Core) -> bool {
        let taken = self.queue.lock().take();
        let found = taken.is_some();
        if let Some((key, jobs)) = taken {
            self.serve(core, key, jobs);
        }
        found
    }

    /// Reads for the first job that is wanted, and answers all that are answered by it.
    fn serve(&self, core: &Core, key: Arc<ReadKey>, mut jobs: VecDeque<Job>) {
        let compacted = || core.published.load().snapshot.compacted;
        jobs.retain(Job::is_wanted);
        let mut left = VecDeque::new();
        if let Some(first) = jobs.pop_front() {
            let answer = core.reads.read(&*core.source, &key, first.span, compacted);
            match &answer {
                Err(HistoryError::Unavailable(reason)) => {
                    for job in jobs {
                        job.answer(Err(HistoryError::Unavailable(reason.clone())));
                    }
                }
                _ => {
                    for job in jobs {
                        match core.reads.kept(&key, job.span, compacted()) {
                            Some(answer) => job.answer(answer),
                            None => left.push_back(job),
                        }
                    }
                }
            }
            first.answer(answer);
        }
        let mut queue = self.queue.lock();
        if queue.stopped {
            return;
        }
        queue.give_back(key, left);
        drop(queue);
        self.changed.notify_one();
    }

    pub(crate) fn stop(&self) {
        let mut queue = self.queue.lock();
        queue.stopped = true;
        queue.jobs.clear();
        queue.turns.clear();
        self.changed.notify_all();
    }
}
