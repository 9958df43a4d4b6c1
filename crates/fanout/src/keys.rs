//! The ordered tree of keys, with counts.

use std::sync::Arc;

use tailwater_eventlog::{CountedTree, KeyRange};

use crate::version::KeyNode;

/// Keys in order; those deleted within the window stay in it as not live. Clones share what is equal.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeyTree {
    tree: CountedTree<Arc<KeyNode>>,
}

impl KeyTree {
    pub(crate) fn get(&self, key: &[u8]) -> Option<&Arc<KeyNode>> {
        self.tree.get(key)
    }

    pub(crate) fn insert(&mut self, key: &[u8], node: Arc<KeyNode>, live: bool) {
        self.tree.insert(key, node, live);
    }

    pub(crate) fn set_live(&mut self, key: &[u8], live: bool) {
        self.tree.set_live(key, live);
    }

    pub(crate) fn remove(&mut self, key: &[u8]) {
        self.tree.remove(key);
    }

    /// Live keys.
    pub(crate) fn live_len(&self) -> usize {
        self.tree.live_len()
    }

    /// Live keys in `range`.
    pub(crate) fn count(&self, range: &KeyRange) -> usize {
        self.tree.count_live(range)
    }

    /// Keys of `range` in order, those behind `after` only, live or not.
    pub(crate) fn range_after(&self, range: &KeyRange, after: Option<&[u8]>) -> impl Iterator<Item = &Arc<KeyNode>> {
        self.tree.range_after(range, after).map(|(_, node, _)| node)
    }

    /// As [`KeyTree::range_after`], but steps over what is not live.
    pub(crate) fn live_range_after(
        &self,
        range: &KeyRange,
        after: Option<&[u8]>,
    ) -> impl Iterator<Item = &Arc<KeyNode>> {
        self.tree.live_range_after(range, after).map(|(_, node, _)| node)
    }
}
