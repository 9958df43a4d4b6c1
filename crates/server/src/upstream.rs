//! The group that a node without a replica belongs to, as its upstream tells.

use std::time::{Duration, Instant};

use tailwater_eventlog::Member;
use tailwater_transport::{Description, LinkConfig, describe};
use tokio::task::JoinSet;

/// How long one upstream may take to answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Between two rounds of questions.
const PAUSE: Duration = Duration::from_millis(250);
/// Between two log lines of whoever waits.
pub(crate) const TELL_INTERVAL: Duration = Duration::from_secs(3);

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) cluster_id: u64,
    /// Where to read, the preferred first.
    pub(crate) urls: Vec<String>,
    pub(crate) members: Vec<Member>,
}

/// Asks all upstreams until one answers.
///
/// # Errors
/// Two of them belong to different clusters.
pub(crate) async fn find(urls: &[String], link: &LinkConfig) -> anyhow::Result<Found> {
    let mut told: Option<Instant> = None;
    loop {
        let answers = ask(urls, link).await;
        if let Some(found) = judge(urls, &answers)? {
            return Ok(found);
        }
        if told.is_none_or(|told| told.elapsed() >= TELL_INTERVAL) {
            told = Some(Instant::now());
            let reasons: Vec<&str> =
                answers.iter().filter_map(|answer| answer.as_ref().err().map(String::as_str)).collect();
            tracing::warn!(
                upstream = urls.join(","),
                reasons = reasons.join("; "),
                "waiting for an upstream to answer"
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// All at once, in the order of the URLs.
async fn ask(urls: &[String], link: &LinkConfig) -> Vec<Result<Description, String>> {
    let mut asked = JoinSet::new();
    for (at, url) in urls.iter().cloned().enumerate() {
        let link = link.clone();
        asked.spawn(async move {
            let answer = describe(&url, 0, TIMEOUT, &link).await;
            (at, answer.map_err(|error| error.to_string()))
        });
    }
    let mut answers = vec![Err("no answer".to_owned()); urls.len()];
    while let Some(answered) = asked.join_next().await {
        if let Ok((at, answer)) = answered {
            answers[at] = answer;
        }
    }
    answers
}

/// Followers before the leader, which has enough to do; those that did not answer last; else in the order given.
fn judge(urls: &[String], answers: &[Result<Description, String>]) -> anyhow::Result<Option<Found>> {
    let mut ranked: Vec<(u8, &String)> = Vec::new();
    let mut first: Option<(&String, &Description)> = None;
    for (url, answer) in urls.iter().zip(answers) {
        let Ok(described) = answer else {
            ranked.push((3, url));
            continue;
        };
        match first {
            None => first = Some((url, described)),
            Some((other, one)) if one.node.cluster_id != described.node.cluster_id => anyhow::bail!(
                "--upstream: {other} is of cluster {:x}, {url} of cluster {:x}; name nodes of one cluster",
                one.node.cluster_id,
                described.node.cluster_id
            ),
            Some(_) => {}
        }
        let is_leader = described.leader == Some(described.node.id);
        ranked.push((if !described.node.ready { 2 } else { u8::from(is_leader) }, url));
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    let urls = ranked.into_iter().map(|(_, url)| url.clone()).collect();
    Ok(first.map(|(_, described)| Found {
        cluster_id: described.node.cluster_id,
        urls,
        members: described.members.clone(),
    }))
}

#[cfg(test)]
mod tests {
    use tailwater_eventlog::MemberId;
    use tailwater_transport::NodeDescription;

    use super::*;

    fn described(id: u64, cluster_id: u64, leader: u64, ready: bool) -> Result<Description, String> {
        let node = NodeDescription { id: MemberId(id), cluster_id, ready, ..Default::default() };
        let members = vec![Member { id: MemberId(leader), ..Default::default() }];
        Ok(Description { node, members, leader: Some(MemberId(leader)), ..Default::default() })
    }

    fn urls(count: usize) -> Vec<String> {
        (0..count).map(|at| format!("http://u:{at}")).collect()
    }

    #[test]
    fn followers_are_preferred_to_the_leader_and_those_that_answer_to_the_others() {
        let answers = [
            Err("refused".to_owned()),
            described(1, 7, 1, true),
            described(2, 7, 1, false),
            described(3, 7, 1, true),
            described(4, 7, 1, true),
        ];
        let found = judge(&urls(5), &answers).expect("one cluster").expect("somebody answered");
        assert_eq!(found.urls, ["http://u:3", "http://u:4", "http://u:1", "http://u:2", "http://u:0"]);
        assert_eq!((found.cluster_id, found.members.len()), (7, 1));
    }

    #[test]
    fn nobody_that_answers_is_waited_for() {
        assert_eq!(judge(&urls(1), &[Err("refused".to_owned())]).expect("nothing wrong"), None);
    }

    #[test]
    fn two_clusters_are_refused_by_name() {
        let error = judge(&urls(2), &[described(1, 7, 1, true), described(2, 8, 2, true)]).expect_err("two clusters");
        let text = "--upstream: http://u:0 is of cluster 7, http://u:1 of cluster 8; name nodes of one cluster";
        assert_eq!(error.to_string(), text);
    }
}
