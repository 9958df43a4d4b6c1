//! Catching up: a watcher's own reading of the window, or of history behind it, and messages larger than a piece.

use std::sync::Arc;

use bytes::BytesMut;
use tailwater_eventlog::{HistoryError, HistoryEvent, HistoryPoint, Revision};

use super::{Delivery, Step, UNAVAILABLE, answer, first_of, text};
use crate::StreamEnd;
use crate::encode::{HEAD_BYTES_MAX, Head, event_field_len, event_field_parts, put_event_field};
use crate::group::{Measured, SharedGroup};
use crate::history::{HistoryRequest, HistorySlot};
use crate::metrics;
use crate::registry::prev_is_visible;
use crate::store::Published;
use crate::window::{Piece, WindowQuery};

/// A read of history that is under way.
pub(super) struct Job {
    pub(super) watch_id: i64,
    from: HistoryPoint,
    to: Revision,
    slot: Arc<HistorySlot>,
}

/// One revision that is larger than a piece.
pub(super) struct Message {
    pub(super) watch_id: i64,
    group: SharedGroup,
    revision: Revision,
    /// Whether previous versions are given out; settled when the message begins, so that its length holds.
    with_prev: bool,
    at: HistoryPoint,
    phase: Phase,
    /// Its watcher is gone; what has begun is finished all the same.
    pub(super) orphaned: bool,
}

enum Phase {
    /// Adds up the length of the message, which its first bytes must say.
    Measure(usize),
    /// Writes it; so many bytes of events are left.
    Produce(usize),
    /// Writes it as one message per piece; whether any went out.
    Fragment(bool),
}

impl Message {
    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    /// Whether bytes of it went out, so that it must be finished.
    pub(super) fn has_begun(&self) -> bool {
        match self.phase {
            Phase::Measure(_) => false,
            Phase::Produce(_) => true,
            Phase::Fragment(begun) => begun,
        }
    }
}

/// Where a read of past events stands.
enum Fetch {
    /// The events and the revision up to which was read.
    Read(Piece, Revision),
    Waits,
    Compacted(Revision),
}

/// What to fetch, and for whom.
struct Wanted {
    watch_id: i64,
    group: SharedGroup,
    from: HistoryPoint,
    to: Revision,
    with_prev: bool,
    bytes_max: usize,
    for_message: bool,
}

impl Delivery {
    /// One response out of past events, for the watcher at its cursor.
    pub(super) fn replay(
        &mut self,
        watch_id: i64,
        published: &Published,
        chunk: usize,
        out: &mut BytesMut,
    ) -> Result<Step, StreamEnd> {
        let watcher = &self.watchers[watch_id];
        let (group, next, fragment) = (watcher.group.clone(), watcher.next, watcher.fragment);
        if next < published.snapshot.compacted {
            return Ok(self.end_compacted(watch_id, published, published.snapshot.compacted));
        }
        if !out.is_empty() {
            return Ok(Step::Full);
        }
        let (with_prev, bytes_max) = (group.key().prev_kv(), chunk.min(self.core.config.response_bytes_max));
        let (from, to) = (first_of(next), published.revision());
        let wanted = Wanted { watch_id, group: group.clone(), from, to, with_prev, bytes_max, for_message: false };
        let (mut piece, to) = match self.fetch(&wanted)? {
            Fetch::Read(piece, to) => (piece, to),
            Fetch::Waits => return Ok(Step::Waits),
            Fetch::Compacted(at) => return Ok(self.end_compacted(watch_id, published, at)),
        };
        hide_compacted(&mut piece.events, published.snapshot.compacted);
        let (fitting, bytes, next) = fit(&piece, to, bytes_max.saturating_sub(HEAD_BYTES_MAX));
        if next == from.revision {
            let with_prev = with_prev && next > published.snapshot.compacted;
            self.begin_message(watch_id, group, next, with_prev, fragment);
            return Ok(Step::Scanned);
        }
        let watcher = self.watchers.get_mut(watch_id).expect("it was there above");
        watcher.next = next;
        if fitting == 0 {
            return Ok(Step::Scanned);
        }
        watcher.sent = true;
        self.core.flow.caught_up(fitting, bytes);
        answer(published, watch_id).put(out, self.core.ids(), bytes);
        for event in &piece.events[..fitting] {
            put_event_field(out, &event.event, event.prev.as_deref());
        }
        Ok(Step::Sent)
    }

    fn begin_message(
        &mut self,
        watch_id: i64,
        group: SharedGroup,
        revision: Revision,
        with_prev: bool,
        fragment: bool,
    ) {
        let phase = if fragment { Phase::Fragment(false) } else { Phase::Measure(0) };
        let at = first_of(revision);
        self.message = Some(Message { watch_id, group, revision, with_prev, at, phase, orphaned: false });
    }

    /// One step of the message that is larger than a piece.
    pub(super) fn continue_message(&mut self, published: &Published, chunk: usize) -> Result<Step, StreamEnd> {
        let Some(mut message) = self.message.take() else { return Ok(Step::Drained) };
        let known = message.group.measured(message.revision, message.with_prev);
        if let (Phase::Measure(_), Some(bytes)) = (&message.phase, known) {
            return Ok(self.begin_produce(message, published, bytes));
        }
        let most =
            if matches!(message.phase, Phase::Fragment(_)) { self.core.config.fragment_bytes_max } else { chunk };
        let wanted = Wanted {
            watch_id: message.watch_id,
            group: message.group.clone(),
            from: message.at,
            to: message.revision,
            with_prev: message.with_prev,
            bytes_max: chunk.min(most),
            for_message: true,
        };
        let mut piece = match self.fetch(&wanted)? {
            Fetch::Read(piece, _) => piece,
            Fetch::Waits => {
                self.message = Some(message);
                return Ok(Step::Waits);
            }
            Fetch::Compacted(_) if message.has_begun() => return Err(unavailable()),
            Fetch::Compacted(at) => return Ok(self.end_compacted(message.watch_id, published, at)),
        };
        if !message.with_prev {
            piece.events.iter_mut().for_each(|event| event.prev = None);
        }
        let bytes: usize = piece.events.iter().map(|e| event_field_len(&e.event, e.prev.as_deref())).sum();
        let done = piece.next.is_none();
        match &mut message.phase {
            Phase::Measure(total) => {
                *total += bytes;
                let total = *total;
                if done {
                    let (revision, with_prev) = (message.revision, message.with_prev);
                    message.group.set_measured(Measured { revision, with_prev, bytes: total });
                    return Ok(self.begin_produce(message, published, total));
                }
            }
            Phase::Produce(left) => {
                // A previous version that was there when the length was taken and is not any more, or the like.
                *left = left.checked_sub(bytes).ok_or_else(unavailable)?;
                if *left == 0 {
                    // What is left of the revision does not concern this watcher.
                    piece.next = None;
                } else if done {
                    return Err(unavailable());
                }
                self.core.flow.caught_up(piece.events.len(), bytes);
                self.push_events(&piece.events, BytesMut::new(), chunk);
            }
            Phase::Fragment(begun) if bytes > 0 || (*begun && done) => {
                *begun = true;
                let head = Head { fragment: !done, ..answer(published, message.watch_id) };
                let mut out = BytesMut::new();
                head.put(&mut out, self.core.ids(), bytes);
                self.core.flow.caught_up(piece.events.len(), bytes);
                self.push_events(&piece.events, out, chunk);
            }
            Phase::Fragment(_) => {}
        }
        match piece.next {
            Some(at) => {
                message.at = at;
                self.message = Some(message);
            }
            None => self.end_message(&message),
        }
        Ok(Step::Scanned)
    }

    fn begin_produce(&mut self, mut message: Message, published: &Published, bytes: usize) -> Step {
        if bytes == 0 {
            // Nothing of a large revision concerns this watcher; a response without events would mean progress.
            self.end_message(&message);
            return Step::Scanned;
        }
        let mut head = BytesMut::new();
        answer(published, message.watch_id).put(&mut head, self.core.ids(), bytes);
        self.under_way.push_back(head.freeze());
        message.at = first_of(message.revision);
        message.phase = Phase::Produce(bytes);
        self.message = Some(message);
        Step::Sent
    }

    fn end_message(&mut self, message: &Message) {
        if message.orphaned {
            return;
        }
        let watcher = self.watchers.get_mut(message.watch_id).expect("a watcher that goes leaves its message orphaned");
        watcher.next = message.revision.next();
        watcher.sent |= message.has_begun();
    }

    /// Queues events as pieces of at most `chunk` bytes; large ones by reference.
    fn push_events(&mut self, events: &[HistoryEvent], mut out: BytesMut, chunk: usize) {
        for HistoryEvent { event, prev } in events {
            let len = event_field_len(event, prev.as_deref());
            if out.len() + len > chunk && !out.is_empty() {
                self.under_way.push_back(out.split().freeze());
            }
            if len <= chunk {
                put_event_field(&mut out, event, prev.as_deref());
                continue;
            }
            for mut part in event_field_parts(event, prev.as_deref()) {
                while !part.is_empty() {
                    self.under_way.push_back(part.split_to(part.len().min(chunk)));
                }
            }
        }
        if !out.is_empty() {
            self.under_way.push_back(out.freeze());
        }
    }

    /// Reads past events: from the window, else from history on another thread.
    fn fetch(&mut self, wanted: &Wanted) -> Result<Fetch, StreamEnd> {
        let Wanted { watch_id, from, to, with_prev, bytes_max, .. } = *wanted;
        let (range, filter) = (wanted.group.key().range(), wanted.group.key().filter());
        let query = WindowQuery { ranges: std::slice::from_ref(&range), filter, from, to, with_prev, bytes_max };
        if let Some(piece) = self.core.window.read(&self.core.published.load().keys, &query) {
            return Ok(Fetch::Read(piece, to));
        }
        if let Some(job) = self.job.take() {
            let mine = job.watch_id == watch_id && job.from == from && job.to <= to;
            if mine {
                let Some(answer) = job.slot.take() else {
                    self.job = Some(job);
                    return Ok(Fetch::Waits);
                };
                return history_answer(answer, wanted, job.to);
            }
            // Another watcher's read is waited for, lest the two take turns in discarding each other's. But during a
            // message no other watcher has a turn to take its answer: it asks again later.
            if !wanted.for_message && self.is_waiting(&job) {
                self.job = Some(job);
                return Ok(Fetch::Waits);
            }
        }
        metrics::history_read();
        // Where every value is held, nothing else can be missing than what lies behind the window.
        let leaves_values = self.core.config.unread_value_bytes_min.is_some();
        let is_recent = leaves_values && self.core.window.floor() < from.revision;
        let request = HistoryRequest { range, from, to, with_prev, bytes_max, is_recent };
        let slot = self.core.read_history(request, &self.inbox);
        self.job = Some(Job { watch_id, from, to, slot });
        Ok(Fetch::Waits)
    }

    /// Whether the watcher that a job reads for still wants it.
    fn is_waiting(&self, job: &Job) -> bool {
        self.watchers.get(job.watch_id).is_some_and(|w| w.queued && w.state.is_behind() && w.next == job.from.revision)
    }
}

fn history_answer(
    answer: Result<tailwater_eventlog::HistoryChunk, HistoryError>,
    wanted: &Wanted,
    to: Revision,
) -> Result<Fetch, StreamEnd> {
    match answer {
        Ok(chunk) if wanted.from.revision < chunk.compacted => Ok(Fetch::Compacted(chunk.compacted)),
        Ok(chunk) => {
            let filter = wanted.group.key().filter();
            let mut events = chunk.events;
            events.retain(|event| filter.wants(&event.event));
            Ok(Fetch::Read(Piece { events, next: chunk.next }, to))
        }
        Err(HistoryError::Compacted(at)) => Ok(Fetch::Compacted(at)),
        Err(error) => {
            tracing::warn!(%error, "history can't be read; ending a watch stream");
            Err(unavailable())
        }
    }
}

fn unavailable() -> StreamEnd {
    StreamEnd::Status(UNAVAILABLE, text::UNAVAILABLE.to_owned())
}

fn hide_compacted(events: &mut [HistoryEvent], compacted: Revision) {
    for event in events {
        if !prev_is_visible(&event.event, compacted) {
            event.prev = None;
        }
    }
}

/// How many events fit into `bytes_max` as whole revisions, their bytes, and the next revision after them. That is
/// the first one again when it alone does not fit or was not read whole.
fn fit(piece: &Piece, to: Revision, bytes_max: usize) -> (usize, usize, Revision) {
    let end = piece.next.map_or(to.next(), |next| next.revision);
    let (mut fitting, mut bytes, mut sum) = (0, 0, 0);
    for (i, HistoryEvent { event, prev }) in piece.events.iter().enumerate() {
        let revision = event.revision();
        let starts = i == 0 || piece.events[i - 1].event.revision() < revision;
        if starts {
            (fitting, bytes) = (i, sum);
        }
        if revision >= end {
            return (fitting, bytes, end);
        }
        sum += event_field_len(event, prev.as_deref());
        if sum > bytes_max {
            return (fitting, bytes, revision);
        }
    }
    (piece.events.len(), sum, end)
}
