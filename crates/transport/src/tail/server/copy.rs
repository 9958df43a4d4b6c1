//! One member's copy: base at the fold point, the log above it, and the machine's own state at the end.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tailwater_api::tail as wire;
use tailwater_eventlog::{CopyError, CopyPoint, CopyStep, Event, EventLog, HistoryId, LogState, Position, Revision};
use tonic::Status;

use super::{Hold, Inner};
use crate::tail::codec::{numbers_out, point_in, point_out};
use crate::tail::pieces::PIECE_BYTES;
use crate::tail::serving::{Gone, Sink, bytes_of};

/// Between two looks for new log rows when the copy has all that there are.
const LOG_PAUSE: Duration = Duration::from_millis(20);
/// A source that is behind the position that is asked, and applies nothing for so long, is not the right one.
const BEHIND_MAX: Duration = Duration::from_secs(5);
/// A reader that waits hears from its source so often.
const WORD_INTERVAL: Duration = Duration::from_secs(1);

pub(super) fn serve(
    inner: &Inner,
    log: &EventLog,
    request: &wire::CopyRequest,
    sink: &mut Sink<wire::CopyResponse>,
) -> Result<(), Gone> {
    let hold = Hold::take(log, &inner.config);
    let here = hold.point();
    if here.history == HistoryId(0) {
        return Err(sink.fail(Status::unavailable("this member holds no history yet")));
    }
    sink.send(wire::CopyResponse { begin: Some(point_out(here)), ..Default::default() })?;
    let (own, step) = wanted(request);
    let goes_on = step.goes_on_at(own, here);
    let (point, step) = if goes_on { (own, step) } else { (here, CopyStep::Base { after: None }) };
    tracing::info!(
        reader = format!("{:x}", request.reader_id),
        fold_point = point.fold_point.0,
        resumed = goes_on,
        "a member copies the state"
    );
    let mut copy = Copy { log, hold, point, sink };
    let after = match step {
        CopyStep::Base { after } => copy.base(after)?,
        CopyStep::Log { after } => after,
    };
    let position = Position(request.position);
    let after = copy.log(after, |log, complete| {
        let state = log.state();
        state.applied >= position && complete >= state.revision
    })?;
    let revision = copy.state()?;
    copy.log(after, |_, complete| complete >= revision)?;
    sink.send(wire::CopyResponse { done: true, ..Default::default() })
}

/// Where the reader is.
fn wanted(request: &wire::CopyRequest) -> (CopyPoint, CopyStep) {
    let own = request.point.as_ref().map(point_in).unwrap_or_default();
    let step = if request.base_done {
        CopyStep::Log { after: (Revision(request.log_revision), request.log_sub) }
    } else {
        CopyStep::Base { after: Some(request.base_after.clone()).filter(|after| !after.is_empty()) }
    };
    (own, step)
}

struct Copy<'a> {
    log: &'a EventLog,
    hold: Hold,
    point: CopyPoint,
    sink: &'a mut Sink<wire::CopyResponse>,
}

impl Copy<'_> {
    /// Sends base; returns where the log begins.
    fn base(&mut self, mut after: Option<Bytes>) -> Result<(Revision, u32), Gone> {
        loop {
            let rows =
                self.log.copy_base(self.point, after.as_ref(), PIECE_BYTES).map_err(|error| self.failed(&error))?;
            let is_end = rows.is_empty();
            if let Some(last) = rows.last() {
                // It was checked when it was read.
                let last = Event::from_row(last.clone()).map_err(|_| Gone)?;
                after = Some(Bytes::copy_from_slice(last.key()));
            }
            let bytes = bytes_of(&rows);
            let message = wire::CopyResponse { base: rows, base_done: is_end, ..Default::default() };
            self.sink.send_rows(message, bytes)?;
            self.hold.renew();
            if is_end {
                return Ok((self.point.fold_point.max(Revision(1)), u32::MAX));
            }
        }
    }

    /// Sends the log until `is_enough`, asked with the revision up to which records are whole; returns its last place.
    fn log(
        &mut self,
        mut after: (Revision, u32),
        is_enough: impl Fn(&EventLog, Revision) -> bool,
    ) -> Result<(Revision, u32), Gone> {
        let mut told = None;
        let mut moved = (Position(0), Instant::now());
        loop {
            let copied = self.log.copy_log(self.point.history, after, PIECE_BYTES);
            let copied = copied.map_err(|error| self.failed(&error))?;
            if let Some(last) = copied.rows.last() {
                let last = Event::from_row(last.clone()).map_err(|_| Gone)?;
                let sub = if copied.complete >= last.revision() { u32::MAX } else { last.sub() };
                after = (last.revision(), sub);
            }
            let news = (copied.complete, Instant::now());
            // Now and then also without news, so that the reader knows that this source lives.
            let is_news = told.is_none_or(|(complete, at)| complete < news.0 || at + WORD_INTERVAL < news.1);
            if is_news || !copied.rows.is_empty() {
                told = Some(news);
                let bytes = bytes_of(&copied.rows);
                let message =
                    wire::CopyResponse { log: copied.rows, complete: copied.complete.0, ..Default::default() };
                self.sink.send_rows(message, bytes)?;
            }
            self.hold.renew();
            if !copied.is_end {
                continue;
            }
            if is_enough(self.log, copied.complete) {
                return Ok(after);
            }
            let applied = self.log.state().applied;
            if applied > moved.0 {
                moved = (applied, Instant::now());
            } else if moved.1.elapsed() > BEHIND_MAX {
                return Err(self
                    .sink
                    .fail(Status::unavailable("this source is behind what is asked, and stands still")));
            }
            self.sink.sleep(LOG_PAUSE)?;
        }
    }

    /// Sends the machine's own state; returns the revision that belongs to it.
    fn state(&mut self) -> Result<Revision, Gone> {
        let (log, sink, hold) = (self.log, &mut *self.sink, &self.hold);
        let mut sent: Result<Option<LogState>, Gone> = Ok(None);
        let read = log.copy_state(PIECE_BYTES, |state, rows| {
            // The numbers go with the first piece.
            let numbers = matches!(sent, Ok(None)).then(|| numbers_out(state));
            let bytes = rows.iter().map(|row| row.key.len() + row.value.len()).sum();
            let state_rows = rows.into_iter().map(|row| wire::StateRow { key: row.key, value: row.value }).collect();
            let message = wire::CopyResponse { numbers, state: state_rows, ..Default::default() };
            hold.renew();
            sent = sink.send_rows(message, bytes).map(|()| Some(*state));
            if sent.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        if let Err(error) = read {
            return Err(self.failed(&CopyError::Storage(error)));
        }
        Ok(sent?.map_or(Revision(0), |state| state.revision))
    }

    fn failed(&mut self, error: &CopyError) -> Gone {
        self.sink.fail(match error {
            // The reader asks again, and starts over.
            CopyError::Moved(_) => Status::aborted(error.to_string()),
            CopyError::Storage(_) => Status::internal(error.to_string()),
        })
    }
}
