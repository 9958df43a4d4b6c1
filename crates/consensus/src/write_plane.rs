//! What a gateway asks of the write plane, wherever its leader is.

use std::pin::Pin;

use tailwater_api::write::{Caller, command::Command};
use tailwater_eventlog::{LeaseId, MemberId, Position};

use crate::{Applied, Consensus, ConsensusStatus, LeaseInfo, ProposeError, Right};

/// An answer to come. Dropping it withdraws nothing.
pub type Reply<'a, T> = Pin<Box<dyn Future<Output = Result<T, ProposeError>> + Send + 'a>>;

/// The write plane as a gateway reaches it: this process's own replica while that leads, else the leader over a stream.
///
/// A command is handed to a leader at most once. After `LeaderChanged`, `Timeout` and `Stopped` its outcome is unknown;
/// after any other error it has no effect.
pub trait WritePlane: Send + Sync {
    /// Proposes a command for a client, or of the system's own (`None`); answered when the leader has applied it. What a
    /// client's rights do not allow is refused when it is applied.
    fn propose_as(&self, caller: Option<Caller>, command: Command) -> Reply<'_, Applied>;

    /// Proposes a command of the system's own.
    fn propose(&self, command: Command) -> Reply<'_, Applied> {
        self.propose_as(None, command)
    }

    /// A position that a linearizable read which arrived before this call must have reached.
    fn barrier(&self) -> Reply<'_, Position>;

    /// Renews a lease; the granted TTL in seconds, `None` when there is no such lease.
    fn lease_keep_alive(&self, id: LeaseId) -> Reply<'_, Option<i64>>;

    /// What the leader knows of a lease; its keys when `keys`.
    fn lease_time_to_live(&self, id: LeaseId, keys: bool) -> Reply<'_, Option<LeaseInfo>>;

    /// Whether a client may read, or write, the keys attached to a lease, or to any (`None`), as the leader knows them; the
    /// reason is a refusal.
    fn check_lease(&self, caller: Caller, right: Right, id: Option<LeaseId>) -> Reply<'_, ()>;

    /// The leases, the first to expire first. As this member knows them when it has a replica.
    fn leases(&self) -> Reply<'_, Vec<LeaseId>>;

    /// Hands leadership to a voting member; answered when that member leads.
    fn move_leader(&self, to: MemberId) -> Reply<'_, ()>;

    /// What this process knows of the write plane now. Cheap.
    fn status(&self) -> ConsensusStatus;
}

impl WritePlane for Consensus {
    fn propose_as(&self, caller: Option<Caller>, command: Command) -> Reply<'_, Applied> {
        Box::pin(Self::propose_as(self, caller, command))
    }

    fn barrier(&self) -> Reply<'_, Position> {
        Box::pin(Self::barrier(self))
    }

    fn lease_keep_alive(&self, id: LeaseId) -> Reply<'_, Option<i64>> {
        Box::pin(Self::lease_keep_alive(self, id))
    }

    fn lease_time_to_live(&self, id: LeaseId, keys: bool) -> Reply<'_, Option<LeaseInfo>> {
        Box::pin(Self::lease_time_to_live(self, id, keys))
    }

    fn check_lease(&self, caller: Caller, right: Right, id: Option<LeaseId>) -> Reply<'_, ()> {
        Box::pin(Self::check_lease(self, caller, right, id))
    }

    fn leases(&self) -> Reply<'_, Vec<LeaseId>> {
        Box::pin(std::future::ready(Ok(Self::leases(self))))
    }

    fn move_leader(&self, to: MemberId) -> Reply<'_, ()> {
        Box::pin(Self::move_leader(self, to))
    }

    fn status(&self) -> ConsensusStatus {
        Self::status(self)
    }
}
