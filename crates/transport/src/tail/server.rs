//! The service: what is asked, whether it can be answered, and how many at a time.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use prost::Message as _;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::tail as wire;
use tailwater_api::tail::tail_server::{Tail, TailServer};
use tailwater_eventlog::{
    Background, CopyPoint, EventLog, FoldHold, HashError, KeyRange, MemberId, Revision, Scope, Source, StoreHash,
};
use tokio::sync::{Semaphore, watch};
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

use super::codec::{MESSAGE_BYTES_MAX, PROTOCOL_VERSION, cursor_in, range_in};
use super::description::{Description, NodeDescription};
use super::hash::HashFailed;
use super::rate::ByteRate;
use super::serving::{self, Messages, Serving};
use super::topology::Topology;

mod copy;
mod follow;
mod history;
mod transfer;

/// How a source is served.
#[derive(Clone, Debug)]
pub struct TailServiceConfig {
    /// Of this node; readers of another cluster are refused. 0: not checked. Default 0.
    pub cluster_id: u64,
    /// A follower hears from its source at least this often. Default 100 ms.
    pub heartbeat_interval: Duration,
    /// Followers at a time; each is a thread that mostly waits. Default 256.
    pub followers_max: usize,
    /// Transfers at a time, and member copies at a time. Default 4 each.
    pub transfers_max: usize,
    /// History reads at a time; others wait. Default 8.
    pub history_reads_max: usize,
    /// Bytes per second of all transfers and copies together, so that writes go on; 0: no bound. Default 128 MiB.
    pub transfer_bytes_per_second: u64,
    /// Bytes per second of all history reads together; 0: no bound. Default 64 MiB.
    pub history_bytes_per_second: u64,
    /// A transfer, copy or history read whose reader takes nothing for so long ends. Default 60 s.
    pub stall_max: Duration,
    /// Log and base are kept for a transfer or copy for so long at most. Default 1 h.
    pub hold_max: Duration,
}

impl Default for TailServiceConfig {
    fn default() -> Self {
        Self {
            cluster_id: 0,
            heartbeat_interval: Duration::from_millis(100),
            followers_max: 256,
            transfers_max: 4,
            history_reads_max: 8,
            transfer_bytes_per_second: 128 << 20,
            history_bytes_per_second: 64 << 20,
            stall_max: Duration::from_secs(60),
            hold_max: Duration::from_secs(3600),
        }
    }
}

/// What a node knows of the core: through whom it hears from it, and how long ago it did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CoreWord {
    /// Node ids from the core down to this node, which is the last.
    pub path: Vec<u64>,
    /// Since the core was last heard: zero at the leader, since the leader's last word at another member.
    pub age: Duration,
}

/// Makes the source of one reader: each reads on its own.
pub type SourceFactory = Box<dyn Fn() -> Arc<dyn Source> + Send + Sync>;
/// Tells the word of the core now.
pub type CoreWordTeller = Box<dyn Fn() -> CoreWord + Send + Sync>;
/// Tells what this node is now, without its readers.
pub type DescriptionTeller = Box<dyn Fn() -> Description + Send + Sync>;

/// Asks elsewhere for the hash up to a revision; 0: the newest.
pub type HashForwarder =
    Box<dyn Fn(Revision) -> Pin<Box<dyn Future<Output = Result<StoreHash, HashFailed>> + Send>> + Send + Sync>;

/// The messages of a snapshot.
pub type SnapshotMessages = Pin<Box<dyn futures_util::Stream<Item = Result<pb::SnapshotResponse, Status>> + Send>>;
/// Begins a snapshot, of this node's log or elsewhere.
pub type SnapshotOpener =
    Box<dyn Fn() -> Pin<Box<dyn Future<Output = Result<SnapshotMessages, Status>> + Send>> + Send + Sync>;

/// History reads that use the processor at a time: together they weigh less than one thread of the write plane.
const HISTORY_TURNS: usize = 2;
/// What a reader may announce of itself, in bytes.
const ANNOUNCED_BYTES_MAX: usize = 64 << 10;

struct Inner {
    config: TailServiceConfig,
    source: SourceFactory,
    /// What members copy, and what is held for transfers; a relay has none.
    log: Option<EventLog>,
    word: CoreWordTeller,
    description: OnceLock<DescriptionTeller>,
    hashes: OnceLock<HashForwarder>,
    snapshots: OnceLock<SnapshotOpener>,
    topology: Topology,
    followers: Arc<Semaphore>,
    transfers: Arc<Semaphore>,
    copies: Arc<Semaphore>,
    history_reads: Arc<Semaphore>,
    /// Of those, the ones that look for events at this moment rather than wait for their readers.
    history_turns: Semaphore,
    transfer_rate: Arc<ByteRate>,
    history_rate: Arc<ByteRate>,
    stopping: watch::Sender<bool>,
    threads: TaskTracker,
}

/// Serves a source to other nodes; clones share it.
#[derive(Clone)]
pub struct TailService {
    inner: Arc<Inner>,
}

impl TailService {
    /// Of a source, and the log that members copy where there is one.
    #[must_use]
    pub fn new(config: TailServiceConfig, source: SourceFactory, log: Option<EventLog>, word: CoreWordTeller) -> Self {
        let semaphore = |permits: usize| Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)));
        let inner = Inner {
            source,
            log,
            word,
            description: OnceLock::new(),
            hashes: OnceLock::new(),
            snapshots: OnceLock::new(),
            topology: Topology::default(),
            followers: semaphore(config.followers_max),
            transfers: semaphore(config.transfers_max),
            copies: semaphore(config.transfers_max),
            history_reads: semaphore(config.history_reads_max),
            history_turns: Semaphore::new(HISTORY_TURNS),
            transfer_rate: Arc::new(ByteRate::new(config.transfer_bytes_per_second)),
            history_rate: Arc::new(ByteRate::new(config.history_bytes_per_second)),
            stopping: watch::Sender::new(false),
            threads: TaskTracker::new(),
            config,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Answers from now on what this node is; before, nobody is told.
    ///
    /// # Panics
    /// When it was called before.
    pub fn describe_with(&self, teller: DescriptionTeller) {
        assert!(self.inner.description.set(teller).is_ok(), "a node is described in one way");
    }

    /// Hands on from now on what is asked of a log that this node does not have.
    ///
    /// # Panics
    /// When it was called before.
    pub fn forward_hashes(&self, forwarder: HashForwarder) {
        assert!(self.inner.hashes.set(forwarder).is_ok(), "hashes are forwarded in one way");
    }

    /// Answers from now on who asks for a snapshot.
    ///
    /// # Panics
    /// When it was called before.
    pub fn serve_snapshots(&self, opener: SnapshotOpener) {
        assert!(self.inner.snapshots.set(opener).is_ok(), "snapshots are served in one way");
    }

    /// Who follows this node.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.inner.topology
    }

    /// As a gRPC service.
    #[must_use]
    pub fn into_grpc(self) -> TailServer<Self> {
        TailServer::new(self).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Ends every stream with UNAVAILABLE; readers go elsewhere.
    pub fn stop(&self) {
        self.inner.stopping.send_replace(true);
        self.inner.threads.close();
    }

    /// Resolves when the threads of all streams have let go of the source, after [`TailService::stop`].
    pub async fn ended(&self) {
        self.inner.threads.wait().await;
    }

    /// How many streams are served now.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.inner.threads.len()
    }

    /// Whether the reader speaks this protocol, and means this cluster.
    fn check(&self, version: u32, cluster_id: u64) -> Result<(), Status> {
        let own = self.inner.config.cluster_id;
        if version != PROTOCOL_VERSION {
            let text = format!("protocol version {version} is not spoken here, version {PROTOCOL_VERSION} is");
            return Err(Status::failed_precondition(text));
        }
        if own != 0 && cluster_id != 0 && own != cluster_id {
            return Err(Status::failed_precondition(format!("this source is of cluster {own:x}, not {cluster_id:x}")));
        }
        Ok(())
    }

    fn serving(&self, kind: &'static str, slots: &Arc<Semaphore>) -> Result<Serving, Status> {
        let permit = Arc::clone(slots).try_acquire_owned();
        let permit =
            permit.map_err(|_| Status::resource_exhausted(format!("too many readers of this kind: {kind}")))?;
        let thread = self.inner.threads.token();
        Ok(Serving {
            kind,
            background: None,
            permit,
            thread,
            stopping: self.inner.stopping.subscribe(),
            rate: None,
            stall_max: None,
        })
    }

    /// A flow that is bounded in bytes per second, and does not wait for its reader for ever.
    fn bulk(&self, kind: &'static str, slots: &Arc<Semaphore>) -> Result<Serving, Status> {
        let rate = Some(Arc::clone(&self.inner.transfer_rate));
        let stall_max = Some(self.inner.config.stall_max);
        Ok(Serving { background: Some(Background::Transfer), rate, stall_max, ..self.serving(kind, slots)? })
    }
}

#[tonic::async_trait]
impl Tail for TailService {
    type FollowStream = Messages<wire::FollowResponse>;
    type TransferStream = Messages<wire::TransferResponse>;
    type HistoryStream = Messages<wire::HistoryResponse>;
    type CopyStream = Messages<wire::CopyResponse>;
    type SnapshotStream = SnapshotMessages;

    async fn follow(&self, request: Request<wire::FollowRequest>) -> Result<Response<Self::FollowStream>, Status> {
        let request = request.into_inner();
        self.check(request.protocol_version, request.cluster_id)?;
        let cursor = request.cursor.as_ref().map(cursor_in).ok_or_else(|| Status::invalid_argument("no cursor"))?;
        if request.reader.as_ref().is_some_and(|reader| reader.encoded_len() > ANNOUNCED_BYTES_MAX) {
            return Err(Status::invalid_argument("the reader announces too much of itself"));
        }
        let ranges = request.ranges.into_iter().map(range_in).collect();
        let serving = self.serving("follow", &self.inner.followers)?;
        let inner = Arc::clone(&self.inner);
        let announced = request.reader.map(NodeDescription::from_wire).unwrap_or_default();
        let reader = inner.topology.enter(NodeDescription { id: MemberId(request.reader_id), ..announced });
        let messages = serving::spawn(serving, move |sink| follow::serve(&inner, &reader, cursor, ranges, sink))?;
        Ok(Response::new(messages))
    }

    async fn transfer(
        &self,
        request: Request<wire::TransferRequest>,
    ) -> Result<Response<Self::TransferStream>, Status> {
        let request = request.into_inner();
        self.check(request.protocol_version, request.cluster_id)?;
        let serving = self.bulk("transfer", &self.inner.transfers)?;
        let inner = Arc::clone(&self.inner);
        Ok(Response::new(serving::spawn(serving, move |sink| transfer::serve(&inner, request, sink))?))
    }

    async fn history(&self, request: Request<wire::HistoryRequest>) -> Result<Response<Self::HistoryStream>, Status> {
        let request = request.into_inner();
        self.check(request.protocol_version, request.cluster_id)?;
        let permit = Arc::clone(&self.inner.history_reads).acquire_owned().await;
        let serving = Serving {
            kind: "history",
            background: Some(Background::History),
            permit: permit.map_err(|_| Status::unavailable("the source is shutting down"))?,
            thread: self.inner.threads.token(),
            stopping: self.inner.stopping.subscribe(),
            rate: Some(Arc::clone(&self.inner.history_rate)),
            stall_max: Some(self.inner.config.stall_max),
        };
        let inner = Arc::clone(&self.inner);
        Ok(Response::new(serving::spawn(serving, move |sink| history::serve(&inner, request, sink))?))
    }

    async fn copy(&self, request: Request<wire::CopyRequest>) -> Result<Response<Self::CopyStream>, Status> {
        let request = request.into_inner();
        self.check(request.protocol_version, request.cluster_id)?;
        let Some(log) = self.inner.log.clone() else {
            return Err(Status::unimplemented("this node holds no log that a member could copy"));
        };
        let serving = self.bulk("copy", &self.inner.copies)?;
        let inner = Arc::clone(&self.inner);
        Ok(Response::new(serving::spawn(serving, move |sink| copy::serve(&inner, &log, &request, sink))?))
    }

    async fn hash(&self, request: Request<wire::HashRequest>) -> Result<Response<wire::HashResponse>, Status> {
        let request = request.into_inner();
        self.check(request.protocol_version, request.cluster_id)?;
        let at = Revision(request.revision);
        let Some(log) = self.inner.log.clone() else {
            let forwarder = self.inner.hashes.get();
            let forwarder = forwarder.ok_or_else(|| Status::unimplemented("this node holds no log to be hashed"))?;
            return forwarder(at).await.map(|hash| Response::new(hash_out(hash))).map_err(hash_refused);
        };
        // One at a time with the copies: both read everything.
        let permit = Arc::clone(&self.inner.copies).try_acquire_owned();
        let _permit = permit.map_err(|_| Status::resource_exhausted("too many copies and hashes under way"))?;
        let at = Some(at).filter(|at| *at != Revision(0));
        let hashed = tokio::task::spawn_blocking(move || log.hash(at)).await;
        let hashed = hashed.map_err(|_| Status::unavailable("the source is shutting down"))?;
        let hash = hashed.map_err(|error| match error {
            HashError::Compacted(_) => Status::out_of_range(error.to_string()),
            HashError::Future(_) => Status::not_found(error.to_string()),
            HashError::Storage(_) => Status::data_loss(error.to_string()),
        })?;
        Ok(Response::new(hash_out(hash)))
    }

    async fn snapshot(
        &self,
        request: Request<wire::SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let request = request.into_inner();
        self.check(request.protocol_version, request.cluster_id)?;
        let opener = self.inner.snapshots.get();
        let opener = opener.ok_or_else(|| Status::unimplemented("this node serves no snapshots"))?;
        Ok(Response::new(opener().await?))
    }

    async fn describe(
        &self,
        request: Request<wire::DescribeRequest>,
    ) -> Result<Response<wire::DescribeResponse>, Status> {
        let request = request.into_inner();
        self.check(request.protocol_version, request.cluster_id)?;
        let teller = self.inner.description.get();
        let teller = teller.ok_or_else(|| Status::unavailable("this node does not know yet what it is"))?;
        let description = Description { readers: self.inner.topology.readers(), ..teller() };
        Ok(Response::new(description.to_wire()))
    }
}

/// Whether the source holds what a reader asks for.
fn covers(source: &dyn Source, ranges: &[KeyRange]) -> Result<(), Status> {
    if Scope::new(source.ranges()).covers_all(ranges) {
        Ok(())
    } else {
        Err(Status::failed_precondition("out of scope: this source does not hold every key that is asked for"))
    }
}

fn hash_out(hash: StoreHash) -> wire::HashResponse {
    wire::HashResponse { hash: hash.hash, compacted_revision: hash.compacted.0, revision: hash.revision.0 }
}

fn hash_refused(failed: HashFailed) -> Status {
    match failed {
        HashFailed::Compacted(text) => Status::out_of_range(text),
        HashFailed::NotReached(text) => Status::not_found(text),
        HashFailed::Failed(status) => status,
        HashFailed::Connect(_) | HashFailed::Silent => Status::unavailable(failed.to_string()),
    }
}

/// Keeps what a reader needs as long as it comes on, and not for ever.
struct Hold {
    hold: FoldHold,
    until: Instant,
    lifetime: Duration,
}

impl Hold {
    /// From now on; between two renewals lies at most a stalled message.
    fn take(log: &EventLog, config: &TailServiceConfig) -> Self {
        let lifetime = config.stall_max * 2;
        Self { hold: log.copy_begin(lifetime), until: Instant::now() + config.hold_max, lifetime }
    }

    fn point(&self) -> CopyPoint {
        self.hold.point()
    }

    /// Ends by itself when its lifetime has passed.
    fn linger(self) {
        self.renew();
        self.hold.linger();
    }

    fn renew(&self) {
        if Instant::now() < self.until {
            self.hold.renew(self.lifetime);
        }
    }
}
