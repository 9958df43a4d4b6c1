//! Opening the data directory and starting the threads.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Sender, bounded};
use parking_lot::Mutex;
use prost::Message;
use tailwater_api::write::{self, command::Command};
use tailwater_eventlog::{EventLog, EventLogConfig, LocalSource, MemberId, Tail, Term};
use tokio::sync::watch;

use crate::machine::{LeaseChange, Machine, PREFIXES, founding_conf_state, member_message};
use crate::raft_log::{RaftLog, RaftLogConfig, RealDisk};
use crate::replica::apply::Applier;
use crate::replica::core::{CoreConfig, ReplicaCore, Standing};
use crate::replica::driver::Driver;
use crate::replica::lessor::Lessor;
use crate::replica::shared::{Inbox, Shared, spawn};
use crate::replica::{NoPeers, Transport, log, upkeep};
use crate::{Consensus, ConsensusConfig, ConsensusStatus, StartError};

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
    upkeep_end: Sender<()>,
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
    } else if !config.initial_members.iter().any(|member| member.id == config.member_id) {
        "this member is not among the initial members"
    } else {
        return Ok(());
    };
    Err(StartError::Config(reason.to_owned()))
}

fn raft_log_error(error: impl std::fmt::Display) -> StartError {
    StartError::RaftLog(error.to_string())
}

/// See [`Consensus::start`].
pub(crate) fn start(config: ConsensusConfig) -> Result<(Consensus, LocalSource), StartError> {
    validate(&config)?;
    let (events, index) = EventLog::open(&EventLogConfig {
        path: config.data_dir.join("state"),
        memtable_bytes: config.memtable_bytes,
        block_cache_bytes: config.block_cache_bytes,
    })?;
    let mut rows = Vec::new();
    for prefix in PREFIXES {
        rows.extend(events.state_scan(prefix)?);
    }
    let machine = Machine::load(index, events.state(), rows)?;
    let disk = RealDisk::new(config.data_dir.join("raft")).map_err(raft_log_error)?;
    let log_config = RaftLogConfig { sync_delay: config.sync_delay, salt: rand::random(), ..Default::default() };
    let (raft_log, recovered) = RaftLog::open(Arc::new(disk), log_config).map_err(raft_log_error)?;
    let applied = machine.state().applied;
    if applied.0 > recovered.last_index {
        let last = recovered.last_index;
        return Err(StartError::RaftLog(format!("the state was applied up to {applied}, but the log ends at {last}")));
    }
    if let Some(cut) = &recovered.cut {
        tracing::warn!(file = cut.file, offset = cut.offset, bytes = cut.bytes, reason = cut.reason, "raft log cut");
    }
    let conf_state = match machine.bootstrapped() {
        true => machine.conf_state().clone(),
        false => founding_conf_state(&config.initial_members),
    };
    let core_config = CoreConfig {
        member_id: config.member_id,
        election_ticks: config.election_ticks,
        batch_bytes_max: config.batch_bytes_max,
        barrier_retry_ticks: ticks(BARRIER_RETRY, config.heartbeat_interval),
        applied,
        bootstrapped: machine.bootstrapped(),
    };
    let view = raft_log.view();
    let core = ReplicaCore::new(core_config, view.clone(), recovered.hard_state, conf_state)
        .map_err(|error| StartError::Config(error.to_string()))?;

    let (wake_tx, wake_rx) = bounded(1);
    let shared = Arc::new(shared(config, &machine, wake_tx));
    let (log_tx, log_rx) = bounded(JOBS_MAX);
    let (apply_tx, apply_rx) = bounded(JOBS_MAX);
    let (tail_tx, tail_rx) = bounded(1);
    let (end_tx, end_rx) = bounded(1);
    let transport: Arc<dyn Transport> = Arc::new(NoPeers);

    let driver = Driver {
        shared: Arc::clone(&shared),
        core,
        wake: wake_rx,
        log: log_tx.clone(),
        apply: apply_tx.clone(),
        backlog: VecDeque::new(),
        transport: Arc::clone(&transport),
        bootstrap: bootstrap_command(&shared.config),
        standing: Standing::default(),
        bootstrap_term: 0,
        promoted_term: 0,
    };
    let applier = Applier::new(Arc::clone(&shared), machine, events.clone(), tail_tx);
    let mut handles = Vec::new();
    let io = |error: std::io::Error| StartError::Config(format!("a thread can't be started: {error}"));
    let mut run = |name, run: Box<dyn FnOnce() -> Result<(), String> + Send>| -> Result<(), StartError> {
        handles.push(spawn(name, Arc::clone(&shared), run).map_err(io)?);
        Ok(())
    };
    let log_shared = Arc::clone(&shared);
    run("log", Box::new(move || log::run(&log_shared, raft_log, &log_rx, &*transport)))?;
    run("apply", Box::new(move || applier.run(&apply_rx)))?;
    let (upkeep_shared, upkeep_events, upkeep_apply) = (Arc::clone(&shared), events.clone(), apply_tx.clone());
    run(
        "upkeep",
        Box::new(move || upkeep::run(&upkeep_shared, &upkeep_events, &view, &log_tx, &upkeep_apply, &end_rx)),
    )?;
    run("replica", Box::new(move || driver.run()))?;

    let consensus = Consensus {
        shared,
        threads: Arc::new(Mutex::new(Some(Threads { handles, upkeep_end: end_tx }))),
        events: events.clone(),
        apply: Arc::new(Mutex::new(Some(apply_tx))),
    };
    let tail = wait_for_tail(&consensus, &tail_rx)?;
    Ok((consensus, LocalSource::new(events, tail)))
}

fn wait_for_tail(consensus: &Consensus, made: &crossbeam::channel::Receiver<Tail>) -> Result<Tail, StartError> {
    let polls = FOUNDING_TIMEOUT.as_millis() / FOUNDING_POLL.as_millis();
    for _ in 0..polls {
        if let Ok(tail) = made.recv_timeout(FOUNDING_POLL) {
            return Ok(tail);
        }
        if consensus.shared.stopping() {
            break;
        }
    }
    consensus.stop();
    let reason = consensus.shared.end.borrow().clone().flatten();
    Err(StartError::Config(reason.unwrap_or_else(|| "no leader founded the group's history in time".to_owned())))
}

fn ticks(duration: Duration, tick: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(tick.as_nanos().max(1))).unwrap_or(u64::MAX).max(1)
}

fn shared(config: ConsensusConfig, machine: &Machine, wake: Sender<()>) -> Shared {
    let tick_ms = u64::try_from(config.heartbeat_interval.as_millis()).unwrap_or(u64::MAX);
    let mut lessor = Lessor::new(tick_ms);
    for (id, lease) in machine.leases() {
        lessor.apply(LeaseChange::Granted(*id, lease.ttl));
        lessor.apply(LeaseChange::Checkpointed(*id, lease.remaining));
    }
    let state = machine.state();
    let member = config.initial_members.iter().find(|member| member.id == config.member_id);
    let status = ConsensusStatus {
        term: Term(state.applied_term.0),
        is_learner: member.is_some_and(|member| member.is_learner),
        ..Default::default()
    };
    Shared {
        proposer_id: rand::random(),
        inbox: Mutex::new(Inbox::default()),
        wake,
        waiters: Mutex::new(BTreeMap::new()),
        waiting_bytes: AtomicUsize::new(0),
        applying_bytes: AtomicUsize::new(0),
        next_proposal: AtomicU64::new(1),
        lessor: Mutex::new(lessor),
        persisted: AtomicU64::new(0),
        applied: AtomicU64::new(state.applied.0),
        committed: AtomicU64::new(state.applied.0),
        replicated: AtomicU64::new(0),
        bootstrapped: AtomicBool::new(machine.bootstrapped()),
        ticks: AtomicU64::new(0),
        syncs: AtomicU64::new(0),
        disk_bytes: AtomicU64::new(0),
        disk_bytes_in_use: AtomicU64::new(0),
        // A compaction that a crash or stop interrupted goes on.
        fold_wanted: AtomicBool::new(state.compacted.0 > 0),
        status: Mutex::new(status),
        stopping: AtomicBool::new(false),
        end: watch::Sender::new(None),
        config,
    }
}

/// The random history id comes from here, not from the machine.
fn bootstrap_command(config: &ConsensusConfig) -> bytes::Bytes {
    let history_id = loop {
        match rand::random::<u64>() {
            0 => {}
            id => break id,
        }
    };
    let bootstrap = write::Bootstrap {
        history_id,
        cluster_id: config.cluster_id,
        members: config.initial_members.iter().map(member_message).collect(),
    };
    let command = write::Command { command: Some(Command::Bootstrap(bootstrap)), ..Default::default() };
    command.encode_to_vec().into()
}
