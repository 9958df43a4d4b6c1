//! Txn: the path is chosen up front, checked whole, then executed.

use std::cmp::Ordering;

use bytes::Bytes;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use tailwater_api::etcdserverpb::{request_op::Request, response_op::Response};
use tailwater_eventlog::{KeyMeta, KeyRange, StorageError};

use super::kv::Step;
use super::{Machine, MachineError, Values, header};
use crate::Answer;

/// Which branch is taken, here and in the nested txns of that branch, in their order.
struct Path {
    succeeded: bool,
    nested: Vec<Path>,
}

impl Path {
    fn branch<'a>(&self, txn: &'a pb::TxnRequest) -> &'a [pb::RequestOp] {
        if self.succeeded { &txn.success } else { &txn.failure }
    }
}

impl Machine {
    pub(super) fn txn(
        &mut self,
        values: &dyn Values,
        request: pb::TxnRequest,
        waiting: bool,
    ) -> Result<Answer, MachineError> {
        let path = self.path(values, &request)?;
        self.check_ops(&path, &request)?;
        let mut step = self.begin();
        let mut response = self.execute(values, &mut step, &path, request, waiting)?;
        response.header = header(self.end(&step));
        Ok(Answer::Txn(response))
    }

    /// All compares, nested ones too, see the state before the txn.
    fn path(&self, values: &dyn Values, txn: &pb::TxnRequest) -> Result<Path, StorageError> {
        let mut path = Path { succeeded: true, nested: Vec::new() };
        for compare in &txn.compare {
            if !self.holds(values, compare)? {
                path.succeeded = false;
                break;
            }
        }
        for op in path.branch(txn) {
            if let Some(Request::RequestTxn(inner)) = &op.request {
                let inner = self.path(values, inner)?;
                path.nested.push(inner);
            }
        }
        Ok(path)
    }

    /// The path's puts and ranges in their order, nested txns in their place: the first error is the txn's.
    fn check_ops(&self, path: &Path, txn: &pb::TxnRequest) -> Result<(), MachineError> {
        let mut nested = path.nested.iter();
        for op in path.branch(txn) {
            match &op.request {
                Some(Request::RequestRange(range)) => self.check_range(range)?,
                Some(Request::RequestPut(put)) => {
                    self.check_exists(put)?;
                    self.check_lease(put.lease)?;
                }
                Some(Request::RequestTxn(inner)) => {
                    self.check_ops(nested.next().expect("one path per nested txn"), inner)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn execute(
        &mut self,
        values: &dyn Values,
        step: &mut Step,
        path: &Path,
        txn: pb::TxnRequest,
        waiting: bool,
    ) -> Result<pb::TxnResponse, StorageError> {
        let mut nested = path.nested.iter();
        let ops = if path.succeeded { txn.success } else { txn.failure };
        let mut responses = Vec::with_capacity(if waiting { ops.len() } else { 0 });
        for op in ops {
            let response = match op.request {
                Some(Request::RequestRange(_)) if !waiting => continue,
                Some(Request::RequestRange(range)) => {
                    Some(Response::ResponseRange(self.range_step(values, step, &range)?))
                }
                Some(Request::RequestPut(put)) => {
                    let mut response = self.put_step(values, step, put, waiting)?;
                    response.header = header(step.revision());
                    Some(Response::ResponsePut(response))
                }
                Some(Request::RequestDeleteRange(delete)) => {
                    let mut response = self.delete_step(values, step, delete, waiting)?;
                    response.header = header(step.revision());
                    Some(Response::ResponseDeleteRange(response))
                }
                Some(Request::RequestTxn(inner)) => {
                    let path = nested.next().expect("one path per nested txn");
                    let mut response = self.execute(values, step, path, inner, waiting)?;
                    // A nested txn's header is there and empty, in etcd too.
                    response.header = Some(pb::ResponseHeader::default());
                    Some(Response::ResponseTxn(response))
                }
                // Refused before it is proposed; harmless should a proposer let it through.
                None => None,
            };
            if waiting {
                responses.push(pb::ResponseOp { response });
            }
        }
        Ok(pb::TxnResponse { header: None, succeeded: path.succeeded, responses })
    }

    /// Whether every key of the compare's range satisfies it.
    fn holds(&self, values: &dyn Values, compare: &pb::Compare) -> Result<bool, StorageError> {
        let range = KeyRange::from_etcd(compare.key.clone(), compare.range_end.clone());
        let found = self.index.range(&range, self.state.revision, 0);
        let by_value = compare.target == CompareTarget::Value as i32;
        if found.is_empty() {
            // A missing key has no value to compare with; its numbers are 0.
            return Ok(!by_value && satisfies(compare, None, &Bytes::new()));
        }
        for meta in &found {
            let value = match by_value {
                true => {
                    let event = self.event(values, &meta.key, meta.mod_revision, meta.sub)?;
                    Bytes::copy_from_slice(event.value())
                }
                false => Bytes::new(),
            };
            if !satisfies(compare, Some(meta), &value) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// One version against the compare. A union of another kind than the target, or none, counts as 0 or empty; an unknown
/// target compares as equal, and an unknown result holds.
fn satisfies(compare: &pb::Compare, meta: Option<&KeyMeta>, value: &Bytes) -> bool {
    let union = compare.target_union.as_ref();
    let ordering = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Version) => meta.map_or(0, |meta| meta.version).cmp(&match union {
            Some(TargetUnion::Version(version)) => *version,
            _ => 0,
        }),
        Ok(CompareTarget::Create) => meta.map_or(0, |meta| meta.create_revision.0).cmp(&match union {
            Some(TargetUnion::CreateRevision(revision)) => *revision,
            _ => 0,
        }),
        Ok(CompareTarget::Mod) => meta.map_or(0, |meta| meta.mod_revision.0).cmp(&match union {
            Some(TargetUnion::ModRevision(revision)) => *revision,
            _ => 0,
        }),
        Ok(CompareTarget::Lease) => meta.map_or(0, |meta| meta.lease.0).cmp(&match union {
            Some(TargetUnion::Lease(lease)) => *lease,
            _ => 0,
        }),
        Ok(CompareTarget::Value) => value.as_ref().cmp(match union {
            Some(TargetUnion::Value(wanted)) => wanted.as_ref(),
            _ => &[],
        }),
        Err(_) => Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => ordering.is_eq(),
        Ok(CompareResult::NotEqual) => ordering.is_ne(),
        Ok(CompareResult::Greater) => ordering.is_gt(),
        Ok(CompareResult::Less) => ordering.is_lt(),
        Err(_) => true,
    }
}
