//! Operations, as they are before they meet a server.

use bytes::Bytes;
use prost::Message;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::compare::TargetUnion;
use tailwater_api::etcdserverpb::request_op::Request as Op;

/// Lease ids from here on stand for ids that a server chose itself; each server chose its own.
pub(crate) const ASSIGNED_LEASES: i64 = 1_000_000_000;

/// One step of a run, sent to both servers.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Range(pb::RangeRequest),
    Put(pb::PutRequest),
    Delete(pb::DeleteRangeRequest),
    Txn(pb::TxnRequest),
    Compact(pb::CompactionRequest),
    Grant(pb::LeaseGrantRequest),
    /// Grants with id 0; the id is known as the given one from then on.
    GrantAssigned {
        ttl: i64,
        id: i64,
    },
    Revoke(i64),
    KeepAlive(i64),
    TimeToLive {
        id: i64,
        keys: bool,
    },
    Leases,
    Members {
        linearizable: bool,
    },
    Status,
    Alarms,
    /// Bytes for a method that answers with one message.
    Raw {
        path: &'static str,
        body: Bytes,
    },
    Watch {
        stream: usize,
        request: pb::WatchCreateRequest,
    },
    CancelWatch {
        stream: usize,
        id: i64,
    },
    Progress {
        stream: usize,
    },
    /// Ends a watch stream; the next operation on it opens a new one.
    CloseStream {
        stream: usize,
    },
}

impl Operation {
    /// Path and message of an operation that is one call, with each lease id passed through `lease`.
    pub(crate) fn call(&self, lease: &dyn Fn(i64) -> i64) -> Option<(&'static str, Bytes)> {
        let (path, body) = match self {
            Self::Range(request) => ("/etcdserverpb.KV/Range", request.encode_to_vec()),
            Self::Put(request) => {
                let request = pb::PutRequest { lease: lease(request.lease), ..request.clone() };
                ("/etcdserverpb.KV/Put", request.encode_to_vec())
            }
            Self::Delete(request) => ("/etcdserverpb.KV/DeleteRange", request.encode_to_vec()),
            Self::Txn(request) => {
                let mut request = request.clone();
                map_leases(&mut request, lease);
                ("/etcdserverpb.KV/Txn", request.encode_to_vec())
            }
            Self::Compact(request) => ("/etcdserverpb.KV/Compact", request.encode_to_vec()),
            Self::Grant(request) => ("/etcdserverpb.Lease/LeaseGrant", request.encode_to_vec()),
            Self::GrantAssigned { ttl, .. } => {
                ("/etcdserverpb.Lease/LeaseGrant", pb::LeaseGrantRequest { ttl: *ttl, id: 0 }.encode_to_vec())
            }
            Self::Revoke(id) => {
                ("/etcdserverpb.Lease/LeaseRevoke", pb::LeaseRevokeRequest { id: lease(*id) }.encode_to_vec())
            }
            Self::KeepAlive(id) => {
                ("/etcdserverpb.Lease/LeaseKeepAlive", pb::LeaseKeepAliveRequest { id: lease(*id) }.encode_to_vec())
            }
            Self::TimeToLive { id, keys } => {
                let request = pb::LeaseTimeToLiveRequest { id: lease(*id), keys: *keys };
                ("/etcdserverpb.Lease/LeaseTimeToLive", request.encode_to_vec())
            }
            Self::Leases => ("/etcdserverpb.Lease/LeaseLeases", Vec::new()),
            Self::Members { linearizable } => {
                let request = pb::MemberListRequest { linearizable: *linearizable };
                ("/etcdserverpb.Cluster/MemberList", request.encode_to_vec())
            }
            Self::Status => ("/etcdserverpb.Maintenance/Status", Vec::new()),
            Self::Alarms => ("/etcdserverpb.Maintenance/Alarm", Vec::new()),
            Self::Raw { path, body } => (*path, body.to_vec()),
            Self::Watch { .. } | Self::CancelWatch { .. } | Self::Progress { .. } | Self::CloseStream { .. } => {
                return None;
            }
        };
        Some((path, body.into()))
    }
}

fn map_leases(txn: &mut pb::TxnRequest, lease: &dyn Fn(i64) -> i64) {
    for compare in &mut txn.compare {
        if let Some(TargetUnion::Lease(id)) = &mut compare.target_union {
            *id = lease(*id);
        }
    }
    for op in txn.success.iter_mut().chain(&mut txn.failure) {
        match &mut op.request {
            Some(Op::RequestPut(put)) => put.lease = lease(put.lease),
            Some(Op::RequestTxn(inner)) => map_leases(inner, lease),
            _ => {}
        }
    }
}
