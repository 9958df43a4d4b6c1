//! The keys of a leaf, one behind the other in one piece of memory: what a key costs beside its bytes is four of them, and
//! a leaf is copied without touching each.

/// A leaf that holds more is split, so that it stays cheap to copy whatever clients call their keys.
const BYTES_MAX: usize = 64 << 10;

/// Keys in order.
///
/// Invariant: `ends` do not fall, and the last is the length of `bytes`.
#[derive(Clone, Debug, Default)]
pub(super) struct Keys {
    bytes: Vec<u8>,
    /// Where each ends; it begins where the one before ends.
    ends: Vec<u32>,
}

impl Keys {
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether `more` bytes of keys are better kept elsewhere; a leaf of one key takes another one always.
    pub(super) fn is_large_with(&self, more: usize) -> bool {
        self.len() > 1 && self.bytes.len() + more > BYTES_MAX
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    fn begin(&self, at: usize) -> usize {
        at.checked_sub(1).map_or(0, |before| self.ends[before] as usize)
    }

    pub(super) fn get(&self, at: usize) -> &[u8] {
        &self.bytes[self.begin(at)..self.ends[at] as usize]
    }

    /// The place of `key`, or where it would be.
    pub(super) fn find(&self, key: &[u8]) -> Result<usize, usize> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            match self.get(middle).cmp(key) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Ok(middle),
            }
        }
        Err(low)
    }

    pub(super) fn insert(&mut self, at: usize, key: &[u8]) {
        let begin = self.begin(at);
        // Grown by an eighth: what is left over is paid for every leaf.
        let room = self.bytes.capacity() - self.bytes.len();
        if room < key.len() {
            self.bytes.reserve_exact(key.len().max(self.bytes.len() / 8));
        }
        self.bytes.splice(begin..begin, key.iter().copied());
        self.ends.insert(at, end(begin));
        for later in &mut self.ends[at..] {
            *later = end(*later as usize + key.len());
        }
    }

    pub(super) fn remove(&mut self, at: usize) {
        let (begin, len) = (self.begin(at), self.get(at).len());
        self.bytes.drain(begin..begin + len);
        self.ends.remove(at);
        for later in &mut self.ends[at..] {
            *later = end(*later as usize - len);
        }
    }

    /// Those from `at` on; what stays takes no more memory than it needs.
    pub(super) fn split_off(&mut self, at: usize) -> Self {
        let begin = self.begin(at);
        let bytes = self.bytes.split_off(begin);
        let ends = self.ends.split_off(at).into_iter().map(|last| end(last as usize - begin)).collect();
        self.bytes.shrink_to_fit();
        self.ends.shrink_to_fit();
        Self { bytes, ends }
    }

    /// Adds keys that are greater than all here.
    pub(super) fn append(&mut self, right: &Self) {
        let begin = self.bytes.len();
        self.bytes.reserve_exact(right.bytes.len());
        self.bytes.extend_from_slice(&right.bytes);
        self.ends.extend(right.ends.iter().map(|last| end(begin + *last as usize)));
    }
}

fn end(end: usize) -> u32 {
    u32::try_from(end).expect("keys are bounded far below 4 GiB, and a leaf holds few large ones")
}
