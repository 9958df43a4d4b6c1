//! Random locks and elections on both servers, every answer compared, and the store after each step.
//!
//! Who waits is judged by the store: a call goes on waiting as long as keys before its own are there. So after each step
//! everything comes to rest before the next one, and answers depend on no clock.

use std::time::Instant;

use anyhow::Context;
use bytes::Bytes;
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tailwater_api::etcdserverpb as pb;
use tailwater_api::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest, ProclaimResponse,
    ResignRequest, ResignResponse,
};
use tailwater_api::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use tailwater_tests::{Failure, RawClient};

use crate::run::{ANSWER, Difference, Run};
use crate::waiting::{Observer, Waiting, rest};

/// One begins with another's prefix, and one is nothing.
const NAMES: [&str; 4] = ["l", "m", "l/", ""];
/// The last one is never granted.
const LEASES: [i64; 5] = [0xa, 0xb, 0xabc, -5, 99];
/// Calls that wait, and observers, at a time.
const WAITING_MAX: usize = 5;
const OBSERVERS_MAX: usize = 3;
/// None runs out within a run.
const TTL: i64 = 5000;

#[derive(Clone, Debug)]
enum Step {
    Grant(i64),
    Revoke(i64),
    Lock {
        name: &'static str,
        lease: i64,
    },
    Unlock(Vec<u8>),
    Campaign {
        name: &'static str,
        lease: i64,
        value: String,
    },
    Proclaim(Option<LeaderKey>, String),
    Resign(Option<LeaderKey>),
    Leader(&'static str),
    Observe(&'static str),
    /// Ends an observer.
    LookAway(usize),
    /// Ends a call that waits.
    Abandon(usize),
    /// A key that belongs to nobody's lease, among those that wait.
    Put(Vec<u8>),
}

/// One of the two servers.
pub(crate) struct Side {
    pub(crate) client: RawClient,
    pub(crate) waiting: Vec<Waiting>,
    pub(crate) observers: Vec<Observer>,
    /// Leases that the server granted by itself, in order.
    assigned: Vec<i64>,
}

impl Side {
    /// Every key, the first made first.
    pub(crate) async fn keys(&self) -> anyhow::Result<pb::RangeResponse> {
        let every = Bytes::from_static(b"\0");
        let request = pb::RangeRequest {
            key: every.clone(),
            range_end: every,
            sort_target: pb::range_request::SortTarget::Create as i32,
            sort_order: pb::range_request::SortOrder::Ascend as i32,
            ..Default::default()
        };
        let answer = self.call("/etcdserverpb.KV/Range", &request).await;
        Ok(pb::RangeResponse::decode(answer.map_err(|failure| anyhow::anyhow!("{failure:?}"))?)?)
    }

    async fn call(&self, path: &str, request: &impl Message) -> Result<Bytes, Failure> {
        self.client.unary(path, request.encode_to_vec().into()).await
    }

    async fn told<M: Message + Default + std::fmt::Debug>(
        &self,
        path: &str,
        request: &impl Message,
        header: impl Fn(&mut M) -> &mut Option<pb::ResponseHeader>,
    ) -> String {
        text(self.call(path, request).await, header)
    }

    /// Does what ends at once, and says what came of it; what may wait is begun.
    async fn perform(&mut self, step: &Step) -> anyhow::Result<String> {
        Ok(match step {
            Step::Grant(id) => {
                let request = pb::LeaseGrantRequest { id: *id, ttl: TTL };
                self.told("/etcdserverpb.Lease/LeaseGrant", &request, |m: &mut pb::LeaseGrantResponse| &mut m.header)
                    .await
            }
            Step::Revoke(id) => {
                let request = pb::LeaseRevokeRequest { id: *id };
                self.told("/etcdserverpb.Lease/LeaseRevoke", &request, |m: &mut pb::LeaseRevokeResponse| &mut m.header)
                    .await
            }
            Step::Lock { name, lease } => {
                let request = LockRequest { name: (*name).into(), lease: *lease };
                let tell = |answer| text(answer, |m: &mut LockResponse| &mut m.header);
                self.waiting.push(Waiting::begin(
                    &self.client,
                    "/v3lockpb.Lock/Lock",
                    &request,
                    (*name, *lease, None),
                    tell,
                ));
                String::new()
            }
            Step::Unlock(key) => {
                let request = UnlockRequest { key: key.clone() };
                self.told("/v3lockpb.Lock/Unlock", &request, |m: &mut UnlockResponse| &mut m.header).await
            }
            Step::Campaign { name, lease, value } => {
                let request = CampaignRequest { name: (*name).into(), lease: *lease, value: value.clone().into() };
                let tell = |answer| text(answer, |m: &mut CampaignResponse| &mut m.header);
                let of = (*name, *lease, Some(value.as_str()));
                self.waiting.push(Waiting::begin(&self.client, "/v3electionpb.Election/Campaign", &request, of, tell));
                String::new()
            }
            Step::Proclaim(leader, value) => {
                let request = ProclaimRequest { leader: leader.clone(), value: value.clone().into() };
                let path = "/v3electionpb.Election/Proclaim";
                self.told(path, &request, |m: &mut ProclaimResponse| &mut m.header).await
            }
            Step::Resign(leader) => {
                let request = ResignRequest { leader: leader.clone() };
                self.told("/v3electionpb.Election/Resign", &request, |m: &mut ResignResponse| &mut m.header).await
            }
            Step::Leader(name) => {
                let request = LeaderRequest { name: (*name).into() };
                self.told("/v3electionpb.Election/Leader", &request, |m: &mut LeaderResponse| &mut m.header).await
            }
            Step::Observe(name) => {
                self.observers.push(Observer::open(&self.client, name));
                String::new()
            }
            Step::LookAway(at) => {
                self.observers.remove(*at);
                String::new()
            }
            Step::Abandon(at) => {
                let abandoned = self.waiting.remove(*at);
                abandoned.end(self).await?;
                String::new()
            }
            Step::Put(key) => {
                let request = pb::PutRequest { key: key.clone().into(), ..Default::default() };
                self.told("/etcdserverpb.KV/Put", &request, |m: &mut pb::PutResponse| &mut m.header).await
            }
        })
    }

    /// Takes note of leases that the server granted by itself, and gives `text` their common names.
    fn common(&mut self, keys: &[tailwater_api::mvccpb::KeyValue], text: &str) -> String {
        for lease in keys.iter().map(|kv| kv.lease) {
            if lease != 0 && !LEASES.contains(&lease) && !self.assigned.contains(&lease) {
                self.assigned.push(lease);
            }
        }
        self.assigned.iter().enumerate().fold(text.to_owned(), |text, (at, lease)| {
            let digits = format!("{lease:x}");
            // Some keys are text, some are lists of bytes.
            let list = format!("{:?}", digits.as_bytes());
            let list = list.trim_matches(['[', ']']);
            let name = format!("#{at}");
            text.replace(&digits, &name).replace(list, &name).replace(&lease.to_string(), &name)
        })
    }
}

/// An answer as text, of its header only the revision.
pub(crate) fn text<M: Message + Default + std::fmt::Debug>(
    answer: Result<Bytes, Failure>,
    header: impl Fn(&mut M) -> &mut Option<pb::ResponseHeader>,
) -> String {
    match answer.map(M::decode) {
        Ok(Ok(mut message)) => {
            if let Some(header) = header(&mut message) {
                *header = pb::ResponseHeader { revision: header.revision, ..Default::default() };
            }
            format!("{message:?}")
        }
        Ok(Err(error)) => format!("no answer of the method's type: {error}"),
        Err(failure) => format!("{failure:?}"),
    }
}

struct Generator {
    random: StdRng,
    /// Whoever was elected, still leading or not.
    leaders: Vec<LeaderKey>,
    values: usize,
}

impl Generator {
    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.random.random_range(0..of.len())]
    }

    /// A lease; mostly one of a few that are granted now and then.
    fn lease(&mut self) -> i64 {
        if self.random.random_bool(0.03) { 99 } else { self.one(&LEASES[..4]) }
    }

    /// No value comes twice, so that the store tells which call wrote it.
    fn value(&mut self) -> String {
        self.values += 1;
        format!("v{}", self.values)
    }

    fn key(&mut self) -> Vec<u8> {
        own_key(self.one(&NAMES), self.lease())
    }

    fn leader(&mut self) -> Option<LeaderKey> {
        if self.leaders.is_empty() || self.random.random_bool(0.05) {
            return None;
        }
        let mut leader = self.leaders[self.random.random_range(0..self.leaders.len())].clone();
        match self.random.random_range(0..12) {
            0 => leader.rev += 1,
            1 => leader.name = "elsewhere".into(),
            2 => leader.key = self.key(),
            3 => leader.lease = self.lease(),
            _ => {}
        }
        Some(leader)
    }

    fn step(&mut self, waiting: usize, observers: usize) -> Step {
        let (name, lease) = (self.one(&NAMES), self.lease());
        match self.random.random_range(0..22) {
            0 | 1 => Step::Grant(self.one(&LEASES[..4])),
            2 => Step::Revoke(lease),
            3..6 if waiting < WAITING_MAX => {
                Step::Lock { name, lease: if self.random.random_bool(0.1) { 0 } else { lease } }
            }
            6..9 if waiting < WAITING_MAX => Step::Campaign {
                name,
                lease: if self.random.random_bool(0.1) { 0 } else { lease },
                value: self.value(),
            },
            9..12 => Step::Unlock(self.key()),
            12 | 13 => {
                let leader = self.leader();
                Step::Proclaim(leader, self.value())
            }
            14 | 15 => Step::Resign(self.leader()),
            16 => Step::Observe(name),
            17 if observers > 0 => Step::LookAway(self.random.random_range(0..observers)),
            18 if waiting > 0 => Step::Abandon(self.random.random_range(0..waiting)),
            19 if self.random.random_bool(0.3) => Step::Put([name.as_bytes(), b"/zz"].concat()),
            20 => Step::Unlock([name.as_bytes(), b"/zz"].concat()),
            _ => Step::Leader(name),
        }
    }

    /// Whether what comes of a step is certain, given the keys that are there.
    fn is_certain(step: &Step, side: &Side, keys: &pb::RangeResponse) -> bool {
        let (name, lease) = match step {
            Step::Lock { name, lease } | Step::Campaign { name, lease, .. } => (name, *lease),
            Step::Observe(_) => return side.observers.len() < OBSERVERS_MAX,
            Step::Abandon(at) => return side.waiting[*at].has_key(keys),
            // The server's own deletion of an abandoned key must find the key that it is meant for.
            _ => return true,
        };
        let prefix = format!("{name}/").into_bytes();
        let first = keys.kvs.iter().find(|kv| kv.key.starts_with(&prefix));
        // What a lease of the server's choice waits with, has no name that is known.
        let key = own_key(name, lease);
        let waits = side.waiting.iter().any(|waiting| waiting.key == key);
        let is_there = keys.kvs.iter().any(|kv| kv.key == key);
        match (lease, first) {
            (_, None) => !waits,
            (0, Some(_)) => false,
            // A key of one's own that is there already, tells nothing of when a call has come to wait.
            (_, Some(first)) => !waits && (!is_there || first.key == key),
        }
    }
}

/// The key with which a caller waits.
pub(crate) fn own_key(name: &str, lease: i64) -> Vec<u8> {
    let sign = if lease < 0 { "-" } else { "" };
    format!("{name}/{sign}{:x}", lease.unsigned_abs()).into_bytes()
}

/// Runs the steps of one seed on both servers.
///
/// # Errors
/// A [`Difference`], or what kept the run from going on.
pub(crate) async fn run(reference: &str, subject: &str, seed: u64, steps: usize) -> anyhow::Result<()> {
    // Both begin empty, at one revision.
    drop(Run::start(reference, subject).await?);
    let side = |url: &str| {
        let client = RawClient::new(url)?;
        anyhow::Ok(Side { client, waiting: Vec::new(), observers: Vec::new(), assigned: Vec::new() })
    };
    let mut sides = [side(reference)?, side(subject)?];
    let mut generator = Generator { random: StdRng::seed_from_u64(seed), leaders: Vec::new(), values: 0 };
    let mut keys = sides[0].keys().await?;
    for at in 0..steps {
        let step = generator.step(sides[0].waiting.len(), sides[0].observers.len());
        if !Generator::is_certain(&step, &sides[0], &keys) {
            continue;
        }
        let (mut told, mut first) = (Vec::new(), None);
        for side in &mut sides {
            let context = || format!("step {at} of recipes seed {seed}: {step:?}");
            let answer = side.perform(&step).await.with_context(context)?;
            let begin = Instant::now();
            let (ended, now) = rest(side, ANSWER).await.with_context(context)?;
            let text =
                format!("{answer} {ended:?}, then {:?} at {:?}", now.kvs, now.header.map(|header| header.revision));
            told.push(side.common(&now.kvs, &text));
            anyhow::ensure!(begin.elapsed() < ANSWER * 2, "{}: it took {:?}", context(), begin.elapsed());
            first.get_or_insert(now);
        }
        if told[0] != told[1] {
            let text = format!(
                "step {at} of recipes seed {seed}: {step:?}\n  reference: {}\n  subject:   {}",
                told[0], told[1]
            );
            return Err(Difference(text).into());
        }
        keys = first.context("no side")?;
        note_leader(&mut generator, &step, &keys);
    }
    Ok(())
}

/// Whoever leads by a campaign, so that proclamations find somebody.
fn note_leader(generator: &mut Generator, step: &Step, keys: &pb::RangeResponse) {
    let Step::Campaign { name, lease, .. } = step else { return };
    let key = own_key(name, *lease);
    if let Some(kv) = keys.kvs.iter().find(|kv| kv.key == key) {
        let leader = LeaderKey { name: (*name).into(), key, rev: kv.create_revision, lease: *lease };
        generator.leaders.retain(|known| known.key != leader.key);
        generator.leaders.push(leader);
    }
}
