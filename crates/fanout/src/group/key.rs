//! What makes watchers equal, in as few bytes as it takes: there is one of these for every group.

use bytes::Bytes;
use tailwater_eventlog::KeyRange;

use crate::WatchFilter;

const KIND: u8 = 0b0000_0011;
const NO_PUT: u8 = 0b0000_0100;
const NO_DELETE: u8 = 0b0000_1000;
const PREV_KV: u8 = 0b0001_0000;
/// Bytes of a span's split, behind its two ends.
const SPLIT_BYTES: usize = size_of::<u32>();

/// How a range is written, and where it is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// One key.
    Exact = 0,
    /// Every key that begins so.
    Prefix = 1,
    /// From here on.
    From = 2,
    /// Start and end, one behind the other, then the length of the start.
    Span = 3,
}

/// Range and options of a group. The bytes are its own: those of a request would keep the buffer alive that the request
/// was read into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupKey {
    pub(super) bytes: Box<[u8]>,
    pub(super) flags: u8,
}

impl GroupKey {
    pub(crate) fn new(range: &KeyRange, filter: WatchFilter, prev_kv: bool) -> Self {
        let (kind, bytes) = match range {
            KeyRange::Key(key) => (Kind::Exact, key.as_ref().into()),
            KeyRange::From(start) if start.is_empty() => (Kind::Prefix, Box::default()),
            KeyRange::From(start) => (Kind::From, start.as_ref().into()),
            KeyRange::Span(start, end) if is_prefix(start, end) => (Kind::Prefix, start.as_ref().into()),
            KeyRange::Span(start, end) => {
                let split = u32::try_from(start.len()).expect("a key fits into a request, which is far below 4 GiB");
                (Kind::Span, [start.as_ref(), end.as_ref(), &split.to_le_bytes()].concat().into())
            }
        };
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        let options = flag(filter.no_put, NO_PUT) | flag(filter.no_delete, NO_DELETE) | flag(prev_kv, PREV_KV);
        Self { bytes, flags: kind as u8 | options }
    }

    pub(crate) fn view(&self) -> KeyView<'_> {
        KeyView { bytes: &self.bytes, flags: self.flags }
    }
}

/// A [`GroupKey`] where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyView<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) flags: u8,
}

impl<'a> KeyView<'a> {
    pub(crate) fn kind(self) -> Kind {
        match self.flags & KIND {
            0 => Kind::Exact,
            1 => Kind::Prefix,
            2 => Kind::From,
            _ => Kind::Span,
        }
    }

    /// The range as it is written; with [`KeyView::kind`] what two groups of the same range have in common.
    pub(crate) fn written(self) -> &'a [u8] {
        self.bytes
    }

    pub(crate) fn filter(self) -> WatchFilter {
        WatchFilter { no_put: self.flags & NO_PUT != 0, no_delete: self.flags & NO_DELETE != 0 }
    }

    pub(crate) fn prev_kv(self) -> bool {
        self.flags & PREV_KV != 0
    }

    /// The start, and the end of a range that is neither a key nor a prefix.
    pub(crate) fn ends(self) -> (&'a [u8], Option<&'a [u8]>) {
        if self.kind() != Kind::Span {
            return (self.bytes, None);
        }
        let (ends, split) = self.bytes.split_at(self.bytes.len() - SPLIT_BYTES);
        let split = u32::from_le_bytes(split.try_into().expect("a span ends with its split"));
        let (start, end) = ends.split_at(split as usize);
        (start, Some(end))
    }

    /// The range; copies it.
    pub(crate) fn range(self) -> KeyRange {
        let (start, end) = self.ends();
        let copy = Bytes::copy_from_slice;
        match self.kind() {
            Kind::Exact => KeyRange::Key(copy(start)),
            Kind::From => KeyRange::From(copy(start)),
            Kind::Span => KeyRange::Span(copy(start), copy(end.expect("a span has an end"))),
            Kind::Prefix => match start.split_last() {
                None => KeyRange::From(Bytes::new()),
                Some((last, head)) => {
                    let last = last.checked_add(1).expect("a prefix that ends so is written as a span");
                    KeyRange::Span(copy(start), [head, &[last]].concat().into())
                }
            },
        }
    }
}

/// Whether [start, end) are exactly the keys that begin with `start`: the end is the start with its last byte
/// incremented. (A start that ends in 0xff has an end that is shorter; it is rare, and the interval tree serves it.)
fn is_prefix(start: &[u8], end: &[u8]) -> bool {
    match (start.split_last(), end.split_last()) {
        (Some((a, head)), Some((b, tail))) => head == tail && a.checked_add(1) == Some(*b),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_as_it_was_written() {
        let filter = WatchFilter { no_put: true, no_delete: false };
        let cases = [
            (KeyRange::Key("a".into()), Kind::Exact),
            (KeyRange::Key("".into()), Kind::Exact),
            (KeyRange::From("".into()), Kind::Prefix),
            (KeyRange::From("a".into()), Kind::From),
            (KeyRange::Span("a".into(), "b".into()), Kind::Prefix),
            (KeyRange::Span("ab".into(), "c".into()), Kind::Span),
            (KeyRange::Span("".into(), "c".into()), Kind::Span),
            (KeyRange::Span("b".into(), "".into()), Kind::Span),
            (KeyRange::Span(vec![b'a', 255].into(), "b".into()), Kind::Span),
        ];
        for (range, kind) in cases {
            let key = GroupKey::new(&range, filter, true);
            assert_eq!((key.view().kind(), key.view().range()), (kind, range));
            assert_eq!((key.view().filter(), key.view().prev_kv()), (filter, true));
        }
    }
}
