//! Revisions as keys.

use std::fmt;

use super::{RowError, bucket};

const PLAIN_BYTES: usize = 17;
const MARKED_BYTES: usize = 18;
const SEPARATOR: u8 = b'_';
const TOMBSTONE: u8 = b't';

/// Where a change stands in the history: its revision, and its place among the changes of that revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowRevision {
    /// The revision, not below 0.
    pub main: i64,
    /// From 0.
    pub sub: i64,
}

impl fmt::Display for RowRevision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.main, self.sub)
    }
}

/// The key of a row in the bucket `key`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowKey {
    /// The change's place.
    pub revision: RowRevision,
    /// Whether the key was deleted.
    pub is_tombstone: bool,
}

/// [`RowKey`] as bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EncodedKey {
    bytes: [u8; MARKED_BYTES],
    is_marked: bool,
}

impl EncodedKey {
    pub(crate) fn as_slice(&self) -> &[u8] {
        if self.is_marked { &self.bytes } else { &self.bytes[..PLAIN_BYTES] }
    }
}

impl RowKey {
    pub(crate) fn encode(self) -> EncodedKey {
        let mut bytes = [0; MARKED_BYTES];
        bytes[..8].copy_from_slice(&self.revision.main.to_be_bytes());
        bytes[8] = SEPARATOR;
        bytes[9..17].copy_from_slice(&self.revision.sub.to_be_bytes());
        bytes[17] = TOMBSTONE;
        EncodedKey { bytes, is_marked: self.is_tombstone }
    }

    pub(crate) fn decode(key: &[u8]) -> Result<Self, RowError> {
        let wrong = |what: &str| RowError::new(bucket::KEY, key, what);
        let is_tombstone = match key.len() {
            PLAIN_BYTES => false,
            MARKED_BYTES if key[PLAIN_BYTES] == TOMBSTONE => true,
            _ => return Err(wrong("not a revision")),
        };
        let number = |at: usize| i64::from_be_bytes(key[at..at + 8].try_into().expect("the length was looked at"));
        let revision = RowRevision { main: number(0), sub: number(9) };
        if key[8] != SEPARATOR || revision.main < 0 || revision.sub < 0 {
            return Err(wrong("not a revision"));
        }
        Ok(Self { revision, is_tombstone })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_keys_are_etcds() {
        let key = RowKey { revision: RowRevision { main: 0x20, sub: 3 }, is_tombstone: true };
        assert_eq!(key.encode().as_slice(), b"\0\0\0\0\0\0\0\x20_\0\0\0\0\0\0\0\x03t");
        let plain = RowKey { is_tombstone: false, ..key };
        assert_eq!(plain.encode().as_slice(), b"\0\0\0\0\0\0\0\x20_\0\0\0\0\0\0\0\x03");
        for key in [key, plain] {
            assert_eq!(RowKey::decode(key.encode().as_slice()), Ok(key));
        }
    }

    #[test]
    fn what_is_no_revision_is_refused() {
        for wrong in [
            b"".as_slice(),
            b"\0\0\0\0\0\0\0\x20_\0\0\0\0\0\0\0\x03x",
            b"\0\0\0\0\0\0\0\x20-\0\0\0\0\0\0\0\x03",
            b"\xff\0\0\0\0\0\0\x20_\0\0\0\0\0\0\0\x03",
            b"\0\0\0\0\0\0\0\x20_\x80\0\0\0\0\0\0\x03",
            b"\0\0\0\0\0\0\0\x20_\0\0\0\0\0\0\0",
        ] {
            RowKey::decode(wrong).expect_err("no revision");
        }
    }
}
