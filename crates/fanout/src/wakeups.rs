//! The delivery worker: wakes the streams that a published batch concerns, so that the tail thread need not.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tailwater_eventlog::Revision;

use crate::StreamEnd;
use crate::group::SharedGroup;
use crate::inbox::Inbox;
use crate::watch::Shared;

/// How often the gauges of streams are set.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Work {
    /// Each group at most once: see [`Group::mark`](crate::group::Group::mark).
    groups: Vec<SharedGroup>,
    published: bool,
    /// End every stream.
    end: Option<StreamEnd>,
    stopped: bool,
}

struct Stream {
    inbox: Arc<Inbox>,
    shared: Weak<Shared>,
    next_tick: Instant,
}

/// What the tail thread hands to the delivery worker, and the streams that it knows.
#[derive(Default)]
pub(crate) struct Wakeups {
    work: Mutex<Work>,
    changed: Condvar,
    streams: Mutex<BTreeMap<u64, Stream>>,
    ticks: Mutex<BTreeMap<(Instant, u64), ()>>,
    /// Watchers that wait until a revision is published: their start, or one that their group was not matched against.
    /// By revision, stream and watch id.
    awaiting: Mutex<BTreeMap<(Revision, u64, i64), Arc<Inbox>>>,
}

impl Wakeups {
    pub(crate) fn add_stream(&self, id: u64, inbox: Arc<Inbox>, shared: Weak<Shared>, next_tick: Instant) {
        self.streams.lock().insert(id, Stream { inbox, shared, next_tick });
        self.ticks.lock().insert((next_tick, id), ());
    }

    pub(crate) fn remove_stream(&self, id: u64) {
        if let Some(stream) = self.streams.lock().remove(&id) {
            self.ticks.lock().remove(&(stream.next_tick, id));
        }
    }

    /// Streams that have yet to be given something, with the first revision of it.
    pub(crate) fn behind(&self) -> Vec<(Revision, Weak<Shared>)> {
        let streams = self.streams.lock();
        streams.values().filter_map(|stream| Some((stream.inbox.oldest()?, stream.shared.clone()))).collect()
    }

    /// Ends the streams of one client connection.
    pub(crate) fn end_streams_of(&self, peer: SocketAddr, end: &StreamEnd) {
        let is_of = |stream: &&Stream| stream.shared.upgrade().is_some_and(|shared| shared.peer == Some(peer));
        // Collected first: who is woken may want this lock.
        let inboxes: Vec<_> = self.streams.lock().values().filter(is_of).map(|stream| stream.inbox.clone()).collect();
        inboxes.iter().for_each(|inbox| inbox.end(end.clone()));
    }

    /// Wakes a watcher once `revision` is published; the caller checks again after this call.
    pub(crate) fn wait_for(&self, revision: Revision, watch_id: i64, inbox: &Arc<Inbox>) {
        self.awaiting.lock().insert((revision, inbox.stream(), watch_id), inbox.clone());
    }

    /// A watcher that waited is gone.
    pub(crate) fn wait_no_more(&self, revision: Revision, watch_id: i64, inbox: &Inbox) {
        self.awaiting.lock().remove(&(revision, inbox.stream(), watch_id));
    }

    /// A batch was published that concerns these groups.
    pub(crate) fn published(&self, groups: impl IntoIterator<Item = SharedGroup>) {
        // Whoever begins to wait after this sees what is published.
        let awaited = !self.awaiting.lock().is_empty();
        let mut work = self.work.lock();
        work.groups.extend(groups.into_iter().filter(|group| group.mark()));
        work.published |= awaited;
        if !work.groups.is_empty() || work.published {
            self.changed.notify_one();
        }
    }

    /// Ends all streams; the first reason stays.
    pub(crate) fn end(&self, end: StreamEnd) {
        self.work.lock().end.get_or_insert(end);
        self.changed.notify_one();
    }

    pub(crate) fn stop(&self) {
        self.work.lock().stopped = true;
        self.changed.notify_one();
    }

    /// Works until [`Wakeups::stop`]. `revision` reads what is published now; `report` sets the metrics.
    pub(crate) fn run(&self, interval: Duration, revision: impl Fn() -> Revision, report: impl Fn()) {
        let mut reported = Instant::now();
        loop {
            self.wait();
            let stopped = self.step(Instant::now(), interval, &revision);
            if reported.elapsed() >= REPORT_INTERVAL {
                report();
                reported = Instant::now();
            }
            if stopped {
                return;
            }
        }
    }

    /// Does what waits, and what the time asks for. `true` once it is stopped.
    pub(crate) fn step(&self, now: Instant, interval: Duration, revision: impl Fn() -> Revision) -> bool {
        let work = self.take();
        let published = revision();
        if work.published {
            let mut awaiting = self.awaiting.lock();
            while let Some(first) = awaiting.first_entry().filter(|first| first.key().0 <= published) {
                let ((_, _, watch_id), inbox) = first.remove_entry();
                inbox.ready(watch_id, published);
            }
        }
        for group in work.groups {
            group.wake(published);
        }
        if let Some(end) = work.end {
            for stream in self.streams.lock().values() {
                stream.inbox.end(end.clone());
            }
        }
        self.tick(now, interval);
        work.stopped
    }

    fn take(&self) -> Work {
        let mut work = self.work.lock();
        Work {
            groups: std::mem::take(&mut work.groups),
            published: std::mem::take(&mut work.published),
            end: work.end.take(),
            stopped: work.stopped,
        }
    }

    fn wait(&self) {
        let next_tick = self.ticks.lock().keys().next().map(|(at, _)| *at);
        // A stream opened meanwhile is due a whole interval from now, so waiting for the ones known is enough as long
        // as the wait itself is bounded.
        let bound = Instant::now() + Duration::from_millis(50);
        let until = next_tick.map_or(bound, |at| at.min(bound));
        let mut work = self.work.lock();
        if work.groups.is_empty() && !work.published && work.end.is_none() && !work.stopped {
            self.changed.wait_until(&mut work, until);
        }
    }

    fn tick(&self, now: Instant, interval: Duration) {
        let mut streams = self.streams.lock();
        let mut ticks = self.ticks.lock();
        while let Some(due) = ticks.first_entry().filter(|due| due.key().0 <= now) {
            let ((at, id), ()) = due.remove_entry();
            if let Some(stream) = streams.get_mut(&id) {
                stream.inbox.tick();
                stream.next_tick = (at + interval).max(now);
                ticks.insert((stream.next_tick, id), ());
            }
        }
    }
}
