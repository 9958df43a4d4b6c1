//! The file format of bbolt: fixed-size pages that form B+ trees, one tree per bucket.
//!
//! A file is an array of pages, 4096 bytes each unless its meta says otherwise. All numbers are little endian.
//!
//! | page | content |
//! |---|---|
//! | 0, 1 | *meta*: where the root bucket is and how many pages are in use. A commit overwrites the older of the two, so the valid one with the higher transaction id counts |
//! | any other | a *leaf*, a *branch* or the *freelist*; a content that is longer than its page goes on in the pages behind it (*overflow*) |
//!
//! Every page begins with a header of 16 bytes: page id (8), kind (2), count of elements (2), overflow pages (4).
//!
//! * **Leaf**: `count` elements of 16 bytes (flags, offset of the key counted from this element, key length, value
//!   length), then keys and values in the elements' order. Flag 1 marks a bucket.
//! * **Branch**: `count` elements of 16 bytes (offset, key length, child page id), then the keys. An element's key is
//!   not above the first key of its child, and the next element's key is above all of them.
//! * **Bucket**: a leaf value of 16 bytes (root page id, sequence). Root 0 means that one small leaf page follows in the
//!   value itself, without padding (*inline*).
//! * **Meta**: magic, version 2, page size, flags (4 bytes each), root bucket (16), freelist page id, count of pages
//!   ("high water mark"), transaction id, FNV-1a checksum of all that (8 bytes each).
//! * **Freelist**: ids of unused pages, 8 bytes each. Id 2^64-1 in the meta means that none was written, as etcd does.

mod check;
mod cursor;
mod page;
mod read;
mod source;
mod tree;
mod write;

pub use cursor::{Row, Rows};
pub use page::PageId;
pub use read::{BoltFile, Bucket, Limits, ReadError};
pub use source::ReadAt;
pub(crate) use tree::Value;
pub use tree::WriteError;
pub(crate) use write::Pass;
pub use write::{BoltPlan, BoltPlanner, BoltWriter};

#[cfg(test)]
mod tests;
