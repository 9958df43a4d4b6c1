//! Of the Maintenance service what concerns the store of a member: Hash, HashKV, Defragment; and Downgrade.

use std::time::Instant;

use metrics::{gauge, histogram};
use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::downgrade_request::DowngradeAction;
use tailwater_api::write::{SetDowngrade, command::Command};
use tailwater_consensus::Answer;
use tailwater_eventlog::{EventLog, HashError, Revision, StoreHash};

use crate::Gateway;
use crate::auth::Credentials;
use crate::kv::mismatched;
use crate::metrics::{DEFRAG_INFLIGHT, DEFRAG_SECONDS, HASH_SECONDS};
use crate::status::{Code, Fault};

impl Gateway {
    /// `Maintenance.HashKV`: of this member, so that members can be compared; without a storage, of any member. Reads
    /// the whole store.
    pub(crate) async fn hash_kv(&self, request: pb::HashKvRequest) -> Result<pb::HashKvResponse, Fault> {
        let at = Some(Revision(request.revision)).filter(|at| *at > Revision(0));
        let hash = self.store_hash(at, "HashKV").await?;
        // etcd counts from -1.
        let compact_revision = if hash.compacted == Revision(0) { -1 } else { hash.compacted.0 };
        Ok(pb::HashKvResponse {
            header: Some(self.current_header()),
            hash: hash.hash,
            compact_revision,
            hash_revision: hash.revision.0,
        })
    }

    /// `Maintenance.Hash`: everything that is stored. What members may differ in, as leases that one of them has
    /// checkpointed later, is no part of it, so that it serves the purpose of a comparison.
    pub(crate) async fn hash(&self, _: pb::HashRequest) -> Result<pb::HashResponse, Fault> {
        let hash = self.store_hash(None, "Hash").await?;
        Ok(pb::HashResponse { header: Some(self.current_header()), hash: hash.hash })
    }

    async fn store_hash(&self, at: Option<Revision>, method: &'static str) -> Result<StoreHash, Fault> {
        self.settle(true).await?;
        match (self.storage().cloned(), self.hashes()) {
            (Some(storage), _) => {
                let begin = Instant::now();
                let hash = hash_here(storage, at).await;
                histogram!(HASH_SECONDS).record(begin.elapsed());
                hash
            }
            (None, Some(elsewhere)) => elsewhere(at).await,
            (None, None) => Err(Fault::unserved("etcdserverpb.Maintenance", method)),
        }
    }

    /// `Maintenance.Defragment`: gives the disk back what it can of this member's files, while everything goes on. A
    /// process without files has nothing to do.
    pub(crate) async fn defragment(&self, _: pb::DefragmentRequest) -> Result<pb::DefragmentResponse, Fault> {
        let Some(storage) = self.storage().cloned() else { return Ok(pb::DefragmentResponse::default()) };
        tracing::info!("starting defragment");
        let begin = Instant::now();
        gauge!(DEFRAG_INFLIGHT).increment(1.0);
        let done = tokio::task::spawn_blocking(move || {
            let done = storage.defragment();
            gauge!(DEFRAG_INFLIGHT).decrement(1.0);
            done
        });
        match done.await {
            Ok(Ok(())) => {
                histogram!(DEFRAG_SECONDS).record(begin.elapsed());
                tracing::info!(took = ?begin.elapsed(), "finished defragment");
                Ok(pb::DefragmentResponse::default())
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "failed to defragment");
                Err(Fault::Other(Code::Unknown, error.to_string()))
            }
            Err(_) => Err(Fault::Stopped),
        }
    }

    /// `Maintenance.Downgrade`: members are to be replaced by those of the version before. Announcing it is all that is
    /// needed; it ends when the cluster version is that one.
    pub(crate) async fn downgrade(
        &self,
        by: &Credentials,
        request: pb::DowngradeRequest,
    ) -> Result<pb::DowngradeResponse, Fault> {
        let target = match DowngradeAction::try_from(request.action) {
            Ok(DowngradeAction::Cancel) => String::new(),
            Ok(DowngradeAction::Validate | DowngradeAction::Enable) => self.downgrade_target(&request.version).await?,
            Err(_) => return Err(Fault::Other(Code::Unknown, "etcdserver: unknown method".to_owned())),
        };
        if request.action != DowngradeAction::Validate as i32 {
            let command = Command::SetDowngrade(SetDowngrade { target_version: target });
            match self.propose(by, request.version.len(), command).await? {
                Answer::Done => {}
                other => mismatched("downgrade", &other),
            }
        }
        let decided = self.fanout().snapshot().cluster_version.clone();
        let version = decided.rsplit_once('.').map(|(version, _)| version.to_owned()).unwrap_or_default();
        Ok(pb::DowngradeResponse { header: Some(self.current_header()), version })
    }

    /// The version to go to, if the cluster may go there.
    async fn downgrade_target(&self, version: &str) -> Result<String, Fault> {
        self.settle(false).await?;
        let snapshot = self.fanout().snapshot();
        let (major, minor) = major_minor(&snapshot.cluster_version).ok_or(Fault::ClusterVersionUnavailable)?;
        let target = major_minor(version).ok_or(Fault::WrongDowngradeVersionFormat)?;
        if Some(target) != minor.checked_sub(1).map(|minor| (major, minor)) {
            return Err(Fault::InvalidDowngradeTargetVersion);
        }
        if !snapshot.downgrade.is_empty() {
            return Err(Fault::DowngradeInProcess);
        }
        Ok(format!("{}.{}.0", target.0, target.1))
    }
}

/// "major.minor", or a whole version of which the rest does not count.
pub(crate) fn major_minor(version: &str) -> Option<(u32, u32)> {
    let (numbers, label) = version.split_once(['-', '+']).unwrap_or((version, ""));
    let parts: Vec<&str> = numbers.split('.').collect();
    let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !(2..=3).contains(&parts.len()) || !parts.iter().all(is_number) || parts.len() == 2 && !label.is_empty() {
        return None;
    }
    Some((parts[0].parse().ok()?, parts[1].parse().ok()?))
}

async fn hash_here(storage: EventLog, at: Option<Revision>) -> Result<StoreHash, Fault> {
    match tokio::task::spawn_blocking(move || storage.hash(at)).await {
        Ok(Ok(hash)) => Ok(hash),
        Ok(Err(HashError::Compacted(_))) => Err(Fault::Compacted),
        Ok(Err(HashError::Future(_))) => Err(Fault::FutureRevision),
        Ok(Err(HashError::Storage(error))) => Err(Fault::Other(Code::Unknown, error.to_string())),
        Err(_) => Err(Fault::Stopped),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_has_two_or_three_numbers() {
        for (text, version) in [("3.5", (3, 5)), ("3.5.0", (3, 5)), ("3.10.7-rc.1", (3, 10))] {
            assert_eq!(major_minor(text), Some(version), "{text}");
        }
        for text in ["", "3", "x", "3.x", "3.5.0.1", "3.5-rc", "3.-5", "v3.5", "3..0"] {
            assert_eq!(major_minor(text), None, "{text}");
        }
    }
}
