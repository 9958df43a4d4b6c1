//! A member that serves no clients, as operators see it.

use metrics::gauge;
use tailwater_consensus::Consensus;
use tailwater_eventlog::{AlarmKind, Fact, LocalSource, Source as _};
use tailwater_gateway::Code;

use crate::config::Config;
use crate::front::Plain;

/// Health and gauges from the write plane alone.
pub(crate) struct MemberFront {
    consensus: Consensus,
    source: LocalSource,
    reported_version: String,
    quota_bytes: u64,
}

impl MemberFront {
    pub(crate) fn new(config: &Config, consensus: &Consensus, source: &LocalSource) -> Self {
        let reported_version = config.reported_version.clone();
        let quota_bytes = config.quota_bytes;
        Self { consensus: consensus.clone(), source: source.clone(), reported_version, quota_bytes }
    }

    /// The first alarm of a kind that matters.
    fn alarmed(&self, matters: impl Fn(AlarmKind) -> bool) -> Option<String> {
        let facts = self.source.transfer_begin().map(|(_, facts)| facts).unwrap_or_default();
        let alarms = facts.into_iter().find_map(|fact| match fact {
            Fact::Alarms(alarms) => Some(alarms),
            _ => None,
        });
        let alarm = alarms?.into_iter().find(|alarm| matters(alarm.kind))?;
        Some(match alarm.kind {
            AlarmKind::NoSpace => "ALARM NOSPACE".to_owned(),
            AlarmKind::Corrupt => "ALARM CORRUPT".to_owned(),
        })
    }

    fn leaderless(&self) -> Option<String> {
        (self.consensus.status().leader.0 == 0).then(|| "RAFT NO LEADER".to_owned())
    }
}

impl Plain for MemberFront {
    fn unserved(&self) -> (Code, String) {
        let text = "tailwater: this member serves no clients (--roles=consensus); use a node with the role gateway";
        (Code::Unavailable, text.to_owned())
    }

    /// A full quota keeps no read from being served, as with etcd's `/readyz`.
    fn unready(&self) -> Option<String> {
        self.alarmed(|kind| kind == AlarmKind::Corrupt).or_else(|| self.leaderless())
    }

    /// Alarms first, then the leader, as etcd looks at them.
    fn unhealthy(&self) -> Option<String> {
        self.alarmed(|_| true).or_else(|| self.leaderless())
    }

    #[expect(clippy::cast_precision_loss, reason = "gauges are floating point; 2^53 is beyond what they show")]
    fn refresh_gauges(&self) {
        let status = self.consensus.status();
        let (end, own) = (self.source.tail.end(), self.consensus.member_id());
        let flag = |is_set: bool| f64::from(u8::from(is_set));
        gauge!("etcd_server_has_leader").set(flag(status.leader.0 != 0));
        gauge!("etcd_server_is_leader").set(flag(status.leader == own));
        gauge!("etcd_server_is_learner").set(flag(status.is_learner));
        gauge!("etcd_server_proposals_committed_total").set(status.committed as f64);
        gauge!("etcd_server_proposals_applied_total").set(status.applied.0 as f64);
        gauge!("etcd_server_quota_backend_bytes").set(self.quota_bytes as f64);
        gauge!("etcd_mvcc_db_total_size_in_bytes").set(status.disk_bytes as f64);
        gauge!("etcd_mvcc_db_total_size_in_use_in_bytes").set(status.disk_bytes_in_use as f64);
        gauge!("etcd_debugging_mvcc_current_revision").set(end.revision.0 as f64);
        gauge!("etcd_server_version", "server_version" => self.reported_version.clone()).set(1.0);
        gauge!("etcd_server_id", "server_id" => format!("{:x}", own.0)).set(1.0);
    }
}
