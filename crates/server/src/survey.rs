//! Asks every node that can be found: members, fanouts as a tree, what each carries. `tailwater status` prints it, `/ui`
//! draws it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use tailwater_tls::{ClientTls, TlsConfig};
use tailwater_transport::{LinkConfig, describe, fetch_text};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::flags::StatusFlags;
use crate::status::{Load, MemberStatus, Node, Prefix, Slow, Status};

mod table;

/// How long one node may take to answer a command, and all of them together.
const PATIENCE: Duration = Duration::from_secs(3);
const PATIENCE_IN_ALL: Duration = Duration::from_secs(60);
/// How long a node is remembered that nobody names any more.
const LATELY: Duration = Duration::from_secs(10);
/// Nodes that are asked in all; whoever has more asks for parts.
const NODES_MAX: usize = 4096;

/// Everything that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Survey {
    pub(crate) cluster_id: String,
    /// Empty: nobody leads, as far as those know that were asked.
    pub(crate) leader: String,
    pub(crate) term: u64,
    /// The newest revision that any node has.
    pub(crate) revision: i64,
    /// A parent before its children.
    pub(crate) nodes: Vec<Surveyed>,
    /// Endpoints that did not answer, and why.
    pub(crate) errors: Vec<Unanswered>,
}

/// A node and its place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Surveyed {
    pub(crate) node: Node,
    pub(crate) is_member: bool,
    pub(crate) is_leader: bool,
    pub(crate) is_learner: bool,
    /// Whether it answered itself; else this is what others know of it.
    pub(crate) answered: bool,
    /// Whether nobody knows of it now.
    #[serde(skip)]
    pub(crate) is_only_remembered: bool,
    /// The node that it follows; none for a member.
    pub(crate) parent: Option<String>,
    /// Steps to a member.
    pub(crate) depth: usize,
    /// Revisions behind the newest.
    pub(crate) lag_revisions: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Unanswered {
    pub(crate) endpoint: String,
    pub(crate) reason: String,
}

impl Surveyed {
    /// In a word.
    pub(crate) fn state(&self) -> &'static str {
        match (self.answered, self.node.ready) {
            (false, _) => "no answer",
            (true, false) => "not ready",
            (true, true) if self.is_leader => "leader",
            (true, true) if self.is_learner => "learner",
            (true, true) => "ready",
        }
    }
}

impl Survey {
    /// Streams of all nodes, the furthest behind first.
    pub(crate) fn slowest(&self, count_max: usize) -> Vec<(&Surveyed, &Slow)> {
        let all = self.nodes.iter().flat_map(|surveyed| {
            let slowest = surveyed.node.load.slowest.iter();
            slowest.map(move |stream| (surveyed, stream))
        });
        let mut streams: Vec<(&Surveyed, &Slow)> = all.collect();
        streams.sort_by_key(|(_, stream)| std::cmp::Reverse(stream.backlog_revisions));
        streams.truncate(count_max);
        streams
    }

    /// Where most watchers look, of all nodes together, the most first. What only a few watch on each of many nodes may be
    /// missing: each tells its own first few.
    pub(crate) fn prefixes(&self, count_max: usize) -> Vec<Prefix> {
        let mut sums = BTreeMap::<&str, u64>::new();
        for load in self.nodes.iter().flat_map(|surveyed| &surveyed.node.load.prefixes) {
            *sums.entry(&load.prefix).or_default() += load.watchers;
        }
        let mut prefixes: Vec<Prefix> =
            sums.into_iter().map(|(prefix, watchers)| Prefix { prefix: prefix.to_owned(), watchers }).collect();
        prefixes.sort_by_key(|prefix| std::cmp::Reverse(prefix.watchers));
        prefixes.truncate(count_max);
        prefixes
    }
}

/// Where a node may be asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Door {
    Client(String),
    Peer(String),
}

/// A node that is to be asked: where, the best way first.
pub(crate) type Doors = Vec<Door>;

/// How nodes are asked.
#[derive(Clone, Debug)]
pub(crate) struct Asking {
    /// To client URLs.
    pub(crate) clients: LinkConfig,
    /// To peer URLs.
    pub(crate) peers: LinkConfig,
    /// Whether peer URLs come first: nodes of a cluster reach each other there, others may not.
    pub(crate) prefers_peers: bool,
    /// A node may take so long to answer at one URL.
    pub(crate) patience: Duration,
    /// All of them together; who has not answered by then is shown as others know it.
    pub(crate) patience_in_all: Duration,
    pub(crate) nodes_max: usize,
}

/// Nodes that were found a moment ago. They are asked even if nobody names them now: the source of a fanout may have died, or
/// be silent, while the fanout lives.
#[derive(Debug, Default)]
pub(crate) struct Lately {
    nodes: BTreeMap<String, (Node, Instant)>,
}

impl Lately {
    /// Remembers who answered or was named by who did; who was not for a while is forgotten.
    pub(crate) fn note(&mut self, survey: &Survey, now: Instant) {
        for surveyed in survey.nodes.iter().filter(|surveyed| !surveyed.is_only_remembered && !surveyed.is_member) {
            // What it carried then may be elsewhere by now.
            let node = Node { load: Load::default(), ..surveyed.node.clone() };
            self.nodes.insert(node.id.clone(), (node, now));
        }
        self.nodes.retain(|_, (_, found)| now.duration_since(*found) < LATELY);
    }

    /// Those that are remembered.
    pub(crate) fn nodes(&self) -> Vec<Node> {
        self.nodes.values().map(|(node, _)| node.clone()).collect()
    }
}

/// `tailwater status`.
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command for a terminal")]
pub(crate) fn run(flags: &StatusFlags) -> ExitCode {
    let with_scheme = |url: &str| if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let endpoints: Vec<String> = flags.endpoints.split(',').map(|url| with_scheme(url.trim())).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let surveyed = match runtime {
        Ok(runtime) => runtime.block_on(survey(&endpoints, link(flags))),
        Err(error) => Err(error.to_string()),
    };
    match surveyed {
        Ok(survey) if flags.write_out == "json" => {
            println!("{}", serde_json::to_string(&survey).expect("numbers and strings are JSON"));
        }
        Ok(survey) => print!("{}", table::render(&survey)),
        Err(reason) => {
            eprintln!("error: {reason}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// As etcdctl's flags say it.
fn link(flags: &StatusFlags) -> LinkConfig {
    let path = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
    let tls = TlsConfig {
        cert_file: path(&flags.cert),
        key_file: path(&flags.key),
        trusted_ca_file: path(&flags.cacert),
        ..TlsConfig::default()
    };
    LinkConfig { tls: Some(ClientTls::new(tls)), ..LinkConfig::default() }
}

/// Asks the nodes at these client URLs, and all that they name.
///
/// # Errors
/// None of the endpoints answers.
async fn survey(endpoints: &[String], link: LinkConfig) -> Result<Survey, String> {
    let doors = endpoints.iter().map(|url| vec![Door::Client(url.clone())]).collect();
    let asking = Asking {
        clients: link.clone(),
        peers: link,
        prefers_peers: false,
        patience: PATIENCE,
        patience_in_all: PATIENCE_IN_ALL,
        nodes_max: NODES_MAX,
    };
    let survey = ask_all(doors, None, Vec::new(), &asking).await;
    if survey.nodes.iter().any(|surveyed| surveyed.answered) {
        return Ok(survey);
    }
    let reasons: Vec<_> = survey.errors.iter().map(|error| format!("{}: {}", error.endpoint, error.reason)).collect();
    Err(format!("no endpoint answers; {}", reasons.join("; ")))
}

/// Asks the nodes at `doors`, those found `lately`, and all that they or `own`, the description of who asks, name.
pub(crate) async fn ask_all(doors: Vec<Doors>, own: Option<Status>, lately: Vec<Node>, asking: &Asking) -> Survey {
    let until = Instant::now() + asking.patience_in_all;
    let mut answers = BTreeMap::<String, Status>::new();
    let mut errors = Vec::new();
    let mut asked = BTreeSet::<Doors>::new();
    let mut waiting = VecDeque::from(doors);
    if let Some(own) = own {
        answers.insert(own.node.id.clone(), own.clone());
        waiting.extend(named(&own, asking).filter(|(id, _)| *id != own.node.id).map(|(_, doors)| doors));
    }
    waiting.extend(lately.iter().map(|node| doors_of(&node.client_urls, &node.peer_urls, asking)));
    let mut under_way = JoinSet::new();
    loop {
        for doors in waiting.drain(..).filter(|doors| !doors.is_empty()) {
            if asked.len() < asking.nodes_max && asked.insert(doors.clone()) {
                under_way.spawn(ask(doors, asking.clone()));
            }
        }
        match timeout_at(until, under_way.join_next()).await {
            Ok(Some(Ok(Ok(status)))) => {
                waiting
                    .extend(named(&status, asking).filter(|(id, _)| !answers.contains_key(id)).map(|(_, doors)| doors));
                answers.insert(status.node.id.clone(), status);
            }
            Ok(Some(Ok(Err(unanswered)))) => errors.push(unanswered),
            Ok(Some(Err(_))) => {}
            // All have answered, or are not waited for any longer.
            Ok(None) | Err(_) => break,
        }
    }
    errors.sort_by(|one, other| one.endpoint.cmp(&other.endpoint));
    compose(&answers, lately, errors)
}

/// The nodes that an answer names, by id, and where they are asked.
fn named(status: &Status, asking: &Asking) -> impl Iterator<Item = (String, Doors)> {
    let readers = status.readers.iter().map(|node| (&node.id, &node.client_urls, &node.peer_urls));
    let members = status.members.iter().map(|member| (&member.id, &member.client_urls, &member.peer_urls));
    readers.chain(members).map(|(id, client, peer)| (id.clone(), doors_of(client, peer, asking)))
}

fn doors_of(client: &[String], peer: &[String], asking: &Asking) -> Doors {
    let (client, peer) = (client.iter().cloned().map(Door::Client), peer.iter().cloned().map(Door::Peer));
    if asking.prefers_peers { peer.chain(client).collect() } else { client.chain(peer).collect() }
}

async fn ask(doors: Doors, asking: Asking) -> Result<Status, Unanswered> {
    let mut last = Unanswered::default();
    for door in doors {
        let (endpoint, answer) = match door {
            Door::Client(url) => {
                let text = fetch_text(&url, "/status", asking.patience, &asking.clients).await;
                let status = text.map_err(|error| error.to_string());
                let status = status.and_then(|text| serde_json::from_str(&text).map_err(|error| error.to_string()));
                (url, status)
            }
            Door::Peer(url) => {
                let answer = describe(&url, 0, asking.patience, &asking.peers).await;
                (url, answer.map(Status::from).map_err(|error| error.to_string()))
            }
        };
        match answer {
            Ok(status) => return Ok(status),
            Err(reason) => last = Unanswered { endpoint, reason },
        }
    }
    Err(last)
}

/// Puts the answers together: what a node says of itself counts before what others say of it, and that before what is
/// remembered of it.
fn compose(answers: &BTreeMap<String, Status>, lately: Vec<Node>, errors: Vec<Unanswered>) -> Survey {
    // The newest term is told by whoever has heard of it.
    let newest = answers.values().max_by_key(|status| (status.term, !status.leader.is_empty()));
    let (leader, term) = newest.map(|status| (status.leader.clone(), status.term)).unwrap_or_default();
    let members: BTreeMap<&str, &MemberStatus> =
        answers.values().flat_map(|status| &status.members).map(|member| (member.id.as_str(), member)).collect();
    let mut nodes = BTreeMap::<String, Surveyed>::new();
    for node in lately {
        let (id, parent) = (node.id.clone(), parent_of(&node));
        nodes.insert(id, Surveyed { node, parent, is_only_remembered: true, ..Default::default() });
    }
    for member in members.values() {
        let node = Node {
            id: member.id.clone(),
            name: member.name.clone(),
            client_urls: member.client_urls.clone(),
            peer_urls: member.peer_urls.clone(),
            ..Default::default()
        };
        nodes.insert(member.id.clone(), Surveyed { node, ..Default::default() });
    }
    for (parent, status) in answers {
        for reader in &status.readers {
            let parent = Some(parent.clone());
            nodes.insert(reader.id.clone(), Surveyed { node: reader.clone(), parent, ..Default::default() });
        }
    }
    for (id, status) in answers {
        let parent = parent_of(&status.node);
        nodes.insert(id.clone(), Surveyed { node: status.node.clone(), answered: true, parent, ..Default::default() });
    }
    let revision = nodes.values().map(|surveyed| surveyed.node.revision).max().unwrap_or(0);
    for (id, surveyed) in &mut nodes {
        surveyed.is_member = members.contains_key(id.as_str());
        surveyed.is_leader = *id == leader;
        surveyed.is_learner = members.get(id.as_str()).is_some_and(|member| member.is_learner);
        surveyed.lag_revisions = revision - surveyed.node.revision;
    }
    let cluster_id = answers.values().next().map(|status| status.node.cluster_id.clone()).unwrap_or_default();
    Survey { cluster_id, leader, term, revision, nodes: in_tree_order(nodes), errors }
}

/// Whom a node follows: the last but one of its path to the core. A member's path holds itself alone.
fn parent_of(node: &Node) -> Option<String> {
    node.path.iter().rev().nth(1).cloned()
}

/// Parents before children, siblings by name; who follows a node that is not known stands at the root.
fn in_tree_order(mut nodes: BTreeMap<String, Surveyed>) -> Vec<Surveyed> {
    let mut children = BTreeMap::<Option<String>, Vec<(String, String)>>::new();
    for (id, surveyed) in &nodes {
        let parent = surveyed.parent.clone().filter(|parent| nodes.contains_key(parent));
        children.entry(parent).or_default().push((surveyed.node.name.clone(), id.clone()));
    }
    let mut ordered = Vec::new();
    let mut walk: Vec<(usize, String)> = Vec::new();
    let mut push = |walk: &mut Vec<(usize, String)>, depth: usize, parent: Option<String>| {
        let mut ids = children.remove(&parent).unwrap_or_default();
        ids.sort();
        walk.extend(ids.into_iter().rev().map(|(_, id)| (depth, id)));
    };
    push(&mut walk, 0, None);
    while let Some((depth, id)) = walk.pop() {
        if let Some(surveyed) = nodes.remove(&id) {
            ordered.push(Surveyed { depth, ..surveyed });
            push(&mut walk, depth + 1, Some(id));
        }
    }
    // Stale answers may show a ring for a moment; nobody is left out.
    ordered.extend(nodes.into_values());
    ordered
}

#[cfg(test)]
mod tests;
