//! HPACK's Huffman code (RFC 7541, §5.2 and Appendix B).
//!
//! The code is canonical: codes of one length are consecutive numbers in the order of their symbols, and each length
//! begins where the one before it ended. So the lengths are the whole table.

use std::sync::LazyLock;

/// The symbol that ends a string, which no encoder may write.
const END: u16 = 256;
const LEN_MIN: u32 = 5;
const LEN_MAX: u32 = 30;

/// Bits of the code of each byte, and of the end.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// The codes of one length.
#[derive(Clone, Copy)]
struct Length {
    bits: u32,
    /// Windows of 32 bits below this one begin with a code of this length, or of a shorter one.
    below: u64,
    /// The first code, and where its symbol stands in [`Tables::symbols`].
    first: u32,
    at: usize,
}

struct Tables {
    lengths: Vec<Length>,
    /// By length, then by value.
    symbols: Vec<u16>,
}

static TABLES: LazyLock<Tables> = LazyLock::new(|| {
    let (mut lengths, mut symbols) = (Vec::new(), Vec::new());
    let mut code = 0_u32;
    for bits in LEN_MIN..=LEN_MAX {
        code <<= u32::from(bits > LEN_MIN);
        let (first, at) = (code, symbols.len());
        symbols.extend((0..=END).filter(|symbol| u32::from(LENGTHS[usize::from(*symbol)]) == bits));
        code += u32::try_from(symbols.len() - at).expect("257 symbols");
        if symbols.len() > at {
            lengths.push(Length { bits, below: u64::from(code) << (32 - bits), first, at });
        }
    }
    Tables { lengths, symbols }
});

/// A string is not what an encoder writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Appends what `coded` stands for.
///
/// # Errors
/// The end symbol is in it, or it does not end in at most seven one bits.
pub(crate) fn decode(coded: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let tables = &*TABLES;
    // The bits that were read and not yet used, at the low end.
    let (mut held, mut held_bits) = (0_u64, 0_u32);
    let mut bytes = coded.iter();
    loop {
        while held_bits <= 32
            && let Some(byte) = bytes.next()
        {
            held = held << 8 | u64::from(*byte);
            held_bits += 8;
        }
        if held_bits == 0 {
            return Ok(());
        }
        // As 32 bits, with ones where nothing is left: those are the beginning of the end symbol.
        let missing = 32_u32.saturating_sub(held_bits);
        let window = (held << missing | ((1 << missing) - 1)) >> held_bits.saturating_sub(32) & 0xffff_ffff;
        let length = tables.lengths.iter().find(|length| window < length.below).ok_or(Malformed)?;
        if length.bits > held_bits {
            // What is left is too short for a code: padding, or a string that was cut off.
            let is_padding = held_bits < 8 && held & ((1 << held_bits) - 1) == (1 << held_bits) - 1;
            return if is_padding { Ok(()) } else { Err(Malformed) };
        }
        let code = u32::try_from(window >> (32 - length.bits)).map_err(|_| Malformed)?;
        let symbol = tables.symbols[length.at + (code - length.first) as usize];
        out.push(u8::try_from(symbol).map_err(|_| Malformed)?);
        held_bits -= length.bits;
        held &= (1 << held_bits) - 1;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn decoded(coded: &[u8]) -> Result<String, Malformed> {
        let mut out = Vec::new();
        decode(coded, &mut out).map(|()| String::from_utf8(out).expect("ASCII"))
    }

    /// Bits as they are, the last byte filled with ones.
    fn packed(symbols: impl IntoIterator<Item = u16>) -> Vec<u8> {
        let mut bits = String::new();
        for symbol in symbols {
            let at = TABLES.symbols.iter().position(|known| *known == symbol).expect("all are there");
            let length = TABLES.lengths.iter().rfind(|length| length.at <= at).expect("the first begins at 0");
            let code = length.first as usize + at - length.at;
            bits.push_str(&format!("{code:0width$b}", width = length.bits as usize));
        }
        while !bits.len().is_multiple_of(8) {
            bits.push('1');
        }
        bits.as_bytes().chunks(8).map(|byte| byte.iter().fold(0, |sum, bit| sum << 1 | (bit - b'0'))).collect()
    }

    #[test]
    fn the_examples_of_the_standard() {
        assert_eq!(
            decoded(&[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff]).unwrap(),
            "www.example.com"
        );
        assert_eq!(decoded(&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf]).unwrap(), "no-cache");
        assert_eq!(decoded(&[0x64, 0x02]).unwrap(), "302");
        let date = [
            0xd0, 0x7a, 0xbe, 0x94, 0x10, 0x54, 0xd4, 0x44, 0xa8, 0x20, 0x05, 0x95, 0x04, 0x0b, 0x81, 0x66, 0xe0, 0x82,
            0xa6, 0x2d, 0x1b, 0xff,
        ];
        assert_eq!(decoded(&date).unwrap(), "Mon, 21 Oct 2013 20:13:21 GMT");
        assert_eq!(decoded(&[]).unwrap(), "");
    }

    #[test]
    fn every_byte_comes_back() {
        let all: Vec<u8> = (0..=255).chain((0..=255).rev()).collect();
        let mut out = Vec::new();
        decode(&packed(all.iter().map(|byte| u16::from(*byte))), &mut out).unwrap();
        assert_eq!(out, all);
    }

    #[test]
    fn what_no_encoder_writes_is_refused() {
        for coded in [&packed([END])[..], &[0xff, 0xff], &[0xff, 0xff, 0xff, 0xff, 0xff], &[0x64, 0x02, 0xff], &[0x00]]
        {
            assert!(decoded(coded).is_err(), "{coded:x?}");
        }
    }
}
