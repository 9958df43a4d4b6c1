//! The write plane of a node without a replica: through its upstream to whoever leads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tailwater_api::write::{Caller, command::Command};
use tailwater_consensus::{Applied, ConsensusStatus, LeaseInfo, Reply, Right, WritePlane};
use tailwater_eventlog::{LeaseId, Member, MemberId, Position, Term};
use tailwater_fanout::Fanout;
use tailwater_transport::{Directory, LinkConfig, RemoteSource, Router, describe};

/// How often the source and the leader are looked at.
const PERIOD: Duration = Duration::from_millis(50);
/// Between two searches for the relay that is followed.
const SEARCH_PAUSE: Duration = Duration::from_millis(500);
/// How long a node may take to say what it is.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(1);

/// A router whose state is that of this node's own store.
pub(crate) struct TierPlane {
    pub(crate) router: Router,
    pub(crate) fanout: Fanout,
    /// What this process holds in memory, as it was looked at last.
    pub(crate) resident_bytes: Arc<AtomicU64>,
}

impl WritePlane for TierPlane {
    fn propose_as(&self, caller: Option<Caller>, command: Command) -> Reply<'_, Applied> {
        self.router.propose_as(caller, command)
    }

    fn barrier(&self) -> Reply<'_, Position> {
        self.router.barrier()
    }

    fn lease_keep_alive(&self, id: LeaseId) -> Reply<'_, Option<i64>> {
        self.router.lease_keep_alive(id)
    }

    fn lease_time_to_live(&self, id: LeaseId, keys: bool) -> Reply<'_, Option<LeaseInfo>> {
        self.router.lease_time_to_live(id, keys)
    }

    fn check_lease(&self, caller: Caller, right: Right, id: Option<LeaseId>) -> Reply<'_, ()> {
        self.router.check_lease(caller, right, id)
    }

    fn leases(&self) -> Reply<'_, Vec<LeaseId>> {
        self.router.leases()
    }

    fn move_leader(&self, to: MemberId) -> Reply<'_, ()> {
        self.router.move_leader(to)
    }

    /// What is visible here. Nothing is on disk, so the size of the store is that of memory.
    fn status(&self) -> ConsensusStatus {
        let snapshot = self.fanout.snapshot();
        let bytes = self.resident_bytes.load(Ordering::Relaxed);
        ConsensusStatus {
            leader: snapshot.leader.unwrap_or(MemberId(0)),
            term: snapshot.term,
            committed: snapshot.cursor.position.0,
            applied: snapshot.cursor.position,
            disk_bytes: bytes,
            disk_bytes_in_use: bytes,
            is_learner: false,
        }
    }
}

/// Tells the router whom to ask: the leader itself while a member is followed, else the relay that is, since its
/// network may be the only one that this node reaches. Runs until dropped.
pub(crate) struct RouteKeeper {
    pub(crate) router: Router,
    pub(crate) directory: Arc<Directory>,
    pub(crate) fanout: Fanout,
    pub(crate) remote: Arc<RemoteSource>,
    pub(crate) upstream: Vec<String>,
    pub(crate) link: LinkConfig,
    /// As they were when the group was found.
    pub(crate) members: Vec<Member>,
}

impl RouteKeeper {
    pub(crate) async fn run(self) {
        let mut known: Option<(Vec<Member>, MemberId, Term)> = None;
        let mut relay: Option<Member> = None;
        let mut searched: Option<Instant> = None;
        loop {
            let snapshot = self.fanout.snapshot();
            let mut members = match snapshot.members.is_empty() {
                true => self.members.clone(),
                false => snapshot.members.clone(),
            };
            let source = self.source();
            let is_member = source.is_none_or(|source| members.iter().any(|member| member.id == source));
            let mut leader = snapshot.leader.unwrap_or(MemberId(0));
            if let Some(source) = source.filter(|_| !is_member) {
                let is_known = relay.as_ref().is_some_and(|relay| relay.id == source);
                if !is_known && searched.is_none_or(|searched| searched.elapsed() >= SEARCH_PAUSE) {
                    searched = Some(Instant::now());
                    relay = self.find(source).await.or(relay);
                }
                if let Some(relay) = &relay {
                    members.push(relay.clone());
                    leader = relay.id;
                }
            }
            // Only what is new: the router may know better by now than the tail tells.
            let now = (members, leader, snapshot.term);
            if known.as_ref() != Some(&now) {
                self.directory.set_members(&now.0);
                self.router.set_leader(leader);
                known = Some(now);
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// The node that is followed now.
    fn source(&self) -> Option<MemberId> {
        // The last of the path is this node.
        self.remote.core_word()?.path.iter().rev().nth(1).copied().map(MemberId)
    }

    /// The upstream with this id, reached where this node was told to look for it.
    async fn find(&self, id: MemberId) -> Option<Member> {
        for url in &self.upstream {
            let described = describe(url, self.directory.cluster_id(), DESCRIBE_TIMEOUT, &self.link).await;
            if let Ok(described) = described
                && described.node.id == id
            {
                return Some(Member {
                    id,
                    name: described.node.name,
                    peer_urls: vec![url.clone()],
                    ..Default::default()
                });
            }
        }
        None
    }
}
