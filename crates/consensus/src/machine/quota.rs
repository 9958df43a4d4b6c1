//! What a command may add to the storage, by etcd's estimate.

use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::request_op::Request;
use tailwater_api::write::command::Command;

/// Bytes beside key and value.
const PUT_OVERHEAD: u64 = 256;
/// Bytes of a lease.
const LEASE_OVERHEAD: u64 = 64;

/// Bytes that a command is counted with; 0 for one that needs no space. A txn counts its dearer branch.
pub(crate) fn cost(command: &Command) -> u64 {
    match command {
        Command::Put(put) => put_cost(put),
        Command::Txn(txn) => txn_cost(txn),
        Command::LeaseGrant(_) => LEASE_OVERHEAD,
        _ => 0,
    }
}

fn put_cost(put: &pb::PutRequest) -> u64 {
    PUT_OVERHEAD + put.key.len() as u64 + put.value.len() as u64
}

fn txn_cost(txn: &pb::TxnRequest) -> u64 {
    let branch = |ops: &[pb::RequestOp]| -> u64 {
        ops.iter()
            .map(|op| match &op.request {
                Some(Request::RequestPut(put)) => put_cost(put),
                Some(Request::RequestTxn(inner)) => txn_cost(inner),
                _ => 0,
            })
            .sum()
    };
    branch(&txn.success).max(branch(&txn.failure))
}
