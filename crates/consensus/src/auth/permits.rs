//! What permissions cover together.

use bytes::Bytes;
use tailwater_api::authpb;
use tailwater_api::authpb::permission::Type;

/// What is to be done with keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Their values are to be seen.
    Read,
    /// They are to be put or deleted.
    Write,
}

/// The permissions of all roles of one user, merged.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct UserPermits {
    read: Cover,
    write: Cover,
}

impl UserPermits {
    pub(super) fn of<'a>(permissions: impl Iterator<Item = &'a authpb::Permission>) -> Self {
        let (mut read, mut write) = (Vec::new(), Vec::new());
        for permission in permissions {
            let span = Span::of(&permission.key, &permission.range_end);
            match Type::try_from(permission.perm_type) {
                Ok(Type::Read) => read.push(span),
                Ok(Type::Write) => write.push(span),
                Ok(Type::Readwrite) => {
                    read.push(span.clone());
                    write.push(span);
                }
                // A kind of a newer version permits nothing here.
                Err(_) => {}
            }
        }
        Self { read: Cover::of(read), write: Cover::of(write) }
    }

    /// Whether every key of the range is covered.
    pub(super) fn covers(&self, right: Right, key: &[u8], range_end: &[u8]) -> bool {
        let cover = match right {
            Right::Read => &self.read,
            Right::Write => &self.write,
        };
        cover.holds(&Span::of(key, range_end))
    }
}

/// `start <= key < end`; without an end, every key from `start` on.
#[derive(Clone, Debug, PartialEq)]
struct Span {
    start: Bytes,
    end: Option<Bytes>,
}

impl Span {
    /// Of etcd's pair: without a `range_end` one key, with the single byte 0 an open end.
    fn of(key: &[u8], range_end: &[u8]) -> Self {
        let start = Bytes::copy_from_slice(key);
        let end = match range_end {
            // The next key in order.
            [] => Some([key, &[0]].concat().into()),
            [0] => None,
            end => Some(Bytes::copy_from_slice(end)),
        };
        Self { start, end }
    }

    /// Whether the span ends before `key` or right at it.
    fn ends_by(&self, key: &Bytes) -> bool {
        self.end.as_ref().is_some_and(|end| end <= key)
    }

    fn ends_before(&self, key: &Bytes) -> bool {
        self.end.as_ref().is_some_and(|end| end < key)
    }

    fn end_is_within(&self, other: &Self) -> bool {
        match (&self.end, &other.end) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(end), Some(bound)) => end <= bound,
        }
    }
}

/// Spans in order, none of which touches the next.
#[derive(Clone, Debug, Default, PartialEq)]
struct Cover(Vec<Span>);

impl Cover {
    fn of(mut spans: Vec<Span>) -> Self {
        spans.retain(|span| !span.ends_by(&span.start));
        spans.sort_by(|one, other| one.start.cmp(&other.start));
        let mut merged: Vec<Span> = Vec::new();
        for span in spans {
            match merged.last_mut() {
                Some(last) if !last.ends_before(&span.start) => {
                    if last.end_is_within(&span) {
                        last.end = span.end;
                    }
                }
                _ => merged.push(span),
            }
        }
        Self(merged)
    }

    fn holds(&self, wanted: &Span) -> bool {
        let after = self.0.partition_point(|span| span.start <= wanted.start);
        let Some(span) = after.checked_sub(1).map(|at| &self.0[at]) else { return false };
        // A range whose end lies before its start holds no key; its start decides, as in etcd.
        !span.ends_by(&wanted.start) && wanted.end_is_within(span)
    }
}
