//! Transactions: what a gateway refuses by looking at one, and what it knows of what one reads.

use prost::Message as _;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::compare::TargetUnion;
use tailwater_api::etcdserverpb::request_op::Request;
use tailwater_gateway::fuzzing;

pub(crate) fn check(data: &[u8]) -> bool {
    // For its errors: both may be given anything.
    let _is_read = ["/etcdserverpb.KV/Txn", "/etcdserverpb.KV/Range"].map(|path| fuzzing::reads(path, data));
    pb::TxnRequest::decode(data).is_ok_and(|request| fuzzing::txn(&request))
}

fn op(request: Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

pub(crate) fn put(key: &'static str, value: &'static str) -> pb::PutRequest {
    pb::PutRequest { key: key.into(), value: value.into(), ..Default::default() }
}

/// A txn with one of everything, and another within it.
pub(crate) fn nested() -> pb::TxnRequest {
    let compare = |union: TargetUnion, target: i32| pb::Compare {
        result: 3,
        target,
        key: "a".into(),
        target_union: Some(union),
        range_end: "c".into(),
    };
    let delete = pb::DeleteRangeRequest { key: "d".into(), range_end: "f".into(), prev_kv: true };
    let range = pb::RangeRequest { key: "a".into(), range_end: "z".into(), limit: 3, ..Default::default() };
    let inner = pb::TxnRequest {
        compare: vec![compare(TargetUnion::Lease(5), 4)],
        success: vec![op(Request::RequestPut(put("g", "inner"))), op(Request::RequestRange(range.clone()))],
        failure: vec![op(Request::RequestPut(put("g", "other")))],
    };
    pb::TxnRequest {
        compare: vec![compare(TargetUnion::Value("1".into()), 3), compare(TargetUnion::ModRevision(-1), 2)],
        success: vec![
            op(Request::RequestPut(put("a", "1"))),
            op(Request::RequestDeleteRange(delete.clone())),
            op(Request::RequestTxn(inner)),
        ],
        failure: vec![op(Request::RequestRange(range)), op(Request::RequestDeleteRange(delete))],
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let alone = pb::TxnRequest { success: vec![op(Request::RequestPut(put("k", "v")))], ..Default::default() };
    let siblings = pb::TxnRequest {
        success: vec![
            op(Request::RequestTxn(alone.clone())),
            op(Request::RequestDeleteRange(pb::DeleteRangeRequest { key: "l".into(), ..Default::default() })),
        ],
        ..Default::default()
    };
    [nested(), alone, siblings].map(|txn| txn.encode_to_vec()).into()
}
