//! The replicas that calls can be sent to, by a gateway without a store or a fanout that holds a part: found from node to node, by what each says of itself
//! and of those that follow it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tailwater_gateway::{Forwarder, ReplicaInfo};
use tailwater_transport::{Description, LinkConfig, NodeDescription, describe};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

/// How long one node may take to answer.
const TIMEOUT: Duration = Duration::from_millis(900);
/// Nodes asked in one round.
const NODES_MAX: usize = 256;

/// Between two rounds of questions.
const ROUND: Duration = Duration::from_secs(1);

/// Keeps what `forwarder` knows of the replicas. `clients` drives its connections.
pub(crate) async fn keep(
    forwarder: &Forwarder,
    (upstream, link): (Vec<String>, LinkConfig),
    clients: &Handle,
    on_change: impl Fn(bool),
) {
    let mut discovery = Discovery { upstream, link, ..Discovery::default() };
    let mut rounds = tokio::time::interval(ROUND);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut was_ready = false;
    loop {
        rounds.tick().await;
        // Who can't be asked now may still serve: what was known stays, and a call that fails says more.
        if let Some(replicas) = discovery.round().await {
            let _inside = clients.enter();
            forwarder.update(replicas);
        }
        let is_ready = forwarder.is_ready();
        if is_ready != was_ready {
            was_ready = is_ready;
            on_change(is_ready);
        }
    }
}

/// What is known from earlier rounds.
#[derive(Debug, Default)]
struct Discovery {
    /// Of the flags; asked in every round.
    upstream: Vec<String>,
    link: LinkConfig,
    /// Peer URLs of the members, so that the group is found again when all upstreams are gone.
    members: BTreeSet<String>,
    /// 0: not known yet.
    cluster_id: u64,
}

/// What the nodes said in one round.
#[derive(Debug, Default)]
struct Seen {
    /// By their own word, by id.
    described: BTreeMap<u64, NodeDescription>,
    /// By their source's word.
    followers: BTreeMap<u64, NodeDescription>,
    members: BTreeSet<String>,
}

impl Discovery {
    /// Asks all nodes that can be found; `None` when nobody answers.
    async fn round(&mut self) -> Option<Vec<ReplicaInfo>> {
        let mut seen = Seen::default();
        let mut asked = BTreeSet::new();
        let mut next: Vec<String> = self.upstream.iter().chain(&self.members).cloned().collect();
        while !next.is_empty() {
            let mut answers = JoinSet::new();
            for url in next.drain(..) {
                if asked.len() < NODES_MAX && asked.insert(url.clone()) {
                    let (cluster_id, link) = (self.cluster_id, self.link.clone());
                    answers.spawn(async move {
                        let answer = describe(&url, cluster_id, TIMEOUT, &link).await;
                        answer.inspect_err(|error| tracing::debug!(url, %error, "a node did not say what it is"))
                    });
                }
            }
            while let Some(answered) = answers.join_next().await {
                let Ok(Ok(described)) = answered else { continue };
                // The first that answers says which cluster this is; the others are asked for that one.
                if self.cluster_id == 0 {
                    self.cluster_id = described.node.cluster_id;
                }
                if described.node.cluster_id == self.cluster_id {
                    next.extend(seen.add(described));
                }
            }
        }
        if seen.described.is_empty() {
            return None;
        }
        if !seen.members.is_empty() {
            self.members = std::mem::take(&mut seen.members);
        }
        Some(seen.replicas())
    }
}

impl Seen {
    /// Takes an answer; the peer URLs that it names.
    fn add(&mut self, described: Description) -> Vec<String> {
        let Description { node, readers, members, .. } = described;
        let mut urls = Vec::new();
        for member in members {
            urls.extend(member.peer_urls.iter().cloned());
            self.members.extend(member.peer_urls);
        }
        for reader in readers {
            urls.extend(reader.peer_urls.iter().cloned());
            self.followers.insert(reader.id.0, reader);
        }
        self.described.insert(node.id.0, node);
        urls
    }

    /// Those that serve clients from a store of their own. One that can't be asked is known by its source: what follows
    /// a tail has its state.
    fn replicas(self) -> Vec<ReplicaInfo> {
        let mut followers = self.followers;
        followers.retain(|id, follower| !self.described.contains_key(id) && follower.peer_urls.is_empty());
        let told = followers.into_values().map(|node| NodeDescription { ready: true, ..node });
        let mut nodes: Vec<_> = self.described.into_values().chain(told).collect();
        nodes.sort_by_key(|node| node.id);
        nodes.into_iter().filter_map(replica).collect()
    }
}

fn replica(node: NodeDescription) -> Option<ReplicaInfo> {
    let has = |role: &str| node.roles.iter().any(|own| own == role);
    if !has("fanout") || !has("gateway") {
        return None;
    }
    Some(ReplicaInfo {
        id: node.id.0,
        url: node.client_urls.first()?.clone(),
        is_member: has("consensus"),
        is_ready: node.ready,
        streams: node.load.streams,
        ranges: node.ranges,
    })
}

#[cfg(test)]
mod tests {
    use tailwater_eventlog::{Member, MemberId};

    use super::*;

    fn node(id: u64, roles: &[&str], peer_urls: &[&str], ready: bool) -> NodeDescription {
        NodeDescription {
            id: MemberId(id),
            roles: roles.iter().map(|&role| role.to_owned()).collect(),
            client_urls: vec![format!("http://c:{id}")],
            peer_urls: peer_urls.iter().map(|&url| url.to_owned()).collect(),
            ready,
            ..Default::default()
        }
    }

    #[test]
    fn replicas_are_those_that_serve_clients_by_their_own_word_or_their_sources() {
        let all = ["consensus", "fanout", "gateway"];
        let fanout = ["fanout", "gateway"];
        let mut seen = Seen::default();
        let member = Member { peer_urls: vec!["http://p:9".into()], ..Default::default() };
        let urls = seen.add(Description {
            node: node(1, &all, &["http://p:1"], true),
            readers: vec![
                node(2, &fanout, &["http://p:2"], false),
                node(3, &fanout, &[], false),
                node(4, &["gateway"], &[], false),
                node(5, &fanout, &["http://p:5"], false),
            ],
            members: vec![member],
            ..Default::default()
        });
        assert_eq!(urls, ["http://p:9", "http://p:2", "http://p:5"]);
        seen.add(Description { node: node(2, &fanout, &["http://p:2"], false), ..Default::default() });
        seen.add(Description { node: node(9, &["consensus"], &["http://p:9"], true), ..Default::default() });
        let found: Vec<_> =
            seen.replicas().into_iter().map(|found| (found.id, found.is_member, found.is_ready)).collect();
        // Node 5 serves other nodes and did not answer: it is gone, or cut off.
        assert_eq!(found, [(1, true, true), (2, false, false), (3, false, true)]);
    }
}
