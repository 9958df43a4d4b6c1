//! Where the parts of an event stand in its bytes.

use std::ops::Range;

use tailwater_api::wire;

use super::{
    EVENT_KV, EVENT_TYPE, EventKind, KV_CREATE_REVISION, KV_KEY, KV_LEASE, KV_MOD_REVISION, KV_VALUE, KV_VERSION,
};

/// Why bytes of an event are as they must be.
const CHECKED: &str = "the bytes were encoded here or checked when read";
/// How the type of an event begins; one byte, and so is its value.
#[expect(clippy::cast_possible_truncation, reason = "a small field's tag is one byte")]
const TYPE_TAG: u8 = (EVENT_TYPE << 3 | wire::VARINT) as u8;

/// What a walk over the bytes finds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) mod_revision: i64,
    pub(super) create_revision: i64,
    pub(super) version: i64,
    pub(super) lease: i64,
    pub(super) value: Range<usize>,
}

impl Layout {
    /// Walks the bytes and accepts only the one encoding that [`super::Event`] produces: fields in order, zero
    /// values left out, varints as short as possible, nothing behind.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let mut rest = Reader { bytes, at: 0 };
        let kind = match rest.uint_field(EVENT_TYPE)? {
            0 => EventKind::Put,
            1 => EventKind::Delete,
            _ => return Err("unknown event type"),
        };
        let kv_len = rest.bytes_header(EVENT_KV)?.ok_or("no key-value")?;
        if kv_len != bytes.len() - rest.at {
            return Err("key-value does not end with the event");
        }
        rest.bytes_field(KV_KEY)?;
        let create_revision = rest.uint_field(KV_CREATE_REVISION)?;
        let mod_revision = signed(rest.uint_field(KV_MOD_REVISION)?);
        let version = rest.uint_field(KV_VERSION)?;
        let value = rest.bytes_field(KV_VALUE)?;
        let lease = rest.uint_field(KV_LEASE)?;
        if rest.at != bytes.len() {
            return Err("unknown field or wrong order");
        }
        if kind == EventKind::Delete && (create_revision != 0 || version != 0 || value.1 != 0 || lease != 0) {
            return Err("a delete with more than key and revision");
        }
        Ok(Self {
            mod_revision,
            create_revision: signed(create_revision),
            version: signed(version),
            lease: signed(lease),
            value: value.0..value.0 + value.1,
        })
    }

    /// Of bytes that were encoded here or checked before.
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self::parse(bytes).expect(CHECKED)
    }
}

/// The kind, of checked bytes: that of a put is left out, since it is zero.
pub(super) fn kind(bytes: &[u8]) -> EventKind {
    if bytes[0] == TYPE_TAG { EventKind::Delete } else { EventKind::Put }
}

/// Where the key-value begins, behind its tag and length, of checked bytes.
pub(super) fn key_value_start(bytes: &[u8]) -> usize {
    let at = if bytes[0] == TYPE_TAG { 2 } else { 0 };
    let mut rest = Reader { bytes, at };
    rest.bytes_header(EVENT_KV).expect(CHECKED);
    rest.at
}

/// Where the key stands, of checked bytes: asked most often, so nothing behind it is looked at.
pub(super) fn key(bytes: &[u8]) -> Range<usize> {
    let mut rest = Reader { bytes, at: key_value_start(bytes) };
    let (start, len) = rest.bytes_field(KV_KEY).expect(CHECKED);
    start..start + len
}

/// What stands before and behind the value (its tag and length with it) in the key-value, of checked bytes.
pub(super) fn around_value(bytes: &[u8]) -> (Range<usize>, Range<usize>) {
    let start = key_value_start(bytes);
    let mut rest = Reader { bytes, at: start };
    rest.bytes_field(KV_KEY).expect(CHECKED);
    for field in [KV_CREATE_REVISION, KV_MOD_REVISION, KV_VERSION] {
        rest.skip_uint_field(field);
    }
    let end = rest.at;
    rest.bytes_field(KV_VALUE).expect(CHECKED);
    (start..end, rest.at..bytes.len())
}

#[expect(clippy::cast_possible_wrap, reason = "int64 is encoded as its two's complement")]
fn signed(value: u64) -> i64 {
    value as i64
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn varint(&mut self) -> Result<u64, &'static str> {
        let begin = self.at;
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.bytes.get(self.at).ok_or("a varint is cut")?;
            self.at += 1;
            if shift == 63 && byte > 1 {
                return Err("a varint is above 64 bits");
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                let shortest = self.at - begin == wire::varint_len(value);
                return if shortest { Ok(value) } else { Err("a varint is longer than needed") };
            }
        }
        Err("a varint is above 64 bits")
    }

    /// Steps over the tag when it comes next. Every tag here is one byte.
    fn tag(&mut self, field: u32, wire_type: u32) -> bool {
        let here = self.bytes.get(self.at).is_some_and(|byte| u32::from(*byte) == field << 3 | wire_type);
        self.at += usize::from(here);
        here
    }

    /// A varint field, 0 when it is left out.
    fn uint_field(&mut self, field: u32) -> Result<u64, &'static str> {
        if !self.tag(field, wire::VARINT) {
            return Ok(0);
        }
        match self.varint()? {
            0 => Err("a zero is written out"),
            value => Ok(value),
        }
    }

    /// Steps over a varint field of checked bytes.
    fn skip_uint_field(&mut self, field: u32) {
        if self.tag(field, wire::VARINT) {
            self.at += 1 + self.bytes[self.at..].iter().take_while(|byte| **byte >= 0x80).count();
        }
    }

    /// The length of a length-delimited field, `None` when it is left out.
    fn bytes_header(&mut self, field: u32) -> Result<Option<usize>, &'static str> {
        if !self.tag(field, wire::BYTES) {
            return Ok(None);
        }
        let len = usize::try_from(self.varint()?).map_err(|_| "a length is above memory")?;
        if len > self.bytes.len() - self.at { Err("a field is cut") } else { Ok(Some(len)) }
    }

    /// Start and length of a bytes field that is left out when empty.
    fn bytes_field(&mut self, field: u32) -> Result<(usize, usize), &'static str> {
        match self.bytes_header(field)? {
            None => Ok((self.at, 0)),
            Some(0) => Err("an empty field is written out"),
            Some(len) => {
                let start = self.at;
                self.at += len;
                Ok((start, len))
            }
        }
    }
}
