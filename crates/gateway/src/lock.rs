//! The Lock service, and what it shares with elections: keys under a prefix, one per lease, of which the first made has it.
//!
//! As in etcd, the server is a client of itself here, and its failures come as Unknown with their text. The order of the
//! calls is that of etcd's client library (`client/v3/concurrency`).

use http::request::Parts;
use prost::Message as _;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::mvccpb::{KeyValue, event::EventType};
use tailwater_api::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};

use crate::Gateway;
use crate::caller::{Answers, Caller};
use crate::status::{Code, Fault};

/// Seconds of a lease that a caller without one is given.
const SESSION_TTL: i64 = 60;

pub(crate) const TXN: &str = "/etcdserverpb.KV/Txn";
const RANGE: &str = "/etcdserverpb.KV/Range";
const DELETE: &str = "/etcdserverpb.KV/DeleteRange";
const WATCH: &str = "/etcdserverpb.Watch/Watch";
const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";

impl Gateway {
    /// `Lock.Lock`: waits until the lock is held. Who goes away before that leaves nothing behind.
    pub(crate) async fn lock(&self, head: &Parts, request: LockRequest) -> Result<LockResponse, Fault> {
        let caller = Caller::of(self, head);
        let lock = async {
            let lease = session(&caller, request.lease).await?;
            let queue = Queue::new(&caller, &request.name);
            let key = queue.key(lease);
            let mut acquire = acquire(&queue, &key, lease).await?;
            let (own, owner) = (acquire.own_revision, acquire.owner_revision);
            if owner.is_none_or(|owner| owner == own) {
                return Ok(LockResponse { header: acquire.header.take(), key });
            }
            let abandoned = Abandoned::new(&caller, key.clone(), None);
            queue.wait_for_first(own - 1).await?;
            let found = queue.get(&pb::RangeRequest { key: key.clone().into(), ..Default::default() }).await?;
            abandoned.keep();
            if found.kvs.is_empty() {
                return Err(Fault::Other(Code::Unknown, "mutex: session is expired".to_owned()));
            }
            Ok(LockResponse { header: found.header, key })
        };
        lock.await.map_err(as_client)
    }

    /// `Lock.Unlock`: deletes the key, whoever holds it.
    pub(crate) async fn unlock(&self, head: &Parts, request: UnlockRequest) -> Result<UnlockResponse, Fault> {
        let delete = pb::DeleteRangeRequest { key: request.key.into(), ..Default::default() };
        let deleted = Caller::of(self, head).unary::<pb::DeleteRangeResponse>(DELETE, &delete).await;
        Ok(UnlockResponse { header: deleted.map_err(as_client)?.header })
    }
}

/// What came of putting a key into the queue.
struct Acquired {
    header: Option<pb::ResponseHeader>,
    own_revision: i64,
    /// Of the first key; none when there is none.
    owner_revision: Option<i64>,
}

async fn acquire(queue: &Queue, key: &[u8], lease: i64) -> Result<Acquired, Fault> {
    let owner = queue.first();
    let txn = pb::TxnRequest {
        compare: vec![is_created_at(key, 0)],
        success: vec![put(key, b"", lease), range(owner.clone())],
        failure: vec![range(pb::RangeRequest { key: key.to_vec().into(), ..Default::default() }), range(owner)],
    };
    let done = queue.caller.unary::<pb::TxnResponse>(TXN, &txn).await?;
    let first_of = |at: usize| found(&done, at).map(|found| found.create_revision);
    let revision = done.header.as_ref().map_or(0, |header| header.revision);
    let own_revision = if done.succeeded { revision } else { first_of(0).unwrap_or(revision) };
    Ok(Acquired { own_revision, owner_revision: first_of(1), header: done.header })
}

/// The lease that is asked for; one of the server's choice for none.
pub(crate) async fn session(caller: &Caller, lease: i64) -> Result<i64, Fault> {
    if lease != 0 {
        return Ok(lease);
    }
    let grant = pb::LeaseGrantRequest { ttl: SESSION_TTL, id: 0 };
    Ok(caller.unary::<pb::LeaseGrantResponse>(GRANT, &grant).await?.id)
}

/// The keys that wait for the same thing.
pub(crate) struct Queue {
    pub(crate) caller: Caller,
    prefix: Vec<u8>,
}

impl Queue {
    pub(crate) fn new(caller: &Caller, name: &[u8]) -> Self {
        Self { caller: caller.clone(), prefix: [name, b"/"].concat() }
    }

    /// The key of who waits with this lease.
    pub(crate) fn key(&self, lease: i64) -> Vec<u8> {
        // Go prints a negative number in hexadecimal with its sign.
        let sign = if lease < 0 { "-" } else { "" };
        [&self.prefix[..], format!("{sign}{:x}", lease.unsigned_abs()).as_bytes()].concat()
    }

    /// Asks for the key that was made first.
    pub(crate) fn first(&self) -> pb::RangeRequest {
        self.ordered(pb::range_request::SortOrder::Ascend)
    }

    fn ordered(&self, order: pb::range_request::SortOrder) -> pb::RangeRequest {
        pb::RangeRequest {
            key: self.prefix.clone().into(),
            range_end: self.prefix_end().into(),
            limit: 1,
            sort_order: order as i32,
            sort_target: pb::range_request::SortTarget::Create as i32,
            ..Default::default()
        }
    }

    fn prefix_end(&self) -> Vec<u8> {
        let mut end = self.prefix.clone();
        // The prefix ends with a slash.
        *end.last_mut().expect("a prefix is not empty") += 1;
        end
    }

    pub(crate) async fn get(&self, request: &pb::RangeRequest) -> Result<pb::RangeResponse, Fault> {
        self.caller.unary(RANGE, request).await
    }

    /// Waits until no key is left that was made at or before this revision.
    pub(crate) async fn wait_for_first(&self, max_create_revision: i64) -> Result<(), Fault> {
        let last = pb::RangeRequest { max_create_revision, ..self.ordered(pb::range_request::SortOrder::Descend) };
        loop {
            let found = self.get(&last).await?;
            let Some(before) = found.kvs.first() else { return Ok(()) };
            let revision = found.header.as_ref().map_or(0, |header| header.revision);
            let mut watch = Watching::open(&self.caller, before.key.to_vec(), Vec::new(), revision).await?;
            while watch.next().await?.events.iter().all(|event| event.r#type() != EventType::Delete) {}
        }
    }

    /// Watches all keys of the queue.
    pub(crate) async fn watch(&self, from: i64) -> Result<Watching, Fault> {
        Watching::open(&self.caller, self.prefix.clone(), self.prefix_end(), from).await
    }
}

/// One watch.
pub(crate) struct Watching(Answers);

impl Watching {
    pub(crate) async fn open(caller: &Caller, key: Vec<u8>, range_end: Vec<u8>, from: i64) -> Result<Self, Fault> {
        let create = pb::WatchCreateRequest {
            key: key.into(),
            range_end: range_end.into(),
            start_revision: from,
            ..Default::default()
        };
        let request_union = Some(pb::watch_request::RequestUnion::CreateRequest(create));
        Ok(Self(caller.stream(WATCH, &pb::WatchRequest { request_union }).await?))
    }

    /// The next response that says something.
    pub(crate) async fn next(&mut self) -> Result<pb::WatchResponse, Fault> {
        loop {
            let lost = || Fault::Other(Code::Unknown, "lost watcher waiting for delete".to_owned());
            let message = self.0.next().await?.ok_or_else(lost)?;
            let response =
                pb::WatchResponse::decode(message).map_err(|error| Fault::Other(Code::Internal, error.to_string()))?;
            if response.compact_revision != 0 {
                return Err(Fault::Compacted);
            }
            if response.canceled {
                return Err(Fault::Other(Code::Unknown, response.cancel_reason));
            }
            if !response.events.is_empty() {
                return Ok(response);
            }
        }
    }
}

/// Takes a key back when its owner goes away before it has what it waited for.
pub(crate) struct Abandoned {
    caller: Option<Caller>,
    key: Vec<u8>,
    /// Only the key that was made there.
    create_revision: Option<i64>,
}

impl Abandoned {
    pub(crate) fn new(caller: &Caller, key: Vec<u8>, create_revision: Option<i64>) -> Self {
        Self { caller: Some(caller.clone()), key, create_revision }
    }

    /// The key stays.
    pub(crate) fn keep(mut self) {
        self.caller = None;
    }
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        let (Some(caller), key) = (self.caller.take(), std::mem::take(&mut self.key)) else { return };
        let compare = self.create_revision.map(|revision| is_created_at(&key, revision)).into_iter().collect();
        let txn = pb::TxnRequest { compare, success: vec![delete(&key)], failure: Vec::new() };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            // Else the key goes with its lease.
            if let Err(fault) = caller.unary::<pb::TxnResponse>(TXN, &txn).await {
                tracing::debug!(reason = fault.status().1, "a key that was waited with was not taken back");
            }
        });
    }
}

/// What a client in etcd's server says of a failure, its gRPC code lost on the way.
pub(crate) fn as_client(fault: Fault) -> Fault {
    Fault::Other(Code::Unknown, fault.status().1.to_owned())
}

/// The first key of an answer to a range in a txn.
pub(crate) fn found(done: &pb::TxnResponse, at: usize) -> Option<&KeyValue> {
    match &done.responses.get(at)?.response {
        Some(pb::response_op::Response::ResponseRange(found)) => found.kvs.first(),
        _ => None,
    }
}

/// Whether the key was made at this revision; 0: whether there is none.
pub(crate) fn is_created_at(key: &[u8], revision: i64) -> pb::Compare {
    pb::Compare {
        result: pb::compare::CompareResult::Equal as i32,
        target: pb::compare::CompareTarget::Create as i32,
        key: key.to_vec().into(),
        target_union: Some(pb::compare::TargetUnion::CreateRevision(revision)),
        ..Default::default()
    }
}

pub(crate) fn put(key: &[u8], value: &[u8], lease: i64) -> pb::RequestOp {
    let put = pb::PutRequest { key: key.to_vec().into(), value: value.to_vec().into(), lease, ..Default::default() };
    pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }
}

pub(crate) fn range(request: pb::RangeRequest) -> pb::RequestOp {
    pb::RequestOp { request: Some(pb::request_op::Request::RequestRange(request)) }
}

pub(crate) fn delete(key: &[u8]) -> pb::RequestOp {
    let delete = pb::DeleteRangeRequest { key: key.to_vec().into(), ..Default::default() };
    pb::RequestOp { request: Some(pb::request_op::Request::RequestDeleteRange(delete)) }
}
