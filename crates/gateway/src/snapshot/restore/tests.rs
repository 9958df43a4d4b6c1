use tailwater_api::etcdserverpb::AlarmMember;
use tailwater_api::mvccpb::KeyValue;
use tailwater_consensus::StoredState;
use tailwater_eventlog::{BackupConfig, EventLog, EventLogConfig};
use tailwater_snapshot::{Lease, Limits, SnapshotPlanner, SnapshotWriter};

use super::*;

/// A row: its place, its key, and whether it is a put.
type Row = ((i64, i64), &'static str, bool);

fn key_value((main, _): (i64, i64), key: &str) -> Vec<u8> {
    KeyValue {
        key: key.as_bytes().to_vec().into(),
        create_revision: 1,
        mod_revision: main,
        version: 1,
        value: b"value".to_vec().into(),
        lease: 0,
    }
    .encode_to_vec()
}

/// A file as etcd writes it.
fn file(rows: &[Row], revision: i64, leases: &[Lease], facts: &Facts) -> Vec<u8> {
    let at = |(main, sub)| RowRevision { main, sub };
    let mut planner = SnapshotPlanner::new(facts).expect("a plan");
    for &(place, key, is_put) in rows {
        let planned = match is_put {
            true => planner.put(at(place), key_value(place, key).len()),
            false => planner.delete(at(place), key.len()),
        };
        planned.expect("in order");
    }
    planner.end_history(revision).expect("an end");
    leases.iter().for_each(|lease| planner.lease(lease).expect("in order"));
    let mut writer = SnapshotWriter::new(Vec::new(), planner.finish().expect("a plan"), facts).expect("memory");
    for &(place, key, is_put) in rows {
        let written = match is_put {
            true => writer.put(at(place), &key_value(place, key)),
            false => writer.delete(at(place), key.as_bytes()),
        };
        written.expect("as planned");
    }
    writer.end_history(revision).expect("as planned");
    leases.iter().for_each(|lease| writer.lease(lease).expect("as planned"));
    writer.finish().expect("as planned")
}

/// Numbers, revisions and keys, and the rest of what is restored.
type Found = (Restored, Vec<(i64, String)>, StoredState);

/// What is found in the store that a file is restored to.
fn restored(file: &[u8], bump_revision: u64) -> Result<Found, RestoreError> {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("state");
    let reader = SnapshotReader::open(file, Limits::default())?;
    let restored = restore(&reader, &Restoring { state_dir: &path, bump_revision })?;
    let config = EventLogConfig { path, memtable_bytes: 1 << 20, block_cache_bytes: 1 << 20 };
    let (log, _) = EventLog::open(&config).expect("it opens");
    let backup = log.backup(&BackupConfig::default()).expect("it is read");
    let stored = StoredState::from_rows(*backup.numbers(), backup.state()).expect("rows");
    let mut events = backup.events().expect("events");
    let mut found = Vec::new();
    while let Some(event) = events.next().expect("an event") {
        found.push((event.revision().0, String::from_utf8_lossy(event.key()).into_owned()));
    }
    Ok((restored, found, stored))
}

fn numbers(restored: &Restored) -> (i64, i64, i64) {
    (restored.numbers.revision.0, restored.numbers.compacted.0, restored.numbers.fold_point.0)
}

fn compacted_at(revision: i64) -> Facts {
    Facts { finished_compaction: Some(revision), scheduled_compaction: Some(revision), ..Facts::default() }
}

fn keys(found: &[(i64, String)]) -> Vec<(i64, &str)> {
    found.iter().map(|(revision, key)| (*revision, key.as_str())).collect()
}

#[test]
fn a_history_without_a_compaction_is_kept_whole() {
    let rows: &[Row] = &[((2, 0), "a", true), ((3, 0), "a", true), ((3, 1), "b", true), ((4, 0), "a", false)];
    let (restored, found, _) = restored(&file(rows, 4, &[], &Facts::default()), 0).expect("restored");
    assert_eq!((numbers(&restored), restored.cut, restored.rows), ((4, 0, 0), None, 4));
    assert_eq!(keys(&found), [(2, "a"), (3, "a"), (3, "b"), (4, "a")]);
}

#[test]
fn below_a_compaction_the_newest_stays_and_its_own_record_is_watched() {
    // Superseded and deleted rows that etcd has not removed yet are in it too.
    let rows: &[Row] = &[
        ((2, 0), "a", true),
        ((5, 0), "b", true),
        ((6, 0), "c", true),
        ((7, 0), "c", false),
        ((9, 0), "a", true),
        ((10, 0), "d", true),
    ];
    let (restored, found, _) = restored(&file(rows, 10, &[], &compacted_at(9)), 0).expect("restored");
    assert_eq!((numbers(&restored), restored.cut), ((10, 9, 8), None));
    assert_eq!(keys(&found), [(2, "a"), (5, "b"), (9, "a"), (10, "d")]);
}

#[test]
fn a_compacted_revision_without_a_record_is_the_fold_point() {
    let (above, found, _) =
        restored(&file(&[((5, 0), "a", true), ((10, 0), "b", true)], 10, &[], &compacted_at(9)), 0).expect("restored");
    assert_eq!((numbers(&above), keys(&found).len()), ((10, 9, 9), 2));
    let (at, ..) = restored(&file(&[((5, 0), "a", true)], 9, &[], &compacted_at(9)), 0).expect("restored");
    assert_eq!(numbers(&at), (9, 9, 9));
    let (cut_record, ..) =
        restored(&file(&[((9, 1), "a", true), ((10, 0), "b", true)], 10, &[], &compacted_at(9)), 0).expect("restored");
    assert_eq!(numbers(&cut_record), (10, 9, 9));
}

#[test]
fn a_hole_above_the_compaction_is_told_and_cut() {
    let rows: &[Row] = &[((2, 0), "a", true), ((3, 0), "b", true), ((8, 0), "c", true), ((9, 0), "d", true)];
    let (restored, found, _) = restored(&file(rows, 9, &[], &compacted_at(2)), 0).expect("restored");
    assert_eq!((numbers(&restored), restored.cut), ((9, 7, 7), Some(Revision(7))));
    assert_eq!(keys(&found), [(2, "a"), (3, "b"), (8, "c"), (9, "d")]);
}

#[test]
fn a_raised_revision_is_compacted() {
    let rows: &[Row] = &[((2, 0), "a", true), ((3, 0), "a", false), ((4, 0), "b", true)];
    let file = file(rows, 4, &[], &Facts::default());
    let (restored_, found, _) = restored(&file, 1_000_000).expect("restored");
    assert_eq!((numbers(&restored_), restored_.cut), ((1_000_004, 1_000_004, 1_000_004), None));
    assert_eq!(keys(&found), [(4, "b")]);
    assert!(matches!(restored(&file, u64::MAX), Err(RestoreError::Bump { revision: 4, .. })));
    assert!(matches!(restored(&file, i64::MAX as u64), Err(RestoreError::Bump { .. })));
}

#[test]
fn a_file_that_was_raised_before_is_restored_again() {
    // etcdutl writes an empty row at the raised revision and compacts there.
    let (restored, found, _) =
        restored(&file(&[((5, 0), "a", true)], 500, &[], &Facts::default()), 0).expect("restored");
    assert_eq!((numbers(&restored), restored.cut), ((500, 500, 500), Some(Revision(500))));
    assert_eq!(keys(&found), [(5, "a")]);
}

#[test]
fn leases_alarms_users_and_roles_are_kept() {
    let lease = |id, ttl, remaining_ttl| Lease { id, ttl, remaining_ttl };
    let user = tailwater_api::authpb::User { name: b"root".to_vec(), roles: vec!["root".into()], ..Default::default() };
    let role = tailwater_api::authpb::Role { name: b"root".to_vec(), ..Default::default() };
    let facts = Facts {
        auth: Auth { is_enabled: true, revision: 7, users: vec![user.clone()], roles: vec![role.clone()] },
        alarms: vec![AlarmMember { member_id: 5, alarm: 1 }],
        ..Facts::default()
    };
    let leases = [lease(7, 100, 0), lease(9, 60, 33)];
    let (restored, _, stored) = restored(&file(&[((2, 0), "a", true)], 2, &leases, &facts), 0).expect("restored");
    assert_eq!(restored.leases, 2);
    let found: Vec<_> = stored.leases.iter().map(|lease| (lease.id.0, lease.ttl, lease.remaining)).collect();
    assert_eq!(found, [(7, 100, 0), (9, 60, 33)]);
    assert_eq!(stored.alarms, [Alarm { member: MemberId(5), kind: AlarmKind::NoSpace }]);
    assert_eq!((stored.auth.enabled, stored.auth.revision), (true, 7));
    assert_eq!(stored.auth.users, [user.encode_to_vec()]);
    assert_eq!(stored.auth.roles, [role.encode_to_vec()]);
    assert!(stored.members.is_empty() && stored.cluster_version.is_empty(), "those come with the group's start");
}

#[test]
fn different_files_have_different_digests() {
    let digest = |rows: &[Row], bump| {
        let file = file(rows, 3, &[], &Facts::default());
        let directory = tempfile::tempdir().expect("a directory");
        let reader = SnapshotReader::open(&file[..], Limits::default()).expect("a file");
        let path = directory.path().join("state");
        restore(&reader, &Restoring { state_dir: &path, bump_revision: bump }).expect("restored");
        let config = EventLogConfig { path, memtable_bytes: 1 << 20, block_cache_bytes: 1 << 20 };
        let (log, _) = EventLog::open(&config).expect("it opens");
        log.state_get(b"restored").expect("a row").expect("a row")
    };
    let (one, other) = (&[((2, 0), "a", true), ((3, 0), "b", true)], &[((2, 0), "a", true), ((3, 0), "c", true)]);
    assert_eq!(digest(one, 0), digest(one, 0));
    assert_ne!(digest(one, 0), digest(other, 0));
    assert_ne!(digest(one, 0), digest(one, 10));
}
