//! Damage to what was synced: an error that names file and offset, never a silent loss.

use super::*;

/// A whole seal.
const SEAL_BYTES: usize = format::RECORD_HEADER_BYTES + 16;

/// A log of several segments, with a conflict and a trim, every batch synced; its process was killed.
fn killed() -> (SimDisk, Vec<Entry>) {
    let disk = SimDisk::new(SyncMode::Honest);
    let (mut log, _) = open(&disk).unwrap();
    for first in (1..=71).step_by(10) {
        put(&mut log, &entries(first..=first + 9, 1), Some(&hard(1, first - 1)));
        log.sync().unwrap();
    }
    put(&mut log, &entries(78..=84, 2), Some(&hard(2, 77)));
    log.sync().unwrap();
    log.trim_to(30).unwrap();
    log.sync().unwrap();
    let held = all(&log);
    (disk.kill(), held)
}

fn files(disk: &SimDisk) -> Vec<(String, Vec<u8>)> {
    disk.list().unwrap().into_iter().map(|name| (name.clone(), disk.read(&name).unwrap())).collect()
}

#[test]
fn a_flipped_bit_at_any_byte_is_named_or_touches_nothing_that_was_synced() {
    let (disk, held) = killed();
    let files = files(&disk);
    assert!(files.len() >= 2, "the test wants a sealed segment");
    let (mut errors, mut harmless) = (0, 0);
    for (nth, (name, bytes)) in files.iter().enumerate() {
        for offset in 0..bytes.len() as u64 {
            let copy = disk.kill();
            assert!(copy.flip_bit(name, offset, u8::try_from(offset % 8).unwrap()));
            match open(&copy) {
                Err(RaftLogError::Corrupt { file, offset: at, reason }) => {
                    assert!(&file == name && at <= offset && !reason.is_empty(), "{file} {at} {reason}");
                    // The named record is the damaged one: the flip is not past the largest record here.
                    assert!(offset - at < 1000, "{name}: flip at {offset}, reported at {at}");
                    errors += 1;
                }
                Err(other) => panic!("{name} at {offset}: {other}"),
                Ok((log, recovered)) => {
                    assert_eq!(all(&log), held, "{name} at {offset}: entries are lost");
                    assert_eq!(recovered.hard_state, hard(2, 77));
                    // Only the seal and the very last mark, which vouch for nothing that is not known otherwise.
                    let from_end = bytes.len() as u64 - offset;
                    let slack = if nth + 1 == files.len() { MARK_BYTES } else { MARK_BYTES + SEAL_BYTES };
                    assert!(from_end <= slack as u64, "{name} at {offset} of {}: not noticed", bytes.len());
                    harmless += 1;
                }
            }
        }
    }
    assert!(errors > 1000 && harmless > 0, "{errors} errors, {harmless} harmless");
}

#[test]
fn a_flipped_bit_in_a_never_synced_tail_cuts_only_that_tail() {
    let (disk, held) = killed();
    let (mut log, _) = open(&disk).unwrap();
    let before = files(&disk).pop().unwrap().1.len() as u64;
    put(&mut log, &entries(85..=90, 2), Some(&hard(2, 80)));
    let (name, bytes) = files(&disk).pop().unwrap();
    for offset in before..bytes.len() as u64 {
        let copy = disk.kill();
        assert!(copy.flip_bit(&name, offset, 3));
        let (log, recovered) = open(&copy).unwrap();
        let cut = recovered.cut.unwrap();
        assert_eq!((cut.file, cut.offset, cut.bytes), (name.clone(), before, bytes.len() as u64 - before));
        assert_eq!((all(&log), recovered.hard_state), (held.clone(), hard(2, 77)));
    }
}

#[test]
fn a_flipped_bit_is_found_by_a_read_of_a_running_log() {
    let disk = SimDisk::new(SyncMode::Honest);
    let (mut log, _) = open(&disk).unwrap();
    for first in (1..=91).step_by(10) {
        put(&mut log, &entries(first..=first + 9, 1), None);
    }
    let (name, _) = files(&disk).remove(0);
    assert!(disk.flip_bit(&name, 400, 1));
    let error = log.view().entries(1, 50, None).unwrap_err();
    assert!(matches!(&error, RaftLogError::Corrupt { file, offset, .. } if *file == name && *offset <= 400), "{error}");
}

#[test]
fn a_missing_segment_is_an_error_wherever_it_is() {
    let (disk, _) = killed();
    let names = disk.list().unwrap();
    assert!(names.len() >= 3, "first, middle and last differ");
    for name in &names {
        let copy = disk.kill();
        copy.remove(name).unwrap();
        let error = open(&copy).err().unwrap_or_else(|| panic!("{name} is not missed"));
        assert!(matches!(error, RaftLogError::Missing { .. }), "{error}");
    }
}

#[test]
fn a_shortened_sealed_segment_and_a_moved_block_are_errors() {
    let (disk, _) = killed();
    let files = files(&disk);
    let (name, bytes) = &files[0];
    let copy = disk.kill();
    copy.put(name, &bytes[..bytes.len() - 100]);
    let error = open(&copy).err().unwrap();
    assert!(matches!(&error, RaftLogError::Corrupt { file, .. } if file == name), "{error}");
    // A whole valid segment under another's name, and a valid block at another offset.
    let copy = disk.kill();
    copy.put(&files[1].0, bytes);
    assert!(matches!(open(&copy), Err(RaftLogError::Corrupt { offset: 0, .. })));
    let copy = disk.kill();
    let mut moved = bytes.clone();
    moved.copy_within(200..400, 600);
    copy.put(name, &moved);
    assert!(matches!(open(&copy), Err(RaftLogError::Corrupt { .. })));
}

#[test]
fn a_cleanly_closed_log_vouches_for_its_last_batch_after_a_loss_of_power() {
    let disk = SimDisk::new(SyncMode::Honest);
    let (mut log, _) = open(&disk).unwrap();
    put(&mut log, &entries(1..=3, 1), None);
    log.close().unwrap();
    let after = disk.cut(1);
    let (name, bytes) = files(&after).pop().unwrap();
    assert!(after.flip_bit(&name, bytes.len() as u64 - MARK_BYTES as u64 - 1, 0));
    assert!(matches!(open(&after), Err(RaftLogError::Corrupt { .. })));
}

#[test]
fn garbage_never_panics() {
    use rand::{Rng, SeedableRng};
    let (disk, _) = killed();
    let (name, bytes) = files(&disk).pop().unwrap();
    let mut rng = rand::rngs::StdRng::seed_from_u64(5);
    for _ in 0..500 {
        let mut damaged = bytes.clone();
        let start = rng.random_range(0..damaged.len());
        let end = (start + rng.random_range(1..300)).min(damaged.len());
        rng.fill(&mut damaged[start..end]);
        let copy = disk.kill();
        copy.put(&name, &damaged);
        drop(open(&copy));
        drop(SegmentHeader::decode(&damaged[start..]));
        for kind in [Kind::Batch, Kind::Mark, Kind::Trim, Kind::Reset, Kind::Seal] {
            drop(format::decode_record(kind, &damaged[start..end]));
        }
    }
}

#[test]
fn a_cut_is_remembered_until_it_is_settled_wherever_power_goes() {
    let (disk, _) = killed();
    let (name, bytes) = files(&disk).pop().unwrap();
    let file = disk.open(&name).unwrap();
    file.write_at(bytes.len() as u64, &[b't'; 21]).unwrap();
    file.sync().unwrap();
    for after in 0.. {
        let interrupted = disk.kill();
        interrupted.fail_after(Some(interrupted.writes() + after));
        let opened = open(&interrupted).is_ok();
        let (_, recovered) = open(&interrupted.cut(after)).unwrap();
        assert!(recovered.doubtful, "after {after} operations");
        if opened {
            break;
        }
    }
    let (mut log, recovered) = open(&disk).unwrap();
    assert!(recovered.cut.is_some() && recovered.doubtful);
    drop(log);
    let (again, recovered) = open(&disk).unwrap();
    assert!(recovered.cut.is_none() && recovered.doubtful);
    log = again;
    log.settle().unwrap();
    log.settle().unwrap();
    assert!(!open(&disk.kill()).unwrap().1.doubtful);
}

#[test]
fn only_a_torn_mark_is_cut_without_a_doubt() {
    let disk = SimDisk::new(SyncMode::Honest);
    let (mut log, _) = open(&disk).unwrap();
    let (name, before) = files(&disk).pop().unwrap();
    log.view().stage(&entries(1..=1, 1));
    log.append(&entries(1..=1, 1), None).unwrap();
    log.sync().unwrap();
    drop(log);
    let (_, bytes) = files(&disk).pop().unwrap();
    let batch_end = bytes.len() - MARK_BYTES;
    for left in 1..MARK_BYTES {
        for (start, doubtful) in [(batch_end, false), (before.len(), true)] {
            let torn = disk.kill();
            torn.put(&name, &bytes[..start + left]);
            let (_, recovered) = open(&torn).unwrap();
            assert!(recovered.cut.is_some());
            assert_eq!(recovered.doubtful, doubtful, "{left} bytes behind {start}");
        }
    }
}
