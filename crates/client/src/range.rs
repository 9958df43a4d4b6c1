//! Which keys.

use bytes::Bytes;
use tailwater_api::etcdserverpb::RangeRequest;

/// A range of keys, as etcd's requests name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    pub(crate) key: Bytes,
    /// Empty: the one key. A zero byte: no end.
    pub(crate) end: Bytes,
}

impl KeyRange {
    /// The one key.
    pub fn key(key: impl Into<Bytes>) -> Self {
        Self { key: key.into(), end: Bytes::new() }
    }

    /// All keys that begin so; with an empty prefix all keys.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let prefix: Bytes = prefix.into();
        let mut end = prefix.to_vec();
        // The successor of a prefix of 0xff bytes only, and of the empty one, is no end at all.
        while end.pop_if(|last| *last == 0xff).is_some() {}
        match end.last_mut() {
            Some(last) => *last += 1,
            None => end = vec![0],
        }
        let key = if prefix.is_empty() { Bytes::from_static(b"\0") } else { prefix };
        Self { key, end: end.into() }
    }

    /// The keys from `start`, inclusive, to `end`, exclusive.
    pub fn between(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        Self { key: start.into(), end: end.into() }
    }

    /// A read of the servers' revision that costs them little and needs no more rights than the range: one key of it.
    pub(crate) fn revision_request(&self) -> RangeRequest {
        RangeRequest { key: self.key.clone(), count_only: true, ..Default::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_its_successor() {
        let end = |prefix: &'static [u8]| KeyRange::prefix(prefix).end;
        assert_eq!(end(b"/a/"), "/a0");
        assert_eq!(end(b"a\xff\xff"), "b");
        assert_eq!(end(b"\xff"), &b"\0"[..]);
        assert_eq!(KeyRange::prefix(""), KeyRange::between(&b"\0"[..], &b"\0"[..]));
    }
}
