#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;
use tailwater_eventlog::KeyRange;

use super::*;
use crate::WatchFilter;

fn acquire(registry: &mut Registry, range: &KeyRange) -> SharedGroup {
    let key = GroupKey::new(range, WatchFilter::default(), false);
    registry.acquire(key, 0, &Arc::new(Inbox::new(1))).0
}

fn bytes() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(prop_oneof![Just(0u8), Just(b'a'), Just(b'b'), Just(254u8), Just(255u8)], 0..4)
        .prop_map(Bytes::from)
}

fn range() -> impl Strategy<Value = KeyRange> {
    prop_oneof![
        bytes().prop_map(KeyRange::Key),
        bytes().prop_map(KeyRange::From),
        (bytes(), bytes()).prop_map(|(a, b)| KeyRange::Span(a, b)),
        bytes().prop_map(|p| {
            let mut end = p.to_vec();
            while end.last() == Some(&255) {
                end.pop();
            }
            match end.last_mut() {
                Some(last) => {
                    *last += 1;
                    KeyRange::Span(p, end.into())
                }
                None => KeyRange::From(p),
            }
        }),
    ]
}

proptest! {
    #[test]
    fn finds_what_a_scan_of_all_ranges_finds(
        ranges in prop::collection::vec(range(), 0..40),
        removed in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        keys in prop::collection::vec(bytes(), 1..20),
    ) {
        let mut registry = Registry::default();
        let mut model: Vec<(KeyRange, SharedGroup)> = Vec::new();
        for range in ranges {
            let group = acquire(&mut registry, &range);
            model.push((range, group));
        }
        for index in removed {
            if !model.is_empty() {
                let (range, group) = model.swap_remove(index.index(model.len()));
                let is_last = model.iter().all(|(other, _)| *other != range);
                prop_assert_eq!(registry.release(&group), is_last);
            }
        }
        for key in keys {
            let mut hits = Vec::new();
            registry.find(&key, &mut hits);
            let mut found: Vec<KeyRange> =
                hits.iter().map(|&at| registry.slots[at].as_ref().unwrap().key().range()).collect();
            let mut expected: Vec<KeyRange> = model.iter().map(|(range, _)| range).filter(|range| range.contains(&key)).cloned().collect();
            expected.sort();
            expected.dedup();
            found.sort();
            prop_assert_eq!(found, expected);
        }
    }
}

#[test]
fn an_empty_registry_is_left_when_all_watchers_are_gone() {
    let mut registry = Registry::default();
    let ranges = [
        KeyRange::Key("a".into()),
        KeyRange::Span("a".into(), "b".into()),
        KeyRange::Span("a".into(), "c".into()),
        KeyRange::From("q".into()),
        KeyRange::all(),
    ];
    let groups: Vec<_> = ranges.iter().chain(&ranges).map(|range| acquire(&mut registry, range)).collect();
    assert_eq!(registry.groups(), ranges.len());
    for group in &groups {
        registry.release(group);
    }
    assert_eq!(registry.groups(), 0);
    assert!(registry.index.is_empty() && registry.prefix_lengths.is_empty());
    assert_eq!(registry.find(b"a", &mut Vec::new()), 1);
}

/// Places looked at for one key among `count` watchers of disjoint ranges of one kind.
fn looked(count: usize, range: impl Fn(usize) -> KeyRange) -> usize {
    let mut registry = Registry::default();
    for i in 0..count {
        acquire(&mut registry, &range(i));
    }
    let mut hits = Vec::new();
    let looked = registry.find(format!("/k/{:06}/x", count / 2).as_bytes(), &mut hits);
    assert_eq!(hits.len(), 1);
    looked
}

#[test]
fn matching_costs_the_same_at_10_and_at_100_000_disjoint_watchers() {
    let exact = |i| KeyRange::Key(format!("/k/{i:06}/x").into());
    let prefix = |i| KeyRange::Span(format!("/k/{i:06}/").into(), format!("/k/{i:06}0").into());
    assert_eq!(looked(10, exact), looked(100_000, exact));
    assert_eq!(looked(10, prefix), looked(100_000, prefix));
    // Odd ranges cost the logarithm of their number.
    let odd = |i| KeyRange::Span(format!("/k/{i:06}/a").into(), format!("/k/{i:06}/z").into());
    assert!(looked(100_000, odd) < 100, "{}", looked(100_000, odd));
}
