//! Answers, made comparable: ids of a server become common ones, and what may differ is taken out.

use bytes::Bytes;
use prost::Message;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::request_op::Request as Asked;
use tailwater_api::etcdserverpb::response_op::Response as Op;
use tailwater_api::mvccpb::KeyValue;
use tailwater_tests::Failure;

use crate::operation::Operation;

/// What stands for the ids that each server has of its own.
const COMMON_ID: u64 = 1;

/// One server's answer to one operation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Answer {
    Failed(Failure),
    Range(pb::RangeResponse),
    Put(pb::PutResponse),
    Delete(pb::DeleteRangeResponse),
    Txn(pb::TxnResponse),
    Compact(pb::CompactionResponse),
    Grant(pb::LeaseGrantResponse),
    Revoke(pb::LeaseRevokeResponse),
    KeepAlive(pb::LeaseKeepAliveResponse),
    TimeToLive(pb::LeaseTimeToLiveResponse),
    Leases(pb::LeaseLeasesResponse),
    Members(pb::MemberListResponse),
    Status(pb::StatusResponse),
    Alarms(pb::AlarmResponse),
    Accepted,
    Watch(pb::WatchResponse),
    /// No answer came, or none is expected.
    Silence,
}

/// The ids by which a server names itself and its leases.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    pub(crate) cluster: u64,
    pub(crate) member: u64,
    /// (common id, this server's id) of leases with an id chosen by the server.
    pub(crate) leases: Vec<(i64, i64)>,
}

impl Names {
    pub(crate) fn lease_here(&self, common: i64) -> i64 {
        self.leases.iter().rev().find(|(id, _)| *id == common).map_or(common, |(_, here)| *here)
    }

    fn lease_common(&self, here: i64) -> i64 {
        self.leases.iter().rev().find(|(_, id)| *id == here).map_or(here, |(common, _)| *common)
    }

    pub(crate) fn header(&self, header: &mut Option<pb::ResponseHeader>) {
        if let Some(header) = header {
            header.cluster_id = if header.cluster_id == self.cluster { COMMON_ID } else { header.cluster_id };
            header.member_id = if header.member_id == self.member { COMMON_ID } else { header.member_id };
            header.raft_term = header.raft_term.min(1);
        }
    }

    pub(crate) fn kv(&self, kv: &mut KeyValue) {
        kv.lease = self.lease_common(kv.lease);
    }

    fn txn(&self, txn: &mut pb::TxnResponse) {
        self.header(&mut txn.header);
        for response in &mut txn.responses {
            match &mut response.response {
                Some(Op::ResponseRange(range)) => self.range(range),
                Some(Op::ResponsePut(put)) => {
                    self.header(&mut put.header);
                    put.prev_kv.iter_mut().for_each(|kv| self.kv(kv));
                }
                Some(Op::ResponseDeleteRange(delete)) => {
                    self.header(&mut delete.header);
                    delete.prev_kvs.iter_mut().for_each(|kv| self.kv(kv));
                }
                Some(Op::ResponseTxn(inner)) => self.txn(inner),
                None => {}
            }
        }
    }

    fn range(&self, range: &mut pb::RangeResponse) {
        self.header(&mut range.header);
        range.kvs.iter_mut().for_each(|kv| self.kv(kv));
    }

    /// Decodes the answer to `operation`.
    pub(crate) fn answer(&self, operation: &Operation, result: Result<Bytes, Failure>) -> anyhow::Result<Answer> {
        let body = match result {
            Ok(body) => body,
            Err(failure) => return Ok(Answer::Failed(failure)),
        };
        let mut answer = match operation {
            Operation::Range(_) => Answer::Range(Message::decode(body)?),
            Operation::Put(_) => Answer::Put(Message::decode(body)?),
            Operation::Delete(_) => Answer::Delete(Message::decode(body)?),
            Operation::Txn(_) => Answer::Txn(Message::decode(body)?),
            Operation::Compact(_) => Answer::Compact(Message::decode(body)?),
            Operation::Grant(_) | Operation::GrantAssigned { .. } => Answer::Grant(Message::decode(body)?),
            Operation::Revoke(_) => Answer::Revoke(Message::decode(body)?),
            Operation::KeepAlive(_) => Answer::KeepAlive(Message::decode(body)?),
            Operation::TimeToLive { .. } => Answer::TimeToLive(Message::decode(body)?),
            Operation::Leases => Answer::Leases(Message::decode(body)?),
            Operation::Members { .. } => Answer::Members(Message::decode(body)?),
            Operation::Status => Answer::Status(Message::decode(body)?),
            Operation::Alarms => Answer::Alarms(Message::decode(body)?),
            // Headers differ; what counts is that both were accepted.
            Operation::Raw { .. } => Answer::Accepted,
            _ => Answer::Watch(Message::decode(body)?),
        };
        self.make_common(&mut answer);
        Ok(answer)
    }

    fn make_common(&self, answer: &mut Answer) {
        match answer {
            Answer::Range(range) => self.range(range),
            Answer::Txn(txn) => self.txn(txn),
            Answer::Put(put) => {
                self.header(&mut put.header);
                put.prev_kv.iter_mut().for_each(|kv| self.kv(kv));
            }
            Answer::Delete(delete) => {
                self.header(&mut delete.header);
                delete.prev_kvs.iter_mut().for_each(|kv| self.kv(kv));
            }
            Answer::Compact(compact) => self.header(&mut compact.header),
            Answer::Grant(grant) => self.header(&mut grant.header),
            Answer::Revoke(revoke) => self.header(&mut revoke.header),
            Answer::KeepAlive(alive) => {
                self.header(&mut alive.header);
                alive.id = self.lease_common(alive.id);
            }
            Answer::TimeToLive(left) => {
                self.header(&mut left.header);
                left.id = self.lease_common(left.id);
                // etcd keeps the keys of a lease in a hash map: their order has no meaning.
                left.keys.sort();
            }
            Answer::Leases(leases) => {
                self.header(&mut leases.header);
                leases.leases.iter_mut().for_each(|lease| lease.id = self.lease_common(lease.id));
                // In order of expiry, which for leases of one second depends on the clock.
                leases.leases.sort_by_key(|lease| lease.id);
            }
            Answer::Members(members) => {
                self.header(&mut members.header);
                for member in &mut members.members {
                    member.id = if member.id == self.member { COMMON_ID } else { member.id };
                    let urls = member.peer_ur_ls.iter_mut().chain(&mut member.client_ur_ls);
                    urls.for_each(|url| url.truncate("http://".len()));
                }
            }
            Answer::Status(status) => self.status(status),
            Answer::Alarms(alarms) => self.header(&mut alarms.header),
            Answer::Watch(_) | Answer::Accepted | Answer::Failed(_) | Answer::Silence => {}
        }
    }

    /// Sizes and raft numbers are a server's own; that they are set is not.
    pub(crate) fn status(&self, status: &mut pb::StatusResponse) {
        self.header(&mut status.header);
        status.leader = if status.leader == self.member { COMMON_ID } else { status.leader };
        status.raft_term = status.raft_term.min(1);
        status.raft_index = u64::from(status.raft_index >= status.raft_applied_index);
        status.raft_applied_index = status.raft_applied_index.min(1);
        status.db_size = status.db_size.min(1);
        status.db_size_in_use = status.db_size_in_use.min(1);
        let minor = status.version.match_indices('.').nth(1).map_or(status.version.len(), |(at, _)| at);
        status.version.truncate(minor);
    }
}

/// Whether two answers to `operation` are the same; the rules that allow more than equality are here.
pub(crate) fn same(operation: &Operation, reference: &Answer, subject: &Answer) -> bool {
    match (operation, reference, subject) {
        (Operation::Range(request), Answer::Range(a), Answer::Range(b)) => same_range(request, a, b),
        (Operation::Txn(request), Answer::Txn(a), Answer::Txn(b)) => same_txn(request, a, b),
        (_, Answer::TimeToLive(a), Answer::TimeToLive(b)) => {
            let mut b = b.clone();
            if a.ttl > 0 && b.ttl > 0 && a.ttl.abs_diff(b.ttl) <= 1 {
                b.ttl = a.ttl;
            }
            *a == b
        }
        (Operation::GrantAssigned { .. }, Answer::Grant(a), Answer::Grant(b)) => {
            (a.id > 0) == (b.id > 0) && *a == pb::LeaseGrantResponse { id: a.id, ..b.clone() }
        }
        // The decoder's own words follow; each protobuf library has different ones.
        (Operation::Raw { .. }, Answer::Failed(a), Answer::Failed(b)) if is_decoding(a) => {
            a.code == b.code && is_decoding(b)
        }
        _ => reference == subject,
    }
}

fn is_decoding(failure: &Failure) -> bool {
    failure.message.starts_with("grpc: error unmarshalling request:")
}

/// Equal but for what [`same_range`] allows in each of its ranges.
fn same_txn(request: &pb::TxnRequest, a: &pb::TxnResponse, b: &pb::TxnResponse) -> bool {
    let ops = if a.succeeded { &request.success } else { &request.failure };
    let ends = |txn: &pb::TxnResponse| (txn.header, txn.succeeded, txn.responses.len());
    if ends(a) != ends(b) || a.responses.len() != ops.len() {
        return a == b;
    }
    ops.iter().zip(a.responses.iter().zip(&b.responses)).all(|(op, (a, b))| {
        match (&op.request, &a.response, &b.response) {
            (Some(Asked::RequestRange(request)), Some(Op::ResponseRange(a)), Some(Op::ResponseRange(b))) => {
                same_range(request, a, b)
            }
            (Some(Asked::RequestTxn(request)), Some(Op::ResponseTxn(a)), Some(Op::ResponseTxn(b))) => {
                same_txn(request, a, b)
            }
            (_, a, b) => a == b,
        }
    })
}

/// Equal but for the order within a tie, and for which keys of the last tie a limit lets through.
fn same_range(request: &pb::RangeRequest, a: &pb::RangeResponse, b: &pb::RangeResponse) -> bool {
    // The default order is by key, which has no ties.
    if request.sort_target == 0 || a.kvs.len() != b.kvs.len() {
        return a == b;
    }
    let value_hidden = request.sort_target == 4 && request.keys_only;
    let field = |kv: &KeyValue| match request.sort_target {
        1 => (kv.version, Bytes::new()),
        2 => (kv.create_revision, Bytes::new()),
        3 => (kv.mod_revision, Bytes::new()),
        _ => (0, kv.value.clone()),
    };
    let fields_equal = a.kvs.iter().map(field).eq(b.kvs.iter().map(field));
    let cut = if a.more { a.kvs.last().map(field) } else { None };
    let sorted = |kvs: &[KeyValue]| {
        let mut kvs: Vec<KeyValue> = kvs.iter().filter(|kv| cut.is_none() || Some(field(kv)) != cut).cloned().collect();
        kvs.sort_by(|x, y| x.key.cmp(&y.key));
        kvs
    };
    let ends = |answer: &pb::RangeResponse| (answer.header, answer.more, answer.count);
    ends(a) == ends(b) && fields_equal && (value_hidden && a.more || sorted(&a.kvs) == sorted(&b.kvs))
}
