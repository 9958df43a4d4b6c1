//! What must hold of messages of the write plane, whatever bytes come.

use prost::Message as _;
use tailwater_api::write::{self as pb, write_response::Response};

use super::codec::{
    Failed, decode_applied, decode_failure, decode_lease, encode_applied, encode_error, encode_lease, failure,
};

/// The answer to a request of the write plane.
///
/// # Panics
/// It is another when it is sent on.
#[must_use]
pub fn write_answer(data: &[u8]) -> bool {
    let Ok(message) = pb::WriteResponse::decode(data) else { return false };
    match message.response {
        Some(Response::Applied(applied)) => decode_applied(applied).is_some_and(|found| {
            assert_eq!(decode_applied(encode_applied(found.clone())), Some(found));
            true
        }),
        Some(Response::Failure(found)) => {
            let first = decode_failure(found);
            if let Failed::Error(error) = &first {
                let again = decode_failure(encode_error(error));
                assert_eq!(format!("{again:?}"), format!("{first:?}"));
                assert!(matches!(failure(error), Response::Failure(_)));
            }
            true
        }
        Some(Response::TimeToLive(pb::LeaseRemaining { lease: Some(lease) })) => {
            let found = decode_lease(lease);
            assert_eq!(decode_lease(encode_lease(found.clone())), found);
            true
        }
        other => other.is_some(),
    }
}
