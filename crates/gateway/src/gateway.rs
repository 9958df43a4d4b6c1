//! What all calls share: the two planes, and the position that reads must not go behind.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use parking_lot::RwLock;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::wire;
use tailwater_api::write::command::Command;
use tailwater_consensus::{Answer, Applied, ProposeError, WritePlane};
use tailwater_eventlog::{EventLog, Position, Revision, StoreHash};
use tailwater_fanout::{Fanout, SocketShare};
use tokio::sync::watch;

use crate::GatewayConfig;
use crate::auth::{AuthView, Credentials, Passwords, Tokens, is_stale};
use crate::metrics::Calls;
use crate::route::Forwarder;
use crate::route::position::Place;
use crate::snapshot::{SnapshotPieces, Snapshots};
use crate::status::Fault;

/// The etcd API in front of both planes; clones share it. Nothing here outlives a restart.
///
/// *Invariant*: `answered` never goes back, and no read, created header or watch "from now on" goes behind it.
#[derive(Clone)]
pub struct Gateway {
    shared: Arc<Shared>,
}

/// Asks a member for the hash of what it holds up to a revision; `None`: the newest.
pub type HashForwarder =
    Box<dyn Fn(Option<Revision>) -> Pin<Box<dyn Future<Output = Result<StoreHash, Fault>> + Send>> + Send + Sync>;

/// Asks a member for its snapshot.
pub type SnapshotForwarder =
    Box<dyn Fn() -> Pin<Box<dyn Future<Output = Result<SnapshotPieces, Fault>> + Send>> + Send + Sync>;

struct Shared {
    write_plane: Arc<dyn WritePlane>,
    fanout: Fanout,
    storage: Option<EventLog>,
    snapshots: Option<Snapshots>,
    hashes: OnceLock<HashForwarder>,
    snapshots_elsewhere: OnceLock<SnapshotForwarder>,
    /// Takes what the fanout of this process does not hold.
    forwarder: OnceLock<Forwarder>,
    config: GatewayConfig,
    tokens: Tokens,
    passwords: Passwords,
    /// The auth state as it was looked at last, decoded.
    auth: ArcSwap<AuthView>,
    answered: AtomicU64,
    serving: watch::Sender<bool>,
    /// Why nothing is answered, if nothing is.
    unready: RwLock<Option<&'static str>>,
    draining: AtomicBool,
    calls: Calls,
    render_metrics: Box<dyn Fn() -> String + Send + Sync>,
}

impl Gateway {
    /// Joins the planes. `storage` is there where this process is a member; `render_metrics` yields the body of `/metrics`.
    ///
    /// # Panics
    /// When the settings of auth can't be used: [`crate::AuthConfig::validate`] says why.
    #[must_use]
    pub fn new(
        write_plane: Arc<dyn WritePlane>,
        fanout: Fanout,
        storage: Option<EventLog>,
        config: GatewayConfig,
        render_metrics: Box<dyn Fn() -> String + Send + Sync>,
    ) -> Self {
        let (serving, _) = watch::channel(true);
        let answered = AtomicU64::new(0);
        let calls = Calls::new(config.extensive_metrics);
        let tokens = config.auth.tokens().expect("settings are validated before they are used");
        let passwords = config.auth.passwords();
        Self {
            shared: Arc::new(Shared {
                write_plane,
                fanout,
                snapshots: storage.clone().map(Snapshots::new),
                storage,
                hashes: OnceLock::new(),
                snapshots_elsewhere: OnceLock::new(),
                forwarder: OnceLock::new(),
                config,
                tokens,
                passwords,
                auth: ArcSwap::from_pointee(AuthView::of(Arc::default())),
                answered,
                serving,
                unready: RwLock::default(),
                draining: AtomicBool::new(false),
                calls,
                render_metrics,
            }),
        }
    }

    /// Hands on from now on what is asked of a storage that this process does not have.
    ///
    /// # Panics
    /// When it was called before.
    pub fn forward_hashes(&self, forwarder: HashForwarder) {
        assert!(self.shared.hashes.set(forwarder).is_ok(), "hashes are forwarded in one way");
    }

    /// Hands on from now on what is asked of a store that this process does not have.
    ///
    /// # Panics
    /// When it was called before.
    pub fn forward_snapshots(&self, forwarder: SnapshotForwarder) {
        assert!(self.shared.snapshots_elsewhere.set(forwarder).is_ok(), "snapshots are forwarded in one way");
    }

    /// `Maintenance.Snapshot`: of this member, else of any.
    pub(crate) async fn snapshot(&self) -> Result<SnapshotPieces, Fault> {
        match (&self.shared.snapshots, self.shared.snapshots_elsewhere.get()) {
            (Some(snapshots), _) => snapshots.open(),
            (None, Some(elsewhere)) => elsewhere().await,
            (None, None) => Err(Fault::unserved("etcdserverpb.Maintenance", "Snapshot")),
        }
    }

    /// The send buffer of a client's new connection.
    #[must_use]
    pub fn share_for_socket(&self) -> SocketShare {
        self.fanout().share_for_socket()
    }

    /// Ends the watches of a client's connection with UNAVAILABLE, so that it resumes them on another. Requests carry their
    /// connection's address as an extension.
    pub fn end_streams_of(&self, peer: SocketAddr) {
        self.fanout().end_streams_of(peer);
    }

    /// Says not ready and not serving from now on; calls are still answered.
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::SeqCst);
        self.shared.serving.send_replace(false);
    }

    /// Refuses calls with UNAVAILABLE from now on for this reason, or answers them again; health says the same. A node
    /// whose tail is not live must not answer from what it has: its clients go elsewhere. Streams end by
    /// [`Fanout::end_streams`].
    pub fn set_unready(&self, reason: Option<&'static str>) {
        *self.shared.unready.write() = reason;
        self.shared.serving.send_replace(reason.is_none() && !self.shared.draining.load(Ordering::SeqCst));
    }

    /// Forgets what was answered: positions of another history do not compare.
    pub fn forget_answered(&self) {
        self.shared.answered.store(0, Ordering::Release);
    }

    /// Why calls are refused, if they are.
    pub(crate) fn unready(&self) -> Option<&'static str> {
        *self.shared.unready.read()
    }

    /// Whether calls are wanted here: it does not drain, and is ready. The receiver sees the changes.
    pub(crate) fn serving(&self) -> watch::Receiver<bool> {
        self.shared.serving.subscribe()
    }

    pub(crate) fn config(&self) -> &GatewayConfig {
        &self.shared.config
    }

    pub(crate) fn tokens(&self) -> &Tokens {
        &self.shared.tokens
    }

    pub(crate) fn passwords(&self) -> &Passwords {
        &self.shared.passwords
    }

    pub(crate) fn auth_view(&self) -> &ArcSwap<AuthView> {
        &self.shared.auth
    }

    pub(crate) fn write_plane(&self) -> &dyn WritePlane {
        &*self.shared.write_plane
    }

    pub(crate) fn fanout(&self) -> &Fanout {
        &self.shared.fanout
    }

    pub(crate) fn storage(&self) -> Option<&EventLog> {
        self.shared.storage.as_ref()
    }

    pub(crate) fn hashes(&self) -> Option<&HashForwarder> {
        self.shared.hashes.get()
    }

    pub(crate) fn calls(&self) -> &Calls {
        &self.shared.calls
    }

    pub(crate) fn render_metrics(&self) -> String {
        (self.shared.render_metrics)()
    }

    /// A header at `revision`.
    pub(crate) fn header(&self, revision: Revision) -> pb::ResponseHeader {
        pb::ResponseHeader {
            cluster_id: self.shared.config.cluster_id,
            member_id: self.shared.config.member_id,
            revision: revision.0,
            raft_term: self.shared.fanout.snapshot().term.0,
        }
    }

    /// A header at the newest revision that is visible here.
    pub(crate) fn current_header(&self) -> pb::ResponseHeader {
        self.header(self.shared.fanout.snapshot().cursor.revision)
    }

    /// Completes the header of an answer of the write plane, which knows the revision only.
    pub(crate) fn complete(&self, header: Option<pb::ResponseHeader>) -> Option<pb::ResponseHeader> {
        match header {
            Some(header) if header.revision > 0 => Some(self.header(Revision(header.revision))),
            _ => Some(self.current_header()),
        }
    }

    /// The highest position that an answer of this gateway has shown.
    pub(crate) fn answered(&self) -> Position {
        Position(self.shared.answered.load(Ordering::Acquire))
    }

    /// Remembers that an answer showed `position`.
    pub(crate) fn remember(&self, position: Position) {
        self.shared.answered.fetch_max(position.0, Ordering::AcqRel);
    }

    /// Waits until a read may be answered: behind everything answered so far, and, unless it is serializable,
    /// behind everything that was acknowledged anywhere before it came.
    pub(crate) async fn settle(&self, serializable: bool) -> Result<(), Fault> {
        let mut position = self.answered();
        if !serializable {
            position = position.max(self.shared.write_plane.barrier().await?);
        }
        self.reach(position).await
    }

    /// Sends reads and watches of what the fanout of this process does not hold to replicas that do.
    ///
    /// # Panics
    /// When it was called before.
    pub fn forward_with(&self, forwarder: Forwarder) {
        forwarder.prefer(self.clone());
        assert!(self.shared.forwarder.set(forwarder).is_ok(), "a gateway forwards in one way");
    }

    pub(crate) fn forwarder(&self) -> Option<&Forwarder> {
        self.shared.forwarder.get()
    }

    /// Waits until what a gateway in front has answered is visible here. Places of another history don't count.
    pub(crate) async fn reach_place(&self, place: Place) -> Result<(), Fault> {
        if self.fanout().snapshot().cursor.history != place.history {
            return Ok(());
        }
        self.reach(place.position).await
    }

    /// What answers of this gateway have shown.
    pub(crate) fn place(&self) -> Place {
        Place { history: self.fanout().snapshot().cursor.history, position: self.answered() }
    }

    /// Waits until `position` is visible here.
    pub(crate) async fn reach(&self, position: Position) -> Result<(), Fault> {
        if self.is_visible(position) {
            return Ok(());
        }
        match tokio::time::timeout(self.shared.config.request_timeout, self.shared.fanout.reach(position)).await {
            Ok(reached) => Ok(reached?),
            Err(_) => Err(Fault::Timeout),
        }
    }

    /// Whether everything up to `position` is visible here.
    pub(crate) fn is_visible(&self, position: Position) -> bool {
        self.shared.fanout.snapshot().cursor.position >= position
    }

    /// Proposes a command made of a client's request of `request_bytes` and waits until it is applied.
    pub(crate) async fn propose(
        &self,
        credentials: &Credentials,
        request_bytes: usize,
        command: Command,
    ) -> Result<Answer, Fault> {
        if self.raft_bytes(request_bytes) > self.shared.config.request_bytes_max {
            return Err(Fault::RequestTooLarge);
        }
        let (caller, view) = self.authorize_command(credentials, &command).await?;
        if !view.rules.is_enabled() {
            return self.settle_proposal(self.shared.write_plane.propose_as(Some(caller), command).await).await;
        }
        // Users or roles may have changed where it is applied and not yet be seen here; it had no effect then.
        let again = command.clone();
        match self.shared.write_plane.propose_as(Some(caller), command).await {
            Err(error) if is_stale(&error) => {
                self.settle(false).await?;
                let (caller, _) = self.authorize_command(credentials, &again).await?;
                self.settle_proposal(self.shared.write_plane.propose_as(Some(caller), again).await).await
            }
            proposed => self.settle_proposal(proposed).await,
        }
    }

    /// What a proposal came to, once it is visible here.
    async fn settle_proposal(&self, proposed: Result<Applied, ProposeError>) -> Result<Answer, Fault> {
        if let Err(error) = &proposed
            && !matches!(error, ProposeError::Refused(_) | ProposeError::TooLarge)
        {
            self.shared.calls.proposal_failed();
        }
        let applied = proposed?;
        self.follow_up(applied.position).await;
        self.remember(applied.position);
        Ok(applied.answer)
    }

    /// A leader elsewhere answers before this process has what it did. Whoever is answered first would make the reads
    /// here wait for it, and when that leader dies they would wait for an election. So the answer waits, as in etcd, where
    /// a member answers after it has applied; in vain if the leader is gone, for what it did is done.
    async fn follow_up(&self, position: Position) {
        if self.write_plane().status().applied < position
            && let Err(fault) = self.reach(position).await
        {
            tracing::debug!(reason = fault.status().1, "answered before it is visible here");
        }
    }

    /// Bytes of the raft request that etcd would make of a request: the request as a field, and a header whose id
    /// begins with the low 16 bits of the member id.
    fn raft_bytes(&self, request_bytes: usize) -> usize {
        let id_bytes = 1 + wire::varint_len(self.shared.config.member_id << 48 | 1 << 40);
        wire::bytes_field_len(1, request_bytes) + wire::bytes_field_len(100, id_bytes)
    }
}
