//! What the cache holds, and what changes in it.

use std::error::Error as StdError;
use std::fmt;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdMap;
use tailwater_api::mvccpb::KeyValue;

/// Whatever a decoder says is wrong with a value.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// Where a key's version stands in history. Versions count from 1 when a key is created, and each write adds one; so two
/// stamps tell whether a write lies between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The revision of the write that created the key.
    pub create_revision: i64,
    /// The revision of the newest write.
    pub mod_revision: i64,
    /// How many writes since the key was created, the first included.
    pub version: i64,
}

impl Stamp {
    pub(crate) fn of(kv: &KeyValue) -> Self {
        Self { create_revision: kv.create_revision, mod_revision: kv.mod_revision, version: kv.version }
    }
}

/// A decoded value and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object<T> {
    /// The key, whole.
    pub key: Bytes,
    /// Where this version stands in history; `mod_revision` is what a compare-and-put compares.
    pub stamp: Stamp,
    /// The lease that the key hangs on; 0: none.
    pub lease: i64,
    /// What the decoder made of the value.
    pub value: T,
}

impl<T> Object<T> {
    /// The revision of the write that made this version.
    #[must_use]
    pub fn mod_revision(&self) -> i64 {
        self.stamp.mod_revision
    }
}

/// A version that the decoder refused. Its key is not in the cache.
#[derive(Debug)]
pub struct Undecodable {
    /// The key, whole.
    pub key: Bytes,
    /// Where this version stands in history.
    pub stamp: Stamp,
    /// What the decoder said.
    pub error: BoxError,
}

/// One step of what a subscriber is told.
///
/// The first steps are the state when the subscription began: `Applied` without `old` for each object, then `Synced`.
/// From there on each change comes once, in the order of revisions. Where history is missing because it was compacted,
/// `Relisted` comes, then the *difference* between the cache and the new list, then `Synced`.
pub enum Change<T> {
    /// A key was created or changed.
    Applied {
        /// What the cache held before.
        old: Option<Arc<Object<T>>>,
        /// What it holds now.
        new: Arc<Object<T>>,
    },
    /// A key was deleted.
    Deleted {
        /// What the cache held before.
        old: Arc<Object<T>>,
        /// The revision of the delete. In a difference: that of the new list, by which the key was gone.
        revision: i64,
    },
    /// A key has a value that the decoder refuses, and is not in the cache. When such a key is deleted, nothing follows.
    Undecodable {
        /// The key and why.
        what: Arc<Undecodable>,
        /// What the cache held before.
        old: Option<Arc<Object<T>>>,
    },
    /// Changes were lost to this client; a difference follows. Of a key that changed more than once it tells the last
    /// change. Deletes come first, then changes in the order of revisions.
    Relisted {
        /// Why.
        cause: RelistCause,
        /// The revision up to which each change has been told.
        since: i64,
    },
    /// The state at the begin, or the difference, is complete: the cache was the range at this revision.
    Synced {
        /// That of the list.
        revision: i64,
    },
}

/// Why a new list was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelistCause {
    /// The history that the watch needs was compacted while it was cut off.
    Compacted {
        /// What is left begins here.
        compact_revision: i64,
    },
    /// The servers' revision is behind what was seen: a backup was restored. All objects are told again.
    HistoryLost {
        /// The servers' revision.
        revision: i64,
    },
    /// A change came that does not follow the cached version of its key: the server left one out. That is a fault of
    /// the server; it is logged, and the cache is mended.
    Gap {
        /// The revision of the change.
        revision: i64,
    },
}

// By hand: derived ones would ask the same of T.
impl<T> Clone for Change<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Applied { old, new } => Self::Applied { old: old.clone(), new: new.clone() },
            Self::Deleted { old, revision } => Self::Deleted { old: old.clone(), revision: *revision },
            Self::Undecodable { what, old } => Self::Undecodable { what: what.clone(), old: old.clone() },
            Self::Relisted { cause, since } => Self::Relisted { cause: *cause, since: *since },
            Self::Synced { revision } => Self::Synced { revision: *revision },
        }
    }
}

impl<T> fmt::Debug for Change<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Applied { old, new } => write!(
                f,
                "Applied({} at {}, before {:?})",
                new.key.escape_ascii(),
                new.mod_revision(),
                old.as_ref().map(|old| old.mod_revision())
            ),
            Self::Deleted { old, revision } => {
                write!(f, "Deleted({} at {revision}, before {})", old.key.escape_ascii(), old.mod_revision())
            }
            Self::Undecodable { what, .. } => {
                write!(f, "Undecodable({} at {}: {})", what.key.escape_ascii(), what.stamp.mod_revision, what.error)
            }
            Self::Relisted { cause, since } => write!(f, "Relisted({cause:?}, since {since})"),
            Self::Synced { revision } => write!(f, "Synced({revision})"),
        }
    }
}

/// The whole range at one revision. It does not change: it stays what it was when it was taken.
///
/// Cheap to clone; it shares with the cache what has not changed since.
pub struct Snapshot<T> {
    pub(crate) revision: i64,
    pub(crate) objects: OrdMap<Bytes, Arc<Object<T>>>,
    pub(crate) undecodable: OrdMap<Bytes, Arc<Undecodable>>,
}

impl<T> Clone for Snapshot<T> {
    fn clone(&self) -> Self {
        Self { revision: self.revision, objects: self.objects.clone(), undecodable: self.undecodable.clone() }
    }
}

impl<T> fmt::Debug for Snapshot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (objects, undecodable) = (self.objects.len(), self.undecodable.len());
        write!(f, "Snapshot(revision {}, {objects} objects, {undecodable} undecodable)", self.revision)
    }
}

impl<T> Default for Snapshot<T> {
    fn default() -> Self {
        Self { revision: 0, objects: OrdMap::new(), undecodable: OrdMap::new() }
    }
}

impl<T> Snapshot<T> {
    /// The revision that the range is seen at; 0 before the first list. No change up to it is missing.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// How many objects.
    #[must_use]
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// The object of a key.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&Arc<Object<T>>> {
        self.objects.get(key)
    }

    /// All objects in the order of keys.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Object<T>>> {
        self.objects.values()
    }

    /// The objects of a range of keys, in their order: `snapshot.range("a".."b")`.
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> impl Iterator<Item = &Arc<Object<T>>> {
        let owned = |bound: Bound<&K>| bound.map(|key| Bytes::copy_from_slice(key.as_ref()));
        let bounds = (owned(range.start_bound()), owned(range.end_bound()));
        self.objects.range(bounds).map(|(_, object)| object)
    }

    /// The objects whose keys begin so, in the order of keys.
    pub fn prefix<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = &'a Arc<Object<T>>> {
        self.range::<&[u8]>(prefix..).take_while(move |object| object.key.starts_with(prefix))
    }

    /// The keys that the decoder refused, in their order.
    pub fn undecodable(&self) -> impl Iterator<Item = &Arc<Undecodable>> {
        self.undecodable.values()
    }

    /// What is known of a key, decodable or not.
    pub(crate) fn stamp(&self, key: &[u8]) -> Option<Stamp> {
        let object = self.objects.get(key).map(|object| object.stamp);
        object.or_else(|| self.undecodable.get(key).map(|what| what.stamp))
    }
}

impl<T: Send + Sync + 'static> Snapshot<T> {
    /// The state as the first steps of a subscription, made one at a time.
    pub(crate) fn into_changes(self) -> impl Iterator<Item = Change<T>> + Send + Sync {
        let revision = self.revision;
        let objects = self.objects.into_iter().map(|(_, new)| Change::Applied { old: None, new });
        let refused = self.undecodable.into_iter().map(|(_, what)| Change::Undecodable { what, old: None });
        objects.chain(refused).chain(std::iter::once(Change::Synced { revision }))
    }
}
