use super::table::render;
use super::*;
use crate::status::Range;

fn node(id: &str, path: &[&str], revision: i64) -> Node {
    Node {
        id: id.into(),
        name: format!("n{id}"),
        ready: true,
        revision,
        path: path.iter().map(|&id| id.to_owned()).collect(),
        client_urls: vec![format!("http://c:{id}")],
        cluster_id: "7".into(),
        ..Default::default()
    }
}

fn member(id: &str) -> MemberStatus {
    MemberStatus { id: id.into(), name: format!("n{id}"), ..Default::default() }
}

fn answers() -> BTreeMap<String, Status> {
    let members = vec![member("1"), member("2")];
    let status = |node: Node, readers: Vec<Node>, leader: &str, term| {
        (node.id.clone(), Status { node, readers, members: members.clone(), leader: leader.into(), term })
    };
    let slow = Slow {
        peer: "10.0.0.9:77".into(),
        range: Range { start: "/a/".into(), end: "/a0".into() },
        backlog_revisions: 12,
        held_bytes: 2048,
    };
    let mut leaf = node("b", &["1", "a", "b"], 8);
    leaf.load = Load { held_bytes_max: 1 << 28, slowest: vec![slow], ..Default::default() };
    BTreeMap::from([
        // It has not heard of the new term.
        status(node("1", &["1"], 9), vec![node("a", &[], 9)], "2", 3),
        status(node("a", &["1", "a"], 9), vec![node("b", &[], 8), node("c", &[], 5)], "1", 4),
        status(leaf, Vec::new(), "1", 4),
    ])
}

#[test]
fn nodes_stand_below_those_that_they_follow() {
    let survey = compose(&answers(), Vec::new(), Vec::new());
    let tree: Vec<(&str, usize, bool, i64)> = survey
        .nodes
        .iter()
        .map(|surveyed| (surveyed.node.id.as_str(), surveyed.depth, surveyed.answered, surveyed.lag_revisions))
        .collect();
    // Member 2 and fanout c did not answer; others know of them.
    let expected = [("1", 0, true, 0), ("a", 1, true, 0), ("b", 2, true, 1), ("c", 2, false, 4), ("2", 0, false, 9)];
    assert_eq!(tree, expected);
    assert_eq!((survey.leader.as_str(), survey.term, survey.revision), ("1", 4, 9));
    assert!(survey.nodes[0].is_leader && !survey.nodes[4].is_leader);
}

#[test]
fn everybody_that_is_named_is_asked_where_it_can_be() {
    let mut status = answers()["1"].clone();
    status.members[1].peer_urls = vec!["http://p:2".into()];
    status.members[1].client_urls = vec!["http://c:2".into()];
    let [client, peer] = [Door::Client("http://c:2".into()), Door::Peer("http://p:2".into())];
    let found: Vec<_> = named(&status, &asking(false)).collect();
    assert_eq!(found[0], ("a".into(), vec![Door::Client("http://c:a".into())]));
    assert_eq!(found[2], ("2".into(), vec![client.clone(), peer.clone()]));
    assert_eq!(named(&status, &asking(true)).nth(2), Some(("2".into(), vec![peer, client])));
}

fn asking(prefers_peers: bool) -> Asking {
    let link = LinkConfig::default();
    Asking {
        clients: link.clone(),
        peers: link,
        prefers_peers,
        patience: Duration::from_millis(100),
        patience_in_all: Duration::from_millis(300),
        nodes_max: 8,
    }
}

#[tokio::test]
async fn a_node_that_says_nothing_is_not_waited_for_without_end() {
    // It accepts, and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", silent.local_addr().expect("bound"));
    let mut own = answers()["1"].clone();
    own.members[1].client_urls = vec![url; 8];
    let begun = Instant::now();
    let survey = ask_all(Vec::new(), Some(own), Vec::new(), &asking(true)).await;
    assert!(begun.elapsed() < Duration::from_millis(700), "{:?}", begun.elapsed());
    let answered: Vec<_> = survey.nodes.iter().map(|surveyed| (&*surveyed.node.id, surveyed.answered)).collect();
    assert_eq!(answered, [("1", true), ("a", false), ("2", false)]);
}

#[tokio::test]
async fn a_node_that_nobody_names_any_more_is_remembered_for_a_while() {
    let (mut lately, begun) = (Lately::default(), Instant::now());
    lately.note(&compose(&answers(), Vec::new(), Vec::new()), begun);
    // Members are named by every node; fanouts by their source alone.
    let remembered = |lately: &Lately| lately.nodes().into_iter().map(|node| node.id).collect::<Vec<_>>();
    assert_eq!(remembered(&lately), ["a", "b", "c"]);
    // The source of b and c is gone.
    let left = BTreeMap::from([("1".to_owned(), Status { readers: Vec::new(), ..answers()["1"].clone() })]);
    let survey = compose(&left, lately.nodes(), Vec::new());
    let shown: Vec<_> = survey.nodes.iter().map(|surveyed| (&*surveyed.node.id, surveyed.state())).collect();
    let silent = "no answer";
    assert_eq!(shown, [("1", "ready"), ("a", silent), ("b", silent), ("2", silent), ("c", silent)]);
    // Being remembered is no reason to be remembered on.
    lately.note(&survey, begun + LATELY / 2);
    assert_eq!(remembered(&lately).len(), 3);
    lately.note(&survey, begun + LATELY);
    assert!(remembered(&lately).is_empty());
}

#[test]
fn watchers_of_a_prefix_are_summed_over_nodes() {
    let load = |prefix: &str, watchers| Prefix { prefix: prefix.into(), watchers };
    let mut answers = answers();
    answers.get_mut("1").expect("a member").node.load.prefixes = vec![load("/a/", 5), load("/b/", 4)];
    answers.get_mut("b").expect("a leaf").node.load.prefixes = vec![load("/b/", 3), load("/c/", 1)];
    assert_eq!(compose(&answers, Vec::new(), Vec::new()).prefixes(2), [load("/b/", 7), load("/a/", 5)]);
}

#[test]
fn the_table_shows_the_tree_and_slow_streams() {
    let errors = vec![Unanswered { endpoint: "http://c:c".into(), reason: "refused".into() }];
    let text = render(&compose(&answers(), Vec::new(), errors));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "cluster 7, leader n1, term 4, revision 9");
    assert!(lines[2].starts_with("NODE"), "{text}");
    assert!(lines[3].starts_with("n1 ") && lines[3].contains("leader"), "{text}");
    assert!(lines[4].starts_with("└ na"), "{text}");
    assert!(lines[5].starts_with("  └ nb") && lines[5].contains("0 B of 256 MiB"), "{text}");
    assert!(lines[6].starts_with("  └ nc") && lines[6].contains("no answer"), "{text}");
    let slow = lines.iter().position(|line| *line == "slowest watch streams").expect("there is one");
    assert_eq!(lines[slow + 2], "nb    10.0.0.9:77  /a/ /a0  12       2.0 KiB");
    assert_eq!(lines.last(), Some(&"no answer from http://c:c: refused"));
}

#[test]
fn a_ring_of_stale_answers_leaves_nobody_out() {
    let alone = |id: &str, path: &[&str]| (id.to_owned(), Status { node: node(id, path, 1), ..Default::default() });
    let ring = BTreeMap::from([alone("a", &["b", "a"]), alone("b", &["a", "b"])]);
    assert_eq!(compose(&ring, Vec::new(), Vec::new()).nodes.len(), 2);
}

#[tokio::test]
async fn endpoints_that_do_not_answer_are_named() {
    let error = survey(&["http://127.0.0.1:1".into()], LinkConfig::default()).await.expect_err("nobody is there");
    assert!(error.starts_with("no endpoint answers; http://127.0.0.1:1: "), "{error}");
}
