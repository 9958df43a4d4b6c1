//! The ordered tree of keys, with counts.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use tailwater_eventlog::KeyRange;

use crate::version::KeyNode;

/// Keys in order; those deleted within the window stay in it as not live.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeyTree {
    map: Arc<BTreeMap<Bytes, (Arc<KeyNode>, bool)>>,
}

impl KeyTree {
    pub(crate) fn get(&self, key: &[u8]) -> Option<&Arc<KeyNode>> {
        self.map.get(key).map(|(node, _)| node)
    }

    /// Adds a key, or says whether one that is there is live.
    pub(crate) fn set(&mut self, key: Bytes, node: Arc<KeyNode>, live: bool) {
        Arc::make_mut(&mut self.map).insert(key, (node, live));
    }

    pub(crate) fn remove(&mut self, key: &[u8]) {
        Arc::make_mut(&mut self.map).remove(key);
    }

    /// Live keys in `range`.
    pub(crate) fn count(&self, range: &KeyRange) -> usize {
        self.map.iter().filter(|(k, (_, live))| *live && range.contains(k)).count()
    }

    /// Keys of `range` in order, live or not.
    pub(crate) fn range<'a>(&'a self, range: &'a KeyRange) -> impl Iterator<Item = &'a Arc<KeyNode>> {
        self.map
            .range::<[u8], _>((Bound::Included(range.start().as_ref()), Bound::Unbounded))
            .take_while(|(k, _)| !range.ends_before(k))
            .map(|(_, (node, _))| node)
    }
}
