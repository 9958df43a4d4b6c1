//! Which of many key ranges contain a key: a treap ordered by start that knows the largest end of each subtree.
//!
//! Finding k ranges among n costs O(log n + k log n). Priorities come from a counter through a mixing function, so
//! that the shape depends on nothing but the order of calls and no client can choose it cheaply.

use bytes::Bytes;

/// An end of a range; `None` is behind every key.
type End = Option<Bytes>;

#[derive(Debug)]
struct Node {
    start: Bytes,
    end: End,
    value: usize,
    priority: u64,
    /// Largest end in this subtree.
    reach: End,
    left: Tree,
    right: Tree,
}

type Tree = Option<Box<Node>>;

/// Half-open ranges with a value each; a range may be there several times with different values.
#[derive(Debug, Default)]
pub(crate) struct IntervalTree {
    root: Tree,
    inserted: u64,
}

impl IntervalTree {
    pub(crate) fn insert(&mut self, start: Bytes, end: End, value: usize) {
        self.inserted += 1;
        let priority = mix(self.inserted);
        let (below, above) = split(self.root.take(), &start, value);
        let node = Node { start, reach: end.clone(), end, value, priority, left: None, right: None };
        self.root = merge(merge(below, Some(Box::new(node))), above);
    }

    pub(crate) fn remove(&mut self, start: &[u8], value: usize) {
        let (below, rest) = split(self.root.take(), start, value);
        let (found, above) = split(rest, start, value + 1);
        debug_assert!(found.as_ref().is_some_and(|n| n.left.is_none() && n.right.is_none()), "a range is there once");
        self.root = merge(below, above);
    }

    /// Calls `visit` with the value of each range that contains `key`; returns the number of nodes looked at.
    pub(crate) fn stab(&self, key: &[u8], visit: &mut impl FnMut(usize)) -> usize {
        stab(&self.root, key, visit)
    }
}

fn stab(tree: &Tree, key: &[u8], visit: &mut impl FnMut(usize)) -> usize {
    let Some(node) = tree else { return 0 };
    if !is_behind(&node.reach, key) {
        return 1;
    }
    let mut looked = 1 + stab(&node.left, key, visit);
    if node.start.as_ref() <= key {
        if is_behind(&node.end, key) {
            visit(node.value);
        }
        looked += stab(&node.right, key, visit);
    }
    looked
}

fn is_behind(end: &End, key: &[u8]) -> bool {
    end.as_ref().is_none_or(|end| key < end.as_ref())
}

fn update(mut node: Box<Node>) -> Tree {
    let mut reach = &node.end;
    for child in [&node.left, &node.right].into_iter().flatten() {
        let longer = match (reach, &child.reach) {
            (None, _) => false,
            (_, None) => true,
            (Some(a), Some(b)) => a < b,
        };
        if longer {
            reach = &child.reach;
        }
    }
    node.reach = reach.clone();
    Some(node)
}

/// Everything below (start, value), and the rest.
fn split(tree: Tree, start: &[u8], value: usize) -> (Tree, Tree) {
    let Some(mut node) = tree else { return (None, None) };
    if (node.start.as_ref(), node.value) < (start, value) {
        let (below, above) = split(node.right.take(), start, value);
        node.right = below;
        (update(node), above)
    } else {
        let (below, above) = split(node.left.take(), start, value);
        node.left = above;
        (below, update(node))
    }
}

fn merge(left: Tree, right: Tree) -> Tree {
    match (left, right) {
        (None, tree) | (tree, None) => tree,
        (Some(mut a), Some(b)) if a.priority > b.priority => {
            a.right = merge(a.right.take(), Some(b));
            update(a)
        }
        (a, Some(mut b)) => {
            b.left = merge(a, b.left.take());
            update(b)
        }
    }
}

/// The finalizer of splitmix64.
fn mix(counter: u64) -> u64 {
    let mut x = counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
