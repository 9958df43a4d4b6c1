//! `tailwater status`: asks every node that can be found, and shows members, fanouts as a tree, and slow streams.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use tailwater_tls::{ClientTls, TlsConfig};
use tailwater_transport::{LinkConfig, describe, fetch_text};
use tokio::task::JoinSet;

use crate::flags::StatusFlags;
use crate::status::{MemberStatus, Node, Status};

mod table;

/// How long one node may take to answer.
const TIMEOUT: Duration = Duration::from_secs(3);
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
    pub(crate) is_leader: bool,
    pub(crate) is_learner: bool,
    /// Whether it answered itself; else this is what others know of it.
    pub(crate) answered: bool,
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

/// Where a node may be asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Door {
    Client(String),
    Peer(String),
}

/// A node that is to be asked: where, the best way first.
type Doors = Vec<Door>;

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
pub(crate) async fn survey(endpoints: &[String], link: LinkConfig) -> Result<Survey, String> {
    let mut answers = BTreeMap::<String, Status>::new();
    let mut errors = Vec::new();
    let mut asked = BTreeSet::<Doors>::new();
    let mut waiting: VecDeque<Doors> = endpoints.iter().map(|url| vec![Door::Client(url.clone())]).collect();
    while !waiting.is_empty() && asked.len() < NODES_MAX {
        let mut asking = JoinSet::new();
        for doors in waiting.drain(..).filter(|doors| asked.insert(doors.clone())) {
            asking.spawn(ask(doors, link.clone()));
        }
        while let Some(answer) = asking.join_next().await {
            match answer {
                Ok(Ok(status)) => {
                    waiting.extend(named(&status).filter(|(id, _)| !answers.contains_key(id)).map(|(_, doors)| doors));
                    answers.insert(status.node.id.clone(), status);
                }
                Ok(Err(unanswered)) => errors.push(unanswered),
                Err(_) => {}
            }
        }
        waiting.retain(|doors| !doors.is_empty());
    }
    if answers.is_empty() {
        let reasons: Vec<_> = errors.iter().map(|error| format!("{}: {}", error.endpoint, error.reason)).collect();
        return Err(format!("no endpoint answers; {}", reasons.join("; ")));
    }
    errors.sort_by(|one, other| one.endpoint.cmp(&other.endpoint));
    Ok(compose(&answers, errors))
}

/// The nodes that an answer names, by id, and where they are asked.
fn named(status: &Status) -> impl Iterator<Item = (String, Doors)> {
    let doors = |client: &[String], peer: &[String]| -> Doors {
        let client = client.iter().cloned().map(Door::Client);
        client.chain(peer.iter().cloned().map(Door::Peer)).collect()
    };
    let readers = status.readers.iter().map(|node| (node.id.clone(), doors(&node.client_urls, &node.peer_urls)));
    let members =
        status.members.iter().map(|member| (member.id.clone(), doors(&member.client_urls, &member.peer_urls)));
    readers.chain(members).collect::<Vec<_>>().into_iter()
}

async fn ask(doors: Doors, link: LinkConfig) -> Result<Status, Unanswered> {
    let mut last = Unanswered::default();
    for door in doors {
        let (endpoint, answer) = match door {
            Door::Client(url) => {
                let text = fetch_text(&url, "/status", TIMEOUT, &link).await.map_err(|error| error.to_string());
                let status = text.and_then(|text| serde_json::from_str(&text).map_err(|error| error.to_string()));
                (url, status)
            }
            Door::Peer(url) => {
                let answer = describe(&url, 0, TIMEOUT, &link).await;
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

/// Puts the answers together: what a node says of itself counts before what others say of it.
fn compose(answers: &BTreeMap<String, Status>, errors: Vec<Unanswered>) -> Survey {
    // The newest term is told by whoever has heard of it.
    let newest = answers.values().max_by_key(|status| (status.term, !status.leader.is_empty()));
    let (leader, term) = newest.map(|status| (status.leader.clone(), status.term)).unwrap_or_default();
    let members: BTreeMap<&str, &MemberStatus> =
        answers.values().flat_map(|status| &status.members).map(|member| (member.id.as_str(), member)).collect();
    let mut nodes = BTreeMap::<String, Surveyed>::new();
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
