//! The bytes of segments and records. The prose is in [`raft_log`](super).

use raft::eraftpb::{Entry, HardState};

/// First bytes of each segment.
pub(super) const MAGIC: &[u8; 8] = b"TWRFTLOG";
/// The version this code writes and reads.
pub(super) const VERSION: u32 = 1;
/// Bytes of a segment's header.
pub(super) const SEGMENT_HEADER_BYTES: usize = 108;
/// Bytes of a record's header.
pub(super) const RECORD_HEADER_BYTES: usize = 12;
/// Bytes of a whole sync mark.
pub(super) const MARK_BYTES: usize = RECORD_HEADER_BYTES + 8;
/// A batch's payload is split into several records beyond this.
pub(super) const PAYLOAD_BYTES_SOFT_MAX: usize = 16 << 20;

const TAG: [u8; 3] = *b"twr";
const FLAG_HARD_STATE: u8 = 1;
/// Term, type, length of context, length of data.
const ENTRY_HEADER_BYTES: usize = 17;

/// What a record is; the fourth byte of its tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Entries and perhaps a hard state.
    Batch = 1,
    /// Everything below an offset of this file is synced.
    Mark = 2,
    /// Entries up to an index are no longer needed.
    Trim = 3,
    /// All entries are dropped; the log goes on above an index.
    Reset = 4,
    /// The log goes on in another segment.
    Seal = 5,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Batch, Self::Mark, Self::Trim, Self::Reset, Self::Seal].into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// An index and the term of the entry there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogPoint {
    /// The index.
    pub index: u64,
    /// Its term.
    pub term: u64,
}

/// The head of a segment: all that is to be known of the log before it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct SegmentHeader {
    /// Mixed into the checksum of each record of this segment.
    pub(super) salt: u64,
    /// 1 for the first segment ever, then one more each.
    pub(super) sequence: u64,
    /// Bytes of the previous segment that belong to the log; 0 for the first.
    pub(super) previous_bytes: u64,
    pub(super) hard_state: HardState,
    pub(super) trim: LogPoint,
    /// The last entry before this segment.
    pub(super) last: LogPoint,
}

impl SegmentHeader {
    pub(super) fn name(&self) -> String {
        segment_name(self.sequence, self.last.index + 1)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SEGMENT_HEADER_BYTES);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        for number in [
            self.salt,
            self.sequence,
            self.previous_bytes,
            self.hard_state.term,
            self.hard_state.vote,
            self.hard_state.commit,
            self.trim.index,
            self.trim.term,
            self.last.index,
            self.last.term,
        ] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        // Reserved; zero in version 1.
        out.extend_from_slice(&[0; 12]);
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        debug_assert_eq!(out.len(), SEGMENT_HEADER_BYTES, "the header's size is fixed");
        out
    }

    /// Decodes the head of a segment; the error is the reason.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let Some(bytes) = bytes.get(..SEGMENT_HEADER_BYTES) else {
            return Err(format!("segment header ends after {} of {SEGMENT_HEADER_BYTES} bytes", bytes.len()));
        };
        let mut reader = Reader(bytes);
        if reader.take(MAGIC.len()) != Some(&MAGIC[..]) {
            return Err("not a raft log segment (magic)".to_owned());
        }
        let version = reader.u32().expect("length checked above");
        let body = SEGMENT_HEADER_BYTES - 4;
        let stored = Reader(&bytes[body..]).u32().expect("length checked above");
        // The checksum is judged first: a flipped bit in the version is corruption and not a newer release.
        if crc32c::crc32c(&bytes[..body]) != stored {
            return Err("segment header checksum".to_owned());
        }
        if version != VERSION {
            return Err(format!("format version {version}; this release reads {VERSION}"));
        }
        let mut next = || reader.u64().expect("length checked above");
        let header = Self {
            salt: next(),
            sequence: next(),
            previous_bytes: next(),
            hard_state: HardState { term: next(), vote: next(), commit: next() },
            trim: LogPoint { index: next(), term: next() },
            last: LogPoint { index: next(), term: next() },
        };
        // Whatever begins here has the next index.
        if header.last.index == u64::MAX {
            return Err("segment header: no entry can follow".to_owned());
        }
        Ok(header)
    }
}

/// The name of a segment: its sequence and the first index that it can hold when it begins, both in hex.
pub(super) fn segment_name(sequence: u64, first_index: u64) -> String {
    format!("{sequence:016x}-{first_index:016x}.log")
}

/// The sequence in a segment's name; `None` when the name is not a segment's.
pub(super) fn segment_sequence(name: &str) -> Option<u64> {
    let (sequence, first) = name.strip_suffix(".log")?.split_once('-')?;
    if sequence.len() != 16 || first.len() != 16 {
        return None;
    }
    u64::from_str_radix(first, 16).ok()?;
    u64::from_str_radix(sequence, 16).ok()
}

/// The decoded payload of a record.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Record {
    Batch { hard_state: Option<HardState>, entries: Vec<Entry> },
    Mark { synced: u64 },
    Trim(LogPoint),
    Reset(LogPoint),
    Seal { next_sequence: u64, next_first_index: u64 },
}

/// A checked record: its kind, its payload and where the next one starts.
pub(super) struct RawRecord<'a> {
    pub(super) kind: Kind,
    pub(super) payload: &'a [u8],
    pub(super) end: usize,
}

/// Checksum of a record: over its header (without the checksum) and payload, begun with what binds it to its place.
fn record_crc(salt: u64, offset: u64, rest: &[u8]) -> u32 {
    let mut place = [0; 16];
    place[..8].copy_from_slice(&salt.to_le_bytes());
    place[8..].copy_from_slice(&offset.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&place), rest)
}

/// Appends one record to `out`, whose first byte will lie at `base` in the file.
fn put_record(out: &mut Vec<u8>, salt: u64, base: u64, kind: Kind, payload: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&TAG);
    out.push(kind as u8);
    payload(out);
    let len = u32::try_from(out.len() - start - RECORD_HEADER_BYTES).expect("callers bound the payload");
    out[start + 4..start + 8].copy_from_slice(&len.to_le_bytes());
    let crc = record_crc(salt, base + start as u64, &out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
}

/// Appends a batch to `out`.
pub(super) fn put_batch(out: &mut Vec<u8>, salt: u64, base: u64, hard_state: Option<&HardState>, entries: &[Entry]) {
    put_record(out, salt, base, Kind::Batch, |out| {
        out.push(if hard_state.is_some() { FLAG_HARD_STATE } else { 0 });
        if let Some(state) = hard_state {
            for number in [state.term, state.vote, state.commit] {
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
        let count = u32::try_from(entries.len()).expect("callers bound the batch");
        out.extend_from_slice(&count.to_le_bytes());
        out.extend_from_slice(&entries.first().map_or(0, |entry| entry.index).to_le_bytes());
        for entry in entries {
            out.extend_from_slice(&entry.term.to_le_bytes());
            out.push(u8::try_from(entry.entry_type).expect("raft knows three entry types"));
            for bytes in [&entry.context, &entry.data] {
                let len = u32::try_from(bytes.len()).expect("callers bound the entry");
                out.extend_from_slice(&len.to_le_bytes());
            }
            out.extend_from_slice(&entry.context);
            out.extend_from_slice(&entry.data);
        }
    });
}

/// Bytes that an entry takes in a batch.
pub(super) fn entry_bytes(entry: &Entry) -> usize {
    ENTRY_HEADER_BYTES + entry.context.len() + entry.data.len()
}

/// Appends one of the small records to `out`.
pub(super) fn put_numbers(out: &mut Vec<u8>, salt: u64, base: u64, kind: Kind, numbers: &[u64]) {
    put_record(out, salt, base, kind, |out| {
        for number in numbers {
            out.extend_from_slice(&number.to_le_bytes());
        }
    });
}

/// Checks the record at `at` in `bytes`, which begin at offset `base` of the file; the error is the reason.
pub(super) fn check_record(bytes: &[u8], at: usize, base: u64, salt: u64) -> Result<RawRecord<'_>, String> {
    let rest = &bytes[at..];
    let mut reader = Reader(rest);
    let (Some(crc), Some(len), Some(tag)) = (reader.u32(), reader.u32(), reader.take(4)) else {
        return Err(format!("record header ends after {} of {RECORD_HEADER_BYTES} bytes", rest.len()));
    };
    let len = len as usize;
    let kind = Kind::from_byte(tag[3]).filter(|_| tag[..3] == TAG);
    let Some(kind) = kind else {
        return Err("not a record (tag)".to_owned());
    };
    let Some(payload) = reader.take(len) else {
        return Err(format!("record of {len} bytes reaches {} bytes past the end", len - reader.0.len()));
    };
    let end = RECORD_HEADER_BYTES + len;
    if record_crc(salt, base + at as u64, &rest[4..end]) != crc {
        return Err("record checksum".to_owned());
    }
    Ok(RawRecord { kind, payload, end: at + end })
}

/// Decodes a checked payload; the error is the reason.
pub(super) fn decode_record(kind: Kind, payload: &[u8]) -> Result<Record, String> {
    let mut reader = Reader(payload);
    let record = match kind {
        Kind::Batch => decode_batch(&mut reader),
        Kind::Mark => reader.u64().map(|synced| Record::Mark { synced }),
        Kind::Trim => reader.point().map(Record::Trim),
        Kind::Reset => reader.point().map(Record::Reset),
        Kind::Seal => {
            reader.point().map(|point| Record::Seal { next_sequence: point.index, next_first_index: point.term })
        }
    };
    record.filter(|_| reader.0.is_empty()).ok_or_else(|| format!("{kind:?} record does not decode"))
}

fn decode_batch(reader: &mut Reader<'_>) -> Option<Record> {
    let hard_state = match reader.u8()? {
        0 => None,
        FLAG_HARD_STATE => Some(HardState { term: reader.u64()?, vote: reader.u64()?, commit: reader.u64()? }),
        _ => return None,
    };
    let count = reader.u32()? as usize;
    let first_index = reader.u64()?;
    // A count that the payload can't hold must not reserve memory.
    if count > reader.0.len() / ENTRY_HEADER_BYTES {
        return None;
    }
    let mut entries = Vec::with_capacity(count);
    for nth in 0..count {
        let term = reader.u64()?;
        let entry_type = i32::from(reader.u8()?);
        let (context_len, data_len) = (reader.u32()? as usize, reader.u32()? as usize);
        let context = reader.take(context_len)?.to_vec();
        let data = reader.take(data_len)?.to_vec();
        let index = first_index.checked_add(nth as u64)?;
        entries.push(Entry { entry_type, term, index, data, context, sync_log: false });
    }
    Some(Record::Batch { hard_state, entries })
}

/// The first sync mark at or after `from` that vouches for bytes above `above`: its offset.
pub(super) fn find_mark_above(bytes: &[u8], from: usize, above: usize, salt: u64) -> Option<usize> {
    // Only the tag is looked for; the rest of a candidate must check as a record at exactly this offset.
    let needle = [TAG[0], TAG[1], TAG[2], Kind::Mark as u8];
    let mut at = from + 8;
    while at + 4 <= bytes.len() {
        if bytes[at..at + 4] == needle
            && let Ok(raw) = check_record(bytes, at - 8, 0, salt)
            && let Ok(Record::Mark { synced }) = decode_record(raw.kind, raw.payload)
            && synced > above as u64
        {
            return Some(at - 8);
        }
        at += 1;
    }
    None
}

/// Takes numbers and slices off the front of bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4).map(|bytes| u32::from_le_bytes(bytes.try_into().expect("four bytes were taken")))
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8).map(|bytes| u64::from_le_bytes(bytes.try_into().expect("eight bytes were taken")))
    }

    fn point(&mut self) -> Option<LogPoint> {
        Some(LogPoint { index: self.u64()?, term: self.u64()? })
    }
}
