//! Who leads, as far as this node knows.

use std::sync::Arc;
use std::time::Duration;

use tailwater_consensus::WritePlane;
use tailwater_eventlog::MemberId;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// How often the local replica is looked at. Who waits for a leader waits no longer than this after it is known.
const PERIOD: Duration = Duration::from_millis(10);

/// The leader as the local replica knows it, else as others told.
pub(super) struct LeaderWatch {
    replica: Option<Arc<dyn WritePlane>>,
    leader: watch::Sender<MemberId>,
    task: Option<AbortHandle>,
}

impl LeaderWatch {
    pub(super) fn start(replica: Option<Arc<dyn WritePlane>>, handle: &Handle) -> Self {
        let leader = watch::channel(MemberId(0)).0;
        let task = replica.clone().map(|replica| handle.spawn(look(replica, leader.clone())).abort_handle());
        Self { replica, leader, task }
    }

    /// The leader now; 0: none is known.
    pub(super) fn now(&self) -> MemberId {
        if let Some(replica) = &self.replica {
            // Shown to those who wait as well, so that nobody compares it with an older view.
            set(&self.leader, replica.status().leader);
        }
        *self.leader.borrow()
    }

    /// What somebody else said. A replica knows better.
    pub(super) fn hint(&self, leader: MemberId) {
        if self.replica.is_none() {
            set(&self.leader, leader);
        }
    }

    /// This one did not answer as a leader.
    pub(super) fn lost(&self, leader: MemberId) {
        if self.replica.is_none() && *self.leader.borrow() == leader {
            set(&self.leader, MemberId(0));
        }
    }

    /// Resolves when the leader is known to be another than this one.
    pub(super) async fn changed_from(&self, leader: MemberId) {
        // The sender lives in `self`.
        drop(self.leader.subscribe().wait_for(|now| *now != leader).await);
    }

    /// Resolves when more is known than `known` was, and by that the leader is not the one that was asked. Who asked
    /// without knowing a leader has learned nothing while none is known.
    pub(super) async fn is_elsewhere(&self, asked: MemberId, known: MemberId) {
        drop(self.leader.subscribe().wait_for(|now| *now != known && *now != asked).await);
    }

    /// Resolves when it is known who leads, and it is another than this one.
    pub(super) async fn succeeded(&self, leader: MemberId) {
        drop(self.leader.subscribe().wait_for(|now| *now != leader && *now != MemberId(0)).await);
    }
}

impl Drop for LeaderWatch {
    fn drop(&mut self) {
        self.task.iter().for_each(AbortHandle::abort);
    }
}

fn set(sender: &watch::Sender<MemberId>, leader: MemberId) {
    if *sender.borrow() != leader {
        sender.send_if_modified(|known| std::mem::replace(known, leader) != leader);
    }
}

async fn look(replica: Arc<dyn WritePlane>, sender: watch::Sender<MemberId>) {
    let mut period = tokio::time::interval(PERIOD);
    loop {
        period.tick().await;
        set(&sender, replica.status().leader);
    }
}
