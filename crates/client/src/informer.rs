//! The handle of a cache that is kept up to date.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::AbortHandle;

use crate::core::{Batch, Core, Decode};
use crate::driver::Driver;
use crate::object::{Change, Object, Snapshot};
use crate::range::KeyRange;
use crate::subscription::{Item, Subscription};
use crate::{Client, Error};

/// Settings of an [`Informer`].
pub struct InformerBuilder<T> {
    client: Client,
    range: KeyRange,
    decode: Decode<T>,
    page_size: i64,
    queue_changes_max: usize,
    wants_prev_kv: bool,
}

impl<T> std::fmt::Debug for InformerBuilder<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InformerBuilder").field("range", &self.range).finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static> InformerBuilder<T> {
    pub(crate) fn new(client: Client, range: KeyRange, decode: Decode<T>) -> Self {
        Self { client, range, decode, page_size: 500, queue_changes_max: 1024, wants_prev_kv: false }
    }

    /// Keys per answer of a list at servers that do not stream lists. Default 500.
    #[must_use]
    pub fn page_size(mut self, keys: usize) -> Self {
        self.page_size = i64::try_from(keys.max(1)).unwrap_or(i64::MAX);
        self
    }

    /// Changes that wait for a subscriber, before the informer waits for it. Default 1024.
    #[must_use]
    pub fn queue_changes_max(mut self, changes: usize) -> Self {
        self.queue_changes_max = changes.max(1);
        self
    }

    /// Has each event come with the version before it, which must then be the cached one. Default off: versions are
    /// counted anyway, and this doubles what the servers send.
    #[must_use]
    pub fn prev_kv(mut self, is_wanted: bool) -> Self {
        self.wants_prev_kv = is_wanted;
        self
    }

    /// Starts a task on the current runtime that keeps the cache until the informer is dropped.
    ///
    /// # Errors
    /// Those of [`Builder::build`](crate::Builder::build), at connections of its own.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub fn start(self) -> Result<Informer<T>, Error> {
        let core = Core::new(self.range.clone(), self.decode, self.page_size, self.wants_prev_kv);
        let shared = Arc::new(Shared::default());
        let connections = self.client.connections()?;
        let driver = Driver::new(self.client.clone(), connections, self.range.clone(), core, shared.clone());
        let task = Arc::new(AbortOnDrop(tokio::spawn(driver.run()).abort_handle()));
        let queue_changes_max = self.queue_changes_max;
        Ok(Informer { client: self.client, range: self.range, queue_changes_max, shared, _task: task })
    }
}

/// A cache of one range of keys, kept up to date by a task that ends when the last clone is dropped.
///
/// Reads take what is there and never wait.
pub struct Informer<T> {
    client: Client,
    range: KeyRange,
    queue_changes_max: usize,
    shared: Arc<Shared<T>>,
    _task: Arc<AbortOnDrop>,
}

impl<T> Clone for Informer<T> {
    fn clone(&self) -> Self {
        Self {
            client: self.client.clone(),
            range: self.range.clone(),
            queue_changes_max: self.queue_changes_max,
            shared: self.shared.clone(),
            _task: self._task.clone(),
        }
    }
}

impl<T> std::fmt::Debug for Informer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Informer").field("range", &self.range).field("state", &*self.shared.state.load()).finish()
    }
}

#[derive(Debug)]
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What an informer does, and what it has met with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// What is under way.
    pub phase: Phase,
    /// Which endpoint is in use.
    pub endpoint: String,
    /// What the newest attempt failed with; none once a watch is live again.
    pub failure: Option<String>,
    /// Watches that went on where one had broken.
    pub resumes: u64,
    /// Lists after the first one.
    pub relists: u64,
    /// Those of them for a change that a server had left out.
    pub gaps: u64,
    /// Events that a server sent again; they were left out.
    pub duplicates: u64,
}

/// What an informer does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Looks for an endpoint that answers.
    #[default]
    Connecting,
    /// Takes a list.
    Listing,
    /// Follows the changes.
    Watching,
    /// Waits for a subscriber that does not take its changes.
    HeldBack,
    /// Its task has ended.
    Stopped,
}

impl<T: Send + Sync + 'static> Informer<T> {
    /// The range at the newest revision that was reached; empty, at revision 0, before the first list.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot<T>> {
        self.shared.state.load_full()
    }

    /// The cached object of a key.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<Arc<Object<T>>> {
        self.shared.state.load().get(key).cloned()
    }

    /// Whether the first list is there.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.shared.state.load().revision > 0
    }

    /// What the informer does; wait for changes of it by `changed()`.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.shared.status.subscribe()
    }

    /// The state and each change from there on. What a subscriber has not taken when its queue is full holds the
    /// informer back, and so its cache and the other subscribers.
    #[must_use]
    pub fn subscribe(&self) -> Subscription<T> {
        let (sender, receiver) = mpsc::channel(self.queue_changes_max);
        let mut subscribers = self.shared.subscribers.lock();
        let state = self.shared.state.load_full();
        if state.revision > 0 {
            // There is room: nothing was sent yet.
            sender.try_send(Item::State(state)).ok();
        }
        if !self.shared.is_stopped.load(Ordering::Relaxed) {
            subscribers.push(sender);
        }
        Subscription::new(receiver)
    }

    /// Waits until the first list is there.
    ///
    /// # Errors
    /// [`Error::Stopped`]. It waits for as long as it takes: see [`Informer::status`].
    pub async fn synced(&self) -> Result<Arc<Snapshot<T>>, Error> {
        self.reach(1).await
    }

    /// Waits until every change up to `revision` is in the cache, and returns it.
    ///
    /// Servers are asked how far they are meanwhile, so it does not wait for the next change of the range.
    ///
    /// # Errors
    /// [`Error::Behind`] after the request timeout: the revision is not there yet, or no server answers, or a
    /// subscriber holds the informer back. So whoever reads a subscription should not wait here between two changes.
    /// [`Error::Stopped`].
    pub async fn wait_for(&self, revision: i64) -> Result<Arc<Snapshot<T>>, Error> {
        let timeout = self.client.config().request_timeout;
        match tokio::time::timeout(timeout, self.reach(revision)).await {
            Ok(reached) => reached,
            Err(_) => Err(Error::Behind {
                wanted: revision,
                revision: self.shared.state.load().revision,
                is_held_back: self.shared.status.borrow().phase == Phase::HeldBack,
            }),
        }
    }

    /// The cache with everything in it that was written before this call: as a linearizable list, for the price of
    /// asking the servers for their revision.
    ///
    /// # Errors
    /// Those of [`Client::range`] and of [`Informer::wait_for`]. [`Error::HistoryLost`].
    pub async fn consistent(&self) -> Result<Arc<Snapshot<T>>, Error> {
        let before = self.shared.state.load().revision;
        let revision = self.client.current_revision(&self.range).await?;
        if revision < before {
            self.shared.doubt.notify_one();
            return Err(Error::HistoryLost { cached: before, revision });
        }
        self.wait_for(revision).await
    }

    async fn reach(&self, revision: i64) -> Result<Arc<Snapshot<T>>, Error> {
        let mut reached = self.shared.reached.subscribe();
        let _waiter = Waiter::new(&self.shared.waiters);
        loop {
            let state = self.shared.state.load_full();
            if state.revision >= revision {
                return Ok(state);
            }
            if self.shared.is_stopped.load(Ordering::Relaxed) {
                return Err(Error::Stopped);
            }
            self.shared.waiters.asked.notify_one();
            reached.changed().await.map_err(|_| Error::Stopped)?;
        }
    }
}

/// What the handle and the task have in common.
pub(crate) struct Shared<T> {
    state: ArcSwap<Snapshot<T>>,
    /// Told of each new state.
    reached: watch::Sender<i64>,
    /// Locked while a state is published, so that a new subscriber begins before or behind it, not in between.
    subscribers: Mutex<Vec<mpsc::Sender<Item<T>>>>,
    status: watch::Sender<Status>,
    pub(crate) waiters: Waiters,
    /// Somebody has heard of a revision behind the cache's.
    pub(crate) doubt: Notify,
    is_stopped: AtomicBool,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self {
            state: ArcSwap::default(),
            reached: watch::Sender::new(0),
            subscribers: Mutex::default(),
            status: watch::Sender::default(),
            waiters: Waiters::default(),
            doubt: Notify::new(),
            is_stopped: AtomicBool::new(false),
        }
    }
}

/// Those who wait for a revision.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    count: AtomicUsize,
    asked: Notify,
}

impl Waiters {
    pub(crate) fn is_any(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// Returns when somebody has begun to wait since the last time.
    pub(crate) async fn begun(&self) {
        self.asked.notified().await;
    }
}

struct Waiter<'a>(&'a Waiters);

impl<'a> Waiter<'a> {
    fn new(waiters: &'a Waiters) -> Self {
        waiters.count.fetch_add(1, Ordering::Relaxed);
        Self(waiters)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<T> Shared<T> {
    pub(crate) fn set_status(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_modify(change);
    }

    pub(crate) fn note_duplicates(&self, duplicates: u64) {
        self.status.send_if_modified(|status| std::mem::replace(&mut status.duplicates, duplicates) != duplicates);
    }

    /// Shows a state to readers, then tells subscribers; returns when each has room for what it is told.
    pub(crate) async fn publish(&self, batch: Batch<T>) {
        let (revision, state) = (batch.state.revision, Arc::new(batch.state));
        let mut subscribers = {
            let mut known = self.subscribers.lock();
            self.state.store(state.clone());
            known.retain(|subscriber| !subscriber.is_closed());
            if batch.is_first || !batch.changes.is_empty() { known.clone() } else { Vec::new() }
        };
        self.reached.send_replace(revision);
        if batch.is_first {
            self.tell(&mut subscribers, &|| Item::State(state.clone())).await;
        }
        for change in batch.changes {
            self.tell(&mut subscribers, &|| Item::Change(Change::clone(&change))).await;
        }
    }

    async fn tell(&self, subscribers: &mut [mpsc::Sender<Item<T>>], item: &impl Fn() -> Item<T>) {
        for subscriber in subscribers {
            // An error other than a full queue: it has left.
            let Err(mpsc::error::TrySendError::Full(item)) = subscriber.try_send(item()) else { continue };
            let phase = self.status.borrow().phase;
            self.set_status(|status| status.phase = Phase::HeldBack);
            subscriber.send(item).await.ok();
            self.set_status(|status| status.phase = phase);
        }
    }

    /// The task has ended: subscriptions end, and nobody waits.
    pub(crate) fn stop(&self) {
        let mut subscribers = self.subscribers.lock();
        self.is_stopped.store(true, Ordering::Relaxed);
        subscribers.clear();
        self.set_status(|status| status.phase = Phase::Stopped);
        self.reached.send_modify(|_| {});
    }
}
