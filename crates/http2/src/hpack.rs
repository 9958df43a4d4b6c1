//! Header compression: RFC 7541.
//!
//! Fields are kept as they are used, parsed once: a client that repeats its headers costs a few reference counts a call.
//! Answers are written without a table of their own; gRPC's are so short that there is little to gain.

use std::collections::VecDeque;

use bytes::{BufMut, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

mod field;
mod huffman;

pub(crate) use field::Field;
use field::STATIC;

/// Room of the table that a client's encoder may use: HTTP/2's default.
const TABLE_BYTES: usize = 4096;
/// What the standard adds to each entry for bookkeeping.
const ENTRY_BYTES: usize = 32;
/// Room for decoding strings that is kept between blocks.
const SCRATCH_BYTES_MAX: usize = 1024;
/// Longest integer that is taken; a header block is far shorter.
const INTEGER_MAX: usize = 1 << 24;

/// A header block can't be read, nor can those after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl From<huffman::Malformed> for Malformed {
    fn from(_: huffman::Malformed) -> Self {
        Self
    }
}

/// Reads header blocks, in the order in which they came.
#[derive(Debug)]
pub(crate) struct Decoder {
    /// The newest first, each with its size.
    entries: VecDeque<(Field, usize)>,
    bytes: usize,
    bytes_max: usize,
    scratch: (Vec<u8>, Vec<u8>),
}

impl Default for Decoder {
    fn default() -> Self {
        Self { entries: VecDeque::new(), bytes: 0, bytes_max: TABLE_BYTES, scratch: Default::default() }
    }
}

impl Decoder {
    /// Hands on the fields of a whole block, each with its size as limits on header lists count it.
    ///
    /// # Errors
    /// The block is malformed; the connection can't go on then.
    pub(crate) fn decode(&mut self, block: &[u8], mut on_field: impl FnMut(Field, usize)) -> Result<(), Malformed> {
        let mut rest = block;
        let mut is_begun = false;
        while let Some(first) = rest.first().copied() {
            if first & 0x80 != 0 {
                let (field, bytes) = self.entry(integer(&mut rest, 7)?)?;
                on_field(field.clone(), *bytes);
            } else if first & 0x40 != 0 {
                let (field, bytes) = self.literal(&mut rest, 6)?;
                self.insert(field.clone(), bytes);
                on_field(field, bytes);
            } else if first & 0x20 != 0 {
                let bytes_max = integer(&mut rest, 5)?;
                if is_begun || bytes_max > TABLE_BYTES {
                    return Err(Malformed);
                }
                self.bytes_max = bytes_max;
                self.evict(0);
                continue;
            } else {
                let (field, bytes) = self.literal(&mut rest, 4)?;
                on_field(field, bytes);
            }
            is_begun = true;
        }
        Ok(())
    }

    fn entry(&self, index: usize) -> Result<&(Field, usize), Malformed> {
        let at = index.checked_sub(1).ok_or(Malformed)?;
        let known = STATIC.get(at).or_else(|| self.entries.get(at - STATIC.len()));
        known.ok_or(Malformed)
    }

    fn literal(&mut self, rest: &mut &[u8], prefix_bits: u32) -> Result<(Field, usize), Malformed> {
        let index = integer(rest, prefix_bits)?;
        // Taken out, so that the table can be looked at meanwhile.
        let (mut name_scratch, mut value_scratch) = std::mem::take(&mut self.scratch);
        let read = if index == 0 {
            let name = string(rest, &mut name_scratch)?;
            let value = string(rest, &mut value_scratch)?;
            (Field::parse(name, value), name.len() + value.len() + ENTRY_BYTES)
        } else {
            let (known, _) = self.entry(index)?;
            let value = string(rest, &mut value_scratch)?;
            (known.with_value(value), known.name_len() + value.len() + ENTRY_BYTES)
        };
        if name_scratch.capacity() + value_scratch.capacity() <= SCRATCH_BYTES_MAX {
            self.scratch = (name_scratch, value_scratch);
        }
        Ok(read)
    }

    fn insert(&mut self, field: Field, bytes: usize) {
        self.evict(bytes);
        // What is larger than the table empties it, and that is all.
        if bytes <= self.bytes_max {
            self.entries.push_front((field, bytes));
            self.bytes += bytes;
        }
    }

    /// Makes room for so many bytes.
    fn evict(&mut self, bytes: usize) {
        while self.bytes + bytes > self.bytes_max
            && let Some((_, evicted)) = self.entries.pop_back()
        {
            self.bytes -= evicted;
        }
    }
}

/// RFC 7541, §5.1.
fn integer(rest: &mut &[u8], prefix_bits: u32) -> Result<usize, Malformed> {
    let mask = (1_usize << prefix_bits) - 1;
    let (first, mut behind) = rest.split_first().ok_or(Malformed)?;
    let mut value = usize::from(*first) & mask;
    if value == mask {
        let mut shift = 0;
        loop {
            let (byte, next) = behind.split_first().ok_or(Malformed)?;
            behind = next;
            value += usize::from(byte & 0x7f) << shift;
            shift += 7;
            if value > INTEGER_MAX || shift > 28 {
                return Err(Malformed);
            }
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    *rest = behind;
    Ok(value)
}

/// RFC 7541, §5.2; decoded into `scratch` where it is coded.
fn string<'s, 'b: 's>(rest: &mut &'b [u8], scratch: &'s mut Vec<u8>) -> Result<&'s [u8], Malformed> {
    let is_coded = rest.first().is_some_and(|first| first & 0x80 != 0);
    let len = integer(rest, 7)?;
    let (bytes, behind) = rest.split_at_checked(len).ok_or(Malformed)?;
    *rest = behind;
    if !is_coded {
        return Ok(bytes);
    }
    scratch.clear();
    huffman::decode(bytes, scratch)?;
    Ok(scratch)
}

/// Appends the block of an answer's head.
pub(crate) fn encode_head(out: &mut BytesMut, status: StatusCode, headers: &HeaderMap) {
    // Places of the standard's table.
    let index = match status.as_u16() {
        200 => 8,
        204 => 9,
        206 => 10,
        304 => 11,
        400 => 12,
        404 => 13,
        500 => 14,
        _ => 0,
    };
    if index > 0 {
        out.put_u8(0x80 | index);
    } else {
        // A new value with the name of entry 8.
        out.put_u8(8);
        put_string(out, status.as_str().as_bytes());
    }
    encode(out, headers);
}

/// Appends a block of headers, or of trailers. Those that HTTP/2 does not have are left out.
pub(crate) fn encode(out: &mut BytesMut, headers: &HeaderMap) {
    for (name, value) in headers.iter().filter(|(name, _)| !is_of_a_connection(name)) {
        put_field(out, name, value);
    }
}

fn put_field(out: &mut BytesMut, name: &HeaderName, value: &HeaderValue) {
    if *name == http::header::CONTENT_TYPE {
        // The name of entry 31: fifteen, and sixteen more.
        out.put_slice(&[0x0f, 0x10]);
    } else {
        out.put_u8(0);
        put_string(out, name.as_str().as_bytes());
    }
    put_string(out, value.as_bytes());
}

fn put_string(out: &mut BytesMut, bytes: &[u8]) {
    let mut rest = bytes.len();
    if rest < 0x7f {
        out.put_u8(u8::try_from(rest).unwrap_or(0x7e));
    } else {
        out.put_u8(0x7f);
        rest -= 0x7f;
        while rest >= 0x80 {
            out.put_u8(0x80 | u8::try_from(rest & 0x7f).unwrap_or_default());
            rest >>= 7;
        }
        out.put_u8(u8::try_from(rest).unwrap_or_default());
    }
    out.put_slice(bytes);
}

/// Headers that say how a connection of HTTP/1.1 is used.
pub(crate) fn is_of_a_connection(name: &HeaderName) -> bool {
    const NAMES: [&str; 5] = ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"];
    NAMES.contains(&name.as_str())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn regular(name: &str, value: &str) -> Field {
        Field::parse(name.as_bytes(), value.as_bytes())
    }

    fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<Field>, Malformed> {
        let mut fields = Vec::new();
        decoder.decode(block, |field, _| fields.push(field))?;
        Ok(fields)
    }

    /// RFC 7541, appendix C.4: three requests on one connection.
    #[test]
    fn the_examples_of_the_standard() {
        let mut decoder = Decoder::default();
        let head = |path: &str| {
            vec![
                regular(":method", "GET"),
                regular(":scheme", "http"),
                regular(":path", path),
                regular(":authority", "www.example.com"),
            ]
        };
        let first =
            [0x82, 0x86, 0x84, 0x41, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(decode(&mut decoder, &first).unwrap(), head("/"));
        assert_eq!(decoder.bytes, 57);
        let second = [0x82, 0x86, 0x84, 0xbe, 0x58, 0x86, 0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf];
        let mut expected = head("/");
        expected.push(regular("cache-control", "no-cache"));
        assert_eq!(decode(&mut decoder, &second).unwrap(), expected);
        assert_eq!(decoder.bytes, 110);
        let third = [
            0x82, 0x87, 0x85, 0xbf, 0x40, 0x88, 0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xa9, 0x7d, 0x7f, 0x89, 0x25, 0xa8, 0x49,
            0xe9, 0x5b, 0xb8, 0xe8, 0xb4, 0xbf,
        ];
        let mut expected = head("/index.html");
        expected[1] = regular(":scheme", "https");
        expected.push(regular("custom-key", "custom-value"));
        assert_eq!(decode(&mut decoder, &third).unwrap(), expected);
        assert_eq!((decoder.bytes, decoder.entries.len()), (164, 3));
    }

    #[test]
    fn the_table_has_a_bound_that_a_client_may_lower() {
        let mut decoder = Decoder::default();
        for nth in 0..200 {
            let value = format!("{nth:04}");
            let mut block = BytesMut::from(&[0x40][..]);
            put_string(&mut block, b"name");
            put_string(&mut block, value.as_bytes());
            decode(&mut decoder, &block).unwrap();
            assert!(decoder.bytes <= TABLE_BYTES);
        }
        assert_eq!(decoder.entries.len(), TABLE_BYTES / 40);
        assert_eq!(decode(&mut decoder, &[0xbe]).unwrap(), [regular("name", "0199")]);
        assert_eq!(decode(&mut decoder, &[0x20 | 30]).unwrap(), []);
        assert_eq!((decoder.bytes, decoder.entries.len()), (0, 0));
        assert_eq!(decode(&mut decoder, &[0xbe]), Err(Malformed), "it is gone");
    }

    #[test]
    fn what_can_not_be_read_is_refused() {
        let blocks: [&[u8]; 10] = [
            &[0x80],                               // entry 0
            &[0xbe],                               // an entry that is not there
            &[0xff],                               // a number without its end
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], // a number beyond all limits
            &[0x00],                               // a field without a name
            &[0x00, 0x01],                         // a name without its bytes
            &[0x00, 0x01, b'a'],                   // a field without a value
            &[0x82, 0x20],                         // a size after a field
            &[0x3f, 0xe2, 0x1f],                   // a size above ours
            &[0x00, 0x82, 0xff, 0xff, 0x00],       // a name that is no Huffman code
        ];
        for block in blocks {
            assert_eq!(decode(&mut Decoder::default(), block), Err(Malformed), "{block:x?}");
        }
    }

    #[test]
    fn heads_are_read_as_they_were_written() {
        for status in [200, 204, 206, 304, 400, 404, 500, 431, 503] {
            let status = StatusCode::from_u16(status).unwrap();
            let long = "v".repeat(40_000);
            let mut headers = HeaderMap::new();
            headers.insert("content-type", HeaderValue::from_static("application/grpc"));
            headers.insert("grpc-message", HeaderValue::from_str(&long).unwrap());
            headers.insert("connection", HeaderValue::from_static("close"));
            let mut block = BytesMut::new();
            encode_head(&mut block, status, &headers);
            let mut read = Vec::new();
            Decoder::default().decode(&block, |field, bytes| read.push((field, bytes))).unwrap();
            // A request can't have a status; that it is one is all that the field tells.
            assert!(matches!(read[0].0, Field::Malformed(7)), "{:?}", read[0]);
            assert_eq!(read[1], (regular("content-type", "application/grpc"), 60));
            assert_eq!(read[2], (regular("grpc-message", &long), 40_044));
            assert_eq!(read.len(), 3);
        }
    }
}
