//! What a client sends on a stream, as the service reads it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake as _, Waker};

use bytes::Bytes;
use http_body::{Body, Frame};
use parking_lot::Mutex;

use crate::wake::SlotWaker;

/// So much was read and not yet told to the client before its stream is looked at for that alone.
const CREDIT_MIN: usize = 32 << 10;

/// The client has left, or has given the call up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client gave up the call")]
pub struct Abandoned;

/// The body of a request.
pub struct Incoming(Source);

enum Source {
    /// Everything was there when the call began, as it is for most.
    Whole(Option<Bytes>),
    Arriving(Arc<Inbound>),
}

impl Incoming {
    pub(crate) fn whole(data: Option<Bytes>) -> Self {
        Self(Source::Whole(data))
    }

    pub(crate) fn arriving(inbound: Arc<Inbound>) -> Self {
        Self(Source::Arriving(inbound))
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = Abandoned;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Abandoned>>> {
        match &mut self.0 {
            Source::Whole(data) => Poll::Ready(data.take().map(|data| Ok(Frame::data(data)))),
            Source::Arriving(inbound) => inbound.poll(cx).map(|next| next.map(|data| data.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Source::Whole(data) => data.is_none(),
            Source::Arriving(inbound) => inbound.is_at_end(),
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Source::Arriving(inbound) = &self.0 {
            inbound.ignore();
        }
    }
}

/// What a connection hands to a body that is read while more arrives.
pub(crate) struct Inbound {
    state: Mutex<State>,
    stream: Arc<SlotWaker>,
}

#[derive(Default)]
struct State {
    pieces: VecDeque<Bytes>,
    /// The client has ended its side.
    has_ended: bool,
    /// The client has given the call up, or has left.
    is_abandoned: bool,
    /// Nobody reads any more.
    is_ignored: bool,
    /// Bytes that were read, or will not be, which the client has not been told yet.
    credit: usize,
    reader: Option<Waker>,
}

impl Inbound {
    pub(crate) fn new(stream: Arc<SlotWaker>) -> Self {
        Self { state: Mutex::default(), stream }
    }

    pub(crate) fn push(&self, data: Bytes) {
        self.change(|state| {
            if state.is_ignored {
                state.credit += data.len();
            } else {
                state.pieces.push_back(data);
            }
        });
    }

    pub(crate) fn end(&self) {
        self.change(|state| state.has_ended = true);
    }

    pub(crate) fn abandon(&self) {
        self.change(|state| state.is_abandoned = true);
    }

    /// Bytes for which the client may send others.
    pub(crate) fn take_credit(&self) -> usize {
        std::mem::take(&mut self.state.lock().credit)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let reader = {
            let mut state = self.state.lock();
            change(&mut state);
            state.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<Option<Result<Bytes, Abandoned>>> {
        let mut state = self.state.lock();
        if let Some(data) = state.pieces.pop_front() {
            state.credit += data.len();
            if state.credit >= CREDIT_MIN {
                drop(state);
                self.stream.wake_by_ref();
            }
            return Poll::Ready(Some(Ok(data)));
        }
        if state.has_ended {
            return Poll::Ready(None);
        }
        if state.is_abandoned {
            return Poll::Ready(Some(Err(Abandoned)));
        }
        if !state.reader.as_ref().is_some_and(|reader| reader.will_wake(cx.waker())) {
            state.reader = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    fn is_at_end(&self) -> bool {
        let state = self.state.lock();
        state.has_ended && state.pieces.is_empty()
    }

    fn ignore(&self) {
        let mut state = self.state.lock();
        state.is_ignored = true;
        state.credit += state.pieces.drain(..).map(|piece| piece.len()).sum::<usize>();
        let has_credit = state.credit > 0;
        drop(state);
        if has_credit {
            self.stream.wake_by_ref();
        }
    }
}
