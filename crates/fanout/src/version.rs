//! The versions of one key: a chain from the newest to the oldest that memory still holds.
//!
//! One thread writes (the tail thread); readers walk without a lock. A reader at revision R takes the first version
//! that is not above R. The chain is contiguous from its head, so whatever is found is right; that nothing was found
//! means "not there" only if the window's floor was at or below R *after* the walk.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
    /// It may be without its value.
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
/// A key that nobody has asked for may be held without its value ([`crate::FanoutConfig::unread_value_bytes_min`]): what
/// is found is then not whole, and its reader goes to the source.
///
/// Invariant: one of the two is there at any time that the writer is not in between; both only while it is.
#[derive(Debug)]
pub(crate) struct KeyNode {
    /// The only version, of a key without a chain.
    single: ArcSwapOption<Event>,
    /// The newest of several, or of one that is in the window.
    head: ArcSwapOption<Version>,
    /// Its value was asked for when it was not there: values of this key stay from then on.
    asked: AtomicBool,
}

/// What a reader finds of a key.
enum Found {
    Single(Arc<Event>),
    Chain(Arc<Version>),
}

impl KeyNode {
    /// Without history.
    pub(crate) fn single(event: Arc<Event>) -> Self {
        Self { single: ArcSwapOption::new(Some(event)), head: ArcSwapOption::empty(), asked: AtomicBool::new(false) }
    }

    /// With its first version, which is returned.
    pub(crate) fn new(event: Arc<Event>) -> (Self, Arc<Version>) {
        let version = Arc::new(Version { event, older: ArcSwapOption::empty() });
        let head = ArcSwapOption::new(Some(version.clone()));
        (Self { single: ArcSwapOption::empty(), head, asked: AtomicBool::new(false) }, version)
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

    /// Gives up the chain when this is its newest version and nothing older is needed any more, and its value, when it is
    /// large enough and nobody has asked for it.
    pub(crate) fn collapse(&self, version: &Arc<Version>, unread: UnreadValues) {
        if self.is_newest(version) {
            self.replace(if self.is_asked() { version.event.clone() } else { unread.held(version.event.clone()) });
        }
    }

    /// From now on values of this key stay.
    pub(crate) fn ask(&self) {
        // Few writes: readers share the line.
        if !self.is_asked() {
            self.asked.store(true, Ordering::Relaxed);
        }
    }

    fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Takes back a value that was read from the source. Any thread.
    pub(crate) fn restore(&self, event: &Arc<Event>) {
        self.ask();
        let held = self.single.load();
        let place = |event: &Event| (event.revision(), event.sub());
        if held.as_ref().is_some_and(|held| !held.is_whole() && place(held) == place(event)) {
            // The writer may have put another in its place.
            self.single.compare_and_swap(&held, Some(event.clone()));
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
    /// without a chain has none in the window. Takes from `left` how many it looks at; `None` when they are more.
    pub(crate) fn collect(
        &self,
        from: HistoryPoint,
        to: Revision,
        left: &mut usize,
        versions: &mut Vec<Arc<Version>>,
    ) -> Option<()> {
        let mut version = self.head.load_full();
        while let Some(current) = version.filter(|current| point(current) >= from) {
            *left = left.checked_sub(1)?;
            version = current.older.load_full();
            if current.revision() <= to {
                versions.push(current);
            }
        }
        Some(())
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

/// Which values are held that nobody has asked for: what changes will be asked for by watches, and lies scattered over the
/// log, so only values that a key was created with are given up.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct UnreadValues {
    /// Those of at least so many bytes are; `None`: none.
    pub(crate) bytes_min: Option<usize>,
}

impl UnreadValues {
    /// What is held of an event that lies outside of the window.
    pub(crate) fn held(self, event: Arc<Event>) -> Arc<Event> {
        match self.bytes_min {
            Some(min) if event.is_whole() && event.value().len() >= min && event.envelope().version == 1 => {
                Arc::new(event.without_value())
            }
            _ => event,
        }
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
        node.collapse(&version, UnreadValues::default());
        assert_eq!((found(&node, 4), found(&node, 5), node.newest().revision()), (None, Some(5), Revision(5)));
        assert!(!node.is_newest(&version) && node.head.load().is_none());
        // A version that is not the newest changes nothing.
        node.push(put(6, 0, 2));
        node.collapse(&version, UnreadValues::default());
        assert_eq!((found(&node, 5), found(&node, 6)), (Some(5), Some(6)));
    }

    #[test]
    fn a_value_is_given_up_until_it_is_asked_for() {
        let unread = UnreadValues { bytes_min: Some(1) };
        let pushed = |node: &KeyNode, revision| {
            let version = node.push(put(revision, 0, 2));
            version.cut();
            node.collapse(&version, unread);
            node.newest()
        };
        let node = KeyNode::single(put(2, 0, 2));
        let held = pushed(&node, 3);
        assert!(!held.is_whole() && held.value().is_empty());
        let whole = put(3, 0, 2);
        assert_eq!((held.envelope(), held.key()), (whole.envelope(), whole.key()));
        // An update finds it below itself.
        let version = node.push(put(4, 0, 2));
        assert!(!version.before().is_some_and(|before| before.is_whole()));
        version.cut();
        node.collapse(&version, unread);
        // What was read is of a version that is gone meanwhile; but it was asked for.
        node.restore(&whole);
        assert!(!node.newest().is_whole());
        node.restore(&put(4, 0, 2));
        assert_eq!(node.newest().value(), b"v");
        assert!(pushed(&node, 5).is_whole());
        // What was changed after it was created stays.
        let envelope = Envelope { version: 2, ..whole.envelope() };
        assert!(unread.held(Arc::new(Event::put(envelope, b"k", b"v"))).is_whole());
        assert!(unread.held(held).revision() == Revision(3));
        assert!(UnreadValues { bytes_min: Some(2) }.held(whole).is_whole());
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
            node.collapse(&version, UnreadValues::default());
        }
        reader.join().expect("the reader finds what it looks for");
    }
}
