//! Whole snapshots through memory.

use proptest::prelude::*;
use prost::Message;
use tailwater_api::mvccpb::KeyValue;

use crate::{
    Change, Facts, Lease, Limits, RowRevision, SnapshotError, SnapshotPlanner, SnapshotReader, SnapshotWriter,
};

/// A row of history: the key's number, and the length of its value or none for a delete.
type Event = (RowRevision, u8, Option<usize>);

fn put_of(at: RowRevision, key: u8, value: usize) -> Vec<u8> {
    let (key, value) = (vec![key; 5], vec![b'v'; value]);
    KeyValue {
        key: key.into(),
        create_revision: 1,
        mod_revision: at.main,
        version: at.main,
        value: value.into(),
        lease: 0,
    }
    .encode_to_vec()
}

fn write(events: &[Event], revision: i64, leases: &[Lease], facts: &Facts) -> Vec<u8> {
    let mut planner = SnapshotPlanner::new(facts).expect("a plan");
    for &(at, key, value) in events {
        match value {
            Some(value) => planner.put(at, put_of(at, key, value).len()).expect("rows in order"),
            None => planner.delete(at, 5).expect("rows in order"),
        }
    }
    planner.end_history(revision).expect("an end");
    for lease in leases {
        planner.lease(lease).expect("leases in order");
    }
    let plan = planner.finish().expect("a plan");
    let mut writer = SnapshotWriter::new(Vec::new(), plan, facts).expect("memory takes it");
    for &(at, key, value) in events {
        match value {
            Some(value) => writer.put(at, &put_of(at, key, value)).expect("as planned"),
            None => writer.delete(at, &[key; 5]).expect("as planned"),
        }
    }
    writer.end_history(revision).expect("as planned");
    for lease in leases {
        writer.lease(lease).expect("as planned");
    }
    let snapshot = writer.finish().expect("as planned");
    assert_eq!(snapshot.len() as u64, plan.snapshot_bytes());
    snapshot
}

/// History, the revision that it was raised to, leases and the rest.
type Content = (Vec<Event>, Option<i64>, Vec<Lease>, Facts);

/// Everything that is in a snapshot, or the first error.
fn read(snapshot: &[u8]) -> Result<Content, SnapshotError> {
    let reader = SnapshotReader::open(snapshot, Limits { value_bytes_max: 1 << 20, ..Limits::default() })?;
    let (mut events, mut bump, mut leases) = (Vec::new(), None, Vec::new());
    let mut history = reader.history()?;
    while let Some((at, change)) = history.next()? {
        match change {
            Change::Put { key_value, .. } => events.push((at, key_value.key[0], Some(key_value.value.len()))),
            Change::Delete { key } => events.push((at, key[0], None)),
            Change::Bump => bump = Some(at.main),
        }
    }
    let mut rows = reader.leases()?;
    while let Some(lease) = rows.next()? {
        leases.push(lease);
    }
    Ok((events, bump, leases, reader.facts()?))
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let step = (0_i64..3, any::<u8>(), proptest::option::weighted(0.8, 0_usize..3000));
    proptest::collection::vec(step, 0..150).prop_map(|steps| {
        let mut at = RowRevision { main: 1, sub: 0 };
        let next = |(ahead, key, value)| {
            at = if ahead == 0 {
                RowRevision { sub: at.sub + 1, ..at }
            } else {
                RowRevision { main: at.main + ahead, sub: 0 }
            };
            (at, key, value)
        };
        steps.into_iter().map(next).collect()
    })
}

fn leases() -> impl Strategy<Value = Vec<Lease>> {
    proptest::collection::btree_map(1..i64::MAX, (1..i64::MAX, 0..i64::MAX), 0..80).prop_map(|leases| {
        leases.into_iter().map(|(id, (ttl, remaining_ttl))| Lease { id, ttl, remaining_ttl }).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn what_was_written_is_read(events in events(), leases in leases(), ahead in 0_i64..3, term in 0_u64..9) {
        let reached = events.last().map_or(1, |(at, ..)| at.main);
        let facts = Facts { term, scheduled_compaction: Some(1), ..Facts::default() };
        let snapshot = write(&events, reached + ahead, &leases, &facts);
        let reader = SnapshotReader::open(snapshot.as_slice(), Limits::default()).expect("a sound file");
        reader.verify_trailer().expect("a sound file");
        prop_assert_eq!(reader.status().expect("a sound file").revision, if ahead > 0 { reached + ahead } else { reached * i64::from(!events.is_empty()) });
        let bump = (ahead > 0).then_some(reached + ahead);
        prop_assert_eq!(read(&snapshot).expect("a sound file"), (events, bump, leases, facts));
    }

    #[test]
    fn flipped_bytes_are_found_by_the_trailer_and_cause_no_panic(
        events in events(),
        leases in leases(),
        flips in proptest::collection::vec((any::<proptest::sample::Index>(), 1..=255_u8), 1..10),
    ) {
        let facts = Facts { storage_version: Some("3.6.0".to_owned()), ..Facts::default() };
        let mut snapshot = write(&events, 1000, &leases, &facts);
        let whole = snapshot.clone();
        let bytes = snapshot.len();
        for (at, flip) in flips {
            snapshot[at.index(bytes)] ^= flip;
        }
        let _ = read(&snapshot);
        let Ok(reader) = SnapshotReader::open(snapshot.as_slice(), Limits::default()) else { return Ok(()) };
        let _ = reader.status();
        prop_assert_eq!(reader.verify_trailer().is_err(), snapshot != whole);
    }
}

#[test]
fn a_revision_that_a_compaction_reaches_needs_no_row() {
    let at = RowRevision { main: 5, sub: 0 };
    let facts = Facts { finished_compaction: Some(9), ..Facts::default() };
    let (events, bump, ..) = read(&write(&[(at, 1, Some(1))], 9, &[], &facts)).expect("a sound file");
    assert_eq!((events.len(), bump), (1, None));
    let (events, bump, ..) = read(&write(&[(at, 1, Some(1))], 10, &[], &facts)).expect("a sound file");
    assert_eq!((events.len(), bump), (1, Some(10)));
}

#[test]
fn a_snapshot_without_trailer_or_buckets_is_told_apart() {
    let snapshot = write(&[], 1, &[], &Facts::default());
    let database = &snapshot[..snapshot.len() - 32];
    let reader = SnapshotReader::open(database, Limits::default()).expect("a database");
    assert!(matches!(reader.verify_trailer(), Err(SnapshotError::NoTrailer)));
    let plan = crate::bolt::BoltPlanner::default().finish().expect("a plan");
    let empty = crate::bolt::BoltWriter::new(Vec::new(), plan).and_then(crate::bolt::BoltWriter::finish);
    let (empty, _) = empty.expect("memory takes it");
    assert!(matches!(SnapshotReader::open(empty, Limits::default()), Err(SnapshotError::NoBucket("key"))));
}

#[test]
#[should_panic(expected = "the history ends at 4, but has rows up to 5")]
fn a_revision_below_its_rows_is_a_broken_promise() {
    write(&[(RowRevision { main: 5, sub: 0 }, 1, Some(1))], 4, &[], &Facts::default());
}

#[test]
fn rows_that_etcd_would_not_write_are_refused() {
    let facts = Facts::default();
    let at = RowRevision { main: 5, sub: 0 };
    let keyless = KeyValue { mod_revision: 5, create_revision: 5, version: 1, ..KeyValue::default() };
    for wrong in [b"\xff".to_vec(), put_of(RowRevision { main: 6, sub: 0 }, 1, 1), keyless.encode_to_vec()] {
        let mut planner = SnapshotPlanner::new(&facts).expect("a plan");
        planner.put(at, wrong.len()).expect("a first row");
        planner.end_history(5).expect("an end");
        let mut writer = SnapshotWriter::new(Vec::new(), planner.finish().expect("a plan"), &facts).expect("a sink");
        writer.put(at, &wrong).expect("as planned");
        writer.end_history(5).expect("as planned");
        let snapshot = writer.finish().expect("as planned");
        assert!(matches!(read(&snapshot), Err(SnapshotError::Row(_))));
    }
}
