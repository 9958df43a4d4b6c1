//! What a fanout in a process of its own follows: the source of another process, over a connection that carries frames in
//! order and late, and that breaks. As over the network, one process's source is told of nothing that it does not hold.
//!
//! A question and its answer take no time here, but the turns of a fanout's threads lie apart, and each asks but once.
//! Frames come by the world's events: [`Link::feed`] takes them at one end, [`Link::arrive`] hands them over at the other.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tailwater_eventlog::{
    Cursor, Fact, Frame, History, HistoryChunk, HistoryError, HistoryPoint, KeyRange, LiveChunk, Position, Revision,
    Scope, Source, SourceError, StateChunk, StateQuery, TailError,
};

/// Bytes of frames that leave together.
const FEED_BYTES: usize = 4 << 10;

/// What leaves together, or why nothing more does.
pub(crate) type Parcel = Result<Vec<Arc<Frame>>, TailError>;

/// One fanout's end; clones share it.
#[derive(Clone)]
pub(crate) struct Link {
    scope: Scope,
    /// Bytes of one piece of a transfer.
    rows_bytes: usize,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// What is reached now; a new one for each connection.
    upstream: Option<Arc<dyn Source>>,
    /// Counts connections, and whatever else makes what is on its way useless.
    epoch: u64,
    arrived: VecDeque<Parcel>,
    /// Where the reader will go on: behind what it was given last.
    cursor: Option<Cursor>,
    /// Where the next frame that leaves begins.
    sent: Option<Cursor>,
    /// Nothing more leaves until the reader begins anew.
    ended: bool,
    transfer: Option<Transfer>,
    /// Whether reads wait for a position.
    awaited: bool,
}

struct Transfer {
    begun: Cursor,
    /// The connection on which it goes on.
    epoch: u64,
    /// The newest revision of any source that sent rows.
    reached: Revision,
}

impl State {
    /// Whatever is on its way is not wanted any more.
    fn forget(&mut self) {
        self.epoch += 1;
        self.arrived.clear();
        (self.sent, self.ended) = (None, false);
    }

    fn reached(&self) -> Option<Arc<dyn Source>> {
        self.upstream.clone()
    }
}

impl Link {
    pub(crate) fn new(scope: Scope, rows_bytes: usize) -> Self {
        Self { scope, rows_bytes, state: Arc::default() }
    }

    /// Another connection, or none: what was on its way is lost.
    pub(crate) fn connect(&self, upstream: Option<Arc<dyn Source>>) {
        let mut state = self.state.lock();
        state.forget();
        state.awaited = false;
        let before = std::mem::replace(&mut state.upstream, upstream);
        drop(state);
        // It may hold a store that is to be closed now.
        drop(before);
    }

    /// Whether reads of this fanout wait for what its source does not have.
    pub(crate) fn is_awaited(&self) -> bool {
        self.state.lock().awaited
    }

    pub(crate) fn has_arrived(&self) -> bool {
        !self.state.lock().arrived.is_empty()
    }

    /// What leaves now at the other end, and the epoch in which it is of use.
    pub(crate) fn feed(&self, lose: bool) -> Option<(u64, Parcel)> {
        let (upstream, from, epoch) = {
            let state = self.state.lock();
            let upstream = state.reached().filter(|_| !state.ended)?;
            (upstream, state.sent.or(state.cursor.filter(|_| state.arrived.is_empty()))?, state.epoch)
        };
        let parcel = upstream.follow(from, FEED_BYTES, Duration::ZERO);
        if matches!(parcel, Err(TailError::Closed)) {
            // The process at the other end is about to go.
            return None;
        }
        let mut state = self.state.lock();
        match &parcel {
            Ok(frames) => {
                let last = frames.last()?;
                state.sent = Some(Cursor { revision: last.revision, position: last.position, ..from });
            }
            Err(_) => state.ended = true,
        }
        // The planted bug: what left with the first frame does not come.
        let skip = usize::from(lose);
        let parcel = parcel.map(|frames| frames.iter().skip(skip).map(|frame| self.scoped(frame)).collect());
        Some((epoch, parcel))
    }

    /// The frame as this link's reader asked for it: only its ranges, and what was reached all the same.
    fn scoped(&self, frame: &Arc<Frame>) -> Arc<Frame> {
        if self.scope.is_all() {
            return Arc::clone(frame);
        }
        let events = frame.events.iter().filter(|event| self.scope.contains(event.key())).cloned().collect();
        Arc::new(Frame { events, ..Frame::clone(frame) })
    }

    /// It is there, if it is still wanted.
    pub(crate) fn arrive(&self, epoch: u64, parcel: Parcel) {
        let mut state = self.state.lock();
        if state.epoch == epoch {
            state.arrived.push_back(parcel);
        }
    }

    fn upstream(&self) -> Result<Arc<dyn Source>, SourceError> {
        self.state.lock().reached().ok_or_else(|| SourceError::Unavailable("no connection".into()))
    }

    /// A source that reaches up to `to`; another would leave out, without a word, what it does not have yet.
    fn history(&self, to: Revision) -> Result<Arc<dyn Source>, HistoryError> {
        let upstream = self.state.lock().reached().filter(|upstream| upstream.transfer_end() >= to);
        upstream.ok_or_else(|| HistoryError::Unavailable("no connection to a source that has it".into()))
    }
}

impl History for Link {
    fn read(
        &self,
        ranges: &[KeyRange],
        from: HistoryPoint,
        to: Revision,
        with_prev: bool,
        bytes_max: usize,
    ) -> Result<HistoryChunk, HistoryError> {
        self.history(to)?.read(ranges, from, to, with_prev, bytes_max)
    }

    fn state_at(&self, query: &StateQuery) -> Result<StateChunk, HistoryError> {
        self.history(query.at)?.state_at(query)
    }
}

impl Source for Link {
    fn ranges(&self) -> &[KeyRange] {
        self.scope.ranges()
    }

    fn is_awaited(&self, _position: Position) {
        self.state.lock().awaited = true;
    }

    fn transfer_begin(&self) -> Result<(Cursor, Vec<Fact>), SourceError> {
        let (begun, facts) = self.upstream()?.transfer_begin()?;
        let mut state = self.state.lock();
        state.forget();
        state.cursor = None;
        state.transfer = Some(Transfer { begun, epoch: state.epoch, reached: begun.revision });
        Ok((begun, facts))
    }

    fn transfer_end(&self) -> Revision {
        self.state.lock().transfer.as_ref().map_or(Revision(0), |transfer| transfer.reached)
    }

    /// One that began on another connection goes on where the source is not behind where it began.
    fn transfer(
        &self,
        range: &KeyRange,
        resume_after: Option<&Bytes>,
        bytes_max: usize,
    ) -> Result<LiveChunk, SourceError> {
        let upstream = self.upstream()?;
        let mut state = self.state.lock();
        let epoch = state.epoch;
        let transfer = state.transfer.as_mut().expect("a transfer begins before its rows");
        if transfer.epoch != epoch {
            let (at, _) = upstream.transfer_begin()?;
            if at.history != transfer.begun.history {
                return Err(SourceError::Restart("another history".into()));
            }
            if at.position < transfer.begun.position {
                return Err(SourceError::Unavailable("the source is behind where the transfer began".into()));
            }
            transfer.epoch = epoch;
        }
        let rows = upstream.transfer(range, resume_after, bytes_max.min(self.rows_bytes))?;
        transfer.reached = transfer.reached.max(upstream.transfer_end());
        Ok(rows)
    }

    fn follow(&self, cursor: Cursor, _bytes_max: usize, _timeout: Duration) -> Parcel {
        let mut state = self.state.lock();
        if state.cursor != Some(cursor) {
            state.forget();
            state.cursor = Some(cursor);
        }
        let Some(parcel) = state.arrived.pop_front() else { return Ok(Vec::new()) };
        match &parcel {
            Ok(frames) => {
                if let Some(last) = frames.last() {
                    state.cursor = Some(Cursor { revision: last.revision, position: last.position, ..cursor });
                }
            }
            Err(_) => state.forget(),
        }
        parcel
    }
}
