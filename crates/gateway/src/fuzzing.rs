//! What must hold of what clients send, whatever it is. Called by the fuzz targets and by the tests that replay what those
//! have found.

use http::{HeaderMap, HeaderValue};
use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::request_op::Request;
use tailwater_api::write::command::Command;
use tailwater_eventlog::KeyRange;

use crate::status::Fault;
use crate::{checks, maintenance, rpc};

pub use crate::auth::fuzzing::{claims, token};
pub use crate::json::fuzzing::{json_answer, json_request, json_values, methods};
pub use crate::route::fuzzing::{place, reads, watch_head};

/// As `--max-txn-ops` is by default.
const OPS_MAX: usize = 128;

/// Values of headers and of the fields that hold a version or a query.
#[must_use]
pub fn header(data: &[u8]) -> bool {
    let mut known = false;
    if let Ok(value) = HeaderValue::from_bytes(data) {
        known |= place(&value);
        known |= rpc::timeout(&HeaderMap::from_iter([(http::HeaderName::from_static("grpc-timeout"), value)])).is_ok();
    }
    if let Ok(text) = std::str::from_utf8(data) {
        known |= maintenance::major_minor(text).is_some();
        known |= crate::http::Query::parse(text) != crate::http::Query::default();
        known |= crate::methods::find(text).is_ok();
    }
    known
}

/// Whether a client's command comes past the checks of its request.
#[must_use]
pub fn is_let_through(command: &Command) -> bool {
    match command {
        Command::Put(request) => checks::put(request).is_ok(),
        Command::DeleteRange(request) => checks::delete_range(request).is_ok(),
        Command::Txn(request) => checks::txn(request, OPS_MAX).is_ok(),
        _ => true,
    }
}

/// A txn: keys that are written twice are found as etcd finds them, where every key is compared with every other. `true`
/// when it is let through.
///
/// # Panics
/// They are not.
#[must_use]
pub fn txn(request: &pb::TxnRequest) -> bool {
    let found = checks::txn(request, OPS_MAX);
    if matches!(found, Ok(()) | Err(Fault::DuplicateKey)) {
        let twice = compared(&request.success).is_none() || compared(&request.failure).is_none();
        assert_eq!(found.is_err(), twice, "keys written twice in {request:?}");
    }
    found.is_ok()
}

/// Keys put, and ranges deleted, by a list of operations.
type Written = (Vec<bytes::Bytes>, Vec<KeyRange>);

/// `None`: a key is written twice.
fn compared(ops: &[pb::RequestOp]) -> Option<Written> {
    let (mut puts, mut deletes) = Written::default();
    let requests = || ops.iter().filter_map(|op| op.request.as_ref());
    for request in requests() {
        if let Request::RequestDeleteRange(delete) = request {
            deletes.push(match delete.range_end.is_empty() {
                true => KeyRange::Key(delete.key.clone()),
                false => KeyRange::Span(delete.key.clone(), delete.range_end.clone()),
            });
        }
    }
    let is_written = |key: &bytes::Bytes, puts: &[bytes::Bytes], deletes: &[KeyRange]| {
        puts.contains(key) || deletes.iter().any(|range| range.contains(key))
    };
    for request in requests() {
        if let Request::RequestTxn(inner) = request {
            let (success, failure) = (compared(&inner.success)?, compared(&inner.failure)?);
            if success.0.iter().chain(&failure.0).any(|key| is_written(key, &puts, &deletes)) {
                return None;
            }
            puts.extend(success.0.into_iter().chain(failure.0));
            deletes.extend(success.1.into_iter().chain(failure.1));
        }
    }
    for request in requests() {
        if let Request::RequestPut(put) = request {
            if is_written(&put.key, &puts, &deletes) {
                return None;
            }
            puts.push(put.key.clone());
        }
    }
    Some((puts, deletes))
}
