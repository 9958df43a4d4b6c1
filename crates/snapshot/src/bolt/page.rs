//! Headers, elements and metas as bytes. Nothing here reads or writes a file.

use std::fmt;

/// Bytes of a page in files that are written here; etcd's on all machines with pages of 4 KiB.
pub(crate) const PAGE_BYTES: usize = 4096;
/// Bytes of a page header, a leaf element, a branch element and a bucket's value, alike.
pub(crate) const HEADER_BYTES: usize = 16;
/// Bytes of one element of a leaf or a branch.
pub(crate) const ELEMENT_BYTES: usize = 16;
/// Bytes of a bucket in a leaf value, without an inline page.
pub(crate) const BUCKET_BYTES: usize = 16;
/// Bytes of a meta behind its page header, checksum included.
pub(crate) const META_BYTES: usize = 64;
/// The longest key that bbolt takes.
pub(crate) const KEY_BYTES_MAX: usize = 32_768;
/// The longest value that bbolt takes.
pub(crate) const VALUE_BYTES_MAX: usize = (1 << 31) - 2;
/// Marks a leaf element that is a bucket.
pub(crate) const BUCKET_FLAG: u32 = 1;
/// In place of the freelist's page: there is none.
pub(crate) const NO_FREELIST: u64 = u64::MAX;

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;

/// A page's place in the file, counted in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId(pub u64);

impl fmt::Display for PageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Branch,
    Leaf,
    Meta,
    Freelist,
}

impl Kind {
    fn flag(self) -> u16 {
        match self {
            Self::Branch => 0x01,
            Self::Leaf => 0x02,
            Self::Meta => 0x04,
            Self::Freelist => 0x10,
        }
    }

    fn from_flag(flag: u16) -> Option<Self> {
        [Self::Branch, Self::Leaf, Self::Meta, Self::Freelist].into_iter().find(|kind| kind.flag() == flag)
    }
}

/// The first 16 bytes of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) id: PageId,
    pub(crate) kind: Kind,
    pub(crate) count: u16,
    pub(crate) overflow: u32,
}

impl Header {
    pub(crate) fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&self.id.0.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.kind.flag().to_le_bytes());
        bytes[10..12].copy_from_slice(&self.count.to_le_bytes());
        bytes[12..].copy_from_slice(&self.overflow.to_le_bytes());
        bytes
    }

    /// None when the kind is none of the four.
    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        Some(Self {
            id: PageId(u64_at(bytes, 0)),
            kind: Kind::from_flag(u16_at(bytes, 8))?,
            count: u16_at(bytes, 10),
            overflow: u32_at(bytes, 12),
        })
    }
}

/// One element of a leaf; `offset` counts from the element's own first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeafElement {
    pub(crate) flags: u32,
    pub(crate) offset: u32,
    pub(crate) key_bytes: u32,
    pub(crate) value_bytes: u32,
}

impl LeafElement {
    pub(crate) fn encode(self) -> [u8; ELEMENT_BYTES] {
        let mut bytes = [0; ELEMENT_BYTES];
        bytes[..4].copy_from_slice(&self.flags.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.key_bytes.to_le_bytes());
        bytes[12..].copy_from_slice(&self.value_bytes.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; ELEMENT_BYTES]) -> Self {
        Self {
            flags: u32_at(bytes, 0),
            offset: u32_at(bytes, 4),
            key_bytes: u32_at(bytes, 8),
            value_bytes: u32_at(bytes, 12),
        }
    }
}

/// One element of a branch; `offset` counts from the element's own first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BranchElement {
    pub(crate) offset: u32,
    pub(crate) key_bytes: u32,
    pub(crate) child: PageId,
}

impl BranchElement {
    pub(crate) fn encode(self) -> [u8; ELEMENT_BYTES] {
        let mut bytes = [0; ELEMENT_BYTES];
        bytes[..4].copy_from_slice(&self.offset.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.key_bytes.to_le_bytes());
        bytes[8..].copy_from_slice(&self.child.0.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; ELEMENT_BYTES]) -> Self {
        Self { offset: u32_at(bytes, 0), key_bytes: u32_at(bytes, 4), child: PageId(u64_at(bytes, 8)) }
    }
}

/// What a meta page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) page_bytes: u32,
    pub(crate) root: PageId,
    /// [`NO_FREELIST`] when none was written.
    pub(crate) freelist: PageId,
    /// The first page id that was never used.
    pub(crate) pages: u64,
    pub(crate) transaction: u64,
}

impl Meta {
    pub(crate) fn encode(self) -> [u8; META_BYTES] {
        let mut bytes = [0; META_BYTES];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&VERSION.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.page_bytes.to_le_bytes());
        // Flags at 12 and the root bucket's sequence at 24 stay 0.
        bytes[16..24].copy_from_slice(&self.root.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.freelist.0.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.pages.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.transaction.to_le_bytes());
        let checksum = fnv1a(&bytes[..56]);
        bytes[56..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// None when magic, version or checksum are wrong.
    pub(crate) fn decode(bytes: &[u8; META_BYTES]) -> Option<Self> {
        let is_valid =
            u32_at(bytes, 0) == MAGIC && u32_at(bytes, 4) == VERSION && u64_at(bytes, 56) == fnv1a(&bytes[..56]);
        is_valid.then(|| Self {
            page_bytes: u32_at(bytes, 8),
            root: PageId(u64_at(bytes, 16)),
            freelist: PageId(u64_at(bytes, 32)),
            pages: u64_at(bytes, 40),
            transaction: u64_at(bytes, 48),
        })
    }
}

/// FNV-1a with 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The number at `at`, which the caller knows to lie within `bytes`.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meta_of_etcd_is_read_and_written_alike() {
        // The first meta of a file that etcd 3.6.16 wrote.
        let bytes: [u8; META_BYTES] = [
            0xed, 0xda, 0x0c, 0xed, 0x02, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x06, 0, 0, 0, 0, 0, 0, 0, 0x23, 0, 0, 0, 0, 0, 0,
            0, 0x44, 0x52, 0x40, 0xfb, 0x5d, 0x76, 0x0b, 0x70,
        ];
        let meta = Meta::decode(&bytes).expect("a valid meta");
        assert_eq!((meta.page_bytes, meta.root, meta.pages, meta.transaction), (4096, PageId(2), 6, 0x23));
        assert_eq!(meta.freelist.0, NO_FREELIST);
        assert_eq!(meta.encode(), bytes);
    }

    #[test]
    fn a_meta_with_any_bit_changed_is_refused() {
        let meta = Meta { page_bytes: 4096, root: PageId(3), freelist: PageId(2), pages: 9, transaction: 1 };
        let bytes = meta.encode();
        for bit in 0..META_BYTES * 8 {
            let mut changed = bytes;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Meta::decode(&changed), None, "bit {bit}");
        }
    }
}
