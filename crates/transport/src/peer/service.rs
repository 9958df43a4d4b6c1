//! The receiving side: raft messages of other members, checked at the door and handed to the replica.

use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use metrics::counter;
use tailwater_api::peer::peer_server::{Peer, PeerServer};
use tailwater_api::peer::{PeerAck, PeerBatch};
use tonic::{Request, Response, Status, Streaming};

use super::{Peers, hex};
use crate::metrics as names;

/// How long a stream may take until its hello is there.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves `tailwater.peer.v1.Peer`.
#[derive(Clone)]
pub struct PeerService {
    peers: Peers,
}

impl PeerService {
    pub(super) fn new(peers: Peers) -> Self {
        Self { peers }
    }

    /// As a service of the peer port.
    #[must_use]
    pub fn into_server(self) -> PeerServer<Self> {
        // A batch holds more than one message only up to its own bound; a little is added for lengths and tags.
        let config = &self.peers.inner.config;
        let bytes_max = config.message_bytes_max.max(config.batch_bytes_max) + (64 << 10);
        PeerServer::new(self).max_decoding_message_size(bytes_max)
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<PeerAck, Status>> + Send>>;

    async fn exchange(&self, request: Request<Streaming<PeerBatch>>) -> Result<Response<Self::ExchangeStream>, Status> {
        let remote = request.remote_addr();
        let mut batches = request.into_inner();
        let first = tokio::time::timeout(HELLO_TIMEOUT, batches.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no hello"))??;
        let hello = first.as_ref().and_then(|batch| batch.hello.as_ref());
        let inner = self.peers.inner.clone();
        let checked = inner.greeter.check(hello);
        let from = match checked.and_then(|from| inner.check_removed(from).map(|()| from)) {
            Ok(from) => from,
            Err(refusal) => {
                inner.log_refusal(hello, remote, &refusal);
                return Err(refusal);
            }
        };
        self.peers.heard_of(from, hello.map(|hello| hello.peer_urls.as_slice()).unwrap_or_default());
        let received = counter!(names::RECEIVED_BYTES, "From" => hex(from));
        let failures = counter!(names::RECEIVED_FAILURES, "From" => hex(from));
        let mut taken = 0;
        let acks = batches.map(move |batch| {
            let batch = batch.inspect_err(|_| failures.increment(1))?;
            inner.check_removed(from)?;
            let bytes: u64 = batch.messages.iter().map(|message| message.len() as u64).sum();
            // Before there is a replica, messages are lost; raft mends that.
            if let Some(sink) = inner.sink() {
                batch.messages.iter().for_each(|message| sink.receive(message));
            }
            taken += bytes;
            received.increment(bytes);
            Ok(PeerAck { received_bytes: taken })
        });
        let mut stopping = self.peers.inner.stopping.subscribe();
        let stopped = async move { drop(stopping.wait_for(|stopping| *stopping).await) };
        Ok(Response::new(Box::pin(acks.take_until(stopped))))
    }
}
