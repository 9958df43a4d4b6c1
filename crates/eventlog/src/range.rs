//! A range of keys, as etcd's `key` and `range_end` describe it.

use bytes::Bytes;

/// Half-open range of keys in bytewise order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyRange {
    /// Exactly one key.
    Key(Bytes),
    /// `start <= key < end`; empty when `start >= end`.
    Span(Bytes, Bytes),
    /// `start <= key`, without an end.
    From(Bytes),
}

impl KeyRange {
    /// From etcd's pair: an empty `range_end` is one key, the single byte 0 is an open end.
    #[must_use]
    pub fn from_etcd(key: Bytes, range_end: Bytes) -> Self {
        match range_end.as_ref() {
            [] => Self::Key(key),
            [0] => Self::From(key),
            _ => Self::Span(key, range_end),
        }
    }

    /// As etcd's pair of `key` and `range_end`.
    #[must_use]
    pub fn to_etcd(&self) -> (Bytes, Bytes) {
        match self {
            Self::Key(key) => (key.clone(), Bytes::new()),
            Self::Span(start, end) => (start.clone(), end.clone()),
            Self::From(start) => (start.clone(), Bytes::from_static(&[0])),
        }
    }

    /// Every key.
    #[must_use]
    pub fn all() -> Self {
        Self::From(Bytes::new())
    }

    /// The smallest key that may be inside.
    #[must_use]
    pub fn start(&self) -> &Bytes {
        match self {
            Self::Key(start) | Self::Span(start, _) | Self::From(start) => start,
        }
    }

    /// Whether `key` is inside.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::Key(start) => start == key,
            Self::Span(start, end) => start <= key && key < end.as_ref(),
            Self::From(start) => start <= key,
        }
    }

    /// Whether `key` lies at or behind the end, for a scan in key order that began at [`KeyRange::start`].
    #[must_use]
    pub fn ends_before(&self, key: &[u8]) -> bool {
        match self {
            Self::Key(start) => start < key,
            Self::Span(_, end) => end <= key,
            Self::From(_) => false,
        }
    }

    /// Whether no key can be inside.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Span(start, end) if start >= end)
    }
}
