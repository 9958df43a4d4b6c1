#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::Envelope;

fn put(revision: i64, sub: u32, key: &[u8], create: i64, version: i64) -> Event {
    let envelope = Envelope {
        kind: EventKind::Put,
        revision: Revision(revision),
        sub,
        create_revision: Revision(create),
        version,
        lease: LeaseId(revision * 10),
        prev: None,
    };
    Event::put(envelope, key, b"value")
}

/// All events ever, searched from the front: slow and plain.
#[derive(Default)]
struct Model {
    events: Vec<Event>,
    compacted: i64,
}

impl Model {
    fn live(&self, key: &[u8], at: i64) -> Option<&Event> {
        let newest = self.events.iter().rfind(|event| event.key() == key && event.revision().0 <= at)?;
        (newest.kind() == EventKind::Put).then_some(newest)
    }

    fn keys(&self, at: i64) -> Vec<Bytes> {
        let keys: std::collections::BTreeSet<_> =
            self.events.iter().map(|event| Bytes::copy_from_slice(event.key())).collect();
        keys.into_iter().filter(|key| self.live(key, at).is_some()).collect()
    }

    /// Keys that an index still needs after its compaction.
    fn kept(&self) -> usize {
        let keys: std::collections::BTreeSet<_> = self.events.iter().map(|event| event.key().to_vec()).collect();
        let kept = keys.iter().filter(|key| {
            let newer = self.events.iter().any(|event| event.key() == **key && event.revision().0 > self.compacted);
            newer || self.live(key, self.compacted).is_some()
        });
        kept.count()
    }
}

fn check(index: &KeyIndex, model: &Model, newest: i64) {
    for at in model.compacted.max(1)..=newest {
        let keys = model.keys(at);
        let found = index.range(&KeyRange::all(), Revision(at), 0);
        assert_eq!(found.iter().map(|meta| meta.key.clone()).collect::<Vec<_>>(), keys, "at {at}");
        assert_eq!(index.count(&KeyRange::all(), Revision(at)), keys.len(), "at {at}");
        for meta in found {
            let envelope = model.live(&meta.key, at).unwrap().envelope();
            assert_eq!(
                (meta.mod_revision, meta.sub, meta.create_revision, meta.version, meta.lease),
                (envelope.revision, envelope.sub, envelope.create_revision, envelope.version, envelope.lease)
            );
            assert_eq!(index.get(&meta.key, Revision(at)), Some(meta));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn index_answers_as_a_plain_list_of_events(
        writes in proptest::collection::vec((0..12u8, any::<bool>(), any::<bool>()), 1..80),
        compactions in proptest::collection::vec(0..80i64, 0..4),
        step in 1..9usize,
    ) {
        let (mut index, mut model) = (KeyIndex::default(), Model::default());
        let mut revision = 1;
        for (key, delete, both) in writes {
            let key = [b'k', key];
            revision += 1;
            let old = index.latest(&key);
            let (create, version) =
                old.as_ref().map_or((revision, 1), |old| (old.create_revision.0, old.version + 1));
            let mut events = Vec::new();
            if !delete || both || old.is_none() {
                events.push(put(revision, 0, &key, create, version));
            }
            if delete {
                events.push(Event::delete(Revision(revision), 1, &key, None));
            }
            for event in events {
                index.insert(&event);
                let latest = index.latest(&key).map(|meta| (meta.mod_revision, meta.sub));
                let expected = (event.kind() == EventKind::Put).then_some((event.revision(), event.sub()));
                prop_assert_eq!(latest, expected);
                model.events.push(event);
            }
        }
        check(&index, &model, revision);
        for compacted in compactions.into_iter().map(|compacted| compacted.min(revision)) {
            if compacted <= model.compacted {
                continue;
            }
            model.compacted = compacted;
            let mut calls = 0;
            while !index.compact_step(Revision(compacted), step) {
                calls += 1;
                check(&index, &model, revision);
                prop_assert!(calls <= 12);
            }
            check(&index, &model, revision);
            prop_assert_eq!(index.len(), model.kept());
        }
    }
}

#[test]
fn delete_at_the_compacted_revision_forgets_the_key() {
    let mut index = KeyIndex::default();
    index.insert(&put(2, 0, b"a", 2, 1));
    index.insert(&Event::delete(Revision(3), 0, b"a", None));
    index.insert(&put(4, 0, b"b", 4, 1));
    assert!(index.compact_step(Revision(2), 100));
    assert_eq!(index.get(b"a", Revision(2)).unwrap().mod_revision, Revision(2));
    assert!(index.compact_step(Revision(3), 100));
    assert_eq!(index.len(), 1);
}

#[test]
fn limit_cuts_and_zero_does_not() {
    let mut index = KeyIndex::default();
    for key in 0..10u8 {
        index.insert(&put(i64::from(key) + 2, 0, &[key], 2, 1));
    }
    assert_eq!(index.range(&KeyRange::all(), Revision(100), 3).len(), 3);
    assert_eq!(index.range(&KeyRange::all(), Revision(5), 0).len(), 4);
    assert_eq!(index.count(&KeyRange::From(Bytes::from_static(&[8])), Revision(11)), 2);
}
