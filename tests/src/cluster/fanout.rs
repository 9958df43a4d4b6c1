//! Fanouts beside the members: processes that keep nothing, and follow members or other fanouts.

use std::path::Path;
use std::process::Command;

use anyhow::Context;

use super::{Cluster, Member, free_address, write_log};
use crate::{Kind, program};

/// What a fanout follows, and what it serves.
#[derive(Clone, Debug, Default)]
pub struct Fanout {
    /// The slots that it follows, in its order of preference: members, or fanouts that are relays.
    pub upstream: Vec<usize>,
    /// Whether it listens for fanouts that follow it.
    pub relay: bool,
    /// The prefixes that it holds; none: every key.
    pub prefixes: Vec<String>,
    /// Further flags.
    pub flags: Vec<String>,
}

impl Fanout {
    /// A fanout of every key that follows `upstream`.
    #[must_use]
    pub fn following(upstream: impl IntoIterator<Item = usize>) -> Self {
        Self { upstream: upstream.into_iter().collect(), ..Self::default() }
    }

    /// The same, as a relay.
    #[must_use]
    pub fn as_relay(self) -> Self {
        Self { relay: true, ..self }
    }

    /// The same, holding only keys with one of `prefixes`.
    #[must_use]
    pub fn holding(self, prefixes: &[&str]) -> Self {
        Self { prefixes: prefixes.iter().map(|&prefix| prefix.to_owned()).collect(), ..self }
    }

    /// The same, with further flags.
    #[must_use]
    pub fn with(self, flags: &[&str]) -> Self {
        Self { flags: flags.iter().map(|&flag| flag.to_owned()).collect(), ..self }
    }
}

impl Cluster {
    /// Adds a fanout that is not started yet; its slot.
    ///
    /// # Errors
    /// When no ports are to be had, or the members are not Tailwater's.
    pub async fn add_fanout(&mut self, fanout: Fanout) -> anyhow::Result<usize> {
        anyhow::ensure!(self.kind() == Kind::Tailwater, "only a Tailwater has fanouts");
        let slot = self.members.len();
        let (name, client) = (format!("f{slot}"), format!("http://{}", free_address()?));
        let mut member = Member::new(slot, name, self.dir.path(), client, &self.links).await?;
        member.fanout = Some(fanout);
        self.members.push(member);
        Ok(slot)
    }

    /// Adds a fanout and waits until it answers a linearizable read.
    ///
    /// # Errors
    /// As [`Cluster::add_fanout`], or when it does not serve.
    pub async fn start_fanout(&mut self, fanout: Fanout) -> anyhow::Result<usize> {
        let slot = self.add_fanout(fanout).await?;
        self.restart(slot).await?;
        Ok(slot)
    }

    /// A key that `slot` holds, if it is there.
    pub(super) fn key_within(&self, slot: usize) -> String {
        let scope = self.members[slot].fanout.as_ref().and_then(|fanout| fanout.prefixes.first());
        scope.cloned().unwrap_or_else(|| "a".to_owned())
    }

    /// What tells the fanout in `slot` from a member; none when a member is there.
    pub(super) fn fanout_arguments(&self, slot: usize) -> anyhow::Result<Option<Vec<String>>> {
        let member = &self.members[slot];
        let Some(fanout) = &member.fanout else { return Ok(None) };
        let of = |other: &usize| self.members.get(*other).map(|member| member.proxy.url());
        let upstream: Option<Vec<String>> = fanout.upstream.iter().map(of).collect();
        let upstream = upstream.context("a fanout follows slots that are there")?;
        let mut arguments = vec!["--roles=fanout,gateway".to_owned(), format!("--upstream={}", upstream.join(","))];
        if fanout.relay {
            arguments.push(format!("--listen-peer-urls=http://{}", member.peer));
            arguments.push(format!("--initial-advertise-peer-urls={}", member.proxy.url()));
        }
        if !fanout.prefixes.is_empty() {
            arguments.push(format!("--prefixes={}", fanout.prefixes.join(",")));
        }
        arguments.extend(fanout.flags.iter().cloned());
        Ok(Some(arguments))
    }

    /// The command that starts the fanout in `slot`.
    pub(super) fn fanout_command(&mut self, slot: usize, arguments: &[String]) -> anyhow::Result<Command> {
        let dir = self.dir.path().to_owned();
        let member = &mut self.members[slot];
        member.lives += 1;
        let mut command = Command::new(program(Kind::Tailwater)?);
        command.args(["serve", "--name", &member.name]).args(arguments);
        for flag in ["listen-client-urls", "advertise-client-urls"] {
            command.arg(format!("--{flag}={}", member.client));
        }
        command.envs(member.environment.iter().cloned());
        write_log(&mut command, &member.log(Path::new(&dir)))?;
        Ok(command)
    }
}
