//! Reading the segments back: what checks is replayed, a torn tail is cut, anything else is an error.

use std::sync::Arc;

use raft::eraftpb::HardState;

use super::RaftLogError;
use super::disk::Disk;
use super::format::{
    Kind, LogPoint, MARK_BYTES, Record, SEGMENT_HEADER_BYTES, SegmentHeader, check_record, decode_record,
    find_mark_above, put_numbers, segment_name, segment_sequence,
};
use super::view::{Place, Segment, Shared};

/// Ends the name of a segment that is not yet part of the log.
pub(super) const TEMPORARY: &str = ".new";

/// The file that is there while this member can't be sure that it still has all it once promised: made before anything is
/// cut, so that a crash in between leaves it, and removed by [`RaftLog::settle`](super::RaftLog::settle).
pub(super) const DOUBT: &str = "cut";

/// The file that says that this member has left its group for good.
pub(super) const REMOVED: &str = "removed";

/// What [`RaftLog::open`](super::RaftLog::open) found.
#[derive(Clone, Debug, PartialEq)]
pub struct Recovered {
    /// The last hard state; the default in a new log.
    pub hard_state: HardState,
    /// The first index held; one above `last_index` when the log is empty.
    pub first_index: u64,
    /// The last index held.
    pub last_index: u64,
    /// What was cut off the end, if anything was.
    pub cut: Option<Cut>,
    /// Whether this or an earlier open has cut anything but a torn mark, and nothing has settled since that the group lost
    /// nothing by it.
    pub doubtful: bool,
}

/// A tail that did not check and was, as far as can be told, never synced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The segment.
    pub file: String,
    /// Where it was cut, in bytes.
    pub offset: u64,
    /// Bytes that were dropped.
    pub bytes: u64,
    /// What did not check at `offset`.
    pub reason: String,
}

/// The replayed log; the writer goes on in its last segment.
pub(super) struct Replayed {
    pub(super) shared: Shared,
    /// Sequence of the last segment; `None` in an empty directory.
    pub(super) current: Option<u64>,
    pub(super) cut: Option<Cut>,
    pub(super) doubtful: bool,
}

/// Reads all segments. Changes nothing on the disk but for a cut and left-over temporary files.
pub(super) fn replay(disk: &dyn Disk, recent_bytes_max: usize) -> Result<Replayed, RaftLogError> {
    let mut shared = Shared::new(recent_bytes_max);
    let headers = open_segments(disk, &mut shared)?;
    let mut cut = None;
    for (nth, header) in headers.iter().enumerate() {
        let segment = shared.segments[&header.sequence].clone();
        if nth == 0 {
            shared.reset(header.last);
            shared.trim = header.trim;
            shared.hard_state = header.hard_state.clone();
        } else if (&shared.hard_state, shared.trim, shared.last) != (&header.hard_state, header.trim, header.last) {
            let reason = "segment header does not continue the segment before";
            return Err(RaftLogError::corrupt(&segment.name, 0, reason));
        }
        let mut bytes = read_segment(&segment)?;
        match headers.get(nth + 1) {
            Some(next) => replay_sealed(&mut shared, header, &segment, &mut bytes, next.previous_bytes)?,
            None => cut = replay_last(disk, &mut shared, header, &segment, &bytes)?,
        }
    }
    check_complete(&shared, &headers)?;
    let trim = shared.trim;
    shared.trim_to(trim);
    let names = disk.list().map_err(RaftLogError::io("", "list"))?;
    let doubtful = names.iter().any(|name| name == DOUBT);
    Ok(Replayed { shared, current: headers.last().map(|header| header.sequence), cut, doubtful })
}

/// Opens the files and reads their headers, in order.
fn open_segments(disk: &dyn Disk, shared: &mut Shared) -> Result<Vec<SegmentHeader>, RaftLogError> {
    let mut headers: Vec<SegmentHeader> = Vec::new();
    for name in disk.list().map_err(RaftLogError::io("", "list"))? {
        if name.strip_suffix(TEMPORARY).and_then(segment_sequence).is_some() {
            disk.remove(&name).map_err(RaftLogError::io(&name, "remove"))?;
        }
        let Some(sequence) = segment_sequence(&name) else { continue };
        let file = disk.open(&name).map_err(RaftLogError::io(&name, "open"))?;
        let bytes = file.size().map_err(RaftLogError::io(&name, "length"))?;
        let mut head = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX).min(SEGMENT_HEADER_BYTES)];
        file.read_at(0, &mut head).map_err(RaftLogError::io(&name, "read"))?;
        let header = SegmentHeader::decode(&head).map_err(|reason| RaftLogError::corrupt(&name, 0, reason))?;
        if header.name() != name {
            return Err(RaftLogError::corrupt(&name, 0, format!("this is segment {}", header.name())));
        }
        if let Some(before) = headers.last().filter(|before| before.sequence + 1 != sequence) {
            let reason = format!("segment {} is not followed by segment {}", before.name(), before.sequence + 1);
            return Err(RaftLogError::Missing { file: name, reason });
        }
        shared.segments.insert(sequence, Segment { name, file, salt: header.salt, bytes });
        headers.push(header);
    }
    Ok(headers)
}

fn read_segment(segment: &Segment) -> Result<Vec<u8>, RaftLogError> {
    let len = usize::try_from(segment.bytes)
        .map_err(|_| RaftLogError::corrupt(&segment.name, 0, "segment is larger than memory"))?;
    let mut bytes = vec![0; len];
    segment.file.read_at(0, &mut bytes).map_err(RaftLogError::io(&segment.name, "read"))?;
    Ok(bytes)
}

/// Replays a segment that another follows: it was synced to the byte before that one was made, so all must check.
fn replay_sealed(
    shared: &mut Shared,
    header: &SegmentHeader,
    segment: &Segment,
    bytes: &mut Vec<u8>,
    len: u64,
) -> Result<(), RaftLogError> {
    if segment.bytes < len {
        let reason = format!("ends here, but {len} bytes were synced (the next segment says)");
        return Err(RaftLogError::corrupt(&segment.name, segment.bytes, reason));
    }
    // Beyond lies at most the seal, which says no more than the next segment's being there does.
    bytes.truncate(usize::try_from(len).expect("no longer than the bytes that were read"));
    let mut at = SEGMENT_HEADER_BYTES;
    while at < bytes.len() {
        at = replay_record(shared, header, segment, bytes, at)?
            .map_err(|reason| RaftLogError::corrupt(&segment.name, at as u64, reason))?;
    }
    Ok(())
}

/// Replays the newest segment; cuts its tail if it does not check and no mark vouches for it.
fn replay_last(
    disk: &dyn Disk,
    shared: &mut Shared,
    header: &SegmentHeader,
    segment: &Segment,
    bytes: &[u8],
) -> Result<Option<Cut>, RaftLogError> {
    let mut at = SEGMENT_HEADER_BYTES;
    while at < bytes.len() {
        let reason = match replay_record(shared, header, segment, bytes, at)? {
            Ok(end) => {
                at = end;
                continue;
            }
            Err(reason) => reason,
        };
        let offset = at as u64;
        if bytes[at..].iter().all(|byte| *byte == 0) {
            // Room that was made ahead.
            end_at(shared, header, segment, offset)?;
            return Ok(None);
        }
        if let Some(mark) = find_mark_above(bytes, at, at, header.salt) {
            let reason = format!("{reason}, in data that was synced (the mark at offset {mark} says)");
            return Err(RaftLogError::corrupt(&segment.name, offset, reason));
        }
        // Nothing rests on a mark, and its bytes are known: a part of it is no loss. Any other remainder,
        // however short, may be of a batch that was synced. One of no bytes can't be seen.
        if !mark_at(offset, header.salt).starts_with(without_room(&bytes[at..])) {
            note(disk, DOUBT)?;
        }
        end_at(shared, header, segment, offset)?;
        return Ok(Some(Cut { file: segment.name.clone(), offset, bytes: segment.bytes - offset, reason }));
    }
    Ok(None)
}

/// Cuts the newest segment.
fn end_at(shared: &mut Shared, header: &SegmentHeader, segment: &Segment, offset: u64) -> Result<(), RaftLogError> {
    segment.file.truncate(offset).map_err(RaftLogError::io(&segment.name, "truncate"))?;
    shared.segments.get_mut(&header.sequence).expect("opened before").bytes = offset;
    Ok(())
}

/// Without the zeros at the end, which may be room that was made ahead.
fn without_room(bytes: &[u8]) -> &[u8] {
    let len = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    &bytes[..len]
}

/// The mark that a sync of everything below `offset` leaves there.
fn mark_at(offset: u64, salt: u64) -> Vec<u8> {
    let mut mark = Vec::with_capacity(MARK_BYTES);
    put_numbers(&mut mark, salt, offset, Kind::Mark, &[offset]);
    mark
}

/// Leaves a durable note: an empty file.
pub(super) fn note(disk: &dyn Disk, name: &str) -> Result<(), RaftLogError> {
    match disk.create(name) {
        Ok(file) => file.sync().map_err(RaftLogError::io(name, "sync"))?,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(RaftLogError::io(name, "create")(error)),
    }
    disk.sync_dir().map_err(RaftLogError::io("", "sync directory"))
}

/// Replays the record at `at`. The inner error: it does not check. The outer: it checks, but can't be.
fn replay_record(
    shared: &mut Shared,
    header: &SegmentHeader,
    segment: &Segment,
    bytes: &[u8],
    at: usize,
) -> Result<Result<usize, String>, RaftLogError> {
    let raw = match check_record(bytes, at, 0, header.salt) {
        Ok(raw) => raw,
        Err(reason) => return Ok(Err(reason)),
    };
    let corrupt = |reason: String| RaftLogError::corrupt(&segment.name, at as u64, reason);
    match decode_record(raw.kind, raw.payload).map_err(corrupt)? {
        Record::Batch { hard_state, entries } => {
            if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
                let is_next = shared.trim.index < first.index && first.index <= shared.last.index + 1;
                // After the last number nothing could follow.
                if !is_next || last.index == u64::MAX {
                    let (trim, last) = (shared.trim.index, shared.last.index);
                    return Err(corrupt(format!("entries begin at {}, the log is ({trim}, {last}]", first.index)));
                }
                let place = Place {
                    first_index: first.index,
                    sequence: header.sequence,
                    start: at as u64,
                    end: raw.end as u64,
                };
                shared.add_place(place, last.index);
                shared.extend_terms(&entries);
                shared.written = last.index;
            }
            if let Some(state) = hard_state {
                shared.hard_state = state;
            }
        }
        Record::Mark { synced } if synced > at as u64 => {
            return Err(corrupt(format!("sync mark vouches for {synced} bytes, beyond itself")));
        }
        Record::Mark { .. } => {}
        Record::Trim(point) => replay_trim(shared, point).map_err(corrupt)?,
        Record::Reset(point) if point.index == u64::MAX => {
            return Err(corrupt("the log is reset to where no entry can follow".to_owned()));
        }
        Record::Reset(point) => shared.reset(point),
        Record::Seal { next_sequence, next_first_index } => {
            let reason = format!("segment {} says that the log goes on there", segment.name);
            return Err(RaftLogError::Missing { file: segment_name(next_sequence, next_first_index), reason });
        }
    }
    Ok(Ok(raw.end))
}

fn replay_trim(shared: &mut Shared, point: LogPoint) -> Result<(), String> {
    if point.index < shared.trim.index || point.index > shared.last.index {
        let (trim, last) = (shared.trim.index, shared.last.index);
        return Err(format!("trim to {}, the log is ({trim}, {last}]", point.index));
    }
    // Only the number: places and terms are dropped once, when all is read.
    shared.trim = point;
    Ok(())
}

/// Each entry above the trim point must have been found.
fn check_complete(shared: &Shared, headers: &[SegmentHeader]) -> Result<(), RaftLogError> {
    let Some(oldest) = headers.first().filter(|_| shared.last.index > shared.trim.index) else { return Ok(()) };
    let first_index = shared.trim.index + 1;
    if shared.places.first().is_none_or(|place| place.first_index > first_index) {
        let reason = format!("entries from {first_index} on lie in segments before this one, which are not there");
        return Err(RaftLogError::Missing { file: oldest.name(), reason });
    }
    Ok(())
}

/// Makes a segment: complete, and durable under its name, when this returns.
pub(super) fn create_segment(disk: &dyn Disk, header: &SegmentHeader) -> Result<Segment, RaftLogError> {
    let name = header.name();
    let temporary = format!("{name}{TEMPORARY}");
    let bytes = header.encode();
    let file = disk.create(&temporary).map_err(RaftLogError::io(&temporary, "create"))?;
    file.write_at(0, &bytes).map_err(RaftLogError::io(&temporary, "write"))?;
    file.sync().map_err(RaftLogError::io(&temporary, "sync"))?;
    disk.rename(&temporary, &name).map_err(RaftLogError::io(&temporary, "rename"))?;
    disk.sync_dir().map_err(RaftLogError::io("", "sync directory"))?;
    Ok(Segment { name, file: Arc::clone(&file), salt: header.salt, bytes: bytes.len() as u64 })
}
