//! What the log holds, as its readers see it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use metrics::gauge;
use parking_lot::Mutex;
use raft::eraftpb::{Entry, HardState};

use super::RaftLogError;
use super::disk::DiskFile;
use super::format::{LogPoint, Record, check_record, decode_record, entry_bytes};
use super::metrics::RECENT_BYTES;

/// Records closer together than this share one place, found again by walking over them.
const PLACE_BYTES: u64 = 64 << 10;

/// What malloc adds to an allocation, about: its header and what it rounds up.
const ALLOCATION_BYTES: usize = 16;

/// Part of a segment that holds, among other records, entries from `first_index` up to the next place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) first_index: u64,
    pub(super) sequence: u64,
    pub(super) start: u64,
    pub(super) end: u64,
}

/// One file of the log.
#[derive(Clone)]
pub(super) struct Segment {
    pub(super) name: String,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) salt: u64,
    pub(super) bytes: u64,
}

/// The state behind [`RaftLogView`].
///
/// Invariants: `trim.index <= written <= last.index`; places are sorted by index and by (sequence, start); each index
/// in `trim.index + 1 ..= written` is covered by a place, and each above `written` is in `recent`.
pub(super) struct Shared {
    pub(super) trim: LogPoint,
    pub(super) last: LogPoint,
    /// What the files hold of the entries as they are staged now.
    pub(super) written: u64,
    /// The last index in the files, by the order of writing; may already be overwritten by what is staged.
    pub(super) filed: u64,
    pub(super) hard_state: HardState,
    pub(super) places: Vec<Place>,
    pub(super) segments: BTreeMap<u64, Segment>,
    /// (first index of a run of entries of one term, the term), sorted.
    pub(super) runs: Vec<LogPoint>,
    /// The newest entries, up to `last`, contiguous.
    recent: VecDeque<Entry>,
    /// What `recent` takes in memory. Small entries are mostly overhead, so their bytes alone would not bound it.
    pub(super) recent_bytes: usize,
    recent_bytes_max: usize,
    /// Entries up to here are asked for no more, or seldom.
    released: u64,
}

impl Shared {
    pub(super) fn new(recent_bytes_max: usize) -> Self {
        Self {
            trim: LogPoint::default(),
            last: LogPoint::default(),
            written: 0,
            filed: 0,
            hard_state: HardState::default(),
            places: Vec::new(),
            segments: BTreeMap::new(),
            runs: Vec::new(),
            recent: VecDeque::new(),
            recent_bytes: 0,
            recent_bytes_max,
            released: 0,
        }
    }

    /// The term of an index in `trim.index ..= last.index`.
    pub(super) fn term(&self, index: u64) -> Result<u64, RaftLogError> {
        if index == self.trim.index {
            return Ok(self.trim.term);
        }
        self.check_range(index, index)?;
        let run = self.runs.partition_point(|run| run.index <= index);
        assert!(run > 0, "an index that is held belongs to a run of terms");
        Ok(self.runs[run - 1].term)
    }

    fn check_range(&self, low: u64, last: u64) -> Result<(), RaftLogError> {
        if low <= self.trim.index {
            return Err(RaftLogError::Compacted { first_index: self.trim.index + 1 });
        }
        if last > self.last.index {
            return Err(RaftLogError::Unavailable { last_index: self.last.index });
        }
        Ok(())
    }

    /// Takes up entries' terms and moves `last`; what conflicts is forgotten.
    pub(super) fn extend_terms(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        let kept = self.runs.partition_point(|run| run.index < first.index);
        self.runs.truncate(kept);
        for entry in entries {
            if self.runs.last().is_none_or(|run| run.term != entry.term) {
                self.runs.push(LogPoint { index: entry.index, term: entry.term });
            }
            self.last = LogPoint { index: entry.index, term: entry.term };
        }
    }

    fn stage(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(
            self.trim.index < first.index && first.index <= self.last.index + 1,
            "staged entries begin at {}, the log is ({}, {}]",
            first.index,
            self.trim.index,
            self.last.index
        );
        assert!(
            entries.windows(2).all(|pair| pair[0].index + 1 == pair[1].index),
            "staged entries follow each other without a gap"
        );
        while self.recent.back().is_some_and(|entry| entry.index >= first.index) {
            let dropped = self.recent.pop_back().expect("just seen");
            self.recent_bytes -= held_bytes(&dropped);
        }
        self.written = self.written.min(first.index - 1);
        self.extend_terms(entries);
        for entry in entries {
            self.recent_bytes += held_bytes(entry);
            self.recent.push_back(entry.clone());
        }
    }

    /// The writer has put these entries, the last of a batch, into the files.
    pub(super) fn on_written(&mut self, entries: &[Entry]) {
        // Entries that were overwritten while they waited for the writer are in the files, but not in the log.
        let held = entries.iter().rev().find(|entry| self.term(entry.index).is_ok_and(|term| term == entry.term));
        if let Some(held) = held {
            self.written = self.written.max(held.index);
        }
        self.evict();
    }

    fn evict(&mut self) {
        while let Some(oldest) = self.recent.front() {
            let needed = oldest.index > self.written
                || (oldest.index > self.trim.index.max(self.released) && self.recent_bytes <= self.recent_bytes_max);
            if needed {
                break;
            }
            let oldest = self.recent.pop_front().expect("just seen");
            self.recent_bytes -= held_bytes(&oldest);
        }
    }

    /// A batch with entries up to `last_index` lies at a place of a segment.
    pub(super) fn add_place(&mut self, place: Place, last_index: u64) {
        let kept = self.places.partition_point(|old| old.first_index < place.first_index);
        let conflicts = self.filed >= place.first_index;
        self.filed = last_index;
        self.places.truncate(kept);
        match self.places.last_mut() {
            Some(old) if !conflicts && old.sequence == place.sequence && place.end - old.start <= PLACE_BYTES => {
                old.end = place.end;
            }
            _ => self.places.push(place),
        }
    }

    /// Drops what is known of entries up to `trim`.
    pub(super) fn trim_to(&mut self, trim: LogPoint) {
        let covering = self.places.partition_point(|place| place.first_index <= trim.index + 1);
        if covering > 1 {
            self.places.drain(..covering - 1);
        }
        let run = self.runs.partition_point(|run| run.index <= trim.index + 1);
        if run > 1 {
            self.runs.drain(..run - 1);
        }
        self.trim = trim;
        self.evict();
    }

    /// Drops everything; the log goes on above `point`.
    pub(super) fn reset(&mut self, point: LogPoint) {
        self.trim = point;
        self.last = point;
        self.written = point.index;
        self.reset_files(point);
        self.runs.clear();
        self.recent.clear();
        self.recent_bytes = 0;
    }

    /// Forgets what the files hold; they go on above `point`.
    pub(super) fn reset_files(&mut self, point: LogPoint) {
        self.filed = point.index;
        self.places.clear();
    }

    /// Entries from `low` on out of memory, if they are there.
    fn recent_from(&self, low: u64, high: u64, bytes_max: u64) -> Option<Vec<Entry>> {
        let first = self.recent.front()?.index;
        let skipped = usize::try_from(low.checked_sub(first)?).ok()?;
        let mut taken = Taken::new(bytes_max);
        for entry in self.recent.iter().skip(skipped).take_while(|entry| entry.index < high) {
            if !taken.fits(entry) {
                break;
            }
            taken.entries.push(entry.clone());
        }
        Some(taken.entries)
    }
}

/// What an entry takes in memory: itself, its bytes, and what an allocator adds to each of the two.
fn held_bytes(entry: &Entry) -> usize {
    size_of::<Entry>() + entry.context.len() + entry.data.len() + 2 * ALLOCATION_BYTES
}

/// Entries gathered up to a number of bytes, but at least one.
struct Taken {
    entries: Vec<Entry>,
    bytes: u64,
    bytes_max: u64,
}

impl Taken {
    fn new(bytes_max: u64) -> Self {
        Self { entries: Vec::new(), bytes: 0, bytes_max }
    }

    fn fits(&mut self, entry: &Entry) -> bool {
        self.bytes = self.bytes.saturating_add(entry_bytes(entry) as u64);
        self.entries.is_empty() || self.bytes <= self.bytes_max
    }
}

/// A view of the log for the thread that drives raft: sees staged entries at once. Clones share the log.
///
/// A lock guards the bookkeeping and is never held over a read of a file.
#[derive(Clone)]
pub struct RaftLogView {
    pub(super) shared: Arc<Mutex<Shared>>,
}

impl RaftLogView {
    /// Makes entries visible to readers of the log; they reach the level *accepted*, nothing is written. Conflicting
    /// entries, from the first index on, are forgotten. They stay in memory until the writer has
    /// [appended](super::RaftLog::append) them, however large: whoever stages bounds what waits for the writer.
    ///
    /// # Panics
    /// When they do not follow each other, leave a gap above the last index, or begin at or below the trim point.
    pub fn stage(&self, entries: &[Entry]) {
        self.shared.lock().stage(entries);
    }

    /// Makes the log begin above a snapshot, for readers at once; all entries are forgotten. The writer follows with
    /// [`reset_to_snapshot`](super::RaftLog::reset_to_snapshot), in its order among the appends.
    pub fn stage_snapshot(&self, point: LogPoint) {
        self.shared.lock().reset(point);
    }

    /// Entries up to `index`, where they are written, need not stay in memory: whoever still asks for them gets them from
    /// the files.
    pub fn release(&self, index: u64) {
        let mut shared = self.shared.lock();
        shared.released = shared.released.max(index);
        shared.evict();
        #[expect(clippy::cast_precision_loss, reason = "a gauge's value")]
        gauge!(RECENT_BYTES).set(shared.recent_bytes as f64);
    }

    /// The first index that can be read; one above the last when the log is empty.
    #[must_use]
    pub fn first_index(&self) -> u64 {
        self.shared.lock().trim.index + 1
    }

    /// The last index, staged ones included.
    #[must_use]
    pub fn last_index(&self) -> u64 {
        self.shared.lock().last.index
    }

    /// The hard state last appended.
    #[must_use]
    pub fn hard_state(&self) -> HardState {
        self.shared.lock().hard_state.clone()
    }

    /// Bytes of the segments, trimmed parts that still share a segment with live entries included.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shared.lock().segments.values().map(|segment| segment.bytes).sum()
    }

    /// Bytes of the entries above the trim point, to within 64 KiB.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.shared.lock().places.iter().map(|place| place.end - place.start).sum()
    }

    /// The highest index above which written entries of at least `bytes` lie; one below the first index when there are not
    /// so many.
    #[must_use]
    pub fn index_below(&self, bytes: u64) -> u64 {
        let shared = self.shared.lock();
        let mut above = 0;
        let enough = shared.places.iter().rev().find(|place| {
            above += place.end - place.start;
            above >= bytes
        });
        enough.map_or(shared.trim.index, |place| (place.first_index - 1).max(shared.trim.index))
    }

    /// The term of the entry at `index`, from one below the first index to the last. Always out of memory.
    ///
    /// # Errors
    /// `Compacted`, `Unavailable`.
    pub fn term(&self, index: u64) -> Result<u64, RaftLogError> {
        self.shared.lock().term(index)
    }

    /// The entries in `low..high`, as many of the first ones as fit into `bytes_max`, but at least one when the range
    /// is not empty. Entries no longer in memory are read from the files, and checked.
    ///
    /// # Errors
    /// `Compacted`, `Unavailable`; `Io` and `Corrupt` by the files.
    pub fn entries(&self, low: u64, high: u64, bytes_max: Option<u64>) -> Result<Vec<Entry>, RaftLogError> {
        let bytes_max = bytes_max.unwrap_or(u64::MAX);
        if low >= high {
            return Ok(Vec::new());
        }
        let mut taken = Taken::new(bytes_max);
        loop {
            let next = low + taken.entries.len() as u64;
            let shared = self.shared.lock();
            shared.check_range(next, high - 1)?;
            if next == high {
                return Ok(taken.entries);
            }
            if let Some(recent) = shared.recent_from(next, high, bytes_max.saturating_sub(taken.bytes)) {
                drop(shared);
                for entry in recent {
                    if !taken.fits(&entry) {
                        break;
                    }
                    taken.entries.push(entry);
                }
                return Ok(taken.entries);
            }
            let (place, limit, segment) = shared.place_of(next);
            drop(shared);
            let full = read_place(&segment, place, next, limit.min(high), &mut taken)?;
            if full || low + taken.entries.len() as u64 == high {
                return Ok(taken.entries);
            }
        }
    }
}

impl Shared {
    /// The place that holds `index`, the index at which its rule ends, and its segment.
    fn place_of(&self, index: u64) -> (Place, u64, Segment) {
        let after = self.places.partition_point(|place| place.first_index <= index);
        assert!(after > 0 && index <= self.written, "entry {index} is neither in memory nor in a file");
        let place = self.places[after - 1];
        // A place ends where the next begins: entries that it holds beyond were overwritten.
        let limit = self.places.get(after).map_or(self.written + 1, |next| next.first_index.min(self.written + 1));
        let segment = self.segments.get(&place.sequence).expect("a place's segment is held").clone();
        (place, limit, segment)
    }
}

/// Reads entries `low..high` of one place; true when `taken` is full.
fn read_place(segment: &Segment, place: Place, low: u64, high: u64, taken: &mut Taken) -> Result<bool, RaftLogError> {
    let len = usize::try_from(place.end - place.start).expect("a place is bounded by a batch's bytes");
    let mut bytes = vec![0; len];
    segment.file.read_at(place.start, &mut bytes).map_err(RaftLogError::io(&segment.name, "read"))?;
    let (mut at, mut next) = (0, low);
    while at < len && next < high {
        let corrupt = |reason| RaftLogError::corrupt(&segment.name, place.start + at as u64, reason);
        let raw = check_record(&bytes, at, place.start, segment.salt).map_err(corrupt)?;
        let record = decode_record(raw.kind, raw.payload).map_err(corrupt)?;
        if let Record::Batch { entries, .. } = record {
            for entry in entries.into_iter().filter(|entry| low <= entry.index && entry.index < high) {
                if entry.index != next {
                    return Err(corrupt(format!("entry {} where {next} was written", entry.index)));
                }
                if !taken.fits(&entry) {
                    return Ok(true);
                }
                taken.entries.push(entry);
                next += 1;
            }
        }
        at = raw.end;
    }
    if next < high {
        let reason = format!("entry {next} is not where it was written");
        return Err(RaftLogError::corrupt(&segment.name, place.start, reason));
    }
    Ok(false)
}
