//! The nodes of the tree, and how they split and merge.

use std::sync::Arc;

use super::keys::Keys;

/// Entries of a leaf, and children of a branch. A leaf keeps its live flags in one 64-bit word.
pub(super) const WIDTH_MAX: usize = 64;
/// A node that gets narrower tries to merge with a neighbour.
const WIDTH_MIN: usize = 16;
/// Two neighbours merge only up to this, so that the next insert does not split them again.
const MERGED_MAX: usize = 48;

pub(super) type Key = Vec<u8>;
/// See [`super::CountedTree::upsert`]; called once.
type Change<'a, V> = dyn FnMut(Option<&mut V>) -> (Option<V>, bool) + 'a;

/// A node and what lies below it.
pub(super) struct Child<V> {
    pub(super) node: Arc<Node<V>>,
    pub(super) len: usize,
    pub(super) live: usize,
}

impl<V> Clone for Child<V> {
    fn clone(&self) -> Self {
        Self { node: Arc::clone(&self.node), len: self.len, live: self.live }
    }
}

#[derive(Clone)]
pub(super) enum Node<V> {
    Leaf(Leaf<V>),
    Branch(Branch<V>),
}

#[derive(Clone)]
pub(super) struct Leaf<V> {
    pub(super) keys: Keys,
    pub(super) values: Vec<V>,
    /// Bit i: whether entry i is live. Bits behind the last entry are 0.
    live: u64,
}

#[derive(Clone)]
pub(super) struct Branch<V> {
    /// One less than children, in one piece of memory: a search touches no other, and a copy is one.
    separators: Keys,
    pub(super) children: Vec<Child<V>>,
}

/// The low `count` bits.
fn low_bits(count: usize) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

impl<V> Leaf<V> {
    pub(super) fn find(&self, key: &[u8]) -> Result<usize, usize> {
        self.keys.find(key)
    }

    pub(super) fn is_live(&self, place: usize) -> bool {
        self.live >> place & 1 == 1
    }

    pub(super) fn live_before(&self, place: usize) -> usize {
        (self.live & low_bits(place)).count_ones() as usize
    }

    fn set_live(&mut self, place: usize, live: bool) {
        self.live = self.live & !(1 << place) | u64::from(live) << place;
    }

    fn insert_at(&mut self, place: usize, key: &[u8], value: V, live: bool) {
        self.keys.insert(place, key);
        self.values.insert(place, value);
        let low = low_bits(place);
        self.live = self.live & low | (self.live & !low) << 1;
        self.set_live(place, live);
    }

    fn remove_at(&mut self, place: usize) -> (V, bool) {
        let was_live = self.is_live(place);
        self.keys.remove(place);
        let low = low_bits(place);
        self.live = self.live & low | self.live >> 1 & !low;
        (self.values.remove(place), was_live)
    }

    fn split_off(&mut self, at: usize) -> Self {
        let bits = u32::try_from(at).expect("at most the width of a leaf");
        let right = Self {
            keys: self.keys.split_off(at),
            values: self.values.split_off(at),
            live: self.live.checked_shr(bits).unwrap_or(0),
        };
        self.live &= low_bits(at);
        self.values.shrink_to_fit();
        right
    }
}

impl<V> Branch<V> {
    /// The child below which `key` is or would be.
    pub(super) fn child_of(&self, key: &[u8]) -> usize {
        match self.separators.find(key) {
            Ok(place) => place + 1,
            Err(place) => place,
        }
    }

    fn split_off(&mut self, at: usize) -> (Key, Self) {
        let right = Self { separators: self.separators.split_off(at), children: self.children.split_off(at) };
        // The one before the split parts the two.
        (self.separators.take(self.separators.len() - 1), right)
    }

    fn remove_child(&mut self, place: usize) {
        self.children.remove(place);
        self.separators.remove(place.saturating_sub(1));
    }
}

impl<V> Child<V> {
    pub(super) fn empty() -> Self {
        Self::leaf(Leaf { keys: Keys::default(), values: Vec::new(), live: 0 })
    }

    fn leaf(leaf: Leaf<V>) -> Self {
        let (len, live) = (leaf.keys.len(), leaf.live.count_ones() as usize);
        Self { node: Arc::new(Node::Leaf(leaf)), len, live }
    }

    pub(super) fn branch(separators: Keys, children: Vec<Self>) -> Self {
        let len = children.iter().map(|child| child.len).sum();
        let live = children.iter().map(|child| child.live).sum();
        Self { node: Arc::new(Node::Branch(Branch { separators, children })), len, live }
    }

    /// The value of a key at or below this node, and whether it is live.
    pub(super) fn get(&self, key: &[u8]) -> Option<(&V, bool)> {
        let mut child = self;
        loop {
            match child.node.as_ref() {
                Node::Branch(branch) => child = &branch.children[branch.child_of(key)],
                Node::Leaf(leaf) => {
                    let place = leaf.find(key).ok()?;
                    return Some((&leaf.values[place], leaf.is_live(place)));
                }
            }
        }
    }

    /// Whether the two are leaves whose keys are better kept apart.
    fn is_large_with(&self, other: &Self) -> bool {
        match (self.node.as_ref(), other.node.as_ref()) {
            (Node::Leaf(one), Node::Leaf(other)) => one.keys.is_large_with(other.keys.bytes()),
            _ => false,
        }
    }

    fn width(&self) -> usize {
        match self.node.as_ref() {
            Node::Leaf(leaf) => leaf.keys.len(),
            Node::Branch(branch) => branch.children.len(),
        }
    }
}

impl<V: Clone> Child<V> {
    /// Changes or adds an entry; returns what was split off to the right, with its separator.
    pub(super) fn upsert(&mut self, key: &[u8], change: &mut Change<'_, V>) -> Option<(Key, Self)> {
        let split = match Arc::make_mut(&mut self.node) {
            Node::Leaf(leaf) => upsert_leaf(leaf, key, change),
            Node::Branch(branch) => upsert_branch(branch, key, change),
        };
        self.recount();
        split
    }

    /// Removes the entry of `key`, which must be there.
    pub(super) fn remove(&mut self, key: &[u8]) -> (V, bool) {
        let removed = match Arc::make_mut(&mut self.node) {
            Node::Leaf(leaf) => leaf.remove_at(leaf.find(key).expect("the caller has looked the key up")),
            Node::Branch(branch) => {
                let place = branch.child_of(key);
                let removed = branch.children[place].remove(key);
                mend(branch, place);
                removed
            }
        };
        self.len -= 1;
        self.live -= usize::from(removed.1);
        removed
    }

    /// Takes away root branches that have a single child, or nothing below them.
    pub(super) fn shorten(&mut self) {
        if self.len == 0 {
            *self = Self::empty();
        }
        while let Node::Branch(branch) = self.node.as_ref() {
            let [only] = branch.children.as_slice() else { return };
            *self = only.clone();
        }
    }

    fn recount(&mut self) {
        (self.len, self.live) = match self.node.as_ref() {
            Node::Leaf(leaf) => (leaf.keys.len(), leaf.live.count_ones() as usize),
            Node::Branch(branch) => {
                branch.children.iter().fold((0, 0), |(len, live), child| (len + child.len, live + child.live))
            }
        };
    }
}

fn upsert_leaf<V>(leaf: &mut Leaf<V>, key: &[u8], change: &mut Change<'_, V>) -> Option<(Key, Child<V>)> {
    let place = match leaf.find(key) {
        Ok(place) => {
            let (_, live) = change(Some(&mut leaf.values[place]));
            leaf.set_live(place, live);
            return None;
        }
        Err(place) => place,
    };
    let (value, live) = change(None);
    let value = value.expect("a missing key needs a value to be added");
    let width = leaf.keys.len();
    if width < WIDTH_MAX && !leaf.keys.is_large_with(key.len()) {
        leaf.insert_at(place, key, value, live);
        return None;
    }
    // Keys that come in order leave full leaves behind them; others leave halves.
    let at = if place == width { width } else { width / 2 };
    let mut right = leaf.split_off(at);
    if place >= at {
        right.insert_at(place - at, key, value, live);
    } else {
        leaf.insert_at(place, key, value, live);
    }
    Some((right.keys.get(0).to_vec(), Child::leaf(right)))
}

fn upsert_branch<V: Clone>(branch: &mut Branch<V>, key: &[u8], change: &mut Change<'_, V>) -> Option<(Key, Child<V>)> {
    let place = branch.child_of(key);
    let (separator, child) = branch.children[place].upsert(key, change)?;
    branch.separators.insert(place, &separator);
    branch.children.insert(place + 1, child);
    if branch.children.len() <= WIDTH_MAX {
        return None;
    }
    let at = if place + 2 == branch.children.len() { WIDTH_MAX } else { WIDTH_MAX / 2 };
    let (separator, right) = branch.split_off(at);
    Some((separator, Child::branch(right.separators, right.children)))
}

/// After a removal below child `place`: drops it when it is empty, or merges it with a neighbour when both are narrow.
fn mend<V: Clone>(branch: &mut Branch<V>, place: usize) {
    if branch.children.len() == 1 {
        return;
    }
    if branch.children[place].len == 0 {
        branch.remove_child(place);
        return;
    }
    if branch.children[place].width() >= WIDTH_MIN {
        return;
    }
    let left = place.saturating_sub(1);
    let (one, other) = (&branch.children[left], &branch.children[left + 1]);
    if one.width() + other.width() > MERGED_MAX || one.is_large_with(other) {
        return;
    }
    let right = branch.children.remove(left + 1);
    let separator = branch.separators.take(left);
    merge(&mut branch.children[left], &separator, right);
}

fn merge<V: Clone>(left: &mut Child<V>, separator: &[u8], right: Child<V>) {
    let right_node = Arc::unwrap_or_clone(right.node);
    match (Arc::make_mut(&mut left.node), right_node) {
        (Node::Leaf(left), Node::Leaf(right)) => {
            left.live |= right.live << left.keys.len();
            left.keys.append(&right.keys);
            left.values.extend(right.values);
        }
        (Node::Branch(left), Node::Branch(right)) => {
            left.separators.insert(left.separators.len(), separator);
            left.separators.append(&right.separators);
            left.children.extend(right.children);
        }
        _ => unreachable!("neighbours have equal height"),
    }
    left.len += right.len;
    left.live += right.live;
}
