//! The body of a forwarded answer.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use http_body::Frame;
use tailwater_api::grpc;

use super::replica::ActiveCall;
use crate::status::Code;

/// Passes frames on as they are asked for. A connection that breaks becomes a status that clients understand.
pub(super) struct ForwardedBody {
    body: Body,
    /// The call counts until its end.
    call: Option<ActiveCall>,
}

impl ForwardedBody {
    pub(super) fn new(body: Body, call: ActiveCall) -> Self {
        Self { body, call: Some(call) }
    }
}

impl http_body::Body for ForwardedBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::convert::Infallible>>> {
        if self.call.is_none() {
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => {
                if frame.is_trailers() {
                    self.call = None;
                }
                Some(Ok(frame))
            }
            None => {
                self.call = None;
                None
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "a replica was lost in the middle of an answer");
                self.call = None;
                let text = "tailwater: the replica was lost in the middle of its answer";
                Some(Ok(Frame::trailers(grpc::trailers(Code::Unavailable as i32, text))))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.call.is_none() || self.body.is_end_stream()
    }
}
