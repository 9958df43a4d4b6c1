//! Loss of power: what was synced is there, what was not is whole or cut, and no start fails.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

/// What the writer was told, and what it asked for since.
#[derive(Clone, Default)]
struct Model {
    entries: Vec<Entry>,
    state: HardState,
    trim: u64,
}

impl Model {
    fn append(&mut self, batch: &[Entry], state: Option<&HardState>) {
        if let Some(first) = batch.first() {
            self.entries.retain(|entry| entry.index < first.index);
        }
        self.entries.extend_from_slice(batch);
        if let Some(state) = state {
            self.state = state.clone();
        }
    }

    fn last(&self) -> u64 {
        self.entries.last().map_or(0, |entry| entry.index)
    }
}

/// Every state that the log has been in since the last sync, that one first.
struct Run {
    since_sync: Vec<Model>,
}

/// Every other seed makes room ahead.
fn open_as(disk: &SimDisk, seed: u64) -> Result<(RaftLog, Recovered), RaftLogError> {
    if seed.is_multiple_of(2) { open_with_room(disk) } else { open(disk) }
}

/// Works on the disk until it fails or `steps` are done.
fn work(disk: &SimDisk, seed: u64, steps: usize) -> Run {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut run = Run { since_sync: vec![Model::default()] };
    let Ok((mut log, _)) = open_as(disk, seed) else { return run };
    let mut term = 1;
    for _ in 0..steps {
        let mut model = run.since_sync.last().unwrap().clone();
        let done = match rng.random_range(0..10) {
            0..6 => {
                // Sometimes a new leader replaces what is not committed.
                let conflict = rng.random_bool(0.2) && model.last() > model.state.commit;
                let first = if conflict {
                    term += 1;
                    rng.random_range(model.state.commit + 1..=model.last())
                } else {
                    model.last() + 1
                };
                let batch = entries(first..=first + rng.random_range(0..12), term);
                let commit = rng.random_range(model.state.commit..=first - 1);
                let state = rng.random_bool(0.7).then(|| hard(term, commit));
                model.append(&batch, state.as_ref());
                log.view().stage(&batch);
                run.since_sync.push(model);
                log.append(&batch, state.as_ref())
            }
            6..9 => log.sync().map(|_| run.since_sync = vec![model]),
            _ => {
                model.trim = rng.random_range(model.trim..=model.state.commit);
                let trim = model.trim;
                run.since_sync.push(model);
                log.trim_to(trim)
            }
        };
        if done.is_err() {
            break;
        }
    }
    run
}

/// Opens what is left; an error says what is lost.
fn check(disk: &SimDisk, run: &Run) -> Result<(), String> {
    let (log, recovered) = open(disk).map_err(|error| error.to_string())?;
    let found = all(&log);
    let matches = |model: &Model| {
        let held = model.entries.iter().filter(|entry| entry.index >= recovered.first_index);
        model.last() == recovered.last_index
            && recovered.first_index <= model.trim.max(run.since_sync.last().unwrap().trim) + 1
            && recovered.hard_state == model.state
            && held.eq(found.iter())
    };
    // A trim does not change what is held, so more than one state may fit.
    if !run.since_sync.iter().any(matches) {
        let synced = run.since_sync[0].last();
        return Err(format!("found {recovered:?}; synced up to {synced}, {} states later", run.since_sync.len() - 1));
    }
    if log.view().term(recovered.first_index - 1).is_err() {
        return Err("the term below the first index is lost".to_owned());
    }
    Ok(())
}

/// Cuts that lose something (or let no log be opened), of `cuts` seeded ones.
fn failures(mode: SyncMode, cuts: u64) -> Vec<String> {
    let attempt = |seed| {
        let disk = SimDisk::new(mode);
        // Which operation is the last is up to the seed, so creations, renames and removals are met as well.
        disk.fail_after(Some(StdRng::seed_from_u64(seed).random_range(0..250)));
        let run = work(&disk, seed, 200);
        check(&disk.cut(seed), &run).map_err(|reason| format!("seed {seed}: {reason}"))
    };
    (0..cuts).filter_map(|seed| attempt(seed).err()).collect()
}

#[test]
fn two_hundred_cuts_of_power_lose_nothing_synced_and_stop_no_start() {
    let failures = failures(SyncMode::Honest, 200);
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn the_same_cuts_lose_synced_entries_when_the_disk_ignores_syncs() {
    assert!(failures(SyncMode::Ignored, 200).len() > 50, "the test above would not notice a missing sync");
}

#[test]
fn a_cut_at_every_operation_loses_nothing_synced() {
    for work_seed in [11, 12] {
        let whole = SimDisk::new(SyncMode::Honest);
        work(&whole, work_seed, 60);
        for last in 0..=whole.writes() {
            let disk = SimDisk::new(SyncMode::Honest);
            disk.fail_after(Some(last));
            let run = work(&disk, work_seed, 60);
            for seed in 0..5 {
                check(&disk.cut(seed), &run).unwrap_or_else(|reason| panic!("operation {last}, seed {seed}: {reason}"));
            }
            check(&disk.kill(), &run).unwrap_or_else(|reason| panic!("killed at operation {last}: {reason}"));
        }
    }
}

#[test]
fn a_log_that_was_cut_takes_entries_and_is_cut_again() {
    for seed in 0..50 {
        let mut disk = SimDisk::new(SyncMode::Honest);
        let mut expected = Vec::new();
        for round in 1..=8 {
            let (mut log, recovered) = open_as(&disk, seed).unwrap();
            let found = all(&log);
            assert!(
                recovered.last_index >= expected.len() as u64 && found[..expected.len()] == expected,
                "seed {seed}"
            );
            let first = recovered.last_index + 1;
            put(&mut log, &entries(first..=first + 5, round), Some(&hard(round, first - 1)));
            log.sync().unwrap();
            expected = all(&log);
            put(&mut log, &entries(first + 6..=first + 20, round), None);
            disk = disk.cut(seed * 100 + round);
        }
    }
}

#[test]
fn the_unsynced_tail_may_end_at_every_byte() {
    let disk = SimDisk::new(SyncMode::Honest);
    let (mut log, _) = open(&disk).unwrap();
    put(&mut log, &entries(1..=5, 1), None);
    log.sync().unwrap();
    let name = disk.list().unwrap().pop().unwrap();
    let synced = len(&disk.open(&name).unwrap());
    put(&mut log, &entries(6..=8, 1), None);
    put(&mut log, &entries(9..=12, 1), None);
    let bytes = disk.read(&name).unwrap();
    for end in usize::try_from(synced).unwrap()..bytes.len() {
        let copy = SimDisk::new(SyncMode::Honest);
        copy.put(&name, &bytes[..end]);
        let (log, recovered) = open(&copy).unwrap();
        assert!([5, 8].contains(&recovered.last_index), "end {end}");
        assert_eq!(all(&log), entries(1..=recovered.last_index, 1));
        if let Some(cut) = recovered.cut {
            assert_eq!((cut.file.as_str(), cut.offset + cut.bytes), (name.as_str(), end as u64));
        }
    }
}

#[test]
fn room_made_ahead_is_no_tail() {
    let disk = SimDisk::new(SyncMode::Honest);
    let (mut log, _) = open_with_room(&disk).unwrap();
    put(&mut log, &entries(1..=3, 1), Some(&hard(1, 2)));
    log.sync().unwrap();
    let name = disk.list().unwrap().pop().unwrap();
    let written = log.current.bytes;
    let room = disk.read(&name).unwrap()[usize::try_from(written).unwrap()..].to_vec();
    assert!(!room.is_empty() && room.iter().all(|byte| *byte == 0));
    // A sync whose writes lie in it finds the length durable.
    let length = len(&disk.open(&name).unwrap());
    put(&mut log, &entries(4..=4, 1), None);
    log.sync().unwrap();
    assert_eq!(len(&disk.open(&name).unwrap()), length);
    let (log, recovered) = open_with_room(&disk.kill()).unwrap();
    assert_eq!((recovered.last_index, recovered.cut, recovered.doubtful), (4, None, false));
    assert_eq!(all(&log), entries(1..=4, 1));
    // A part of a record in front of it is a tail.
    let torn = disk.kill();
    torn.open(&name).unwrap().write_at(length - 100, b"torn").unwrap();
    let (_, recovered) = open_with_room(&torn).unwrap();
    assert!(recovered.cut.is_some() && recovered.doubtful && recovered.last_index == 4);
    // Of the mark of the last sync, it is none that anybody doubts.
    let end = usize::try_from(log.current.bytes).unwrap() - MARK_BYTES;
    for left in 1..MARK_BYTES {
        let torn = disk.kill();
        let mut bytes = torn.read(&name).unwrap();
        bytes[end - MARK_BYTES + left..].fill(0);
        torn.put(&name, &bytes);
        let (_, recovered) = open_with_room(&torn).unwrap();
        assert!(recovered.last_index == 4 && !recovered.doubtful, "{left} bytes of it are left");
    }
    // Sealed and closed files have none.
    let (mut log, _) = open_with_room(&disk).unwrap();
    put(&mut log, &entries(5..=90, 1), None);
    put(&mut log, &entries(91..=92, 1), None);
    log.close().unwrap();
    let names = disk.list().unwrap();
    assert!(names.len() > 1, "a sealed one");
    for name in names {
        let bytes = disk.read(&name).unwrap();
        assert!(bytes[bytes.len() - 30..].iter().any(|byte| *byte != 0), "{name}");
    }
}
