//! A walk over one bucket in the order of its keys.
//!
//! The walk checks what it uses, and that keys rise: within a page, and within the span that the branches above leave
//! to it. That is also what ends a walk in a file whose pages point in circles or share children: whatever is reached
//! twice has keys that were passed already, and no page but an empty bucket's root may be empty.

use super::page::{
    BUCKET_FLAG, BranchElement, ELEMENT_BYTES, HEADER_BYTES, Header, KEY_BYTES_MAX, Kind, LeafElement, PageId,
};
use super::read::{BoltFile, Bucket, Place, ReadError};
use super::source::ReadAt;

/// Levels of a tree. Two children per branch make 2^40 leaves of it, more than fit into any file.
const DEPTH_MAX: usize = 40;

/// One row of a bucket; it lives until the next is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// The key, never empty.
    pub key: &'a [u8],
    /// The value; of a bucket its place.
    pub value: &'a [u8],
    /// Whether this row is a bucket within the bucket.
    pub is_bucket: bool,
}

impl Row<'_> {
    /// The bucket that this row is; none when it is none, or too short to be one.
    #[must_use]
    pub fn bucket(&self) -> Option<Bucket> {
        if self.is_bucket { Bucket::from_value(self.value) } else { None }
    }
}

/// The rows of a bucket. Holds one page per level, each up to
/// [`page_buffer_bytes_max`](super::Limits::page_buffer_bytes_max), and one row.
#[derive(Debug)]
pub struct Rows<'f, R> {
    file: &'f BoltFile<R>,
    /// The bucket, until the first row is asked for.
    unopened: Option<Bucket>,
    /// From the root to the page that the next row is in.
    path: Vec<Node>,
    /// The last key that was given out; keys rise over the whole bucket.
    key: Vec<u8>,
    value: Vec<u8>,
    /// Pages that were entered, with their overflow; kept for whoever asks for them.
    entered: Option<Vec<(PageId, u32)>>,
}

/// A page on the way down.
#[derive(Debug)]
struct Node {
    id: PageId,
    kind: Kind,
    count: u16,
    /// The next element.
    index: u16,
    /// Where in the file the page begins; none when it is inline.
    file_offset: Option<u64>,
    /// Bytes of the page with its overflow.
    bytes: u64,
    /// The first of them.
    buffer: Vec<u8>,
    /// Up to where keys and values have been given out.
    data_end: u64,
    /// Keys below this page's span belong to the pages before it, keys at and above `upper` to those behind it.
    lower: Vec<u8>,
    upper: Option<Vec<u8>>,
}

impl<'f, R: ReadAt> Rows<'f, R> {
    pub(crate) fn new(file: &'f BoltFile<R>, bucket: Bucket) -> Self {
        let (path, key, value) = (Vec::new(), Vec::new(), Vec::new());
        Self { file, unopened: Some(bucket), path, key, value, entered: None }
    }

    /// As [`BoltFile::rows`], and remembers which pages are entered.
    pub(super) fn tracked(file: &'f BoltFile<R>, bucket: Bucket) -> Self {
        Self { entered: Some(Vec::new()), ..Self::new(file, bucket) }
    }

    /// The next row; none behind the last, and none behind an error.
    ///
    /// # Errors
    /// [`ReadError::Page`], [`ReadError::ValueTooLong`] and [`ReadError::Source`].
    #[expect(clippy::should_implement_trait, reason = "a row borrows from the walk, which an iterator's item can't")]
    pub fn next(&mut self) -> Result<Option<Row<'_>>, ReadError> {
        match self.advance() {
            Ok(Some(is_bucket)) => Ok(Some(Row { key: &self.key, value: &self.value, is_bucket })),
            Ok(None) => Ok(None),
            Err(error) => {
                self.path.clear();
                Err(error)
            }
        }
    }

    /// The pages that were entered since the last call, each with its overflow.
    pub(super) fn take_entered(&mut self) -> Vec<(PageId, u32)> {
        self.entered.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Reads the next row into `key` and `value`; tells whether it is a bucket.
    fn advance(&mut self) -> Result<Option<bool>, ReadError> {
        if let Some(bucket) = self.unopened.take() {
            let root = self.open(bucket)?;
            if root.count == 0 && root.kind == Kind::Branch {
                return Err(root.wrong("is a branch without children"));
            }
            self.path.push(root);
        }
        loop {
            let Some(node) = self.path.last_mut() else { return Ok(None) };
            if node.index == node.count {
                self.path.pop();
                continue;
            }
            if node.kind == Kind::Leaf {
                return node.read_row(self.file, &mut self.key, &mut self.value).map(Some);
            }
            let child = self.descend()?;
            self.path.push(child);
        }
    }

    /// The child that the last node's next element points to.
    fn descend(&mut self) -> Result<Node, ReadError> {
        let depth = self.path.len();
        let node = self.path.last_mut().expect("the caller has just looked at it");
        if depth == DEPTH_MAX {
            return Err(node.wrong("is deeper than a tree can be"));
        }
        let (child, lower) = node.read_child(self.file)?;
        let upper = node.peek_key(self.file)?.or_else(|| node.upper.clone());
        let mut opened = self.open(Bucket(Place::Page(child)))?;
        if opened.count == 0 {
            return Err(opened.wrong("is empty"));
        }
        (opened.lower, opened.upper) = (lower, upper);
        Ok(opened)
    }

    fn open(&mut self, bucket: Bucket) -> Result<Node, ReadError> {
        let (header, file_offset, bytes, buffer) = match bucket.0 {
            Place::Page(id) => {
                let header = self.file.header(id)?;
                if let Some(entered) = &mut self.entered {
                    entered.push((id, header.overflow));
                }
                let page_bytes = u64::from(self.file.meta.page_bytes);
                let bytes = (u64::from(header.overflow) + 1) * page_bytes;
                let held = usize::try_from(bytes).unwrap_or(usize::MAX).min(self.file.limits.page_buffer_bytes_max);
                let mut buffer = vec![0; held];
                self.file.source.read_exact_at(&mut buffer, id.0 * page_bytes)?;
                (header, Some(id.0 * page_bytes), bytes, buffer)
            }
            Place::Inline(page) => {
                let wrong = |what| ReadError::Page { page: PageId(0), what };
                let header =
                    page.first_chunk::<HEADER_BYTES>().ok_or(wrong("is an inline bucket that is too short"))?;
                let header = Header::decode(header).ok_or(wrong("is of no known kind"))?;
                if header.kind != Kind::Leaf {
                    return Err(wrong("is an inline bucket that is no leaf"));
                }
                (header, None, page.len() as u64, page)
            }
        };
        let table = table_bytes(header.count);
        let node = Node {
            id: header.id,
            kind: header.kind,
            count: header.count,
            index: 0,
            file_offset,
            bytes,
            buffer,
            data_end: table,
            lower: Vec::new(),
            upper: None,
        };
        if !matches!(node.kind, Kind::Leaf | Kind::Branch) {
            return Err(node.wrong("is neither a leaf nor a branch"));
        }
        if table > bytes {
            return Err(node.wrong("has more elements than fit into it"));
        }
        Ok(node)
    }
}

/// Bytes of a header and `count` elements.
fn table_bytes(count: u16) -> u64 {
    HEADER_BYTES as u64 + u64::from(count) * ELEMENT_BYTES as u64
}

impl Node {
    fn wrong(&self, what: &'static str) -> ReadError {
        ReadError::Page { page: self.id, what }
    }

    /// Reads the row at `index`, and goes on to the next.
    fn read_row(
        &mut self,
        file: &BoltFile<impl ReadAt>,
        key: &mut Vec<u8>,
        value: &mut Vec<u8>,
    ) -> Result<bool, ReadError> {
        let element = LeafElement::decode(&self.element(file, self.index)?);
        let key_at = self.data_at(self.index, element.offset, element.key_bytes)?;
        let value_at = key_at + u64::from(element.key_bytes);
        if u64::from(element.value_bytes) > self.bytes - value_at {
            return Err(self.wrong("has a value that ends behind the page"));
        }
        let value_bytes = element.value_bytes as usize;
        if value_bytes > file.limits.value_bytes_max {
            let limit = file.limits.value_bytes_max;
            return Err(ReadError::ValueTooLong { page: self.id, bytes: value_bytes, limit });
        }
        let mut found = std::mem::take(value);
        self.read_into(file, key_at, element.key_bytes as usize, &mut found)?;
        // Before the first row `key` is empty, and below every key.
        if found.as_slice() <= key.as_slice() {
            return Err(self.wrong("has keys out of order"));
        }
        self.check_span(&found)?;
        std::mem::swap(key, &mut found);
        *value = found;
        self.read_into(file, value_at, value_bytes, value)?;
        self.data_end = value_at + u64::from(element.value_bytes);
        self.index += 1;
        Ok(element.flags & BUCKET_FLAG != 0)
    }

    /// Reads child and key of the branch element at `index`, and goes on to the next.
    fn read_child(&mut self, file: &BoltFile<impl ReadAt>) -> Result<(PageId, Vec<u8>), ReadError> {
        let element = BranchElement::decode(&self.element(file, self.index)?);
        let key_at = self.data_at(self.index, element.offset, element.key_bytes)?;
        let mut key = Vec::new();
        self.read_into(file, key_at, element.key_bytes as usize, &mut key)?;
        self.check_span(&key)?;
        self.data_end = key_at + u64::from(element.key_bytes);
        self.index += 1;
        // What comes behind lies above; `descend` makes this the child's lower bound.
        self.lower.clone_from(&key);
        Ok((element.child, key))
    }

    /// The key of the branch element at `index`; none behind the last.
    fn peek_key(&self, file: &BoltFile<impl ReadAt>) -> Result<Option<Vec<u8>>, ReadError> {
        if self.index == self.count {
            return Ok(None);
        }
        let element = BranchElement::decode(&self.element(file, self.index)?);
        let key_at = self.data_at(self.index, element.offset, element.key_bytes)?;
        let mut key = Vec::new();
        self.read_into(file, key_at, element.key_bytes as usize, &mut key)?;
        // `lower` is the key of the element before.
        if key <= self.lower {
            return Err(self.wrong("has keys out of order"));
        }
        Ok(Some(key))
    }

    fn check_span(&self, key: &[u8]) -> Result<(), ReadError> {
        let is_within = key >= self.lower.as_slice() && self.upper.as_deref().is_none_or(|upper| key < upper);
        if is_within { Ok(()) } else { Err(self.wrong("has a key outside of the span that its parent gives it")) }
    }

    fn element(&self, file: &BoltFile<impl ReadAt>, index: u16) -> Result<[u8; ELEMENT_BYTES], ReadError> {
        let mut element = [0; ELEMENT_BYTES];
        self.read(file, table_bytes(index), &mut element)?;
        Ok(element)
    }

    /// Where in the page the key of element `index` begins. Keys and values lie in the order of the elements, as every
    /// bbolt writes them; so no byte is given out twice, whatever the offsets say.
    fn data_at(&self, index: u16, offset: u32, key_bytes: u32) -> Result<u64, ReadError> {
        let at = table_bytes(index) + u64::from(offset);
        if key_bytes == 0 || key_bytes as usize > KEY_BYTES_MAX {
            return Err(self.wrong("has an empty or too long key"));
        }
        if at < self.data_end {
            return Err(self.wrong("has overlapping keys and values"));
        }
        if at + u64::from(key_bytes) > self.bytes {
            return Err(self.wrong("has a key that ends behind the page"));
        }
        Ok(at)
    }

    fn read_into(
        &self,
        file: &BoltFile<impl ReadAt>,
        at: u64,
        bytes: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        out.clear();
        out.resize(bytes, 0);
        self.read(file, at, out)
    }

    /// Fills `out` from `at` on, which the caller knows to lie within the page.
    fn read(&self, file: &BoltFile<impl ReadAt>, at: u64, out: &mut [u8]) -> Result<(), ReadError> {
        let held = usize::try_from(at).ok().and_then(|at| self.buffer.get(at..)?.get(..out.len()));
        match (held, self.file_offset) {
            (Some(held), _) => out.copy_from_slice(held),
            (None, Some(offset)) => file.source.read_exact_at(out, offset + at)?,
            (None, None) => return Err(self.wrong("is an inline bucket that is too short")),
        }
        Ok(())
    }
}
