//! What clients ask, and what they are told.

use bytes::Bytes;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::write::command::Command;
use tailwater_consensus::{Applied, ProposeError};
use tailwater_eventlog::{KeyRange, LeaseId, MemberId, Position, Revision};

/// One request of a client.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Put {
        key: Bytes,
        lease: LeaseId,
        prev_kv: bool,
    },
    Delete {
        range: KeyRange,
        prev_kv: bool,
    },
    /// Puts the key if it still has this mod revision, else reads it.
    Swap {
        key: Bytes,
        seen: Revision,
    },
    /// Puts two keys and deletes a third, in one revision.
    Together {
        puts: [Bytes; 2],
        delete: Bytes,
    },
    Compact {
        at: Revision,
        physical: bool,
    },
    Grant {
        lease: LeaseId,
        ttl: i64,
    },
    Revoke {
        lease: LeaseId,
    },
    KeepAlive {
        lease: LeaseId,
    },
    Read {
        range: KeyRange,
        at: Option<Revision>,
        serializable: bool,
        limit: usize,
    },
}

/// A request under way.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    /// Unique in the world; values are made of it.
    pub(crate) id: u64,
    pub(crate) kind: Kind,
    /// The newest revision that any client had been told when it was asked.
    pub(crate) floor: Revision,
    /// The newest compaction that had been answered then.
    pub(crate) compacted: Revision,
}

/// What goes to the leader.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    Propose(Command),
    Barrier,
    KeepAlive(LeaseId),
    MoveLeader(MemberId),
}

/// What comes back.
#[derive(Debug)]
pub(crate) enum Reply {
    Proposed(Result<Applied, ProposeError>),
    Barrier(Result<Position, ProposeError>),
    KeepAlive(Result<Option<i64>, ProposeError>),
    MoveLeader,
}

/// The value that an operation writes: its id, which of its puts, and some bytes.
pub(crate) fn value(id: u64, put: usize) -> Bytes {
    let mut value = format!("{id}.{put}.").into_bytes();
    let len = value.len() + usize::try_from(id * 37 % 150).expect("small") * if id.is_multiple_of(17) { 20 } else { 1 };
    value.resize(len, b'v');
    value.into()
}

/// The operation that wrote a value.
pub(crate) fn writer(value: &[u8]) -> Option<u64> {
    let digits = value.split(|byte| *byte == b'.').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// etcd's pair for a range.
pub(crate) fn pair(range: &KeyRange) -> (Bytes, Bytes) {
    match range {
        KeyRange::Key(key) => (key.clone(), Bytes::new()),
        KeyRange::Span(key, end) => (key.clone(), end.clone()),
        KeyRange::From(key) => (key.clone(), Bytes::from_static(&[0])),
    }
}

fn put(key: &Bytes, value: Bytes) -> pb::PutRequest {
    pb::PutRequest { key: key.clone(), value, ..Default::default() }
}

fn op(request: pb::request_op::Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

impl Operation {
    /// What is asked of the leader first.
    pub(crate) fn ask(&self) -> Option<Ask> {
        use pb::request_op::Request;
        let command = match &self.kind {
            Kind::Put { key, lease, prev_kv } => {
                let put = put(key, value(self.id, 0));
                Command::Put(pb::PutRequest { lease: lease.0, prev_kv: *prev_kv, ..put })
            }
            Kind::Delete { range, prev_kv } => {
                let (key, range_end) = pair(range);
                Command::DeleteRange(pb::DeleteRangeRequest { key, range_end, prev_kv: *prev_kv })
            }
            Kind::Swap { key, seen } => {
                let compare = pb::Compare {
                    result: pb::compare::CompareResult::Equal as i32,
                    target: pb::compare::CompareTarget::Mod as i32,
                    key: key.clone(),
                    range_end: Bytes::new(),
                    target_union: Some(pb::compare::TargetUnion::ModRevision(seen.0)),
                };
                let range = pb::RangeRequest { key: key.clone(), ..Default::default() };
                Command::Txn(pb::TxnRequest {
                    compare: vec![compare],
                    success: vec![op(Request::RequestPut(put(key, value(self.id, 0))))],
                    failure: vec![op(Request::RequestRange(range))],
                })
            }
            Kind::Together { puts, delete } => {
                let mut success: Vec<_> = puts
                    .iter()
                    .enumerate()
                    .map(|(i, key)| op(Request::RequestPut(put(key, value(self.id, i)))))
                    .collect();
                let delete = pb::DeleteRangeRequest { key: delete.clone(), ..Default::default() };
                success.push(op(Request::RequestDeleteRange(delete)));
                Command::Txn(pb::TxnRequest { compare: Vec::new(), success, failure: Vec::new() })
            }
            Kind::Compact { at, physical } => {
                Command::Compact(pb::CompactionRequest { revision: at.0, physical: *physical })
            }
            Kind::Grant { lease, ttl } => Command::LeaseGrant(pb::LeaseGrantRequest { ttl: *ttl, id: lease.0 }),
            Kind::Revoke { lease } => Command::LeaseRevoke(pb::LeaseRevokeRequest { id: lease.0 }),
            Kind::KeepAlive { lease } => return Some(Ask::KeepAlive(*lease)),
            Kind::Read { serializable: true, .. } => return None,
            Kind::Read { .. } => return Some(Ask::Barrier),
        };
        Some(Ask::Propose(command))
    }

    /// Values that it may write.
    pub(crate) fn writes(&self) -> bool {
        matches!(self.kind, Kind::Put { .. } | Kind::Swap { .. } | Kind::Together { .. })
    }
}
