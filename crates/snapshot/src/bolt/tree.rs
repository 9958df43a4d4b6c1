//! One B+ tree from rows in order: leaves leave as they fill, and above them one open branch per level is kept.
//!
//! Where a leaf ends depends on the lengths of keys and values only, so a pass over lengths ([`Pages`] that only
//! count) and a pass over the rows give the same pages under the same ids. Invariants of what comes out, which bbolt
//! relies on when it later changes the file: a branch has at least two children, and no leaf but an empty root is empty.

use std::io;

use super::page::{ELEMENT_BYTES, HEADER_BYTES, KEY_BYTES_MAX, PAGE_BYTES, PageId, VALUE_BYTES_MAX};

/// Why a file is not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The sink failed.
    #[error("writing the snapshot: {0}")]
    Sink(#[from] io::Error),
    /// A key is empty, or longer than bbolt takes.
    #[error("a key of {bytes} bytes: bbolt takes 1 to {KEY_BYTES_MAX}")]
    KeyLength {
        /// The key's length.
        bytes: usize,
    },
    /// A value is longer than bbolt takes.
    #[error("a value of {bytes} bytes: bbolt takes up to {VALUE_BYTES_MAX}")]
    ValueLength {
        /// The value's length.
        bytes: usize,
    },
    /// A row does not come behind the one before it in its bucket.
    #[error("key {key:02x?} is not above the key before it")]
    OutOfOrder {
        /// The row's key.
        key: Vec<u8>,
    },
    /// Two buckets of one name.
    #[error("bucket {name:?} was written already")]
    BucketTwice {
        /// The bucket's name.
        name: String,
    },
    /// The rows differ from those that were planned: the first pass found another number of pages.
    #[error("the plan has {planned} pages, the rows take {written}")]
    NotAsPlanned {
        /// Pages of the plan.
        planned: u64,
        /// Pages of the rows, or as many as were counted when the plan was exceeded.
        written: u64,
    },
}

/// Where finished pages go. Ids are given in the order of the calls.
pub(crate) trait Pages {
    /// Takes a leaf that covers `pages` pages.
    fn leaf(&mut self, leaf: &Leaf, pages: usize) -> Result<PageId, WriteError>;
    /// Takes a branch that covers `pages` pages.
    fn branch(&mut self, entries: &[Entry], pages: usize) -> Result<PageId, WriteError>;
}

/// A leaf that is being filled.
#[derive(Debug, Default)]
pub(crate) struct Leaf {
    /// Flags, key length and value length of each row.
    pub(crate) rows: Vec<(u32, usize, usize)>,
    /// Keys and values, one behind the other; of a pass that counts, nothing.
    pub(crate) data: Vec<u8>,
    first_key: Vec<u8>,
    bytes: usize,
}

/// A child of a branch.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: Vec<u8>,
    pub(crate) child: PageId,
}

/// The value of a row, or in a pass that counts, its length.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value<'a> {
    Bytes(&'a [u8]),
    Length(usize),
}

impl Value<'_> {
    pub(crate) fn len(self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Length(bytes) => bytes,
        }
    }
}

/// Pages that `bytes` take.
pub(crate) fn pages_of(bytes: usize) -> usize {
    bytes.div_ceil(PAGE_BYTES)
}

impl Leaf {
    /// Bytes of the page without padding.
    pub(crate) fn page_bytes(&self) -> usize {
        HEADER_BYTES + self.bytes
    }

    /// Whether a row of `bytes` goes into this leaf.
    ///
    /// Fills the pages that the leaf takes anyway. Beyond that, two rows of less than a page may share an overflow
    /// page: rows of a little more than half a page would otherwise leave almost half of the file empty.
    fn takes(&self, bytes: usize) -> bool {
        let filled = self.page_bytes();
        filled + bytes <= pages_of(filled) * PAGE_BYTES
            || self.rows.len() == 1 && filled <= PAGE_BYTES && bytes <= PAGE_BYTES
    }

    fn push(&mut self, flags: u32, key: &[u8], value: Value<'_>) {
        if self.rows.is_empty() {
            self.first_key.clear();
            self.first_key.extend_from_slice(key);
        }
        self.rows.push((flags, key.len(), value.len()));
        self.bytes += ELEMENT_BYTES + key.len() + value.len();
        if let Value::Bytes(value) = value {
            self.data.extend_from_slice(key);
            self.data.extend_from_slice(value);
        }
    }

    fn clear(&mut self) {
        self.rows.clear();
        self.data.clear();
        self.bytes = 0;
    }
}

/// The open branch of one level: what fits into its page, and up to one entry more, so that the page behind it never
/// begins with less than two.
#[derive(Debug, Default)]
struct Level {
    entries: Vec<Entry>,
    /// How many of them go into the first page.
    fitting: usize,
    /// Bytes of those, without the header.
    fitting_bytes: usize,
}

impl Level {
    /// Takes an entry, and gives out those of a full page.
    fn push(&mut self, entry: Entry) -> Option<Vec<Entry>> {
        let had = self.entries.len();
        self.entries.push(entry);
        if self.fitting == had {
            self.extend();
        }
        if self.entries.len() - self.fitting < 2 {
            return None;
        }
        let rest = self.entries.split_off(self.fitting);
        let full = std::mem::replace(&mut self.entries, rest);
        (self.fitting, self.fitting_bytes) = (0, 0);
        while self.fitting < self.entries.len() {
            self.extend();
        }
        Some(full)
    }

    /// Counts the next entry as fitting, if it is.
    fn extend(&mut self) {
        let bytes = ELEMENT_BYTES + self.entries[self.fitting].key.len();
        if self.fitting < 2 || HEADER_BYTES + self.fitting_bytes + bytes <= PAGE_BYTES {
            self.fitting += 1;
            self.fitting_bytes += bytes;
        }
    }

    /// The last one or two pages of this level.
    fn finish(mut self) -> Vec<Vec<Entry>> {
        // One entry alone is no branch: it takes another along, or three stay together.
        if self.entries.len() - self.fitting == 1 && self.fitting > 2 {
            let last = self.entries.split_off(self.fitting - 1);
            return vec![self.entries, last];
        }
        vec![self.entries]
    }
}

/// A tree whose rows are still coming.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    leaf: Leaf,
    levels: Vec<Level>,
    last_key: Vec<u8>,
}

/// What a finished tree is.
#[derive(Debug)]
pub(crate) enum Finished {
    /// Pages that have left.
    Root(PageId),
    /// One leaf so small that it belongs into the bucket's value; it has not left.
    Inline(Leaf),
}

/// A bucket goes inline up to this size of its only leaf, as bbolt has it.
pub(crate) const INLINE_BYTES_MAX: usize = PAGE_BYTES / 4;

impl Tree {
    /// Adds the next row.
    pub(crate) fn put(
        &mut self,
        flags: u32,
        key: &[u8],
        value: Value<'_>,
        pages: &mut impl Pages,
    ) -> Result<(), WriteError> {
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Err(WriteError::KeyLength { bytes: key.len() });
        }
        if value.len() > VALUE_BYTES_MAX {
            return Err(WriteError::ValueLength { bytes: value.len() });
        }
        if key <= self.last_key.as_slice() {
            return Err(WriteError::OutOfOrder { key: key.to_vec() });
        }
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        if !self.leaf.rows.is_empty() && !self.leaf.takes(ELEMENT_BYTES + key.len() + value.len()) {
            self.close_leaf(pages)?;
        }
        self.leaf.push(flags, key, value);
        Ok(())
    }

    fn close_leaf(&mut self, pages: &mut impl Pages) -> Result<(), WriteError> {
        let child = pages.leaf(&self.leaf, pages_of(self.leaf.page_bytes()))?;
        let key = std::mem::take(&mut self.leaf.first_key);
        self.leaf.clear();
        self.push(0, Entry { key, child }, pages)
    }

    fn push(&mut self, mut level: usize, mut entry: Entry, pages: &mut impl Pages) -> Result<(), WriteError> {
        loop {
            if level == self.levels.len() {
                self.levels.push(Level::default());
            }
            let Some(full) = self.levels[level].push(entry) else { return Ok(()) };
            entry = close_branch(full, pages)?;
            level += 1;
        }
    }

    /// Sends the rest out. With `may_inline`, a tree of one small leaf is handed back instead.
    pub(crate) fn finish(mut self, may_inline: bool, pages: &mut impl Pages) -> Result<Finished, WriteError> {
        if self.levels.is_empty() {
            if may_inline && self.leaf.page_bytes() <= INLINE_BYTES_MAX {
                return Ok(Finished::Inline(self.leaf));
            }
            let page_count = pages_of(self.leaf.page_bytes());
            return Ok(Finished::Root(pages.leaf(&self.leaf, page_count)?));
        }
        self.close_leaf(pages)?;
        let mut level = 0;
        loop {
            let mut open = std::mem::take(&mut self.levels[level]);
            let is_top = level + 1 == self.levels.len();
            if is_top && open.entries.len() == 1 {
                return Ok(Finished::Root(open.entries.remove(0).child));
            }
            for full in open.finish() {
                let entry = close_branch(full, pages)?;
                self.push(level + 1, entry, pages)?;
            }
            level += 1;
        }
    }
}

fn close_branch(mut entries: Vec<Entry>, pages: &mut impl Pages) -> Result<Entry, WriteError> {
    let bytes = HEADER_BYTES + entries.iter().map(|entry| ELEMENT_BYTES + entry.key.len()).sum::<usize>();
    let child = pages.branch(&entries, pages_of(bytes))?;
    Ok(Entry { key: std::mem::take(&mut entries[0].key), child })
}
