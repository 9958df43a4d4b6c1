//! One stream: a request that arrives, the call that answers it, and the answer that leaves as the client takes it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderValue, Method, Request, Response};
use http_body::Body;

use crate::body::{Inbound, Incoming};
use crate::frame::{PAYLOAD_MAX, WINDOW_DEFAULT, flag, kind};
use crate::hpack;
use crate::out::Out;
use crate::pings::Strikes;
use crate::wake::SlotWaker;

/// What is gathered for one write before it is written; bodies are not asked for more meanwhile.
pub(crate) const GATHER_BYTES: usize = 64 << 10;
/// What a stream may add before it is the turn of another.
const TURN_BYTES: usize = 16 << 10;

/// Answers a request.
pub type Call<B> = Pin<Box<dyn Future<Output = Response<B>> + Send>>;

/// What answers the requests of a connection.
pub trait Service<B> {
    /// Begins to answer; the call is dropped when its client gives it up.
    fn call(&self, request: Request<Incoming>) -> Call<B>;
}

impl<B, F: Fn(Request<Incoming>) -> Call<B>> Service<B> for F {
    fn call(&self, request: Request<Incoming>) -> Call<B> {
        self(request)
    }
}

/// What all streams of a connection send through.
pub(crate) struct Sending {
    pub(crate) out: Out,
    /// What the client takes on all streams together.
    pub(crate) window: i64,
    /// What it takes on a new stream.
    pub(crate) stream_window: i64,
    pub(crate) strikes: Strikes,
}

impl Sending {
    pub(crate) fn new(strikes: Strikes) -> Self {
        Self { out: Out::default(), window: WINDOW_DEFAULT, stream_window: WINDOW_DEFAULT, strikes }
    }
}

/// What there is to do for a stream.
enum Work<B> {
    /// Call the service. Data that arrived with the head goes into the request.
    Opened(Box<Request<()>>, Option<Bytes>),
    Call(Call<B>),
    Answer(B),
}

/// Why a stream does not go on now, or ever.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Its waker or a window update of its own goes on with it.
    Waits,
    /// It is the turn of others.
    Again,
    /// What was gathered must be written first.
    NoRoom,
    /// The client takes no more on any stream.
    NoWindow,
    /// Everything is on its way.
    Finished,
    /// It can't go on.
    Failed,
}

pub(crate) struct Stream<B> {
    pub(crate) id: u32,
    work: Work<B>,
    inbound: Option<Arc<Inbound>>,
    is_head: bool,
    /// The client has ended its side.
    pub(crate) client_ended: bool,
    /// Bytes of data by `content-length`, and those that came.
    announced: Option<u64>,
    received: u64,
    /// What the client takes on this stream; below zero after it lowered the windows of all.
    pub(crate) window: i64,
    /// What it may still send.
    pub(crate) receive_window: i64,
    /// What it has sent that still counts against the connection's window.
    pub(crate) unreleased: usize,
    /// What it may send anew and was not told yet.
    untold: usize,
    /// What of the unreleased need not be read.
    pub(crate) padding: usize,
    /// Data that the answer has yielded and the client has had no room for.
    pending: Bytes,
    /// Nothing follows it.
    is_last: bool,
}

impl<B: Body<Data = Bytes> + Unpin> Stream<B> {
    pub(crate) fn new(id: u32, request: Request<()>, window: i64, receive_window: i64) -> Self {
        let announced = request.headers().get(CONTENT_LENGTH);
        Self {
            id,
            // What is no number is none that can be reached.
            announced: announced.map(|bytes| bytes.to_str().ok().and_then(|b| b.parse().ok()).unwrap_or(u64::MAX)),
            received: 0,
            is_head: request.method() == Method::HEAD,
            work: Work::Opened(Box::new(request), None),
            inbound: None,
            client_ended: false,
            window,
            receive_window,
            unreleased: 0,
            untold: 0,
            padding: 0,
            pending: Bytes::new(),
            is_last: false,
        }
    }

    /// The client has sent data.
    pub(crate) fn push(&mut self, data: Bytes, waker: &Arc<SlotWaker>) {
        self.received += data.len() as u64;
        if let (Work::Opened(_, early @ None), None) = (&mut self.work, &self.inbound) {
            *early = Some(data);
            return;
        }
        self.inbound(waker).push(data);
    }

    /// The client has ended its side; whether it has sent as much as it said that it would.
    pub(crate) fn end(&mut self) -> bool {
        self.client_ended = true;
        if let Some(inbound) = &self.inbound {
            inbound.end();
        }
        self.announced.is_none_or(|announced| announced == self.received)
    }

    /// What was read since the last time: so much may the client send anew on the connection.
    pub(crate) fn take_credit(&mut self) -> usize {
        let mut credit = std::mem::take(&mut self.padding);
        match (&self.inbound, &self.work) {
            (Some(inbound), _) => credit += inbound.take_credit(),
            (None, Work::Opened(..)) => {}
            // The call has everything.
            (None, _) => credit = self.unreleased,
        }
        self.unreleased -= credit;
        self.untold += credit;
        credit
    }

    /// What the client is to be told that it may send anew on this stream; nothing while it is less than `worth`.
    pub(crate) fn take_untold(&mut self, worth: usize) -> Option<u32> {
        if self.client_ended || self.untold < worth {
            return None;
        }
        let untold = u32::try_from(std::mem::take(&mut self.untold)).ok()?;
        self.receive_window += i64::from(untold);
        Some(untold)
    }

    /// The body that arrives piece by piece.
    fn inbound(&mut self, waker: &Arc<SlotWaker>) -> &Arc<Inbound> {
        let Self { inbound, work, .. } = self;
        inbound.get_or_insert_with(|| {
            let inbound = Inbound::new(waker.clone());
            if let Work::Opened(_, early) = work
                && let Some(early) = early.take()
            {
                inbound.push(early);
            }
            Arc::new(inbound)
        })
    }

    fn incoming(&mut self, waker: &Arc<SlotWaker>, early: Option<Bytes>) -> Incoming {
        if self.client_ended && self.inbound.is_none() {
            return Incoming::whole(early);
        }
        let has_ended = self.client_ended;
        let inbound = self.inbound(waker);
        if let Some(early) = early {
            inbound.push(early);
        }
        if has_ended {
            inbound.end();
        }
        Incoming::arriving(inbound.clone())
    }

    /// Does what can be done. `cx` wakes this stream.
    pub(crate) fn poll(
        &mut self,
        service: &impl Service<B>,
        sending: &mut Sending,
        waker: &Arc<SlotWaker>,
        cx: &mut Context<'_>,
    ) -> Turn {
        if let Work::Opened(request, early) = &mut self.work {
            let (request, early) = (std::mem::take(&mut **request), early.take());
            let body = self.incoming(waker, early);
            self.work = Work::Call(service.call(request.map(|()| body)));
        }
        if let Work::Call(call) = &mut self.work {
            let Poll::Ready(response) = call.as_mut().poll(cx) else { return Turn::Waits };
            let (mut head, body) = response.into_parts();
            let is_all = self.is_head || body.is_end_stream();
            if !is_all
                && let Some(bytes) = body.size_hint().exact()
                && !head.headers.contains_key(CONTENT_LENGTH)
            {
                head.headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes));
            }
            let flags = if is_all { flag::END_STREAM } else { 0 };
            sending.out.headers(self.id, flags, |block| hpack::encode_head(block, head.status, &head.headers));
            sending.strikes.forgive();
            self.work = Work::Answer(body);
            if is_all {
                return Turn::Finished;
            }
        }
        self.poll_answer(sending, cx)
    }

    fn poll_answer(&mut self, sending: &mut Sending, cx: &mut Context<'_>) -> Turn {
        let begin = sending.out.len();
        loop {
            if let Some(turn) = self.send_pending(sending) {
                return turn;
            }
            if self.is_last {
                return Turn::Finished;
            }
            // Not asked for more while the client has no room for it.
            if self.window <= 0 {
                return Turn::Waits;
            }
            if sending.window <= 0 {
                return Turn::NoWindow;
            }
            if sending.out.len() >= GATHER_BYTES {
                return Turn::NoRoom;
            }
            if sending.out.len() - begin >= TURN_BYTES {
                return Turn::Again;
            }
            let Work::Answer(body) = &mut self.work else { return Turn::Failed };
            match Pin::new(body).poll_frame(cx) {
                Poll::Pending => return Turn::Waits,
                Poll::Ready(Some(Err(_))) => return Turn::Failed,
                Poll::Ready(None) => {
                    sending.out.frame(kind::DATA, flag::END_STREAM, self.id, &[]);
                    return Turn::Finished;
                }
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.pending = data,
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            let encode = |block: &mut _| hpack::encode(block, &trailers);
                            sending.strikes.forgive();
                            sending.out.headers(self.id, flag::END_STREAM, encode);
                            return Turn::Finished;
                        }
                    }
                },
            }
            self.is_last = matches!(&self.work, Work::Answer(body) if body.is_end_stream());
            if self.is_last && self.pending.is_empty() {
                sending.out.frame(kind::DATA, flag::END_STREAM, self.id, &[]);
                return Turn::Finished;
            }
        }
    }

    /// Sends what waits, as far as there is room; why not all of it.
    fn send_pending(&mut self, sending: &mut Sending) -> Option<Turn> {
        while !self.pending.is_empty() {
            if self.window <= 0 {
                return Some(Turn::Waits);
            }
            if sending.window <= 0 {
                return Some(Turn::NoWindow);
            }
            if sending.out.len() >= GATHER_BYTES {
                return Some(Turn::NoRoom);
            }
            let room = usize::try_from(self.window.min(sending.window)).unwrap_or_default().min(PAYLOAD_MAX);
            let part = self.pending.split_to(room.min(self.pending.len()));
            let bytes = i64::try_from(part.len()).expect("below a window's size");
            (self.window, sending.window) = (self.window - bytes, sending.window - bytes);
            let flags = if self.is_last && self.pending.is_empty() { flag::END_STREAM } else { 0 };
            sending.out.data(self.id, flags, part);
            sending.strikes.forgive();
        }
        None
    }
}

impl<B> Drop for Stream<B> {
    fn drop(&mut self) {
        // Whoever still reads it elsewhere must not wait for more.
        if let Some(inbound) = &self.inbound {
            inbound.abandon();
        }
    }
}
