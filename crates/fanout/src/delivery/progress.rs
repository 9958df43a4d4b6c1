//! Progress: the promise that everything up to a revision was handed out.

use std::collections::BTreeMap;

use tailwater_eventlog::Revision;

use super::{Delivery, NO_WATCH, Watcher, answer};
use crate::encode::Head;
use crate::store::Published;

/// Progress requests of the whole stream that are not answered yet.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The revision that was published when it was asked, and the first watcher not yet found to be past it.
    wanted: Option<(Revision, i64)>,
    /// Requests that came meanwhile are answered as one, next, with the revision of the newest.
    later: Option<Revision>,
    /// Watchers that were added meanwhile and begin behind `wanted`, with their starts.
    starts: BTreeMap<i64, Revision>,
}

impl Progress {
    pub(super) fn request(&mut self, published: Revision) {
        if self.wanted.is_some() {
            self.later = Some(published);
        } else {
            self.wanted = Some((published, i64::MIN));
        }
    }

    /// A watcher was added, perhaps below those that were already looked at.
    pub(super) fn added(&mut self, watch_id: i64, start: Revision) {
        if let Some((wanted, from)) = &mut self.wanted {
            *from = watch_id.min(*from);
            if start > *wanted {
                self.starts.insert(watch_id, start);
            }
        }
    }

    /// A watcher is gone.
    pub(super) fn removed(&mut self, watch_id: i64) {
        self.starts.remove(&watch_id);
    }

    /// The request is answered; whether it must be left without, because a watcher begins behind it.
    fn end(&mut self, wanted: Revision) -> bool {
        let is_early = self.starts.values().any(|start| *start > wanted);
        self.wanted = self.later.take().map(|later| (later, i64::MIN));
        if self.wanted.is_none() {
            self.starts.clear();
        }
        is_early
    }
}

impl Watcher {
    /// Whether everything up to `revision`, which is published, was handed out. What is promised is behind the watcher
    /// from then on: it is not read for again, and it may be compacted.
    fn pass(&mut self, revision: Revision) -> bool {
        let drained = self.group.is_drained(self.next, revision);
        if drained && self.next <= revision {
            self.next = revision.next();
            // The start is published; with a later `next` it would look as if it still lay ahead.
            self.unreached = false;
        }
        drained
    }
}

impl Delivery {
    /// As in etcd, nothing is said for a stream that has no watcher, or one whose start is not reached.
    pub(super) fn may_tell_progress(&self, published: Revision) -> bool {
        !self.watchers.is_empty() && self.watchers.values().all(|watcher| watcher.has_started(published))
    }

    /// Answers a progress request once every watcher was handed everything up to the revision it was asked at.
    /// Events above that revision may have been sent before; that breaks no promise.
    pub(super) fn put_progress(&mut self, published: &Published) {
        while let Some((wanted, from)) = self.progress.wanted {
            if wanted > published.revision() {
                return;
            }
            let behind = self
                .watchers
                .range_from(from)
                .find_map(|(watch_id, watcher)| (!watcher.pass(wanted)).then_some(watch_id));
            if let Some(watch_id) = behind {
                self.progress.wanted = Some((wanted, watch_id));
                // One that was long silent may have to scan what its group no longer knows.
                self.enqueue(watch_id);
                return;
            }
            if !self.progress.end(wanted) && self.may_tell_progress(wanted) {
                self.answers.push_back(Head { revision: wanted, ..answer(published, NO_WATCH) });
            }
        }
    }

    /// The interval has passed: watchers that asked for it and have got nothing meanwhile are told where they are,
    /// if they are there.
    pub(super) fn tick(&mut self, published: &Published) {
        let revision = published.revision();
        for (watch_id, watcher) in self.watchers.range_from(i64::MIN) {
            let silent = !std::mem::take(&mut watcher.sent);
            let wanted = watcher.progress_notify && silent && watcher.has_started(revision);
            if wanted && watcher.pass(revision) {
                self.answers.push_back(answer(published, watch_id));
            }
        }
    }
}
