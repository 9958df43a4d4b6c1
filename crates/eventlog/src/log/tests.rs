#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::generations::Marker;
use super::staging::Progress;
use super::*;
use crate::{Envelope, EventKind, LeaseId};

pub(crate) fn config(path: &Path) -> EventLogConfig {
    EventLogConfig { path: path.to_owned(), memtable_bytes: 8 << 20, block_cache_bytes: 8 << 20 }
}

/// An apply thread in small: keeps the index, the numbers and a model of what is live at each revision.
pub(crate) struct Writer {
    pub(crate) log: EventLog,
    pub(crate) index: KeyIndex,
    pub(crate) events: Vec<Arc<Event>>,
}

impl Writer {
    pub(crate) fn open(path: &Path) -> Self {
        let (log, index) = EventLog::open(&config(path)).unwrap();
        Self { log, index, events: Vec::new() }
    }

    fn event(&self, revision: Revision, sub: u32, key: &str, value: Option<&str>) -> Arc<Event> {
        let before = self.index.get(key.as_bytes(), Revision(revision.0 - 1));
        let prev = before.as_ref().map(|meta| (meta.mod_revision, meta.sub));
        let Some(value) = value else { return Arc::new(Event::delete(revision, sub, key.as_bytes(), prev)) };
        let envelope = Envelope {
            kind: EventKind::Put,
            revision,
            sub,
            create_revision: before.as_ref().map_or(revision, |meta| meta.create_revision),
            version: before.map_or(1, |meta| meta.version + 1),
            lease: LeaseId(0),
            prev,
        };
        Arc::new(Event::put(envelope, key.as_bytes(), value.as_bytes()))
    }

    /// Writes one record; `compacted` moves with it when given.
    pub(crate) fn record(&mut self, changes: &[(&str, Option<&str>)], compacted: Option<i64>) {
        let mut state = self.log.state();
        state.history = HistoryId(7);
        state.applied.0 += 1;
        if !changes.is_empty() {
            state.revision = state.revision.next();
        }
        state.compacted = compacted.map_or(state.compacted, Revision);
        let mut batch = WriteBatch { log_state: state, ..WriteBatch::default() };
        for (sub, (key, value)) in (0..).zip(changes) {
            let event = self.event(state.revision, sub, key, *value);
            self.index.insert(&event);
            batch.events.push(event);
        }
        batch.state.push((b"revision".to_vec(), Some(state.revision.0.to_string().into_bytes())));
        self.log.write(&batch).unwrap();
        self.events.extend(batch.events);
        if compacted.is_some() {
            while !self.index.compact_step(state.compacted, 10) {}
        }
    }

    /// `count` records over 50 keys, every seventh a delete, some of several keys.
    pub(crate) fn mixed(&mut self, count: i64) {
        for _ in 0..count {
            let number = self.log.state().revision.0;
            let key = format!("key/{:02}", number * 17 % 50);
            let other = format!("key/{:02}", (number * 17 + 1) % 50);
            let value = format!("value {number} {}", "x".repeat(40));
            match number % 7 {
                0 => self.record(&[(&key, None)], None),
                1 => self.record(&[(&key, Some(&value)), (&other, Some("other"))], None),
                2 => self.record(&[(&key, Some(&value)), (&key, None)], None),
                _ => self.record(&[(&key, Some(&value))], None),
            }
        }
    }

    fn live_at(&self, at: Revision) -> BTreeMap<Vec<u8>, Arc<Event>> {
        let mut live = BTreeMap::new();
        for event in self.events.iter().filter(|event| event.revision() <= at) {
            match event.kind() {
                EventKind::Put => live.insert(event.key().to_vec(), Arc::clone(event)),
                EventKind::Delete => live.remove(event.key()),
            };
        }
        live
    }
}

fn read_live(log: &EventLog, bytes_max: usize, unread_bytes_min: Option<usize>) -> Vec<Arc<Event>> {
    let (mut events, mut after) = (Vec::new(), None);
    loop {
        let chunk = log.live(&KeyRange::all(), after.as_ref(), bytes_max, unread_bytes_min).unwrap();
        events.extend(chunk.events);
        after = chunk.resume_after;
        if after.is_none() {
            return events;
        }
    }
}

/// Everything that a reader at or above the compacted revision may ask for, compared with the events ever written.
pub(crate) fn check(log: &EventLog, index: &KeyIndex, model: &Writer) {
    let state = log.state();
    let live: Vec<_> = model.live_at(state.revision).into_values().collect();
    assert_eq!(read_live(log, 1, None), live);
    assert_eq!(read_live(log, usize::MAX, None), live);
    check_heads(log);
    for (found, whole) in read_live(log, usize::MAX, Some(4)).iter().zip(&live) {
        let may_lack = whole.envelope().version == 1 && whole.value().len() >= 4;
        assert!(found == whole || may_lack && **found == whole.without_value(), "{found:?} for {whole:?}");
    }
    let at_least = state.compacted.max(Revision(1));
    for at in (at_least.0..=state.revision.0).map(Revision) {
        let expected = model.live_at(at);
        let found = index.range(&KeyRange::all(), at, 0);
        assert_eq!(found.len(), expected.len(), "live keys at {at}");
        for meta in found {
            let event = log.event(&meta.key, meta.mod_revision, meta.sub).unwrap();
            assert_eq!(event.as_ref(), expected.get(meta.key.as_ref()), "at {at}");
        }
    }
    let current = log.current();
    let mut scan = current.scan((state.fold_point.next(), 0), state.revision);
    let above = model.events.iter().filter(|event| event.revision() > state.fold_point);
    for event in above.filter(|event| event.revision() <= state.revision) {
        assert_eq!(scan.next_event().unwrap().as_ref(), Some(event.as_ref()));
    }
    assert_eq!(scan.next_event().unwrap(), None);
    let value = log.state_get(b"revision").unwrap().map(|value| String::from_utf8(value.to_vec()).unwrap());
    assert_eq!(value, (state.applied.0 > 0).then(|| state.revision.to_string()), "state belongs to the numbers");
}

/// Base has a head for each row, and says the same.
fn check_heads(log: &EventLog) {
    let current = log.current();
    let (mut base, mut heads) =
        [Family::Base, Family::Heads].map(|family| current.engine.rows(family, &[], None)).into();
    while let Some((key, row)) = base.next_row().unwrap() {
        let event = format::read_base_row(&key, row).unwrap();
        let (named, head) = heads.next_row().unwrap().unwrap();
        assert_eq!(named, key);
        let (head, value_bytes) = format::decode_head(&key, &head).unwrap();
        assert_eq!(head.envelope(), Envelope { prev: None, ..event.envelope() });
        assert_eq!((head.key(), value_bytes, head.is_whole()), (event.key(), event.value().len(), false));
    }
    assert_eq!(heads.next_row().unwrap(), None);
}

/// Names and lengths of the store's files; RocksDB's own diary aside, which grows at any time.
fn listing(path: &Path) -> io::Result<BTreeMap<OsString, u64>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with("LO") {
            files.insert(entry.file_name(), entry.metadata()?.len());
        }
    }
    Ok(files)
}

/// What a crash would leave: the files as they are, without what is in memory. RocksDB compacts in the background, so a
/// copy counts only when nothing changed while it was made.
pub(crate) fn crash_copy(from: &Path) -> tempfile::TempDir {
    for _ in 0..1000 {
        let copy = tempfile::tempdir().unwrap();
        let copied = listing(from).and_then(|files| {
            for name in files.keys() {
                fs::copy(from.join(name), copy.path().join(name))?;
            }
            Ok(listing(from)? == files)
        });
        match copied {
            Ok(true) => return copy,
            Err(error) if error.kind() != io::ErrorKind::NotFound => panic!("{error}"),
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    panic!("the files never stood still");
}

#[test]
fn fresh_store_is_at_revision_one() {
    let dir = tempfile::tempdir().unwrap();
    let writer = Writer::open(dir.path());
    assert_eq!(writer.log.state(), LogState { revision: Revision(1), ..LogState::default() });
    assert!(writer.index.is_empty());
    assert_eq!(writer.log.fold_step(10).unwrap(), FoldProgress::Done);
    check(&writer.log, &writer.index, &writer);
}

#[test]
fn crash_loses_exactly_what_was_not_flushed() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path());
    let mut durable = LogState::default();
    for round in 0..6 {
        writer.mixed(40);
        if round % 2 == 0 {
            assert!(writer.log.unflushed_bytes() > 0);
            assert_eq!(writer.log.flush().unwrap(), writer.log.state().applied);
            durable = writer.log.state();
        }
        let copy = crash_copy(dir.path());
        let (log, index) = EventLog::open(&config(copy.path())).unwrap();
        assert_eq!(log.state(), durable, "round {round}");
        check(&log, &index, &writer);
    }
    check(&writer.log, &writer.index, &writer);
}

/// Memtables so small that RocksDB flushes by itself, in the midst of the writes.
#[test]
fn crash_after_flushes_nobody_asked_for_leaves_one_moment() {
    let dir = tempfile::tempdir().unwrap();
    let small = |path: &Path| EventLogConfig { memtable_bytes: 16 << 10, ..config(path) };
    let (log, index) = EventLog::open(&small(dir.path())).unwrap();
    let mut writer = Writer { log, index, events: Vec::new() };
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..12 {
        writer.mixed(150);
        let copy = crash_copy(dir.path());
        let (log, index) = EventLog::open(&config(copy.path())).unwrap();
        check(&log, &index, &writer);
        seen.insert(log.state().revision);
    }
    assert!(seen.len() > 2 && !seen.contains(&writer.log.state().revision), "found at {seen:?}");
}

#[test]
fn fold_interrupted_at_every_step_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path());
    writer.mixed(300);
    writer.record(&[], Some(250));
    writer.log.flush().unwrap();
    let mut steps = 0;
    loop {
        let progress = writer.log.fold_step(40).unwrap();
        check(&writer.log, &writer.index, &writer);
        // Once with the step on disk, once without.
        for flush in [false, true] {
            if flush {
                writer.log.flush().unwrap();
            }
            let copy = crash_copy(dir.path());
            let (log, index) = EventLog::open(&config(copy.path())).unwrap();
            assert_eq!(log.state().fold_point == writer.log.state().fold_point, flush);
            check(&log, &index, &writer);
            while log.fold_step(1000).unwrap() == FoldProgress::More {}
            assert_eq!(log.state().fold_point, Revision(249));
            check(&log, &index, &writer);
        }
        steps += 1;
        if progress == FoldProgress::Done {
            break;
        }
    }
    assert!(steps > 5, "{steps} steps");
    assert_eq!(writer.log.state().fold_point, Revision(249));
    writer.mixed(20);
    check(&writer.log, &writer.index, &writer);
}

#[test]
fn a_version_that_is_superseded_below_the_compacted_revision_is_never_written_to_base() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path());
    writer.record(&[("lease", Some("first")), ("other", Some("stays"))], None);
    writer.record(&[], Some(2));
    assert_eq!(writer.log.fold_step(1000).unwrap(), FoldProgress::Done);
    (0..20).for_each(|n| writer.record(&[("lease", Some(&format!("renewed {n}")))], None));
    writer.record(&[("other", Some("newer"))], None);
    writer.record(&[], Some(writer.log.state().revision.0));
    let based = |log: &EventLog| log.current().engine.get(Family::Base, b"lease").unwrap();
    assert!(based(&writer.log).is_none(), "revision 2 is not folded yet");
    let mut steps = 0;
    while writer.log.fold_step(1).unwrap() == FoldProgress::More {
        steps += 1;
        assert!(based(&writer.log).is_none(), "at {:?}", writer.log.state());
        check(&writer.log, &writer.index, &writer);
        writer.log.flush().unwrap();
        let copy = crash_copy(dir.path());
        let (log, index) = EventLog::open(&config(copy.path())).unwrap();
        check(&log, &index, &writer);
    }
    assert!(steps > 10, "{steps} steps");
    let row = format::read_base_row(b"lease", based(&writer.log).unwrap()).unwrap();
    assert_eq!(row.revision(), Revision(22), "the newest below the compacted revision");
    check(&writer.log, &writer.index, &writer);
}

/// As a build did that knew no heads, or as it was left when making them was interrupted.
#[test]
fn heads_that_are_missing_are_made() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path());
    writer.mixed(200);
    writer.record(&[], Some(150));
    while writer.log.fold_step(1000).unwrap() == FoldProgress::More {}
    let heads = {
        let current = writer.log.current();
        let mut rows = current.engine.rows(Family::Heads, &[], None);
        std::iter::from_fn(|| rows.next_row().unwrap().map(|(key, _)| key)).collect::<Vec<_>>()
    };
    assert!(heads.len() > 3, "{} heads", heads.len());
    for kept in [0, 1, heads.len() - 1] {
        {
            let current = writer.log.current();
            let mut batch = rocksdb::WriteBatch::default();
            for key in &heads[kept..] {
                batch.delete_cf(current.engine.family(Family::Heads), key);
            }
            current.engine.write(batch).unwrap();
        }
        writer.log.flush().unwrap();
        let copy = crash_copy(dir.path());
        let (log, index) = EventLog::open(&config(copy.path())).unwrap();
        check(&log, &index, &writer);
    }
}

#[test]
fn hundred_thousand_events_fold() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path());
    for _ in 0..100 {
        let number = writer.log.state().revision.0;
        let keys: Vec<_> = (0..1000).map(|key| format!("key/{:05}", (key * 7 + number * 331) % 20_000)).collect();
        let mut keys: Vec<_> = keys.iter().map(String::as_str).collect();
        keys.sort_unstable();
        let value = if number % 5 == 0 { None } else { Some("value") };
        writer.record(&keys.into_iter().map(|key| (key, value)).collect::<Vec<_>>(), None);
    }
    writer.record(&[("last", Some("value"))], None);
    writer.record(&[], Some(writer.log.state().revision.0));
    while writer.log.fold_step(5000).unwrap() == FoldProgress::More {}
    writer.log.flush().unwrap();
    let copy = crash_copy(dir.path());
    let (log, index) = EventLog::open(&config(copy.path())).unwrap();
    check(&log, &index, &writer);
    assert_eq!(log.state().fold_point.next(), log.state().compacted);
}

#[test]
fn reads_go_on_while_folding() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path());
    writer.mixed(3000);
    writer.record(&[], Some(3000));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let live: Vec<_> = writer.live_at(writer.log.state().revision).into_values().collect();
                while !done.load(Ordering::Relaxed) {
                    assert_eq!(read_live(&writer.log, 500, None), live);
                    for event in &live {
                        let read = writer.log.event(event.key(), event.revision(), event.sub()).unwrap();
                        assert_eq!(read.as_ref(), Some(event));
                    }
                }
            });
        }
        while writer.log.fold_step(20).unwrap() == FoldProgress::More {}
        done.store(true, Ordering::Relaxed);
    });
    check(&writer.log, &writer.index, &writer);
}

#[test]
fn state_keys_are_scanned_by_prefix_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let writer = Writer::open(dir.path());
    let state = LogState { applied: Position(1), ..writer.log.state() };
    let row = |key: &[u8], value: Option<&[u8]>| (key.to_vec(), value.map(<[u8]>::to_vec));
    let rows = vec![row(b"lease/1", Some(b"a")), row(b"lease/2", Some(b"")), row(b"member", Some(b"m"))];
    writer.log.write(&WriteBatch { events: vec![], state: rows, log_state: state }).unwrap();
    assert_eq!(writer.log.state_scan(b"lease/").unwrap().len(), 2);
    assert_eq!(writer.log.state_scan(b"").unwrap().len(), 3, "the numbers are not the machine's");
    assert_eq!(writer.log.state_get(b"lease/2").unwrap(), Some(Bytes::new()));
    writer.log.write(&WriteBatch { events: vec![], state: vec![row(b"lease/1", None)], log_state: state }).unwrap();
    assert_eq!(writer.log.state_scan(b"lease/").unwrap(), [(Bytes::from("lease/2"), Bytes::new())]);
    assert_eq!(writer.log.state_get(b"lease/1").unwrap(), None);
}

#[test]
fn another_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(Writer::open(dir.path()));
    fs::write(dir.path().join("FORMAT"), format::format_line(2)).unwrap();
    let error = EventLog::open(&config(dir.path())).err().unwrap();
    assert!(matches!(error, StorageError::Format { found: 2, supported: 1, .. }), "{error}");
    assert!(error.to_string().contains("use the version that wrote it"));
    fs::write(dir.path().join("FORMAT"), format::format_line(1).replace("format 1", "format 3")).unwrap();
    let error = EventLog::open(&config(dir.path())).err().unwrap().to_string();
    assert!(error.contains("FORMAT") && error.contains("checksum"), "{error}");
}

#[test]
fn lost_current_file_is_not_taken_for_a_fresh_store() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path());
    writer.mixed(10);
    writer.log.flush().unwrap();
    drop(writer);
    fs::remove_file(dir.path().join("CURRENT")).unwrap();
    let error = EventLog::open(&config(dir.path())).err().unwrap().to_string();
    assert!(error.contains("CURRENT"), "{error}");
}

#[test]
fn missing_record_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path());
    writer.mixed(30);
    for gone in [2i64, 12] {
        let mut batch = rocksdb::WriteBatch::default();
        let current = writer.log.current();
        let engine = &current.engine;
        batch.delete_range_cf(
            engine.family(Family::Log),
            format::log_key(Revision(gone), 0),
            format::log_key(Revision(gone + 1), 0),
        );
        engine.write(batch).unwrap();
    }
    writer.log.flush().unwrap();
    let copy = crash_copy(dir.path());
    let message = EventLog::open(&config(copy.path())).err().unwrap().to_string();
    assert!(message.contains("a hole") && message.contains("revision 13 sub 0"), "{message}");
}

#[test]
fn a_file_that_ends_with_the_first_row_above_the_fold_point_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path());
    for value in ["1", "2", "3", "4"] {
        writer.record(&[("key", Some(value))], None);
    }
    writer.record(&[], Some(5));
    assert_eq!(writer.log.fold_step(1000).unwrap(), FoldProgress::Done);
    writer.log.flush().unwrap();
    // Only below its first level does RocksDB drop files.
    writer.log.current().engine.merge_files(Family::Log);
    writer.record(&[], None);
    writer.log.flush().unwrap();
    check(&writer.log, &writer.index, &writer);
    let copy = crash_copy(dir.path());
    let (log, index) = EventLog::open(&config(copy.path())).unwrap();
    check(&log, &index, &writer);
}

#[test]
fn rows_that_come_back_below_the_fold_point_mean_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path());
    writer.record(&[("gone", Some("old"))], None);
    writer.record(&[("gone", None)], None);
    writer.mixed(20);
    writer.record(&[], Some(12));
    assert_eq!(writer.log.fold_step(1000).unwrap(), FoldProgress::Done);
    // As when the file with their tombstones is dropped before theirs.
    let mut back = rocksdb::WriteBatch::default();
    let current = writer.log.current();
    back.put_cf(current.engine.family(Family::Log), format::log_key(Revision(2), 0), writer.events[0].to_row());
    current.engine.write(back).unwrap();
    check(&writer.log, &writer.index, &writer);
    writer.log.flush().unwrap();
    let copy = crash_copy(dir.path());
    let (log, index) = EventLog::open(&config(copy.path())).unwrap();
    check(&log, &index, &writer);
}

/// Numbers, log, live keys, and how much state and index there is.
type Everything = (LogState, Vec<Event>, Vec<Arc<Event>>, usize);

/// Reads everything, as a start and later reads would.
fn read_all(path: &Path) -> Result<Everything, StorageError> {
    let (log, index) = EventLog::open(&config(path))?;
    let current = log.current();
    let mut scan = current.scan((Revision(0), 0), Revision(i64::MAX - 1));
    let mut events = Vec::new();
    while let Some(event) = scan.next_event()? {
        events.push(event);
    }
    drop(scan);
    let live = log.live(&KeyRange::all(), None, usize::MAX, None)?.events;
    Ok((log.state(), events, live, log.state_scan(b"")?.len() + index.len()))
}

#[test]
fn flipped_bit_is_reported_with_its_file_or_does_not_matter() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path());
    writer.mixed(200);
    writer.record(&[], Some(100));
    while writer.log.fold_step(1000).unwrap() == FoldProgress::More {}
    writer.log.flush().unwrap();
    let good = crash_copy(dir.path());
    let expected = read_all(good.path()).unwrap();
    let tables: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".sst"))
        .collect();
    assert!(tables.len() >= 3, "one for each family: {tables:?}");
    for table in tables {
        let len = fs::metadata(dir.path().join(&table)).unwrap().len();
        let mut found = 0;
        for part in 0..12 {
            let at = usize::try_from(len * part / 12).unwrap();
            let bad = crash_copy(dir.path());
            let file = bad.path().join(&table);
            let mut bytes = fs::read(&file).unwrap();
            bytes[at] ^= 0x10;
            fs::write(&file, bytes).unwrap();
            match read_all(bad.path()) {
                Err(error) => {
                    let error = error.to_string();
                    // Of a table's properties RocksDB says that the MANIFEST may be at fault.
                    let properties =
                        error.contains("properties unsorted") && error.contains(bad.path().to_str().unwrap());
                    assert!(error.contains(&table) || properties, "{table} at {at}: {error}");
                    found += 1;
                }
                // Some bytes of a table (its statistics) are not read by anyone.
                Ok(read) => assert_eq!(read, expected, "{table} at {at}: silently different"),
            }
        }
        assert!(found > 0, "{table}: no flip was noticed");
    }
}

/// The bytes of format 1 as they were first written, by another program than this one.
#[test]
fn state_values_equal_the_golden_file() {
    let state = LogState {
        history: HistoryId(0x1122_3344_5566_7788),
        revision: Revision(1000),
        compacted: Revision(900),
        fold_point: Revision(0),
        applied: Position(12345),
        applied_term: Term(6),
    };
    let own = format::state_key(b"lease/1");
    let at = Installed { applied: Position(12345), term: Term(6) };
    let installed = Marker { number: 4, installed: Some(at) };
    let progress = Progress {
        point: CopyPoint { history: state.history, fold_point: Revision(899), compacted: state.compacted },
        base_last: Some(Bytes::from_static(b"key")),
        base_done: true,
        log_last: Some((Revision(1000), 3)),
        complete: Revision(999),
    };
    let envelope = Envelope {
        kind: EventKind::Put,
        revision: Revision(1000),
        sub: 3,
        create_revision: Revision(900),
        version: 17,
        lease: LeaseId(0x1234_5678),
        prev: None,
    };
    let head = Event::put(envelope, b"key", b"").without_value();
    let values = [
        format::sealed(format::NUMBERS_KEY, format::encode_numbers(&state)),
        format::sealed(format::FOLD_KEY, format::encode_fold_point(Revision(899))),
        format::sealed(&own, b"value".to_vec()),
        format::format_line(1).into_bytes(),
        format::flushed_line(&LogState { fold_point: Revision(899), ..state }).into_bytes(),
        format::log_key(Revision(1000), 3).to_vec(),
        format::generation_line(&Marker { number: 3, installed: None }).into_bytes(),
        format::generation_line(&installed).into_bytes(),
        format::sealed(format::STAGING_KEY, format::encode_progress(&progress)),
        format::encode_head(&head, 300),
    ];
    let hex = |value: &Vec<u8>| value.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let golden: Vec<_> = include_str!("../../testdata/state-format-1.hex").lines().collect();
    assert_eq!(values.iter().map(hex).collect::<Vec<_>>(), golden);
    let numbers = format::unsealed(format::NUMBERS_KEY, values[0].clone().into()).unwrap();
    assert_eq!(format::decode_numbers(&numbers).unwrap(), state);
    let line = std::str::from_utf8(&values[7]).unwrap();
    assert_eq!(format::parse_generation_line(line), Some(installed));
    let read = format::unsealed(format::STAGING_KEY, values[8].clone().into()).unwrap();
    assert_eq!(format::decode_progress(&read).unwrap(), progress);
    assert_eq!(format::decode_head(b"key", &values[9]).unwrap(), (head, 300));
    let moved = format::decode_head(b"kez", &values[9]).unwrap_err().to_string();
    assert!(moved.contains("checksum mismatch"), "a head under another key: {moved}");
    let moved = format::unsealed(&own, values[0].clone().into()).unwrap_err().to_string();
    assert!(moved.contains("checksum mismatch"), "a value under another key: {moved}");
}

/// RocksDB alone opens some of these as an older store, or as an empty one.
#[test]
fn flipped_bit_in_a_file_that_leads_to_the_tables_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path());
    for _ in 0..3 {
        writer.mixed(20);
        writer.log.flush().unwrap();
    }
    let expected = read_all(crash_copy(dir.path()).path()).unwrap();
    let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names: Vec<_> = names.filter(|name| !name.ends_with(".sst")).collect();
    for name in names {
        let len = usize::try_from(fs::metadata(dir.path().join(&name)).unwrap().len()).unwrap();
        let needed = ["CURRENT", "FORMAT", "FLUSHED"].contains(&name.as_str()) || name.starts_with("MANIFEST");
        let step = if needed { 1 + len / 60 } else { 1 + len / 5 };
        for at in (0..len).step_by(step) {
            let bad = crash_copy(dir.path());
            let file = bad.path().join(&name);
            if !file.exists() {
                continue;
            }
            let mut bytes = fs::read(&file).unwrap();
            bytes[at] ^= 0x10;
            fs::write(&file, bytes).unwrap();
            match read_all(bad.path()) {
                Err(error) => assert!(error.to_string().contains(bad.path().to_str().unwrap()), "{name}: {error}"),
                Ok(read) => assert_eq!(read, expected, "{name} at {at}: silently different"),
            }
        }
    }
}

/// What a flipped record length in the MANIFEST amounts to, for each of its lengths.
#[test]
fn cut_manifest_is_not_taken_for_an_older_store() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path());
    for _ in 0..3 {
        writer.mixed(20);
        writer.log.flush().unwrap();
    }
    let state = writer.log.state();
    let manifest = fs::read_to_string(dir.path().join("CURRENT")).unwrap().trim_end().to_owned();
    let len = fs::metadata(dir.path().join(&manifest)).unwrap().len();
    let (mut refused_here, mut whole) = (0, 0);
    for cut in (1..=len).step_by(19) {
        let bad = crash_copy(dir.path());
        File::options().write(true).open(bad.path().join(&manifest)).unwrap().set_len(len - cut).unwrap();
        match EventLog::open(&config(bad.path())) {
            Ok((log, _)) => {
                assert_eq!(log.state(), state, "{cut} bytes cut");
                whole += 1;
            }
            Err(error) => refused_here += u32::from(error.to_string().contains("were flushed")),
        }
    }
    assert!(refused_here > 10, "{refused_here} refused by the marker, {whole} whole");
}
