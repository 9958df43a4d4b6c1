//! Where a stream is told that something waits for it. A leaf lock, held for a few instructions.

use std::task::Waker;

use parking_lot::Mutex;
use tailwater_eventlog::Revision;

use crate::StreamEnd;

/// Room for so many watch ids is kept while there is no mail.
const KEPT_MAX: usize = 8;

#[derive(Debug, Default)]
struct State {
    /// Watch ids, some of them perhaps twice.
    ready: Vec<i64>,
    tick: bool,
    end: Option<StreamEnd>,
    waker: Option<Waker>,
    /// The first revision, about, that the stream has yet to be given; `None`: it has everything.
    oldest: Option<Revision>,
}

impl State {
    fn add(&mut self, watch_id: i64) {
        // A stream that is not read is told of the same few watchers again and again: before the list grows, what is
        // twice in it goes.
        if self.ready.len() == self.ready.capacity() {
            self.ready.sort_unstable();
            self.ready.dedup();
            // Few were: it would soon be full again.
            if self.ready.len() > self.ready.capacity() / 4 * 3 {
                self.ready.reserve(self.ready.len());
            }
        }
        if self.ready.last() != Some(&watch_id) {
            self.ready.push(watch_id);
        }
    }
}

/// What was in the inbox.
#[derive(Debug, Default)]
pub(crate) struct Mail {
    /// Watchers that may have something to send.
    pub(crate) ready: Vec<i64>,
    /// The progress interval has passed.
    pub(crate) tick: bool,
    /// The stream must end.
    pub(crate) end: Option<StreamEnd>,
}

/// A stream's inbox: bounded by the number of its watchers.
#[derive(Debug)]
pub(crate) struct Inbox {
    stream: u64,
    state: Mutex<State>,
}

impl Inbox {
    pub(crate) fn new(stream: u64) -> Self {
        Self { stream, state: Mutex::default() }
    }

    /// Number of the stream.
    pub(crate) fn stream(&self) -> u64 {
        self.stream
    }

    /// A watcher may have something to send, which is not older than `revision`.
    pub(crate) fn ready(&self, watch_id: i64, revision: Revision) {
        self.change(|state| {
            state.add(watch_id);
            state.oldest.get_or_insert(revision);
        });
    }

    /// Where the stream stands after a pull: the first revision that it has yet to be given, if any.
    /// Gives the empty mail back, so that the next needs no memory of its own.
    pub(crate) fn stands(&self, oldest: Option<Revision>, mail: Mail) {
        let mut state = self.state.lock();
        if state.ready.capacity() == 0 && mail.ready.capacity() <= KEPT_MAX {
            state.ready = mail.ready;
        }
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

    /// Leaves the waker for what comes later; whether the stream must end.
    pub(crate) fn leave(&self, waker: &Waker) -> bool {
        let mut state = self.state.lock();
        if !state.waker.as_ref().is_some_and(|w| w.will_wake(waker)) {
            state.waker = Some(waker.clone());
        }
        state.end.is_some()
    }

    /// Takes everything.
    pub(crate) fn take(&self) -> Mail {
        let mut state = self.state.lock();
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
