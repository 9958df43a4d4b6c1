//! The keys of a node, one behind the other in one piece of memory and without the bytes that all of them begin with: a
//! key costs what tells it from its neighbours and four bytes, and a node is searched and copied without touching others.

use std::cmp::Ordering;

/// A leaf that holds more is split, so that it stays cheap to copy whatever clients call their keys.
const BYTES_MAX: usize = 64 << 10;

/// Keys in order.
///
/// Invariant: `ends` do not fall, and the last is the length of `bytes`.
#[derive(Clone, Debug, Default)]
pub(super) struct Keys {
    /// What each begins with.
    prefix: Box<[u8]>,
    /// What is left of each.
    bytes: Vec<u8>,
    /// Where each ends; it begins where the one before ends.
    ends: Vec<u32>,
}

/// A key of the tree.
#[derive(Clone, Copy, Debug)]
pub struct TreeKey<'a> {
    prefix: &'a [u8],
    rest: &'a [u8],
}

impl TreeKey<'_> {
    /// Its bytes.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        [self.prefix, self.rest].concat()
    }

    /// Compares it with other bytes.
    pub(super) fn order(&self, other: &[u8]) -> Ordering {
        match other.split_at_checked(self.prefix.len()) {
            Some((begin, rest)) => self.prefix.cmp(begin).then_with(|| self.rest.cmp(rest)),
            None if other == &self.prefix[..other.len()] => Ordering::Greater,
            None => self.prefix.cmp(other),
        }
    }
}

impl Keys {
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether `more` bytes of keys are better kept elsewhere; a leaf of one key takes another one always.
    pub(super) fn is_large_with(&self, more: usize) -> bool {
        self.len() > 1 && self.bytes() + more > BYTES_MAX
    }

    /// Bytes of all keys, when none is left out.
    pub(super) fn bytes(&self) -> usize {
        self.len() * self.prefix.len() + self.bytes.len()
    }

    fn begin(&self, at: usize) -> usize {
        at.checked_sub(1).map_or(0, |before| self.ends[before] as usize)
    }

    fn rest(&self, at: usize) -> &[u8] {
        &self.bytes[self.begin(at)..self.ends[at] as usize]
    }

    pub(super) fn get(&self, at: usize) -> TreeKey<'_> {
        TreeKey { prefix: &self.prefix, rest: self.rest(at) }
    }

    /// The place of `key`, or where it would be.
    pub(super) fn find(&self, key: &[u8]) -> Result<usize, usize> {
        let Some(wanted) = key.strip_prefix(&*self.prefix) else {
            return Err(if key < &*self.prefix { 0 } else { self.len() });
        };
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            match self.rest(middle).cmp(wanted) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Ok(middle),
            }
        }
        Err(low)
    }

    pub(super) fn insert(&mut self, at: usize, key: &[u8]) {
        if self.ends.is_empty() {
            self.prefix = key.into();
        }
        self.shorten_prefix(common(&self.prefix, key));
        let (begin, rest) = (self.begin(at), &key[self.prefix.len()..]);
        // Grown by an eighth: what is left over is paid for every leaf.
        let room = self.bytes.capacity() - self.bytes.len();
        if room < rest.len() {
            self.bytes.reserve_exact(rest.len().max(self.bytes.len() / 8).max(16));
        }
        self.bytes.splice(begin..begin, rest.iter().copied());
        self.ends.insert(at, end(begin));
        for later in &mut self.ends[at..] {
            *later = end(*later as usize + rest.len());
        }
    }

    pub(super) fn remove(&mut self, at: usize) {
        let (begin, len) = (self.begin(at), self.rest(at).len());
        self.bytes.drain(begin..begin + len);
        self.ends.remove(at);
        for later in &mut self.ends[at..] {
            *later = end(*later as usize - len);
        }
    }

    /// Removes one.
    pub(super) fn take(&mut self, at: usize) -> Vec<u8> {
        let key = self.get(at).to_vec();
        self.remove(at);
        key
    }

    /// The one key.
    pub(super) fn of(key: &[u8]) -> Self {
        let mut keys = Self::default();
        keys.insert(0, key);
        keys
    }

    /// Those from `at` on; what stays takes no more memory than it needs.
    pub(super) fn split_off(&mut self, at: usize) -> Self {
        let right = self.copy(at, self.len());
        *self = self.copy(0, at);
        right
    }

    /// Adds keys that are greater than all here.
    pub(super) fn append(&mut self, right: &Self) {
        let mut all = self.copy(0, self.len());
        for at in 0..right.len() {
            all.insert(all.len(), &right.get(at).to_vec());
        }
        *self = all;
    }

    /// Some of them, with all that they have in common as their prefix.
    fn copy(&self, from: usize, to: usize) -> Self {
        if from == to {
            return Self::default();
        }
        // In order, so what the first and the last have in common is in all.
        let more = common(self.rest(from), self.rest(to - 1));
        let prefix = [&self.prefix, &self.rest(from)[..more]].concat().into();
        let bytes = self.ends[to - 1] as usize - self.begin(from) - (to - from) * more;
        let mut copy = Self { prefix, bytes: Vec::with_capacity(bytes), ends: Vec::with_capacity(to - from) };
        for at in from..to {
            copy.bytes.extend_from_slice(&self.rest(at)[more..]);
            copy.ends.push(end(copy.bytes.len()));
        }
        copy
    }

    fn shorten_prefix(&mut self, len: usize) {
        if len == self.prefix.len() {
            return;
        }
        let more = self.prefix[len..].to_vec();
        let mut bytes = Vec::with_capacity(self.bytes.len() + self.len() * more.len());
        for at in 0..self.len() {
            bytes.extend_from_slice(&more);
            bytes.extend_from_slice(self.rest(at));
        }
        for (at, last) in self.ends.iter_mut().enumerate() {
            *last = end(*last as usize + (at + 1) * more.len());
        }
        self.bytes = bytes;
        self.prefix = self.prefix[..len].into();
    }
}

/// How many bytes two keys begin alike.
fn common(one: &[u8], other: &[u8]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}

fn end(end: usize) -> u32 {
    u32::try_from(end).expect("keys are bounded far below 4 GiB, and a leaf holds few large ones")
}
