//! The in-memory store: what the tail thread owns and changes, and what it publishes.
//!
//! Invariants: `window floor <= snapshot revision`; a key is in the tree while it is live or its newest version is
//! above the floor; counts of the tree are those of the newest revision.

use std::sync::Arc;

use tailwater_eventlog::{AuthFacts, Cursor, Event, EventKind, Fact, Position, Revision, Term};

use crate::ReadSnapshot;
use crate::keys::KeyTree;
use crate::version::{KeyNode, UnreadValues};
use crate::window::{Window, WindowEvent};

/// Segments of the window are about this large, or an eighth of a small window.
const SEGMENT_BYTES: usize = 64 << 10;

/// What readers see: one root and the facts that belong to it.
#[derive(Debug, Default)]
pub(crate) struct Published {
    pub(crate) snapshot: Arc<ReadSnapshot>,
    pub(crate) keys: KeyTree,
    /// Whether it may be read: not before the first transfer, and not while another history is transferred.
    pub(crate) serves: bool,
}

impl Published {
    pub(crate) fn revision(&self) -> Revision {
        self.snapshot.cursor.revision
    }
}

/// The tail thread's side.
#[derive(Debug, Default)]
pub(crate) struct Store {
    keys: KeyTree,
    snapshot: ReadSnapshot,
    /// What the source had reached when the last row was read: own history starts when the tail has passed it.
    transferred: Revision,
    /// What readers have seen of this history before: the store is not whole before it is there.
    least: Position,
    unread: UnreadValues,
}

impl Store {
    /// An empty store at the beginning of a transfer, which must come at least to `least`.
    pub(crate) fn at(cursor: Cursor, facts: &[Fact], least: Option<Cursor>, unread: UnreadValues) -> Self {
        let snapshot = ReadSnapshot { cursor, ..ReadSnapshot::default() };
        let mut store = Self { snapshot, unread, ..Self::default() };
        if let Some(least) = least {
            (store.least, store.transferred) = (least.position, least.revision);
        }
        for fact in facts {
            store.fact(fact);
        }
        store
    }

    pub(crate) fn cursor(&self) -> Cursor {
        self.snapshot.cursor
    }

    pub(crate) fn compacted(&self) -> Revision {
        self.snapshot.compacted
    }

    /// Whether the tail has passed everything that the transfer brought.
    pub(crate) fn is_whole(&self) -> bool {
        let Cursor { revision, position, .. } = self.snapshot.cursor;
        revision >= self.transferred && position >= self.least
    }

    /// The transfer ended when the source was at `end`. The rows' own revisions do not tell: a key that was deleted
    /// while rows were read left none, and its state before the delete is in no row and in no frame from B on.
    pub(crate) fn transferred(&mut self, end: Revision) {
        self.transferred = self.transferred.max(end);
    }

    /// A transferred row. It may be newer than what the tail will bring next; the higher mod_revision wins.
    pub(crate) fn load(&mut self, event: Arc<Event>) {
        self.transferred = self.transferred.max(event.revision());
        self.settle(event);
    }

    /// An event before own history begins: only the newest state matters.
    pub(crate) fn settle(&mut self, event: Arc<Event>) {
        let envelope = event.envelope();
        if let Some(node) = self.keys.get(event.key()) {
            let newest = node.newest();
            if (newest.revision(), newest.sub()) >= (envelope.revision, envelope.sub) {
                return;
            }
        }
        match envelope.kind {
            EventKind::Put => {
                let event = self.unread.held(event);
                if let Some(node) = self.keys.get(event.key()) {
                    node.replace(event);
                } else {
                    self.keys.insert(event.key(), Arc::new(KeyNode::single(event.clone())), true);
                }
            }
            EventKind::Delete => self.keys.remove(event.key()),
        }
    }

    /// An event of the tail.
    pub(crate) fn apply(&mut self, event: Arc<Event>) -> WindowEvent {
        let live = event.kind() == EventKind::Put;
        let key = event.key();
        let (version, node, was_live) = match self.keys.get(key) {
            Some(node) => {
                let node = node.clone();
                let was_live = node.newest().kind() == EventKind::Put;
                let version = node.push(event.clone());
                if was_live != live {
                    self.keys.set_live(key, live);
                }
                (version, node, was_live)
            }
            None => {
                let (node, version) = KeyNode::new(event.clone());
                let node = Arc::new(node);
                self.keys.insert(key, node.clone(), live);
                (version, node, false)
            }
        };
        WindowEvent { version, node, live_change: i8::from(live) - i8::from(was_live) }
    }

    /// A fact of the tail.
    pub(crate) fn fact(&mut self, fact: &Fact) {
        let snapshot = &mut self.snapshot;
        match fact {
            Fact::Compacted(revision) => snapshot.compacted = snapshot.compacted.max(*revision),
            Fact::Auth(auth) => snapshot.auth = Arc::new(auth.clone()),
            Fact::Alarms(alarms) => snapshot.alarms.clone_from(alarms),
            Fact::Members(members) => snapshot.members.clone_from(members),
            Fact::Leader(leader, term) => (snapshot.leader, snapshot.term) = (*leader, *term),
            Fact::ClusterVersion(version) => snapshot.cluster_version.clone_from(version),
            Fact::Downgrade(target) => snapshot.downgrade.clone_from(target),
        }
    }

    /// All facts, for a reader that knows none or old ones.
    pub(crate) fn facts(&self) -> Vec<Fact> {
        let ReadSnapshot { compacted, leader, term, members, alarms, auth, cluster_version, downgrade, .. } =
            &self.snapshot;
        let mut facts = vec![
            Fact::Compacted(*compacted),
            Fact::Auth(AuthFacts::clone(auth)),
            Fact::Alarms(alarms.clone()),
            Fact::Members(members.clone()),
            Fact::ClusterVersion(cluster_version.clone()),
            Fact::Downgrade(downgrade.clone()),
        ];
        // Before the first word of one there is nothing to be told.
        if *term > Term(0) {
            facts.push(Fact::Leader(*leader, *term));
        }
        facts
    }

    pub(crate) fn reach(&mut self, cursor: Cursor) {
        let now = self.snapshot.cursor;
        assert!(
            cursor.position >= now.position && cursor.revision >= now.revision,
            "a tail never goes back: {cursor:?} after {now:?}"
        );
        self.snapshot.cursor = cursor;
    }

    pub(crate) fn publish(&self) -> Published {
        Published { snapshot: Arc::new(self.snapshot.clone()), keys: self.keys.clone(), serves: true }
    }

    /// Shrinks the window to its bound and forgets keys that are deleted for every reader of memory.
    pub(crate) fn evict(&mut self, window: &Window, bytes_max: usize) {
        while let Some(segment) = window.evict(bytes_max, self.snapshot.compacted) {
            for event in &segment.events {
                if event.version.is_put() {
                    event.node.collapse(&event.version, self.unread);
                } else if event.node.is_newest(&event.version) {
                    self.keys.remove(event.version.event().key());
                }
            }
        }
    }
}

/// Size of the window's segments under this bound.
pub(crate) fn segment_bytes(window_bytes_max: usize) -> usize {
    (window_bytes_max / 8).min(SEGMENT_BYTES)
}
