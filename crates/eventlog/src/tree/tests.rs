#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Insert(u16, u32, bool),
    Remove(u16),
    SetLive(u16, bool),
    RemoveSpan(u16, u16),
    InsertRun(u16, u16),
    Snapshot,
}

fn key(number: u16) -> Vec<u8> {
    // Different lengths, so that order is by bytes and not by number.
    format!("{number}").into_bytes()
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let number = || 0..3000u16;
    let step = prop_oneof![
        4 => (number(), any::<u32>(), any::<bool>()).prop_map(|(k, v, live)| Step::Insert(k, v, live)),
        3 => number().prop_map(Step::Remove),
        2 => (number(), any::<bool>()).prop_map(|(k, live)| Step::SetLive(k, live)),
        1 => (number(), 0..800u16).prop_map(|(k, len)| Step::RemoveSpan(k, len)),
        2 => (number(), 0..800u16).prop_map(|(k, len)| Step::InsertRun(k, len)),
        1 => Just(Step::Snapshot),
    ];
    proptest::collection::vec(step, 1..60)
}

type Model = BTreeMap<Vec<u8>, (u32, bool)>;

fn apply(tree: &mut CountedTree<u32>, model: &mut Model, step: &Step) {
    match step {
        Step::Insert(k, v, live) => {
            let old = model.insert(key(*k), (*v, *live)).map(|(old, _)| old);
            assert_eq!(tree.insert(&key(*k), *v, *live), old);
        }
        Step::Remove(k) => assert_eq!(tree.remove(&key(*k)), model.remove(&key(*k)).map(|(old, _)| old)),
        Step::SetLive(k, live) => {
            let entry = model.get_mut(&key(*k));
            assert_eq!(tree.set_live(&key(*k), *live), entry.is_some());
            if let Some(entry) = entry {
                entry.1 = *live;
            }
        }
        Step::RemoveSpan(from, len) => {
            for k in *from..from + len {
                assert_eq!(tree.remove(&key(k)).is_some(), model.remove(&key(k)).is_some());
            }
        }
        Step::InsertRun(from, len) => {
            for k in *from..from + len {
                tree.insert(&key(k), u32::from(k), k % 3 != 0);
                model.insert(key(k), (u32::from(k), k % 3 != 0));
            }
        }
        Step::Snapshot => {}
    }
}

fn check(tree: &CountedTree<u32>, model: &Model, a: u16, b: u16) {
    assert_eq!((tree.len(), tree.live_len()), (model.len(), model.values().filter(|entry| entry.1).count()));
    let (start, end) = (Bytes::from(key(a)), Bytes::from(key(b)));
    let ranges = [
        KeyRange::all(),
        KeyRange::Key(start.clone()),
        KeyRange::From(start.clone()),
        KeyRange::Span(start, end.clone()),
    ];
    for range in ranges {
        let inside: Vec<_> = model.iter().filter(|(k, _)| range.contains(k)).collect();
        let found: Vec<_> = tree.range(&range).map(|(k, v, live)| (k.to_vec(), (*v, live))).collect();
        assert_eq!(found, inside.iter().map(|(k, v)| ((*k).clone(), **v)).collect::<Vec<_>>(), "{range:?}");
        assert_eq!(tree.count_live(&range), inside.iter().filter(|(_, v)| v.1).count(), "{range:?}");
        let after: Vec<_> = tree.live_range_after(&range, Some(&end)).map(|(k, ..)| k.to_vec()).collect();
        let expected = inside.iter().filter(|(k, v)| v.1 && k.as_slice() > end.as_ref());
        assert_eq!(after, expected.map(|(k, _)| (*k).clone()).collect::<Vec<_>>(), "{range:?} after {end:?}");
    }
    assert_eq!(tree.get(&key(a)), model.get(&key(a)).map(|(v, _)| v));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn tree_behaves_as_a_map_and_its_snapshots_stay(steps in steps(), a in 0..3000u16, b in 0..3000u16) {
        let (mut tree, mut model) = (CountedTree::new(), Model::new());
        let mut snapshots = Vec::new();
        for step in &steps {
            apply(&mut tree, &mut model, step);
            check(&tree, &model, a, b);
            if matches!(step, Step::Snapshot) {
                snapshots.push((tree.clone(), model.clone()));
            }
        }
        for (tree, model) in &snapshots {
            check(tree, model, b, a);
        }
    }
}

#[test]
fn hundred_thousand_keys_inserted_in_order_and_removed_leave_nothing() {
    let mut tree = CountedTree::new();
    let keys: Vec<_> = (0..100_000u32).map(u32::to_be_bytes).collect();
    for key in &keys {
        tree.insert(key, (), true);
    }
    let middle = KeyRange::Span(Bytes::copy_from_slice(&keys[10]), Bytes::copy_from_slice(&keys[90_010]));
    assert_eq!(tree.count_live(&middle), 90_000);
    for key in keys.iter().rev().step_by(2).chain(keys.iter().step_by(2)) {
        assert!(tree.remove(key).is_some());
    }
    assert!(tree.is_empty() && tree.live_len() == 0 && tree.range(&KeyRange::all()).next().is_none());
}

#[test]
fn large_keys_make_small_leaves_and_stay_in_order() {
    let mut tree = CountedTree::new();
    let key = |n: usize| [format!("{n:04}").into_bytes(), vec![b'x'; n * 7919 % 40_000]].concat();
    for n in 0..300 {
        tree.insert(&key(n * 77 % 300), n, true);
    }
    let keys: Vec<_> = tree.range(&KeyRange::all()).map(|(key, ..)| key.to_vec()).collect();
    assert_eq!(keys, (0..300).map(key).collect::<Vec<_>>());
    for n in 0..300 {
        assert!(tree.remove(&key(n * 91 % 300)).is_some());
    }
    assert!(tree.is_empty());
}
