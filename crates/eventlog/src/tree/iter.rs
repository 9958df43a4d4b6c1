//! Iteration in key order.

use super::keys::TreeKey;
use super::node::{Branch, Child, Leaf, Node};
use crate::KeyRange;

/// Entries in key order: key, value, and whether the entry is live.
pub struct TreeIter<'a, V> {
    /// Branches from the root down, each with the child that comes next.
    path: Vec<(&'a Branch<V>, usize)>,
    /// The leaf being read, and the entry that comes next.
    leaf: Option<(&'a Leaf<V>, usize)>,
    range: KeyRange,
    live_only: bool,
}

impl<'a, V> TreeIter<'a, V> {
    pub(super) fn new(root: &'a Child<V>, range: KeyRange, after: Option<&[u8]>, live_only: bool) -> Self {
        let mut iter = Self { path: Vec::new(), leaf: None, range, live_only };
        if iter.range.is_empty() {
            return iter;
        }
        let after = after.filter(|after| iter.range.start().as_ref() <= *after);
        let start = after.unwrap_or(iter.range.start()).to_vec();
        let mut child = root;
        loop {
            match child.node.as_ref() {
                Node::Branch(branch) => {
                    let place = branch.child_of(&start);
                    iter.path.push((branch, place + 1));
                    child = &branch.children[place];
                }
                Node::Leaf(leaf) => {
                    let place = match leaf.find(&start) {
                        Ok(place) => place + usize::from(after.is_some()),
                        Err(place) => place,
                    };
                    iter.leaf = Some((leaf, place));
                    return iter;
                }
            }
        }
    }

    /// Goes to the next leaf that may hold something wanted.
    fn next_leaf(&mut self) -> Option<(&'a Leaf<V>, usize)> {
        loop {
            let (branch, place) = self.path.last_mut()?;
            let branch: &'a Branch<V> = branch;
            let Some(child) = branch.children.get(*place) else {
                self.path.pop();
                continue;
            };
            *place += 1;
            if self.live_only && child.live == 0 {
                continue;
            }
            match child.node.as_ref() {
                Node::Branch(below) => self.path.push((below, 0)),
                Node::Leaf(leaf) => return Some((leaf, 0)),
            }
        }
    }
}

impl<'a, V> Iterator for TreeIter<'a, V> {
    type Item = (TreeKey<'a>, &'a V, bool);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (leaf, place) = self.leaf?;
            if place >= leaf.keys.len() {
                self.leaf = self.next_leaf();
                continue;
            }
            let key = leaf.keys.get(place);
            if ends_before(&self.range, key) {
                self.leaf = None;
                return None;
            }
            self.leaf = Some((leaf, place + 1));
            let live = leaf.is_live(place);
            if live || !self.live_only {
                return Some((key, &leaf.values[place], live));
            }
        }
    }
}

/// See [`KeyRange::ends_before`].
fn ends_before(range: &KeyRange, key: TreeKey<'_>) -> bool {
    match range {
        KeyRange::Key(only) => key.order(only).is_gt(),
        KeyRange::Span(_, end) => key.order(end).is_ge(),
        KeyRange::From(_) => false,
    }
}
