//! Files as inputs: a real file that the input changes here and there, so that short inputs reach deep places.

/// Bytes of one change: where (two bytes), how, and by what.
pub(crate) const PATCH_BYTES: usize = 4;

/// A copy of `base` with the changes of `patches`.
pub(crate) fn patched(base: &[u8], patches: &[u8]) -> Vec<u8> {
    let mut bytes = base.to_vec();
    for patch in patches.chunks_exact(PATCH_BYTES) {
        let (at, how, value) = (usize::from(u16::from_le_bytes([patch[0], patch[1]])), patch[2], patch[3]);
        if at >= bytes.len() {
            continue;
        }
        match how % 5 {
            0 => bytes[at] = value,
            1 => bytes[at] = bytes[at].wrapping_add(value),
            2 => bytes[at] ^= 1 << (value & 7),
            3 => {
                let end = bytes.len().min(at + usize::from(how / 5));
                bytes[at..end].fill(value);
            }
            _ => bytes.truncate(at),
        }
    }
    bytes
}
