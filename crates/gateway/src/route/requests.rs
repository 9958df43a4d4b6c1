//! The requests of a watch stream on their way to a replica.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::Frame;
use parking_lot::Mutex;

/// Requests that may wait; whoever has more stops reading its client.
const WAITING_MAX: usize = 16;

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Bytes>,
    is_closed: bool,
    /// The transport waits for a request.
    reader: Option<Waker>,
    /// The stream waits for room.
    writer: Option<Waker>,
}

/// The end that takes requests; dropping it ends them.
pub(super) struct RequestSender {
    queue: Arc<Mutex<Queue>>,
}

/// The end that the transport reads.
pub(super) struct RequestBody {
    queue: Arc<Mutex<Queue>>,
}

/// A queue of framed requests.
pub(super) fn channel() -> (RequestSender, RequestBody) {
    let queue = Arc::new(Mutex::new(Queue::default()));
    (RequestSender { queue: queue.clone() }, RequestBody { queue })
}

impl RequestSender {
    /// Whether another request may be sent; if not, the task is woken when it may.
    pub(super) fn has_room(&self, cx: &Context<'_>) -> bool {
        let mut queue = self.queue.lock();
        let has_room = queue.waiting.len() < WAITING_MAX || queue.is_closed;
        if !has_room {
            queue.writer = Some(cx.waker().clone());
        }
        has_room
    }

    /// Sends a framed request.
    pub(super) fn send(&self, request: Bytes) {
        let reader = {
            let mut queue = self.queue.lock();
            if queue.is_closed {
                // The replica has gone; its answer says so.
                return;
            }
            queue.waiting.push_back(request);
            queue.reader.take()
        };
        reader.into_iter().for_each(Waker::wake);
    }
}

impl Drop for RequestSender {
    fn drop(&mut self) {
        let reader = {
            let mut queue = self.queue.lock();
            queue.is_closed = true;
            queue.reader.take()
        };
        reader.into_iter().for_each(Waker::wake);
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let writer = {
            let mut queue = self.queue.lock();
            queue.is_closed = true;
            queue.waiting.clear();
            queue.writer.take()
        };
        writer.into_iter().for_each(Waker::wake);
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::convert::Infallible>>> {
        let (next, writer) = {
            let mut queue = self.queue.lock();
            let next = queue.waiting.pop_front();
            if next.is_none() && !queue.is_closed {
                queue.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            (next, queue.writer.take())
        };
        writer.into_iter().for_each(Waker::wake);
        Poll::Ready(next.map(|request| Ok(Frame::data(request))))
    }
}

#[cfg(test)]
mod tests {
    use http_body::Body;

    use super::*;

    #[test]
    fn a_sender_is_told_when_there_is_no_room() {
        let (sender, mut body) = channel();
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..WAITING_MAX {
            assert!(sender.has_room(&cx));
            sender.send(Bytes::from_static(b"r"));
        }
        assert!(!sender.has_room(&cx));
        assert!(matches!(Pin::new(&mut body).poll_frame(&mut cx), Poll::Ready(Some(Ok(_)))));
        assert!(sender.has_room(&cx));
        drop(sender);
        for _ in 1..WAITING_MAX {
            assert!(matches!(Pin::new(&mut body).poll_frame(&mut cx), Poll::Ready(Some(Ok(_)))));
        }
        assert!(matches!(Pin::new(&mut body).poll_frame(&mut cx), Poll::Ready(None)));
    }
}
