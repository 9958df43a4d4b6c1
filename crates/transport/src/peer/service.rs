//! The receiving side: raft messages of other members, checked at the door and handed to the replica.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use metrics::counter;
use tailwater_api::peer::peer_server::{Peer, PeerServer};
use tailwater_api::peer::{PeerAck, PeerBatch};
use tonic::{Request, Response, Status, Streaming};

use super::{Inner, hex};
use crate::metrics as names;

/// How long a stream may take until its hello is there.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves `tailwater.peer.v1.Peer`.
#[derive(Clone)]
pub struct PeerService {
    inner: Arc<Inner>,
}

impl PeerService {
    pub(super) fn new(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    /// As a service of the peer port.
    #[must_use]
    pub fn into_server(self) -> PeerServer<Self> {
        let bytes_max = self.inner.config.message_bytes_max;
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
        let checked = self.inner.greeter.check(hello);
        let from = match checked.and_then(|from| self.inner.check_removed(from).map(|()| from)) {
            Ok(from) => from,
            Err(refusal) => {
                self.inner.log_refusal(hello, remote, &refusal);
                return Err(refusal);
            }
        };
        let inner = self.inner.clone();
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
        let mut stopping = self.inner.stopping.subscribe();
        let stopped = async move { drop(stopping.wait_for(|stopping| *stopping).await) };
        Ok(Response::new(Box::pin(acks.take_until(stopped))))
    }
}
