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
}

impl MemberFront {
    pub(crate) fn new(config: &Config, consensus: &Consensus, source: &LocalSource) -> Self {
        let reported_version = config.reported_version.clone();
        Self { consensus: consensus.clone(), source: source.clone(), reported_version }
    }

    fn facts(&self) -> Vec<Fact> {
        self.source.transfer_begin().map(|(_, facts)| facts).unwrap_or_default()
    }
}

impl Plain for MemberFront {
    fn unserved(&self) -> (Code, String) {
        let text = "tailwater: this member serves no clients (--roles=consensus); use a node with the role gateway";
        (Code::Unavailable, text.to_owned())
    }

    /// Alarms first, then the leader, as etcd looks at them.
    fn unready(&self) -> Option<String> {
        for fact in self.facts() {
            let Fact::Alarms(alarms) = fact else { continue };
            if let Some(alarm) = alarms.first() {
                let name = match alarm.kind {
                    AlarmKind::NoSpace => "NOSPACE",
                    AlarmKind::Corrupt => "CORRUPT",
                };
                return Some(format!("ALARM {name}"));
            }
        }
        (self.consensus.status().leader.0 == 0).then(|| "RAFT NO LEADER".to_owned())
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
        gauge!("etcd_mvcc_db_total_size_in_bytes").set(status.disk_bytes as f64);
        gauge!("etcd_mvcc_db_total_size_in_use_in_bytes").set(status.disk_bytes_in_use as f64);
        gauge!("etcd_debugging_mvcc_current_revision").set(end.revision.0 as f64);
        gauge!("etcd_server_version", "server_version" => self.reported_version.clone()).set(1.0);
        gauge!("etcd_server_id", "server_id" => format!("{:x}", own.0)).set(1.0);
    }
}
