//! What is to be sent: frames one after the other, small ones together, large payloads by reference, all in one write.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::AsyncWrite;

use crate::frame::{HEAD_BYTES, Head, PAYLOAD_MAX, flag, kind};

/// Payloads up to this are copied behind the heads of their frames: a slice of its own costs more.
const COPY_BYTES_MAX: usize = 256;
/// Slices of one write.
const SLICES_MAX: usize = 64;
/// An empty buffer of at most so much is kept.
const KEPT_BYTES_MAX: usize = 4 << 10;

/// Bytes on their way to the socket.
#[derive(Default)]
pub(crate) struct Out {
    queue: VecDeque<Bytes>,
    /// Follows the queue.
    tail: BytesMut,
    len: usize,
}

impl Out {
    /// Bytes that are not yet written.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Appends a frame with a short payload.
    pub(crate) fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.tail.put_slice(&Head { len: payload.len(), kind, flags, stream }.to_bytes());
        self.tail.put_slice(payload);
        self.len += HEAD_BYTES + payload.len();
    }

    /// Appends a frame of data.
    pub(crate) fn data(&mut self, stream: u32, flags: u8, payload: Bytes) {
        self.tail.put_slice(&Head { len: payload.len(), kind: kind::DATA, flags, stream }.to_bytes());
        self.len += HEAD_BYTES + payload.len();
        if payload.len() <= COPY_BYTES_MAX {
            self.tail.put_slice(&payload);
        } else {
            self.queue.push_back(self.tail.split().freeze());
            self.queue.push_back(payload);
        }
    }

    /// Appends a header block that `encode` writes, in as many frames as it needs.
    pub(crate) fn headers(&mut self, stream: u32, flags: u8, encode: impl FnOnce(&mut BytesMut)) {
        let begin = self.tail.len();
        self.tail.put_bytes(0, HEAD_BYTES);
        encode(&mut self.tail);
        let len = self.tail.len() - begin - HEAD_BYTES;
        if len <= PAYLOAD_MAX {
            let head = Head { len, kind: kind::HEADERS, flags: flags | flag::END_HEADERS, stream };
            self.tail[begin..begin + HEAD_BYTES].copy_from_slice(&head.to_bytes());
            self.len += HEAD_BYTES + len;
            return;
        }
        let block = self.tail.split_off(begin + HEAD_BYTES);
        self.tail.truncate(begin);
        let mut parts = block.chunks(PAYLOAD_MAX).peekable();
        let (mut kind, mut flags) = (kind::HEADERS, flags);
        while let Some(part) = parts.next() {
            let ending = if parts.peek().is_none() { flag::END_HEADERS } else { 0 };
            self.frame(kind, flags | ending, stream, part);
            (kind, flags) = (kind::CONTINUATION, 0);
        }
    }

    /// Writes until nothing is left, or the socket takes no more.
    pub(crate) fn poll_write<W: AsyncWrite + Unpin>(
        &mut self,
        io: &mut W,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.len > 0 {
            let written = if self.queue.is_empty() {
                ready!(Pin::new(&mut *io).poll_write(cx, &self.tail))?
            } else {
                let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                let pieces = self.queue.iter().map(Bytes::as_ref).chain([self.tail.as_ref()]);
                let count = slices.iter_mut().zip(pieces).map(|(slice, piece)| *slice = IoSlice::new(piece)).count();
                ready!(Pin::new(&mut *io).poll_write_vectored(cx, &slices[..count]))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(written);
        }
        Pin::new(io).poll_flush(cx)
    }

    fn advance(&mut self, mut written: usize) {
        self.len -= written;
        while let Some(first) = self.queue.front_mut() {
            if first.len() > written {
                return first.advance(written);
            }
            written -= first.len();
            self.queue.pop_front();
        }
        self.tail.advance(written);
        if self.tail.is_empty() {
            if self.tail.capacity() <= KEPT_BYTES_MAX { self.tail.clear() } else { self.tail = BytesMut::new() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a few bytes at a time.
    struct Slow(Vec<u8>);

    impl AsyncWrite for Slow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let taken = bytes.len().min(7);
            self.0.extend_from_slice(&bytes[..taken]);
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Kind, flags and payload of each frame.
    fn frames(mut bytes: &[u8]) -> Vec<(u8, u8, Vec<u8>)> {
        let mut frames = Vec::new();
        while let Some((head, rest)) = bytes.split_first_chunk::<HEAD_BYTES>() {
            let head = Head::parse(*head);
            assert_eq!(head.stream, 5);
            frames.push((head.kind, head.flags, rest[..head.len].to_vec()));
            bytes = &rest[head.len..];
        }
        assert_eq!(bytes, b"");
        frames
    }

    #[test]
    fn frames_leave_in_their_order_however_the_socket_takes_them() {
        let (small, large) = (Bytes::from(vec![1; COPY_BYTES_MAX]), Bytes::from(vec![2; 3000]));
        let mut out = Out::default();
        out.headers(5, 0, |block| block.put_slice(b"head"));
        out.data(5, 0, small.clone());
        out.data(5, 0, large.clone());
        out.data(5, flag::END_STREAM, Bytes::new());
        out.headers(5, flag::END_STREAM, |block| block.put_bytes(3, 2 * PAYLOAD_MAX + 1));
        let len = out.len();
        let mut io = Slow(Vec::new());
        assert!(out.poll_write(&mut io, &mut Context::from_waker(std::task::Waker::noop())).is_ready());
        assert_eq!((out.len(), io.0.len()), (0, len));
        let expected = [
            (kind::HEADERS, flag::END_HEADERS, b"head".to_vec()),
            (kind::DATA, 0, small.to_vec()),
            (kind::DATA, 0, large.to_vec()),
            (kind::DATA, flag::END_STREAM, vec![]),
            (kind::HEADERS, flag::END_STREAM, vec![3; PAYLOAD_MAX]),
            (kind::CONTINUATION, 0, vec![3; PAYLOAD_MAX]),
            (kind::CONTINUATION, flag::END_HEADERS, vec![3]),
        ];
        assert_eq!(frames(&io.0), expected);
    }
}
