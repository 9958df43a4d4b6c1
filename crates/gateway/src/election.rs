//! The Election service: the first key of a queue leads, and its value is what it proclaims. See [`crate::lock`].

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::Stream;
use http::request::Parts;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::mvccpb::{KeyValue, event::EventType};
use tailwater_api::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest, ProclaimResponse,
    ResignRequest, ResignResponse,
};

use crate::Gateway;
use crate::body::{Chunks, framed};
use crate::caller::Caller;
use crate::lock::{Abandoned, Queue, TXN, Watching, as_client, delete, found, is_created_at, put, range, session};
use crate::status::{Code, Fault};

impl Gateway {
    /// `Election.Campaign`: waits until it is elected. Who goes away before that leaves nothing behind.
    pub(crate) async fn campaign(&self, head: &Parts, request: CampaignRequest) -> Result<CampaignResponse, Fault> {
        let caller = Caller::of(self, head);
        campaign(&caller, request).await.map_err(as_client)
    }

    /// `Election.Proclaim`: the leader's new value.
    pub(crate) async fn proclaim(&self, head: &Parts, request: ProclaimRequest) -> Result<ProclaimResponse, Fault> {
        let leader = request.leader.ok_or_else(missing_leader)?;
        let caller = Caller::of(self, head);
        let proclaimed = async {
            let lease = session(&caller, leader.lease).await?;
            proclaim(&caller, &leader.key, leader.rev, &request.value, lease).await
        };
        Ok(ProclaimResponse { header: proclaimed.await.map_err(as_client)? })
    }

    /// `Election.Leader`.
    pub(crate) async fn leader(&self, head: &Parts, request: &LeaderRequest) -> Result<LeaderResponse, Fault> {
        let queue = Queue::new(&Caller::of(self, head), &request.name);
        let found = queue.get(&queue.first()).await.map_err(as_client)?;
        let no_leader = || Fault::Other(Code::Unknown, "election: no leader".to_owned());
        let kv = found.kvs.into_iter().next().ok_or_else(no_leader)?;
        Ok(LeaderResponse { header: found.header, kv: Some(kv) })
    }

    /// `Election.Resign`. Who leads no longer has nothing to give up.
    pub(crate) async fn resign(&self, head: &Parts, request: ResignRequest) -> Result<ResignResponse, Fault> {
        let leader = request.leader.ok_or_else(missing_leader)?;
        let caller = Caller::of(self, head);
        let txn = pb::TxnRequest {
            compare: vec![is_created_at(&leader.key, leader.rev)],
            success: vec![delete(&leader.key)],
            failure: Vec::new(),
        };
        let resigned = async {
            session(&caller, leader.lease).await?;
            caller.unary::<pb::TxnResponse>(TXN, &txn).await
        };
        Ok(ResignResponse { header: resigned.await.map_err(as_client)?.header })
    }

    /// `Election.Observe`.
    pub(crate) fn observe(&self, head: &Parts, request: &LeaderRequest) -> ObserveCall {
        ObserveCall::new(Queue::new(&Caller::of(self, head), &request.name))
    }
}

async fn campaign(caller: &Caller, request: CampaignRequest) -> Result<CampaignResponse, Fault> {
    let lease = session(caller, request.lease).await?;
    let queue = Queue::new(caller, &request.name);
    let key = queue.key(lease);
    let txn = pb::TxnRequest {
        compare: vec![is_created_at(&key, 0)],
        success: vec![put(&key, &request.value, lease)],
        failure: vec![range(pb::RangeRequest { key: key.clone().into(), ..Default::default() })],
    };
    let done = caller.unary::<pb::TxnResponse>(TXN, &txn).await?;
    let mut revision = done.header.as_ref().map_or(0, |header| header.revision);
    // It campaigns already, maybe with another value.
    let own = if done.succeeded { None } else { found(&done, 0) };
    if let Some(own) = own {
        revision = own.create_revision;
    }
    let abandoned = Abandoned::new(caller, key.clone(), Some(revision));
    if own.is_some_and(|own| own.value[..] != request.value[..]) {
        proclaim(caller, &key, revision, &request.value, lease).await?;
    }
    queue.wait_for_first(revision - 1).await?;
    abandoned.keep();
    let leader = LeaderKey { name: request.name, key, rev: revision, lease };
    Ok(CampaignResponse { header: done.header, leader: Some(leader) })
}

async fn proclaim(
    caller: &Caller,
    key: &[u8],
    revision: i64,
    value: &[u8],
    lease: i64,
) -> Result<Option<pb::ResponseHeader>, Fault> {
    let txn = pb::TxnRequest {
        compare: vec![is_created_at(key, revision)],
        success: vec![put(key, value, lease)],
        failure: Vec::new(),
    };
    let done = caller.unary::<pb::TxnResponse>(TXN, &txn).await?;
    if done.succeeded { Ok(done.header) } else { Err(Fault::Other(Code::Unknown, "election: not leader".to_owned())) }
}

fn missing_leader() -> Fault {
    Fault::Other(Code::Unknown, "\"leader\" field must be provided".to_owned())
}

/// One observe RPC: each value of each leader.
pub(crate) struct ObserveCall {
    values: Pin<Box<dyn Stream<Item = LeaderResponse> + Send>>,
}

/// Where an observer stands.
enum Observing {
    /// It looks for a leader.
    Looking,
    /// It has values to show, the next one last; and follows the leader's key, if that is there.
    Showing(Vec<LeaderResponse>, Option<Box<Watching>>),
}

impl Observing {
    /// The next value; none when the queue can't be read any more.
    async fn next(mut self, queue: &Queue) -> Option<(LeaderResponse, Self)> {
        loop {
            self = match self {
                Self::Looking => Self::find(queue).await.ok()?,
                Self::Showing(mut values, watch) => match (values.pop(), watch) {
                    (Some(value), watch) => return Some((value, Self::Showing(values, watch))),
                    (None, None) => Self::Looking,
                    (None, Some(watch)) => Self::follow(watch).await.ok()?,
                },
            };
        }
    }

    async fn find(queue: &Queue) -> Result<Self, Fault> {
        let leader = look(queue).await?;
        let key = leader.kv.as_ref().map(|kv| kv.key.to_vec()).unwrap_or_default();
        let from = leader.header.as_ref().map_or(0, |header| header.revision) + 1;
        let watch = Watching::open(&queue.caller, key, Vec::new(), from).await?;
        Ok(Self::Showing(vec![leader], Some(Box::new(watch))))
    }

    async fn follow(mut watch: Box<Watching>) -> Result<Self, Fault> {
        let response = watch.next().await?;
        let is_gone = response.events.iter().any(|event| event.r#type() == EventType::Delete);
        let header = response.header;
        // What was proclaimed before the end is shown, and then the next leader.
        let puts = response.events.into_iter().take_while(|event| event.r#type() == EventType::Put);
        let mut values: Vec<_> = puts.map(|event| LeaderResponse { header, kv: event.kv }).collect();
        values.reverse();
        Ok(Self::Showing(values, (!is_gone).then_some(watch)))
    }
}

impl ObserveCall {
    fn new(queue: Queue) -> Self {
        let values = futures_util::stream::unfold((queue, Observing::Looking), |(queue, observing)| async move {
            let (value, observing) = observing.next(&queue).await?;
            Some((value, (queue, observing)))
        });
        Self { values: Box::pin(values) }
    }
}

/// The leader now, or the first to come.
async fn look(queue: &Queue) -> Result<LeaderResponse, Fault> {
    let now = queue.get(&queue.first()).await?;
    if let Some(kv) = now.kvs.into_iter().next() {
        return Ok(LeaderResponse { header: now.header, kv: Some(kv) });
    }
    let revision = now.header.as_ref().map_or(0, |header| header.revision);
    let mut watch = queue.watch(revision).await?;
    loop {
        let response = watch.next().await?;
        let first = response.events.into_iter().find(|event| event.r#type() == EventType::Put);
        if let Some(kv) = first.and_then(|event| event.kv) {
            let header = response.header.map(|header| at(header, &kv));
            return Ok(LeaderResponse { header, kv: Some(kv) });
        }
    }
}

/// A batch may hold several; the header is the one's that is shown.
fn at(header: pb::ResponseHeader, kv: &KeyValue) -> pb::ResponseHeader {
    pb::ResponseHeader { revision: kv.mod_revision, ..header }
}

impl Chunks for ObserveCall {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let value = ready!(self.values.as_mut().poll_next(cx));
        Poll::Ready(value.map(|value| framed(&value)))
    }

    fn status(&self) -> (i32, String) {
        (Code::Unknown as i32, "election: observe closed early".to_owned())
    }
}
