//! gRPC's framing, for answers whose bytes exist already.

use bytes::BufMut;

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
