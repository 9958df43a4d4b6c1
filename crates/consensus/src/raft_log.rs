//! The raft log: entries and hard state in segments that only grow. It is also the write-ahead log of the state, which
//! has none of its own.
//!
//! Two halves share it. [`RaftLogView`] belongs to the thread that drives raft and sees *staged* entries at once;
//! [`RaftLog`] belongs to the log thread, which writes and syncs. Per batch, in this order:
//!
//! 1. raft's thread: [`RaftLogView::stage`] (accepted: raft may read them, and the leader send them);
//! 2. log thread: [`RaftLog::append`] with the same entries, batches in the order in which they were staged (appended);
//! 3. log thread: [`RaftLog::sync`] (durable: now raft may be told, and a follower may acknowledge).
//!
//! # Files
//!
//! `raft/<sequence>-<first index>.log`, both 16 hex digits. Sequences have no gaps; the first index is the one after
//! the last entry when the segment was begun. Numbers are little endian.
//!
//! A segment begins with a header of 108 bytes: the magic `TWRFTLOG`; version (u32, 1); then as u64 salt, sequence, bytes of
//! the previous segment in force, hard state (term, vote, commit), trim point (index, term), last entry before this segment (index, term);
//! 12 zero bytes; crc32c (u32) of all before. So the log is complete without the segments before the trim point. A
//! segment is written and synced under a temporary name (`.new`), so a header under the final name always checks.
//!
//! Records follow without padding: crc32c (u32), length of the payload (u32), the tag `twr` and a byte for the kind, the
//! payload. The checksum runs over salt and the record's own offset (16 bytes that are not stored), then over length,
//! tag and payload: a block that turns up at another place, or out of another segment, does not check.
//!
//! | kind | payload |
//! |---|---|
//! | 1 batch | flags (u8; 1: hard state follows as term, vote, commit), count (u32), first index (u64), then per entry term (u64), type (u8, raft's number), bytes of context (u32), bytes of data (u32), context, data |
//! | 2 sync mark | offset (u64) in this file below which everything is synced |
//! | 3 trim | index, term (u64 each): entries up to here are no longer needed |
//! | 4 reset | index, term: all entries are dropped, the log goes on above (a snapshot was taken over) |
//! | 5 seal | sequence and first index (u64 each) of the next segment |
//!
//! A batch that begins at or below the last index replaces the conflicting suffix: of two entries with one index the
//! later in the files counts.
//!
//! # What is synced and what is not
//!
//! After each sync the log writes, without syncing it, a *sync mark*. On open the first record of the newest segment that
//! does not check decides:
//!
//! * A mark behind it vouches for its bytes: they were synced once and are damaged now. Error, with file and offset.
//! * No mark does: it is a tail of a write that was never acknowledged. It is cut, and [`Recovered::cut`] says so.
//!
//! After the kill of a process the page cache still has the marks, so every synced batch is vouched for. After a loss of
//! power the last mark may be gone; then damage in the last synced batch looks like a tail that was never
//! synced, which is why a member that cut something asks its group before it votes: an empty file named `cut`, made
//! durable before anything is cut, is there until it has ([`RaftLog::settle`]). Only a part of the mark that belongs at that
//! place is cut without it. A mark vouches for nothing that it does not itself name, so losing one loses no data. Segments
//! that another follows were synced before it was made: there every byte must check. [`RaftLog::close`] syncs a last mark.
//!
//! An empty file named `removed` says that the group goes on without this member and knows it ([`RaftLog::note_removed`]).
//!
//! Behind the last record of the newest segment there may be zeros: room made ahead, so that a sync need not make a longer
//! file durable. On open zeros up to the end of the file are such room, and are cut without a doubt. So a synced
//! record that a device gives back as zeros, with all that follows it, is not noticed; one that it gives back as anything else is.
//!
//! The seal is written once the next segment is durable. It tells a newest segment that was removed from a log that
//! ends; of the oldest ones the trim point tells, of those between, the sequence.

mod disk;
mod error;
mod format;
pub mod metrics;
mod recover;
mod sim_disk;
#[cfg(test)]
mod tests;
mod view;

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use raft::eraftpb::{Entry, HardState};

pub use disk::{Disk, DiskFile, RealDisk};
pub use error::RaftLogError;
pub use format::LogPoint;
pub use recover::{Cut, Recovered};
pub use sim_disk::{SimDisk, SyncMode};
pub use view::RaftLogView;

use format::{Kind, MARK_BYTES, PAYLOAD_BYTES_SOFT_MAX, SegmentHeader, entry_bytes, put_batch, put_numbers};
use recover::{DOUBT, REMOVED, Replayed, create_segment, note, replay};
use view::{Place, Segment};

/// How the raft log writes.
#[derive(Clone, Debug)]
pub struct RaftLogConfig {
    /// A segment that has reached this many bytes is followed by another. Default 64 MiB.
    pub segment_bytes: u64,
    /// Newest entries kept in memory until they are [released](RaftLogView::release), in bytes that they take there; entries
    /// not yet written come on top. Default 64 MiB.
    pub recent_bytes_max: usize,
    /// Slept in each sync; only tests and experiments set it. Default 0.
    pub sync_delay: Duration,
    /// Room that is made ahead in the newest segment, so that most syncs need not make a longer file durable, in bytes.
    /// Default 4 MiB; 0: none.
    pub reserved_bytes: u64,
    /// Mixed into the checksums of new segments, so that bytes of another log, or bytes that a client made up, never
    /// check as records. Should be random. Default 0.
    pub salt: u64,
}

impl Default for RaftLogConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            recent_bytes_max: 64 << 20,
            sync_delay: Duration::ZERO,
            reserved_bytes: 4 << 20,
            salt: 0,
        }
    }
}

/// The writing half, owned by the log thread.
///
/// Invariants: `synced <= current.bytes`; `trim.index <= last.index`.
pub struct RaftLog {
    disk: Arc<dyn Disk>,
    config: RaftLogConfig,
    view: RaftLogView,
    /// The segment that grows.
    current: Segment,
    sequence: u64,
    /// Bytes of `current` that are synced; what follows is at most a mark when `dirty` is false.
    synced: u64,
    dirty: bool,
    /// How far room was made in the file of `current`.
    reserved: u64,
    unsynced_entries: u64,
    /// Of the files, which may lag behind what is staged.
    last: LogPoint,
    trim: LogPoint,
    hard_state: HardState,
    buffer: Vec<u8>,
    failed: bool,
}

impl RaftLog {
    /// Opens the log and makes what it recovered durable. An empty directory becomes an empty log.
    ///
    /// # Errors
    /// `Corrupt` and `Missing` for what was once synced and is no longer there; `Io`.
    pub fn open(disk: Arc<dyn Disk>, config: RaftLogConfig) -> Result<(Self, Recovered), RaftLogError> {
        let Replayed { mut shared, current, cut, doubtful } = replay(&*disk, config.recent_bytes_max)?;
        let sequence = if let Some(sequence) = current {
            sequence
        } else {
            let header = SegmentHeader { salt: config.salt, sequence: 1, ..SegmentHeader::default() };
            shared.segments.insert(1, create_segment(&*disk, &header)?);
            1
        };
        let recovered = Recovered {
            hard_state: shared.hard_state.clone(),
            first_index: shared.trim.index + 1,
            last_index: shared.last.index,
            cut,
            doubtful,
        };
        let mut log = Self {
            current: shared.segments[&sequence].clone(),
            sequence,
            synced: 0,
            // What was read may be in the page cache only.
            dirty: true,
            reserved: 0,
            unsynced_entries: 0,
            last: shared.last,
            trim: shared.trim,
            hard_state: shared.hard_state.clone(),
            view: RaftLogView { shared: Arc::new(Mutex::new(shared)) },
            disk,
            config,
            buffer: Vec::new(),
            failed: false,
        };
        // Names that a killed process left may be no more durable than content.
        log.disk.sync_dir().map_err(RaftLogError::io("", "sync directory"))?;
        log.sync_and_mark()?;
        Ok((log, recovered))
    }

    /// The reading half.
    #[must_use]
    pub fn view(&self) -> RaftLogView {
        self.view.clone()
    }

    /// Writes a batch: level *appended* when it returns, durable after the next [`sync`](Self::sync). The entries must
    /// have been [staged](RaftLogView::stage) before, batches in the same order. Entries and hard state of one call
    /// survive a crash together, or the hard state does not: it never refers to entries that were cut.
    ///
    /// # Errors
    /// `TooLarge` (nothing was written); `Io`, after which the log takes no more writes; `Failed`.
    ///
    /// # Panics
    /// When the entries leave a gap above the last index or begin at or below the trim point.
    pub fn append(&mut self, entries: &[Entry], hard_state: Option<&HardState>) -> Result<(), RaftLogError> {
        if entries.is_empty() && hard_state.is_none() {
            return Ok(());
        }
        if let Some(first) = entries.first() {
            let (trim, last) = (self.trim.index, self.last.index);
            assert!(
                trim < first.index && first.index <= last + 1,
                "appended entries begin at {}, the log is ({trim}, {last}]",
                first.index
            );
        }
        if let Some(large) = entries.iter().find(|entry| entry_bytes(entry) > u32::MAX as usize / 2) {
            return Err(RaftLogError::TooLarge { index: large.index, bytes: entry_bytes(large) });
        }
        self.guarded(|log| log.append_batch(entries, hard_state))
    }

    /// Makes all that was appended durable and returns how long that took, the artificial delay included; at once when
    /// there is nothing to sync.
    ///
    /// # Errors
    /// `Io`, after which it is unknown what is durable and the log takes no more writes; `Failed`.
    pub fn sync(&mut self) -> Result<Duration, RaftLogError> {
        self.guarded(Self::sync_and_mark)
    }

    /// Lets go of entries up to `index`, which must be applied durably elsewhere; the first index becomes one above.
    /// Whole segments below are removed, and then the trim point is durable. At or below the trim point nothing is done.
    ///
    /// # Errors
    /// `Io`, after which the log takes no more writes; `Failed`.
    ///
    /// # Panics
    /// When `index` is above the last one appended.
    pub fn trim_to(&mut self, index: u64) -> Result<(), RaftLogError> {
        if index <= self.trim.index {
            return Ok(());
        }
        assert!(index <= self.last.index, "trim to {index}, above the last index {}", self.last.index);
        // A snapshot that is staged, but not yet here, has already dropped these entries for all readers.
        let Ok(term) = self.view.term(index) else { return Ok(()) };
        self.guarded(|log| log.trim(LogPoint { index, term }))
    }

    /// Drops all entries, durably; the log goes on above `point`. Follows
    /// [`RaftLogView::stage_snapshot`], in its order among the appends; without it, it does the same to the view.
    ///
    /// # Errors
    /// `Io`, after which the log takes no more writes; `Failed`.
    pub fn reset_to_snapshot(&mut self, point: LogPoint) -> Result<(), RaftLogError> {
        self.guarded(|log| log.reset(point))
    }

    /// The group has lost nothing by what was cut: [`Recovered::doubtful`] is `false` from the next open on.
    ///
    /// # Errors
    /// `Io`, after which the log takes no more writes; `Failed`.
    pub fn settle(&mut self) -> Result<(), RaftLogError> {
        self.guarded(|log| {
            match log.disk.remove(DOUBT) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(RaftLogError::io(DOUBT, "remove")(error));
                }
                Ok(()) | Err(_) => {}
            }
            log.disk.sync_dir().map_err(RaftLogError::io("", "sync directory"))
        })
    }

    /// This member was removed, and those who stay know it: [`RaftLog::was_removed`] from now on. Durable when it returns.
    ///
    /// # Errors
    /// `Io`, after which the log takes no more writes; `Failed`.
    pub fn note_removed(&mut self) -> Result<(), RaftLogError> {
        self.guarded(|log| note(&*log.disk, REMOVED))
    }

    /// Whether it was noted that this member was removed.
    ///
    /// # Errors
    /// `Io`.
    pub fn was_removed(disk: &dyn Disk) -> Result<bool, RaftLogError> {
        let names = disk.list().map_err(RaftLogError::io("", "list"))?;
        Ok(names.iter().any(|name| name == REMOVED))
    }

    /// Syncs, and leaves a synced mark, so that the next open can vouch for every record.
    ///
    /// # Errors
    /// `Io`, `Failed`.
    pub fn close(mut self) -> Result<(), RaftLogError> {
        self.sync()?;
        self.current.file.truncate(self.current.bytes).map_err(RaftLogError::io(&self.current.name, "truncate"))?;
        self.current.file.sync().map_err(RaftLogError::io(&self.current.name, "sync"))
    }

    /// After a failed write or sync nothing more is written: what the file holds is unknown.
    fn guarded<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, RaftLogError>) -> Result<T, RaftLogError> {
        if self.failed {
            return Err(RaftLogError::Failed);
        }
        let result = work(self);
        self.failed = result.is_err();
        result
    }

    fn append_batch(&mut self, entries: &[Entry], hard_state: Option<&HardState>) -> Result<(), RaftLogError> {
        if self.current.bytes >= self.config.segment_bytes {
            self.roll()?;
        }
        let mut places = Vec::new();
        let mut rest = entries;
        loop {
            let (part, after) = rest.split_at(part_len(rest));
            let start = self.current.bytes + self.buffer.len() as u64;
            // Last, so that it is never there without the entries that came with it.
            let state = hard_state.filter(|_| after.is_empty());
            put_batch(&mut self.buffer, self.current.salt, self.current.bytes, state, part);
            let end = self.current.bytes + self.buffer.len() as u64;
            if let (Some(first), Some(last)) = (part.first(), part.last()) {
                places.push((Place { first_index: first.index, sequence: self.sequence, start, end }, last.index));
            }
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        self.write_buffer()?;
        self.unsynced_entries += entries.len() as u64;
        let mut shared = self.view.shared.lock();
        if let Some(last) = entries.last() {
            self.last = LogPoint { index: last.index, term: last.term };
            for (place, last_index) in places {
                shared.add_place(place, last_index);
            }
            shared.on_written(entries);
        }
        if let Some(state) = hard_state {
            self.hard_state = state.clone();
            shared.hard_state = state.clone();
        }
        Ok(())
    }

    /// Writes the buffer at the end of the current segment.
    fn write_buffer(&mut self) -> Result<(), RaftLogError> {
        let len = self.buffer.len() as u64;
        self.make_room(self.current.bytes + len)?;
        self.current
            .file
            .write_at(self.current.bytes, &self.buffer)
            .map_err(RaftLogError::io(&self.current.name, "write"))?;
        self.buffer.clear();
        // One large batch must not hold its memory for ever.
        self.buffer.shrink_to(PAYLOAD_BYTES_SOFT_MAX);
        self.current.bytes += len;
        self.dirty = true;
        self.note_bytes();
        ::metrics::counter!(metrics::WRITTEN_BYTES).increment(len);
        Ok(())
    }

    /// A file that grows costs each sync a second write, that of its length.
    fn make_room(&mut self, end: u64) -> Result<(), RaftLogError> {
        if end > self.reserved && self.config.reserved_bytes > 0 {
            let made = self.current.file.reserve(end + self.config.reserved_bytes);
            let made = made.map_err(RaftLogError::io(&self.current.name, "reserve"))?;
            // Where no room could be made, each try would cost another call: the next comes as much further on.
            self.reserved = made.max(end.saturating_add(self.config.reserved_bytes / 4));
        }
        Ok(())
    }

    fn note_bytes(&self) {
        let mut shared = self.view.shared.lock();
        shared.segments.get_mut(&self.sequence).expect("the current segment is held").bytes = self.current.bytes;
    }

    fn write_numbers(&mut self, kind: Kind, numbers: &[u64]) -> Result<(), RaftLogError> {
        put_numbers(&mut self.buffer, self.current.salt, self.current.bytes, kind, numbers);
        self.write_buffer()
    }

    fn sync_and_mark(&mut self) -> Result<Duration, RaftLogError> {
        if !self.dirty {
            return Ok(Duration::ZERO);
        }
        let begun = Instant::now();
        if !self.config.sync_delay.is_zero() {
            std::thread::sleep(self.config.sync_delay);
        }
        self.current.file.sync().map_err(RaftLogError::io(&self.current.name, "sync"))?;
        let took = begun.elapsed();
        ::metrics::histogram!(metrics::SYNC_SECONDS).record(took);
        #[expect(clippy::cast_precision_loss, reason = "a histogram's sample")]
        ::metrics::histogram!(metrics::ENTRIES_PER_SYNC).record(self.unsynced_entries as f64);
        self.unsynced_entries = 0;
        self.synced = self.current.bytes;
        self.write_numbers(Kind::Mark, &[self.synced])?;
        debug_assert_eq!(self.current.bytes, self.synced + MARK_BYTES as u64, "a mark has one size");
        // The mark alone is worth no sync.
        self.dirty = false;
        Ok(took)
    }

    /// Begins the next segment. The old one is synced before the new one exists, and sealed after.
    fn roll(&mut self) -> Result<(), RaftLogError> {
        self.sync_and_mark()?;
        let header = SegmentHeader {
            salt: self.config.salt,
            sequence: self.sequence + 1,
            previous_bytes: self.synced,
            hard_state: self.hard_state.clone(),
            trim: self.trim,
            last: self.last,
        };
        let next = create_segment(&*self.disk, &header)?;
        self.write_numbers(Kind::Seal, &[header.sequence, header.last.index + 1])?;
        self.current.file.truncate(self.current.bytes).map_err(RaftLogError::io(&self.current.name, "truncate"))?;
        self.sequence = header.sequence;
        self.view.shared.lock().segments.insert(header.sequence, next.clone());
        self.current = next;
        self.synced = self.current.bytes;
        self.dirty = false;
        self.reserved = 0;
        Ok(())
    }

    fn trim(&mut self, point: LogPoint) -> Result<(), RaftLogError> {
        self.write_numbers(Kind::Trim, &[point.index, point.term])?;
        self.trim = point;
        let needed = {
            let mut shared = self.view.shared.lock();
            shared.trim_to(point);
            shared.places.first().map_or(self.sequence, |place| place.sequence)
        };
        self.remove_segments_below(needed)
    }

    fn reset(&mut self, point: LogPoint) -> Result<(), RaftLogError> {
        self.write_numbers(Kind::Reset, &[point.index, point.term])?;
        self.trim = point;
        self.last = point;
        {
            let mut shared = self.view.shared.lock();
            if shared.trim.index < point.index {
                shared.reset(point);
            }
            shared.reset_files(point);
        }
        self.sync_and_mark()?;
        self.remove_segments_below(self.sequence)
    }

    /// Removes whole segments, the oldest first and each durably, so that a crash leaves no gap.
    fn remove_segments_below(&mut self, needed: u64) -> Result<(), RaftLogError> {
        loop {
            let oldest = self.view.shared.lock().segments.first_key_value().map(|(key, old)| (*key, old.name.clone()));
            let Some((_, name)) = oldest.filter(|(sequence, _)| *sequence < needed) else { return Ok(()) };
            // The trim point first: without it the log would miss what is removed.
            self.sync_and_mark()?;
            self.disk.remove(&name).map_err(RaftLogError::io(&name, "remove"))?;
            self.disk.sync_dir().map_err(RaftLogError::io("", "sync directory"))?;
            self.view.shared.lock().segments.pop_first();
        }
    }
}

/// How many of the entries go into the next record.
fn part_len(entries: &[Entry]) -> usize {
    let mut bytes = 0;
    let fitting = entries.iter().take_while(|entry| {
        bytes += entry_bytes(entry);
        bytes <= PAYLOAD_BYTES_SOFT_MAX
    });
    // One entry always fits, and no entries make one empty part.
    fitting.count().max(1).min(entries.len())
}
