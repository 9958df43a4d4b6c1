//! gRPC's framing: messages are the same however their bytes are cut.

use bytes::Bytes;
use tailwater_api::grpc::{
    FrameDecoder, FrameError, PREFIX_BYTES, percent_decode, percent_encode, put_prefix, trailers,
};

/// Longer messages are refused.
const MESSAGE_BYTES_MAX: usize = 64;

/// The first byte says into how long pieces the rest is cut.
pub(crate) fn check(data: &[u8]) -> bool {
    let Some((&piece, stream)) = data.split_first() else { return false };
    let whole = decode(stream, stream.len().max(1));
    let cut = decode(stream, usize::from(piece).max(1));
    assert_eq!(whole, cut, "pieces of {piece} bytes");
    let mut again = Vec::new();
    for message in &whole.0 {
        put_prefix(&mut again, message.len());
        again.extend_from_slice(message);
    }
    assert!(stream.starts_with(&again), "messages {:?} of {stream:?}", whole.0);
    assert_eq!(whole.1 == Ok(true), again.len() == stream.len(), "the end of {stream:?}");
    check_texts(stream);
    !whole.0.is_empty()
}

/// The messages, and whether the stream may end then.
fn decode(stream: &[u8], piece: usize) -> (Vec<Bytes>, Result<bool, FrameError>) {
    let mut decoder = FrameDecoder::new(MESSAGE_BYTES_MAX);
    let mut messages = Vec::new();
    for piece in stream.chunks(piece) {
        decoder.push(Bytes::copy_from_slice(piece));
        loop {
            match decoder.next_message() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Err(error)),
            }
        }
    }
    (messages, Ok(decoder.is_at_boundary()))
}

/// Texts of a status.
fn check_texts(data: &[u8]) {
    let decoded = percent_decode(data);
    assert_eq!(percent_decode(percent_encode(&decoded).as_bytes()), decoded);
    let trailers = trailers(i32::from(data.first().copied().unwrap_or_default()), &decoded);
    let told = trailers.get("grpc-message").map(|text| percent_decode(text.as_bytes())).unwrap_or_default();
    assert_eq!(told, decoded, "the text in the trailers");
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let framed = |messages: &[&[u8]]| {
        let mut out = Vec::new();
        for message in messages {
            put_prefix(&mut out, message.len());
            out.extend_from_slice(message);
        }
        out
    };
    let stream = framed(&[b"first", b"", &[7; MESSAGE_BYTES_MAX]]);
    let mut oversize = framed(&[b"a"]);
    oversize.extend([0, 0, 0, 1, 1]);
    let mut compressed = framed(&[b"b%20"]);
    compressed.extend([1, 0, 0, 0, 0]);
    let cut = stream[..stream.len() - PREFIX_BYTES].to_vec();
    [(3, stream), (1, oversize), (4, compressed), (255, cut)]
        .map(|(piece, stream)| [vec![piece], stream].concat())
        .into()
}
