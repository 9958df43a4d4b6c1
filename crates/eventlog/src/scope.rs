//! Which keys a replica holds.

use bytes::{BufMut, Bytes, BytesMut};

use crate::KeyRange;

/// The union of some ranges; by default every key.
///
/// Invariant: `spans` are in order, not empty, and neither overlap nor touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    spans: Vec<KeyRange>,
}

impl Default for Scope {
    fn default() -> Self {
        Self { spans: vec![KeyRange::all()] }
    }
}

impl Scope {
    /// Of these ranges, in any order, overlapping or not; none: every key.
    #[must_use]
    pub fn new(ranges: &[KeyRange]) -> Self {
        if ranges.is_empty() {
            return Self::default();
        }
        let mut bounds: Vec<_> = ranges.iter().filter(|range| !range.is_empty()).map(bounds).collect();
        bounds.sort_unstable();
        let mut merged: Vec<(Bytes, Option<Bytes>)> = Vec::new();
        for (start, end) in bounds {
            match merged.last_mut() {
                Some((_, last)) if last.as_ref().is_none_or(|last| *last >= start) => {
                    if last.is_some() && end.as_ref().is_none_or(|end| last.as_ref() < Some(end)) {
                        *last = end;
                    }
                }
                _ => merged.push((start, end)),
            }
        }
        let span = |(start, end)| match end {
            Some(end) => KeyRange::Span(start, end),
            None => KeyRange::From(start),
        };
        Self { spans: merged.into_iter().map(span).collect() }
    }

    /// Whether it is every key.
    #[must_use]
    pub fn is_all(&self) -> bool {
        matches!(self.spans.as_slice(), [KeyRange::From(start)] if start.is_empty())
    }

    /// Its parts in key order; as [`Scope::new`] takes them, but for the scope without any key.
    #[must_use]
    pub fn spans(&self) -> &[KeyRange] {
        &self.spans
    }

    /// As requests and configurations say it: none for every key.
    #[must_use]
    pub fn ranges(&self) -> &[KeyRange] {
        if self.is_all() { &[] } else { &self.spans }
    }

    /// Whether `key` is inside.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        let at = self.spans.partition_point(|span| span.start().as_ref() <= key);
        at > 0 && self.spans[at - 1].contains(key)
    }

    /// Whether every key of `range` is inside.
    #[must_use]
    pub fn covers(&self, range: &KeyRange) -> bool {
        if range.is_empty() {
            return true;
        }
        let (start, end) = bounds(range);
        let at = self.spans.partition_point(|span| *span.start() <= start);
        // Parts that touch are one, so a range that is covered lies in one of them.
        at > 0
            && match (bounds(&self.spans[at - 1]).1, end) {
                (None, _) => true,
                (Some(_), None) => false,
                (Some(own), Some(end)) => end <= own,
            }
    }

    /// Whether every key of these ranges is inside; none stands for every key.
    #[must_use]
    pub fn covers_all(&self, ranges: &[KeyRange]) -> bool {
        if ranges.is_empty() { self.is_all() } else { ranges.iter().all(|range| self.covers(range)) }
    }
}

/// Start and end; none: open. Not for empty ranges.
fn bounds(range: &KeyRange) -> (Bytes, Option<Bytes>) {
    match range {
        KeyRange::Key(key) => {
            let mut end = BytesMut::with_capacity(key.len() + 1);
            end.put_slice(key);
            end.put_u8(0);
            (key.clone(), Some(end.freeze()))
        }
        KeyRange::Span(start, end) => (start.clone(), Some(end.clone())),
        KeyRange::From(start) => (start.clone(), None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(0u8..3, 0..3).prop_map(Bytes::from)
    }

    fn range() -> impl Strategy<Value = KeyRange> {
        prop_oneof![
            key().prop_map(KeyRange::Key),
            (key(), key()).prop_map(|(start, end)| KeyRange::Span(start, end)),
            key().prop_map(KeyRange::From),
        ]
    }

    /// Every key that tells two of these ranges apart.
    fn keys() -> Vec<Vec<u8>> {
        let mut keys = vec![vec![]];
        for len in 1..=3 {
            keys.extend((0..3u8.pow(len)).map(|n| (0..len).map(|d| n / 3u8.pow(d) % 3).collect()));
        }
        keys
    }

    proptest! {
        #[test]
        fn it_holds_what_its_ranges_hold(ranges in prop::collection::vec(range(), 1..5), asked in range()) {
            let scope = Scope::new(&ranges);
            for key in keys() {
                prop_assert_eq!(scope.contains(&key), ranges.iter().any(|r| r.contains(&key)), "{:?}", key);
            }
            // The first key that is missing is a bound of a range, or the one behind a single key.
            let is_inside = keys().iter().filter(|key| asked.contains(key)).all(|key| scope.contains(key));
            prop_assert_eq!(scope.covers(&asked), is_inside, "{:?} {:?}", scope, asked);
            prop_assert!(scope.spans().is_empty() || Scope::new(scope.spans()) == scope);
        }
    }

    #[test]
    fn no_ranges_are_every_key() {
        let all = Scope::new(&[]);
        assert!(all.is_all() && all.covers_all(&[]) && all.covers(&KeyRange::all()) && all.ranges().is_empty());
        let some = Scope::new(&[KeyRange::from_etcd(Bytes::from_static(b"a"), Bytes::from_static(b"b"))]);
        assert!(!some.covers_all(&[]) && !some.is_all());
        assert!(
            Scope::new(&[
                KeyRange::Span(Bytes::new(), Bytes::from_static(b"b")),
                KeyRange::From(Bytes::from_static(b"b"))
            ])
            .is_all()
        );
    }
}
