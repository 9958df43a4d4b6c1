//! Segments of a raft log: what is damaged is told or cut, and what was opened can be read, written and opened again.

use std::sync::{Arc, LazyLock};

use raft::eraftpb::{Entry, HardState};
use tailwater_consensus::raft_log::{Disk, RaftLog, RaftLogConfig, SimDisk, SyncMode};

use crate::patches::{PATCH_BYTES, patched};

/// See the prose in `raft_log`.
const HEADER_BYTES: usize = 108;
const RECORD_HEADER_BYTES: usize = 12;
const SALT: std::ops::Range<usize> = 12..20;
/// Of what an entry holds here.
const ENTRY_BYTES: usize = 20;

/// Three segments, with a reset between.
static FILES: LazyLock<Vec<(String, Vec<u8>)>> = LazyLock::new(|| {
    let disk = SimDisk::new(SyncMode::Honest);
    let (mut log, _) = RaftLog::open(Arc::new(disk.clone()), config()).expect("an empty directory");
    for index in 1..=12 {
        let state = HardState { term: 1 + index / 5, vote: 1, commit: index - 1 };
        let entries = [entry(index, state.term)];
        log.view().stage(&entries);
        log.append(&entries, Some(&state)).expect("a disk in memory");
        if index % 2 == 0 {
            log.sync().expect("a disk in memory");
        }
        if index == 6 {
            log.trim_to(4).expect("a disk in memory");
        }
    }
    log.close().expect("a disk in memory");
    let names = disk.list().expect("a disk in memory");
    names.into_iter().map(|name| (name.clone(), disk.read(&name).expect("a file"))).collect()
});

fn config() -> RaftLogConfig {
    RaftLogConfig { segment_bytes: 400, salt: 77, ..RaftLogConfig::default() }
}

fn entry(index: u64, term: u64) -> Entry {
    let data = vec![u8::try_from(index % 251).expect("small"); ENTRY_BYTES];
    Entry { term, index, data, context: vec![7], ..Default::default() }
}

/// The first byte says which file is changed by the rest, and whether its checksums are made to fit then.
pub(crate) fn check(data: &[u8]) -> bool {
    let Some((&how, patches)) = data.split_first() else { return false };
    let disk = SimDisk::new(SyncMode::Honest);
    let changed = usize::from(how & 0x3f) % FILES.len();
    for (at, (name, bytes)) in FILES.iter().enumerate() {
        let bytes = if at == changed { patched(bytes, patches) } else { bytes.clone() };
        let bytes = if at == changed && how & 0x80 != 0 { resealed(bytes) } else { bytes };
        // Cut away by the change: not there.
        if !bytes.is_empty() || how & 0x40 == 0 {
            disk.put(name, &bytes);
        }
    }
    let Ok((mut log, found)) = RaftLog::open(Arc::new(disk.clone()), config()) else { return false };
    let view = log.view();
    assert!(found.first_index <= found.last_index + 1, "{found:?}");
    assert_eq!((view.first_index(), view.last_index()), (found.first_index, found.last_index));
    let term = read(&log, found.first_index, found.last_index);
    let (next, term) = (found.last_index + 1, term.max(found.hard_state.term));
    let state = HardState { term, ..found.hard_state };
    view.stage(&[entry(next, term)]);
    log.append(&[entry(next, term)], Some(&state)).expect("a disk in memory");
    log.close().expect("a disk in memory");
    let (log, again) = RaftLog::open(Arc::new(disk), config()).expect("a log that was closed");
    assert_eq!((again.first_index, again.last_index), (found.first_index, next));
    assert_eq!((&again.hard_state, &again.cut), (&state, &None));
    read(&log, again.first_index, again.last_index);
    true
}

/// Reads every entry; the term of the last.
fn read(log: &RaftLog, first: u64, last: u64) -> u64 {
    let view = log.view();
    if first > last {
        return 0;
    }
    let Ok(entries) = view.entries(first, last + 1, None) else { return 0 };
    assert_eq!(entries.len() as u64, last + 1 - first, "entries from {first} to {last}");
    for (index, entry) in (first..).zip(&entries) {
        assert_eq!(entry.index, index, "entries from {first} to {last}");
        assert_eq!(view.term(index).expect("an entry that can be read"), entry.term, "the term at {index}");
    }
    entries.last().map_or(0, |entry| entry.term)
}

/// With the checksums that belong to header and records, as far as their lengths lead.
fn resealed(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.len() < HEADER_BYTES {
        return bytes;
    }
    let header_crc = crc32c::crc32c(&bytes[..HEADER_BYTES - 4]);
    bytes[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&header_crc.to_le_bytes());
    let salt = bytes[SALT].to_vec();
    let mut at = HEADER_BYTES;
    while let Some(head) = bytes.get(at..at + RECORD_HEADER_BYTES) {
        let len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        let end = at + RECORD_HEADER_BYTES + len;
        let Some(rest) = bytes.get(at + 4..end) else { break };
        let place = crc32c::crc32c_append(crc32c::crc32c(&salt), &(at as u64).to_le_bytes());
        let crc = crc32c::crc32c_append(place, rest);
        bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
        at = end;
    }
    bytes
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let last = u8::try_from(FILES.len() - 1).expect("a few files");
    // As it is; the last byte of the last file cut off, which was never synced; a changed entry.
    let cut = u16::try_from(FILES[usize::from(last)].1.len() - 1).expect("short files").to_le_bytes();
    let place = u16::try_from(HEADER_BYTES + RECORD_HEADER_BYTES + 60).expect("small").to_le_bytes();
    let seeds = vec![vec![0], vec![last, cut[0], cut[1], 4, 0], vec![last | 0x80, place[0], place[1], 0, 9]];
    assert!(seeds.iter().all(|seed| (seed.len() - 1) % PATCH_BYTES == 0), "whole changes");
    seeds
}
