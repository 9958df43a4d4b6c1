//! Transactions that only read: evaluated against one revision, without a raft entry.

use std::cmp::Ordering;

use bytes::{Bytes, BytesMut};
use prost::Message;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use tailwater_api::write::Caller;
use tailwater_api::{grpc, wire};
use tailwater_consensus::Auth;
use tailwater_eventlog::{Event, KeyRange, Revision};
use tailwater_fanout::RangeQuery;

use crate::Gateway;
use crate::auth::Credentials;
use crate::body::Answer;
use crate::range::RangeMessage;
use crate::status::Fault;

/// A compaction may pass the revision that is being read; each retry reads at a newer one.
const ATTEMPTS_MAX: usize = 8;

/// Whether every operation of both branches is a range.
pub(crate) fn is_read_only(request: &pb::TxnRequest) -> bool {
    operations(request).all(|op| matches!(op.request, Some(pb::request_op::Request::RequestRange(_))))
}

/// Whether it may be answered without a barrier. A txn of compares alone may.
fn is_serializable(request: &pb::TxnRequest) -> bool {
    ranges(operations(request)).all(|range| range.serializable)
}

fn operations(request: &pb::TxnRequest) -> impl Iterator<Item = &pb::RequestOp> {
    request.success.iter().chain(&request.failure)
}

fn ranges<'a>(ops: impl Iterator<Item = &'a pb::RequestOp>) -> impl Iterator<Item = &'a pb::RangeRequest> {
    ops.filter_map(|op| match &op.request {
        Some(pb::request_op::Request::RequestRange(range)) => Some(range),
        _ => None,
    })
}

impl Gateway {
    /// Answers a read-only txn. Everything is read at the newest revision of one moment, which is the header's.
    pub(crate) async fn read_txn(&self, credentials: &Credentials, request: &pb::TxnRequest) -> Result<Answer, Fault> {
        self.settle(is_serializable(request)).await?;
        let may = |rules: &Auth, caller: &Caller| rules.check_txn(caller, request, &|_| None);
        let (_, view) = self.authorize_here(credentials, may)?;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let snapshot = self.fanout().snapshot();
            self.remember(snapshot.cursor.position);
            let answer = self.read_txn_at(request, snapshot.cursor.revision, snapshot.compacted).await;
            let overtaken = self.fanout().snapshot().compacted > snapshot.cursor.revision;
            if answer.as_ref().is_err_and(|fault| *fault == Fault::Compacted) && overtaken && attempts < ATTEMPTS_MAX {
                continue;
            }
            self.recheck(&view, credentials, may)?;
            return answer;
        }
    }

    async fn read_txn_at(
        &self,
        request: &pb::TxnRequest,
        revision: Revision,
        compacted: Revision,
    ) -> Result<Answer, Fault> {
        let mut succeeded = true;
        for compare in &request.compare {
            if !self.holds(compare, revision).await? {
                succeeded = false;
                break;
            }
        }
        let branch = if succeeded { &request.success } else { &request.failure };
        for range in ranges(branch.iter()) {
            check_revision(range.revision, revision, compacted)?;
        }
        let mut responses = Vec::with_capacity(branch.len());
        for range in ranges(branch.iter()) {
            let at = if range.revision > 0 { Revision(range.revision) } else { revision };
            let answer = self.read(range, Some(at)).await?;
            let header = pb::ResponseHeader { revision: revision.0, ..Default::default() };
            responses.push(RangeMessage::new(header, answer, range.keys_only));
        }
        let permits = responses.iter().filter_map(RangeMessage::permit).collect();
        Ok(Answer::Lists(encode(&self.header(revision), succeeded, &responses), permits))
    }

    async fn holds(&self, compare: &pb::Compare, revision: Revision) -> Result<bool, Fault> {
        let query = RangeQuery {
            range: KeyRange::from_etcd(compare.key.clone(), compare.range_end.clone()),
            revision: Some(revision),
            limit: 0,
            sort: None,
            count_only: false,
            keys_only: false,
            revision_bounds: (0, 0, 0, 0),
        };
        let answer = self.fanout().range(query).await?;
        if answer.events.is_empty() {
            // A missing key has no value to compare; its numbers count as 0.
            return Ok(compare.target != CompareTarget::Value as i32 && holds_for(compare, None));
        }
        Ok(answer.events.iter().all(|event| holds_for(compare, Some(event))))
    }
}

/// etcd's check of a range inside a txn. Before the first compaction its compacted revision is -1.
fn check_revision(asked: i64, current: Revision, compacted: Revision) -> Result<(), Fault> {
    let compacted = if compacted.0 == 0 { -1 } else { compacted.0 };
    if asked > current.0 {
        return Err(Fault::FutureRevision);
    }
    if asked != 0 && asked < compacted {
        return Err(Fault::Compacted);
    }
    Ok(())
}

/// Whether one key satisfies a compare; a union of another kind than the target counts as 0.
fn holds_for(compare: &pb::Compare, event: Option<&Event>) -> bool {
    let envelope = event.map(Event::envelope);
    let union = &compare.target_union;
    let ordering = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Version) => {
            let asked = if let Some(TargetUnion::Version(asked)) = union { *asked } else { 0 };
            envelope.map_or(0, |envelope| envelope.version).cmp(&asked)
        }
        Ok(CompareTarget::Create) => {
            let asked = if let Some(TargetUnion::CreateRevision(asked)) = union { *asked } else { 0 };
            envelope.map_or(0, |envelope| envelope.create_revision.0).cmp(&asked)
        }
        Ok(CompareTarget::Mod) => {
            let asked = if let Some(TargetUnion::ModRevision(asked)) = union { *asked } else { 0 };
            envelope.map_or(0, |envelope| envelope.revision.0).cmp(&asked)
        }
        Ok(CompareTarget::Lease) => {
            let asked = if let Some(TargetUnion::Lease(asked)) = union { *asked } else { 0 };
            envelope.map_or(0, |envelope| envelope.lease.0).cmp(&asked)
        }
        Ok(CompareTarget::Value) => {
            let asked: &[u8] = if let Some(TargetUnion::Value(asked)) = union { asked } else { &[] };
            event.map_or(&[][..], Event::value).cmp(asked)
        }
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

/// A framed `TxnResponse{header = 1, succeeded = 2, responses = 3}` of `ResponseOp{response_range = 1}`s.
fn encode(header: &pb::ResponseHeader, succeeded: bool, ranges: &[RangeMessage]) -> Bytes {
    let lens: Vec<usize> = ranges.iter().map(RangeMessage::encoded_len).collect();
    let header_len = header.encoded_len();
    let responses: usize = lens.iter().map(|len| wire::bytes_field_len(3, wire::bytes_field_len(1, *len))).sum();
    let len = wire::bytes_field_len(1, header_len) + wire::uint_field_len(2, u64::from(succeeded)) + responses;
    let mut out = BytesMut::with_capacity(grpc::PREFIX_BYTES + len);
    grpc::put_prefix(&mut out, len);
    wire::put_bytes_header(&mut out, 1, header_len);
    header.encode(&mut out).expect("the buffer grows");
    wire::put_uint_field(&mut out, 2, u64::from(succeeded));
    for (range, len) in ranges.iter().zip(lens) {
        wire::put_bytes_header(&mut out, 3, wire::bytes_field_len(1, len));
        wire::put_bytes_header(&mut out, 1, len);
        range.write(&mut out);
    }
    out.freeze()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tailwater_fanout::RangeAnswer;

    use super::*;

    #[test]
    fn bytes_equal_the_generated_encoding() {
        let header = pb::ResponseHeader { cluster_id: 1, member_id: 2, revision: 300, raft_term: 4 };
        let inner = pb::ResponseHeader { revision: 300, ..Default::default() };
        let empty = |count| RangeAnswer {
            header_revision: Revision(300),
            events: vec![],
            more: false,
            count,
            permit: Arc::default(),
        };
        let range = |count| pb::RangeResponse { header: Some(inner), kvs: vec![], more: false, count };
        let op = |count| pb::ResponseOp { response: Some(pb::response_op::Response::ResponseRange(range(count))) };
        for succeeded in [false, true] {
            let expected = pb::TxnResponse { header: Some(header), succeeded, responses: vec![op(0), op(200)] };
            let ranges = [RangeMessage::new(inner, empty(0), false), RangeMessage::new(inner, empty(200), true)];
            assert_eq!(encode(&header, succeeded, &ranges)[grpc::PREFIX_BYTES..], expected.encode_to_vec());
        }
    }

    #[test]
    fn a_missing_key_compares_as_zero_and_a_strange_result_holds() {
        let mut compare = pb::Compare { target: CompareTarget::Mod as i32, ..Default::default() };
        assert!(holds_for(&compare, None));
        compare.target_union = Some(TargetUnion::ModRevision(1));
        assert!(!holds_for(&compare, None));
        compare.result = CompareResult::Less as i32;
        assert!(holds_for(&compare, None));
        compare.result = 77;
        assert!(holds_for(&compare, None));
    }

    #[test]
    fn revisions_are_checked_as_etcd_does_inside_a_txn() {
        let check = |asked, compacted| check_revision(asked, Revision(10), Revision(compacted));
        assert_eq!(check(0, 5), Ok(()));
        assert_eq!(check(11, 0), Err(Fault::FutureRevision));
        assert_eq!(check(-1, 0), Ok(()));
        assert_eq!(check(-2, 0), Err(Fault::Compacted));
        assert_eq!(check(-1, 5), Err(Fault::Compacted));
        assert_eq!(check(4, 5), Err(Fault::Compacted));
        assert_eq!(check(5, 5), Ok(()));
    }
}
