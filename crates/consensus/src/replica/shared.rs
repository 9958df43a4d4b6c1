//! What the threads and the handle share: the inbox, who waits, progress, and the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use crossbeam::sync::Unparker;
use parking_lot::Mutex;
use raft::eraftpb::Message;
use tailwater_eventlog::MemberId;
use tokio::sync::{oneshot, watch};

use super::core::{BarrierWaiter, CatchUp, Install, Pending};
use super::lessor::Lessor;
use super::progress::Progress;
use crate::machine::Group;
use crate::{Applied, ConsensusConfig, ConsensusStatus, ProposeError};

/// Barriers and peer messages that may wait in the inbox.
pub(crate) const INBOX_ITEMS_MAX: usize = 1 << 17;
/// Bytes of peer messages that may wait in the inbox.
pub(crate) const INBOX_MESSAGE_BYTES_MAX: usize = 128 << 20;

/// What waits for the replica thread.
#[derive(Default)]
pub(crate) struct Inbox {
    pub(crate) proposals: Vec<Pending>,
    pub(crate) barriers: Vec<BarrierWaiter>,
    pub(crate) messages: Vec<Message>,
    /// Their bytes, encoded.
    pub(crate) message_bytes: usize,
    /// The group after each applied entry that changed it, with that entry's index, in order.
    pub(crate) groups: Vec<(u64, Group)>,
    /// A copied state that the apply thread has switched to, after all of `groups`.
    pub(crate) install: Option<Install>,
    /// Peers to which a message was lost.
    pub(crate) unreachable: Vec<MemberId>,
    /// Whom leadership is to be handed to.
    pub(crate) move_leader: Option<MemberId>,
}

/// Who waits for a command's answer.
pub(crate) struct Waiter {
    pub(crate) answer: oneshot::Sender<Result<Applied, ProposeError>>,
    /// Tick after which it fails.
    pub(crate) deadline: u64,
    /// Counted against the queue's bound until it is answered.
    pub(crate) bytes: usize,
}

/// Shared by the handle and all threads. Each lock guards a leaf and is held for a few instructions.
pub(crate) struct Shared {
    pub(crate) config: ConsensusConfig,
    /// Of this process's run: answers go only to its own proposals.
    pub(crate) proposer_id: u64,
    pub(crate) inbox: Mutex<Inbox>,
    pub(crate) wake: Unparker,
    /// By proposal id, and so by deadline.
    pub(crate) waiters: Mutex<BTreeMap<u64, Waiter>>,
    pub(crate) waiting_bytes: AtomicUsize,
    /// Bytes of committed entries that the apply thread was handed and has not finished.
    pub(crate) applying_bytes: AtomicUsize,
    pub(crate) next_proposal: AtomicU64,
    pub(crate) lessor: Mutex<Lessor>,
    /// Number of the newest durable append.
    pub(crate) persisted: Progress,
    pub(crate) applied: Progress,
    /// Whether what is applied here is all that was acknowledged: this member leads and nobody else votes.
    pub(crate) serves_alone: AtomicBool,
    pub(crate) committed: AtomicU64,
    /// Index up to which all members hold the log.
    pub(crate) replicated: AtomicU64,
    pub(crate) bootstrapped: AtomicBool,
    pub(crate) ticks: AtomicU64,
    pub(crate) syncs: AtomicU64,
    /// How long the last sync of the raft log took.
    pub(crate) sync_micros: AtomicU64,
    /// Whether a compaction waits to be folded.
    pub(crate) fold_wanted: AtomicBool,
    pub(crate) status: Mutex<ConsensusStatus>,
    /// The group as it is applied here; for the handle.
    pub(crate) group: Mutex<Group>,
    /// The copy that this member needs before it can go on.
    pub(crate) catch_up: watch::Sender<Option<CatchUp>>,
    /// Whether another member has said that this one was removed.
    pub(crate) told_removed: AtomicBool,
    pub(crate) stopping: AtomicBool,
    /// `Some` once it has stopped, with the reason if it stopped by itself.
    pub(crate) end: watch::Sender<Option<Option<String>>>,
}

impl Shared {
    /// Wakes the replica thread; a token that is there already serves.
    pub(crate) fn wake(&self) {
        self.wake.unpark();
    }

    /// Takes the waiter of a proposal out.
    pub(crate) fn take_waiter(&self, proposal_id: u64) -> Option<Waiter> {
        let waiter = self.waiters.lock().remove(&proposal_id)?;
        self.waiting_bytes.fetch_sub(waiter.bytes, Ordering::Relaxed);
        Some(waiter)
    }

    /// Fails one proposal.
    pub(crate) fn fail_waiter(&self, proposal_id: u64, error: ProposeError) {
        if let Some(waiter) = self.take_waiter(proposal_id) {
            // Whoever no longer waits needs no answer.
            let _ = waiter.answer.send(Err(error));
        }
    }

    /// Fails the proposals for which `due` holds, from the oldest on, until one for which it does not. Returns the
    /// newest that it failed, 0 if none.
    pub(crate) fn fail_waiters(&self, due: impl Fn(&Waiter) -> bool, error: impl Fn() -> ProposeError) -> u64 {
        let mut failed = 0;
        loop {
            let first = {
                let waiters = self.waiters.lock();
                waiters.first_key_value().filter(|(_, waiter)| due(waiter)).map(|(id, _)| *id)
            };
            let Some(id) = first else { return failed };
            self.fail_waiter(id, error());
            failed = id;
        }
    }

    /// Stops everything for a reason; the first one counts.
    pub(crate) fn fail(&self, reason: String) {
        tracing::error!(%reason, "replica stops");
        self.end.send_if_modified(|end| {
            let first = end.is_none();
            if first {
                *end = Some(Some(reason));
            }
            first
        });
        self.stop();
    }

    /// Asks the threads to end.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.wake();
    }

    /// Whether the threads have been asked to end.
    pub(crate) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

/// Starts a named thread. An error, or a panic, stops the replica with that reason.
pub(crate) fn spawn(
    name: &'static str,
    shared: Arc<Shared>,
    run: impl FnOnce() -> Result<(), String> + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let end = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        match end {
            Ok(Ok(())) => {}
            Ok(Err(reason)) => shared.fail(reason),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("unknown panic");
                shared.fail(format!("thread {name}: {text}"));
            }
        }
    })
}
