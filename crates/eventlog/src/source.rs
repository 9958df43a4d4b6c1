//! What a fanout follows: state at B, then the tail from B+1, and history behind it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use crate::log::{Generation, Places};
use crate::{
    Cursor, Event, EventLog, Fact, Frame, History, HistoryChunk, HistoryError, HistoryEvent, HistoryPoint, KeyRange,
    LiveChunk, Position, Revision, StateChunk, StateQuery, StorageError, Tail, TailError,
};

/// A transfer can't go on.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The source can't be reached now: ask the same again.
    #[error("source unavailable: {0}")]
    Unavailable(String),
    /// What was transferred so far can't be continued: begin again.
    #[error("the transfer must begin again: {0}")]
    Restart(String),
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// A place to bootstrap from and to follow. Calls block; they run on threads of their own.
pub trait Source: History {
    /// What this source holds and can be asked for; none: every key.
    fn ranges(&self) -> &[KeyRange] {
        &[]
    }

    /// A read has waited long for `position`: a source that has a choice of others may go to one that is there.
    fn is_awaited(&self, position: Position) {
        let _ = position;
    }

    /// B: where a transfer that begins now stands, and the facts at B.
    ///
    /// # Errors
    /// See [`SourceError`]; a local source has none.
    fn transfer_begin(&self) -> Result<(Cursor, Vec<Fact>), SourceError>;

    /// Asked after the last row: what storage has reached. The reader's own history starts when its tail has passed
    /// this, since a key that was deleted while rows were read left no row. It may be ahead of the tail's end.
    fn transfer_end(&self) -> Revision;

    /// Live keys after `resume_after`; rows may be newer than B (see [`EventLog::live`]).
    ///
    /// # Errors
    /// See [`SourceError`].
    fn transfer(
        &self,
        range: &KeyRange,
        resume_after: Option<&Bytes>,
        bytes_max: usize,
    ) -> Result<LiveChunk, SourceError>;

    /// The same for a reader that can do without values of at least `unread_bytes_min` bytes that keys were created with,
    /// until somebody asks for them: they may be left out ([`crate::Event::is_whole`]) by a source that saves reading them.
    ///
    /// # Errors
    /// See [`SourceError`].
    fn transfer_leaving_values(
        &self,
        range: &KeyRange,
        resume_after: Option<&Bytes>,
        bytes_max: usize,
        unread_bytes_min: usize,
    ) -> Result<LiveChunk, SourceError> {
        let _ = unread_bytes_min;
        self.transfer(range, resume_after, bytes_max)
    }

    /// Frames after `cursor`, waiting up to `timeout` for the first; from memory, else from the log as long as its
    /// history reaches back. An empty answer means that none came; a source that can't be reached gives none either. Frames from the log hold many records each; one that
    /// does not reach the end keeps the cursor's *position* and only moves its revision. A frame of facts alone may stand
    /// at the cursor's own position: what the source learned without anything being applied. One reader's calls only.
    ///
    /// # Errors
    /// [`TailError::Behind`] when the log was compacted past the cursor: transfer again.
    fn follow(&self, cursor: Cursor, bytes_max: usize, timeout: Duration) -> Result<Vec<Arc<Frame>>, TailError>;
}

/// The source inside the process that holds the log. Each reader follows on a clone of its own, which remembers which
/// facts without a position of their own the reader has been given.
pub struct LocalSource {
    /// Storage.
    pub log: EventLog,
    /// Its hot end.
    pub tail: Tail,
    /// Number of the newest notice given out; only its reader's calls change it.
    noticed: AtomicU64,
}

impl Clone for LocalSource {
    /// For a new reader, which begins with what the tail tells it.
    fn clone(&self) -> Self {
        let Self { log, tail, .. } = self;
        Self { log: log.clone(), tail: tail.clone(), noticed: AtomicU64::new(0) }
    }
}

/// A read that finds little looks at most at this many times the bytes that were asked for.
const SCANNED_PER_ASKED: usize = 16;
/// Bytes that a read may look at even when it was asked for less.
const SCANNED_BYTES_MIN: usize = 1 << 20;

impl LocalSource {
    /// For one reader of this storage and its hot end.
    #[must_use]
    pub fn new(log: EventLog, tail: Tail) -> Self {
        Self { log, tail, noticed: AtomicU64::new(0) }
    }

    /// Where the tail ends, and the facts there: nothing up to it has to be noticed any more.
    fn snapshot(&self) -> (Cursor, Vec<Fact>) {
        let (end, facts, noticed) = self.tail.snapshot_noticing();
        self.noticed.store(noticed, Ordering::Relaxed);
        (end, facts)
    }

    /// The key's version below the event's revision. As in etcd, which reads the key at `mod_revision - 1`: an event
    /// at the compacted revision has none; above it, the version may itself be older than the compacted revision.
    fn prev_of(log: &Generation, event: &Event, compacted: Revision) -> Result<Option<Arc<Event>>, StorageError> {
        let Some((revision, sub)) = event.prev().filter(|_| event.revision() > compacted) else { return Ok(None) };
        let prev = log.event(event.key(), revision, sub)?;
        // Compaction may have passed the event since the scan began; then the version is rightly gone.
        if prev.is_none() && log.state().compacted < event.revision() {
            let key = event.key().escape_ascii();
            return Err(StorageError::Inconsistent(format!("key {key} lacks its version at revision {revision}")));
        }
        Ok(prev)
    }

    /// The records after `cursor` from the log, whole, as one frame. Positions inside the log are not known, so a frame
    /// that does not reach the end of the tail keeps the cursor's position; the last one carries the end's, and all facts.
    fn follow_log(&self, cursor: Cursor, bytes_max: usize) -> Result<Vec<Arc<Frame>>, TailError> {
        let (end, facts) = self.snapshot();
        if cursor.revision > end.revision {
            // Its reader came from a source that is ahead.
            return Ok(Vec::new());
        }
        let mut events: Vec<Arc<Event>> = Vec::new();
        let mut bytes = 0;
        let log = self.log.current();
        let mut scan = log.scan((cursor.revision.next(), 0), end.revision);
        while let Some(event) = scan.next_event().map_err(|error| TailError::Storage(error.to_string()))? {
            match events.last() {
                None if event.revision() != cursor.revision.next() => return Err(TailError::Behind(cursor)),
                Some(last) if bytes >= bytes_max && last.revision() != event.revision() => {
                    let frame =
                        Frame { position: cursor.position, revision: last.revision(), events, ..Frame::default() };
                    return Ok(vec![Arc::new(frame)]);
                }
                _ => {}
            }
            bytes += event.bytes().len();
            events.push(Arc::new(event));
        }
        if events.is_empty() && cursor.revision < end.revision {
            return Err(TailError::Behind(cursor));
        }
        let (position, revision) = (end.position, end.revision);
        Ok(vec![Arc::new(Frame { position, revision, events, facts, ..Frame::default() })])
    }
}

impl LocalSource {
    /// Events inside `ranges`, found by looking at every row; and where to go on.
    fn scan(
        log: &Generation,
        ranges: &[KeyRange],
        (from, to): (HistoryPoint, Revision),
        with_prev: bool,
        bytes_max: usize,
    ) -> Result<(Vec<HistoryEvent>, Option<HistoryPoint>), StorageError> {
        let compacted = log.state().compacted;
        let scanned_max = bytes_max.saturating_mul(SCANNED_PER_ASKED).max(SCANNED_BYTES_MIN);
        let (mut found, mut scanned) = (0, 0);
        let mut events = Vec::new();
        let mut scan = log.scan((from.revision, from.sub), to);
        while let Some(event) = scan.next_event()? {
            if found >= bytes_max && !events.is_empty() || scanned >= scanned_max {
                return Ok((events, Some(HistoryPoint { revision: event.revision(), sub: event.sub() })));
            }
            scanned += event.bytes().len();
            if !ranges.is_empty() && !ranges.iter().any(|range| range.contains(event.key())) {
                continue;
            }
            let prev = if with_prev { Self::prev_of(log, &event, compacted)? } else { None };
            found += event.bytes().len() + prev.as_ref().map_or(0, |prev| prev.bytes().len());
            events.push(HistoryEvent { event: Arc::new(event), prev });
        }
        Ok((events, None))
    }

    /// The events at these places; and where to go on.
    fn read_places(
        log: &Generation,
        places: &Places,
        with_prev: bool,
        bytes_max: usize,
    ) -> Result<(Vec<HistoryEvent>, Option<HistoryPoint>), StorageError> {
        let compacted = log.state().compacted;
        let mut found = 0;
        let mut events = Vec::new();
        for (revision, sub, key) in places.iter() {
            if found >= bytes_max && !events.is_empty() {
                return Ok((events, Some(HistoryPoint { revision, sub })));
            }
            let Some(event) = log.event(key, revision, sub)? else {
                // A compaction may have passed it since; the caller looks for that.
                if log.state().compacted < revision {
                    let key = key.escape_ascii();
                    return Err(StorageError::Inconsistent(format!(
                        "key {key} lacks its version at revision {revision}"
                    )));
                }
                continue;
            };
            let prev = if with_prev { Self::prev_of(log, &event, compacted)? } else { None };
            found += event.bytes().len() + prev.as_ref().map_or(0, |prev| prev.bytes().len());
            events.push(HistoryEvent { event, prev });
        }
        Ok((events, None))
    }
}

impl History for LocalSource {
    fn read(
        &self,
        ranges: &[KeyRange],
        from: HistoryPoint,
        to: Revision,
        with_prev: bool,
        bytes_max: usize,
    ) -> Result<HistoryChunk, HistoryError> {
        let log = self.log.current();
        let compacted = log.state().compacted;
        if from.revision < compacted {
            return Err(HistoryError::Compacted(compacted));
        }
        let (events, next) = match log.places(ranges, from, to) {
            Some(places) => Self::read_places(&log, &places, with_prev, bytes_max)?,
            None => Self::scan(&log, ranges, (from, to), with_prev, bytes_max)?,
        };
        // What was read may be gone since, also because this member has taken over another's state.
        let compacted = log.state().compacted.max(self.log.state().compacted);
        if from.revision < compacted {
            return Err(HistoryError::Compacted(compacted));
        }
        Ok(HistoryChunk { events, next, compacted })
    }

    fn state_at(&self, query: &StateQuery) -> Result<StateChunk, HistoryError> {
        let log = self.log.current();
        let compacted = || log.state().compacted.max(self.log.state().compacted);
        let refuse = |compacted| if query.at < compacted { Err(HistoryError::Compacted(compacted)) } else { Ok(()) };
        refuse(compacted())?;
        let chunk = log.state_at(query)?;
        // What was missing may have been compacted and folded away while it was read.
        refuse(compacted())?;
        Ok(chunk)
    }
}

impl Source for LocalSource {
    fn transfer_begin(&self) -> Result<(Cursor, Vec<Fact>), SourceError> {
        Ok(self.snapshot())
    }

    fn transfer_end(&self) -> Revision {
        self.log.state().revision
    }

    fn transfer(
        &self,
        range: &KeyRange,
        resume_after: Option<&Bytes>,
        bytes_max: usize,
    ) -> Result<LiveChunk, SourceError> {
        Ok(self.log.live(range, resume_after, bytes_max, None)?)
    }

    fn transfer_leaving_values(
        &self,
        range: &KeyRange,
        resume_after: Option<&Bytes>,
        bytes_max: usize,
        unread_bytes_min: usize,
    ) -> Result<LiveChunk, SourceError> {
        Ok(self.log.live(range, resume_after, bytes_max, Some(unread_bytes_min))?)
    }

    fn follow(&self, cursor: Cursor, bytes_max: usize, timeout: Duration) -> Result<Vec<Arc<Frame>>, TailError> {
        match self.tail.wait_noticing(cursor, self.noticed.load(Ordering::Relaxed), bytes_max, timeout) {
            Ok((frames, noticed)) => {
                self.noticed.store(noticed, Ordering::Relaxed);
                Ok(frames)
            }
            Err(TailError::Behind(cursor)) => {
                let frames = self.follow_log(cursor, bytes_max)?;
                if frames.is_empty() {
                    std::thread::sleep(timeout);
                }
                Ok(frames)
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
