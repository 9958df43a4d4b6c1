//! The frames of HTTP/2: heads, kinds, flags and error codes (RFC 9113, §4, §6 and §7).

/// Bytes of a frame's head.
pub(crate) const HEAD_BYTES: usize = 9;
/// Largest payload that is taken and, until a client allows more, sent. It is HTTP/2's default; larger frames gain
/// nothing for messages of a few kilobytes.
pub(crate) const PAYLOAD_MAX: usize = 16 << 10;
/// Largest value that a client may set for the payloads it takes.
pub(crate) const PAYLOAD_LIMIT: usize = (1 << 24) - 1;
/// A flow control window may not exceed it.
pub(crate) const WINDOW_MAX: i64 = (1 << 31) - 1;
/// Both sides' windows until they say otherwise.
pub(crate) const WINDOW_DEFAULT: i64 = 65_535;
/// What a client sends before its first frame.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const PRIORITY: u8 = 2;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PUSH_PROMISE: u8 = 5;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}

pub(crate) mod flag {
    pub(crate) const END_STREAM: u8 = 1;
    pub(crate) const ACK: u8 = 1;
    pub(crate) const END_HEADERS: u8 = 4;
    pub(crate) const PADDED: u8 = 8;
    pub(crate) const PRIORITY: u8 = 0x20;
}

pub(crate) mod setting {
    pub(crate) const ENABLE_PUSH: u16 = 2;
    pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
    pub(crate) const MAX_FRAME_SIZE: u16 = 5;
    pub(crate) const MAX_HEADER_LIST_SIZE: u16 = 6;
}

/// Why a stream or a connection ends: RFC 9113, §7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Reason {
    /// Nothing is wrong.
    NoError = 0,
    /// The other side broke a rule.
    ProtocolError = 1,
    /// This side can't go on.
    InternalError = 2,
    /// More was sent than there was room for.
    FlowControlError = 3,
    /// A frame of a stream whose sender had ended it.
    StreamClosed = 5,
    /// A frame of an impossible size.
    FrameSizeError = 6,
    /// The stream was not looked at.
    RefusedStream = 7,
    /// A header block can't be read; nothing after it can.
    CompressionError = 9,
    /// The other side asks for more work than is sensible.
    EnhanceYourCalm = 11,
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) len: usize,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
}

impl Head {
    pub(crate) fn parse(bytes: [u8; HEAD_BYTES]) -> Self {
        let [l1, l2, l3, kind, flags, s1, s2, s3, s4] = bytes;
        Self {
            len: usize::from(l1) << 16 | usize::from(l2) << 8 | usize::from(l3),
            kind,
            flags,
            stream: u32::from_be_bytes([s1 & 0x7f, s2, s3, s4]),
        }
    }

    pub(crate) fn to_bytes(self) -> [u8; HEAD_BYTES] {
        debug_assert!(self.len <= PAYLOAD_LIMIT, "the length has three bytes");
        let [_, l1, l2, l3] = u32::try_from(self.len).unwrap_or(u32::MAX).to_be_bytes();
        let [s1, s2, s3, s4] = self.stream.to_be_bytes();
        [l1, l2, l3, self.kind, self.flags, s1, s2, s3, s4]
    }

    pub(crate) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// The first four bytes as a number, big endian.
pub(crate) fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_head_comes_back_as_it_was() {
        let head = Head { len: 0x01_02_03, kind: kind::HEADERS, flags: flag::END_HEADERS, stream: 0x7fff_fffd };
        assert_eq!(Head::parse(head.to_bytes()), head);
        assert_eq!(Head::parse([0, 0, 1, 0, 0, 0x80, 0, 0, 1]).stream, 1, "the reserved bit is passed over");
    }
}
