//! Frames in messages: cut into pieces by the sender, put together by the receiver.
//!
//! A message holds whole frames, or begins or ends within one; a piece that is not a frame's last says so. The receiver
//! hands out a frame with its last piece, so that no reader sees half a record.

use std::sync::Arc;

use tailwater_api::tail as wire;
use tailwater_eventlog::{Cursor, Event, Fact, Frame, HistoryId, KeyRange, Position, Revision, Term};

use super::codec::{CodecError, event_in, fact_in, fact_out, frame_checksum, sealed};

/// Bytes of rows in one message, but for a larger row alone.
pub(super) const PIECE_BYTES: usize = 1 << 20;
/// What a row has more than the event's bytes.
const ROW_OVERHEAD_BYTES: usize = 32;
/// What a frame and a fact cost in a message, about.
const FRAME_OVERHEAD_BYTES: usize = 64;

/// Cuts frames for a reader of some ranges. Gives out one message after the other, so that only one is in memory.
pub(super) struct Pieces<'a> {
    frames: &'a [Arc<Frame>],
    ranges: &'a [KeyRange],
    /// Events of the first frame that were given out already.
    event: usize,
    piece_bytes: usize,
}

impl<'a> Pieces<'a> {
    /// No range: every key.
    pub(super) fn new(frames: &'a [Arc<Frame>], ranges: &'a [KeyRange], piece_bytes: usize) -> Self {
        Self { frames, ranges, event: 0, piece_bytes }
    }

    fn wants(&self, event: &Event) -> bool {
        self.ranges.is_empty() || self.ranges.iter().any(|range| range.contains(event.key()))
    }
}

impl Iterator for Pieces<'_> {
    type Item = Vec<wire::Frame>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut message: Vec<wire::Frame> = Vec::new();
        let mut bytes = 0;
        // A frame without anything for the reader only says how far the log is, and the next one says it as well.
        let mut last_says_little = false;
        while let Some(frame) = self.frames.first() {
            let mut piece = wire::Frame {
                position: frame.position.0,
                revision: frame.revision.0,
                rows: Vec::new(),
                facts: Vec::new(),
                applied_at_ms: frame.applied_at_ms,
                ..Default::default()
            };
            let begins_here = self.event == 0;
            for event in &frame.events[self.event..] {
                if bytes >= self.piece_bytes {
                    piece.continued = true;
                    message.push(sealed(piece));
                    return Some(message);
                }
                self.event += 1;
                if self.wants(event) {
                    bytes += event.bytes().len() + ROW_OVERHEAD_BYTES;
                    piece.rows.push(event.to_row().into());
                }
            }
            // Facts stand with the last piece; they hold from its position on.
            piece.facts = frame.facts.iter().map(fact_out).collect();
            bytes += FRAME_OVERHEAD_BYTES + frame.facts.iter().map(Fact::memory_bytes).sum::<usize>();
            if last_says_little {
                message.pop();
            }
            // Not the end of a frame whose events went before.
            last_says_little = begins_here && piece.rows.is_empty() && piece.facts.is_empty();
            message.push(sealed(piece));
            (self.frames, self.event) = (&self.frames[1..], 0);
            if bytes >= self.piece_bytes {
                break;
            }
        }
        (!message.is_empty()).then_some(message)
    }
}

/// Puts frames together and checks that they follow each other; one per stream.
pub(super) struct Assembly {
    history: HistoryId,
    /// What was handed out last.
    reached: (Position, Revision),
    /// Of a frame whose last piece has not come. A record must be in memory as a whole before it can be shown.
    rows: Vec<Arc<Event>>,
    /// Whether every event must come.
    is_whole: bool,
    /// The newest term that was told: sources know of a new leader at different times.
    term: Term,
}

impl Assembly {
    /// For a stream that begins at `cursor`; `is_whole` when it has no ranges.
    pub(super) fn new(cursor: Cursor, is_whole: bool, term: Term) -> Self {
        Self { history: cursor.history, reached: (cursor.position, cursor.revision), rows: Vec::new(), is_whole, term }
    }

    /// Where the reader is with what was handed out.
    pub(super) fn cursor(&self) -> Cursor {
        Cursor { history: self.history, position: self.reached.0, revision: self.reached.1 }
    }

    /// The newest term that was told.
    pub(super) fn term(&self) -> Term {
        self.term
    }

    /// Takes a message's frames in; hands out those that are whole.
    ///
    /// # Errors
    /// A row is damaged, or the order is broken: the stream can't be trusted any more.
    pub(super) fn add(&mut self, frames: Vec<wire::Frame>) -> Result<Vec<Arc<Frame>>, CodecError> {
        let mut whole = Vec::new();
        for frame in frames {
            let computed = frame_checksum(&frame);
            if computed != frame.checksum {
                return Err(CodecError::Checksum { sent: frame.checksum, computed });
            }
            let (position, revision) = (Position(frame.position), Revision(frame.revision));
            if position < self.reached.0 || revision < self.reached.1 {
                let before = self.reached;
                return Err(CodecError::Order(format!("a frame at {position}, {revision} follows one at {before:?}")));
            }
            for (at, row) in frame.rows.into_iter().enumerate() {
                let event = Arc::new(event_in(at, row)?);
                self.check(&event, revision)?;
                self.rows.push(event);
            }
            let applied_at_ms = frame.applied_at_ms;
            if frame.continued {
                continue;
            }
            let events = std::mem::take(&mut self.rows);
            let last = events.last().map_or(self.reached.1, |event| event.revision());
            if self.is_whole && last != revision {
                return Err(CodecError::Order(format!("a frame at revision {revision} ends with an event of {last}")));
            }
            let facts = frame.facts.into_iter().map(fact_in).collect::<Result<Vec<_>, _>>()?;
            let facts: Vec<_> = facts.into_iter().filter(|fact| self.is_news(fact)).collect();
            let moves = std::mem::replace(&mut self.reached, (position, revision)) != (position, revision);
            if moves || !facts.is_empty() {
                whole.push(Arc::new(Frame { position, revision, events, facts, applied_at_ms }));
            }
        }
        Ok(whole)
    }

    /// Whether the event may come next in a frame that reaches `revision`.
    fn check(&self, event: &Event, revision: Revision) -> Result<(), CodecError> {
        let next = (event.revision(), event.sub());
        let last = self.rows.last().map_or((self.reached.1, u32::MAX), |last| (last.revision(), last.sub()));
        let follows = match self.is_whole {
            true => next == (last.0.next(), 0) || last.1 < u32::MAX && next == (last.0, last.1 + 1),
            false => next > last,
        };
        if follows && next.0 <= revision {
            Ok(())
        } else {
            Err(CodecError::Order(format!("event {next:?} follows {last:?} in a frame that reaches {revision}")))
        }
    }

    fn is_news(&mut self, fact: &Fact) -> bool {
        let Fact::Leader(_, term) = fact else { return true };
        let is_news = *term >= self.term;
        self.term = self.term.max(*term);
        is_news
    }
}
