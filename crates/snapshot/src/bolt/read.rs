//! A bbolt file as it lies there: which meta counts, and where the buckets are.
//!
//! No byte of the file is trusted. An offset is used only after it was found to lie within its page, a page only after
//! its header was found to be the page's own; memory is bounded by [`Limits`], time by the size of the file.

use std::io;

use super::cursor::Rows;
use super::page::{BUCKET_BYTES, Header, META_BYTES, Meta, NO_FREELIST, PageId, u64_at};
use super::source::ReadAt;

/// Page sizes that bbolt tries when the first meta is not valid.
const PAGE_BYTES_MIN: u32 = 1024;
const PAGE_BYTES_MAX: u32 = 1 << 25;

/// Why a file, or the rest of it, can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file itself failed.
    #[error("reading the database: {0}")]
    Source(#[from] io::Error),
    /// Neither meta page is valid: not a bbolt file, or its first pages are damaged.
    #[error("not a bbolt database: neither meta page is valid")]
    NoMeta,
    /// The file is shorter than its meta says.
    #[error("the database has {bytes} bytes, its meta asks for {expected}")]
    Truncated {
        /// Bytes that there are.
        bytes: u64,
        /// Bytes that the meta asks for.
        expected: u64,
    },
    /// A page is not what it should be.
    #[error("page {page}: {what}")]
    Page {
        /// The page.
        page: PageId,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A row is larger than the reader's limit.
    #[error("page {page}: a value of {bytes} bytes; the limit is {limit}")]
    ValueTooLong {
        /// The page.
        page: PageId,
        /// The value's length.
        bytes: usize,
        /// [`Limits::value_bytes_max`].
        limit: usize,
    },
}

/// What a reader is willing to hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The longest value in bytes. A reader holds one row at a time.
    pub value_bytes_max: usize,
    /// Bytes of a page and its overflow that are read at once; what lies behind is read row by row.
    pub page_buffer_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        // etcd takes requests of 1.5 MiB unless told otherwise; nobody tells it to take ones of 256 MiB.
        Self { value_bytes_max: 256 << 20, page_buffer_bytes_max: 1 << 20 }
    }
}

/// Where a bucket's rows are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket(pub(crate) Place);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Page(PageId),
    /// The page itself, with its header.
    Inline(Vec<u8>),
}

impl Bucket {
    /// A bucket from the value of a row that [is one](super::Row::is_bucket).
    #[must_use]
    pub fn from_value(value: &[u8]) -> Option<Self> {
        if value.len() < BUCKET_BYTES {
            return None;
        }
        let root = PageId(u64_at(value, 0));
        Some(Self(if root == PageId(0) { Place::Inline(value[BUCKET_BYTES..].to_vec()) } else { Place::Page(root) }))
    }
}

/// An open database.
#[derive(Debug)]
pub struct BoltFile<R> {
    pub(crate) source: R,
    pub(crate) meta: Meta,
    pub(crate) limits: Limits,
}

impl<R: ReadAt> BoltFile<R> {
    /// Opens the state of the last whole commit: the valid meta with the higher transaction id. So a database that was
    /// not closed, or that was copied after a crash, opens too. Bytes behind the last page are not looked at.
    ///
    /// # Errors
    /// [`ReadError::NoMeta`], [`ReadError::Truncated`] and [`ReadError::Source`].
    pub fn open(source: R, limits: Limits) -> Result<Self, ReadError> {
        let bytes = source.bytes()?;
        let meta = newest_meta(&source, bytes)?.ok_or(ReadError::NoMeta)?;
        match meta.pages.checked_mul(u64::from(meta.page_bytes)) {
            Some(expected) if expected <= bytes => Ok(Self { source, meta, limits }),
            expected => Err(ReadError::Truncated { bytes, expected: expected.unwrap_or(u64::MAX) }),
        }
    }

    /// Bytes of all pages in use and free; the file may go on behind them.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        // `open` has seen that this much is there.
        self.meta.pages * u64::from(self.meta.page_bytes)
    }

    /// The bucket that holds all others.
    #[must_use]
    pub fn root(&self) -> Bucket {
        Bucket(Place::Page(self.meta.root))
    }

    /// The bucket `name`, if there is one.
    ///
    /// # Errors
    /// Those of [`Rows::next`].
    pub fn bucket(&self, name: &[u8]) -> Result<Option<Bucket>, ReadError> {
        let mut rows = self.rows(&self.root());
        while let Some(row) = rows.next()? {
            if row.key == name {
                return Ok(row.bucket());
            }
        }
        Ok(None)
    }

    /// The rows of `bucket` in the order of their keys.
    pub fn rows(&self, bucket: &Bucket) -> Rows<'_, R> {
        Rows::new(self, bucket.clone())
    }

    /// The pages that `id` covers, if a header of any kind is there and says so.
    pub(crate) fn header(&self, id: PageId) -> Result<Header, ReadError> {
        let wrong = |what| ReadError::Page { page: id, what };
        if id.0 < 2 || id.0 >= self.meta.pages {
            return Err(wrong("is outside the database"));
        }
        let mut bytes = [0; 16];
        self.source.read_exact_at(&mut bytes, id.0 * u64::from(self.meta.page_bytes))?;
        let header = Header::decode(&bytes).ok_or(wrong("is of no known kind"))?;
        if header.id != id {
            return Err(wrong("says that it is another page"));
        }
        if u64::from(header.overflow) >= self.meta.pages - id.0 {
            return Err(wrong("goes on behind the end of the database"));
        }
        Ok(header)
    }

    pub(crate) fn freelist(&self) -> Option<PageId> {
        Some(self.meta.freelist).filter(|id| id.0 != NO_FREELIST)
    }
}

fn newest_meta(source: &impl ReadAt, bytes: u64) -> Result<Option<Meta>, ReadError> {
    if let Some(first) = meta_at(source, bytes, 0)? {
        let second = meta_at(source, bytes, u64::from(first.page_bytes))?;
        let second = second.filter(|meta| meta.page_bytes == first.page_bytes && meta.transaction > first.transaction);
        return Ok(Some(second.unwrap_or(first)));
    }
    // The second meta says itself how large a page is, and lies one page in.
    let mut page_bytes = PAGE_BYTES_MIN;
    while page_bytes <= PAGE_BYTES_MAX {
        let meta = meta_at(source, bytes, u64::from(page_bytes))?;
        if let Some(meta) = meta.filter(|meta| meta.page_bytes == page_bytes) {
            return Ok(Some(meta));
        }
        page_bytes *= 2;
    }
    Ok(None)
}

/// The meta of the page at `offset`, if it is valid.
fn meta_at(source: &impl ReadAt, bytes: u64, offset: u64) -> Result<Option<Meta>, ReadError> {
    const HEADER: u64 = 16;
    if bytes < offset + HEADER + META_BYTES as u64 {
        return Ok(None);
    }
    let mut encoded = [0; META_BYTES];
    source.read_exact_at(&mut encoded, offset + HEADER)?;
    let is_sane =
        |meta: &Meta| meta.page_bytes.is_power_of_two() && (PAGE_BYTES_MIN..=PAGE_BYTES_MAX).contains(&meta.page_bytes);
    Ok(Meta::decode(&encoded).filter(is_sane))
}
