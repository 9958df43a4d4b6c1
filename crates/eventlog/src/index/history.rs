//! The versions of one key.

use super::KeyMeta;
use crate::{Event, EventKind, LeaseId, Revision};

/// One version of a key: a put, or the tombstone of a delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) revision: Revision,
    create_revision: Revision,
    version: i64,
    lease: LeaseId,
    pub(crate) sub: u32,
    pub(crate) kind: EventKind,
}

impl Version {
    pub(crate) fn of(event: &Event) -> Self {
        let envelope = event.envelope();
        Self {
            revision: envelope.revision,
            create_revision: envelope.create_revision,
            version: envelope.version,
            lease: envelope.lease,
            sub: envelope.sub,
            kind: envelope.kind,
        }
    }

    /// Whether it is the put that created the key.
    pub(crate) fn is_first(&self) -> bool {
        self.version == 1
    }

    /// Whether it is that of the event.
    pub(crate) fn is_of(&self, event: &Event) -> bool {
        (self.revision, self.sub) == (event.revision(), event.sub())
    }

    pub(crate) fn meta(&self, key: Vec<u8>) -> KeyMeta {
        KeyMeta {
            key: key.into(),
            mod_revision: self.revision,
            sub: self.sub,
            create_revision: self.create_revision,
            version: self.version,
            lease: self.lease,
        }
    }
}

/// The versions of one key. Most keys have one, so the older ones hang behind a pointer.
#[derive(Clone, Debug)]
pub(crate) struct KeyHistory {
    newest: Version,
    older: Option<Box<Older>>,
}

/// Versions below the newest, oldest first.
#[derive(Clone, Debug)]
struct Older(Vec<Version>);

impl KeyHistory {
    pub(crate) fn new(version: Version) -> Self {
        Self { newest: version, older: None }
    }

    pub(crate) fn push(&mut self, version: Version) {
        assert!(
            (self.newest.revision, self.newest.sub) < (version.revision, version.sub),
            "an event at revision {} sub {} follows one of its key at revision {} sub {}",
            version.revision,
            version.sub,
            self.newest.revision,
            self.newest.sub
        );
        let superseded = std::mem::replace(&mut self.newest, version);
        self.older.get_or_insert_with(|| Box::new(Older(Vec::new()))).0.push(superseded);
    }

    /// The newest version at or below `at`, when it is a put.
    pub(crate) fn live_at(&self, at: Revision) -> Option<&Version> {
        self.newest_at(at).filter(|version| version.kind == EventKind::Put)
    }

    /// The newest version at or below `at`.
    pub(crate) fn newest_at(&self, at: Revision) -> Option<&Version> {
        if self.newest.revision <= at { Some(&self.newest) } else { self.older_at(at) }
    }

    fn older(&self) -> &[Version] {
        self.older.as_deref().map_or(&[], |older| older.0.as_slice())
    }

    fn older_at(&self, at: Revision) -> Option<&Version> {
        let older = self.older();
        older[..older.partition_point(|version| version.revision <= at)].last()
    }

    /// Versions from a place on, up to and including revision `to`, oldest first.
    pub(crate) fn between(&self, from: (Revision, u32), to: Revision) -> impl Iterator<Item = &Version> + Clone {
        let older = self.older();
        let begin = older.partition_point(|version| (version.revision, version.sub) < from);
        let end = older.partition_point(|version| version.revision <= to);
        let newest = Some(&self.newest).filter(|newest| (newest.revision, newest.sub) >= from && newest.revision <= to);
        older.get(begin..end).unwrap_or_default().iter().chain(newest)
    }

    /// Whether [`KeyHistory::compact`] would change anything.
    pub(crate) fn has_outdated(&self, compacted: Revision) -> bool {
        self.outdated(compacted) > 0
    }

    /// How many of the oldest versions no read at or above `compacted` can see: those below the newest one at or
    /// below it, and that one as well when it is a tombstone.
    fn outdated(&self, compacted: Revision) -> usize {
        let older = self.older();
        let newest_is_below = self.newest.revision <= compacted;
        let below = older.partition_point(|version| version.revision <= compacted) + usize::from(newest_is_below);
        let last = if newest_is_below { Some(&self.newest) } else { below.checked_sub(1).map(|last| &older[last]) };
        match last {
            None => 0,
            Some(version) if version.kind == EventKind::Delete => below,
            Some(_) => below - 1,
        }
    }

    /// Forgets the outdated versions. `true` when none is left, and the key with it.
    pub(crate) fn compact(&mut self, compacted: Revision) -> bool {
        let outdated = self.outdated(compacted);
        if outdated > self.older().len() {
            return true;
        }
        if let Some(older) = &mut self.older {
            older.0.drain(..outdated);
            older.0.shrink_to_fit();
            if older.0.is_empty() {
                self.older = None;
            }
        }
        false
    }
}
