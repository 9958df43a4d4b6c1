//! What a member that joins asks of the group: who the members are, from `/members` on their peer URLs, as etcd does.

use std::time::{Duration, Instant};

use tailwater_eventlog::Member;
use tailwater_transport::{LinkConfig, MemberList, fetch_members};

use crate::data_dir::Identity;

/// How long one member may take to answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Members that restart at the same time, or a network that comes up, are waited for so long.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two rounds of asking everybody.
const PAUSE: Duration = Duration::from_millis(500);

/// The group as one of its members described it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    cluster_id: u64,
    pub(crate) members: Vec<Member>,
}

impl Group {
    /// Who the member with these peer URLs is.
    ///
    /// # Errors
    /// Nobody has added it.
    pub(crate) fn identity_of(&self, peer_urls: &[String]) -> anyhow::Result<Identity> {
        let own = self.members.iter().find(|member| member.peer_urls == peer_urls);
        let Some(own) = own else {
            anyhow::bail!(
                "no member of the cluster has the peer URLs {0}; run `etcdctl member add NAME --peer-urls={0}` first, or \
                 change --initial-advertise-peer-urls",
                peer_urls.join(",")
            );
        };
        Ok(Identity { member_id: own.id.0, cluster_id: self.cluster_id })
    }
}

impl From<MemberList> for Group {
    fn from(list: MemberList) -> Self {
        let mut members = list.members;
        members.iter_mut().for_each(|member| member.peer_urls.sort());
        Self { cluster_id: list.cluster_id, members }
    }
}

/// Asks one peer URL after the other until one answers, for some seconds. Blocks.
///
/// # Errors
/// None did, with the last reason.
pub(crate) fn ask(urls: &[String], link: &LinkConfig) -> anyhow::Result<Group> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let end = Instant::now() + PATIENCE;
    let mut last = anyhow::anyhow!("--initial-cluster names no other member");
    loop {
        for url in urls {
            match runtime.block_on(fetch_members(url, TIMEOUT, link)) {
                Ok(list) => return Ok(list.into()),
                Err(error) => {
                    tracing::warn!(url, reason = %error, "a member does not say who the members are");
                    last = error.into();
                }
            }
        }
        if urls.is_empty() || Instant::now() + PAUSE >= end {
            let remedy =
                "no member of the cluster could be asked for its members; start them, or correct --initial-cluster";
            return Err(last.context(remedy));
        }
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use tailwater_eventlog::MemberId;

    use super::*;

    #[test]
    fn a_member_finds_itself_by_its_urls() {
        let peer_urls = vec!["http://h:2".to_owned(), "http://h:1".to_owned()];
        let list =
            MemberList { cluster_id: 7, members: vec![Member { id: MemberId(5), peer_urls, ..Default::default() }] };
        let group = Group::from(list);
        let own = group.identity_of(&["http://h:1".into(), "http://h:2".into()]).expect("added");
        assert_eq!(own, Identity { member_id: 5, cluster_id: 7 });
        let error = group.identity_of(&["http://h:9".into()]).expect_err("a stranger");
        assert!(error.to_string().contains("member add"), "{error}");
    }

    #[test]
    fn a_group_that_nobody_answers_for_is_named_with_its_remedy() {
        let error = ask(&[], &LinkConfig::default()).expect_err("nobody to ask");
        assert!(error.to_string().contains("correct --initial-cluster"), "{error}");
    }
}
