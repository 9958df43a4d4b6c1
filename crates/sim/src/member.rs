//! One member: what a crash leaves of it, and what runs.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tailwater_consensus::raft_log::{Disk as _, RaftLog, RaftLogConfig, SimDisk, SyncMode};
use tailwater_consensus::{Chosen, Consensus, ConsensusConfig, InstallError, Parts, SourceReady, StartError, assemble};
use tailwater_eventlog::{
    Cursor, EventLog, EventLogConfig, LocalSource, Member as Listed, MemberId, Revision, TailError,
};
use tailwater_fanout::{Fanout, FanoutParts};

use crate::network::{Outbox, Wire};
use crate::operation::Reply;
use crate::plan::Plan;
use crate::world::Copy;

/// Duration of a tick by a clock without drift, microseconds.
pub(crate) const TICK: u64 = 100_000;
/// Ticks without a leader before an election.
pub(crate) const ELECTION_TICKS: usize = 10;
/// After this the write plane gives a request up.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// The threads of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Thread {
    Replica,
    Log,
    Apply,
    Upkeep,
    Tail,
    Deliver,
    History,
}

impl Thread {
    pub(crate) const COUNT: usize = 7;
}

/// A member and the one run of it that something belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct At {
    pub(crate) member: usize,
    pub(crate) run: u64,
}

/// Virtual time for what asks for an [`Instant`].
#[derive(Clone)]
pub(crate) struct Clock {
    /// Only differences count.
    origin: Instant,
    /// Microseconds.
    now: Arc<AtomicU64>,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { origin: Instant::now(), now: Arc::default() }
    }

    pub(crate) fn set(&self, now: u64) {
        self.now.store(now, Ordering::Relaxed);
    }

    pub(crate) fn instant(&self) -> Instant {
        self.origin + Duration::from_micros(self.now.load(Ordering::Relaxed))
    }
}

/// An answer to come; polled by hand.
pub(crate) type Waiting<T> = Pin<Box<dyn Future<Output = T>>>;

/// A request that this member serves as the leader, or as what took itself for it.
pub(crate) struct Served {
    /// The operation that asked.
    pub(crate) operation: u64,
    pub(crate) gateway: At,
    pub(crate) reply: Waiting<Reply>,
}

/// A member.
pub(crate) struct Member {
    pub(crate) id: MemberId,
    pub(crate) disk: SimDisk,
    dir: PathBuf,
    /// Counts starts.
    pub(crate) run: u64,
    pub(crate) running: Option<Running>,
    /// It gets no turn until then.
    pub(crate) paused_until: u64,
    /// Its disk is slow until then.
    pub(crate) slow_until: u64,
    /// Microseconds of one of its ticks.
    pub(crate) tick: u64,
    /// Ticks processed, of all runs.
    pub(crate) ticks: u64,
    /// It is not in the group any more, and has stopped.
    pub(crate) gone: bool,
    /// It joined a group that was there; the members that its start names.
    pub(crate) joined: Option<Vec<Listed>>,
    /// A disk as it was some time ago, for a planted bug.
    old_disk: Option<(u64, SimDisk)>,
}

/// A running process.
pub(crate) struct Running {
    pub(crate) served: Vec<Served>,
    /// The state that it copies from another, and the answer to having taken one over.
    pub(crate) copy: Option<Copy>,
    pub(crate) installing: Option<Waiting<Result<(), InstallError>>>,
    pub(crate) parts: Parts,
    pub(crate) waiting_source: Option<SourceReady>,
    pub(crate) source: Option<LocalSource>,
    pub(crate) fanout: Option<(Fanout, FanoutParts)>,
    pub(crate) consensus: Consensus,
    /// What the oracle has seen of its tail.
    pub(crate) observed: Cursor,
    /// Turns that wait in the world's queue.
    pub(crate) due: [bool; Thread::COUNT],
    /// Turns of the replica since the log had one: it must have one before its queue is full.
    pub(crate) behind: u32,
    /// The newest revision that its reads have shown.
    pub(crate) shown: Revision,
}

impl Member {
    pub(crate) fn new(index: usize, root: &Path) -> Self {
        Self {
            id: MemberId(index as u64 + 1),
            disk: SimDisk::new(SyncMode::Honest),
            dir: root.join(index.to_string()),
            run: 0,
            running: None,
            paused_until: 0,
            slow_until: 0,
            tick: TICK,
            ticks: 0,
            gone: false,
            joined: None,
            old_disk: None,
        }
    }

    /// The planted bug: what the disk holds now will be there after the next crash, and nothing that comes later.
    pub(crate) fn remember_disk(&mut self, now: u64) {
        if self.old_disk.as_ref().is_none_or(|(since, _)| now - since > 200_000) {
            self.old_disk = Some((now, self.disk.kill()));
        }
    }

    /// Whether it is not yet sure that its log has all that it promised.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.disk.list().is_ok_and(|names| names.iter().any(|name| name == "cut"))
    }

    /// The disk takes the last synced batch, or a few, along with a loss of power. `noticed`: a part of a record is left,
    /// so that the member can tell; else the log ends where a record does. `bytes` is how many go. Nothing happens when
    /// that would take what the state rests on.
    pub(crate) fn lose_synced(&mut self, bytes: usize, noticed: bool) -> bool {
        let Ok(names) = self.disk.list() else { return false };
        let Some(newest) = names.iter().rfind(|name| name.ends_with(".log")) else { return false };
        let Some(mut content) = self.disk.read(newest) else { return false };
        // Behind the room that was made ahead nothing can be lost.
        let end = content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        content.truncate(end.saturating_sub(bytes));
        let shortened = self.disk.kill();
        shortened.put(newest, &content);
        // Opening cuts, so it is tried on a copy.
        let scratch = shortened.kill();
        let Ok((_, recovered)) = RaftLog::open(Arc::new(scratch), RaftLogConfig::default()) else { return false };
        // What is left of a record must be more than a torn mark, which nobody doubts.
        let Some(cut) = recovered.cut.filter(|_| recovered.doubtful) else { return false };
        let state =
            EventLogConfig { path: self.dir.join("state"), memtable_bytes: 1 << 20, block_cache_bytes: 1 << 20 };
        let Ok((state, _)) = EventLog::open(&state) else { return false };
        if recovered.last_index < state.state().applied.0 || state.installed().is_some() {
            return false;
        }
        if !noticed {
            content.truncate(usize::try_from(cut.offset).unwrap_or(usize::MAX));
            shortened.put(newest, &content);
        }
        self.disk = shortened;
        true
    }

    /// Starts a process on what the disk holds.
    pub(crate) fn start(
        &mut self,
        index: usize,
        plan: &Plan,
        chosen: Chosen,
        outbox: &Outbox,
    ) -> Result<(), StartError> {
        let wire = Wire { from: index, outbox: outbox.clone() };
        let founding = self.joined.is_none();
        let initial = self.joined.clone().unwrap_or_else(|| (1..=plan.members as u64).map(listed).collect());
        let config = ConsensusConfig { founding, initial_members: initial, ..config(&self.dir, self.id, plan) };
        let (consensus, parts, waiting) = assemble(config, Arc::new(self.disk.clone()), Arc::new(wire), chosen)?;
        self.run += 1;
        self.running = Some(Running {
            served: Vec::new(),
            copy: None,
            installing: None,
            parts,
            waiting_source: Some(waiting),
            source: None,
            fanout: None,
            consensus,
            observed: Cursor::default(),
            due: [false; Thread::COUNT],
            behind: 0,
            shown: Revision(0),
        });
        Ok(())
    }

    /// Ends the process at once. `cut`: the power goes, and the disk keeps what was synced and what the seed says of the
    /// rest; else the process is killed and the disk keeps everything. The state is not flushed in either case.
    pub(crate) fn crash(&mut self, cut: Option<u64>) {
        let Some(running) = self.running.take() else { return };
        self.disk.fail_after(None);
        let after = match (self.old_disk.take(), cut) {
            (Some((_, old)), _) => old,
            (None, Some(seed)) => self.disk.cut(seed),
            (None, None) => self.disk.kill(),
        };
        drop(running);
        self.disk = after;
    }
}

/// How the group lists a member.
pub(crate) fn listed(id: u64) -> Listed {
    Listed {
        id: MemberId(id),
        name: format!("m{id}"),
        peer_urls: vec![format!("http://m{id}:2380")],
        ..Default::default()
    }
}

fn config(dir: &Path, member_id: MemberId, plan: &Plan) -> ConsensusConfig {
    ConsensusConfig {
        data_dir: dir.to_owned(),
        member_id,
        cluster_id: 1,
        initial_members: Vec::new(),
        founding: true,
        force_new_cluster: false,
        strict_reconfig_check: true,
        heartbeat_interval: Duration::from_micros(TICK),
        election_ticks: ELECTION_TICKS,
        request_bytes_max: 1 << 20,
        batch_bytes_max: 64 << 10,
        proposal_queue_bytes_max: 1 << 20,
        apply_lag_max: 5000,
        request_timeout: REQUEST_TIMEOUT,
        lease_ttl_min: 2,
        quota_bytes: 0,
        // Out of reach: RocksDB's own count of them depends on its threads. The world flushes.
        memtable_bytes: 64 << 20,
        block_cache_bytes: 1 << 20,
        raft_log_bytes: plan.raft_log_bytes,
        raft_recent_bytes_max: 64 << 20,
        tail_hot_bytes_max: plan.tail_hot_bytes_max,
        sync_delay: Duration::ZERO,
    }
}

impl Running {
    /// Whether the fanout stands where the member's tail ends.
    pub(crate) fn fanout_is_behind(&self) -> bool {
        match (&self.source, &self.fanout) {
            (Some(source), Some((fanout, _))) => fanout.snapshot().cursor != source.tail.end(),
            _ => false,
        }
    }

    /// Builds the fanout once there is a history.
    pub(crate) fn look_for_source(&mut self, plan: &Plan, member_id: MemberId, clock: &Clock) -> bool {
        let Some(source) = self.waiting_source.as_ref().and_then(SourceReady::poll) else { return false };
        let clock = clock.clone();
        let config = plan.fanout(member_id.0);
        let follows = Arc::new(source.clone());
        self.fanout = Some(tailwater_fanout::assemble(config, follows, Box::new(move || clock.instant())));
        self.observed = source.tail.end();
        self.source = Some(source);
        self.waiting_source = None;
        true
    }

    /// Frames that the oracle has not seen. The newest is always in memory, and it looks after each turn.
    pub(crate) fn new_frames(&self) -> Result<Vec<Arc<tailwater_eventlog::Frame>>, TailError> {
        self.source.as_ref().map_or(Ok(Vec::new()), |source| source.tail.read(self.observed, usize::MAX))
    }
}
