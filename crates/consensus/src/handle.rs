//! The handle through which everything else reaches the write plane.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crossbeam::channel::TrySendError;
use parking_lot::Mutex;
use prost::Message as _;
use protobuf::Message as _;
use raft::eraftpb::Message;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::write::{self, Caller, command::Command};
use tailwater_eventlog::{EventLog, LeaseId, Member, MemberId, Position, Staged, StorageError, Term};
use tokio::sync::{oneshot, watch};

use crate::machine::quota;
use crate::replica::apply::ApplyJob;
use crate::replica::core::{CatchUp, Change, Pending};
use crate::replica::driver::checkpoint_request;
use crate::replica::lessor::Renewal;
use crate::replica::queue::Sender;
use crate::replica::shared::{INBOX_ITEMS_MAX, INBOX_MESSAGE_BYTES_MAX, Shared, Waiter};
use crate::start::Threads;
use crate::{Applied, ApplyError, PeerTransport, ProposeError, Right, SourceReady, reach};

/// What a command's envelope may add to a request: proposer, proposal, the tags and lengths around it, a chosen lease id.
const ENVELOPE_BYTES_MAX: usize = 64;

/// How a replica runs. Validated by [`Consensus::start`].
#[derive(Clone, Debug)]
pub struct ConsensusConfig {
    /// Holds `raft/` and `state/`; made if missing.
    pub data_dir: PathBuf,
    /// This member.
    pub member_id: MemberId,
    /// The group.
    pub cluster_id: u64,
    /// The founding members when `founding`; else the members as far as they are known. Used until the directory's own
    /// state tells.
    pub initial_members: Vec<Member>,
    /// Whether an empty directory founds the group together with the initial members. Without, this member waits for the
    /// group that has added it: it neither votes nor campaigns before the group's log or state names it. Default true.
    pub founding: bool,
    /// Go on alone with what this directory holds up to the commit index, as a group of one with a new history: for a
    /// group that has lost its majority for good. Default false.
    pub force_new_cluster: bool,
    /// Refuse a change of membership that could cost the group its quorum. Default true.
    pub strict_reconfig_check: bool,
    /// Duration of one raft tick; the leader's heartbeat interval. Default 100 ms.
    pub heartbeat_interval: Duration,
    /// Ticks without a leader before an election. Default 10.
    pub election_ticks: usize,
    /// A larger encoded request is refused, give or take the few bytes of a command's envelope: the exact limit is the
    /// gateway's, which counts as etcd does. Default 1.5 MiB.
    pub request_bytes_max: usize,
    /// Commands gathered into one raft entry, in bytes. Default 4 MiB.
    pub batch_bytes_max: usize,
    /// Bytes of proposals that may wait; beyond it they are refused. Default 256 MiB.
    pub proposal_queue_bytes_max: usize,
    /// Committed entries that may wait to be applied; beyond it proposals are refused. Default 5000.
    pub apply_lag_max: u64,
    /// A proposal without an answer fails after this. Default 5 s + 2 × election timeout.
    pub request_timeout: Duration,
    /// Shortest TTL of a lease, in seconds: ceil(3 × election ticks ÷ 2 × heartbeat). 2 with the defaults.
    pub lease_ttl_min: i64,
    /// Bytes of storage above which NOSPACE is raised; 0: no quota.
    pub quota_bytes: u64,
    /// Bytes of memtables at which the state is flushed.
    pub memtable_bytes: usize,
    /// Bytes of RocksDB block cache.
    pub block_cache_bytes: usize,
    /// Bytes of raft log beyond which it is trimmed, to half of that: what is left serves peers that were briefly away. A
    /// peer that is slow holds up to four times as much.
    pub raft_log_bytes: u64,
    /// Raft entries kept in memory until they are applied and all live peers hold them, in bytes that they take there.
    pub raft_recent_bytes_max: usize,
    /// Bytes of frames kept in memory for tail readers.
    pub tail_hot_bytes_max: usize,
    /// Added to each sync of the raft log; only tests and experiments set it.
    pub sync_delay: Duration,
}

/// What `Maintenance.Status` and the metrics tell of the write plane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsensusStatus {
    /// 0: none known.
    pub leader: MemberId,
    /// The current term.
    pub term: Term,
    /// The committed raft index.
    pub committed: u64,
    /// The applied raft index.
    pub applied: Position,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Of these, bytes of live data (an estimate).
    pub disk_bytes_in_use: u64,
    /// Whether this member has no vote.
    pub is_learner: bool,
}

/// A lease as the leader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseInfo {
    /// Its id.
    pub id: LeaseId,
    /// As granted, seconds.
    pub granted_ttl: i64,
    /// Left, whole seconds, rounded down.
    pub remaining_ttl: i64,
    /// Attached keys, sorted; empty unless asked for.
    pub keys: Vec<bytes::Bytes>,
}

/// The replica can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The config contradicts itself or the data directory.
    #[error("{0}")]
    Config(String),
    /// The event log can't be opened.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The raft log can't be opened: file, offset and reason.
    #[error("raft log: {0}")]
    RaftLog(String),
}

/// A copied state is not taken over; this member goes on as it was.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The member has gone on past it by itself.
    #[error("the copied state stands at {copied}, this member at {own}")]
    Behind {
        /// Where this member stands.
        own: Position,
        /// Where the copied state stands.
        copied: Position,
    },
    /// The copied state is of another history.
    #[error("the copied state is of another history")]
    OtherHistory,
    /// This member stops.
    #[error("stopped")]
    Stopped,
}

/// Handle on the running replica; clones share it.
#[derive(Clone)]
pub struct Consensus {
    pub(crate) shared: Arc<Shared>,
    /// Taken by the call that stops them.
    pub(crate) threads: Arc<Mutex<Option<Threads>>>,
    pub(crate) events: EventLog,
    /// The threads own it, since it may own a handle like this one.
    pub(crate) peers: Weak<dyn PeerTransport>,
    /// Emptied at the end, so that the apply thread sees that nobody is left.
    pub(crate) apply: Arc<Mutex<Option<Sender<ApplyJob>>>>,
}

impl Consensus {
    /// Opens the data directory, recovers, and starts the threads. What fanouts in this process
    /// follow. Returns once the stored state is loaded; what the raft log holds above it is applied in the
    /// background and reaches followers through the tail. The first start of a directory also waits until its history
    /// is founded, which takes a quorum of the group: [`SourceReady::wait`].
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(config: ConsensusConfig, peers: Arc<dyn PeerTransport>) -> Result<(Self, SourceReady), StartError> {
        crate::start::start(config, peers)
    }

    /// A raft message of another member. One that can't be read, or for which there is no room, is dropped as if it had
    /// been lost on the way.
    pub fn receive(&self, bytes: &[u8]) {
        let mut message = Message::default();
        match message.merge_from_bytes(bytes) {
            Ok(()) => self.accept(message, bytes.len()),
            Err(error) => tracing::warn!(%error, "a raft message can't be read"),
        }
    }

    fn accept(&self, message: Message, bytes: usize) {
        let config = &self.shared.config;
        // A member that was removed, and does not know it, must not disturb the group.
        if message.to != config.member_id.0 || self.is_removed(MemberId(message.from)) || self.shared.stopping() {
            return;
        }
        {
            let mut inbox = self.shared.inbox.lock();
            let room = inbox.messages.is_empty() || inbox.message_bytes + bytes <= INBOX_MESSAGE_BYTES_MAX;
            if !room || inbox.messages.len() >= INBOX_ITEMS_MAX {
                return;
            }
            inbox.message_bytes += bytes;
            inbox.messages.push(message);
        }
        self.shared.wake();
    }

    /// Whether a member has left the group for good: whoever carries messages refuses it, and tells it why.
    #[must_use]
    pub fn is_removed(&self, member: MemberId) -> bool {
        self.shared.group.lock().removed.binary_search(&member).is_ok()
    }

    /// Another member says that this one was removed: it stops for that reason. One that was away when it was removed
    /// learns of it in no other way.
    pub fn report_removed(&self) {
        self.shared.told_removed.store(true, Ordering::Release);
        self.shared.wake();
    }

    /// What this member must copy from another before it can go on; `None` while its log goes on by itself.
    #[must_use]
    pub fn catch_up_wanted(&self) -> watch::Receiver<Option<CatchUp>> {
        self.shared.catch_up.subscribe()
    }

    /// Where this member keeps its state, and stages the copy that it takes over.
    #[must_use]
    pub fn event_log(&self) -> EventLog {
        self.events.clone()
    }

    /// A message to this member was lost: the leader sends it one probe at a time until it answers.
    pub fn report_unreachable(&self, member: MemberId) {
        let mut inbox = self.shared.inbox.lock();
        if !inbox.unreachable.contains(&member) {
            inbox.unreachable.push(member);
        }
        drop(inbox);
        self.shared.wake();
    }

    /// Goes on at a copied state, which [`Consensus::catch_up_wanted`] asked for: the state is switched, followers of the tail
    /// begin again, and the raft log follows. Durable when it is answered; a crash at any point leaves a directory that
    /// starts. Cancel safe: a dropped wait does not withdraw the copy.
    ///
    /// # Errors
    /// See [`InstallError`].
    pub async fn install(&self, staged: Staged) -> Result<(), InstallError> {
        let (reply, answer) = oneshot::channel();
        let mut job = ApplyJob::Install(Box::new(staged), reply);
        loop {
            let Some(apply) = self.apply.lock().clone() else { return Err(InstallError::Stopped) };
            job = match apply.try_send(job) {
                Ok(()) => break,
                Err(TrySendError::Disconnected(_)) => return Err(InstallError::Stopped),
                // The apply thread is behind; a copy took long, and may wait.
                Err(TrySendError::Full(job)) => job,
            };
            drop(apply);
            tokio::time::sleep(self.shared.config.heartbeat_interval).await;
        }
        answer.await.unwrap_or(Err(InstallError::Stopped))
    }

    /// Hands leadership to a voting member; answered when that member leads.
    ///
    /// # Errors
    /// `NoLeader` when this member does not lead; `BadTransferee` for a learner or a stranger; `Timeout` when the other did not take over within an election timeout.
    pub async fn move_leader(&self, to: MemberId) -> Result<(), ProposeError> {
        if self.status().leader != self.shared.config.member_id {
            return Err(ProposeError::NoLeader);
        }
        if !self.shared.group.lock().conf_state.voters.contains(&to.0) {
            return Err(ProposeError::BadTransferee);
        }
        self.shared.inbox.lock().move_leader = Some(to);
        self.shared.wake();
        let tick = self.shared.config.heartbeat_interval;
        for _ in 0..self.shared.config.election_ticks {
            tokio::time::sleep(tick).await;
            if self.status().leader == to {
                return Ok(());
            }
        }
        Err(ProposeError::Timeout)
    }

    /// Proposes a command of the system's own; see [`Consensus::propose_as`].
    ///
    /// # Errors
    /// As there.
    pub async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        self.propose_as(None, command).await
    }

    /// Proposes a command and waits until it is committed *and applied* here, if the caller may. Cancel safe: a dropped
    /// wait does not withdraw the command. A lease or a new member without an id gets a random one, and a TTL below
    /// the shortest is raised to it.
    ///
    /// # Errors
    /// See [`ProposeError`]; after `LeaderChanged`, `Timeout` and `Stopped` the command may have taken effect.
    pub async fn propose_as(&self, caller: Option<Caller>, mut command: Command) -> Result<Applied, ProposeError> {
        self.complete(&mut command);
        let shared = &self.shared;
        if let Some(change) = Change::of(&command).filter(|_| shared.config.strict_reconfig_check)
            && let Some(peers) = self.peers.upgrade()
        {
            reach::check_connected(change, shared.config.member_id, &shared.group.lock().members, &*peers)?;
        }
        let cost = quota::cost(&command);
        if cost > 0 && over_quota(&self.events, shared.config.quota_bytes, cost) {
            raise_no_space(shared);
            return Err(ApplyError::NoSpace.into());
        }
        enqueue(shared, caller, command)?.await.unwrap_or(Err(ProposeError::Stopped))
    }

    /// What must be decided once, before the command is the same for all members.
    fn complete(&self, command: &mut Command) {
        if let Command::LeaseGrant(grant) = command {
            grant.ttl = grant.ttl.max(self.shared.config.lease_ttl_min);
            while grant.id == 0 {
                grant.id = rand::random::<i64>() & i64::MAX;
            }
        }
        if let Command::MemberAdd(write::MemberAdd { member: Some(member) }) = command {
            while member.id == 0 {
                member.id = rand::random();
            }
        }
    }

    /// The position that a linearizable read which arrived before this call must have reached. Shared by all that
    /// wait: a call joins only a confirmation of leadership that starts after it.
    ///
    /// # Errors
    /// `NoLeader`, `Timeout`, `LeaderChanged`, `Stopped`.
    pub async fn barrier(&self) -> Result<Position, ProposeError> {
        // In this order: what is acknowledged before the first look is applied at the second.
        if self.shared.serves_alone.load(Ordering::SeqCst) && !self.shared.stopping() {
            return Ok(Position(self.shared.applied.get()));
        }
        let (waiter, answer) = oneshot::channel();
        {
            let mut inbox = self.shared.inbox.lock();
            if self.shared.stopping() {
                return Err(ProposeError::Stopped);
            }
            if inbox.barriers.len() >= INBOX_ITEMS_MAX {
                return Err(ProposeError::TooManyRequests);
            }
            inbox.barriers.push(waiter);
        }
        self.shared.wake();
        match tokio::time::timeout(self.shared.config.request_timeout, answer).await {
            Ok(answer) => answer.unwrap_or(Err(ProposeError::Stopped)),
            Err(_) if self.status().leader == MemberId(0) => Err(ProposeError::NoLeader),
            Err(_) => Err(ProposeError::Timeout),
        }
    }

    /// Renews a lease in the leader's memory after its leadership was confirmed; no raft entry, unless the lease went
    /// so long without a renewal that its remaining time was recorded. Returns the granted TTL in seconds, `None` when
    /// the lease does not exist.
    ///
    /// # Errors
    /// As [`Consensus::barrier`].
    pub async fn lease_keep_alive(&self, id: LeaseId) -> Result<Option<i64>, ProposeError> {
        let announced = Announced::new(&self.shared, id);
        self.barrier().await?;
        let renewal = self.shared.lessor.lock().renew(id);
        drop(announced);
        match renewal {
            Renewal::Renewed { ttl, checkpointed: false } => Ok(Some(ttl)),
            Renewal::Renewed { ttl, checkpointed: true } => {
                self.propose(Command::LeaseCheckpoint(checkpoint_request([(id, 0)]))).await?;
                Ok(Some(ttl))
            }
            Renewal::Unknown => Ok(None),
            Renewal::NotLeader => Err(ProposeError::LeaderChanged),
            Renewal::Expiring(gone) => match tokio::time::timeout(self.shared.config.request_timeout, gone).await {
                Ok(Ok(())) => Ok(None),
                Ok(Err(_)) if self.shared.stopping() => Err(ProposeError::Stopped),
                Ok(Err(_)) => Err(ProposeError::LeaderChanged),
                Err(_) => Err(ProposeError::Timeout),
            },
        }
    }

    /// What the leader knows of a lease.
    ///
    /// # Errors
    /// As [`Consensus::barrier`].
    pub async fn lease_time_to_live(&self, id: LeaseId, keys: bool) -> Result<Option<LeaseInfo>, ProposeError> {
        self.barrier().await?;
        let Some((granted_ttl, remaining_ttl)) = self.shared.lessor.lock().time_to_live(id) else { return Ok(None) };
        let mut info = LeaseInfo { id, granted_ttl, remaining_ttl, keys: Vec::new() };
        if keys {
            let (reply, answer) = oneshot::channel();
            self.ask_apply(ApplyJob::LeaseKeys(id, reply))?;
            match answer.await.map_err(|_| ProposeError::Stopped)? {
                Some(keys) => info.keys = keys,
                None => return Ok(None),
            }
        }
        Ok(Some(info))
    }

    /// Whether a client may read, or write, the keys attached to a lease, or to any (`None`): by the state that is applied
    /// here when it is asked.
    ///
    /// # Errors
    /// `Refused` with the reason; `TooManyRequests`, `Stopped`.
    pub async fn check_lease(&self, caller: Caller, right: Right, id: Option<LeaseId>) -> Result<(), ProposeError> {
        let (reply, answer) = oneshot::channel();
        self.ask_apply(ApplyJob::CheckLease(caller, right, id, reply))?;
        Ok(answer.await.map_err(|_| ProposeError::Stopped)??)
    }

    /// Never blocks: a full queue refuses.
    fn ask_apply(&self, job: ApplyJob) -> Result<(), ProposeError> {
        let apply = self.apply.lock();
        let apply = apply.as_ref().ok_or(ProposeError::Stopped)?;
        apply.try_send(job).map_err(|error| match error.is_full() {
            true => ProposeError::TooManyRequests,
            false => ProposeError::Stopped,
        })
    }

    /// This member.
    #[must_use]
    pub fn member_id(&self) -> MemberId {
        self.shared.config.member_id
    }

    /// Leases known here, the first to expire first. A local read.
    #[must_use]
    pub fn leases(&self) -> Vec<LeaseId> {
        self.shared.lessor.lock().ids()
    }

    /// What this member knows of itself now. Cheap.
    #[must_use]
    pub fn status(&self) -> ConsensusStatus {
        let mut status = self.shared.status.lock().clone();
        status.applied = Position(self.shared.applied.get());
        (status.disk_bytes, status.disk_bytes_in_use) = self.events.disk_bytes();
        status
    }

    /// Resolves when the replica has stopped, with the reason when it stopped by itself (a failed disk, a broken
    /// log); `None` after [`Consensus::stop`].
    pub async fn stopped(&self) -> Option<String> {
        let mut end = self.shared.end.subscribe();
        match end.wait_for(Option::is_some).await {
            Ok(end) => end.clone().flatten(),
            Err(_) => None,
        }
    }

    /// Stops the threads after what is queued was synced, and flushes. Blocks. The threads let go of the files; they
    /// are closed, and the directory can be opened again, once the last clone of this handle and of the source is
    /// dropped too.
    pub fn stop(&self) {
        self.shared.stop();
        self.apply.lock().take();
        let Some(threads) = self.threads.lock().take() else { return };
        threads.join();
        if let Err(error) = self.events.flush() {
            // The raft log holds what was not flushed.
            tracing::error!(%error, "last flush failed");
        }
        self.shared.end.send_if_modified(|end| end.is_none() && end.replace(None).is_none());
    }
}

/// A keepalive on its way; while it is, its lease does not expire.
struct Announced<'a> {
    shared: &'a Shared,
    id: LeaseId,
}

impl<'a> Announced<'a> {
    fn new(shared: &'a Shared, id: LeaseId) -> Self {
        shared.lessor.lock().announce(id);
        Self { shared, id }
    }
}

impl Drop for Announced<'_> {
    fn drop(&mut self) {
        self.shared.lessor.lock().give_up(self.id);
    }
}

/// Whether a command of this cost does not fit any more.
pub(crate) fn over_quota(events: &EventLog, quota: u64, cost: u64) -> bool {
    quota > 0 && events.disk_bytes().0 + cost >= quota
}

/// Proposes this member's NOSPACE alarm; nobody waits for it.
pub(crate) fn raise_no_space(shared: &Arc<Shared>) {
    let alarm = pb::AlarmRequest {
        action: pb::alarm_request::AlarmAction::Activate as i32,
        member_id: shared.config.member_id.0,
        alarm: pb::AlarmType::Nospace as i32,
    };
    if let Err(error) = enqueue(shared, None, Command::Alarm(alarm)) {
        tracing::warn!(%error, "NOSPACE could not be raised");
    }
}

type AnswerReceiver = oneshot::Receiver<Result<Applied, ProposeError>>;

/// Puts a command into the inbox, within the bounds.
fn enqueue(shared: &Arc<Shared>, caller: Option<Caller>, command: Command) -> Result<AnswerReceiver, ProposeError> {
    let config = &shared.config;
    let proposal_id = shared.next_proposal.fetch_add(1, Ordering::Relaxed);
    let change = Change::of(&command);
    let envelope_bytes = ENVELOPE_BYTES_MAX + caller.as_ref().map_or(0, prost::Message::encoded_len);
    let command = write::Command { proposal_id, proposer_id: shared.proposer_id, caller, command: Some(command) };
    let bytes = command.encoded_len();
    if bytes > config.request_bytes_max.saturating_add(envelope_bytes) {
        return Err(ProposeError::TooLarge);
    }
    let lag = shared.committed.load(Ordering::Relaxed).saturating_sub(shared.applied.get());
    if lag > config.apply_lag_max {
        return Err(ProposeError::TooManyRequests);
    }
    if shared.waiting_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > config.proposal_queue_bytes_max {
        shared.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
        return Err(ProposeError::TooManyRequests);
    }
    let (answer, receiver) = oneshot::channel();
    let deadline = shared.ticks.load(Ordering::Relaxed) + timeout_ticks(config);
    shared.waiters.lock().insert(proposal_id, Waiter { answer, deadline, bytes });
    let command = command.encode_to_vec().into();
    shared.inbox.lock().proposals.push(Pending { proposal_id, command, change });
    shared.wake();
    if shared.stopping() {
        shared.fail_waiter(proposal_id, ProposeError::Stopped);
    }
    Ok(receiver)
}

fn timeout_ticks(config: &ConsensusConfig) -> u64 {
    let ticks = config.request_timeout.as_nanos().div_ceil(config.heartbeat_interval.as_nanos().max(1));
    u64::try_from(ticks).unwrap_or(u64::MAX / 2).max(1)
}
