//! gRPC's framing, for requests that are read, and answers that are written, without a codec in between.
//!
//! A message travels as five bytes (a compression flag and a length, big endian) and its payload, in HTTP/2 data
//! frames that may be cut anywhere; a call ends with trailers. [`FrameDecoder`] does the cutting, [`RequestStream`] and
//! [`collect_unary`] apply it to a body, [`trailers`] writes the end.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};
use http_body::Body;

/// Bytes in front of each message: a compression flag and the length, big endian.
pub const PREFIX_BYTES: usize = 5;

/// Appends the prefix of an uncompressed message of `len` bytes.
///
/// # Panics
/// When `len` does not fit 32 bits; gRPC has no larger messages.
pub fn put_prefix(out: &mut impl BufMut, len: usize) {
    out.put_u8(0);
    out.put_u32(u32::try_from(len).expect("a gRPC message has at most 4 GiB"));
}

/// A request can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A message is above the limit.
    #[error("message of {len} bytes, at most {max} are taken")]
    Oversize {
        /// As its prefix says.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The compression flag is set; no compression was agreed on.
    #[error("message is compressed")]
    Compressed,
    /// The flag byte is neither 0 nor 1.
    #[error("malformed message prefix: flag {0}")]
    Flag(u8),
    /// The client ended its side inside a message.
    #[error("request ended inside a message")]
    Truncated,
    /// A unary call carried no message.
    #[error("request without a message")]
    Missing,
    /// The transport failed, or the client reset the call.
    #[error("transport: {0}")]
    Transport(String),
}

/// Cuts a byte stream into messages. Holds at most one message and one piece of what follows; payloads that arrive in
/// one piece are not copied.
#[derive(Debug)]
pub struct FrameDecoder {
    /// What comes first: most messages are in one piece.
    front: Bytes,
    /// What follows; nothing while the front is empty.
    pieces: VecDeque<Bytes>,
    buffered: usize,
    message_bytes_max: usize,
}

impl FrameDecoder {
    /// Takes messages of at most `message_bytes_max` bytes.
    #[must_use]
    pub fn new(message_bytes_max: usize) -> Self {
        Self { front: Bytes::new(), pieces: VecDeque::new(), buffered: 0, message_bytes_max }
    }

    /// Adds what arrived.
    pub fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.buffered += piece.len();
            match self.front.is_empty() {
                true => self.front = piece,
                false => self.pieces.push_back(piece),
            }
        }
    }

    /// The next whole message; `None` when more bytes are needed.
    ///
    /// # Errors
    /// `Oversize`, `Compressed` and `Flag`, as soon as the prefix is there; the stream can't be continued then.
    pub fn next_message(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some(prefix) = self.prefix() else { return Ok(None) };
        match prefix[0] {
            0 => {}
            1 => return Err(FrameError::Compressed),
            flag => return Err(FrameError::Flag(flag)),
        }
        let len = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        if len > self.message_bytes_max {
            return Err(FrameError::Oversize { len, max: self.message_bytes_max });
        }
        if self.buffered < PREFIX_BYTES + len {
            return Ok(None);
        }
        self.skip(PREFIX_BYTES);
        Ok(Some(self.take(len)))
    }

    /// Whether the stream may end here.
    #[must_use]
    pub fn is_at_boundary(&self) -> bool {
        self.buffered == 0
    }

    fn prefix(&self) -> Option<[u8; PREFIX_BYTES]> {
        if self.buffered < PREFIX_BYTES {
            return None;
        }
        let mut prefix = [0; PREFIX_BYTES];
        if let Some(whole) = self.front.first_chunk() {
            return Some(*whole);
        }
        let bytes = self.front.iter().chain(self.pieces.iter().flatten());
        prefix.iter_mut().zip(bytes).for_each(|(slot, byte)| *slot = *byte);
        Some(prefix)
    }

    /// Takes `len` bytes that are known to be there.
    fn take(&mut self, len: usize) -> Bytes {
        self.buffered -= len;
        if self.front.len() >= len {
            let taken = self.front.split_to(len);
            self.refill();
            return taken;
        }
        let mut whole = BytesMut::with_capacity(len);
        while whole.len() < len {
            let part = self.front.len().min(len - whole.len());
            whole.put_slice(&self.front.split_to(part));
            self.refill();
        }
        whole.freeze()
    }

    /// Passes over `len` bytes that are known to be there.
    fn skip(&mut self, mut len: usize) {
        self.buffered -= len;
        while len > 0 {
            let part = self.front.len().min(len);
            self.front.advance(part);
            len -= part;
            self.refill();
        }
    }

    fn refill(&mut self) {
        if self.front.is_empty() {
            self.front = self.pieces.pop_front().unwrap_or_default();
        }
    }
}

/// The messages of a request body. It is polled, so that nothing is read before there is room for its answer.
#[derive(Debug)]
pub struct RequestStream<B> {
    body: B,
    decoder: FrameDecoder,
    ended: bool,
}

impl<B> RequestStream<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    /// Reads messages of at most `message_bytes_max` bytes from `body`.
    pub fn new(body: B, message_bytes_max: usize) -> Self {
        Self { body, decoder: FrameDecoder::new(message_bytes_max), ended: false }
    }

    /// The next message; `None` once the client has ended its side, and from then on.
    ///
    /// # Errors
    /// See [`FrameError`]; the stream can't be continued after one.
    pub fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, FrameError>> {
        loop {
            if let Some(message) = self.decoder.next_message()? {
                return Poll::Ready(Ok(Some(message)));
            }
            if self.ended {
                return Poll::Ready(if self.decoder.is_at_boundary() { Ok(None) } else { Err(FrameError::Truncated) });
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => self.ended = true,
                Some(Err(error)) => return Poll::Ready(Err(FrameError::Transport(error.to_string()))),
                Some(Ok(frame)) => {
                    if let Ok(piece) = frame.into_data() {
                        self.decoder.push(piece);
                    }
                }
            }
        }
    }

    /// As [`RequestStream::poll_message`]. Cancel safe.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub async fn message(&mut self) -> Result<Option<Bytes>, FrameError> {
        std::future::poll_fn(|cx| self.poll_message(cx)).await
    }

    /// Drops what still comes until the client ends its side.
    ///
    /// # Errors
    /// `Transport`.
    async fn drain(&mut self) -> Result<(), FrameError> {
        std::future::poll_fn(|cx| {
            while !self.ended {
                match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                    None => self.ended = true,
                    Some(Err(error)) => return Poll::Ready(Err(FrameError::Transport(error.to_string()))),
                    Some(Ok(_)) => {}
                }
            }
            Poll::Ready(Ok(()))
        })
        .await
    }
}

/// Reads the message of a unary call. What a client sends after it is not looked at, as in grpc-go; but it is read to
/// its end, since the transport would otherwise reset a stream whose end is only on its way.
///
/// # Errors
/// See [`FrameError`].
pub async fn collect_unary<B>(body: B, message_bytes_max: usize) -> Result<Bytes, FrameError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let mut requests = RequestStream::new(body, message_bytes_max);
    let message = requests.message().await?.ok_or(FrameError::Missing)?;
    requests.drain().await?;
    Ok(message)
}

/// The trailers that end a call: `grpc-status`, and `grpc-message` unless it is empty.
///
/// # Panics
/// Never: a percent-encoded text is a valid header value.
#[must_use]
pub fn trailers(code: i32, message: &str) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(2);
    map.insert("grpc-status", status_value(code));
    if !message.is_empty() {
        let value = HeaderValue::from_str(&percent_encode(message)).expect("percent encoding leaves printable ASCII");
        map.insert("grpc-message", value);
    }
    map
}

fn status_value(code: i32) -> HeaderValue {
    const CODES: [&str; 17] =
        ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16"];
    let known = usize::try_from(code).ok().and_then(|code| CODES.get(code));
    known.map_or_else(|| HeaderValue::from(code), |code| HeaderValue::from_static(code))
}

/// Encodes a status message as gRPC asks: bytes outside printable ASCII, and `%`, as `%XX`.
#[must_use]
pub fn percent_encode(message: &str) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = String::with_capacity(message.len());
    for byte in message.bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
    out
}

/// Decodes what [`percent_encode`] encodes; what is no escape stays as it is.
#[must_use]
pub fn percent_decode(message: &[u8]) -> String {
    let mut out = Vec::with_capacity(message.len());
    let mut rest = message;
    while let Some((&byte, behind)) = rest.split_first() {
        let digit = |at: usize| behind.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        let escaped = (byte == b'%').then(|| Some(digit(0)? * 16 + digit(1)?)).flatten();
        match escaped.and_then(|byte| u8::try_from(byte).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &behind[2..];
            }
            None => {
                out.push(byte);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put_prefix(&mut out, payload.len());
        out.extend_from_slice(payload);
        out
    }

    #[test]
    fn messages_are_found_however_the_bytes_are_cut() {
        let mut stream = framed(b"first");
        stream.extend(framed(b""));
        stream.extend(framed(&[7; 300]));
        for step in 1..=stream.len() {
            let mut decoder = FrameDecoder::new(300);
            let mut found = Vec::new();
            for piece in stream.chunks(step) {
                decoder.push(Bytes::copy_from_slice(piece));
                while let Some(message) = decoder.next_message().expect("well-formed") {
                    found.push(message);
                }
            }
            assert!(decoder.is_at_boundary(), "step {step}");
            assert_eq!(found, [&b"first"[..], b"", &[7; 300]], "step {step}");
        }
    }

    #[test]
    fn a_message_is_refused_by_its_prefix_alone() {
        let cases: [(&[u8], FrameError); 3] = [
            (&[0, 0, 0, 1, 1], FrameError::Oversize { len: 257, max: 256 }),
            (&[1, 0, 0, 0, 1], FrameError::Compressed),
            (&[9, 0, 0, 0, 1], FrameError::Flag(9)),
        ];
        for (bytes, error) in cases {
            let mut decoder = FrameDecoder::new(256);
            decoder.push(Bytes::copy_from_slice(bytes));
            assert_eq!(decoder.next_message(), Err(error));
        }
    }

    #[test]
    fn a_cut_prefix_is_not_a_boundary() {
        let mut decoder = FrameDecoder::new(256);
        decoder.push(Bytes::from_static(&[0, 0, 0]));
        assert_eq!(decoder.next_message(), Ok(None));
        assert!(!decoder.is_at_boundary());
    }

    #[test]
    fn any_text_can_be_a_status_message() {
        assert_eq!(percent_encode("etcdserver: no leader"), "etcdserver: no leader");
        assert_eq!(percent_encode("100%\n\u{e9}"), "100%25%0A%C3%A9");
        assert_eq!(percent_decode(b"100%25%0A%C3%A9"), "100%\n\u{e9}");
        assert_eq!(percent_decode(b"50% %zz %4"), "50% %zz %4");
        let map = trailers(14, "a\r\nb");
        assert_eq!(map["grpc-status"], "14");
        assert_eq!(map["grpc-message"], "a%0D%0Ab");
        assert!(!trailers(0, "").contains_key("grpc-message"));
    }
}
