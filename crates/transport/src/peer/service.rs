//! The receiving side: raft messages of other members, checked at the door and handed to the replica.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use metrics::{Counter, counter};
use tailwater_api::peer::peer_server::{Peer, PeerServer};
use tailwater_api::peer::{PeerAck, PeerBatch};
use tailwater_eventlog::MemberId;
use tokio::time::{Instant, Sleep};
use tonic::{Request, Response, Status, Streaming};

use super::{Inner, Peers, hex};
use crate::metrics as names;

/// How long a stream may take until its hello is there.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a batch may wait for others to be acknowledged with.
const ACK_DELAY: Duration = Duration::from_millis(20);
/// Bytes that are acknowledged at once: well below what a sender may have on its way.
const ACK_BYTES: u64 = 256 << 10;

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
        let acks = Acks {
            batches,
            inner,
            from,
            received,
            failures,
            taken: 0,
            acknowledged: 0,
            delay: Box::pin(tokio::time::sleep(ACK_DELAY)),
        };
        let mut stopping = self.peers.inner.stopping.subscribe();
        let stopped = async move { drop(stopping.wait_for(|stopping| *stopping).await) };
        Ok(Response::new(Box::pin(acks.take_until(stopped))))
    }
}

/// Takes messages, and acknowledges them.
struct Acks {
    batches: Streaming<PeerBatch>,
    inner: Arc<Inner>,
    from: MemberId,
    received: Counter,
    failures: Counter,
    /// Bytes of messages.
    taken: u64,
    acknowledged: u64,
    /// Armed when something is taken and nothing before it waits.
    delay: Pin<Box<Sleep>>,
}

impl Acks {
    /// Whether the acknowledgement may not wait.
    fn receive(&mut self, batch: &PeerBatch) -> Result<bool, Status> {
        self.inner.check_removed(self.from)?;
        let bytes: u64 = batch.messages.iter().map(|message| message.len() as u64).sum();
        // Before there is a replica, messages are lost; raft mends that.
        if let Some(sink) = self.inner.sink() {
            batch.messages.iter().for_each(|message| sink.receive(message));
        }
        if self.taken == self.acknowledged {
            self.delay.as_mut().reset(Instant::now() + ACK_DELAY);
        }
        self.taken += bytes;
        self.received.increment(bytes);
        Ok(batch.ack_now || self.taken - self.acknowledged >= ACK_BYTES)
    }

    fn acknowledge(&mut self) -> PeerAck {
        self.acknowledged = self.taken;
        PeerAck { received_bytes: self.taken }
    }
}

impl Stream for Acks {
    type Item = Result<PeerAck, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while let Poll::Ready(batch) = self.batches.poll_next_unpin(context) {
            let taken = match batch {
                Some(Ok(batch)) => self.receive(&batch),
                Some(Err(status)) => {
                    self.failures.increment(1);
                    Err(status)
                }
                None => return Poll::Ready(None),
            };
            match taken {
                Ok(true) => return Poll::Ready(Some(Ok(self.acknowledge()))),
                Ok(false) => {}
                Err(status) => return Poll::Ready(Some(Err(status))),
            }
        }
        if self.taken == self.acknowledged {
            return Poll::Pending;
        }
        std::task::ready!(self.delay.as_mut().poll(context));
        Poll::Ready(Some(Ok(self.acknowledge())))
    }
}
