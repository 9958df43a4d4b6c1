//! Progress: the promise that everything up to a revision was handed out.

use tailwater_eventlog::Revision;

use super::{Delivery, NO_WATCH, answer};
use crate::store::Published;

/// A progress request of the whole stream that is not answered yet; later ones join it.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The revision that was published when it was asked, and the first watcher not yet found to be past it.
    wanted: Option<(Revision, i64)>,
}

impl Progress {
    pub(super) fn request(&mut self, published: Revision) {
        self.wanted.get_or_insert((published, i64::MIN));
    }

    /// A watcher was added, perhaps below those that were already looked at.
    pub(super) fn added(&mut self, watch_id: i64) {
        if let Some((_, from)) = &mut self.wanted {
            *from = watch_id.min(*from);
        }
    }
}

impl Delivery {
    /// As in etcd, nothing is said for a stream that has no watcher, or one whose start is not reached.
    pub(super) fn may_tell_progress(&self, published: Revision) -> bool {
        !self.watchers.is_empty() && self.watchers.values().all(|watcher| watcher.start <= published)
    }

    /// Answers a progress request once every watcher was handed everything up to the revision it was asked at.
    /// Events above that revision may have been sent before; that breaks no promise.
    pub(super) fn put_progress(&mut self, published: &Published) {
        let Some((wanted, mut from)) = self.progress.wanted else { return };
        if wanted > published.revision() {
            return;
        }
        for (watch_id, watcher) in self.watchers.range(from..) {
            if !watcher.group.is_drained(watcher.next, wanted) {
                from = *watch_id;
                self.progress.wanted = Some((wanted, from));
                return;
            }
        }
        self.progress.wanted = None;
        if self.may_tell_progress(published.revision()) {
            let mut head = answer(published, NO_WATCH);
            head.revision = wanted;
            self.answers.push_back(head);
        }
    }

    /// The interval has passed: watchers that asked for it and have got nothing meanwhile are told where they are,
    /// if they are there.
    pub(super) fn tick(&mut self, published: &Published) {
        let revision = published.revision();
        for (watch_id, watcher) in &mut self.watchers {
            let silent = !std::mem::take(&mut watcher.sent);
            let wanted = watcher.progress_notify && silent && watcher.start <= revision;
            if wanted && watcher.group.is_drained(watcher.next, revision) {
                self.answers.push_back(answer(published, *watch_id));
            }
        }
    }
}
