//! Automatic compaction, in etcd's two modes; only the leader's process does it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tailwater_api::etcdserverpb as pb;
use tailwater_api::write::command::Command;
use tailwater_consensus::{ApplyError, ProposeError, WritePlane};
use tailwater_eventlog::{MemberId, Revision};

use crate::AutoCompaction;

/// How often the revision mode looks.
const REVISION_INTERVAL: Duration = Duration::from_secs(300);
/// The periodic mode compacts at least hourly once it has begun.
const PERIOD_MAX: Duration = Duration::from_secs(3600);
/// Samples of the revision per interval.
const SAMPLES_PER_INTERVAL: u32 = 10;

/// Compacts as configured, while `own` leads; runs until dropped. `newest` tells the newest revision.
pub async fn run_auto_compaction(
    mode: AutoCompaction,
    write_plane: Arc<dyn WritePlane>,
    own: MemberId,
    newest: impl Fn() -> Revision,
) {
    let (mut plan, interval) = match mode {
        AutoCompaction::Off => return std::future::pending().await,
        AutoCompaction::Periodic(period) => (Plan::periodic(period), sample_interval(period)),
        AutoCompaction::Revisions(kept) => (Plan::revisions(kept), REVISION_INTERVAL),
    };
    loop {
        tokio::time::sleep(interval).await;
        if write_plane.status().leader != own {
            continue;
        }
        let Some(revision) = plan.tick(newest().0) else { continue };
        let request = pb::CompactionRequest { revision, physical: false };
        match write_plane.propose(Command::Compact(request)).await {
            Ok(_) => {
                tracing::info!(revision, "completed auto compaction");
                plan.done(revision);
            }
            // Somebody else was faster.
            Err(ProposeError::Refused(ApplyError::Compacted)) => plan.done(revision),
            Err(error) => tracing::warn!(revision, %error, "failed auto compaction"),
        }
    }
}

/// Between samples of the revision; a period of nothing must not become a busy loop.
fn sample_interval(period: Duration) -> Duration {
    (period.min(PERIOD_MAX) / SAMPLES_PER_INTERVAL).max(Duration::from_millis(1))
}

/// When to compact what; it counts ticks and knows no clock.
#[derive(Debug)]
struct Plan {
    mode: Mode,
    compacted: i64,
}

#[derive(Debug)]
enum Mode {
    /// The revisions of the last period, one per tick, the oldest first; and ticks since the last compaction.
    Periodic {
        samples: VecDeque<i64>,
        samples_max: usize,
        ticks: u32,
    },
    Revisions {
        kept: i64,
    },
}

impl Plan {
    fn periodic(period: Duration) -> Self {
        let interval = sample_interval(period);
        let samples = period.as_nanos() / interval.as_nanos() + 1;
        // Longer periods are cut at about 11 years, so that the samples stay bounded.
        let samples_max = usize::try_from(samples).unwrap_or(usize::MAX).min(1_000_000);
        Self { mode: Mode::Periodic { samples: VecDeque::new(), samples_max, ticks: 0 }, compacted: 0 }
    }

    fn revisions(kept: i64) -> Self {
        Self { mode: Mode::Revisions { kept }, compacted: 0 }
    }

    /// What to compact now, when the newest revision is `current`.
    fn tick(&mut self, current: i64) -> Option<i64> {
        let revision = match &mut self.mode {
            Mode::Revisions { kept } => current - *kept,
            Mode::Periodic { samples, samples_max, ticks } => {
                samples.push_back(current);
                *ticks = ticks.saturating_add(1);
                if samples.len() > *samples_max {
                    samples.pop_front();
                }
                if samples.len() < *samples_max || *ticks < SAMPLES_PER_INTERVAL {
                    return None;
                }
                *samples.front()?
            }
        };
        (revision > 0 && revision > self.compacted).then_some(revision)
    }

    /// `revision` is compacted.
    fn done(&mut self, revision: i64) {
        self.compacted = revision;
        if let Mode::Periodic { ticks, .. } = &mut self.mode {
            *ticks = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revision_mode_keeps_the_newest() {
        let mut plan = Plan::revisions(100);
        assert_eq!(plan.tick(100), None);
        assert_eq!(plan.tick(150), Some(50));
        plan.done(50);
        assert_eq!(plan.tick(150), None);
        assert_eq!(plan.tick(151), Some(51));
    }

    #[test]
    fn periodic_mode_compacts_what_was_new_one_period_ago() {
        let mut plan = Plan::periodic(Duration::from_secs(1800));
        let mut compacted = Vec::new();
        for tick in 1..=40 {
            if let Some(revision) = plan.tick(tick * 10) {
                compacted.push((tick, revision));
                plan.done(revision);
            }
        }
        assert_eq!(compacted, [(11, 10), (21, 110), (31, 210)]);
    }

    #[test]
    fn a_period_of_two_hours_is_compacted_hourly() {
        let mut plan = Plan::periodic(Duration::from_secs(7200));
        let mut due = Vec::new();
        for tick in 1..=45 {
            if let Some(revision) = plan.tick(tick * 10) {
                due.push((tick, revision));
                plan.done(revision);
            }
        }
        assert_eq!(due, [(21, 10), (31, 110), (41, 210)]);
    }
}
