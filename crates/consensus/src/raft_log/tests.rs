//! Tests of the raft log: what is read is what was written, whatever happens to the disk in between.
#![allow(clippy::unwrap_used)]

mod damage;
mod power;

use std::sync::Arc;

use raft::eraftpb::{Entry, HardState};

use super::disk::DiskFile;
use super::*;

/// Small segments, so that a few batches need several.
fn small() -> RaftLogConfig {
    RaftLogConfig { segment_bytes: 2000, recent_bytes_max: 500, sync_delay: Duration::ZERO, reserved_bytes: 0, salt: 7 }
}

fn open(disk: &SimDisk) -> Result<(RaftLog, Recovered), RaftLogError> {
    RaftLog::open(Arc::new(disk.clone()), small())
}

/// With room made ahead.
fn open_with_room(disk: &SimDisk) -> Result<(RaftLog, Recovered), RaftLogError> {
    RaftLog::open(Arc::new(disk.clone()), RaftLogConfig { reserved_bytes: 900, ..small() })
}

fn entry(index: u64, term: u64) -> Entry {
    let data = format!("data of {index} in {term} ").repeat(usize::try_from(index % 5).unwrap()).into_bytes();
    let context = if index.is_multiple_of(3) { b"context".to_vec() } else { Vec::new() };
    Entry { entry_type: i32::from(index.is_multiple_of(7)), term, index, data, context, sync_log: false }
}

fn entries(indexes: std::ops::RangeInclusive<u64>, term: u64) -> Vec<Entry> {
    indexes.map(|index| entry(index, term)).collect()
}

fn hard(term: u64, commit: u64) -> HardState {
    HardState { term, vote: 2, commit }
}

/// Stages and appends; not synced.
fn put(log: &mut RaftLog, batch: &[Entry], state: Option<&HardState>) {
    log.view().stage(batch);
    log.append(batch, state).unwrap();
}

fn all(log: &RaftLog) -> Vec<Entry> {
    let view = log.view();
    view.entries(view.first_index(), view.last_index() + 1, None).unwrap()
}

#[test]
fn entries_and_hard_state_come_back_after_reopening() {
    let disk = SimDisk::new(SyncMode::Honest);
    let (mut log, recovered) = open(&disk).unwrap();
    assert_eq!(
        recovered,
        Recovered { hard_state: HardState::default(), first_index: 1, last_index: 0, cut: None, doubtful: false }
    );
    put(&mut log, &entries(1..=10, 1), Some(&hard(1, 0)));
    put(&mut log, &entries(11..=40, 2), Some(&hard(2, 10)));
    put(&mut log, &[], Some(&hard(3, 40)));
    log.sync().unwrap();
    assert_eq!(all(&log), [entries(1..=10, 1), entries(11..=40, 2)].concat());
    log.close().unwrap();

    let (log, recovered) = open(&disk).unwrap();
    assert_eq!(
        recovered,
        Recovered { hard_state: hard(3, 40), first_index: 1, last_index: 40, cut: None, doubtful: false }
    );
    assert_eq!(all(&log), [entries(1..=10, 1), entries(11..=40, 2)].concat());
    assert_eq!((log.view().term(10).unwrap(), log.view().term(11).unwrap(), log.view().term(0).unwrap()), (1, 2, 0));
    assert!(matches!(log.view().term(41), Err(RaftLogError::Unavailable { last_index: 40 })));
}

#[test]
fn real_files_hold_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("raft");
    let reopen = || RaftLog::open(Arc::new(RealDisk::new(&path).unwrap()), small()).unwrap();
    let (mut log, _) = reopen();
    for first in (1..200).step_by(10) {
        put(&mut log, &entries(first..=first + 9, 1), None);
        log.sync().unwrap();
    }
    log.trim_to(100).unwrap();
    drop(log);
    let (log, recovered) = reopen();
    assert_eq!((recovered.first_index, recovered.last_index, recovered.cut), (101, 200, None));
    assert_eq!(all(&log), entries(101..=200, 1));
    let held: u64 = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(log.view().bytes(), held);
}

#[test]
fn a_read_is_bounded_in_bytes_but_returns_at_least_one_entry() {
    let disk = SimDisk::new(SyncMode::Honest);
    let (mut log, _) = open(&disk).unwrap();
    for index in 1..=100 {
        put(&mut log, &[entry(index, 1)], None);
    }
    let view = log.view();
    for low in 1..=100 {
        assert_eq!(view.entries(low, 101, Some(0)).unwrap(), [entry(low, 1)]);
        let some = view.entries(low, 101, Some(300)).unwrap();
        let bytes: usize = some.iter().map(entry_bytes).sum();
        let next = low + some.len() as u64;
        assert!(bytes <= 300 && (next == 101 || bytes + entry_bytes(&entry(next, 1)) > 300), "from {low}");
        assert_eq!(some, entries(low..=next - 1, 1));
    }
    assert_eq!(view.entries(5, 5, None).unwrap(), []);
}

#[test]
fn released_entries_are_read_from_the_files() {
    let disk = SimDisk::new(SyncMode::Honest);
    let config = RaftLogConfig { recent_bytes_max: usize::MAX, ..small() };
    let (mut log, _) = RaftLog::open(Arc::new(disk.clone()), config).unwrap();
    let view = log.view();
    let held = || view.shared.lock().recent_bytes;
    put(&mut log, &entries(1..=20, 1), None);
    let twenty = held();
    put(&mut log, &entries(21..=30, 1), None);
    let thirty = held();
    view.release(20);
    assert_eq!(held(), thirty - twenty);
    view.stage(&entries(31..=40, 1));
    let staged = held() - (thirty - twenty);
    view.release(40);
    assert!(staged > 0 && held() == staged, "what is not written stays");
    assert_eq!(view.entries(1, 41, None).unwrap(), entries(1..=40, 1));
    log.append(&entries(31..=40, 1), None).unwrap();
    assert_eq!(held(), 0);
    assert_eq!(view.entries(1, 41, None).unwrap(), entries(1..=40, 1));
    put(&mut log, &entries(41..=50, 2), None);
    assert!(held() > 0);
    assert_eq!(all(&log), [entries(1..=40, 1), entries(41..=50, 2)].concat());
}

#[test]
fn staged_entries_are_visible_before_they_are_written_and_win_over_what_is_in_the_files() {
    let disk = SimDisk::new(SyncMode::Honest);
    let (mut log, _) = open(&disk).unwrap();
    put(&mut log, &entries(1..=30, 1), None);
    let view = log.view();
    let (first, second) = (entries(21..=40, 2), entries(31..=35, 3));
    view.stage(&first);
    view.stage(&second);
    let expected = [entries(1..=20, 1), entries(21..=30, 2), entries(31..=35, 3)].concat();
    assert_eq!(view.entries(1, 36, None).unwrap(), expected);
    // Only the older of the two is written: what it overwrote is gone, what overwrites it is not yet there.
    log.append(&first, None).unwrap();
    assert_eq!(view.entries(1, 36, None).unwrap(), expected);
    log.append(&second, None).unwrap();
    assert_eq!(view.entries(1, 36, None).unwrap(), expected);
    assert_eq!((view.term(30).unwrap(), view.term(31).unwrap(), view.last_index()), (2, 3, 35));
    put(&mut log, &entries(36..=90, 3), None);
    let expected = [expected, entries(36..=90, 3)].concat();
    assert_eq!(all(&log), expected, "out of the files by now");
    log.sync().unwrap();
    let (log, recovered) = open(&disk.cut(1)).unwrap();
    assert_eq!((recovered.last_index, all(&log)), (90, expected));
}

#[test]
fn a_conflicting_batch_replaces_the_suffix_across_segments() {
    let disk = SimDisk::new(SyncMode::Honest);
    let (mut log, _) = open(&disk).unwrap();
    for first in (1..=91).step_by(10) {
        put(&mut log, &entries(first..=first + 9, 1), None);
    }
    assert!(disk.list().unwrap().len() > 2, "the test wants several segments");
    put(&mut log, &entries(15..=18, 2), Some(&hard(2, 14)));
    let expected = [entries(1..=14, 1), entries(15..=18, 2)].concat();
    assert_eq!(all(&log), expected);
    log.sync().unwrap();
    drop(log);
    let (mut log, recovered) = open(&disk).unwrap();
    assert_eq!((recovered.last_index, recovered.hard_state), (18, hard(2, 14)));
    assert_eq!(all(&log), expected);
    put(&mut log, &entries(19..=60, 3), None);
    assert_eq!(all(&log), [expected, entries(19..=60, 3)].concat());
}

#[test]
fn trimming_removes_whole_segments_and_remembers_the_term_below() {
    let disk = SimDisk::new(SyncMode::Honest);
    let (mut log, _) = open(&disk).unwrap();
    for first in (1..=191).step_by(10) {
        put(&mut log, &entries(first..=first + 9, first / 50 + 1), Some(&hard(9, first)));
    }
    let before = (disk.list().unwrap().len(), log.view().bytes());
    log.trim_to(150).unwrap();
    log.trim_to(120).unwrap();
    let view = log.view();
    assert!(disk.list().unwrap().len() < before.0 && view.bytes() < before.1);
    assert_eq!((view.first_index(), view.term(150).unwrap()), (151, 3));
    assert!(matches!(view.term(149), Err(RaftLogError::Compacted { first_index: 151 })));
    assert!(matches!(view.entries(150, 152, None), Err(RaftLogError::Compacted { first_index: 151 })));
    assert_eq!(view.entries(151, 161, None).unwrap(), entries(151..=160, 4));
    log.sync().unwrap();
    let (mut log, recovered) = open(&disk.cut(3)).unwrap();
    assert_eq!((recovered.first_index, recovered.last_index, recovered.hard_state), (151, 200, hard(9, 191)));
    assert_eq!(log.view().term(150).unwrap(), 3);
    log.trim_to(200).unwrap();
    log.sync().unwrap();
    let (log, recovered) = open(&disk.cut(4)).unwrap();
    assert_eq!((recovered.first_index, recovered.last_index), (151, 200), "the first disk is untouched by the second");
    drop(log);
}

#[test]
fn an_empty_log_goes_on_where_it_was_trimmed() {
    let disk = SimDisk::new(SyncMode::Honest);
    let (mut log, _) = open(&disk).unwrap();
    put(&mut log, &entries(1..=50, 4), None);
    log.trim_to(50).unwrap();
    log.close().unwrap();
    let (mut log, recovered) = open(&disk).unwrap();
    assert_eq!((recovered.first_index, recovered.last_index), (51, 50));
    assert_eq!(log.view().term(50).unwrap(), 4);
    put(&mut log, &entries(51..=52, 5), None);
    assert_eq!(all(&log), entries(51..=52, 5));
}

#[test]
fn a_snapshot_drops_all_entries_and_the_log_goes_on_above_it() {
    let disk = SimDisk::new(SyncMode::Honest);
    let (mut log, _) = open(&disk).unwrap();
    for first in (1..=91).step_by(10) {
        put(&mut log, &entries(first..=first + 9, 1), Some(&hard(1, 5)));
    }
    let view = log.view();
    let (late, point, next) = (entries(101..=110, 1), LogPoint { index: 500, term: 6 }, entries(501..=503, 6));
    // What raft does at once, the writer follows later and in order.
    view.stage(&late);
    view.stage_snapshot(point);
    view.stage(&next);
    assert_eq!(view.entries(501, 504, None).unwrap(), next);
    log.append(&late, None).unwrap();
    log.trim_to(20).unwrap();
    log.reset_to_snapshot(point).unwrap();
    log.append(&next, None).unwrap();
    assert_eq!(all(&log), next);
    assert_eq!(disk.list().unwrap().len(), 1);
    log.sync().unwrap();
    let (log, recovered) = open(&disk.cut(5)).unwrap();
    assert_eq!((recovered.first_index, recovered.last_index, recovered.hard_state), (501, 503, hard(1, 5)));
    assert_eq!((all(&log), log.view().term(500).unwrap()), (next, 6));
}

#[test]
fn after_a_failed_write_nothing_more_is_written() {
    let disk = SimDisk::new(SyncMode::Honest);
    let (mut log, _) = open(&disk).unwrap();
    put(&mut log, &entries(1..=2, 1), None);
    disk.fail_after(Some(disk.writes()));
    assert!(matches!(log.sync(), Err(RaftLogError::Io { operation: "sync", .. })));
    disk.fail_after(None);
    assert!(matches!(log.sync(), Err(RaftLogError::Failed)));
    assert!(matches!(log.append(&entries(3..=3, 1), None), Err(RaftLogError::Failed)));
}

#[test]
fn a_batch_larger_than_a_record_is_split_and_read_back() {
    let disk = SimDisk::new(SyncMode::Honest);
    let (mut log, _) = open(&disk).unwrap();
    let large: Vec<Entry> = (1..=5)
        .map(|index| Entry { index, term: 1, data: vec![7; PAYLOAD_BYTES_SOFT_MAX / 2], ..Entry::default() })
        .collect();
    put(&mut log, &large, Some(&hard(1, 0)));
    log.sync().unwrap();
    let (log, recovered) = open(&disk).unwrap();
    assert_eq!((recovered.last_index, recovered.hard_state), (5, hard(1, 0)));
    assert!(all(&log) == large);
}

#[test]
fn the_format_is_what_the_golden_file_holds() {
    let disk = SimDisk::new(SyncMode::Honest);
    let (mut log, _) = RaftLog::open(Arc::new(disk.clone()), RaftLogConfig { salt: 0x5a17, ..small() }).unwrap();
    put(&mut log, &entries(1..=7, 1), Some(&hard(1, 0)));
    log.sync().unwrap();
    put(&mut log, &entries(5..=6, 2), Some(&hard(2, 4)));
    log.trim_to(3).unwrap();
    log.reset_to_snapshot(LogPoint { index: 9, term: 3 }).unwrap();
    log.close().unwrap();
    let name = "0000000000000001-0000000000000001.log";
    let written = disk.read(name).unwrap();
    let golden = include_bytes!("tests/golden.log");
    assert!(written == golden, "format changed: a new version needs a new golden file and a reader for the old");
    let copy = SimDisk::new(SyncMode::Honest);
    copy.put(name, golden);
    let (_, recovered) = open(&copy).unwrap();
    assert_eq!((recovered.first_index, recovered.last_index, recovered.cut), (10, 9, None));
}

#[test]
fn a_file_handle_reads_on_after_its_name_is_gone() {
    let disk = SimDisk::new(SyncMode::Honest);
    let file = disk.create("a").unwrap();
    file.write_at(0, b"abc").unwrap();
    disk.remove("a").unwrap();
    let mut bytes = [0; 3];
    file.read_at(0, &mut bytes).unwrap();
    assert_eq!((&bytes, disk.open("a").is_err()), (b"abc", true));
}

fn len(file: &Arc<dyn DiskFile>) -> u64 {
    file.size().unwrap()
}

#[test]
fn the_index_below_some_bytes_leaves_at_least_so_many() {
    let disk = SimDisk::new(SyncMode::Honest);
    let config = RaftLogConfig { segment_bytes: 1 << 20, ..small() };
    let (mut log, _) = RaftLog::open(Arc::new(disk), config).unwrap();
    let view = log.view();
    assert_eq!((view.held_bytes(), view.index_below(1)), (0, 0));
    for index in 1..=100 {
        put(&mut log, &[Entry { index, term: 1, data: vec![1; 30 << 10], ..Default::default() }], None);
    }
    let bytes = 30 << 10;
    let held = view.held_bytes();
    assert!((100 * bytes..101 * bytes).contains(&held), "{held}");
    assert_eq!(view.index_below(held + 1), 0, "there are not so many");
    for kept in [1, 100 << 10, 1 << 20] {
        let index = view.index_below(kept);
        let above = (100 - index) * bytes;
        assert!(above >= kept && above < kept + (128 << 10), "{above} bytes above {index}, {kept} wanted");
    }
    log.trim_to(50).unwrap();
    assert!(view.held_bytes() < 53 * bytes);
    assert_eq!(view.index_below(90 * bytes), 50);
}
