//! What a member that joins asks of the group: who the members are, from `/members` on their peer URLs, as etcd does.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use serde::Deserialize;
use tailwater_eventlog::{Member, MemberId};

use crate::data_dir::Identity;

/// How long one member may take to answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// An answer is not read beyond this.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

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

#[derive(Deserialize)]
struct Answered {
    id: u64,
    #[serde(default)]
    name: String,
    #[serde(rename = "peerURLs")]
    peer_urls: Vec<String>,
    #[serde(default, rename = "clientURLs")]
    client_urls: Vec<String>,
    #[serde(default, rename = "isLearner")]
    is_learner: bool,
}

/// Asks one peer URL after the other until one answers. Blocks.
///
/// # Errors
/// None did, with the last reason.
pub(crate) fn ask(urls: &[String]) -> anyhow::Result<Group> {
    let mut last = anyhow::anyhow!("--initial-cluster names no other member");
    for url in urls {
        match ask_one(url) {
            Ok(group) => return Ok(group),
            Err(error) => {
                tracing::warn!(url, reason = format!("{error:#}"), "a member does not say who the members are");
                last = error.context(url.clone());
            }
        }
    }
    Err(last.context("no member of the cluster could be asked for its members; start them, or correct --initial-cluster"))
}

fn ask_one(url: &str) -> anyhow::Result<Group> {
    let authority = url.trim_start_matches("http://");
    let address = authority.to_socket_addrs()?.next().ok_or_else(|| anyhow::anyhow!("it has no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET /members HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    parse(&String::from_utf8_lossy(&answer))
}

fn parse(answer: &str) -> anyhow::Result<Group> {
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| anyhow::anyhow!("its answer is cut short"))?;
    let mut lines = head.lines();
    let status = lines.next().unwrap_or_default();
    anyhow::ensure!(status.split(' ').nth(1) == Some("200"), "it answered {status:?}");
    let cluster_id = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("x-etcd-cluster-id"))
        .and_then(|(_, id)| u64::from_str_radix(id.trim(), 16).ok())
        .ok_or_else(|| anyhow::anyhow!("its answer names no cluster"))?;
    let members: Vec<Answered> = serde_json::from_str(body)?;
    let member = |Answered { id, name, mut peer_urls, client_urls, is_learner }: Answered| {
        peer_urls.sort();
        Member { id: MemberId(id), name, peer_urls, client_urls, is_learner }
    };
    Ok(Group { cluster_id, members: members.into_iter().map(member).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-etcd-cluster-id: cdf8\r\n\r\n\
        [{\"id\":9372538179322589801,\"peerURLs\":[\"http://h:2\",\"http://h:1\"],\"name\":\"a\"},{\"id\":5,\"peerURLs\":[\"http://h:3\"],\"isLearner\":true}]\n";

    #[test]
    fn a_member_finds_itself_by_its_urls() {
        let group = parse(ANSWER).expect("an answer as etcd gives it");
        assert_eq!(group.members.len(), 2);
        let own = group.identity_of(&["http://h:1".into(), "http://h:2".into()]).expect("added");
        assert_eq!(own, Identity { member_id: 9_372_538_179_322_589_801, cluster_id: 0xcdf8 });
        let error = group.identity_of(&["http://h:9".into()]).expect_err("a stranger");
        assert!(error.to_string().contains("member add"), "{error}");
    }

    #[test]
    fn what_is_no_such_answer_is_refused() {
        for bad in ["", "HTTP/1.1 404 Not Found\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n[]", "HTTP/1.1 200 OK\r\nx-etcd-cluster-id: 1\r\n\r\n{"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
