//! Rounds of requests, and a look at the server after each.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use prost::Message;
use tailwater_api::{authpb, etcdserverpb as pb};
use tailwater_tests::{RawClient, Server};

use crate::gauges::{Gauges, settled};
use crate::guard::KEPT;
use crate::messages::{self, Method};
use crate::random::Random;
use crate::witness::{Served, Witness};
use crate::{calls, connections, http};

const WORKERS: u64 = 6;
const ROUND_MIN: Duration = Duration::from_secs(3);
const ROUND_MAX: Duration = Duration::from_secs(30);
/// Calls over one connection.
const CALLS_MAX: usize = 40;
/// Rounds from which memory is judged, and by how much the last ones may need more than earlier ones.
const ROUNDS_JUDGED: usize = 12;
/// A memtable and the hot end of the tail fill up, 64 MiB each; what fragments comes on top.
const GROWTH_BYTES_MAX: u64 = 192 << 20;
/// For short runs, and for all.
const RESIDENT_BYTES_MAX: u64 = 1 << 30;

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) duration: Duration,
    pub(crate) with_auth: bool,
}

/// Whom requests go to, and what they may show.
pub(crate) struct World {
    pub(crate) url: String,
    pub(crate) address: SocketAddr,
    pub(crate) with_auth: bool,
    /// The server's id.
    pub(crate) member: u64,
    pub(crate) methods: Vec<Method>,
    /// Of nobody, of somebody, and what is none.
    pub(crate) tokens: Vec<Option<String>>,
}

/// What was done.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rounds: usize,
    /// Calls over libraries, connections by hand, and HTTP/1.1 connections.
    done: [u64; 3],
    served: Served,
    resident: Vec<u64>,
    last: Gauges,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: Option<&u64>| bytes.map_or(0, |bytes| bytes >> 20);
        let [calls, connections, http] = self.done;
        write!(f, "{} rounds, {calls} calls, {connections} raw and {http} HTTP/1.1 connections; ", self.rounds)?;
        let [put, get, event] = self.served.tails();
        write!(
            f,
            "beside them {} puts: p99 and longest of put {put:?}, get {get:?}, event {event:?}; ",
            self.served.count()
        )?;
        let (first, max) = (mib(self.resident.first()), mib(self.resident.iter().max()));
        write!(f, "RSS between rounds {first} MiB at first, {} at last, at most {max}; ", mib(self.resident.last()))?;
        write!(f, "{} sockets, {} files, {} threads at last", self.last.sockets, self.last.files, self.last.threads)
    }
}

/// Runs the plan.
///
/// # Errors
/// What does not hold.
pub(crate) async fn run(server: &Server, plan: &Plan) -> anyhow::Result<Report> {
    let client = RawClient::new(server.url())?;
    let (world, witness_client, root) = prepare(server, plan, client).await?;
    let world = Arc::new(world);
    let witness = Witness::start(witness_client).await?;
    let mut report = Report::default();
    let round = (plan.duration / 4).clamp(ROUND_MIN, ROUND_MAX);
    // The first is short: afterwards every thread and file is there that a server has.
    one_round(&world, plan.seed, ROUND_MIN, &witness, &mut report).await?;
    clean(&root, plan.with_auth).await?;
    let base = settled(server, None).await?;
    let begun = Instant::now();
    let mut nth = 0;
    while begun.elapsed() < plan.duration || nth == 0 {
        nth += 1;
        one_round(&world, plan.seed.wrapping_add(nth << 32), round, &witness, &mut report).await?;
        if witness.has_ended() {
            break;
        }
        clean(&root, plan.with_auth).await.context("cleaning up")?;
        report.last = settled(server, Some(&base)).await?;
        report.resident.push(report.last.resident_bytes);
        report.rounds += 1;
        check_memory(&report.resident)?;
    }
    report.served = witness.finish().await.context("the client that means well has given up")?;
    anyhow::ensure!(!server.log().contains("panicked at"), "the server has panicked");
    Ok(report)
}

/// The least of the last quarter needs no more than the most of the second one.
fn check_memory(resident: &[u64]) -> anyhow::Result<()> {
    let last = *resident.last().context("a round")?;
    anyhow::ensure!(last <= RESIDENT_BYTES_MAX, "RSS of {last} bytes between rounds");
    let quarter = resident.len() / 4;
    if resident.len() < ROUNDS_JUDGED {
        return Ok(());
    }
    let early = resident[quarter..2 * quarter].iter().max().copied().unwrap_or_default();
    let late = resident[resident.len() - quarter..].iter().min().copied().unwrap_or_default();
    let max = early + early / 4 + GROWTH_BYTES_MAX;
    anyhow::ensure!(late <= max, "memory grows: RSS between rounds is {resident:?}");
    Ok(())
}

async fn one_round(
    world: &Arc<World>,
    seed: u64,
    duration: Duration,
    witness: &Witness,
    report: &mut Report,
) -> anyhow::Result<()> {
    let until = Instant::now() + duration;
    let workers: Vec<_> = (0..WORKERS)
        .map(|worker| tokio::spawn(work(Arc::clone(world), seed.wrapping_mul(31).wrapping_add(worker), until)))
        .collect();
    while Instant::now() < until && !witness.has_ended() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for worker in workers {
        let done = worker.await??;
        report.done.iter_mut().zip(done).for_each(|(sum, done)| *sum += done);
    }
    Ok(())
}

/// One after the other until then.
async fn work(world: Arc<World>, seed: u64, until: Instant) -> anyhow::Result<[u64; 3]> {
    let mut random = Random::new(seed);
    let mut done = [0; 3];
    while Instant::now() < until {
        match random.below(10) {
            0..5 => {
                let channel = calls::connect(&world.url)?;
                for _ in 0..=random.below(CALLS_MAX) {
                    if Instant::now() >= until {
                        break;
                    }
                    calls::any(&world, &mut random, &channel).await?;
                    done[0] += 1;
                }
            }
            5..8 => {
                connections::any(&world, &mut random).await?;
                done[1] += 1;
            }
            _ => {
                http::any(&world, &mut random).await?;
                done[2] += 1;
            }
        }
    }
    Ok(done)
}

async fn ask<A: Message + Default>(client: &RawClient, path: &str, request: impl Message) -> anyhow::Result<A> {
    let answer = client.unary(path, request.encode_to_vec().into()).await;
    Ok(A::decode(answer.map_err(|failure| anyhow::anyhow!("{path}: {failure:?}"))?)?)
}

/// The world, the witness, and whoever cleans up.
async fn prepare(server: &Server, plan: &Plan, client: RawClient) -> anyhow::Result<(World, RawClient, RawClient)> {
    let status: pb::StatusResponse = ask(&client, "/etcdserverpb.Maintenance/Status", pb::StatusRequest {}).await?;
    let mut world = World {
        url: server.url().to_owned(),
        address: server.url().trim_start_matches("http://").parse()?,
        with_auth: plan.with_auth,
        member: status.header.context("a header")?.member_id,
        methods: messages::methods(),
        tokens: vec![None, None, Some("garbage".to_owned())],
    };
    if !plan.with_auth {
        return Ok((world, client.clone(), client));
    }
    let rights = [("root", None), ("witness", Some(("witness/", "witness0"))), ("limited", Some(("a", "g")))];
    for (user, ranges) in rights {
        let add = pb::AuthUserAddRequest { name: user.into(), password: user.into(), ..Default::default() };
        ask::<pb::AuthUserAddResponse>(&client, "/etcdserverpb.Auth/UserAdd", add).await?;
        let role = pb::AuthRoleAddRequest { name: user.into() };
        ask::<pb::AuthRoleAddResponse>(&client, "/etcdserverpb.Auth/RoleAdd", role).await?;
        if let Some((key, range_end)) = ranges {
            let perm_type = authpb::permission::Type::Readwrite as i32;
            let perm = Some(authpb::Permission { perm_type, key: key.into(), range_end: range_end.into() });
            let grant = pb::AuthRoleGrantPermissionRequest { name: user.into(), perm };
            ask::<pb::AuthRoleGrantPermissionResponse>(&client, "/etcdserverpb.Auth/RoleGrantPermission", grant)
                .await?;
        }
        let grant = pb::AuthUserGrantRoleRequest { user: user.into(), role: user.into() };
        ask::<pb::AuthUserGrantRoleResponse>(&client, "/etcdserverpb.Auth/UserGrantRole", grant).await?;
    }
    ask::<pb::AuthEnableResponse>(&client, "/etcdserverpb.Auth/AuthEnable", pb::AuthEnableRequest {}).await?;
    let mut clients = Vec::new();
    for user in KEPT {
        let login = pb::AuthenticateRequest { name: user.into(), password: user.into() };
        let answer: pb::AuthenticateResponse = ask(&client, "/etcdserverpb.Auth/Authenticate", login).await?;
        clients.push(client.with_token(&answer.token)?);
        if user != "witness" {
            world.tokens.push(Some(answer.token));
        }
    }
    Ok((world, clients[1].clone(), clients[0].clone()))
}

/// Takes away what requests have left in the store, so that what is left then is none of theirs.
async fn clean(root: &RawClient, with_auth: bool) -> anyhow::Result<()> {
    let mut revision = 0;
    for (key, range_end) in [(&b"\0"[..], &b"witness/"[..]), (b"witness0", b"\0")] {
        let delete = pb::DeleteRangeRequest { key: key.into(), range_end: range_end.into(), prev_kv: false };
        let answer: pb::DeleteRangeResponse = ask(root, "/etcdserverpb.KV/DeleteRange", delete).await?;
        revision = answer.header.context("a header")?.revision;
    }
    let leases: pb::LeaseLeasesResponse =
        ask(root, "/etcdserverpb.Lease/LeaseLeases", pb::LeaseLeasesRequest {}).await?;
    for lease in leases.leases {
        // It may be gone by itself.
        let revoke = pb::LeaseRevokeRequest { id: lease.id }.encode_to_vec();
        let _gone = root.unary("/etcdserverpb.Lease/LeaseRevoke", revoke.into()).await;
    }
    let list = pb::MemberListRequest::default();
    let members: pb::MemberListResponse = ask(root, "/etcdserverpb.Cluster/MemberList", list).await?;
    for member in members.members.into_iter().filter(|member| member.is_learner) {
        let remove = pb::MemberRemoveRequest { id: member.id };
        ask::<pb::MemberRemoveResponse>(root, "/etcdserverpb.Cluster/MemberRemove", remove).await?;
    }
    if with_auth {
        clean_auth(root).await?;
    }
    // Somebody else may have compacted further.
    let compact = pb::CompactionRequest { revision, physical: true }.encode_to_vec();
    let _compacted = root.unary("/etcdserverpb.KV/Compact", compact.into()).await;
    Ok(())
}

async fn clean_auth(root: &RawClient) -> anyhow::Result<()> {
    let users: pb::AuthUserListResponse = ask(root, "/etcdserverpb.Auth/UserList", pb::AuthUserListRequest {}).await?;
    for name in users.users.into_iter().filter(|name| !KEPT.contains(&name.as_str())) {
        let delete = pb::AuthUserDeleteRequest { name };
        ask::<pb::AuthUserDeleteResponse>(root, "/etcdserverpb.Auth/UserDelete", delete).await?;
    }
    let roles: pb::AuthRoleListResponse = ask(root, "/etcdserverpb.Auth/RoleList", pb::AuthRoleListRequest {}).await?;
    for role in roles.roles.into_iter().filter(|role| !KEPT.contains(&role.as_str())) {
        let delete = pb::AuthRoleDeleteRequest { role };
        ask::<pb::AuthRoleDeleteResponse>(root, "/etcdserverpb.Auth/RoleDelete", delete).await?;
    }
    Ok(())
}
