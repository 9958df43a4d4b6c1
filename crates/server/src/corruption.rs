//! Whether the members hold the same: their hashes at one revision, compared at a member's start and then, by the leader,
//! as often as `--corrupt-check-time` says. Who disagrees is named in a CORRUPT alarm, which ends writes.

use std::sync::Arc;
use std::time::Duration;

use tailwater_api::etcdserverpb::{self as pb, alarm_request::AlarmAction};
use tailwater_api::write::command::Command;
use tailwater_consensus::{Consensus, WritePlane};
use tailwater_eventlog::{HashError, Member, MemberId, Revision, StoreHash};
use tailwater_transport::{Directory, HashFailed, LinkConfig, fetch_hash};

/// How long another member may take to read its whole store.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Compares this member with the others.
#[derive(Clone)]
pub(crate) struct CorruptionCheck {
    pub(crate) consensus: Consensus,
    pub(crate) directory: Arc<Directory>,
    pub(crate) link: LinkConfig,
    pub(crate) write_plane: Arc<dyn WritePlane>,
}

/// What comparing found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Findings {
    agree: Vec<MemberId>,
    pub(crate) disagree: Vec<MemberId>,
}

impl CorruptionCheck {
    /// At a member's start, before it serves clients: one that disagrees with a majority of the group must not serve.
    ///
    /// # Errors
    /// It does, or its own storage can't be read.
    pub(crate) async fn at_start(&self) -> anyhow::Result<()> {
        let Some(findings) = self.compare().await? else { return Ok(()) };
        let others = self.others().len();
        if findings.disagree.len() > others / 2 {
            anyhow::bail!(
                "this member's data differs from that of {} of {others} others at the same revision; remove it from the \
                 cluster, empty its data directory and add it again",
                findings.disagree.len()
            );
        }
        Ok(())
    }

    /// As the leader, at each interval; runs until dropped.
    pub(crate) async fn run(self, interval: Duration) {
        if interval.is_zero() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(interval).await;
            if self.consensus.status().leader != self.consensus.member_id() {
                continue;
            }
            match self.compare().await {
                Ok(Some(findings)) => self.alarm(findings).await,
                Ok(None) => {}
                Err(error) => tracing::error!(reason = format!("{error:#}"), "the corruption check failed"),
            }
        }
    }

    /// `None` when there is nobody to compare with, or compaction went on meanwhile.
    async fn compare(&self) -> anyhow::Result<Option<Findings>> {
        let others = self.others();
        if others.is_empty() {
            return Ok(None);
        }
        let log = self.consensus.event_log();
        let own = match tokio::task::spawn_blocking(move || log.hash(None)).await? {
            Ok(own) => own,
            Err(HashError::Compacted(_) | HashError::Future(_)) => return Ok(None),
            Err(HashError::Storage(error)) => return Err(error.into()),
        };
        let mut findings = Findings::default();
        for member in others {
            match self.hash_of(&member, own.revision).await {
                Some(other) => findings.add(member.id, &own, &other),
                None => tracing::debug!(member = format!("{:x}", member.id.0), "not compared"),
            }
        }
        tracing::info!(
            revision = own.revision.0,
            hash = own.hash,
            agree = findings.agree.len(),
            disagree = findings.disagree.len(),
            "compared with the other members"
        );
        Ok(Some(findings))
    }

    fn others(&self) -> Vec<Member> {
        let own = self.consensus.member_id();
        self.directory.members().into_iter().filter(|member| member.id != own).collect()
    }

    async fn hash_of(&self, member: &Member, revision: Revision) -> Option<StoreHash> {
        for url in &member.peer_urls {
            let fetched = fetch_hash(url, self.directory.cluster_id(), revision, TIMEOUT, &self.link).await;
            match fetched {
                Ok(hash) => return Some(hash),
                Err(HashFailed::Compacted(_) | HashFailed::NotReached(_)) => return None,
                Err(error) => tracing::warn!(url, %error, "no hash of a member"),
            }
        }
        None
    }

    /// Raises CORRUPT for the smaller side, as etcd does: for this leader itself when most others agree against it.
    async fn alarm(&self, findings: Findings) {
        for member in findings.corrupt(self.consensus.member_id()) {
            tracing::error!(member = format!("{:x}", member.0), "members disagree about the data; raising CORRUPT");
            let alarm = pb::AlarmRequest {
                action: AlarmAction::Activate as i32,
                member_id: member.0,
                alarm: pb::AlarmType::Corrupt as i32,
            };
            if let Err(error) = self.write_plane.propose(Command::Alarm(alarm)).await {
                tracing::error!(%error, "CORRUPT could not be raised");
            }
        }
    }
}

impl Findings {
    fn add(&mut self, member: MemberId, own: &StoreHash, other: &StoreHash) {
        // Compacted at different revisions, they hold different things and may both be right.
        if own.compacted != other.compacted || own.revision != other.revision {
            return;
        }
        if own.hash == other.hash { self.agree.push(member) } else { self.disagree.push(member) }
    }

    /// Whom to name.
    fn corrupt(self, own: MemberId) -> Vec<MemberId> {
        // This member counts with those that agree with it.
        if self.disagree.len() > self.agree.len() + 1 { vec![own] } else { self.disagree }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: MemberId = MemberId(1);

    fn hash(hash: u32, compacted: i64) -> StoreHash {
        StoreHash { hash, compacted: Revision(compacted), revision: Revision(9) }
    }

    fn findings(others: &[StoreHash]) -> Findings {
        let mut findings = Findings::default();
        for (id, other) in (2..).zip(others) {
            findings.add(MemberId(id), &hash(7, 3), other);
        }
        findings
    }

    #[test]
    fn the_smaller_side_is_named() {
        assert!(findings(&[hash(7, 3), hash(7, 3)]).corrupt(OWN).is_empty());
        assert_eq!(findings(&[hash(7, 3), hash(8, 3)]).corrupt(OWN), [MemberId(3)]);
        assert_eq!(findings(&[hash(8, 3), hash(8, 3)]).corrupt(OWN), [OWN]);
    }

    #[test]
    fn members_that_are_compacted_elsewhere_are_not_compared() {
        assert_eq!(findings(&[hash(8, 4)]), Findings::default());
    }
}
