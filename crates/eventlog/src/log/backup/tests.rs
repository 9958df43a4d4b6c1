#![allow(clippy::unwrap_used)]

use std::path::Path;

use super::super::tests::Writer;
use super::*;
use crate::{FoldProgress, Founder, HistoryId, LeaseId, RestoredPut, Revision};

fn all(backup: &Backup) -> Vec<Event> {
    let mut events = backup.events().unwrap();
    let mut found = Vec::new();
    while let Some(event) = events.next().unwrap() {
        found.push(event);
    }
    found
}

/// A store with a folded part, a log above it, and keys that were deleted in either.
fn filled(directory: &Path) -> Writer {
    let mut writer = Writer::open(directory);
    for at in 0..300 {
        let key = format!("key {}", at * 7 % 50);
        let change = (key.as_str(), (at % 11 != 3).then_some("a value of some length"));
        writer.record(&[change], None);
    }
    writer.record(&[("last", Some("x"))], Some(200));
    while writer.log.fold_step(16).unwrap() != FoldProgress::Done {}
    writer
}

#[test]
fn a_backup_is_what_was_live_at_the_fold_point_and_all_above_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = filled(&directory.path().join("state"));
    check(&writer, Revision(199));
    // Between two steps of a fold base lacks versions that the next steps supersede.
    writer.record(&[("later", Some("y"))], Some(290));
    assert_eq!(writer.log.fold_step(10).unwrap(), FoldProgress::More);
    check(&writer, Revision(289));
}

fn check(writer: &Writer, fold_point: Revision) {
    let backup = writer.log.backup(&BackupConfig::default()).unwrap();
    let found = all(&backup);
    assert_eq!(*backup.numbers(), writer.log.state());
    assert!(found.is_sorted_by_key(|event| (event.revision(), event.sub())));
    assert_eq!(writer.log.state().fold_point, fold_point);
    let mut live = std::collections::BTreeMap::new();
    for event in writer.events.iter().filter(|event| event.revision() <= fold_point) {
        match event.kind() {
            crate::EventKind::Put => live.insert(event.key().to_vec(), Event::clone(event)),
            crate::EventKind::Delete => live.remove(event.key()),
        };
    }
    let mut wanted: Vec<Event> = live.into_values().collect();
    wanted.extend(writer.events.iter().filter(|event| event.revision() > fold_point).map(|event| Event::clone(event)));
    wanted.sort_by_key(|event| (event.revision(), event.sub()));
    assert_eq!(found, wanted);
    // Again, and sorted in pieces of a few rows that go through a file.
    assert_eq!(all(&backup), wanted);
    let small = BackupConfig { memory_bytes_max: 700, spare_bytes_min: 0 };
    assert_eq!(all(&writer.log.backup(&small).unwrap()), wanted);
}

#[test]
fn a_backup_shows_its_own_moment_and_folding_waits_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = filled(&directory.path().join("state"));
    let backup = writer.log.backup(&BackupConfig::default()).unwrap();
    let before = all(&backup);
    writer.record(&[("later", Some("y"))], Some(290));
    assert_eq!(writer.log.fold_step(1000).unwrap(), FoldProgress::Held);
    assert_eq!(all(&backup), before);
    drop(backup);
    assert_ne!(writer.log.fold_step(1000).unwrap(), FoldProgress::Held);
}

#[test]
fn a_sort_that_would_fill_the_disk_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let writer = filled(&directory.path().join("state"));
    let greedy = BackupConfig { memory_bytes_max: 700, spare_bytes_min: u64::MAX };
    let Err(refused) = writer.log.backup(&greedy) else { panic!("it must not fit") };
    assert!(refused.to_string().contains("too few to sort a backup"), "{refused}");
}

#[test]
fn a_founded_store_goes_on_from_what_it_was_given() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let mut founder = Founder::new(&path, Revision(10)).unwrap();
    let put = |key, create_revision| RestoredPut {
        key,
        value: b"v",
        create_revision: Revision(create_revision),
        version: 1,
        lease: LeaseId(0),
    };
    founder.put(Revision(3), 0, &put(b"a", 3)).unwrap();
    founder.put(Revision(7), 0, &put(b"b", 7)).unwrap();
    founder.delete(Revision(9), 4, b"a").unwrap();
    founder.put(Revision(11), 0, &put(b"b", 7)).unwrap();
    founder.delete(Revision(12), 0, b"b").unwrap();
    let state = [(b"own".to_vec(), b"row".to_vec())];
    let numbers = founder.finish(Revision(12), Revision(10), &state).unwrap();
    let mut writer = Writer::open(&path);
    assert_eq!(writer.log.state(), numbers);
    assert_eq!(numbers.history, HistoryId(0));
    assert!(writer.log.installed().is_some());
    assert_eq!(writer.log.state_get(b"own").unwrap().as_deref(), Some(&b"row"[..]));
    let backup = writer.log.backup(&BackupConfig::default()).unwrap();
    let found = all(&backup);
    let places: Vec<_> = found.iter().map(|event| (event.revision().0, event.prev().map(|prev| prev.0.0))).collect();
    assert_eq!(places, [(7, None), (11, Some(7)), (12, Some(11))]);
    drop(backup);
    // What is written next follows without a hole, also after a compaction and another start.
    writer.record(&[("c", Some("w"))], Some(12));
    while writer.log.fold_step(16).unwrap() != FoldProgress::Done {}
    writer.log.flush().unwrap();
    drop(writer);
    assert_eq!(Writer::open(&path).log.state().revision, Revision(13));
}

#[test]
fn a_store_whose_fold_point_is_its_revision_takes_writes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let founder = Founder::new(&path, Revision(1000)).unwrap();
    founder.finish(Revision(1000), Revision(1000), &[]).unwrap();
    let mut writer = Writer::open(&path);
    writer.record(&[("a", Some("1"))], None);
    writer.record(&[("a", Some("2"))], Some(1001));
    writer.log.flush().unwrap();
    drop(writer);
    let writer = Writer::open(&path);
    assert_eq!((writer.log.state().revision, writer.log.state().fold_point), (Revision(1002), Revision(1000)));
    while writer.log.fold_step(16).unwrap() != FoldProgress::Done {}
    assert_eq!(writer.log.state().fold_point, Revision(1000));
}

#[test]
fn what_is_given_out_of_order_or_with_holes_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let put = RestoredPut { key: b"a", value: b"v", create_revision: Revision(2), version: 1, lease: LeaseId(0) };
    let founded = |name: &str, fold_point, places: &[(i64, u32)]| {
        let mut founder = Founder::new(&directory.path().join(name), Revision(fold_point)).unwrap();
        places.iter().try_for_each(|&(revision, sub)| founder.put(Revision(revision), sub, &put))
    };
    founded("whole", 0, &[(2, 0), (2, 1), (3, 0)]).unwrap();
    for (name, fold_point, places) in [
        ("first", 0, &[(3, 0)][..]),
        ("hole", 0, &[(2, 0), (4, 0)]),
        ("sub", 0, &[(2, 1)]),
        ("back", 9, &[(4, 0), (3, 0)]),
        ("twice", 9, &[(4, 0), (4, 0)]),
        ("above", 9, &[(4, 0), (11, 0)]),
    ] {
        founded(name, fold_point, places).expect_err(name);
    }
    assert!(Founder::new(&directory.path().join("whole"), Revision(0)).is_err());
}
