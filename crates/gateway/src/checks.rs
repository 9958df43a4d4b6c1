//! What can be refused by looking at a request alone, in etcd's order.

use std::collections::{BTreeMap, HashSet};

use tailwater_api::etcdserverpb as pb;

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
    puts: HashSet<&'a [u8]>,
    deletes: Deleted<'a>,
}

impl<'a> Written<'a> {
    /// Whether something that is put there is put or deleted here.
    fn clashes(&self, other: &HashSet<&'a [u8]>) -> bool {
        !self.puts.is_disjoint(other) || !self.deletes.is_empty() && other.iter().any(|key| self.deletes.contains(key))
    }

    /// Takes in what a part has written; the larger of the two stays where it is.
    fn add(&mut self, mut part: Self) {
        if part.puts.len() > self.puts.len() {
            std::mem::swap(&mut part.puts, &mut self.puts);
        }
        self.puts.extend(part.puts);
        if part.deletes.len() > self.deletes.len() {
            std::mem::swap(&mut part.deletes, &mut self.deletes);
        }
        part.deletes.keys.into_iter().for_each(|key| self.deletes.insert_key(key));
        part.deletes.spans.into_iter().for_each(|(start, end)| self.deletes.insert_span(start, end));
    }
}

/// Deleted keys. A request may name a hundred thousand, so that none is compared with all others.
#[derive(Default)]
struct Deleted<'a> {
    keys: HashSet<&'a [u8]>,
    /// From start to end; they neither overlap nor touch.
    spans: BTreeMap<&'a [u8], &'a [u8]>,
}

impl<'a> Deleted<'a> {
    /// As etcd's check sees a delete: an open end ("\0") is compared as a key there, so that such a delete covers
    /// nothing and never clashes.
    fn insert(&mut self, delete: &'a pb::DeleteRangeRequest) {
        if delete.range_end.is_empty() {
            self.insert_key(&delete.key);
        } else {
            self.insert_span(&delete.key, &delete.range_end);
        }
    }

    fn insert_key(&mut self, key: &'a [u8]) {
        self.keys.insert(key);
    }

    fn insert_span(&mut self, mut start: &'a [u8], mut end: &'a [u8]) {
        if start >= end {
            return;
        }
        if let Some((before, until)) = self.spans.range::<&[u8], _>(..=start).next_back()
            && *until >= start
        {
            (start, end) = (before, end.max(until));
        }
        while let Some((&from, &until)) = self.spans.range::<&[u8], _>(start..=end).next() {
            self.spans.remove(from);
            end = end.max(until);
        }
        self.spans.insert(start, end);
    }

    fn contains(&self, key: &[u8]) -> bool {
        let is_inside = || self.spans.range::<&[u8], _>(..=key).next_back().is_some_and(|(_, end)| key < *end);
        self.keys.contains(key) || is_inside()
    }

    fn len(&self) -> usize {
        self.keys.len() + self.spans.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// etcd's `checkIntervals`. Nested txns are looked at from left to right, and what they delete counts only for what
/// comes after: a nested put whose key a *later* sibling deletes passes. Clients see this, so it stays.
fn intervals(ops: &[pb::RequestOp]) -> Result<Written<'_>, Fault> {
    use pb::request_op::Request;
    let mut all = Written::default();
    for op in ops {
        if let Some(Request::RequestDeleteRange(delete)) = &op.request {
            all.deletes.insert(delete);
        }
    }
    for op in ops {
        if let Some(Request::RequestTxn(txn)) = &op.request {
            let success = intervals(&txn.success)?;
            let failure = intervals(&txn.failure)?;
            // Only one branch runs, so both may put the same key.
            if all.clashes(&success.puts) || all.clashes(&failure.puts) {
                return Err(Fault::DuplicateKey);
            }
            all.add(success);
            all.add(failure);
        }
    }
    for op in ops {
        if let Some(Request::RequestPut(put)) = &op.request
            && (all.deletes.contains(&put.key) || !all.puts.insert(&put.key))
        {
            return Err(Fault::DuplicateKey);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests;
