//! What a call reads, so that a replica is chosen that holds it.

use bytes::Bytes;
use prost::Message;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::request_op::Request;
use tailwater_eventlog::KeyRange;

use crate::methods::Method;
use crate::status::Fault;
use crate::txn;

/// What a unary call, or one that is answered by a stream, needs of a replica.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// All of these must be held by the one that answers.
    pub(super) ranges: Vec<KeyRange>,
    /// Whether it changes nothing, as far as its message says.
    pub(super) is_read: bool,
}

/// Decodes what routing needs. A txn that writes is evaluated where the leader is, whatever it reads.
///
/// # Errors
/// The message is not what the method takes.
pub(super) fn ranges(method: &Method, message: &Bytes) -> Result<Wanted, Fault> {
    let malformed = |error: prost::DecodeError| Fault::malformed(&error);
    match method.path {
        "/etcdserverpb.KV/Range" | "/etcdserverpb.KV/RangeStream" => {
            let request = pb::RangeRequest::decode(message.clone()).map_err(malformed)?;
            Ok(Wanted { ranges: vec![KeyRange::from_etcd(request.key, request.range_end)], is_read: true })
        }
        "/etcdserverpb.KV/Txn" => {
            let request = pb::TxnRequest::decode(message.clone()).map_err(malformed)?;
            if !txn::is_read_only(&request) {
                return Ok(Wanted::default());
            }
            let compared = request.compare.into_iter().map(|compare| (compare.key, compare.range_end));
            let ops = request.success.into_iter().chain(request.failure);
            let read = ops.filter_map(|op| match op.request {
                Some(Request::RequestRange(range)) => Some((range.key, range.range_end)),
                _ => None,
            });
            let ranges = compared.chain(read).map(|(key, end)| KeyRange::from_etcd(key, end)).collect();
            Ok(Wanted { ranges, is_read: true })
        }
        _ => Ok(Wanted::default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods;

    fn wanted(path: &str, message: &impl Message) -> Wanted {
        ranges(&methods::find(path).expect("known"), &message.encode_to_vec().into()).expect("decodes")
    }

    #[test]
    fn a_read_only_txn_needs_all_that_it_looks_at_and_a_write_nothing() {
        let range = |key: &'static str| pb::RequestOp {
            request: Some(Request::RequestRange(pb::RangeRequest { key: key.into(), ..Default::default() })),
        };
        let put = pb::RequestOp { request: Some(Request::RequestPut(pb::PutRequest::default())) };
        let compare = pb::Compare { key: "c".into(), range_end: "d".into(), ..Default::default() };
        let mut txn = pb::TxnRequest { compare: vec![compare], success: vec![range("s")], failure: vec![range("f")] };
        let expected = [KeyRange::Span("c".into(), "d".into()), KeyRange::Key("s".into()), KeyRange::Key("f".into())];
        let path = "/etcdserverpb.KV/Txn";
        assert_eq!(wanted(path, &txn), Wanted { ranges: expected.into(), is_read: true });
        txn.failure.push(put);
        assert_eq!(wanted(path, &txn), Wanted::default());
        assert_eq!(wanted("/etcdserverpb.KV/Put", &pb::PutRequest::default()), Wanted::default());
    }
}
