//! The whole file looked through: every page reached exactly once, or free.

use super::cursor::Rows;
use super::page::{Kind, PageId, u64_at};
use super::read::{BoltFile, Bucket, ReadError};
use super::source::ReadAt;

/// How deep buckets may lie within buckets; etcd's lie in the root.
const BUCKET_DEPTH_MAX: usize = 16;
/// In a freelist's count: the count is the first number of the list.
const COUNT_FOLLOWS: u16 = u16::MAX;

/// One bit per page.
#[derive(Debug)]
struct PageSet(Vec<u64>);

impl PageSet {
    fn new(pages: u64) -> Self {
        let words = usize::try_from(pages.div_ceil(64)).expect("a file of that many pages does not fit on a disk");
        Self(vec![0; words])
    }

    /// False when it was in the set already.
    fn insert(&mut self, page: PageId) -> bool {
        let (word, bit) = Self::position(page);
        let is_new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        is_new
    }

    fn contains(&self, page: PageId) -> bool {
        let (word, bit) = Self::position(page);
        self.0[word] & bit != 0
    }

    fn position(page: PageId) -> (usize, u64) {
        let word = usize::try_from(page.0 / 64).expect("the caller has compared the page with the count of pages");
        (word, 1 << (page.0 % 64))
    }
}

impl<R: ReadAt> BoltFile<R> {
    /// Reads everything, and finds what bbolt's own check finds: keys out of order, pages that are referenced twice,
    /// and, when the file has a freelist, pages that are neither used nor free. Takes one bit of memory per page.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), ReadError> {
        let mut seen = PageSet::new(self.meta.pages);
        for meta in [PageId(0), PageId(1)] {
            seen.insert(meta);
        }
        self.check_freelist(&mut seen)?;
        self.check_bucket(self.root(), 0, &mut seen)?;
        if self.freelist().is_none() {
            return Ok(());
        }
        let lost = (0..self.meta.pages).map(PageId).find(|page| !seen.contains(*page));
        lost.map_or(Ok(()), |page| Err(ReadError::Page { page, what: "is neither used nor free" }))
    }

    fn check_bucket(&self, bucket: Bucket, depth: usize, seen: &mut PageSet) -> Result<(), ReadError> {
        if depth == BUCKET_DEPTH_MAX {
            return Err(ReadError::Page { page: self.meta.root, what: "has buckets that lie too deep" });
        }
        let mut rows = Rows::tracked(self, bucket);
        loop {
            let inner = match rows.next()? {
                Some(row) if row.is_bucket => {
                    Some(row.bucket().ok_or(ReadError::Page { page: self.meta.root, what: "has a broken bucket" })?)
                }
                Some(_) => None,
                None => {
                    self.insert(rows.take_entered(), seen)?;
                    return Ok(());
                }
            };
            self.insert(rows.take_entered(), seen)?;
            if let Some(inner) = inner {
                self.check_bucket(inner, depth + 1, seen)?;
            }
        }
    }

    fn insert(&self, entered: Vec<(PageId, u32)>, seen: &mut PageSet) -> Result<(), ReadError> {
        for (first, overflow) in entered {
            for page in (first.0..=first.0 + u64::from(overflow)).map(PageId) {
                if !seen.insert(page) {
                    return Err(ReadError::Page { page, what: "is used twice, or used and free" });
                }
            }
        }
        Ok(())
    }

    fn check_freelist(&self, seen: &mut PageSet) -> Result<(), ReadError> {
        let Some(id) = self.freelist() else { return Ok(()) };
        let header = self.header(id)?;
        let wrong = |what| ReadError::Page { page: id, what };
        if header.kind != Kind::Freelist {
            return Err(wrong("is not the freelist that the meta says it is"));
        }
        self.insert(vec![(id, header.overflow)], seen)?;
        let from = id.0 * u64::from(self.meta.page_bytes) + 16;
        let room = (u64::from(header.overflow) + 1) * u64::from(self.meta.page_bytes) - 16;
        let mut number = [0; 8];
        let (mut at, mut left) = (0, u64::from(header.count));
        if header.count == COUNT_FOLLOWS {
            self.source.read_exact_at(&mut number, from)?;
            (at, left) = (8, u64_at(&number, 0));
        }
        if left > (room - at) / 8 {
            return Err(wrong("is a freelist that ends behind its pages"));
        }
        while left > 0 {
            self.source.read_exact_at(&mut number, from + at)?;
            let free = PageId(u64_at(&number, 0));
            if free.0 < 2 || free.0 >= self.meta.pages || !seen.insert(free) {
                return Err(wrong("is a freelist with a page that can't be free"));
            }
            (at, left) = (at + 8, left - 1);
        }
        Ok(())
    }
}
