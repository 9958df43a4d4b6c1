//! The bytes on disk, format 1.
//!
//! A file `FORMAT` in the directory holds one line, `tailwater event log format 1 checksum xxxxxxxx`, where x is the
//! CRC-32C, in hexadecimal, of what stands before ` checksum`. It is written and synced before the database is made.
//!
//! A file `FLUSHED` holds one line, `tailwater event log flushed a f checksum xxxxxxxx`, with the applied position a
//! and the fold point f that the last flush has made durable. It is replaced and synced after each flush.
//!
//! Beside the directory a file with its name and `.generation` holds one line, `tailwater event log generation n
//! checksum xxxxxxxx`: the state is in the directory with `.n` behind its name (for n = 0, or without the file, in the
//! directory itself). `generation n installed a t` instead says too that a copy of position a and term t was installed
//! there, and that the raft log has not been told yet.
//!
//! * `log`: key = revision, 8 bytes big endian, then sub-revision, 4 bytes big endian. Value = an event's row (see
//!   `event.rs`). Revisions and sub-revisions follow each other without a gap.
//! * `base`: key = the user's key. Value = the row of a put at or below the fold point.
//! * `heads`: key = the user's key, of each row in base. Value = what that row says, but for the value: byte 1 (version), then,
//!   8 bytes little endian each: revision, sub-revision, create revision, version, lease, bytes of the value; and a checksum
//!   as in `state`.
//! * `state`: key = byte 1 and the machine's own key; or one of three keys that begin with byte 0:
//!   * `\0numbers`: byte 1 (version), then, 8 bytes little endian each: history id, revision, compacted revision,
//!     applied position, term of the entry applied.
//!   * `\0fold`: byte 1 (version), then the fold point, 8 bytes little endian.
//!   * `\0staging`: byte 1 (version), then how far a copy of another member's state got, 8 bytes little endian each:
//!     history id, fold point and compacted revision of its source, whether base is whole (0 or 1), revision and sub-revision of the last log row (0: none),
//!     the revision up to which records are whole; and then the last key in base. It means nothing once the copy is whole.
//!
//!   Each value in `state` ends with 4 bytes, little endian: the CRC-32C of key and value, so that a value which
//!   turns up under another key is found as well.

use bytes::Bytes;

use super::generations::Marker;
use super::staging::Progress;
use super::{CopyPoint, Installed, LogState, StorageError};
use crate::{Envelope, Event, EventKind, HistoryId, LeaseId, Position, Revision, RowError, Term};

/// Of the directory.
pub(super) const FORMAT: u32 = 1;
pub(super) const NUMBERS_KEY: &[u8] = b"\0numbers";
pub(super) const FOLD_KEY: &[u8] = b"\0fold";
pub(super) const STAGING_KEY: &[u8] = b"\0staging";
/// Stands before the machine's own keys.
pub(super) const STATE_PREFIX: &[u8] = &[1];

const VALUE_VERSION: u8 = 1;
/// Behind each value.
pub(super) const CHECKSUM_BYTES: usize = 4;

pub(super) fn log_key(revision: Revision, sub: u32) -> [u8; 12] {
    let mut key = [0; 12];
    // Revisions are never negative, so that their big endian bytes are in order.
    key[..8].copy_from_slice(&revision.0.to_be_bytes());
    key[8..].copy_from_slice(&sub.to_be_bytes());
    key
}

pub(super) fn parse_log_key(key: &[u8]) -> Result<(Revision, u32), StorageError> {
    let (Some(revision), Some(sub), 12) = (key.first_chunk::<8>(), key.last_chunk::<4>(), key.len()) else {
        return Err(StorageError::Inconsistent(format!("log key {} is malformed", key.escape_ascii())));
    };
    Ok((Revision(i64::from_be_bytes(*revision)), u32::from_be_bytes(*sub)))
}

/// Whether `next` is what must come right after `last` in the log.
pub(super) fn follows(last: (Revision, u32), next: (Revision, u32)) -> bool {
    next == (last.0, last.1.wrapping_add(1)) || next == (last.0.next(), 0)
}

/// As [`follows`], where the greatest sub-revision stands for a record that is known to be whole.
pub(super) fn comes_after(last: (Revision, u32), next: (Revision, u32)) -> bool {
    if last.1 == u32::MAX { next == (last.0.next(), 0) } else { follows(last, next) }
}

pub(super) fn place_of_log(revision: Revision, sub: u32) -> String {
    format!("log row of revision {revision} sub {sub}")
}

pub(super) fn read_log_row(revision: Revision, sub: u32, row: Bytes) -> Result<Event, StorageError> {
    check_log_row(revision, sub, Event::from_row(row))
}

/// As [`read_log_row`]; the event has bytes of its own.
pub(super) fn copy_log_row(revision: Revision, sub: u32, row: &[u8]) -> Result<Event, StorageError> {
    check_log_row(revision, sub, Event::copied_from_row(row))
}

fn check_log_row(revision: Revision, sub: u32, found: Result<Event, RowError>) -> Result<Event, StorageError> {
    let found = found.and_then(|event| {
        let own = (event.revision(), event.sub()) == (revision, sub);
        if own { Ok(event) } else { Err(RowError::Malformed("row of another event")) }
    });
    found.map_err(|source| StorageError::Row { place: place_of_log(revision, sub), source })
}

pub(super) fn read_base_row(key: &[u8], row: Bytes) -> Result<Event, StorageError> {
    check_base_row(key, Event::from_row(row))
}

/// As [`read_base_row`]; the event has bytes of its own.
pub(super) fn copy_base_row(key: &[u8], row: &[u8]) -> Result<Event, StorageError> {
    check_base_row(key, Event::copied_from_row(row))
}

fn check_base_row(key: &[u8], found: Result<Event, RowError>) -> Result<Event, StorageError> {
    let found = found.and_then(|event| match event.kind() {
        EventKind::Put if event.key() == key => Ok(event),
        EventKind::Put => Err(RowError::Malformed("row of another key")),
        EventKind::Delete => Err(RowError::Malformed("a delete")),
    });
    found.map_err(|source| StorageError::Row { place: format!("base row of key {}", key.escape_ascii()), source })
}

/// What stands in `heads` beside the row of a put, whose value has so many bytes.
pub(super) fn encode_head(event: &Event, value_bytes: usize) -> Vec<u8> {
    let Envelope { revision, sub, create_revision, version, lease, .. } = event.envelope();
    let mut head = vec![VALUE_VERSION];
    for number in [revision.0, i64::from(sub), create_revision.0, version, lease.0] {
        head.extend_from_slice(&number.to_le_bytes());
    }
    head.extend_from_slice(&(value_bytes as u64).to_le_bytes());
    sealed(event.key(), head)
}

/// The put without its value, and how many bytes that has.
pub(super) fn decode_head(key: &[u8], head: &[u8]) -> Result<(Event, usize), StorageError> {
    let read = || {
        let numbers: [[u8; 8]; 6] = numbers(body(key, head)?)?;
        let [revision, sub, create_revision, version, lease, value_bytes] = numbers.map(i64::from_le_bytes);
        let envelope = Envelope {
            kind: EventKind::Put,
            revision: Revision(revision),
            sub: u32::try_from(sub).map_err(|_| RowError::Malformed("sub-revision out of range"))?,
            create_revision: Revision(create_revision),
            version,
            lease: LeaseId(lease),
            // Nobody asks for what came before a row of base.
            prev: None,
        };
        let value_bytes = usize::try_from(value_bytes).map_err(|_| RowError::Malformed("length of the value"))?;
        Ok((Event::put_without_value(envelope, key)?, value_bytes))
    };
    read().map_err(|source| StorageError::Row { place: format!("head of key {}", key.escape_ascii()), source })
}

pub(super) fn state_key(key: &[u8]) -> Vec<u8> {
    [STATE_PREFIX, key].concat()
}

/// Appends the checksum of key and value.
pub(super) fn sealed(key: &[u8], mut value: Vec<u8>) -> Vec<u8> {
    let checksum = crc32c::crc32c_append(crc32c::crc32c(key), &value);
    value.extend_from_slice(&checksum.to_le_bytes());
    value
}

/// Checks and takes off the checksum.
pub(super) fn unsealed(key: &[u8], value: Bytes) -> Result<Bytes, StorageError> {
    let body = body(key, &value).map_err(|source| state_error(key, source))?;
    Ok(value.slice_ref(body))
}

fn body<'a>(key: &[u8], value: &'a [u8]) -> Result<&'a [u8], RowError> {
    let (body, stored) =
        value.split_last_chunk::<CHECKSUM_BYTES>().ok_or(RowError::Malformed("shorter than its checksum"))?;
    let (stored, computed) = (u32::from_le_bytes(*stored), crc32c::crc32c_append(crc32c::crc32c(key), body));
    if stored == computed { Ok(body) } else { Err(RowError::Checksum { stored, computed }) }
}

fn state_error(key: &[u8], source: RowError) -> StorageError {
    StorageError::Row { place: format!("state key {}", key.escape_ascii()), source }
}

pub(super) fn encode_numbers(state: &LogState) -> Vec<u8> {
    let mut value = vec![VALUE_VERSION];
    value.extend_from_slice(&state.history.0.to_le_bytes());
    value.extend_from_slice(&state.revision.0.to_le_bytes());
    value.extend_from_slice(&state.compacted.0.to_le_bytes());
    value.extend_from_slice(&state.applied.0.to_le_bytes());
    value.extend_from_slice(&state.applied_term.0.to_le_bytes());
    value
}

pub(super) fn encode_fold_point(fold_point: Revision) -> Vec<u8> {
    let mut value = vec![VALUE_VERSION];
    value.extend_from_slice(&fold_point.0.to_le_bytes());
    value
}

/// Everything but the fold point.
pub(super) fn decode_numbers(value: &[u8]) -> Result<LogState, StorageError> {
    let [history, revision, compacted, applied, term] = words(NUMBERS_KEY, value)?;
    Ok(LogState {
        history: HistoryId(u64::from_le_bytes(history)),
        revision: Revision(i64::from_le_bytes(revision)),
        compacted: Revision(i64::from_le_bytes(compacted)),
        fold_point: Revision(0),
        applied: Position(u64::from_le_bytes(applied)),
        applied_term: Term(u64::from_le_bytes(term)),
    })
}

pub(super) fn decode_fold_point(value: &[u8]) -> Result<Revision, StorageError> {
    let [fold_point] = words(FOLD_KEY, value)?;
    Ok(Revision(i64::from_le_bytes(fold_point)))
}

pub(super) fn encode_progress(progress: &Progress) -> Vec<u8> {
    let mut value = vec![VALUE_VERSION];
    let (revision, sub) = progress.log_last.unwrap_or_default();
    value.extend_from_slice(&progress.point.history.0.to_le_bytes());
    value.extend_from_slice(&progress.point.fold_point.0.to_le_bytes());
    value.extend_from_slice(&progress.point.compacted.0.to_le_bytes());
    value.extend_from_slice(&u64::from(progress.base_done).to_le_bytes());
    value.extend_from_slice(&revision.0.to_le_bytes());
    value.extend_from_slice(&u64::from(sub).to_le_bytes());
    value.extend_from_slice(&progress.complete.0.to_le_bytes());
    value.extend_from_slice(progress.base_last.as_deref().unwrap_or_default());
    value
}

pub(super) fn decode_progress(value: &Bytes) -> Result<Progress, StorageError> {
    const NUMBERS_BYTES: usize = 1 + 7 * 8;
    let (numbers, key) = (value.slice(..value.len().min(NUMBERS_BYTES)), value.slice(value.len().min(NUMBERS_BYTES)..));
    let [history, fold_point, compacted, base_done, revision, sub, complete] = words(STAGING_KEY, &numbers)?;
    let revision = Revision(i64::from_le_bytes(revision));
    let sub = u32::try_from(u64::from_le_bytes(sub)).unwrap_or(u32::MAX);
    Ok(Progress {
        point: CopyPoint {
            history: HistoryId(u64::from_le_bytes(history)),
            fold_point: Revision(i64::from_le_bytes(fold_point)),
            compacted: Revision(i64::from_le_bytes(compacted)),
        },
        base_last: (!key.is_empty()).then_some(key),
        base_done: u64::from_le_bytes(base_done) != 0,
        log_last: (revision != Revision(0)).then_some((revision, sub)),
        complete: Revision(i64::from_le_bytes(complete)),
    })
}

fn words<const N: usize>(key: &[u8], value: &[u8]) -> Result<[[u8; 8]; N], StorageError> {
    numbers(value).map_err(|source| state_error(key, source))
}

/// Behind the version.
fn numbers<const N: usize>(value: &[u8]) -> Result<[[u8; 8]; N], RowError> {
    match value.split_first() {
        Some((&VALUE_VERSION, rest)) => {
            let (numbers, []) = rest.as_chunks::<8>() else { return Err(RowError::Malformed("length")) };
            numbers.try_into().map_err(|_| RowError::Malformed("length"))
        }
        Some((&version, _)) => Err(RowError::Format(version)),
        None => Err(RowError::Malformed("empty")),
    }
}

const FORMAT_TEXT: &str = "tailwater event log format ";
const FLUSHED_TEXT: &str = "tailwater event log flushed ";
const GENERATION_TEXT: &str = "tailwater event log generation ";
const INSTALLED_TEXT: &str = " installed ";

/// The line in the file `FORMAT`.
pub(super) fn format_line(format: u32) -> String {
    sealed_line(&format!("{FORMAT_TEXT}{format}"))
}

/// The number in the file `FORMAT`, `None` when the line is not whole.
pub(super) fn parse_format_line(line: &str) -> Option<u32> {
    unsealed_line(line)?.strip_prefix(FORMAT_TEXT)?.parse().ok()
}

/// The line in the file `FLUSHED`.
pub(super) fn flushed_line(flushed: &LogState) -> String {
    sealed_line(&format!("{FLUSHED_TEXT}{} {}", flushed.applied, flushed.fold_point))
}

/// Applied position and fold point in the file `FLUSHED`, `None` when the line is not whole.
pub(super) fn parse_flushed_line(line: &str) -> Option<(Position, Revision)> {
    let (applied, fold_point) = unsealed_line(line)?.strip_prefix(FLUSHED_TEXT)?.split_once(' ')?;
    Some((Position(applied.parse().ok()?), Revision(fold_point.parse().ok()?)))
}

/// The line in the file that names the generation.
pub(super) fn generation_line(marker: &Marker) -> String {
    let installed = marker.installed.map(|at| format!("{INSTALLED_TEXT}{} {}", at.applied, at.term));
    sealed_line(&format!("{GENERATION_TEXT}{}{}", marker.number, installed.unwrap_or_default()))
}

/// What the file that names the generation says, `None` when the line is not whole.
pub(super) fn parse_generation_line(line: &str) -> Option<Marker> {
    let text = unsealed_line(line)?.strip_prefix(GENERATION_TEXT)?;
    let Some((number, installed)) = text.split_once(INSTALLED_TEXT) else {
        return Some(Marker { number: text.parse().ok()?, installed: None });
    };
    let (applied, term) = installed.split_once(' ')?;
    let installed = Installed { applied: Position(applied.parse().ok()?), term: Term(term.parse().ok()?) };
    Some(Marker { number: number.parse().ok()?, installed: Some(installed) })
}

pub(super) fn sealed_line(text: &str) -> String {
    format!("{text} checksum {:08x}\n", crc32c::crc32c(text.as_bytes()))
}

fn unsealed_line(line: &str) -> Option<&str> {
    let (text, _) = line.split_once(" checksum ")?;
    (line == sealed_line(text)).then_some(text)
}
