//! Where a stream is told that something waits for it. A leaf lock, held for a few instructions.

use std::collections::BTreeSet;
use std::task::Waker;

use parking_lot::Mutex;
use tailwater_eventlog::Revision;

use crate::StreamEnd;

#[derive(Debug, Default)]
struct State {
    ready: BTreeSet<i64>,
    tick: bool,
    end: Option<StreamEnd>,
    waker: Option<Waker>,
    /// The first revision, about, that the stream has yet to be given; `None`: it has everything.
    oldest: Option<Revision>,
}

/// What was in the inbox.
#[derive(Debug, Default)]
pub(crate) struct Mail {
    /// Watchers that may have something to send.
    pub(crate) ready: BTreeSet<i64>,
    /// The progress interval has passed.
    pub(crate) tick: bool,
    /// The stream must end.
    pub(crate) end: Option<StreamEnd>,
}

/// A stream's inbox: bounded by the number of its watchers.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    state: Mutex<State>,
}

impl Inbox {
    /// A watcher may have something to send, which is not older than `revision`.
    pub(crate) fn ready(&self, watch_id: i64, revision: Revision) {
        self.change(|state| {
            state.ready.insert(watch_id);
            state.oldest.get_or_insert(revision);
        });
    }

    /// Where the stream stands after a pull: the first revision that it has yet to be given, if any.
    pub(crate) fn stands(&self, oldest: Option<Revision>) {
        let mut state = self.state.lock();
        // What came in meanwhile keeps what was noted with it.
        if oldest.is_some() || state.ready.is_empty() {
            state.oldest = oldest;
        }
    }

    /// The first revision, about, that the stream has yet to be given.
    pub(crate) fn oldest(&self) -> Option<Revision> {
        self.state.lock().oldest
    }

    /// The progress interval has passed.
    pub(crate) fn tick(&self) {
        self.change(|state| state.tick = true);
    }

    /// Ends the stream; the first reason stays.
    pub(crate) fn end(&self, end: StreamEnd) {
        self.change(|state| {
            state.end.get_or_insert(end);
        });
    }

    /// Something else changed.
    pub(crate) fn wake(&self) {
        self.change(|_| {});
    }

    /// Takes everything and leaves the waker for what comes later.
    pub(crate) fn take(&self, waker: &Waker) -> Mail {
        let mut state = self.state.lock();
        if !state.waker.as_ref().is_some_and(|w| w.will_wake(waker)) {
            state.waker = Some(waker.clone());
        }
        Mail { ready: std::mem::take(&mut state.ready), tick: std::mem::take(&mut state.tick), end: state.end.clone() }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let waker = {
            let mut state = self.state.lock();
            change(&mut state);
            state.waker.clone()
        };
        // Outside the lock: waking may run the stream's task at once on another thread.
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
