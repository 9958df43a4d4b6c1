//! A connection: reads frames, lets streams work, writes what they have, in one task.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use crate::frame::{
    HEAD_BYTES, Head, PAYLOAD_LIMIT, PAYLOAD_MAX, Reason, WINDOW_DEFAULT, WINDOW_MAX, flag, kind, number, setting,
};
use crate::head::{HeadBuilder, Refused};
use crate::hpack::{self, Decoder, Field};
use crate::pings::{Due, Keepalive, Strikes};
use crate::stream::{GATHER_BYTES, Sending, Service, Stream, Turn};
use crate::wake::{SlotWaker, Woken};

/// What is read at once.
const READ_BYTES: usize = 64 << 10;
/// Nothing is read while so much waits to be written: answers to a client's pings and resets are bounded by it.
const OUT_BYTES_MAX: usize = 4 * GATHER_BYTES;
/// A header block in pieces may be so large.
const BLOCK_BYTES_MAX: usize = 64 << 10;
/// Rounds of reading, working and writing before it is the turn of other connections.
const ROUNDS_MAX: usize = 16;
/// A client has so long to take the reason why its connection ends.
const FAREWELL: Duration = Duration::from_secs(1);
/// Streams that ended before their clients had ended them: what those had sent by then is passed over.
const EARLY_MAX: usize = 256;
/// What the ping before the last GOAWAY carries.
const LEAVING: [u8; 8] = *b"leaving.";
/// What pings that ask whether a client lives carry.
const ASKING: [u8; 8] = *b"alive?..";
/// The stream id that stands for all.
const ALL_STREAMS: u32 = u32::MAX >> 1;

thread_local! {
    /// Shared by the connections of a thread, since none keeps anything in it: an idle connection has no buffer.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; HEAD_BYTES + PAYLOAD_MAX + READ_BYTES]);
}

/// How a connection is served.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Bytes that a client may send on one stream before they are read.
    pub stream_window_bytes: u32,
    /// The same on all streams of the connection together.
    pub connection_window_bytes: u32,
    /// Streams at a time; the largest number: no limit.
    pub streams_max: u32,
    /// Bytes of a request's headers, 32 more for each.
    pub headers_bytes_max: u32,
    /// A client's pings must be so far apart; zero: no limit.
    pub pings_apart: Duration,
    /// A client that is silent for so long is asked whether it lives; zero: never.
    pub keepalive_interval: Duration,
    /// It has so long to answer.
    pub keepalive_timeout: Duration,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The client broke the protocol.
    #[error("{1} ({0:?})")]
    Protocol(Reason, &'static str),
    /// It asked too often whether we live.
    #[error("too many pings from the client")]
    TooManyPings,
    /// It did not answer a ping.
    #[error("the client is silent")]
    Silent,
}

fn broken<T>(reason: Reason, text: &'static str) -> Result<T, ConnectionError> {
    Err(ConnectionError::Protocol(reason, text))
}

/// How far a connection is on its way to its end.
enum State {
    Open,
    /// The client was told to open no more streams; those that it opened before it knew are served.
    Leaving,
    /// It knows. Streams that are open go on.
    Left,
    /// The reason is on its way; nothing else is done.
    Failed(Option<ConnectionError>, Pin<Box<Sleep>>),
}

struct Slot<B> {
    stream: Option<Stream<B>>,
    waker: Arc<SlotWaker>,
    /// The same, as streams are given it.
    task: Waker,
    /// It is among those that wait for room or for a window, however often it was woken since.
    is_waiting: bool,
}

/// A header block whose end has not arrived.
struct Block {
    stream: u32,
    ends_stream: bool,
    bytes: Vec<u8>,
}

/// Serves one client from the first byte after the preface until it, or we, have left. To be polled by one task.
pub struct Connection<IO, S, B> {
    io: IO,
    service: S,
    config: Config,
    /// The beginning of a frame.
    partial: Vec<u8>,
    /// The client's settings have arrived.
    is_greeted: bool,
    decoder: Decoder,
    block: Option<Block>,
    slots: Vec<Slot<B>>,
    free: Vec<usize>,
    by_id: HashMap<u32, usize>,
    newest: u32,
    /// Streams that ended before their client had ended them, the newest last.
    early: VecDeque<u32>,
    /// There were more than are remembered.
    forgets_early: bool,
    woken: Arc<Woken>,
    /// Slots that have something to do.
    queue: VecDeque<usize>,
    /// Slots that wait until something is written.
    waiting_for_room: Vec<usize>,
    /// Slots that wait until the client takes more on the connection.
    waiting_for_window: Vec<usize>,
    sending: Sending,
    /// What the client may still send.
    receive_window: i64,
    /// What it may send anew, which it was not told yet.
    released: usize,
    keepalive: Option<Keepalive>,
    state: State,
}

impl<IO, S, B> Connection<IO, S, B>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    S: Service<B>,
    B: Body<Data = Bytes> + Unpin,
{
    /// Serves what comes behind the client's preface.
    pub fn new(io: IO, config: Config, service: S) -> Self {
        let mut sending = Sending::new(Strikes::new(config.pings_apart));
        let mut settings = Vec::new();
        let mut set = |id: u16, value: u32| {
            settings.extend(id.to_be_bytes());
            settings.extend(value.to_be_bytes());
        };
        set(setting::INITIAL_WINDOW_SIZE, config.stream_window_bytes);
        set(setting::MAX_HEADER_LIST_SIZE, config.headers_bytes_max);
        if config.streams_max != u32::MAX {
            set(setting::MAX_CONCURRENT_STREAMS, config.streams_max);
        }
        sending.out.frame(kind::SETTINGS, 0, 0, &settings);
        let receive_window = i64::from(config.connection_window_bytes).max(WINDOW_DEFAULT);
        let more = u32::try_from(receive_window - WINDOW_DEFAULT).unwrap_or_default();
        if more > 0 {
            sending.out.frame(kind::WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
        }
        Self {
            io,
            service,
            config,
            partial: Vec::new(),
            is_greeted: false,
            decoder: Decoder::default(),
            block: None,
            slots: Vec::new(),
            free: Vec::new(),
            by_id: HashMap::new(),
            newest: 0,
            early: VecDeque::new(),
            forgets_early: false,
            woken: Arc::default(),
            queue: VecDeque::new(),
            waiting_for_room: Vec::new(),
            waiting_for_window: Vec::new(),
            sending,
            receive_window,
            released: 0,
            keepalive: Keepalive::new(config.keepalive_interval, config.keepalive_timeout),
            state: State::Open,
        }
    }

    /// Tells the client to open no more streams here. Those that are open go on; the connection ends with the last of them.
    /// The client is told before anything that is answered after this call.
    pub fn graceful_shutdown(&mut self) {
        if matches!(self.state, State::Open) {
            self.goaway(ALL_STREAMS, Reason::NoError, "");
            self.sending.out.frame(kind::PING, 0, 0, &LEAVING);
            self.state = State::Leaving;
        }
    }

    fn goaway(&mut self, last: u32, reason: Reason, text: &str) {
        let mut payload = last.to_be_bytes().to_vec();
        payload.extend((reason as u32).to_be_bytes());
        payload.extend(text.as_bytes());
        self.sending.out.frame(kind::GOAWAY, 0, 0, &payload);
    }

    /// Says why, and ends.
    fn fail(&mut self, error: ConnectionError) {
        match &error {
            ConnectionError::Io(_) | ConnectionError::Silent => {}
            ConnectionError::Protocol(reason, text) => self.goaway(self.newest, *reason, text),
            ConnectionError::TooManyPings => self.goaway(self.newest, Reason::EnhanceYourCalm, "too_many_pings"),
        }
        self.slots.clear();
        self.by_id.clear();
        self.state = State::Failed(Some(error), Box::pin(sleep(FAREWELL)));
    }

    fn drive(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        for _ in 0..ROUNDS_MAX {
            if let State::Failed(error, time) = &mut self.state {
                let is_told = self.sending.out.poll_write(&mut self.io, cx).is_ready();
                if !is_told && time.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                let error = error.take();
                // Neither waits for the client.
                let _ = Pin::new(&mut self.io).poll_shutdown(cx);
                return Poll::Ready(error.map_or(Ok(()), Err));
            }
            let mut has_moved = false;
            if self.sending.out.len() < OUT_BYTES_MAX {
                match self.poll_read(cx) {
                    Poll::Pending => {}
                    Poll::Ready(Ok(0)) => return Poll::Ready(Ok(())),
                    Poll::Ready(Ok(_)) => has_moved = true,
                    Poll::Ready(Err(ConnectionError::Io(error))) => return Poll::Ready(Err(error.into())),
                    Poll::Ready(Err(error)) => {
                        self.fail(error);
                        continue;
                    }
                }
            }
            self.poll_streams();
            if let Some(keepalive) = &mut self.keepalive
                && let Poll::Ready(due) = keepalive.poll(cx)
            {
                match due {
                    Due::Ping => self.sending.out.frame(kind::PING, 0, 0, &ASKING),
                    Due::End => return Poll::Ready(Err(ConnectionError::Silent)),
                }
            }
            let written = self.sending.out.poll_write(&mut self.io, cx)?;
            if self.sending.out.len() < GATHER_BYTES {
                let mut waiting = std::mem::take(&mut self.waiting_for_room);
                waiting.drain(..).for_each(|at| self.wait_no_more(at));
                self.waiting_for_room = waiting;
            }
            if written.is_ready() && matches!(self.state, State::Left) && self.by_id.is_empty() {
                ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
                return Poll::Ready(Ok(()));
            }
            self.woken.take(&mut self.queue);
            if !has_moved && self.queue.is_empty() {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, ConnectionError>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let held = self.partial.len();
            scratch[..held].copy_from_slice(&self.partial);
            let mut buffer = ReadBuf::new(&mut scratch[held..]);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer))?;
            let read = buffer.filled().len();
            if read > 0 {
                if let Some(keepalive) = &mut self.keepalive {
                    keepalive.heard();
                }
                let bytes = &scratch[..held + read];
                let parsed = self.parse(bytes)?;
                self.partial.clear();
                self.partial.extend_from_slice(&bytes[parsed..]);
                if self.partial.is_empty() {
                    self.partial = Vec::new();
                }
            }
            Poll::Ready(Ok(read))
        })
    }

    /// Lets every stream work that was woken, once.
    fn poll_streams(&mut self) {
        self.woken.take(&mut self.queue);
        for _ in 0..self.queue.len() {
            let Some(at) = self.queue.pop_front() else { return };
            let Slot { stream, waker, task, is_waiting } = &mut self.slots[at];
            waker.leave();
            let Some(polled) = stream else { continue };
            let turn = polled.poll(&self.service, &mut self.sending, waker, &mut Context::from_waker(task));
            let credit = polled.take_credit();
            let (id, client_ended) = (polled.id, polled.client_ended);
            let told = polled.take_untold((self.config.stream_window_bytes / 4) as usize);
            match turn {
                Turn::Waits => {}
                Turn::Again => {
                    if waker.queue() {
                        self.queue.push_back(at);
                    }
                }
                Turn::NoRoom | Turn::NoWindow if *is_waiting => {}
                Turn::NoRoom => {
                    *is_waiting = true;
                    self.waiting_for_room.push(at);
                }
                Turn::NoWindow => {
                    *is_waiting = true;
                    self.waiting_for_window.push(at);
                }
                Turn::Finished | Turn::Failed => self.remove(at),
            }
            match turn {
                Turn::Finished if client_ended => {}
                // What it still sends is not wanted.
                Turn::Finished => self.reset_early(id, Reason::NoError),
                Turn::Failed if client_ended => self.reset(id, Reason::InternalError),
                Turn::Failed => self.reset_early(id, Reason::InternalError),
                _ => told.into_iter().for_each(|bytes| self.tell_window(id, bytes)),
            }
            self.release(credit);
        }
    }

    fn tell_window(&mut self, stream: u32, bytes: u32) {
        self.sending.out.frame(kind::WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes());
    }

    /// The client may send so much anew; it is told when it is worth a frame.
    fn release(&mut self, bytes: usize) {
        self.released += bytes;
        if self.released >= (self.config.connection_window_bytes / 4) as usize {
            let released = u32::try_from(std::mem::take(&mut self.released)).expect("no more than a window");
            self.receive_window += i64::from(released);
            self.tell_window(0, released);
        }
    }

    fn reset(&mut self, stream: u32, reason: Reason) {
        self.sending.out.frame(kind::RST_STREAM, 0, stream, &(reason as u32).to_be_bytes());
    }

    /// Resets a stream that the client may not have ended.
    fn reset_early(&mut self, stream: u32, reason: Reason) {
        self.reset(stream, reason);
        self.early.push_back(stream);
        if self.early.len() > EARLY_MAX {
            self.early.pop_front();
            self.forgets_early = true;
        }
    }

    /// Whether a client may still have sent something of a stream that is not open when it heard of its end.
    fn may_be_late(&self, stream: u32) -> bool {
        self.forgets_early || self.early.contains(&stream)
    }

    /// Ends a stream's work.
    fn remove(&mut self, at: usize) {
        if let Some(stream) = self.slots[at].stream.take() {
            self.by_id.remove(&stream.id);
            self.free.push(at);
            self.release(stream.unreleased);
        }
    }

    fn fail_stream(&mut self, stream: u32, reason: Reason) {
        if let Some(at) = self.by_id.get(&stream) {
            self.remove(*at);
        }
        self.reset_early(stream, reason);
    }

    fn wait_no_more(&mut self, at: usize) {
        self.slots[at].is_waiting = false;
        self.enqueue(at);
    }

    fn enqueue(&mut self, at: usize) {
        if self.slots[at].waker.queue() {
            self.queue.push_back(at);
        }
    }

    /// Takes the whole frames at the beginning of `bytes`; how long they are.
    fn parse(&mut self, bytes: &[u8]) -> Result<usize, ConnectionError> {
        let mut at = 0;
        while let Some((head, rest)) = bytes[at..].split_first_chunk::<HEAD_BYTES>() {
            let head = Head::parse(*head);
            if head.len > PAYLOAD_MAX {
                return broken(Reason::FrameSizeError, "a frame is larger than allowed");
            }
            let Some(payload) = rest.get(..head.len) else { break };
            if !self.is_greeted && (head.kind != kind::SETTINGS || head.has(flag::ACK)) {
                return broken(Reason::ProtocolError, "the first frame is not SETTINGS");
            }
            self.is_greeted = true;
            self.frame(head, payload)?;
            at += HEAD_BYTES + head.len;
        }
        Ok(at)
    }

    fn frame(&mut self, head: Head, payload: &[u8]) -> Result<(), ConnectionError> {
        if let Some(block) = &self.block
            && (head.kind != kind::CONTINUATION || head.stream != block.stream)
        {
            return broken(Reason::ProtocolError, "a header block is interrupted");
        }
        let is_of_a_stream = match head.kind {
            kind::DATA | kind::HEADERS | kind::PRIORITY | kind::RST_STREAM | kind::CONTINUATION => Some(true),
            kind::SETTINGS | kind::PING | kind::GOAWAY => Some(false),
            _ => None,
        };
        if is_of_a_stream.is_some_and(|is| is != (head.stream != 0)) {
            return broken(Reason::ProtocolError, "a frame has a wrong stream");
        }
        match head.kind {
            kind::DATA => self.on_data(head, payload),
            kind::HEADERS => self.on_headers(head, payload),
            kind::CONTINUATION => self.on_continuation(head, payload),
            kind::PRIORITY => {
                // Not made use of.
                if payload.len() != 5 {
                    self.fail_stream(head.stream, Reason::FrameSizeError);
                } else if number(payload).is_some_and(|on| on & ALL_STREAMS == head.stream) {
                    self.fail_stream(head.stream, Reason::ProtocolError);
                }
                Ok(())
            }
            kind::RST_STREAM => self.on_reset(head, payload),
            kind::SETTINGS => self.on_settings(head, payload),
            kind::PUSH_PROMISE => broken(Reason::ProtocolError, "clients do not push"),
            kind::PING => self.on_ping(head, payload),
            kind::WINDOW_UPDATE => self.on_window_update(head, payload),
            // A client that leaves ends its streams by itself; kinds that are not known are passed over.
            _ => Ok(()),
        }
    }

    fn on_data(&mut self, head: Head, payload: &[u8]) -> Result<(), ConnectionError> {
        // A frame has at most 16 KiB.
        let counted = i64::try_from(payload.len()).unwrap_or(WINDOW_MAX);
        self.receive_window -= counted;
        if self.receive_window < 0 {
            return broken(Reason::FlowControlError, "more data than the connection's window");
        }
        let data = unpadded(head, payload)?;
        let Some(at) = self.by_id.get(&head.stream).copied() else {
            if head.stream > self.newest {
                return broken(Reason::ProtocolError, "data of a stream that is not open");
            }
            self.release(payload.len());
            if !self.may_be_late(head.stream) {
                self.reset(head.stream, Reason::StreamClosed);
            }
            return Ok(());
        };
        let Slot { stream: Some(stream), waker, .. } = &mut self.slots[at] else { return Ok(()) };
        stream.receive_window -= counted;
        stream.unreleased += payload.len();
        if stream.client_ended || stream.receive_window < 0 {
            let reason = if stream.client_ended { Reason::StreamClosed } else { Reason::FlowControlError };
            self.fail_stream(head.stream, reason);
            return Ok(());
        }
        stream.padding += payload.len() - data.len();
        if !data.is_empty() {
            stream.push(Bytes::copy_from_slice(data), waker);
        }
        if head.has(flag::END_STREAM) && !stream.end() {
            self.fail_stream(head.stream, Reason::ProtocolError);
            return Ok(());
        }
        if stream.padding > 0 {
            self.enqueue(at);
        }
        Ok(())
    }

    fn on_headers(&mut self, head: Head, payload: &[u8]) -> Result<(), ConnectionError> {
        if head.stream.is_multiple_of(2) {
            return broken(Reason::ProtocolError, "a client's streams have odd numbers");
        }
        let mut block = unpadded(head, payload)?;
        if head.has(flag::PRIORITY) {
            let Some((priority, rest)) = block.split_at_checked(5) else {
                return broken(Reason::FrameSizeError, "a priority has five bytes");
            };
            if number(priority).is_some_and(|on| on & ALL_STREAMS == head.stream) {
                return broken(Reason::ProtocolError, "a stream depends on itself");
            }
            block = rest;
        }
        let ends_stream = head.has(flag::END_STREAM);
        if head.has(flag::END_HEADERS) {
            return self.on_block(head.stream, ends_stream, block);
        }
        self.block = Some(Block { stream: head.stream, ends_stream, bytes: block.to_vec() });
        Ok(())
    }

    fn on_continuation(&mut self, head: Head, payload: &[u8]) -> Result<(), ConnectionError> {
        let Some(mut block) = self.block.take() else {
            return broken(Reason::ProtocolError, "nothing is to be continued");
        };
        // Empty pieces are no work for the client, but some for us.
        if payload.is_empty() && !head.has(flag::END_HEADERS) || block.bytes.len() + payload.len() > BLOCK_BYTES_MAX {
            return broken(Reason::EnhanceYourCalm, "a header block is too large");
        }
        block.bytes.extend_from_slice(payload);
        if head.has(flag::END_HEADERS) {
            return self.on_block(block.stream, block.ends_stream, &block.bytes);
        }
        self.block = Some(block);
        Ok(())
    }

    /// A whole header block: of a new stream, or trailers.
    fn on_block(&mut self, id: u32, ends_stream: bool, block: &[u8]) -> Result<(), ConnectionError> {
        const UNREADABLE: &str = "a header block is malformed";
        if id <= self.newest {
            // Read all the same, for what it adds to the table.
            let mut are_trailers = ends_stream;
            let read = self.decoder.decode(block, |field, _| are_trailers &= matches!(field, Field::Regular(..)));
            if read.is_err() {
                return broken(Reason::CompressionError, UNREADABLE);
            }
            let Some(at) = self.by_id.get(&id).copied() else {
                return match self.may_be_late(id) {
                    true => Ok(()),
                    false => broken(Reason::StreamClosed, "headers of a stream that has ended"),
                };
            };
            let Some(stream) = &mut self.slots[at].stream else { return Ok(()) };
            if stream.client_ended {
                self.fail_stream(id, Reason::StreamClosed);
            } else if !are_trailers || !stream.end() {
                self.fail_stream(id, Reason::ProtocolError);
            }
            return Ok(());
        }
        self.newest = id;
        let mut builder = HeadBuilder::new(self.config.headers_bytes_max as usize);
        if self.decoder.decode(block, |field, bytes| builder.add(field, bytes)).is_err() {
            return broken(Reason::CompressionError, UNREADABLE);
        }
        if matches!(self.state, State::Left) {
            // Opened after it was told; there may be more of it.
            self.forgets_early = true;
            return Ok(());
        }
        if self.by_id.len() >= self.config.streams_max as usize {
            self.reset_early(id, Reason::RefusedStream);
            return Ok(());
        }
        match builder.finish() {
            Ok(request) => self.open(id, ends_stream, request),
            Err(Refused::Malformed) => self.reset_early(id, Reason::ProtocolError),
            Err(Refused::TooLarge) => {
                let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
                let encode = |block: &mut _| hpack::encode_head(block, status, &HeaderMap::new());
                self.sending.out.headers(id, flag::END_STREAM, encode);
                if !ends_stream {
                    self.reset_early(id, Reason::NoError);
                }
            }
        }
        Ok(())
    }

    fn open(&mut self, id: u32, ends_stream: bool, request: Request<()>) {
        let window = self.sending.stream_window;
        let mut stream = Stream::new(id, request, window, i64::from(self.config.stream_window_bytes));
        if ends_stream && !stream.end() {
            return self.reset(id, Reason::ProtocolError);
        }
        let at = self.free.pop().unwrap_or_else(|| {
            let waker = SlotWaker::new(self.woken.clone(), self.slots.len());
            self.slots.push(Slot { stream: None, task: waker.clone().into(), waker, is_waiting: false });
            self.slots.len() - 1
        });
        self.slots[at].stream = Some(stream);
        self.by_id.insert(id, at);
        // Called when everything that was read has been looked at: most requests are whole then.
        self.enqueue(at);
    }

    fn on_reset(&mut self, head: Head, payload: &[u8]) -> Result<(), ConnectionError> {
        if payload.len() != 4 {
            return broken(Reason::FrameSizeError, "RST_STREAM has four bytes");
        }
        if head.stream > self.newest {
            return broken(Reason::ProtocolError, "a stream that is not open is reset");
        }
        if let Some(at) = self.by_id.get(&head.stream) {
            self.remove(*at);
        }
        Ok(())
    }

    fn on_settings(&mut self, head: Head, payload: &[u8]) -> Result<(), ConnectionError> {
        if head.has(flag::ACK) && payload.is_empty() {
            return Ok(());
        }
        if head.has(flag::ACK) || !payload.len().is_multiple_of(6) {
            return broken(Reason::FrameSizeError, "settings have six bytes each");
        }
        for entry in payload.chunks_exact(6) {
            let value = number(&entry[2..]).unwrap_or_default();
            match u16::from_be_bytes([entry[0], entry[1]]) {
                setting::ENABLE_PUSH if value > 1 => {
                    return broken(Reason::ProtocolError, "ENABLE_PUSH is 0 or 1");
                }
                setting::INITIAL_WINDOW_SIZE => self.set_stream_window(i64::from(value))?,
                setting::MAX_FRAME_SIZE => {
                    let bytes = value as usize;
                    if !(PAYLOAD_MAX..=PAYLOAD_LIMIT).contains(&bytes) {
                        return broken(Reason::ProtocolError, "MAX_FRAME_SIZE is out of range");
                    }
                    // Not made use of: larger frames would keep small ones of other streams back for longer.
                }
                _ => {}
            }
        }
        self.sending.out.frame(kind::SETTINGS, flag::ACK, 0, &[]);
        Ok(())
    }

    /// The client changes what it takes on every stream.
    fn set_stream_window(&mut self, bytes: i64) -> Result<(), ConnectionError> {
        if bytes > WINDOW_MAX {
            return broken(Reason::FlowControlError, "a window is larger than allowed");
        }
        let more = bytes - std::mem::replace(&mut self.sending.stream_window, bytes);
        for at in 0..self.slots.len() {
            if let Some(stream) = &mut self.slots[at].stream {
                stream.window += more;
                if stream.window > WINDOW_MAX {
                    return broken(Reason::FlowControlError, "a window is larger than allowed");
                }
                self.enqueue(at);
            }
        }
        Ok(())
    }

    fn on_ping(&mut self, head: Head, payload: &[u8]) -> Result<(), ConnectionError> {
        if payload.len() != LEAVING.len() {
            return broken(Reason::FrameSizeError, "PING has eight bytes");
        }
        if head.has(flag::ACK) {
            if payload == LEAVING && matches!(self.state, State::Leaving) {
                self.goaway(self.newest, Reason::NoError, "");
                self.state = State::Left;
            }
            return Ok(());
        }
        if self.sending.strikes.add(!self.by_id.is_empty(), Instant::now()) {
            return Err(ConnectionError::TooManyPings);
        }
        self.sending.out.frame(kind::PING, flag::ACK, 0, payload);
        Ok(())
    }

    fn on_window_update(&mut self, head: Head, payload: &[u8]) -> Result<(), ConnectionError> {
        let (Some(value), 4) = (number(payload), payload.len()) else {
            return broken(Reason::FrameSizeError, "WINDOW_UPDATE has four bytes");
        };
        let more = i64::from(value & ALL_STREAMS);
        if head.stream == 0 {
            self.sending.window += more;
            if more == 0 || self.sending.window > WINDOW_MAX {
                return broken(Reason::FlowControlError, "the connection's window is out of range");
            }
            for at in std::mem::take(&mut self.waiting_for_window) {
                self.wait_no_more(at);
            }
            return Ok(());
        }
        if head.stream > self.newest {
            return broken(Reason::ProtocolError, "a window of a stream that is not open");
        }
        if more == 0 {
            self.fail_stream(head.stream, Reason::ProtocolError);
            return Ok(());
        }
        let Some(at) = self.by_id.get(&head.stream).copied() else { return Ok(()) };
        if let Some(stream) = &mut self.slots[at].stream {
            stream.window += more;
            match stream.window > WINDOW_MAX {
                true => self.fail_stream(head.stream, Reason::FlowControlError),
                false => self.enqueue(at),
            }
        }
        Ok(())
    }
}

/// A payload without its padding.
fn unpadded(head: Head, payload: &[u8]) -> Result<&[u8], ConnectionError> {
    if !head.has(flag::PADDED) {
        return Ok(payload);
    }
    let unpadded = payload.split_first().and_then(|(padding, rest)| {
        let len = rest.len().checked_sub(usize::from(*padding))?;
        Some(&rest[..len])
    });
    unpadded.map_or_else(|| broken(Reason::ProtocolError, "a frame is all padding"), Ok)
}

impl<IO, S, B> Future for Connection<IO, S, B>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    S: Service<B> + Unpin,
    B: Body<Data = Bytes> + Unpin,
{
    type Output = Result<(), ConnectionError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        this.woken.begin(cx);
        // The runtime lets a task take so many steps in a turn, then nothing in it is ready any more. That is meant for one
        // future; here are many, and a bound of their own.
        let polled = pin!(tokio::task::unconstrained(poll_fn(|cx| this.drive(cx)))).poll(cx);
        if this.woken.end() && polled.is_pending() {
            cx.waker().wake_by_ref();
        }
        polled
    }
}

#[cfg(test)]
mod tests;
