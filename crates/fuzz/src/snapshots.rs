//! Snapshot files: whatever they hold, they are read to the end or refused, and what was read can be written and is then
//! the same.

use std::sync::LazyLock;

use prost::Message as _;
use sha2::{Digest as _, Sha256};
use tailwater_api::leasepb::Lease;
use tailwater_api::{authpb, mvccpb};
use tailwater_snapshot::{
    Auth, Change, ConfState, Facts, Limits, RowRevision, SnapshotError, SnapshotPlanner, SnapshotReader,
    SnapshotWriter, TRAILER_BYTES, WriteError,
};

use crate::patches::patched;

const LIMITS: Limits = Limits { value_bytes_max: 1 << 14, page_buffer_bytes_max: 1 << 13 };
/// A meta: where it lies in its page, and how much of it is under its checksum, which follows.
const META_START: usize = 16;
const META_SUMMED_BYTES: usize = 56;
/// Pages as they are written.
const PAGE_BYTES: usize = 4096;

/// What a snapshot holds.
#[derive(Debug, Default, PartialEq)]
struct Content {
    rows: Vec<(RowRevision, Row)>,
    leases: Vec<Lease>,
    facts: Facts,
}

#[derive(Debug, PartialEq)]
enum Row {
    Put(Vec<u8>),
    Delete(Vec<u8>),
    Bump,
}

/// A small store, one with long rows and many pages, and an empty one.
static FILES: LazyLock<[Vec<u8>; 3]> = LazyLock::new(|| {
    [content(3, 5), content(60, 700), Content::default()].map(|content| write(&content).expect("rows in order"))
});

fn content(keys: i64, value_bytes: usize) -> Content {
    let mut rows = Vec::new();
    for number in 0..keys {
        let at = RowRevision { main: number + 2, sub: 0 };
        let key_value = mvccpb::KeyValue {
            key: format!("key/{number}").into(),
            create_revision: at.main,
            mod_revision: at.main,
            version: 1,
            value: vec![b'v'; value_bytes].into(),
            lease: number % 2,
        };
        rows.push((at, Row::Put(key_value.encode_to_vec())));
    }
    rows.push((RowRevision { main: keys + 2, sub: 0 }, Row::Delete(b"key/0".to_vec())));
    let permission = authpb::Permission { perm_type: 2, key: b"a".to_vec(), range_end: b"b".to_vec() };
    let role = authpb::Role { name: b"r".to_vec(), key_permission: vec![permission] };
    let user =
        authpb::User { name: b"u".to_vec(), password: b"hash".to_vec(), roles: vec!["r".into()], ..Default::default() };
    let facts = Facts {
        auth: Auth { is_enabled: true, revision: 4, users: vec![user], roles: vec![role] },
        cluster_version: Some("3.6.0".into()),
        storage_version: Some("3.6.0".into()),
        consistent_index: 9,
        term: 2,
        conf_state: Some(ConfState::default()),
        scheduled_compaction: Some(2),
        finished_compaction: Some(2),
        removed_members: vec![5],
        ..Facts::default()
    };
    Content { rows, leases: vec![Lease { id: 1, ttl: 60, remaining_ttl: 0 }], facts }
}

fn write(content: &Content) -> Result<Vec<u8>, WriteError> {
    let revision = content.rows.last().map_or(1, |(at, _)| at.main.max(1));
    let mut planner = SnapshotPlanner::new(&content.facts)?;
    for (at, row) in &content.rows {
        match row {
            Row::Put(key_value) => planner.put(*at, key_value.len())?,
            Row::Delete(key) => planner.delete(*at, key.len())?,
            Row::Bump => {}
        }
    }
    planner.end_history(revision)?;
    content.leases.iter().try_for_each(|lease| planner.lease(lease))?;
    let plan = planner.finish()?;
    let mut writer = SnapshotWriter::new(Vec::new(), plan, &content.facts)?;
    for (at, row) in &content.rows {
        match row {
            Row::Put(key_value) => writer.put(*at, key_value)?,
            Row::Delete(key) => writer.delete(*at, key)?,
            Row::Bump => {}
        }
    }
    writer.end_history(revision)?;
    content.leases.iter().try_for_each(|lease| writer.lease(lease))?;
    writer.finish()
}

/// The first byte says what the rest is: with bit 7 a file, else changes of one of the files here. Bit 6: the checksums of
/// the metas are made to fit, bit 5: the trailer.
pub(crate) fn check(data: &[u8]) -> bool {
    let Some((&how, rest)) = data.split_first() else { return false };
    let mut file = match how {
        0x80.. => rest.to_vec(),
        _ => patched(&FILES[usize::from(how) % FILES.len()], rest),
    };
    if how & 0x40 != 0 {
        [0, PAGE_BYTES].into_iter().for_each(|page| reseal_meta(&mut file, page + META_START));
    }
    if how & 0x20 != 0 {
        reseal(&mut file);
    }
    let Ok(reader) = SnapshotReader::open(file, LIMITS) else { return false };
    let has_sum = reader.verify_trailer().is_ok();
    let is_sound = reader.bolt().check().is_ok();
    let status = reader.status();
    let Ok(content) = read(&reader) else { return false };
    if is_sound {
        check_rewritten(&content);
    }
    if let Ok(status) = status {
        let last = content.rows.last().map_or(0, |(at, _)| at.main);
        assert_eq!(status.revision, last, "the revision in {status:?}");
        assert_eq!(status.storage_version, content.facts.storage_version);
    }
    has_sum
}

fn read(reader: &SnapshotReader<Vec<u8>>) -> Result<Content, SnapshotError> {
    let mut content = Content { facts: reader.facts()?, ..Content::default() };
    let mut history = reader.history()?;
    while let Some((at, change)) = history.next()? {
        let row = match change {
            Change::Put { encoded, .. } => Row::Put(encoded.to_vec()),
            Change::Delete { key } => Row::Delete(key),
            Change::Bump => Row::Bump,
        };
        content.rows.push((at, row));
    }
    let mut leases = reader.leases()?;
    while let Some(lease) = leases.next()? {
        content.leases.push(lease);
    }
    Ok(content)
}

/// What can be written is the same when it is read again; a row that only raises the revision is made where it is needed.
fn check_rewritten(content: &Content) {
    let Ok(file) = write(content) else { return };
    let reader = SnapshotReader::open(file, LIMITS).expect("just written");
    reader.verify_trailer().expect("just written");
    reader.status().expect("just written");
    let again = read(&reader).expect("just written");
    let changes = |content: &Content| -> Vec<(RowRevision, Vec<u8>)> {
        let rows = content.rows.iter().filter_map(|(at, row)| match row {
            Row::Put(bytes) => Some((*at, [&[0][..], &bytes[..]].concat())),
            Row::Delete(key) => Some((*at, [&[1][..], &key[..]].concat())),
            Row::Bump => None,
        });
        rows.collect()
    };
    assert_eq!(changes(&again), changes(content));
    assert_eq!((&again.leases, &again.facts), (&content.leases, &content.facts));
}

/// bbolt's: FNV-1a with 64 bits.
fn reseal_meta(file: &mut [u8], at: usize) {
    let Some(meta) = file.get_mut(at..at + META_SUMMED_BYTES + 8) else { return };
    let sum = meta[..META_SUMMED_BYTES]
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    meta[META_SUMMED_BYTES..].copy_from_slice(&sum.to_le_bytes());
}

fn reseal(file: &mut [u8]) {
    let trailer_bytes = usize::try_from(TRAILER_BYTES).expect("32");
    if let Some(at) = file.len().checked_sub(trailer_bytes) {
        let sum = Sha256::digest(&file[..at]);
        file[at..].copy_from_slice(&sum);
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    // Each file as it is, and one with a byte of a value changed.
    let place = u16::try_from(3 * PAGE_BYTES).expect("small").to_le_bytes();
    vec![vec![0], vec![1], vec![2], vec![0x21, place[0], place[1], 1, 0]]
}
