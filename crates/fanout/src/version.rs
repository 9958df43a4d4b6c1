//! The versions of one key: a chain from the newest to the oldest that memory still holds.
//!
//! One thread writes (the tail thread); readers walk without a lock. A reader at revision R takes the first version
//! that is not above R. The chain is contiguous from its head, so whatever is found is right; that nothing was found
//! means "not there" only if the window's floor was at or below R *after* the walk.

use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use tailwater_eventlog::{Event, EventKind, Revision};

/// One version of a key and the way to the one before.
#[derive(Debug)]
pub(crate) struct Version {
    event: Arc<Event>,
    older: ArcSwapOption<Version>,
}

impl Version {
    pub(crate) fn event(&self) -> &Arc<Event> {
        &self.event
    }

    pub(crate) fn revision(&self) -> Revision {
        self.event.revision()
    }

    pub(crate) fn is_put(&self) -> bool {
        self.event.kind() == EventKind::Put
    }

    /// The put that was visible just below this version's revision. An earlier event of the same revision is never
    /// meant. None for a put that creates the key, also where the same revision deleted it before: so etcd has it.
    pub(crate) fn before(&self) -> Option<Arc<Event>> {
        let revision = self.revision();
        if self.is_put() && self.event.envelope().create_revision == revision {
            return None;
        }
        let mut older = self.older.load_full();
        while let Some(version) = older {
            if version.revision() < revision {
                return version.is_put().then(|| version.event.clone());
            }
            older = version.older.load_full();
        }
        None
    }

    /// Forgets what lies below.
    pub(crate) fn cut(&self) {
        self.older.store(None);
    }
}

impl Drop for Version {
    /// Unlinks a long chain in a loop: dropping it link by link would recurse once per version.
    fn drop(&mut self) {
        let mut next = self.older.swap(None);
        while let Some(mut version) = next.and_then(Arc::into_inner) {
            next = version.older.swap(None);
            debug_assert!(version.older.load().is_none());
            version.older = ArcSwapOption::empty();
        }
    }
}

/// A key in the tree.
#[derive(Debug)]
pub(crate) struct KeyNode {
    head: ArcSwap<Version>,
}

impl KeyNode {
    pub(crate) fn new(event: Arc<Event>) -> Self {
        Self { head: ArcSwap::from_pointee(Version { event, older: ArcSwapOption::empty() }) }
    }

    /// Adds a newer version on top of the others.
    pub(crate) fn push(&self, event: Arc<Event>) {
        let older = ArcSwapOption::new(Some(self.head.load_full()));
        self.head.store(Arc::new(Version { event, older }));
    }

    /// Replaces everything by one version, for a state that has no history yet.
    pub(crate) fn replace(&self, event: Arc<Event>) {
        self.head.store(Arc::new(Version { event, older: ArcSwapOption::empty() }));
    }

    pub(crate) fn newest(&self) -> Arc<Version> {
        self.head.load_full()
    }

    /// The put visible at `at`.
    pub(crate) fn live_at(&self, at: Revision) -> Option<Arc<Event>> {
        let head = self.head.load();
        if head.revision() <= at {
            return head.is_put().then(|| head.event.clone());
        }
        let mut older = head.older.load_full();
        while let Some(version) = older {
            if version.revision() <= at {
                return version.is_put().then(|| version.event.clone());
            }
            older = version.older.load_full();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use tailwater_eventlog::{Envelope, LeaseId};

    use super::*;

    fn put(revision: i64, sub: u32, create_revision: i64) -> Arc<Event> {
        let envelope = Envelope {
            kind: EventKind::Put,
            revision: Revision(revision),
            sub,
            create_revision: Revision(create_revision),
            version: 1,
            lease: LeaseId(0),
            prev: None,
        };
        Arc::new(Event::put(envelope, b"k", b"v"))
    }

    #[test]
    fn a_put_that_creates_has_none_before_it() {
        let node = KeyNode::new(put(2, 0, 2));
        node.push(Arc::new(Event::delete(Revision(3), 0, b"k", Some((Revision(2), 0)))));
        assert_eq!(node.newest().before().map(|event| event.revision()), Some(Revision(2)));
        node.push(put(3, 1, 3));
        assert!(node.newest().before().is_none());
        node.push(put(4, 0, 3));
        assert_eq!(node.newest().before().map(|event| event.revision()), Some(Revision(3)));
    }
}
