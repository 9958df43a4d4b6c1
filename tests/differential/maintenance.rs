//! Random calls of the Maintenance service on both servers, between writes that alarms refuse, every answer compared.
//!
//! Of sizes, raft's numbers and hashes, only what must hold on each side by itself is looked at.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use futures_util::StreamExt;
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::alarm_request::AlarmAction;
use tailwater_api::etcdserverpb::downgrade_request::DowngradeAction;
use tailwater_tests::{Failure, RawClient, tool};

use crate::answer::Names;
use crate::run::{ANSWER, Difference, Run};

/// Stands for the server's own id, in requests too.
const OWN: u64 = 1;
const MEMBERS: [u64; 4] = [0, OWN, 5, u64::MAX];
const VERSIONS: [&str; 10] = ["3.5", "3.5.0", "3.5.9", "3.4.0", "3.6", "3.7.0", "2.9", "x", "", "3.5.0.1"];
const KEYS: [&str; 3] = ["a", "b", "c"];
/// A snapshot is looked into once in so many steps of a run.
const SNAPSHOT_STEPS: usize = 100;
/// How long a change of versions that was decided on takes until it is in force.
const DECIDED: Duration = Duration::from_millis(100);

#[derive(Clone, Debug)]
enum Step {
    Put(&'static str, String),
    Delete(&'static str),
    Range(&'static str),
    Compact(i64),
    Status,
    Alarm {
        action: AlarmAction,
        member: u64,
        alarm: i32,
    },
    Hash,
    HashKv(i64),
    Defragment,
    MoveLeader(u64),
    Validate(&'static str),
    /// Announced and called off before anything comes of it.
    Downgrade(&'static str),
    Snapshot,
}

struct Side {
    client: RawClient,
    names: Names,
    /// Of the store up to a revision, compacted at another.
    hashes: HashMap<(i64, i64), u32>,
}

impl Side {
    async fn new(url: &str) -> anyhow::Result<Self> {
        let client = RawClient::new(url)?;
        let status = client.unary("/etcdserverpb.Maintenance/Status", Bytes::new()).await;
        let status = pb::StatusResponse::decode(status.map_err(|failure| anyhow::anyhow!("{failure:?}"))?)?;
        let header = status.header.context("a status without header")?;
        let names = Names { cluster: header.cluster_id, member: header.member_id, leases: Vec::new() };
        Ok(Self { client, names, hashes: HashMap::new() })
    }

    async fn call<M: Message + Default>(&self, path: &str, request: &impl Message) -> Result<M, Failure> {
        let body = self.client.unary(path, request.encode_to_vec().into()).await?;
        M::decode(body).map_err(|error| Failure { code: -1, message: error.to_string() })
    }

    /// The answer to a step, as far as it must be the same on both sides.
    async fn perform(&mut self, step: &Step) -> anyhow::Result<String> {
        let answer = match step {
            Step::Put(key, value) => {
                let request = pb::PutRequest { key: (*key).into(), value: value.clone().into(), ..Default::default() };
                self.told("/etcdserverpb.KV/Put", &request, |m: &mut pb::PutResponse| &mut m.header).await
            }
            Step::Delete(key) => {
                let request = pb::DeleteRangeRequest { key: (*key).into(), prev_kv: true, ..Default::default() };
                self.told("/etcdserverpb.KV/DeleteRange", &request, |m: &mut pb::DeleteRangeResponse| &mut m.header)
                    .await
            }
            Step::Range(key) => {
                let request = pb::RangeRequest { key: (*key).into(), ..Default::default() };
                self.told("/etcdserverpb.KV/Range", &request, |m: &mut pb::RangeResponse| &mut m.header).await
            }
            Step::Compact(revision) => {
                let request = pb::CompactionRequest { revision: *revision, physical: true };
                self.told("/etcdserverpb.KV/Compact", &request, |m: &mut pb::CompactionResponse| &mut m.header).await
            }
            Step::Status => self.status().await,
            Step::Alarm { action, member, alarm } => self.alarm(*action, *member, *alarm).await,
            Step::Hash => {
                let answer: Result<pb::HashResponse, _> =
                    self.call("/etcdserverpb.Maintenance/Hash", &pb::HashRequest {}).await;
                answer.map(|mut answer| {
                    self.names.header(&mut answer.header);
                    format!("{:?}", answer.header)
                })
            }
            Step::HashKv(revision) => self.hash_kv(*revision).await?,
            Step::Defragment => {
                let path = "/etcdserverpb.Maintenance/Defragment";
                self.told(path, &pb::DefragmentRequest {}, |m: &mut pb::DefragmentResponse| &mut m.header).await
            }
            Step::MoveLeader(target) => {
                let request = pb::MoveLeaderRequest { target_id: self.here(*target) };
                let path = "/etcdserverpb.Maintenance/MoveLeader";
                self.told(path, &request, |m: &mut pb::MoveLeaderResponse| &mut m.header).await
            }
            Step::Validate(version) => self.downgrade(DowngradeAction::Validate, version).await,
            Step::Downgrade(version) => return self.downgrade_and_back(version).await,
            Step::Snapshot => return self.snapshot().await,
        };
        // Some failures name the member.
        Ok(format!("{answer:?}").replace(&self.names.member.to_string(), "OWN"))
    }

    async fn told<M: Message + Default + std::fmt::Debug>(
        &self,
        path: &str,
        request: &impl Message,
        header: impl Fn(&mut M) -> &mut Option<pb::ResponseHeader>,
    ) -> Result<String, Failure> {
        let mut message: M = self.call(path, request).await?;
        self.names.header(header(&mut message));
        Ok(format!("{message:?}"))
    }

    /// The member that is meant.
    fn here(&self, member: u64) -> u64 {
        if member == OWN { self.names.member } else { member }
    }

    async fn status(&self) -> Result<String, Failure> {
        let mut status: pb::StatusResponse =
            self.call("/etcdserverpb.Maintenance/Status", &pb::StatusRequest {}).await?;
        let holds = status.raft_applied_index <= status.raft_index && status.db_size_in_use <= status.db_size;
        self.names.status(&mut status);
        // In the order in which a map is gone through.
        let own = self.names.member.to_string();
        status.errors.iter_mut().for_each(|error| *error = error.replace(&own, "OWN"));
        status.errors.sort();
        Ok(format!("{status:?}, {holds}"))
    }

    async fn alarm(&self, action: AlarmAction, member: u64, alarm: i32) -> Result<String, Failure> {
        let request = pb::AlarmRequest { action: action as i32, member_id: self.here(member), alarm };
        let mut answer: pb::AlarmResponse = self.call("/etcdserverpb.Maintenance/Alarm", &request).await?;
        self.names.header(&mut answer.header);
        answer.alarms.sort_by_key(|alarm| (alarm.alarm, alarm.member_id == self.names.member, alarm.member_id));
        Ok(format!("{answer:?}"))
    }

    /// Hashes of the same history are the same.
    async fn hash_kv(&mut self, revision: i64) -> anyhow::Result<Result<String, Failure>> {
        let request = pb::HashKvRequest { revision };
        let answer: Result<pb::HashKvResponse, _> = self.call("/etcdserverpb.Maintenance/HashKV", &request).await;
        let mut answer = match answer {
            Ok(answer) => answer,
            Err(failure) => return Ok(Err(failure)),
        };
        self.names.header(&mut answer.header);
        let at = (answer.hash_revision, answer.compact_revision);
        let before = *self.hashes.entry(at).or_insert(answer.hash);
        if before != answer.hash {
            return Err(Difference(format!("the hash at {at:?} was {before}, and is {}", answer.hash)).into());
        }
        Ok(Ok(format!("{:?} {} {}", answer.header, answer.hash_revision, answer.compact_revision)))
    }

    async fn downgrade(&self, action: DowngradeAction, version: &str) -> Result<String, Failure> {
        let request = pb::DowngradeRequest { action: action as i32, version: version.to_owned() };
        self.told("/etcdserverpb.Maintenance/Downgrade", &request, |m: &mut pb::DowngradeResponse| &mut m.header).await
    }

    /// etcd begins to lower versions within seconds of the announcement, and tailwater does not: then it is tried again,
    /// when nothing is left of it.
    async fn downgrade_and_back(&self, version: &str) -> anyhow::Result<String> {
        loop {
            let before = self.versions().await?;
            let mut told = Vec::new();
            for (action, version) in [
                (DowngradeAction::Enable, version),
                (DowngradeAction::Validate, "3.5"),
                (DowngradeAction::Enable, "3.5.0"),
            ] {
                told.push(self.downgrade(action, version).await);
            }
            told.push(self.status().await);
            for _ in 0..2 {
                told.push(self.downgrade(DowngradeAction::Cancel, "").await);
            }
            // What etcd decided before it was called off can still arrive.
            tokio::time::sleep(DECIDED).await;
            if self.versions().await? == before {
                return Ok(format!("{told:?}").replace(&self.names.member.to_string(), "OWN"));
            }
            let begin = Instant::now();
            while self.versions().await? != before {
                ensure!(begin.elapsed() < ANSWER * 6, "the versions stay lowered");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }

    /// The versions of the cluster and of its storage; nothing of the cluster's while a downgrade is under way.
    async fn versions(&self) -> anyhow::Result<(Option<String>, String)> {
        let failed = |failure| anyhow::anyhow!("{failure:?}");
        let validate = pb::DowngradeRequest { action: DowngradeAction::Validate as i32, version: "3.5".to_owned() };
        let cluster: Result<pb::DowngradeResponse, _> =
            self.call("/etcdserverpb.Maintenance/Downgrade", &validate).await;
        let status: Result<pb::StatusResponse, _> =
            self.call("/etcdserverpb.Maintenance/Status", &pb::StatusRequest {}).await;
        Ok((cluster.ok().map(|answer| answer.version), status.map_err(failed)?.storage_version))
    }

    /// The rules of a snapshot's pieces, and what is in it.
    async fn snapshot(&self) -> anyhow::Result<String> {
        let request = futures_util::stream::iter([Bytes::new()]);
        let mut pieces = self.client.streaming("/etcdserverpb.Maintenance/Snapshot", request).await?.into_inner();
        let (mut file, mut versions, mut remaining) = (Vec::new(), Vec::new(), None);
        let mut rules = Vec::new();
        while let Some(piece) = pieces.next().await {
            let piece = pb::SnapshotResponse::decode(piece?)?;
            if remaining.is_some_and(|remaining: u64| {
                remaining > 0 && remaining != piece.remaining_bytes + piece.blob.len() as u64
            }) {
                rules.push("the remaining bytes are miscounted");
            }
            remaining = Some(piece.remaining_bytes);
            versions.push(piece.version);
            file.extend_from_slice(&piece.blob);
        }
        versions.dedup();
        let revision = revision_of(&file)?;
        Ok(format!("{versions:?} {remaining:?} {rules:?} {} {revision}", file.len() % 512))
    }
}

/// The revision of a snapshot, as etcd's tool reads it; nothing where the tool is missing.
fn revision_of(snapshot: &[u8]) -> anyhow::Result<String> {
    let Ok(etcdutl) = tool("etcdutl") else { return Ok(String::new()) };
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("file");
    std::fs::write(&file, snapshot)?;
    let output = std::process::Command::new(etcdutl).args(["snapshot", "status", "-w", "json"]).arg(&file).output()?;
    let told: serde_json::Value =
        serde_json::from_slice(&output.stdout).with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    Ok(told["revision"].to_string())
}

struct Generator {
    random: StdRng,
    values: usize,
    /// The newest revision, about.
    revision: i64,
    compacted: Vec<i64>,
}

impl Generator {
    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.random.random_range(0..of.len())]
    }

    fn step(&mut self, at: usize) -> Step {
        if at % SNAPSHOT_STEPS == SNAPSHOT_STEPS / 2 {
            return Step::Snapshot;
        }
        let key = self.one(&KEYS);
        match self.random.random_range(0..40) {
            0..8 => {
                self.values += 1;
                Step::Put(key, format!("v{}", self.values))
            }
            8..11 => Step::Delete(key),
            11 | 12 => Step::Range(key),
            13 => Step::Compact(self.near()),
            14..18 => Step::Status,
            18..26 => {
                // Raised less often than looked at and lowered, so that writes go on.
                let actions =
                    [AlarmAction::Get, AlarmAction::Activate, AlarmAction::Deactivate, AlarmAction::Deactivate];
                let action = self.one(&actions);
                let alarm = self.random.random_range(0..3);
                Step::Alarm { action, member: self.one(&MEMBERS), alarm }
            }
            26 | 27 => Step::Hash,
            28..33 => {
                // At a revision that was compacted, etcd knows the hash from before, and says of which compaction.
                let at = self.near().max(0);
                Step::HashKv(if self.compacted.contains(&at) { 0 } else { at })
            }
            33 => Step::Defragment,
            34 | 35 => Step::MoveLeader(self.one(&MEMBERS)),
            36..39 => Step::Validate(self.one(&VERSIONS)),
            _ => Step::Downgrade(self.one(&VERSIONS)),
        }
    }

    fn near(&mut self) -> i64 {
        (self.revision + self.random.random_range(-12..3)).max(-1)
    }
}

/// Runs the steps of one seed on both servers.
///
/// # Errors
/// A [`Difference`], or what kept the run from going on.
pub(crate) async fn run(reference: &str, subject: &str, seed: u64, steps: usize) -> anyhow::Result<()> {
    let mut sides = [Side::new(reference).await?, Side::new(subject).await?];
    // An alarm that a run left behind refuses the writes of the next.
    for side in &sides {
        without_alarms(side).await?;
    }
    drop(Run::start(reference, subject).await?);
    let now: Result<pb::RangeResponse, _> =
        sides[0].call("/etcdserverpb.KV/Range", &pb::RangeRequest { key: "a".into(), ..Default::default() }).await;
    let revision = now.ok().and_then(|now| now.header).context("no revision")?.revision;
    let mut generator =
        Generator { random: StdRng::seed_from_u64(seed), values: 0, revision, compacted: vec![revision] };
    for at in 0..steps {
        let step = generator.step(at);
        let mut told = Vec::new();
        for side in &mut sides {
            let answer = side.perform(&step).await;
            told.push(answer.with_context(|| format!("step {at} of maintenance seed {seed}: {step:?}"))?);
        }
        if told[0] != told[1] {
            let text = format!(
                "step {at} of maintenance seed {seed}: {step:?}\n  reference: {}\n  subject:   {}",
                told[0], told[1]
            );
            return Err(Difference(text).into());
        }
        if let Step::Compact(revision) = step {
            generator.compacted.push(revision);
        }
        generator.revision += i64::from(matches!(step, Step::Put(..)) && told[0].starts_with("Ok"));
    }
    for side in &sides {
        without_alarms(side).await?;
    }
    Ok(())
}

async fn without_alarms(side: &Side) -> anyhow::Result<()> {
    let failed = |failure| anyhow::anyhow!("{failure:?}");
    let path = "/etcdserverpb.Maintenance/Alarm";
    let raised: pb::AlarmResponse = side.call(path, &pb::AlarmRequest::default()).await.map_err(failed)?;
    for pb::AlarmMember { member_id, alarm } in raised.alarms {
        let lower = pb::AlarmRequest { action: AlarmAction::Deactivate as i32, member_id, alarm };
        side.call::<pb::AlarmResponse>(path, &lower).await.map_err(failed)?;
    }
    Ok(())
}
