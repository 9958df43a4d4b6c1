//! Starting a tier, and how much of everything a run does.

use std::time::Duration;

use anyhow::Context;
use tailwater_tests::cluster::{Cluster, Fanout, Setup};
use tailwater_tests::{Kind, left_out, program};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Tiers that run at a time: those that do not measure mostly wait.
const TIERS: u32 = 2;
static TURNS: Semaphore = Semaphore::const_new(TIERS as usize);

/// What stands where the tests put fanouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Fanouts,
    Members,
    Etcd,
}

/// What this run is asked to put there.
pub(crate) fn standing() -> Standing {
    match std::env::var("TIER").as_deref() {
        Ok("members") => Standing::Members,
        Ok("etcd") => Standing::Etcd,
        _ => Standing::Fanouts,
    }
}

/// Whether the full counts are asked for.
pub(crate) fn acceptance() -> bool {
    std::env::var("ACCEPTANCE").is_ok_and(|value| value == "1")
}

/// `short`, or with ACCEPTANCE=1 `full`.
pub(crate) fn scaled<T>(short: T, full: T) -> T {
    if acceptance() { full } else { short }
}

/// The number in the environment variable `name`, or `otherwise`.
pub(crate) fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(otherwise)
}

/// The seed of this run.
pub(crate) fn seed() -> u64 {
    number("SEED", rand::random())
}

/// Says something about a run that passes; the figures tell what the pass is worth.
#[expect(clippy::print_stdout, reason = "the result of a run")]
pub(crate) fn say(text: &str) {
    println!("{text}");
}

/// Members with their leader and, behind them, replicas that clients use.
pub(crate) struct Tier {
    pub(crate) cluster: Cluster,
    /// Slots of the members that stay members in every form.
    pub(crate) members: Vec<usize>,
    /// Slots of the fanouts, in the order in which they were asked for.
    pub(crate) fanouts: Vec<usize>,
    _turn: SemaphorePermit<'static>,
}

/// How a tier is asked for.
pub(crate) struct Plan {
    test: &'static str,
    fanouts: Vec<Fanout>,
    setup: Option<Setup>,
    only_fanouts: bool,
    alone: bool,
}

impl Plan {
    /// Three members for `test`.
    pub(crate) fn new(test: &'static str) -> Self {
        Self { test, fanouts: Vec::new(), setup: None, only_fanouts: false, alone: false }
    }

    /// A fanout behind them. Its upstream slots: members are 0 to 2, fanouts follow from 3 on as they are added.
    pub(crate) fn fanout(mut self, fanout: Fanout) -> Self {
        self.fanouts.push(fanout);
        self
    }

    /// Left out where other servers stand for fanouts.
    pub(crate) fn only_fanouts(self) -> Self {
        Self { only_fanouts: true, ..self }
    }

    /// No other tier runs meanwhile: the test measures.
    pub(crate) fn alone(self) -> Self {
        Self { alone: true, ..self }
    }

    /// Another setup of the members; its number of members stays three.
    pub(crate) fn members(self, change: impl FnOnce(&mut Setup)) -> Self {
        let mut setup = self.setup.unwrap_or_else(|| Setup::new(kind(), 3));
        change(&mut setup);
        Self { setup: Some(setup), ..self }
    }

    /// The right to run something that starts its processes by itself.
    ///
    /// # Errors
    /// Never, as nobody takes the right away.
    pub(crate) async fn turn() -> anyhow::Result<SemaphorePermit<'static>> {
        TURNS.acquire().await.context("nobody closes it")
    }

    /// Starts it and waits until all serve; none when this can't run here, which has been said then.
    ///
    /// # Errors
    /// When a process does not serve.
    pub(crate) async fn start(self) -> anyhow::Result<Option<Tier>> {
        if let Err(error) = program(kind()) {
            left_out(self.test, &format!("{error:#}"));
            return Ok(None);
        }
        if !std::path::Path::new("/proc/net/tcp").exists() {
            left_out(self.test, "the proxies between nodes need /proc");
            return Ok(None);
        }
        let standing = standing();
        if self.only_fanouts && standing != Standing::Fanouts {
            say(&format!("{}: only fanouts can do this", self.test));
            return Ok(None);
        }
        let turn = TURNS.acquire_many(if self.alone { TIERS } else { 1 }).await.context("nobody closes it")?;
        let mut setup = self.setup.unwrap_or_else(|| Setup::new(kind(), 3));
        let members: Vec<usize> = (0..setup.members).collect();
        if standing != Standing::Fanouts {
            setup.members += self.fanouts.len();
        }
        let fanouts: Vec<usize> = (members.len()..members.len() + self.fanouts.len()).collect();
        let mut cluster = Cluster::new(setup).await?;
        if standing == Standing::Fanouts {
            for fanout in self.fanouts {
                cluster.add_fanout(fanout).await?;
            }
        }
        for slot in 0..cluster.slots() {
            cluster.launch(slot)?;
        }
        for slot in 0..cluster.slots() {
            cluster.wait_until_serving(slot).await?;
        }
        Ok(Some(Tier { cluster, members, fanouts, _turn: turn }))
    }
}

fn kind() -> Kind {
    if standing() == Standing::Etcd { Kind::Etcd } else { Kind::Tailwater }
}

impl Tier {
    /// The client URLs of `slots`.
    pub(crate) fn urls(&self, slots: &[usize]) -> Vec<String> {
        slots.iter().map(|slot| self.cluster.url(*slot).to_owned()).collect()
    }

    /// A leader among the members proper, also where other members stand for fanouts.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) async fn lead_by_a_member(&self) -> anyhow::Result<usize> {
        let all: Vec<usize> = (0..self.cluster.size()).collect();
        let leader = self.cluster.wait_for_leader(&all).await?;
        if self.members.contains(&leader) {
            return Ok(leader);
        }
        let id = self.cluster.status(self.members[0]).await.and_then(|status| status.header).context("it serves")?;
        let mut client =
            tailwater_api::etcdserverpb::maintenance_client::MaintenanceClient::new(self.cluster.channel(leader)?);
        client.move_leader(tailwater_api::etcdserverpb::MoveLeaderRequest { target_id: id.member_id }).await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        self.cluster.wait_for_leader(&all).await
    }
}
