//! A bbolt file in one stream, its size known before the first byte.
//!
//! bbolt's metas are at the front and name the root page and the count of pages, which are known only at the end. So
//! rows pass twice: first their lengths through a [`BoltPlanner`], then the rows themselves through a [`BoltWriter`]
//! that has the plan. Both are the same code with another destination for pages, so the plan is exact, and a reader of
//! the stream can be told how much is still to come. The alternatives lose: a spool file costs as much disk as the
//! database and a second pass anyway (for its checksum), and a generous guess in the metas, with the difference as
//! free pages, makes files up to twice as large.
//!
//! Layout: metas in pages 0 and 1, an empty freelist in page 2 (so that bbolt need not scan the file when it opens it),
//! then pages as they fill, the root bucket last. Leaves are filled to the brim: whoever restores such a file appends
//! to the large bucket and deletes from it, but inserts nowhere in its middle.

use std::collections::BTreeMap;
use std::io::{self, Write};

use sha2::{Digest, Sha256};

use super::page::{
    BUCKET_BYTES, BUCKET_FLAG, BranchElement, ELEMENT_BYTES, HEADER_BYTES, Header, Kind, LeafElement, Meta, PAGE_BYTES,
    PageId,
};
use super::tree::{Entry, Finished, Leaf, Pages, Tree, Value, WriteError};

/// Metas and freelist.
const FRONT_PAGES: u64 = 3;
const FREELIST: PageId = PageId(2);

/// What a first pass over the lengths of all rows has found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BoltPlan {
    root: PageId,
    pages: u64,
}

impl BoltPlan {
    /// Bytes of the file, without a trailer.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.pages * PAGE_BYTES as u64
    }
}

/// The first pass: lengths in, [`BoltPlan`] out. Calls come in the order in which [`BoltWriter`] will get them.
#[derive(Debug, Default)]
pub struct BoltPlanner {
    file: FileBuilder,
    pages: CountedPages,
}

impl BoltPlanner {
    /// Ends the bucket before, and begins bucket `name`. Buckets may come in any order.
    ///
    /// # Errors
    /// [`WriteError::BucketTwice`] and [`WriteError::KeyLength`].
    pub fn bucket(&mut self, name: &[u8]) -> Result<(), WriteError> {
        self.file.bucket(name, &mut self.pages)
    }

    /// Adds a row with a value of `value_bytes` to the bucket that was begun last.
    ///
    /// # Errors
    /// [`WriteError::KeyLength`], [`WriteError::ValueLength`] and [`WriteError::OutOfOrder`].
    ///
    /// # Panics
    /// When no bucket was begun.
    pub fn put(&mut self, key: &[u8], value_bytes: usize) -> Result<(), WriteError> {
        self.file.put(key, Value::Length(value_bytes), &mut self.pages)
    }

    /// Ends the pass.
    ///
    /// # Errors
    /// None of its own; the type is shared with the other calls.
    pub fn finish(mut self) -> Result<BoltPlan, WriteError> {
        let root = self.file.finish(&mut self.pages)?;
        Ok(BoltPlan { root, pages: self.pages.next() })
    }
}

/// The second pass: writes each page to `sink` as soon as it is full.
///
/// Memory: one leaf (two pages, or one row when that is longer), one branch per level of the tree, and a bucket's name
/// and root for each bucket. The sink gets whole pages, so it needs no buffer of its own for speed.
#[derive(Debug)]
pub struct BoltWriter<W> {
    file: FileBuilder,
    pages: WrittenPages<W>,
}

impl<W: Write> BoltWriter<W> {
    /// Writes what is known now: metas and freelist.
    ///
    /// # Errors
    /// [`WriteError::Sink`].
    pub fn new(sink: W, plan: BoltPlan) -> Result<Self, WriteError> {
        let mut pages = WrittenPages { sink, plan, next: FRONT_PAGES, digest: Sha256::new(), page: Vec::new() };
        pages.front()?;
        Ok(Self { file: FileBuilder::default(), pages })
    }

    /// Ends the bucket before, and begins bucket `name`.
    ///
    /// # Errors
    /// As [`BoltPlanner::bucket`], [`WriteError::Sink`] and [`WriteError::NotAsPlanned`].
    pub fn bucket(&mut self, name: &[u8]) -> Result<(), WriteError> {
        self.file.bucket(name, &mut self.pages)
    }

    /// Adds a row to the bucket that was begun last.
    ///
    /// # Errors
    /// As [`BoltPlanner::put`], [`WriteError::Sink`] and [`WriteError::NotAsPlanned`].
    ///
    /// # Panics
    /// When no bucket was begun.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), WriteError> {
        self.file.put(key, Value::Bytes(value), &mut self.pages)
    }

    /// Writes the rest. The sink is not flushed.
    ///
    /// Returns the sink and the SHA-256 of everything that went to it.
    ///
    /// # Errors
    /// [`WriteError::Sink`], and [`WriteError::NotAsPlanned`] when the rows were others than those of the plan.
    pub fn finish(mut self) -> Result<(W, [u8; 32]), WriteError> {
        let root = self.file.finish(&mut self.pages)?;
        let WrittenPages { sink, plan, next, digest, .. } = self.pages;
        if (BoltPlan { root, pages: next }) != plan {
            return Err(WriteError::NotAsPlanned { planned: plan.pages, written: next });
        }
        Ok((sink, digest.finalize().into()))
    }
}

/// Either pass, for code that runs in both.
pub(crate) trait Pass {
    fn bucket(&mut self, name: &[u8]) -> Result<(), WriteError>;
    fn row(&mut self, key: &[u8], value: Value<'_>) -> Result<(), WriteError>;
}

impl Pass for BoltPlanner {
    fn bucket(&mut self, name: &[u8]) -> Result<(), WriteError> {
        self.bucket(name)
    }

    fn row(&mut self, key: &[u8], value: Value<'_>) -> Result<(), WriteError> {
        self.put(key, value.len())
    }
}

impl<W: Write> Pass for BoltWriter<W> {
    fn bucket(&mut self, name: &[u8]) -> Result<(), WriteError> {
        self.bucket(name)
    }

    fn row(&mut self, key: &[u8], value: Value<'_>) -> Result<(), WriteError> {
        let Value::Bytes(value) = value else { unreachable!("the second pass has the rows themselves") };
        self.put(key, value)
    }
}

/// The buckets of a file; the pages go to whom the caller names in each call.
#[derive(Debug, Default)]
struct FileBuilder {
    open: Option<(Vec<u8>, Tree)>,
    done: BTreeMap<Vec<u8>, Finished>,
}

impl FileBuilder {
    fn bucket(&mut self, name: &[u8], pages: &mut impl Pages) -> Result<(), WriteError> {
        self.close(pages)?;
        if self.done.contains_key(name) {
            return Err(WriteError::BucketTwice { name: String::from_utf8_lossy(name).into_owned() });
        }
        self.open = Some((name.to_vec(), Tree::default()));
        Ok(())
    }

    fn put(&mut self, key: &[u8], value: Value<'_>, pages: &mut impl Pages) -> Result<(), WriteError> {
        let (_, tree) = self.open.as_mut().expect("the caller begins a bucket before it puts a row");
        tree.put(0, key, value, pages)
    }

    fn close(&mut self, pages: &mut impl Pages) -> Result<(), WriteError> {
        if let Some((name, tree)) = self.open.take() {
            let finished = tree.finish(true, pages)?;
            self.done.insert(name, finished);
        }
        Ok(())
    }

    fn finish(&mut self, pages: &mut impl Pages) -> Result<PageId, WriteError> {
        self.close(pages)?;
        let mut root = Tree::default();
        for (name, bucket) in std::mem::take(&mut self.done) {
            let value = match &bucket {
                Finished::Root(page) => bucket_value(*page),
                Finished::Inline(leaf) => inline_value(leaf),
            };
            root.put(BUCKET_FLAG, &name, Value::Bytes(&value), pages)?;
        }
        match root.finish(false, pages)? {
            Finished::Root(page) => Ok(page),
            Finished::Inline(_) => unreachable!("the root bucket was not asked to be inline"),
        }
    }
}

fn bucket_value(root: PageId) -> Vec<u8> {
    let mut value = vec![0; BUCKET_BYTES];
    value[..8].copy_from_slice(&root.0.to_le_bytes());
    value
}

/// A bucket with its only page in it. A leaf whose values were only counted gives as many bytes, all 0 in their place.
fn inline_value(leaf: &Leaf) -> Vec<u8> {
    let mut value = bucket_value(PageId(0));
    encode_leaf(leaf, PageId(0), 1, &mut value);
    value.resize(BUCKET_BYTES + leaf.page_bytes(), 0);
    value
}

/// Pages that only need ids.
#[derive(Debug, Default)]
struct CountedPages {
    taken: u64,
}

impl CountedPages {
    fn next(&self) -> u64 {
        FRONT_PAGES + self.taken
    }

    fn take(&mut self, pages: usize) -> PageId {
        let id = PageId(self.next());
        self.taken += pages as u64;
        id
    }
}

impl Pages for CountedPages {
    fn leaf(&mut self, _: &Leaf, pages: usize) -> Result<PageId, WriteError> {
        Ok(self.take(pages))
    }

    fn branch(&mut self, _: &[Entry], pages: usize) -> Result<PageId, WriteError> {
        Ok(self.take(pages))
    }
}

/// Pages that go to a sink.
#[derive(Debug)]
struct WrittenPages<W> {
    sink: W,
    plan: BoltPlan,
    next: u64,
    digest: Sha256,
    /// The page that leaves next.
    page: Vec<u8>,
}

impl<W: Write> WrittenPages<W> {
    fn front(&mut self) -> Result<(), WriteError> {
        for id in 0..2 {
            let header = Header { id: PageId(id), kind: Kind::Meta, count: 0, overflow: 0 };
            let meta = Meta {
                page_bytes: u32::try_from(PAGE_BYTES).expect("a small constant"),
                root: self.plan.root,
                freelist: FREELIST,
                pages: self.plan.pages,
                // Both say the same; the next commit has number 2 and goes to page 0.
                transaction: id,
            };
            self.page.extend_from_slice(&header.encode());
            self.page.extend_from_slice(&meta.encode());
            self.send(1)?;
        }
        let header = Header { id: FREELIST, kind: Kind::Freelist, count: 0, overflow: 0 };
        self.page.extend_from_slice(&header.encode());
        Ok(self.send(1)?)
    }

    /// Sends what is in `page`, padded to `pages` pages.
    fn send(&mut self, pages: usize) -> io::Result<()> {
        self.page.resize(pages * PAGE_BYTES, 0);
        self.digest.update(&self.page);
        self.sink.write_all(&self.page)?;
        self.page.clear();
        Ok(())
    }

    fn take(&mut self, pages: usize) -> Result<PageId, WriteError> {
        let id = PageId(self.next);
        self.next += pages as u64;
        // Told before more bytes leave than were announced.
        if self.next > self.plan.pages {
            return Err(WriteError::NotAsPlanned { planned: self.plan.pages, written: self.next });
        }
        Ok(id)
    }
}

impl<W: Write> Pages for WrittenPages<W> {
    fn leaf(&mut self, leaf: &Leaf, pages: usize) -> Result<PageId, WriteError> {
        let id = self.take(pages)?;
        encode_leaf(leaf, id, pages, &mut self.page);
        self.send(pages)?;
        Ok(id)
    }

    fn branch(&mut self, entries: &[Entry], pages: usize) -> Result<PageId, WriteError> {
        let id = self.take(pages)?;
        encode_branch(entries, id, pages, &mut self.page);
        self.send(pages)?;
        Ok(id)
    }
}

/// A page's count or length as its field has it. The tree ends a page long before a field is full.
fn field<T: TryFrom<usize>>(value: usize) -> T {
    T::try_from(value).unwrap_or_else(|_| panic!("{value} does not fit into a page's field"))
}

fn encode_leaf(leaf: &Leaf, id: PageId, pages: usize, out: &mut Vec<u8>) {
    let header = Header { id, kind: Kind::Leaf, count: field(leaf.rows.len()), overflow: field(pages - 1) };
    out.extend_from_slice(&header.encode());
    let mut data_at = HEADER_BYTES + leaf.rows.len() * ELEMENT_BYTES;
    for (index, &(flags, key_bytes, value_bytes)) in leaf.rows.iter().enumerate() {
        let offset = field(data_at - HEADER_BYTES - index * ELEMENT_BYTES);
        let element = LeafElement { flags, offset, key_bytes: field(key_bytes), value_bytes: field(value_bytes) };
        out.extend_from_slice(&element.encode());
        data_at += key_bytes + value_bytes;
    }
    out.extend_from_slice(&leaf.data);
}

fn encode_branch(entries: &[Entry], id: PageId, pages: usize, out: &mut Vec<u8>) {
    let header = Header { id, kind: Kind::Branch, count: field(entries.len()), overflow: field(pages - 1) };
    out.extend_from_slice(&header.encode());
    let mut data_at = HEADER_BYTES + entries.len() * ELEMENT_BYTES;
    for (index, entry) in entries.iter().enumerate() {
        let offset = field(data_at - HEADER_BYTES - index * ELEMENT_BYTES);
        let element = BranchElement { offset, key_bytes: field(entry.key.len()), child: entry.child };
        out.extend_from_slice(&element.encode());
        data_at += entry.key.len();
    }
    for entry in entries {
        out.extend_from_slice(&entry.key);
    }
}
