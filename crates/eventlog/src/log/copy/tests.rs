#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::log::tests::{Writer, check, config, crash_copy};
use crate::{
    CopyStep, Cursor, Event, FoldProgress, Installed, KeyIndex, KeyRange, LocalSource, Position, Source, Staged,
    Staging, Tail, TailConfig, TailError, Term, WriteBatch,
};

const HOLD: Duration = Duration::from_secs(60);

/// Small memtables, so that much of a copy is on disk before it is whole.
fn receiver(dir: &Path) -> (EventLog, KeyIndex) {
    let small = crate::EventLogConfig { memtable_bytes: 16 << 10, ..config(&dir.join("state")) };
    EventLog::open(&small).unwrap()
}

/// One exchange between source and receiver; `true` when the log was read to its end.
fn step(source: &EventLog, staging: &mut Staging, bytes_max: usize) -> Result<bool, CopyError> {
    match staging.next_step() {
        CopyStep::Base { after } => {
            let rows = source.copy_base(staging.point(), after.as_ref(), bytes_max)?;
            staging.add_base(&rows, rows.is_empty())?;
            Ok(false)
        }
        CopyStep::Log { after } => {
            let copy = source.copy_log(staging.point().history, after, bytes_max)?;
            staging.add_log(&copy.rows, copy.complete)?;
            Ok(copy.is_end)
        }
    }
}

fn copy_own_state(source: &EventLog, staging: &mut Staging, bytes_max: usize) -> LogState {
    let mut at = None;
    source
        .copy_state(bytes_max, |state, rows| {
            if at.replace(*state).is_none() {
                staging.begin_state(*state).unwrap();
            }
            staging.add_state(&rows).unwrap();
            ControlFlow::Continue(())
        })
        .unwrap();
    at.unwrap()
}

/// A copy without disturbances.
fn copy_all(source: &EventLog, target: &EventLog) -> Staged {
    let mut staging = target.staging().unwrap();
    let hold = source.copy_begin(HOLD);
    staging.begin(hold.point()).unwrap();
    let state = copy_own_state(source, &mut staging, 100);
    while staging.complete() < state.revision {
        step(source, &mut staging, 1000).unwrap();
    }
    staging.finish().unwrap()
}

fn random_write(rng: &mut StdRng, writer: &mut Writer) {
    let state = writer.log.state();
    if rng.random_range(0..12) == 0 && state.revision.0 > 3 {
        let compacted = rng.random_range(state.compacted.0.max(1)..=state.revision.0);
        return writer.record(&[], Some(compacted));
    }
    let count = [1, 1, 1, 2, 6][rng.random_range(0..5)];
    let keys: BTreeMap<String, Option<String>> = (0..count)
        .map(|_| {
            let value = (rng.random_range(0..3) > 0).then(|| "v".repeat(rng.random_range(0..300)));
            (format!("key/{:02}", rng.random_range(0..40)), value)
        })
        .collect();
    let changes: Vec<_> = keys.iter().map(|(key, value)| (key.as_str(), value.as_deref())).collect();
    writer.record(&changes, None);
}

/// Log rows at and above `from`, as they are stored.
fn rows_from(log: &EventLog, from: Revision) -> Vec<Bytes> {
    log.copy_log(log.state().history, (Revision(from.0 - 1), u32::MAX), usize::MAX).unwrap().rows
}

/// The receiver's directory as a crash now would leave it.
fn crash(dir: &Path, staging: Staging) {
    let left = crash_copy(&dir.join("state.1"));
    drop(staging);
    fs::remove_dir_all(dir.join("state.1")).unwrap();
    fs::create_dir(dir.join("state.1")).unwrap();
    for entry in fs::read_dir(left.path()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.join("state.1").join(entry.file_name())).unwrap();
    }
}

#[test]
fn a_copy_under_writes_folds_and_crashes_is_equal() {
    let seeds = std::env::var("SEED").map_or(0..12, |seed| {
        let seed = seed.parse().unwrap();
        seed..seed + 1
    });
    let (mut started_over, mut resumed, mut in_base) = (0, 0, 0);
    for seed in seeds {
        let mut rng = StdRng::seed_from_u64(seed);
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut writer = Writer::open(from.path());
        let (target, _) = receiver(to.path());
        (0..rng.random_range(5..150)).for_each(|_| random_write(&mut rng, &mut writer));
        writer.log.fold_step(rng.random_range(0..200)).unwrap();
        let mut hold = writer.log.copy_begin(HOLD);
        let mut staging = target.staging().unwrap();
        staging.begin(hold.point()).unwrap();
        let wanted = Revision(writer.log.state().revision.0 + rng.random_range(0..40));
        let staged = loop {
            match rng.random_range(0..20) {
                0..10 => random_write(&mut rng, &mut writer),
                // Also when a hold has expired.
                10 => {
                    if rng.random_range(0..3) == 0 {
                        hold.renew(Duration::ZERO);
                    }
                    writer.log.fold_step(rng.random_range(1..50)).unwrap();
                }
                11 if rng.random_range(0..2) == 0 => {
                    let before = staging.next_step();
                    in_base += usize::from(matches!(&before, CopyStep::Base { after: Some(_) }));
                    crash(to.path(), staging);
                    staging = target.staging().unwrap();
                    drop(hold);
                    hold = writer.log.copy_begin(HOLD);
                    staging.begin(hold.point()).unwrap();
                    resumed += usize::from(staging.next_step() != CopyStep::Base { after: None });
                }
                12 if staging.complete() >= wanted => {
                    let state = copy_own_state(&writer.log, &mut staging, rng.random_range(1..200));
                    while staging.complete() < state.revision {
                        step(&writer.log, &mut staging, 500).unwrap();
                    }
                    (0..rng.random_range(0..4)).for_each(|_| random_write(&mut rng, &mut writer));
                    // What lies above the state is dropped.
                    step(&writer.log, &mut staging, 500).unwrap();
                    break staging.finish().unwrap();
                }
                _ => match step(&writer.log, &mut staging, rng.random_range(1..1000)) {
                    Ok(_) => {}
                    Err(CopyError::Moved(point)) => {
                        hold = writer.log.copy_begin(HOLD);
                        assert_eq!(hold.point(), point, "seed {seed}");
                        staging.begin(point).unwrap();
                        started_over += 1;
                    }
                    Err(error) => panic!("seed {seed}: {error}"),
                },
            }
        };
        let state = staged.state();
        assert!(state.revision >= wanted && state.revision <= writer.log.state().revision, "seed {seed}");
        let index = target.replace(staged).unwrap();
        check(&target, &index, &writer);
        // Byte for byte, where the source has not compacted it since.
        let at_least = writer.log.state().compacted.max(Revision(2));
        if at_least <= state.revision {
            let (copied, original) = (rows_from(&target, at_least), rows_from(&writer.log, at_least));
            assert!(!copied.is_empty() && original.starts_with(&copied), "seed {seed}");
        }
        // And once more after a start.
        drop((target, index));
        let (again, index) = receiver(to.path());
        assert_eq!(again.state(), state, "seed {seed}");
        check(&again, &index, &writer);
        while again.fold_step(7).unwrap() == FoldProgress::More {}
        check(&again, &index, &writer);
    }
    if std::env::var("SEED").is_err() {
        assert!(
            started_over > 0 && resumed > 0 && in_base > 0,
            "started over {started_over}, resumed {resumed}, in base {in_base}"
        );
    }
}

#[test]
fn a_copy_beside_a_busy_writer_is_equal() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut writer = Writer::open(from.path());
    writer.mixed(500);
    writer.record(&[], Some(400));
    while writer.log.fold_step(1000).unwrap() == FoldProgress::More {}
    let (target, _) = receiver(to.path());
    let (source, done) = (writer.log.clone(), AtomicBool::new(false));
    let staged = std::thread::scope(|scope| {
        let copied = scope.spawn(|| {
            let staged = copy_all(&source, &target);
            done.store(true, Ordering::Relaxed);
            staged
        });
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                source.fold_step(20).unwrap();
                source.flush().unwrap();
            }
        });
        for round in 0..5000 {
            if done.load(Ordering::Relaxed) && round > 100 {
                break;
            }
            writer.mixed(1);
            if round % 50 == 0 {
                writer.record(&[], Some(writer.log.state().revision.0 - 20));
            }
        }
        copied.join().unwrap()
    });
    let index = target.replace(staged).unwrap();
    check(&target, &index, &writer);
}

#[test]
fn folding_waits_for_a_hold_and_no_longer() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path());
    writer.mixed(50);
    writer.record(&[], Some(40));
    let (first, second) = (writer.log.copy_begin(HOLD), writer.log.copy_begin(HOLD));
    assert_eq!(writer.log.fold_step(5).unwrap(), FoldProgress::Held);
    drop(first);
    assert_eq!(writer.log.fold_step(5).unwrap(), FoldProgress::Held);
    // Expired, though nobody said so.
    second.renew(Duration::ZERO);
    assert_eq!(writer.log.fold_step(5).unwrap(), FoldProgress::More);
    let moved = writer.log.copy_base(second.point(), None, 100);
    assert!(matches!(moved, Err(CopyError::Moved(now)) if now.fold_point > Revision(0)), "{moved:?}");
    second.renew(HOLD);
    assert_eq!(writer.log.fold_step(5).unwrap(), FoldProgress::Held);
    let above = writer.log.copy_log(second.point().history, (Revision(1), u32::MAX), 100);
    assert!(matches!(above, Err(CopyError::Moved(_))), "{above:?}");
    let other = writer.log.copy_log(HistoryId(8), (Revision(45), u32::MAX), 100);
    assert!(matches!(other, Err(CopyError::Moved(_))), "{other:?}");
    drop(second);
    while writer.log.fold_step(100).unwrap() == FoldProgress::More {}
    assert_eq!(writer.log.state().fold_point, Revision(39));
}

#[test]
fn a_corrupt_row_is_refused_with_its_place_and_nothing_is_added() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut writer = Writer::open(from.path());
    writer.mixed(60);
    writer.record(&[], Some(40));
    while writer.log.fold_step(1000).unwrap() == FoldProgress::More {}
    let (target, _) = receiver(to.path());
    let mut staging = target.staging().unwrap();
    let point = writer.log.copy_begin(HOLD).point();
    staging.begin(point).unwrap();
    let base = writer.log.copy_base(point, None, usize::MAX).unwrap();
    let flipped = |row: &Bytes, at: usize| {
        let mut row = row.to_vec();
        row[at] ^= 4;
        Bytes::from(row)
    };
    for at in 0..base[1].len() {
        let mut bad = base.clone();
        bad[1] = flipped(&base[1], at);
        let error = staging.add_base(&bad, true).unwrap_err().to_string();
        let before = Event::from_row(base[0].clone()).unwrap();
        assert!(
            error.contains("base row copied") && error.contains(&before.key().escape_ascii().to_string()),
            "{error}"
        );
        assert_eq!(staging.next_step(), CopyStep::Base { after: None });
    }
    let error = staging.add_base(&[base[1].clone(), base[0].clone()], false).unwrap_err().to_string();
    assert!(error.contains("out of order"), "{error}");
    staging.add_base(&base, true).unwrap();
    let CopyStep::Log { after } = staging.next_step() else { panic!("base is whole") };
    let log = writer.log.copy_log(point.history, after, usize::MAX).unwrap();
    for at in 0..log.rows[3].len() {
        let mut bad = log.rows.clone();
        bad[3] = flipped(&log.rows[3], at);
        let error = staging.add_log(&bad, log.complete).unwrap_err().to_string();
        assert!(error.contains("log row"), "{error}");
        assert_eq!(staging.next_step(), CopyStep::Log { after });
    }
    let gap = staging.add_log(&log.rows[1..], log.complete).unwrap_err().to_string();
    assert!(gap.contains("out of order"), "{gap}");
    let short = staging.add_log(&log.rows[..3], log.complete).unwrap_err().to_string();
    assert!(short.contains("they end at"), "{short}");
    staging.add_log(&log.rows, log.complete).unwrap();
    let mut own = Vec::new();
    writer
        .log
        .copy_state(usize::MAX, |state, rows| {
            staging.begin_state(*state).unwrap();
            own = rows;
            ControlFlow::Continue(())
        })
        .unwrap();
    for at in 0..own[0].value.len() {
        let bad = StateRow { value: flipped(&own[0].value, at), ..own[0].clone() };
        let error = staging.add_state(&[bad]).unwrap_err().to_string();
        assert!(error.contains("state key"), "{error}");
    }
    let foreign = StateRow { key: Bytes::from_static(b"\0numbers"), ..own[0].clone() };
    assert!(staging.add_state(&[foreign]).unwrap_err().to_string().contains("not the machine's"));
    staging.add_state(&own).unwrap();
    let index = target.replace(staging.finish().unwrap()).unwrap();
    check(&target, &index, &writer);
}

#[test]
fn a_copy_that_is_not_whole_does_not_end() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut writer = Writer::open(from.path());
    writer.mixed(60);
    let (target, _) = receiver(to.path());
    let mut staging = target.staging().unwrap();
    assert!(target.staging().is_err(), "one copy at a time");
    staging.begin(writer.log.copy_begin(HOLD).point()).unwrap();
    copy_own_state(&writer.log, &mut staging, 100);
    let error = staging.finish().err().unwrap().to_string();
    assert!(error.contains("can't end"), "{error}");
    // Numbers of another history, or of a source that has compacted less than base is folded.
    let mut staging = target.staging().unwrap();
    let point = CopyPoint { compacted: Revision(30), ..writer.log.copy_begin(HOLD).point() };
    let step = staging.begin(point).unwrap();
    assert!(step.goes_on_at(point, CopyPoint { compacted: Revision(31), ..point }));
    assert!(
        !step.goes_on_at(point, CopyPoint { compacted: Revision(29), ..point }),
        "what base lacks may be read there"
    );
    staging.begin(CopyPoint { compacted: Revision(35), ..point }).unwrap();
    assert_eq!(staging.point().compacted, Revision(35), "rows of the second source's base follow");
    assert!(!step.goes_on_at(staging.point(), CopyPoint { compacted: Revision(31), ..point }));
    assert!(staging.begin_state(writer.log.state()).is_err());
    let other = LogState { history: HistoryId(3), compacted: Revision(40), ..writer.log.state() };
    assert!(staging.begin_state(other).is_err());
}

fn directories(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_switch_shows_in_every_clone_and_after_a_start() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut writer = Writer::open(from.path());
    writer.mixed(30);
    let (target, _) = receiver(to.path());
    let clone = target.clone();
    let staged = copy_all(&writer.log, &target);
    assert_eq!(directories(to.path()), ["state", "state.1"]);
    let reader = clone.current();
    let index = target.replace(staged).unwrap();
    check(&clone, &index, &writer);
    assert_eq!(reader.state().revision, Revision(1), "what reads the old one goes on");
    assert_eq!(directories(to.path()), ["state", "state.1", "state.generation"]);
    drop(reader);
    assert_eq!(directories(to.path()), ["state.1", "state.generation"]);
    let state = writer.log.state();
    let installed = Some(Installed { applied: state.applied, term: state.applied_term });
    assert_eq!(target.installed(), installed);
    // The new state is written and flushed where it is.
    let next = LogState { applied: Position(state.applied.0 + 1), applied_term: Term(3), ..state };
    target.write(&WriteBatch { log_state: next, ..WriteBatch::default() }).unwrap();
    target.flush().unwrap();
    drop((target, clone, index));
    let (target, _) = receiver(to.path());
    assert_eq!((target.installed(), target.state()), (installed, next));
    target.installed_settled().unwrap();
    assert_eq!(target.installed(), None);
    drop(target);
    let (target, _) = receiver(to.path());
    assert_eq!((target.installed(), target.state()), (None, next));
    // Once more, from there.
    writer.mixed(20);
    let index = target.replace(copy_all(&writer.log, &target)).unwrap();
    check(&target, &index, &writer);
    assert_eq!(directories(to.path()), ["state.2", "state.generation"]);
    drop((target, index));
    fs::create_dir(to.path().join("state.1")).unwrap();
    let (target, index) = receiver(to.path());
    check(&target, &index, &writer);
    assert_eq!(directories(to.path()), ["state.2", "state.generation"], "what is not in use goes at a start");
}

#[test]
fn a_crash_between_whole_copy_and_switch_leaves_the_old_state_and_little_to_copy() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut writer = Writer::open(from.path());
    writer.mixed(80);
    let (target, _) = receiver(to.path());
    drop(copy_all(&writer.log, &target));
    drop(target);
    let (target, _) = receiver(to.path());
    assert_eq!(target.state().revision, Revision(1));
    let reached = writer.log.state().revision;
    writer.mixed(20);
    let mut staging = target.staging().unwrap();
    let step = staging.begin(writer.log.copy_begin(HOLD).point()).unwrap();
    assert_eq!(step, CopyStep::Log { after: (reached, u32::MAX) });
    drop(staging);
    let index = target.replace(copy_all(&writer.log, &target)).unwrap();
    check(&target, &index, &writer);
}

#[test]
fn a_lost_or_damaged_marker_does_not_found_an_empty_state() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut writer = Writer::open(from.path());
    writer.mixed(10);
    let (target, _) = receiver(to.path());
    drop(target.replace(copy_all(&writer.log, &target)).unwrap());
    drop(target);
    let path = config(&to.path().join("state"));
    let marker = to.path().join("state.generation");
    let good = fs::read(&marker).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&marker, bad).unwrap();
        let error = EventLog::open(&path).err().unwrap().to_string();
        assert!(error.contains("state.generation"), "byte {at}: {error}");
    }
    fs::remove_file(&marker).unwrap();
    let error = EventLog::open(&path).err().unwrap().to_string();
    assert!(error.contains("state.generation") && error.contains("no such directory"), "{error}");
    fs::write(&marker, &good).unwrap();
    assert_eq!(EventLog::open(&path).unwrap().0.state(), writer.log.state());
    fs::remove_dir_all(to.path().join("state.1")).unwrap();
    let error = EventLog::open(&path).err().unwrap().to_string();
    assert!(error.contains("no such directory"), "{error}");
}

#[test]
fn a_copy_that_was_damaged_on_disk_does_not_open_and_is_made_anew() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut writer = Writer::open(from.path());
    writer.mixed(200);
    let (target, _) = receiver(to.path());
    let mut staging = target.staging().unwrap();
    staging.begin(writer.log.copy_begin(HOLD).point()).unwrap();
    let state = copy_own_state(&writer.log, &mut staging, 1000);
    while staging.complete() < state.revision {
        step(&writer.log, &mut staging, 1000).unwrap();
    }
    let tables = fs::read_dir(to.path().join("state.1")).unwrap().map(|entry| entry.unwrap().path());
    let tables = tables.filter(|path| path.extension().is_some_and(|extension| extension == "sst"));
    let table = tables.max_by_key(|path| fs::metadata(path).unwrap().len()).expect("much was flushed");
    let mut bytes = fs::read(&table).unwrap();
    bytes[100] ^= 1;
    fs::write(&table, bytes).unwrap();
    let error = staging.finish().err().unwrap().to_string();
    assert!(error.contains("state.1"), "{error}");
    assert_eq!(directories(to.path()), ["state"]);
    let index = target.replace(copy_all(&writer.log, &target)).unwrap();
    check(&target, &index, &writer);
}

#[test]
fn a_copy_that_is_not_wanted_any_more_leaves_nothing() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut writer = Writer::open(from.path());
    writer.mixed(80);
    let (target, _) = receiver(to.path());
    drop(copy_all(&writer.log, &target));
    target.discard_staging().unwrap();
    assert_eq!(directories(to.path()), ["state"]);
    target.discard_staging().unwrap();
    let staging = target.staging().unwrap();
    assert!(target.discard_staging().is_err(), "it is under way");
    assert_eq!(staging.complete(), Revision(0));
}

#[test]
fn a_damaged_copy_starts_over() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut writer = Writer::open(from.path());
    writer.mixed(80);
    let (target, _) = receiver(to.path());
    drop(copy_all(&writer.log, &target));
    fs::write(to.path().join("state.1/CURRENT"), "nonsense").unwrap();
    let index = target.replace(copy_all(&writer.log, &target)).unwrap();
    check(&target, &index, &writer);
}

#[test]
fn a_reader_of_the_tail_is_told_of_the_jump() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut writer = Writer::open(from.path());
    writer.mixed(100);
    writer.record(&[], Some(60));
    while writer.log.fold_step(1000).unwrap() == FoldProgress::More {}
    let (target, _) = receiver(to.path());
    let history = writer.log.state().history;
    let begin = Cursor { history, revision: Revision(1), position: Position(1) };
    let tail = Tail::new(TailConfig { hot_bytes_max: 1 << 20 }, begin, vec![]);
    let source = LocalSource::new(target.clone(), tail.clone());
    let index = target.replace(copy_all(&writer.log, &target)).unwrap();
    // Between the two, nothing is taken for whole that is not.
    assert!(source.follow(begin, 1 << 20, Duration::ZERO).is_ok_and(|frames| frames.is_empty()));
    let state = target.state();
    let end = Cursor { history, revision: state.revision, position: state.applied };
    tail.restart(end, &[crate::Fact::Compacted(state.compacted)]);
    assert_eq!(source.follow(begin, 1 << 20, Duration::ZERO).unwrap_err(), TailError::Behind(begin));
    // A reader that had come further goes on from the copied log.
    let further = Cursor { revision: Revision(70), position: Position(72), ..begin };
    let frames = source.follow(further, usize::MAX, Duration::ZERO).unwrap();
    assert_eq!(frames.last().map(|frame| (frame.revision, frame.position)), Some((end.revision, end.position)));
    let (at, facts) = source.transfer_begin().unwrap();
    assert_eq!((at, facts), (end, vec![crate::Fact::Compacted(state.compacted)]));
    let live = source.transfer(&KeyRange::all(), None, usize::MAX).unwrap().events;
    assert_eq!(live.len(), index.count(&KeyRange::all(), state.revision));
    assert!(source.follow(end, 1 << 20, Duration::ZERO).unwrap().is_empty());
}
