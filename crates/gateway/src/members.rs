//! The Cluster service and `Maintenance.MoveLeader`. Headers of Cluster's answers have no revision, as in etcd.

use prost::Message;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::write::command::Command;
use tailwater_api::{tail, write};
use tailwater_consensus::{Answer, ProposeError};
use tailwater_eventlog::{Member, MemberId, Revision};

use crate::Gateway;
use crate::auth::Credentials;
use crate::kv::mismatched;
use crate::status::Fault;

impl Gateway {
    /// `Cluster.MemberList`.
    pub(crate) async fn member_list(&self, request: pb::MemberListRequest) -> Result<pb::MemberListResponse, Fault> {
        self.settle(!request.linearizable).await?;
        let members = members(&self.fanout().snapshot().members);
        Ok(pb::MemberListResponse { header: Some(self.header(Revision(0))), members })
    }

    /// `Cluster.MemberAdd`. The member's id is random: one that was removed never returns, so URLs can't decide it.
    pub(crate) async fn member_add(
        &self,
        credentials: &Credentials,
        request: pb::MemberAddRequest,
    ) -> Result<pb::MemberAddResponse, Fault> {
        check_urls(&request.peer_ur_ls)?;
        self.require_root(credentials).await?;
        let id = rand::random_range(1..=u64::MAX);
        let bytes = request.encoded_len();
        let mut peer_urls = request.peer_ur_ls;
        peer_urls.sort();
        let member = tail::Member { id, peer_urls, is_learner: request.is_learner, ..Default::default() };
        let members = self
            .change_members(credentials, bytes, Command::MemberAdd(write::MemberAdd { member: Some(member) }))
            .await?;
        let member = members.iter().find(|member| member.id == id).cloned();
        Ok(pb::MemberAddResponse { header: Some(self.header(Revision(0))), member, members })
    }

    /// `Cluster.MemberRemove`.
    pub(crate) async fn member_remove(
        &self,
        credentials: &Credentials,
        request: pb::MemberRemoveRequest,
    ) -> Result<pb::MemberRemoveResponse, Fault> {
        let command = Command::MemberRemove(write::MemberRemove { id: request.id });
        let members = self.change_members(credentials, request.encoded_len(), command).await?;
        Ok(pb::MemberRemoveResponse { header: Some(self.header(Revision(0))), members })
    }

    /// `Cluster.MemberUpdate`.
    pub(crate) async fn member_update(
        &self,
        credentials: &Credentials,
        request: pb::MemberUpdateRequest,
    ) -> Result<pb::MemberUpdateResponse, Fault> {
        self.require_root(credentials).await?;
        if let Err(fault) = check_urls(&request.peer_ur_ls) {
            // Whose they would be, is asked first, as in etcd.
            self.settle(false).await?;
            let is_member = self.fanout().snapshot().members.iter().any(|member| member.id.0 == request.id);
            return Err(if is_member { fault } else { Fault::MemberNotFound });
        }
        let bytes = request.encoded_len();
        let mut peer_urls = request.peer_ur_ls;
        peer_urls.sort();
        let command = Command::MemberUpdate(write::MemberUpdate { id: request.id, peer_urls });
        let members = self.change_members(credentials, bytes, command).await?;
        Ok(pb::MemberUpdateResponse { header: Some(self.header(Revision(0))), members })
    }

    /// `Cluster.MemberPromote`.
    pub(crate) async fn member_promote(
        &self,
        credentials: &Credentials,
        request: pb::MemberPromoteRequest,
    ) -> Result<pb::MemberPromoteResponse, Fault> {
        let command = Command::MemberPromote(write::MemberPromote { id: request.id });
        let members = self.change_members(credentials, request.encoded_len(), command).await?;
        Ok(pb::MemberPromoteResponse { header: Some(self.header(Revision(0))), members })
    }

    /// `Maintenance.MoveLeader`: the leader's own affair, so its answer has no header and a follower
    /// refuses it.
    pub(crate) async fn move_leader(&self, request: pb::MoveLeaderRequest) -> Result<pb::MoveLeaderResponse, Fault> {
        // A node without a replica hands it on.
        if self.storage().is_some() && self.write_plane().status().leader.0 != self.config().member_id {
            return Err(Fault::NotLeader);
        }
        match self.write_plane().move_leader(MemberId(request.target_id)).await {
            Ok(()) => Ok(pb::MoveLeaderResponse { header: None }),
            Err(ProposeError::Timeout) => Err(Fault::TransferTimeout),
            Err(error) => Err(error.into()),
        }
    }

    async fn change_members(
        &self,
        credentials: &Credentials,
        request_bytes: usize,
        command: Command,
    ) -> Result<Vec<pb::Member>, Fault> {
        match self.propose(credentials, request_bytes, command).await? {
            Answer::Members(changed) => Ok(members(&changed)),
            other => mismatched("members", &other),
        }
    }
}

fn members(members: &[Member]) -> Vec<pb::Member> {
    let message = |member: &Member| pb::Member {
        id: member.id.0,
        name: member.name.clone(),
        peer_ur_ls: member.peer_urls.clone(),
        client_ur_ls: member.client_urls.clone(),
        is_learner: member.is_learner,
    };
    members.iter().map(message).collect()
}

/// At least one, each with a scheme that members reach each other by, a host and a port, and nothing behind them.
fn check_urls(urls: &[String]) -> Result<(), Fault> {
    let is_good = |url: &String| {
        let authority = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
        let parts = authority.and_then(|authority| authority.rsplit_once(':'));
        parts.is_some_and(|(host, port)| !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok())
    };
    if urls.is_empty() || !urls.iter().all(is_good) { Err(Fault::MemberBadUrls) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_url_is_scheme_host_and_port() {
        let check = |urls: &[&str]| check_urls(&urls.iter().map(|url| (*url).to_owned()).collect::<Vec<_>>());
        assert_eq!(check(&["http://10.0.0.1:2380", "https://[::1]:2380"]), Ok(()));
        for bad in [&[][..], &["10.0.0.1:2380"], &["http://h"], &["http://h:1/path"], &["http://:1"], &["ftp://h:1"]] {
            assert_eq!(check(bad), Err(Fault::MemberBadUrls), "{bad:?}");
        }
    }
}
