//! The group as the command line names it: `--initial-cluster`, state and token. An existing data directory needs none
//! of it.

use std::collections::BTreeMap;

use tailwater_eventlog::{Member, MemberId};

use crate::config::authority;
use crate::data_dir::Identity;
use crate::flags::Flags;
use crate::ids;

/// What an empty data directory begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Founding {
    /// By id: this member and the others that were named.
    pub(crate) members: Vec<Member>,
    /// This member, as it follows from its URLs. One that joins is given its id by the group.
    pub(crate) identity: Identity,
    /// Whether the group exists already: `--initial-cluster-state=existing`.
    pub(crate) joins: bool,
}

impl Founding {
    /// Checks the flags; `peer_urls` is what this member advertises, sorted.
    ///
    /// # Errors
    /// One sentence that names the flag and says what to change.
    pub(crate) fn from_flags(flags: &Flags, peer_urls: &[String]) -> Result<Self, String> {
        let joins = match flags.initial_cluster_state.as_str() {
            "new" => false,
            "existing" => true,
            other => return Err(format!("--initial-cluster-state: {other:?} must be new or existing")),
        };
        let named = match &flags.initial_cluster {
            Some(text) => named_members(text)?,
            None if joins => {
                return Err("--initial-cluster-state=existing needs --initial-cluster to find the other members".into());
            }
            None => BTreeMap::from([(flags.name.clone(), peer_urls.to_vec())]),
        };
        let Some(own) = named.get(&flags.name) else {
            return Err(format!(
                "--initial-cluster must contain {0:?}; add {0}=<its peer URL> or change --name",
                flags.name
            ));
        };
        if own != peer_urls {
            return Err(format!(
                "--initial-cluster gives {:?} the URLs {}, --initial-advertise-peer-urls {}; make them equal",
                flags.name,
                own.join(","),
                peer_urls.join(",")
            ));
        }
        let token = &flags.initial_cluster_token;
        let member_id = ids::member_id(own, token);
        let member = |(name, peer_urls): (String, Vec<String>)| Member {
            id: MemberId(ids::member_id(&peer_urls, token)),
            name,
            peer_urls,
            ..Default::default()
        };
        let mut members: Vec<Member> = named.into_iter().map(member).collect();
        members.sort_by_key(|member| member.id);
        if let Some(twins) = members.windows(2).find(|pair| pair[0].id == pair[1].id) {
            let (one, other) = (&twins[0].name, &twins[1].name);
            return Err(format!(
                "--initial-cluster gives {one:?} and {other:?} the same URL; each member needs its own"
            ));
        }
        let ids: Vec<u64> = members.iter().map(|member| member.id.0).collect();
        Ok(Self { members, identity: Identity { member_id, cluster_id: ids::cluster_id(&ids) }, joins })
    }

    /// The peer URLs of the others.
    pub(crate) fn other_urls(&self) -> Vec<String> {
        let others = self.members.iter().filter(|member| member.id.0 != self.identity.member_id);
        others.flat_map(|member| member.peer_urls.iter().cloned()).collect()
    }
}

/// URLs by name; a member with several URLs is named once for each.
fn named_members(text: &str) -> Result<BTreeMap<String, Vec<String>>, String> {
    let mut named = BTreeMap::<String, Vec<String>>::new();
    for entry in text.split(',') {
        let form = || {
            format!("--initial-cluster: {entry:?} must have the form name=http://host:port or name=https://host:port")
        };
        let (name, url) = entry.trim().split_once('=').ok_or_else(form)?;
        if name.is_empty() || authority(url).is_none() {
            return Err(form());
        }
        named.entry(name.to_owned()).or_default().push(url.to_owned());
    }
    named.values_mut().for_each(|urls| urls.sort());
    Ok(named)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: Flags,
    }

    fn founding(arguments: &[&str], own: &str) -> Result<Founding, String> {
        let line = std::iter::once("serve").chain(arguments.iter().copied());
        Founding::from_flags(&Line::try_parse_from(line).expect("known flags").flags, &[own.to_owned()])
    }

    const THREE: &str = "--initial-cluster=a=http://127.0.0.1:1,b=http://127.0.0.1:2,c=http://127.0.0.1:3";

    #[test]
    fn every_founder_finds_the_same_group() {
        let found = ["a", "b", "c"].iter().zip(1..).map(|(name, port)| {
            founding(&[&format!("--name={name}"), THREE], &format!("http://127.0.0.1:{port}")).expect("valid")
        });
        let found: Vec<Founding> = found.collect();
        assert!(found.iter().all(|one| one.members == found[0].members));
        assert!(found.iter().all(|one| one.identity.cluster_id == found[0].identity.cluster_id));
        let mut ids: Vec<u64> = found.iter().map(|one| one.identity.member_id).collect();
        ids.sort_unstable();
        assert_eq!(ids, found[0].members.iter().map(|member| member.id.0).collect::<Vec<_>>());
        assert_eq!(found[0].other_urls().len(), 2);
    }

    #[test]
    fn a_member_of_several_urls_is_named_once_for_each() {
        let both = "--initial-cluster=default=http://h:2,default=http://h:1,b=http://h:3";
        let line = Line::try_parse_from(["serve", both]).expect("known flags");
        let urls = ["http://h:1".to_owned(), "http://h:2".to_owned()];
        let found = Founding::from_flags(&line.flags, &urls).expect("valid");
        assert_eq!(found.members.len(), 2);
    }

    #[test]
    fn a_wrong_group_is_named_with_its_remedy() {
        let cases: &[(&[&str], &str)] = &[
            (&["--initial-cluster=b=http://h:1"], "must contain \"default\""),
            (&["--initial-cluster=default=http://h:9"], "make them equal"),
            (&["--initial-cluster=default"], "must have the form"),
            (&["--initial-cluster=default=unix://h:1"], "must have the form"),
            (&["--initial-cluster=default=http://h:1,b=http://h:1"], "same URL"),
            (&["--initial-cluster-state=existing"], "needs --initial-cluster"),
            (&["--initial-cluster-state=old"], "must be new or existing"),
        ];
        for (arguments, part) in cases {
            let reason = founding(arguments, "http://h:1").expect_err("refused");
            assert!(reason.contains(part), "{arguments:?}: {reason}");
        }
    }
}
