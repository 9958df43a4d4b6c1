//! The versions of one key: a chain from the newest to the oldest that memory still holds.
//!
//! One thread writes (the tail thread); readers walk without a lock. A reader at revision R takes the first version
//! that is not above R. The chain is contiguous from its head, so whatever is found is right; that nothing was found
//! means "not there" only if the window's floor was at or below R *after* the walk.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use tailwater_eventlog::{Event, EventKind, HistoryPoint, Revision};

use crate::window::point;

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

/// A key in the tree. Most keys have one version and no history in memory: those hold it at once, without a chain.
///
/// Invariant: one of the two is there at any time that the writer is not in between; both only while it is.
#[derive(Debug)]
pub(crate) struct KeyNode {
    /// The only version, of a key without a chain.
    single: ArcSwapOption<Event>,
    /// The newest of several, or of one that is in the window.
    head: ArcSwapOption<Version>,
}

/// What a reader finds of a key.
enum Found {
    Single(Arc<Event>),
    Chain(Arc<Version>),
}

impl KeyNode {
    /// Without history.
    pub(crate) fn single(event: Arc<Event>) -> Self {
        Self { single: ArcSwapOption::new(Some(event)), head: ArcSwapOption::empty() }
    }

    /// With its first version, which is returned.
    pub(crate) fn new(event: Arc<Event>) -> (Self, Arc<Version>) {
        let version = Arc::new(Version { event, older: ArcSwapOption::empty() });
        (Self { single: ArcSwapOption::empty(), head: ArcSwapOption::new(Some(version.clone())) }, version)
    }

    fn load(&self) -> Found {
        loop {
            if let Some(head) = self.head.load_full() {
                return Found::Chain(head);
            }
            if let Some(single) = self.single.load_full() {
                return Found::Single(single);
            }
            // The writer has put a chain in the place of the single version since the first look.
        }
    }

    /// Adds a newer version on top of the others, and returns it.
    pub(crate) fn push(&self, event: Arc<Event>) -> Arc<Version> {
        let older = match self.load() {
            Found::Chain(head) => head,
            Found::Single(event) => Arc::new(Version { event, older: ArcSwapOption::empty() }),
        };
        let version = Arc::new(Version { event, older: ArcSwapOption::new(Some(older)) });
        // In this order: a reader that finds neither looks again.
        self.head.store(Some(version.clone()));
        self.single.store(None);
        version
    }

    /// Replaces everything by one version, for a state that has no history yet.
    pub(crate) fn replace(&self, event: Arc<Event>) {
        self.single.store(Some(event));
        self.head.store(None);
    }

    /// Gives up the chain when this is its newest version and nothing older is needed any more.
    pub(crate) fn collapse(&self, version: &Arc<Version>) {
        if self.is_newest(version) {
            self.replace(version.event.clone());
        }
    }

    /// Whether this is the newest version.
    pub(crate) fn is_newest(&self, version: &Arc<Version>) -> bool {
        self.head.load().as_ref().is_some_and(|head| Arc::ptr_eq(head, version))
    }

    /// The newest event.
    pub(crate) fn newest(&self) -> Arc<Event> {
        match self.load() {
            Found::Chain(head) => head.event.clone(),
            Found::Single(event) => event,
        }
    }

    /// Its versions from a place on, up to and including revision `to`, newest first, behind those in `versions`. A key
    /// without a chain has none in the window.
    pub(crate) fn collect(&self, from: HistoryPoint, to: Revision, versions: &mut Vec<Arc<Version>>) {
        let mut version = self.head.load_full();
        while let Some(current) = version {
            if point(&current) < from {
                return;
            }
            version = current.older.load_full();
            if current.revision() <= to {
                versions.push(current);
            }
        }
    }

    /// The put visible at `at`.
    pub(crate) fn live_at(&self, at: Revision) -> Option<Arc<Event>> {
        let is_put = |event: &Event| event.kind() == EventKind::Put;
        let mut version = match self.load() {
            Found::Single(event) => return (event.revision() <= at && is_put(&event)).then_some(event),
            Found::Chain(head) => Some(head),
        };
        while let Some(current) = version {
            if current.revision() <= at {
                return current.is_put().then(|| current.event.clone());
            }
            version = current.older.load_full();
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
        let node = KeyNode::single(put(2, 0, 2));
        let deleted = node.push(Arc::new(Event::delete(Revision(3), 0, b"k", Some((Revision(2), 0)))));
        assert_eq!(deleted.before().map(|event| event.revision()), Some(Revision(2)));
        assert!(node.push(put(3, 1, 3)).before().is_none());
        assert_eq!(node.push(put(4, 0, 3)).before().map(|event| event.revision()), Some(Revision(3)));
    }

    #[test]
    fn a_key_is_found_with_and_without_a_chain() {
        let node = KeyNode::single(put(2, 0, 2));
        let found = |node: &KeyNode, at| node.live_at(Revision(at)).map(|event| event.revision().0);
        assert_eq!((found(&node, 1), found(&node, 2), found(&node, 9)), (None, Some(2), Some(2)));
        let version = node.push(put(5, 0, 2));
        assert_eq!((found(&node, 4), found(&node, 5)), (Some(2), Some(5)));
        version.cut();
        node.collapse(&version);
        assert_eq!((found(&node, 4), found(&node, 5), node.newest().revision()), (None, Some(5), Revision(5)));
        assert!(!node.is_newest(&version) && node.head.load().is_none());
        // A version that is not the newest changes nothing.
        node.push(put(6, 0, 2));
        node.collapse(&version);
        assert_eq!((found(&node, 5), found(&node, 6)), (Some(5), Some(6)));
    }

    #[test]
    fn readers_find_a_version_while_the_chain_comes_and_goes() {
        let node = Arc::new(KeyNode::single(put(2, 0, 2)));
        let reader = std::thread::spawn({
            let node = node.clone();
            move || {
                let mut last = 2;
                while last < 5000 {
                    let found = node.newest().revision().0;
                    assert!(found >= last);
                    assert!(node.live_at(Revision(9999)).is_some());
                    last = found;
                }
            }
        });
        for revision in 3..=5000 {
            let version = node.push(put(revision, 0, 2));
            version.cut();
            node.collapse(&version);
        }
        reader.join().expect("the reader finds what it looks for");
    }
}
