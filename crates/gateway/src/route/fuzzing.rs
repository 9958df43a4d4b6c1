//! What must hold of answers that are passed on, whatever bytes come.

use bytes::Bytes;
use http::HeaderValue;
use prost::Message as _;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::grpc::PREFIX_BYTES;

use super::position::Place;
use super::response::{ResponseHead, with_id};
use super::wanted;
use crate::methods;

/// A watch response that gets another id: as any encoder writes it, its head says what the whole message says, and nothing
/// but the id changes. `true` when it was one.
///
/// # Panics
/// That does not hold.
#[must_use]
pub fn watch_head(data: &[u8], watch_id: i64) -> bool {
    let message = Bytes::copy_from_slice(data);
    let head = ResponseHead::parse(&message);
    if let Some(head) = &head {
        let renamed = with_id(&message, head, watch_id).into_iter().flatten().collect::<Vec<_>>().concat();
        let len = u32::try_from(renamed.len() - PREFIX_BYTES).expect("inputs are short");
        assert_eq!(renamed[..PREFIX_BYTES], [&[0][..], &len.to_be_bytes()].concat()[..], "the prefix");
    }
    let Ok(whole) = pb::WatchResponse::decode(message) else { return false };
    // Fields in the order of their numbers, none twice.
    let message = Bytes::from(whole.encode_to_vec());
    let head = ResponseHead::parse(&message).expect("a response as it is encoded");
    let told = (head.watch_id, head.is_created, head.is_canceled, head.compact_revision, head.is_fragment);
    assert_eq!(told, (whole.watch_id, whole.created, whole.canceled, whole.compact_revision, whole.fragment));
    assert_eq!(head.revision, whole.header.as_ref().map_or(0, |header| header.revision));
    let renamed = with_id(&message, &head, watch_id).into_iter().flatten().collect::<Vec<_>>().concat();
    let expected = pb::WatchResponse { watch_id, ..whole };
    assert_eq!(renamed[PREFIX_BYTES..], expected.encode_to_vec()[..]);
    true
}

/// A place in a header.
///
/// # Panics
/// It is another when it is written and read again.
#[must_use]
pub fn place(value: &HeaderValue) -> bool {
    let Some(found) = Place::parse(value) else { return false };
    assert_eq!(Place::parse(&found.to_header()), Some(found));
    true
}

/// What a call reads, as routing sees it.
#[must_use]
pub fn reads(path: &str, message: &[u8]) -> bool {
    let method = methods::find(path).expect("the path of a method");
    wanted::ranges(&method, &Bytes::copy_from_slice(message)).is_ok_and(|wanted| wanted.is_read)
}
