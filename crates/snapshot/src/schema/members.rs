//! What etcd stores as JSON. Field names and their order are etcd's.

use serde::{Deserialize, Deserializer, Serialize};

/// A member of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its id.
    pub id: u64,
    /// Where its peers reach it.
    #[serde(rename = "peerURLs", default, deserialize_with = "null_is_none")]
    pub peer_urls: Vec<String>,
    /// Whether it has no vote yet.
    #[serde(rename = "isLearner", default, skip_serializing_if = "std::ops::Not::not")]
    pub is_learner: bool,
    /// Its name; empty until it has started for the first time.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Where clients reach it; empty until it has started for the first time.
    #[serde(rename = "clientURLs", default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_none")]
    pub client_urls: Vec<String>,
}

/// Who takes part in raft, from the last configuration change that was applied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConfState {
    /// Those with a vote.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_none")]
    pub voters: Vec<u64>,
    /// Those without.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_none")]
    pub learners: Vec<u64>,
    /// Voters of the outgoing configuration while two are in force.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_none")]
    pub voters_outgoing: Vec<u64>,
    /// Voters that become learners when the outgoing configuration ends.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_none")]
    pub learners_next: Vec<u64>,
    /// Whether the outgoing configuration ends by itself.
    pub auto_leave: bool,
}

/// A downgrade that is under way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Downgrade {
    /// The version to go to; empty when none is under way.
    #[serde(rename = "target-version")]
    pub target_version: String,
    /// Whether one is under way.
    pub enabled: bool,
}

/// An empty list is `null` when it was never set.
fn null_is_none<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_byte_for_byte_that_of_etcd() {
        // As etcd 3.6.16 wrote them.
        let learner = r#"{"id":3681714486350284038,"peerURLs":["http://127.0.0.1:9999"],"isLearner":true}"#;
        let member = r#"{"id":7383792418829112008,"peerURLs":["http://127.0.0.1:42380"],"name":"default","clientURLs":["http://127.0.0.1:42379"]}"#;
        for json in [learner, member] {
            let decoded: Member = serde_json::from_str(json).expect("a member");
            assert_eq!(serde_json::to_string(&decoded).expect("plain data"), json);
        }
        let state = r#"{"voters":[7383792418829112008],"learners":[3681714486350284038],"auto_leave":false}"#;
        let decoded: ConfState = serde_json::from_str(state).expect("a configuration");
        assert_eq!(serde_json::to_string(&decoded).expect("plain data"), state);
        let downgrade = r#"{"target-version":"3.5.0","enabled":true}"#;
        let decoded: Downgrade = serde_json::from_str(downgrade).expect("a downgrade");
        assert_eq!(serde_json::to_string(&decoded).expect("plain data"), downgrade);
    }

    #[test]
    fn lists_may_be_missing_or_null() {
        let member: Member = serde_json::from_str(r#"{"id":1,"peerURLs":null}"#).expect("a member");
        assert_eq!(member, Member { id: 1, ..Member::default() });
        let state: ConfState = serde_json::from_str(r#"{"voters":null}"#).expect("a configuration");
        assert_eq!(state, ConfState::default());
    }
}
