//! Clients that ping too often, told apart by the frames of their connection and sent away as gRPC's servers in Go do:
//! GOAWAY with `ENHANCE_YOUR_CALM` and "too_many_pings". HTTP/1.1 passes untouched.
//!
//! The rule is grpc-go's: a ping is a strike when it follows the one before too soon, or, while no call is open, within
//! two hours; whatever the server sends of a call forgives all strikes; the third one ends the connection.

use std::collections::BTreeSet;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Pings that come too soon, in a row, which are put up with.
const STRIKES_MAX: u32 = 2;
/// Between pings of a connection without calls.
const IDLE_PINGS_APART: Duration = Duration::from_secs(2 * 3600);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const PING: u8 = 6;
const FLAG_ACK: u8 = 1;
const FLAG_END_STREAM: u8 = 1;

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
}

/// Finds the heads of frames in bytes as they pass.
#[derive(Debug, Default)]
struct Frames {
    head: [u8; 9],
    head_len: usize,
    payload_left: usize,
}

impl Frames {
    fn pass(&mut self, mut bytes: &[u8], mut on_frame: impl FnMut(Frame)) {
        while !bytes.is_empty() {
            if self.payload_left > 0 {
                let skipped = self.payload_left.min(bytes.len());
                self.payload_left -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let taken = (self.head.len() - self.head_len).min(bytes.len());
            self.head[self.head_len..self.head_len + taken].copy_from_slice(&bytes[..taken]);
            self.head_len += taken;
            bytes = &bytes[taken..];
            if self.head_len == self.head.len() {
                let [l1, l2, l3, kind, flags, s1, s2, s3, s4] = self.head;
                self.payload_left = usize::from(l1) << 16 | usize::from(l2) << 8 | usize::from(l3);
                self.head_len = 0;
                on_frame(Frame { kind, flags, stream: u32::from_be_bytes([s1 & 0x7f, s2, s3, s4]) });
            }
        }
    }

    /// Whether another frame could begin here.
    fn is_between(&self) -> bool {
        self.head_len == 0 && self.payload_left == 0
    }
}

/// What is known of a connection's pings.
#[derive(Debug)]
struct Strikes {
    pings_apart: Duration,
    last_ping: Option<Instant>,
    strikes: u32,
    /// Whether anything of a call was sent since the last ping.
    is_forgiven: bool,
    /// Calls that the client has begun and neither side has ended.
    open: BTreeSet<u32>,
    newest: u32,
}

impl Strikes {
    fn received(&mut self, frame: Frame, now: Instant) {
        match frame.kind {
            HEADERS if frame.stream > self.newest => {
                self.newest = frame.stream;
                self.open.insert(frame.stream);
            }
            RST_STREAM => drop(self.open.remove(&frame.stream)),
            PING if frame.flags & FLAG_ACK == 0 => self.pinged(now),
            _ => {}
        }
    }

    fn sent(&mut self, frame: Frame) {
        match frame.kind {
            DATA | HEADERS => {
                self.is_forgiven = true;
                if frame.flags & FLAG_END_STREAM != 0 {
                    self.open.remove(&frame.stream);
                }
            }
            RST_STREAM => drop(self.open.remove(&frame.stream)),
            _ => {}
        }
    }

    fn pinged(&mut self, now: Instant) {
        let last = self.last_ping.replace(now);
        if std::mem::take(&mut self.is_forgiven) {
            self.strikes = 0;
            return;
        }
        let apart = if self.open.is_empty() { IDLE_PINGS_APART } else { self.pings_apart };
        if last.is_some_and(|last| now.saturating_duration_since(last) < apart) {
            self.strikes += 1;
        }
    }

    fn are_too_many(&self) -> bool {
        self.strikes > STRIKES_MAX
    }

    /// The frame that such a client is told with.
    fn farewell(&self) -> Vec<u8> {
        const REASON: &[u8] = b"too_many_pings";
        const ENHANCE_YOUR_CALM: u32 = 0xb;
        let length = u8::try_from(8 + REASON.len()).expect("a short frame");
        let mut frame = vec![0, 0, length, 7, 0, 0, 0, 0, 0];
        frame.extend(self.newest.to_be_bytes());
        frame.extend(ENHANCE_YOUR_CALM.to_be_bytes());
        frame.extend(REASON);
        frame
    }
}

/// Which protocol is spoken.
#[derive(Debug)]
enum Spoken {
    /// So many bytes of HTTP/2's preface were there.
    Unknown(usize),
    Http2,
    /// HTTP/1.1, or nothing that is to be looked at.
    Other,
}

/// A connection whose pings are counted.
#[derive(Debug)]
pub(crate) struct Guarded<S> {
    stream: S,
    spoken: Spoken,
    received: Frames,
    sent: Frames,
    strikes: Strikes,
    /// What is left to be said before the end.
    farewell: Option<Vec<u8>>,
}

impl<S> Guarded<S> {
    /// Counts pings; with a `pings_apart` of zero it does not.
    pub(crate) fn new(stream: S, pings_apart: Duration) -> Self {
        let strikes =
            Strikes { pings_apart, last_ping: None, strikes: 0, is_forgiven: false, open: BTreeSet::new(), newest: 0 };
        let spoken = if pings_apart.is_zero() { Spoken::Other } else { Spoken::Unknown(0) };
        Self { stream, spoken, received: Frames::default(), sent: Frames::default(), strikes, farewell: None }
    }

    fn on_received(&mut self, mut bytes: &[u8]) {
        if let Spoken::Unknown(seen) = &mut self.spoken {
            let expected = &PREFACE[*seen..];
            let compared = expected.len().min(bytes.len());
            if bytes[..compared] != expected[..compared] {
                self.spoken = Spoken::Other;
                return;
            }
            *seen += compared;
            bytes = &bytes[compared..];
            if *seen == PREFACE.len() {
                self.spoken = Spoken::Http2;
            }
        }
        if matches!(self.spoken, Spoken::Http2) {
            let now = Instant::now();
            self.received.pass(bytes, |frame| self.strikes.received(frame, now));
        }
    }

    fn on_sent(&mut self, bytes: &[u8]) {
        if matches!(self.spoken, Spoken::Http2) {
            self.sent.pass(bytes, |frame| self.strikes.sent(frame));
        }
    }
}

impl<S: AsyncWrite + Unpin> Guarded<S> {
    /// Says why, where a frame may begin and the client has room; then the connection has failed.
    fn poll_farewell(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let is_between = self.sent.is_between();
        let strikes = &self.strikes;
        let farewell = self.farewell.get_or_insert_with(|| if is_between { strikes.farewell() } else { Vec::new() });
        while !farewell.is_empty() {
            match Pin::new(&mut self.stream).poll_write(context, farewell) {
                Poll::Ready(Ok(written)) if written > 0 => drop(farewell.drain(..written)),
                _ => break,
            }
        }
        // Neither waits for the client.
        if ready_ok(Pin::new(&mut self.stream).poll_flush(context)) {
            tracing::debug!("a client that pings too often is sent away");
        }
        Poll::Ready(Err(io::Error::other("too many pings from the client")))
    }
}

fn ready_ok(polled: Poll<io::Result<()>>) -> bool {
    matches!(polled, Poll::Ready(Ok(())))
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.strikes.are_too_many() {
            return this.poll_farewell(context);
        }
        let before = into.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(context, into))?;
        this.on_received(&into.filled()[before..]);
        if this.strikes.are_too_many() {
            into.set_filled(before);
            return this.poll_farewell(context);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write(context, bytes))?;
        this.on_sent(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write_vectored(context, buffers))?;
        let mut left = written;
        for buffer in buffers {
            let part = left.min(buffer.len());
            this.on_sent(&buffer[..part]);
            left -= part;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).expect("a short frame");
        let mut bytes = vec![0, 0, length, kind, flags];
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    fn strikes() -> Strikes {
        Guarded::new((), Duration::from_secs(5)).strikes
    }

    const PINGED: Frame = Frame { kind: PING, flags: 0, stream: 0 };

    #[test]
    fn frames_are_found_however_the_bytes_are_cut() {
        let bytes = [frame(PING, 0, 0, &[7; 8]), frame(HEADERS, 5, 3, b"x"), frame(4, 0, 0, b"")].concat();
        for size in 1..bytes.len() {
            let (mut frames, mut found) = (Frames::default(), Vec::new());
            bytes.chunks(size).for_each(|part| frames.pass(part, |frame| found.push((frame.kind, frame.stream))));
            assert_eq!(found, [(PING, 0), (HEADERS, 3), (4, 0)], "{size}");
            assert!(frames.is_between());
        }
    }

    #[test]
    fn pings_may_come_as_often_as_they_may() {
        let (mut strikes, begin) = (strikes(), Instant::now());
        strikes.received(Frame { kind: HEADERS, flags: 0, stream: 1 }, begin);
        for second in 0..20 {
            strikes.received(PINGED, begin + Duration::from_secs(5 * second));
        }
        assert_eq!(strikes.strikes, 0);
        for nth in 0..3 {
            assert!(!strikes.are_too_many(), "{nth}");
            strikes.received(PINGED, begin + Duration::from_secs(96 + nth));
        }
        assert!(strikes.are_too_many());
    }

    #[test]
    fn answers_forgive_and_answers_to_our_pings_are_none() {
        let (mut strikes, now) = (strikes(), Instant::now());
        for _ in 0..50 {
            strikes.sent(Frame { kind: DATA, flags: 0, stream: 1 });
            strikes.received(PINGED, now);
            strikes.received(Frame { flags: FLAG_ACK, ..PINGED }, now);
        }
        assert_eq!(strikes.strikes, 0);
    }

    #[test]
    fn a_connection_without_calls_has_no_reason_to_ping() {
        let (mut strikes, begin) = (strikes(), Instant::now());
        strikes.received(Frame { kind: HEADERS, flags: 0, stream: 1 }, begin);
        strikes.sent(Frame { kind: HEADERS, flags: FLAG_END_STREAM, stream: 1 });
        for minute in 0..5 {
            strikes.received(PINGED, begin + Duration::from_secs(60 * minute));
        }
        assert!(strikes.are_too_many() && strikes.open.is_empty());
    }

    #[tokio::test]
    async fn who_pings_too_often_is_told_and_cut_off() {
        let (mut client, server) = tokio::io::duplex(1 << 10);
        let mut server = Guarded::new(server, Duration::from_secs(5));
        client.write_all(PREFACE).await.expect("room");
        for _ in 0..5 {
            client.write_all(&frame(PING, 0, 0, &[0; 8])).await.expect("room");
        }
        let mut read = Vec::new();
        let error = server.read_to_end(&mut read).await.expect_err("cut off");
        assert_eq!(error.to_string(), "too many pings from the client");
        drop(server);
        let mut told = Vec::new();
        client.read_to_end(&mut told).await.expect("told");
        assert_eq!(told, frame(7, 0, 0, b"\0\0\0\0\0\0\0\x0btoo_many_pings"));
    }

    #[tokio::test]
    async fn other_protocols_pass() {
        let (mut client, server) = tokio::io::duplex(1 << 10);
        let mut server = Guarded::new(server, Duration::from_secs(5));
        client.write_all(b"PRINT / HTTP/1.1\r\n\r\n").await.expect("room");
        drop(client);
        let mut read = String::new();
        server.read_to_string(&mut read).await.expect("as it came");
        assert_eq!(read, "PRINT / HTTP/1.1\r\n\r\n");
    }
}
