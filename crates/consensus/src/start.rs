//! Opening the data directory and starting the threads.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{self, bounded};
use crossbeam::sync::{Parker, Unparker};
use parking_lot::Mutex;
use prost::Message;
use raft::eraftpb::HardState;
use tailwater_api::write::{self, command::Command};
use tailwater_eventlog::{EventLog, EventLogConfig, Installed, LocalSource, MemberId, Tail, Term};
use tokio::sync::watch;

use crate::alone::{finish, go_on_alone};
use crate::machine::{Group, Machine, conf_state_of, member_message};
use crate::raft_log::{Disk, LogPoint, RaftLog, RaftLogConfig, RealDisk, Recovered};
use crate::replica::apply::{Applier, ApplyJob};
use crate::replica::core::{CoreConfig, ReplicaCore, Standing};
use crate::replica::driver::{Driver, REMOVED};
use crate::replica::lessor::Lessor;
use crate::replica::log::LogWriter;
use crate::replica::progress::Progress;
use crate::replica::queue::{Receiver, queue};
use crate::replica::shared::{Inbox, Shared, spawn};
use crate::replica::upkeep::Upkeep;
use crate::stored::restored_digest;
use crate::{Consensus, ConsensusConfig, ConsensusStatus, PeerTransport, StartError};

/// Jobs between two threads; their bytes are bounded by what was proposed and not answered, and by the driver.
const JOBS_MAX: usize = 256;
/// A read index without an answer is asked again after this.
const BARRIER_RETRY: Duration = Duration::from_millis(500);
/// How long the first start waits for the group's first leader.
const FOUNDING_TIMEOUT: Duration = Duration::from_secs(300);
/// How often a waiting start looks whether the replica has failed.
const FOUNDING_POLL: Duration = Duration::from_millis(50);

/// The running threads.
pub(crate) struct Threads {
    handles: Vec<JoinHandle<()>>,
    /// Upkeep ends when it is dropped.
    upkeep_end: channel::Sender<()>,
}

impl Threads {
    /// Waits for their end; they must have been asked to.
    pub(crate) fn join(self) {
        drop(self.upkeep_end);
        for handle in self.handles {
            // A panic was reported where the thread was started.
            let _ = handle.join();
        }
    }
}

fn validate(config: &ConsensusConfig) -> Result<(), StartError> {
    let reason = if config.member_id == MemberId(0) {
        "the member id must not be 0"
    } else if config.election_ticks < 2 {
        "an election timeout needs at least 2 heartbeat intervals"
    } else if config.heartbeat_interval.is_zero() {
        "the heartbeat interval must not be 0"
    } else if config.batch_bytes_max == 0 || config.proposal_queue_bytes_max == 0 {
        "bounds of queues and batches must not be 0"
    } else {
        return Ok(());
    };
    Err(StartError::Config(reason.to_owned()))
}

pub(crate) fn raft_log_error(error: impl std::fmt::Display) -> StartError {
    StartError::RaftLog(error.to_string())
}

/// See [`Consensus::start`].
pub(crate) fn start(
    config: ConsensusConfig,
    peers: Arc<dyn PeerTransport>,
) -> Result<(Consensus, SourceReady), StartError> {
    tailwater_eventlog::prioritize_background()?;
    let disk = Arc::new(RealDisk::new(config.data_dir.join("raft")).map_err(raft_log_error)?);
    let (consensus, parts, source) = assemble(config, disk, peers, Chosen::random())?;
    consensus.threads.lock().replace(parts.spawn(&consensus.shared)?);
    Ok((consensus, source))
}

/// The numbers that make one run of one member unlike any other.
#[derive(Clone, Copy, Debug)]
pub struct Chosen {
    /// Of the raft log's checksums.
    pub salt: u64,
    /// Of this run's proposals; not 0.
    pub proposer_id: u64,
    /// Of the history, should this member found it; not 0.
    pub history_id: u64,
    /// Of election timeouts.
    pub seed: u64,
}

impl Chosen {
    fn random() -> Self {
        let any = || rand::random_range(1..=u64::MAX);
        Self { salt: any(), proposer_id: any(), history_id: any(), seed: any() }
    }
}

/// A replica whose threads have not been started: a simulation gives each of them its turns on a thread of its own
/// choosing instead.
pub struct Parts {
    driver: Driver,
    log: LogWriter,
    applier: Applier,
    apply_jobs: Receiver<ApplyJob>,
    upkeep: Upkeep,
    upkeep_end: channel::Sender<()>,
}

impl Parts {
    /// A turn of the replica thread; with `is_tick`, a tick has passed.
    ///
    /// # Errors
    /// Why the member must stop.
    pub fn step_replica(&mut self, is_tick: bool) -> Result<(), String> {
        self.driver.step(is_tick)
    }

    /// A turn of the log thread: appends what waits, and syncs. `false` when nothing waited.
    ///
    /// # Errors
    /// Why the member must stop.
    pub fn step_log(&mut self) -> Result<bool, String> {
        self.log.step()
    }

    /// A turn of the apply thread; `false` when it had nothing to do.
    ///
    /// # Errors
    /// Why the member must stop.
    pub fn step_apply(&mut self) -> Result<bool, String> {
        self.applier.step(&self.apply_jobs)
    }

    /// A turn of the upkeep thread.
    ///
    /// # Errors
    /// Why the member must stop.
    pub fn step_upkeep(&mut self) -> Result<(), String> {
        self.upkeep.step().map(drop)
    }

    fn spawn(self, shared: &Arc<Shared>) -> Result<Threads, StartError> {
        let Self { driver, log, applier, apply_jobs, upkeep, upkeep_end } = self;
        let mut handles = Vec::new();
        let mut run = |name, run: Box<dyn FnOnce() -> Result<(), String> + Send>| -> Result<(), StartError> {
            let thread = spawn(name, Arc::clone(shared), run);
            handles.push(thread.map_err(|error| StartError::Config(format!("a thread can't be started: {error}")))?);
            Ok(())
        };
        run("log", Box::new(move || log.run()))?;
        run("apply", Box::new(move || applier.run(&apply_jobs)))?;
        run("upkeep", Box::new(move || upkeep.run()))?;
        run("replica", Box::new(move || driver.run()))?;
        Ok(Threads { handles, upkeep_end })
    }
}

/// Opens the data directory and puts a replica together; nothing runs yet.
///
/// # Errors
/// See [`StartError`].
pub fn assemble(
    config: ConsensusConfig,
    disk: Arc<dyn Disk>,
    peers: Arc<dyn PeerTransport>,
    chosen: Chosen,
) -> Result<(Consensus, Parts, SourceReady), StartError> {
    validate(&config)?;
    if RaftLog::was_removed(&*disk).map_err(raft_log_error)? {
        return Err(StartError::Config(REMOVED.to_owned()));
    }
    let (events, index) = EventLog::open(&EventLogConfig {
        path: config.data_dir.join("state"),
        memtable_bytes: config.memtable_bytes,
        block_cache_bytes: config.block_cache_bytes,
    })?;
    let mut machine = Machine::open(&events, index)?;
    let log_config = RaftLogConfig {
        recent_bytes_max: config.raft_recent_bytes_max,
        sync_delay: config.sync_delay,
        salt: chosen.salt,
        ..Default::default()
    };
    let (mut raft_log, mut recovered) = RaftLog::open(disk, log_config).map_err(raft_log_error)?;
    let applied = machine.state().applied;
    if let Some(installed) = events.installed() {
        settle_install(&mut raft_log, &mut recovered, installed)?;
        events.installed_settled()?;
    }
    if applied.0 > recovered.last_index {
        let last = recovered.last_index;
        return Err(StartError::RaftLog(format!("the state was applied up to {applied}, but the log ends at {last}")));
    }
    if recovered.doubtful {
        tracing::warn!("this member's log was cut: it keeps its vote until its group shows that nothing is missing");
    }
    if let Some(cut) = &recovered.cut {
        tracing::warn!(file = cut.file, offset = cut.offset, bytes = cut.bytes, reason = cut.reason, "raft log cut");
    }
    match config.force_new_cluster {
        true => go_on_alone(&mut raft_log, &mut recovered, &mut machine, &events, &config, chosen)?,
        false => finish(&raft_log.view(), &recovered, &mut machine, &events)?,
    }
    let applied = machine.state().applied;
    let group = group(&config, &machine)?;
    let is_alone = group.conf_state.voters == [config.member_id.0];
    if recovered.doubtful && is_alone {
        // Nobody could tell more than its own log does.
        raft_log.settle().map_err(raft_log_error)?;
        recovered.doubtful = false;
    }
    // Whom to reach at first: before the log or the state tells, whoever the start names.
    peers.set_members(if group.members.is_empty() { &config.initial_members } else { &group.members });
    let core_config = CoreConfig {
        member_id: config.member_id,
        election_ticks: config.election_ticks,
        batch_bytes_max: config.batch_bytes_max,
        barrier_retry_ticks: ticks(BARRIER_RETRY, config.heartbeat_interval),
        applied,
        bootstrapped: machine.bootstrapped(),
        seed: chosen.seed,
        run_id: chosen.proposer_id,
        doubtful: recovered.doubtful,
        strict_reconfig_check: config.strict_reconfig_check,
    };
    let view = raft_log.view();
    let core = ReplicaCore::new(core_config, view.clone(), recovered.hard_state, group.clone())
        .map_err(|error| StartError::Config(error.to_string()))?;

    // One that was removed, and does not know whether the others know it, stops as soon as it hears that.
    let removed_ticks = group.removed.contains(&config.member_id).then_some(config.election_ticks);
    let wake = Parker::new();
    let shared = Arc::new(shared(config, chosen.proposer_id, &machine, group, wake.unparker().clone()));
    let (log_tx, log_jobs) = queue(JOBS_MAX);
    let (apply, apply_jobs) = queue(JOBS_MAX);
    let (tail_tx, tail) = bounded(1);
    let (upkeep_end, end) = bounded(1);
    let driver = Driver {
        shared: Arc::clone(&shared),
        core,
        wake,
        log: log_tx.clone(),
        apply: apply.clone(),
        backlog: VecDeque::new(),
        peers: Arc::clone(&peers),
        bootstrap: bootstrap_command(&shared.config, chosen.history_id, restored_digest(&events)?),
        standing: Standing::default(),
        bootstrap_term: 0,
        promoted_term: 0,
        removed_ticks,
        removal_noted: false,
    };
    let log = LogWriter { shared: Arc::clone(&shared), log: raft_log, jobs: log_jobs, peers: Arc::clone(&peers) };
    let connections = Arc::downgrade(&peers);
    let applier = Applier::new(Arc::clone(&shared), machine, events.clone(), tail_tx, peers);
    let upkeep = Upkeep {
        shared: Arc::clone(&shared),
        events: events.clone(),
        view,
        log: log_tx,
        apply: apply.clone(),
        end,
        rounds: 0,
    };
    let consensus = Consensus {
        shared,
        threads: Arc::default(),
        events,
        peers: connections,
        apply: Arc::new(Mutex::new(Some(apply))),
    };
    let source = SourceReady { consensus: consensus.clone(), tail };
    Ok((consensus, Parts { driver, log, applier, apply_jobs, upkeep, upkeep_end }, source))
}

/// The group that raft starts with: what the state holds, else what founds it. A member that joins knows none until the
/// log or a copied state tells.
fn group(config: &ConsensusConfig, machine: &Machine) -> Result<Group, StartError> {
    let mut group = machine.group();
    if !machine.bootstrapped() && config.founding {
        if !config.initial_members.iter().any(|member| member.id == config.member_id) {
            return Err(StartError::Config("this member is not among the initial members".to_owned()));
        }
        group.conf_state = conf_state_of(&config.initial_members);
        group.members.clone_from(&config.initial_members);
    }
    Ok(group)
}

/// A copied state was taken over, and a crash came before the raft log was known to stand behind it: now it does.
fn settle_install(log: &mut RaftLog, recovered: &mut Recovered, at: Installed) -> Result<(), StartError> {
    let point = LogPoint { index: at.applied.0, term: at.term.0 };
    let view = log.view();
    if view.term(point.index).is_ok_and(|term| term == point.term) {
        return Ok(());
    }
    log.reset_to_snapshot(point).map_err(raft_log_error)?;
    // A log is never of a later term than its owner.
    if recovered.hard_state.term < point.term {
        recovered.hard_state = HardState { term: point.term, vote: 0, commit: point.index };
        log.append(&[], Some(&recovered.hard_state)).map_err(raft_log_error)?;
        log.sync().map_err(raft_log_error)?;
    }
    recovered.hard_state.commit = point.index;
    (recovered.first_index, recovered.last_index) = (point.index + 1, point.index);
    Ok(())
}

/// Resolves to what fanouts follow, once there is a history.
pub struct SourceReady {
    consensus: Consensus,
    tail: channel::Receiver<Tail>,
}

impl SourceReady {
    /// Waits until the history is known: at once where a directory holds one, else until the group has a leader that
    /// founded it. Blocks.
    ///
    /// # Errors
    /// The replica has stopped, or found no leader in time; it is stopped then.
    pub fn wait(self) -> Result<LocalSource, StartError> {
        let mut polls = FOUNDING_TIMEOUT.as_millis() / FOUNDING_POLL.as_millis();
        while polls > 0 && !self.consensus.shared.stopping() {
            if let Ok(tail) = self.tail.recv_timeout(FOUNDING_POLL) {
                return Ok(self.source(tail));
            }
            // A member that joins may first have much to copy.
            let is_copying = self.consensus.shared.catch_up.borrow().is_some();
            polls -= u128::from(!is_copying);
        }
        self.consensus.stop();
        let reason = self.consensus.shared.end.borrow().clone().flatten();
        Err(StartError::Config(reason.unwrap_or_else(|| "no leader founded the group's history in time".to_owned())))
    }

    /// The source if it is there.
    #[must_use]
    pub fn poll(&self) -> Option<LocalSource> {
        self.tail.try_recv().ok().map(|tail| self.source(tail))
    }

    fn source(&self, tail: Tail) -> LocalSource {
        LocalSource::new(self.consensus.events.clone(), tail)
    }
}

fn ticks(duration: Duration, tick: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(tick.as_nanos().max(1))).unwrap_or(u64::MAX).max(1)
}

fn shared(config: ConsensusConfig, proposer_id: u64, machine: &Machine, group: Group, wake: Unparker) -> Shared {
    let tick_ms = u64::try_from(config.heartbeat_interval.as_millis()).unwrap_or(u64::MAX);
    let mut lessor = Lessor::new(tick_ms);
    lessor.replace(machine.lease_times());
    let state = machine.state();
    let members = if machine.bootstrapped() { &group.members } else { &config.initial_members };
    let member = members.iter().find(|member| member.id == config.member_id);
    let status = ConsensusStatus {
        term: Term(state.applied_term.0),
        is_learner: member.is_some_and(|member| member.is_learner),
        ..Default::default()
    };
    Shared {
        proposer_id,
        inbox: Mutex::new(Inbox::default()),
        wake,
        waiters: Mutex::new(BTreeMap::new()),
        waiting_bytes: AtomicUsize::new(0),
        applying_bytes: AtomicUsize::new(0),
        next_proposal: AtomicU64::new(1),
        lessor: Mutex::new(lessor),
        persisted: Progress::new(0),
        applied: Progress::new(state.applied.0),
        serves_alone: AtomicBool::new(false),
        committed: AtomicU64::new(state.applied.0),
        replicated: AtomicU64::new(0),
        bootstrapped: AtomicBool::new(machine.bootstrapped()),
        ticks: AtomicU64::new(0),
        syncs: AtomicU64::new(0),
        sync_micros: AtomicU64::new(0),
        // A compaction that a crash or stop interrupted goes on.
        fold_wanted: AtomicBool::new(state.compacted.0 > 0),
        status: Mutex::new(status),
        group: Mutex::new(group),
        catch_up: watch::Sender::new(None),
        told_removed: AtomicBool::new(false),
        stopping: AtomicBool::new(false),
        end: watch::Sender::new(None),
        config,
    }
}

/// The random history id comes from outside, not from the machine.
fn bootstrap_command(config: &ConsensusConfig, history_id: u64, restored: bytes::Bytes) -> bytes::Bytes {
    let bootstrap = write::Bootstrap {
        history_id,
        cluster_id: config.cluster_id,
        members: config.initial_members.iter().map(member_message).collect(),
        restored,
    };
    let command = write::Command { command: Some(Command::Bootstrap(bootstrap)), ..Default::default() };
    command.encode_to_vec().into()
}
