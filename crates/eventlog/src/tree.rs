//! An ordered tree of keys that counts, and that is cheap to take a snapshot of.
//!
//! A B+tree of reference-counted nodes. A clone shares all of them; a change copies the nodes on its path that are
//! shared and changes the others in place. Each branch knows how many keys lie below each child, and how many of them
//! are live, so that counting a range costs two walks from the root.
//!
//! Invariants: `live_len <= len`; keys in a node grow; a separator is greater than every key left of it and not
//! greater than any key right of it; no node but the root of an empty tree is empty.

use std::fmt;
use std::sync::Arc;

use crate::KeyRange;

mod iter;
mod keys;
mod node;

pub use iter::TreeIter;
use keys::Keys;
pub use keys::TreeKey;
use node::{Child, Node};

/// Copy-on-write ordered tree from byte keys to `V`, where each entry is live or not and live ones are counted.
#[derive(Clone)]
pub struct CountedTree<V> {
    root: Child<V>,
}

impl<V> Default for CountedTree<V> {
    fn default() -> Self {
        Self { root: Child::empty() }
    }
}

impl<V> fmt::Debug for CountedTree<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CountedTree").field("len", &self.len()).field("live_len", &self.live_len()).finish()
    }
}

impl<V> CountedTree<V> {
    /// An empty tree.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Entries, live or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.root.len
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.root.len == 0
    }

    /// Live entries.
    #[must_use]
    pub fn live_len(&self) -> usize {
        self.root.live
    }

    /// The value of `key`, live or not.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&V> {
        self.get_entry(key).map(|(value, _)| value)
    }

    /// The value of `key` and whether it is live.
    #[must_use]
    pub fn get_entry(&self, key: &[u8]) -> Option<(&V, bool)> {
        self.root.get(key)
    }

    /// Live entries inside `range`, in O(log n).
    #[must_use]
    pub fn count_live(&self, range: &KeyRange) -> usize {
        match range {
            KeyRange::Key(key) => usize::from(self.get_entry(key).is_some_and(|(_, live)| live)),
            KeyRange::From(start) => self.live_len() - self.live_below(start),
            KeyRange::Span(start, end) if start < end => self.live_below(end) - self.live_below(start),
            KeyRange::Span(..) => 0,
        }
    }

    /// Live entries whose key is less than `key`.
    fn live_below(&self, key: &[u8]) -> usize {
        let (mut child, mut below) = (&self.root, 0);
        loop {
            match child.node.as_ref() {
                Node::Branch(branch) => {
                    let place = branch.child_of(key);
                    below += branch.children[..place].iter().map(|left| left.live).sum::<usize>();
                    child = &branch.children[place];
                }
                Node::Leaf(leaf) => {
                    let (Ok(place) | Err(place)) = leaf.find(key);
                    return below + leaf.live_before(place);
                }
            }
        }
    }

    /// Entries inside `range` in key order, live or not.
    #[must_use]
    pub fn range(&self, range: &KeyRange) -> TreeIter<'_, V> {
        TreeIter::new(&self.root, range.clone(), None, false)
    }

    /// Entries inside `range` in key order, those behind `after` only.
    #[must_use]
    pub fn range_after(&self, range: &KeyRange, after: Option<&[u8]>) -> TreeIter<'_, V> {
        TreeIter::new(&self.root, range.clone(), after, false)
    }

    /// Live entries inside `range` in key order, those behind `after` only. Steps over subtrees without a live entry.
    #[must_use]
    pub fn live_range_after(&self, range: &KeyRange, after: Option<&[u8]>) -> TreeIter<'_, V> {
        TreeIter::new(&self.root, range.clone(), after, true)
    }
}

impl<V: Clone> CountedTree<V> {
    /// Sets the value of `key` and whether it is live; returns the value that it replaces.
    pub fn insert(&mut self, key: &[u8], value: V, live: bool) -> Option<V> {
        let mut value = Some(value);
        let mut replaced = None;
        self.upsert(key, |old| match old {
            Some(old) => {
                replaced = value.take().map(|value| std::mem::replace(old, value));
                (None, live)
            }
            None => (value.take(), live),
        });
        replaced
    }

    /// Changes the value of `key` in place, or adds it. `change` gets the value that is there, if any, and returns
    /// whether the entry is live then and, when there was none, the value to add.
    ///
    /// # Panics
    /// When `change` gets `None` and returns no value.
    pub fn upsert(&mut self, key: &[u8], change: impl FnOnce(Option<&mut V>) -> (Option<V>, bool)) {
        let mut change = Some(change);
        let mut once = |old: Option<&mut V>| change.take().expect("a key has one place")(old);
        if let Some((separator, right)) = self.root.upsert(key, &mut once) {
            let left = std::mem::replace(&mut self.root, Child::empty());
            self.root = Child::branch(Keys::of(&separator), vec![left, right]);
        }
    }

    /// Sets whether `key` is live. `false` when there is no such key.
    pub fn set_live(&mut self, key: &[u8], live: bool) -> bool {
        let found = self.get_entry(key).map(|(_, is_live)| is_live);
        if found.is_some_and(|is_live| is_live != live) {
            self.upsert(key, |_| (None, live));
        }
        found.is_some()
    }

    /// The value of `key`, to be changed in place; whether it is live stays.
    pub fn get_mut(&mut self, key: &[u8]) -> Option<&mut V> {
        let mut child = &mut self.root;
        loop {
            // A missing key must not cost copies of shared nodes.
            if Arc::get_mut(&mut child.node).is_none() {
                child.get(key)?;
            }
            match Arc::make_mut(&mut child.node) {
                Node::Branch(branch) => {
                    let place = branch.child_of(key);
                    child = &mut branch.children[place];
                }
                Node::Leaf(leaf) => {
                    let place = leaf.find(key).ok()?;
                    return Some(&mut leaf.values[place]);
                }
            }
        }
    }

    /// Removes `key` and returns its value.
    pub fn remove(&mut self, key: &[u8]) -> Option<V> {
        self.get_entry(key)?;
        let (removed, _) = self.root.remove(key);
        self.root.shorten();
        Some(removed)
    }
}

#[cfg(test)]
mod tests;
