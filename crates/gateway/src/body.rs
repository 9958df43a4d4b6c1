//! The body of every gRPC answer: chunks of bytes that are pulled, then trailers.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Frame;
use prost::Message;
use tailwater_api::grpc;
use tailwater_fanout::ListPermit;
use tokio::time::Sleep;

use crate::metrics::Observation;
use crate::range::RangeChunks;
use crate::status::Fault;

/// Something that yields the framed messages of an answer, in pieces of any size.
pub(crate) trait Chunks: Send {
    /// The next piece; `None` at the end. Not polled before the transport has room.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>>;

    /// gRPC code and text; asked once, after the end.
    fn status(&self) -> (i32, String);
}

/// Where the pieces come from.
pub(crate) enum Answer {
    /// One encoded message with its prefix.
    Message(Bytes),
    /// The same of lists that count in the memory of lists until it has left.
    Lists(Bytes, Vec<Arc<ListPermit>>),
    /// It is leaving.
    Leaving(#[expect(dead_code, reason = "kept until it is dropped")] Vec<Arc<ListPermit>>),
    /// A list.
    Range(Box<RangeChunks>),
    /// A stream.
    Stream(Box<dyn Chunks>),
    /// Everything was sent.
    Done,
}

impl Answer {
    /// Encodes a message.
    pub(crate) fn message(message: &impl Message) -> Self {
        Self::Message(framed(message))
    }
}

/// A message with its prefix.
pub(crate) fn framed(message: &impl Message) -> Bytes {
    let len = message.encoded_len();
    let mut out = BytesMut::with_capacity(grpc::PREFIX_BYTES + len);
    grpc::put_prefix(&mut out, len);
    message.encode(&mut out).expect("the buffer grows");
    out.freeze()
}

/// The body of one call's answer. Dropped before its trailers, the call counts as cancelled.
pub(crate) struct CallBody {
    answer: Answer,
    /// When the client stops waiting; for streams.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Taken when the trailers are sent.
    observation: Option<Observation>,
}

impl CallBody {
    /// Ends with `DeadlineExceeded` after `limit`.
    pub(crate) fn new(answer: Answer, limit: Option<Duration>, observation: Observation) -> Self {
        let deadline = limit.map(|limit| Box::pin(tokio::time::sleep(limit)));
        Self { answer, deadline, observation: Some(observation) }
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, (i32, String)>> {
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            self.answer = Answer::Done;
            let (code, text) = Fault::DeadlineExceeded.status();
            return Poll::Ready(Err((code as i32, text.to_owned())));
        }
        let end = match &mut self.answer {
            Answer::Message(_) => {
                let Answer::Message(bytes) = std::mem::replace(&mut self.answer, Answer::Done) else {
                    unreachable!("matched above")
                };
                return Poll::Ready(Ok(bytes));
            }
            Answer::Lists(bytes, permits) => {
                let (bytes, permits) = (std::mem::take(bytes), std::mem::take(permits));
                self.answer = Answer::Leaving(permits);
                return Poll::Ready(Ok(bytes));
            }
            Answer::Range(chunks) => match chunks.next_chunk() {
                Some(chunk) => return Poll::Ready(Ok(chunk)),
                None => (0, String::new()),
            },
            Answer::Stream(chunks) => match ready!(chunks.poll_chunk(cx)) {
                Some(chunk) => return Poll::Ready(Ok(chunk)),
                None => chunks.status(),
            },
            Answer::Leaving(_) | Answer::Done => (0, String::new()),
        };
        self.answer = Answer::Done;
        Poll::Ready(Err(end))
    }
}

impl http_body::Body for CallBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::convert::Infallible>>> {
        if self.observation.is_none() {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Ok(match ready!(self.poll_chunk(cx)) {
            Ok(chunk) => {
                if let Some(observation) = &mut self.observation {
                    observation.sent(&chunk);
                }
                Frame::data(chunk)
            }
            Err((code, text)) => {
                if let Some(observation) = self.observation.take() {
                    observation.end(code);
                }
                Frame::trailers(grpc::trailers(code, &text))
            }
        })))
    }
}
