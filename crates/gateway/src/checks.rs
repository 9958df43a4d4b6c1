//! What can be refused by looking at a request alone, in etcd's order.

use std::collections::HashSet;

use bytes::Bytes;
use tailwater_api::etcdserverpb as pb;
use tailwater_eventlog::KeyRange;

use crate::status::{Code, Fault};

/// Checks a range request.
///
/// # Errors
/// `EmptyKey`, `InvalidSortOption`.
pub(crate) fn range(request: &pb::RangeRequest) -> Result<(), Fault> {
    if request.key.is_empty() {
        return Err(Fault::EmptyKey);
    }
    let order = pb::range_request::SortOrder::try_from(request.sort_order);
    let target = pb::range_request::SortTarget::try_from(request.sort_target);
    if order.is_err() || target.is_err() {
        return Err(Fault::InvalidSortOption);
    }
    Ok(())
}

/// Checks a range request that is answered in pieces, which come in key order and unfiltered.
///
/// # Errors
/// Those of [`range`], and etcd's two refusals.
pub(crate) fn range_stream(request: &pb::RangeRequest) -> Result<(), Fault> {
    range(request)?;
    let is_default = match pb::range_request::SortOrder::try_from(request.sort_order) {
        Ok(pb::range_request::SortOrder::None) => true,
        Ok(pb::range_request::SortOrder::Ascend) => request.sort_target == pb::range_request::SortTarget::Key as i32,
        _ => false,
    };
    if !is_default {
        return Err(Fault::Other(Code::Unimplemented, "RangeStream does not support custom sort orders".into()));
    }
    let bounds =
        [request.min_mod_revision, request.max_mod_revision, request.min_create_revision, request.max_create_revision];
    if bounds != [0; 4] {
        return Err(Fault::Other(Code::Unimplemented, "RangeStream does not support revision filters".into()));
    }
    Ok(())
}

/// Checks a put request.
///
/// # Errors
/// `EmptyKey`, `ValueProvided`, `LeaseProvided`.
pub(crate) fn put(request: &pb::PutRequest) -> Result<(), Fault> {
    if request.key.is_empty() {
        return Err(Fault::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(Fault::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Fault::LeaseProvided);
    }
    Ok(())
}

/// Checks a delete request.
///
/// # Errors
/// `EmptyKey`.
pub(crate) fn delete_range(request: &pb::DeleteRangeRequest) -> Result<(), Fault> {
    if request.key.is_empty() { Err(Fault::EmptyKey) } else { Ok(()) }
}

/// Checks a txn: its size, each of its parts, then that no key is written twice.
///
/// # Errors
/// `TooManyOps`, `EmptyKey`, those of the operations, `KeyNotFound` for an operation without a request,
/// `DuplicateKey`.
pub(crate) fn txn(request: &pb::TxnRequest, ops_max: usize) -> Result<(), Fault> {
    txn_parts(request, ops_max)?;
    intervals(&request.success)?;
    intervals(&request.failure)?;
    Ok(())
}

/// A nested txn may use what its parent's longest list left of the allowance, so nesting is bounded as well.
fn txn_parts(request: &pb::TxnRequest, ops_max: usize) -> Result<(), Fault> {
    let longest = request.compare.len().max(request.success.len()).max(request.failure.len());
    if longest > ops_max {
        return Err(Fault::TooManyOps);
    }
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(Fault::EmptyKey);
    }
    request.success.iter().chain(&request.failure).try_for_each(|op| operation(op, ops_max - longest))
}

fn operation(op: &pb::RequestOp, ops_max: usize) -> Result<(), Fault> {
    use pb::request_op::Request;
    match &op.request {
        Some(Request::RequestRange(request)) => range(request),
        Some(Request::RequestPut(request)) => put(request),
        Some(Request::RequestDeleteRange(request)) => delete_range(request),
        Some(Request::RequestTxn(request)) => txn_parts(request, ops_max),
        None => Err(Fault::KeyNotFound),
    }
}

/// Keys put and ranges deleted by a list of operations, nested ones included.
#[derive(Default)]
struct Written<'a> {
    puts: HashSet<&'a Bytes>,
    deletes: Vec<KeyRange>,
}

impl<'a> Written<'a> {
    fn is_deleted(&self, key: &[u8]) -> bool {
        self.deletes.iter().any(|range| range.contains(key))
    }
}

/// etcd's `checkIntervals`. Nested txns are looked at from left to right, and what they delete counts only for what
/// comes after: a nested put whose key a *later* sibling deletes passes. Clients see this, so it stays.
fn intervals(ops: &[pb::RequestOp]) -> Result<Written<'_>, Fault> {
    use pb::request_op::Request;
    let mut all = Written::default();
    for op in ops {
        if let Some(Request::RequestDeleteRange(delete)) = &op.request {
            all.deletes.push(deleted(delete));
        }
    }
    for op in ops {
        if let Some(Request::RequestTxn(txn)) = &op.request {
            let success = intervals(&txn.success)?;
            let failure = intervals(&txn.failure)?;
            // Only one branch runs, so both may put the same key.
            let clashes = |key: &&Bytes| all.puts.contains(*key) || all.is_deleted(key);
            if success.puts.iter().any(clashes) || failure.puts.iter().any(clashes) {
                return Err(Fault::DuplicateKey);
            }
            all.puts.extend(success.puts);
            all.puts.extend(failure.puts);
            all.deletes.extend(success.deletes);
            all.deletes.extend(failure.deletes);
        }
    }
    for op in ops {
        if let Some(Request::RequestPut(put)) = &op.request
            && (all.is_deleted(&put.key) || !all.puts.insert(&put.key))
        {
            return Err(Fault::DuplicateKey);
        }
    }
    Ok(all)
}

/// The deleted keys as etcd's check sees them: an open end ("\0") is compared as a key there, so that such a delete
/// covers nothing and never clashes.
fn deleted(delete: &pb::DeleteRangeRequest) -> KeyRange {
    if delete.range_end.is_empty() {
        KeyRange::Key(delete.key.clone())
    } else {
        KeyRange::Span(delete.key.clone(), delete.range_end.clone())
    }
}

#[cfg(test)]
mod tests;
