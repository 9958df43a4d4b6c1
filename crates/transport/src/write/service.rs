//! The leader's side of the write plane: answers requests of other nodes while this member leads.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt};
use prost::Message as _;
use tailwater_api::write::write_plane_server::{WritePlane as WritePlaneRpc, WritePlaneServer};
use tailwater_api::write::{
    self as pb, WriteRequest, WriteRequests, WriteResponse, WriteResponses, write_request, write_response,
};
use tailwater_consensus::{ProposeError, Right, WritePlane};
use tailwater_eventlog::{LeaseId, MemberId};
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

use super::codec;
use crate::{Greeter, Router};

/// How long a stream may take until its hello is there.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// How much one stream may ask at once.
#[derive(Clone, Debug)]
pub struct WriteServiceConfig {
    /// Requests without an answer; what comes beyond it waits in the sender. Default 65,536.
    pub requests_max: usize,
    /// The same in bytes. Default 256 MiB.
    pub request_bytes_max: usize,
    /// Answers that leave together, in bytes. Default 1 MiB.
    pub batch_bytes_max: usize,
    /// A larger message is refused; above what a batch or one request may hold. Default 256 MiB.
    pub message_bytes_max: usize,
}

impl Default for WriteServiceConfig {
    fn default() -> Self {
        Self {
            requests_max: 1 << 16,
            request_bytes_max: 256 << 20,
            batch_bytes_max: 1 << 20,
            message_bytes_max: 256 << 20,
        }
    }
}

/// Serves `tailwater.write.v1.WritePlane`: on every member, where who does not lead says so, per request; and on relays,
/// which hand everything on.
#[derive(Clone)]
pub struct WriteService {
    shared: Arc<Shared>,
}

struct Shared {
    replica: Arc<dyn WritePlane>,
    greeter: Greeter,
    config: WriteServiceConfig,
    /// Whether it hands on what others must answer.
    forwards: bool,
    stopping: watch::Sender<bool>,
}

impl WriteService {
    /// Asks this member's own replica.
    #[must_use]
    pub fn new(replica: Arc<dyn WritePlane>, greeter: Greeter, config: WriteServiceConfig) -> Self {
        Self::serving(replica, greeter, config, false)
    }

    /// Hands requests on to wherever `router` finds the leader. Who asks here sees one node that answers everything.
    #[must_use]
    pub fn forwarding(router: Router, greeter: Greeter, config: WriteServiceConfig) -> Self {
        Self::serving(Arc::new(router), greeter, config, true)
    }

    fn serving(replica: Arc<dyn WritePlane>, greeter: Greeter, config: WriteServiceConfig, forwards: bool) -> Self {
        Self { shared: Arc::new(Shared { replica, greeter, config, forwards, stopping: watch::channel(false).0 }) }
    }

    /// As a service of the peer port.
    #[must_use]
    pub fn into_server(self) -> WritePlaneServer<Self> {
        let bytes_max = self.shared.config.message_bytes_max;
        WritePlaneServer::new(self).max_decoding_message_size(bytes_max).max_encoding_message_size(usize::MAX)
    }

    /// Ends all streams.
    pub fn stop(&self) {
        self.shared.stopping.send_replace(true);
    }
}

#[tonic::async_trait]
impl WritePlaneRpc for WriteService {
    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<WriteResponses, Status>> + Send>>;

    async fn exchange(
        &self,
        request: Request<Streaming<WriteRequests>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let mut requests = request.into_inner();
        let first = tokio::time::timeout(HELLO_TIMEOUT, requests.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no hello"))??;
        let from = self.shared.greeter.check(first.as_ref().and_then(|batch| batch.hello.as_ref()))?;
        tracing::debug!(%from, "a node sends its requests here");
        let mut exchange = Exchange {
            shared: self.shared.clone(),
            requests,
            is_closed: false,
            answers: FuturesUnordered::new(),
            bytes: 0,
        };
        exchange.begin(first.map(|batch| batch.requests).unwrap_or_default());
        let mut stopping = self.shared.stopping.subscribe();
        let stopped = async move { drop(stopping.wait_for(|stopping| *stopping).await) };
        Ok(Response::new(Box::pin(exchange.take_until(stopped))))
    }
}

/// A request's answer to come, with what the request held.
type Answering = Pin<Box<dyn Future<Output = (usize, WriteResponse)> + Send>>;

/// One stream. It is pulled by HTTP/2: a node that does not read its answers is not read either.
struct Exchange {
    shared: Arc<Shared>,
    requests: Streaming<WriteRequests>,
    is_closed: bool,
    answers: FuturesUnordered<Answering>,
    /// Of requests without an answer.
    bytes: usize,
}

impl Exchange {
    fn begin(&mut self, requests: Vec<WriteRequest>) {
        for request in requests {
            let bytes = request.encoded_len();
            self.bytes += bytes;
            let shared = self.shared.clone();
            self.answers.push(Box::pin(async move { (bytes, answer(&shared, request).await) }));
        }
    }

    fn has_room(&self) -> bool {
        let config = &self.shared.config;
        self.answers.len() < config.requests_max && self.bytes < config.request_bytes_max
    }

    /// Takes requests while there are some and there is room for their answers.
    fn poll_requests(&mut self, context: &mut Context<'_>) -> Result<(), Status> {
        while !self.is_closed && self.has_room() {
            match self.requests.poll_next_unpin(context) {
                Poll::Ready(Some(batch)) => self.begin(batch?.requests),
                Poll::Ready(None) => self.is_closed = true,
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    /// Answers that are there, up to the size of a batch.
    fn poll_answers(&mut self, context: &mut Context<'_>) -> Vec<WriteResponse> {
        let mut responses = Vec::new();
        let mut bytes = 0;
        while bytes < self.shared.config.batch_bytes_max
            && let Poll::Ready(Some((request_bytes, response))) = self.answers.poll_next_unpin(context)
        {
            self.bytes -= request_bytes;
            bytes += response.encoded_len();
            responses.push(response);
        }
        responses
    }
}

impl Stream for Exchange {
    type Item = Result<WriteResponses, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Err(status) = self.poll_requests(context) {
            return Poll::Ready(Some(Err(status)));
        }
        let responses = self.poll_answers(context);
        if !responses.is_empty() {
            return Poll::Ready(Some(Ok(WriteResponses { responses })));
        }
        match self.is_closed && self.answers.is_empty() {
            true => Poll::Ready(None),
            // Without an answer there is no more room than before: whoever is waited for wakes us.
            false => Poll::Pending,
        }
    }
}

/// Answers one request, if this member leads or hands it on.
async fn answer(shared: &Shared, request: WriteRequest) -> WriteResponse {
    let leader = shared.replica.status().leader;
    let response = if shared.forwards || leader == shared.greeter.member_id() {
        ask(&*shared.replica, request.request).await
    } else {
        codec::not_leader(leader)
    };
    WriteResponse { request_id: request.request_id, response: Some(response) }
}

async fn ask(replica: &dyn WritePlane, request: Option<write_request::Request>) -> write_response::Response {
    use write_request::Request;
    use write_response::Response;
    let answered: Result<Response, ProposeError> = match request {
        Some(Request::Propose(pb::Command { command: Some(command), caller, .. })) => {
            replica.propose_as(caller, command).await.map(|applied| Response::Applied(codec::encode_applied(applied)))
        }
        Some(Request::Barrier(pb::Barrier {})) => {
            replica.barrier().await.map(|position| Response::Barrier(pb::BarrierPassed { position: position.0 }))
        }
        Some(Request::KeepAlive(pb::LeaseKeepAlive { id })) => {
            let renewed = replica.lease_keep_alive(LeaseId(id)).await;
            renewed.map(|granted_ttl_seconds| Response::KeepAlive(pb::LeaseRenewed { granted_ttl_seconds }))
        }
        Some(Request::TimeToLive(pb::LeaseTimeToLive { id, keys })) => {
            let lease = replica.lease_time_to_live(LeaseId(id), keys).await;
            lease.map(|lease| Response::TimeToLive(pb::LeaseRemaining { lease: lease.map(codec::encode_lease) }))
        }
        Some(Request::Leases(pb::ListLeases {})) => {
            let leases = replica.leases().await;
            leases.map(|ids| Response::Leases(pb::LeaseIds { ids: ids.into_iter().map(|id| id.0).collect() }))
        }
        Some(Request::CheckLease(pb::CheckLease { caller, id, write })) => {
            let right = if write { Right::Write } else { Right::Read };
            let checked = replica.check_lease(caller.unwrap_or_default(), right, id.map(LeaseId)).await;
            checked.map(|()| Response::Checked(pb::LeaseChecked {}))
        }
        Some(Request::MoveLeader(pb::MoveLeader { to })) => {
            replica.move_leader(MemberId(to)).await.map(|()| Response::Moved(pb::LeaderMoved {}))
        }
        None | Some(Request::Propose(pb::Command { command: None, .. })) => return codec::unknown_request(),
    };
    answered.unwrap_or_else(|error| codec::failure(&error))
}
