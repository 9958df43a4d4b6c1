//! What must hold of messages as JSON, whatever bytes come.

use bytes::Bytes;
use futures_util::FutureExt as _;

use super::messages::Codec;
use super::split::Splitter;
use crate::methods::METHODS;

/// A stream's values are no longer than this here.
const VALUE_BYTES_MAX: usize = 1 << 10;

/// The paths of all methods, in the order of their table.
pub fn methods() -> impl Iterator<Item = &'static str> {
    METHODS.iter().map(|&(path, _)| path)
}

/// The bytes of a request of the method at `path`, if this is one.
#[must_use]
pub fn json_request(path: &str, json: &[u8]) -> Option<Vec<u8>> {
    Codec::of(path).request(json).ok()
}

/// The answer of the method at `path` as JSON, if this is one.
#[must_use]
pub fn json_answer(path: &str, message: &[u8]) -> Option<Vec<u8>> {
    Codec::of(path).answer(Bytes::copy_from_slice(message)).ok()
}

/// The values of a stream that arrives in pieces of so many bytes, and whether it ends well.
///
/// # Panics
/// Splitting waits though everything is there.
#[must_use]
pub fn json_values(stream: &[u8], piece_bytes: usize) -> (Vec<Bytes>, bool) {
    let pieces = stream.chunks(piece_bytes.max(1)).map(|piece| Ok::<_, String>(Bytes::copy_from_slice(piece)));
    let mut pieces = futures_util::stream::iter(pieces);
    let mut splitter = Splitter::new(VALUE_BYTES_MAX);
    let mut values = Vec::new();
    loop {
        match splitter.next(&mut pieces).now_or_never().expect("the pieces are there") {
            Ok(Some(value)) => values.push(value),
            Ok(None) => return (values, true),
            Err(_) => return (values, false),
        }
    }
}
