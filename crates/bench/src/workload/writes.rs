//! Workloads that write.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use tailwater_api::etcdserverpb as pb;

use super::{Common, conclude, measured};
use crate::connection::Connection;
use crate::drive::Client;
use crate::load::{Kv, kv, micros, value};
use crate::messages::Messages;
use crate::report::Report;
use crate::validate::{Mark, Validator};

/// Puts.
#[derive(Args, Clone, Debug)]
pub(crate) struct Put {
    /// Bytes of a value.
    #[arg(long, default_value_t = 256)]
    pub(crate) val_size: usize,
    /// Different keys.
    #[arg(long, default_value_t = 100_000)]
    pub(crate) key_space: u64,
    /// What keys begin with.
    #[arg(long, default_value = "/bench/put/")]
    pub(crate) prefix: String,
    /// Keys in order instead of scattered.
    #[arg(long)]
    pub(crate) sequential: bool,
}

impl Put {
    /// The key of the request with that number.
    pub(crate) fn key(&self, number: u64) -> Bytes {
        // A prime that does not divide the number of keys visits each once before any twice.
        let place = if self.sequential { number } else { number.wrapping_mul(7_919) };
        format!("{}{:08}", self.prefix, place % self.key_space.max(1)).into()
    }

    pub(super) async fn run(self, common: &Common) -> anyhow::Result<Report> {
        let validator = common.validate.then(|| Arc::new(Validator::default()));
        let channels = common.channels().await?;
        let writer = Writer::new(&channels[0], self, validator.clone());
        let clients: Vec<_> = (0..common.clients).map(|at| writer.on(&channels[at % channels.len()])).collect();
        let mut report = Report::new("put", "puts", measured(common, "puts", clients).await?);
        if let Some(validator) = validator {
            conclude(&mut report, &validator).await;
        }
        Ok(report)
    }
}

/// Puts, one after the other.
#[derive(Clone)]
pub(crate) struct Writer {
    kv: Kv,
    put: Put,
    begin: Instant,
    validator: Option<Arc<Validator>>,
}

impl Writer {
    pub(crate) fn new(channel: &Connection, put: Put, validator: Option<Arc<Validator>>) -> Self {
        Self { kv: kv(channel), put, begin: Instant::now(), validator }
    }

    pub(crate) fn on(&self, channel: &Connection) -> Self {
        Self { kv: kv(channel), ..self.clone() }
    }
}

impl Client for Writer {
    async fn request(&mut self, number: u64) -> anyhow::Result<u64> {
        let key = self.put.key(number);
        // 0 stands for a delete.
        let mark = Mark { number: number + 1, sent: micros(self.begin) };
        let value = mark.value(self.put.val_size);
        let bytes = (key.len() + value.len()) as u64;
        let answer = self.kv.put(pb::PutRequest { key: key.clone(), value, ..Default::default() }).await;
        if let Some(validator) = &self.validator {
            match &answer {
                Ok(answer) => {
                    let revision = answer.get_ref().header.as_ref().map_or(0, |header| header.revision);
                    validator.acknowledged(&key, revision, mark.number);
                }
                Err(_) => validator.unknown(mark.number),
            }
        }
        answer?;
        Ok(bytes)
    }
}

/// Compare-and-put, each client on keys of its own.
#[derive(Args, Clone, Debug)]
pub(super) struct TxnPut {
    /// Bytes of a value.
    #[arg(long, default_value_t = 1024)]
    val_size: usize,
    /// What keys begin with.
    #[arg(long, default_value = "/bench/txn/")]
    prefix: String,
    /// Different keys of each client.
    #[arg(long, default_value_t = 10)]
    keys_per_client: u64,
}

impl TxnPut {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<Report> {
        let channels = common.channels().await?;
        let clients = (0..common.clients).map(|at| {
            let keys = (0..self.keys_per_client.max(1)).map(|key| format!("{}{at:06}/{key:04}", self.prefix));
            Updater::new(&channels[at % channels.len()], keys, self.val_size)
        });
        let clients = clients.collect();
        Ok(Report::new("txn-put", "transactions", measured(common, "transactions", clients).await?))
    }
}

/// Objects like Kubernetes' node leases, each renewed in turn.
#[derive(Args, Clone, Debug)]
pub(super) struct LeaseFlood {
    /// Nodes, each with one lease object. With a rate, each is renewed every (nodes ÷ rate) seconds.
    #[arg(long, default_value_t = 10_000)]
    nodes: u64,
    /// Bytes of an object.
    #[arg(long, default_value_t = 510)]
    val_size: usize,
}

impl LeaseFlood {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<Report> {
        let channels = common.channels().await?;
        let count = common.clients as u64;
        anyhow::ensure!(self.nodes >= count, "--nodes must be at least --clients");
        let clients = (0..common.clients).map(|at| {
            let nodes = (at as u64..self.nodes).step_by(common.clients);
            let keys = nodes.map(|node| format!("/registry/leases/kube-node-lease/node-{node:07}"));
            Updater::new(&channels[at % channels.len()], keys, self.val_size)
        });
        let clients = clients.collect();
        Ok(Report::new("lease-flood", "renewals", measured(common, "renewals", clients).await?))
    }
}

/// Updates keys that nobody else writes, each at the revision that it knows.
pub(super) struct Updater {
    kv: Kv,
    keys: Vec<(Bytes, i64)>,
    next: usize,
    value_bytes: usize,
}

impl Updater {
    pub(super) fn new(channel: &Connection, keys: impl Iterator<Item = String>, val_size: usize) -> Self {
        let keys = keys.map(|key| (key.into(), 0)).collect();
        Self { kv: kv(channel), keys, next: 0, value_bytes: val_size }
    }
}

impl Client for Updater {
    async fn request(&mut self, number: u64) -> anyhow::Result<u64> {
        let count = self.keys.len();
        let (key, revision) = &mut self.keys[self.next % count];
        self.next += 1;
        let bytes = (key.len() + self.value_bytes) as u64;
        let value = value(self.value_bytes, number);
        let answer = self.kv.txn(compare_and_put(key.clone(), *revision, value)).await?.into_inner();
        if answer.succeeded {
            *revision = answer.header.context("an answer has a header")?.revision;
            return Ok(bytes);
        }
        // Of a run before, or of an attempt whose answer was lost.
        let found = match answer.responses.into_iter().next().and_then(|response| response.response) {
            Some(pb::response_op::Response::ResponseRange(range)) => range.kvs.into_iter().next(),
            _ => anyhow::bail!("a transaction that failed must bring what it was compared with"),
        };
        *revision = found.map_or(0, |kv| kv.mod_revision);
        Ok(bytes)
    }
}

/// As Kubernetes' storage layer updates an object.
pub(super) fn compare_and_put(key: Bytes, mod_revision: i64, value: Bytes) -> pb::TxnRequest {
    let compare = pb::Compare {
        result: pb::compare::CompareResult::Equal.into(),
        target: pb::compare::CompareTarget::Mod.into(),
        key: key.clone(),
        target_union: Some(pb::compare::TargetUnion::ModRevision(mod_revision)),
        ..Default::default()
    };
    let put = pb::PutRequest { key: key.clone(), value, ..Default::default() };
    let get = pb::RangeRequest { key, ..Default::default() };
    pb::TxnRequest {
        compare: vec![compare],
        success: vec![pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }],
        failure: vec![pb::RequestOp { request: Some(pb::request_op::Request::RequestRange(get)) }],
    }
}

/// Keep-alives.
#[derive(Args, Clone, Debug)]
pub(super) struct Keepalive {
    /// Leases of each client, kept alive in turn.
    #[arg(long, default_value_t = 10)]
    leases_per_client: usize,
    /// Seconds that a lease lives without.
    #[arg(long, default_value_t = 60)]
    ttl: i64,
}

impl Keepalive {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<Report> {
        let channels = common.channels().await?;
        let mut clients = Vec::with_capacity(common.clients);
        for at in 0..common.clients {
            clients.push(Keeper::new(&channels[at % channels.len()], &self).await?);
        }
        Ok(Report::new("keepalive", "keep-alives", measured(common, "keep-alives", clients).await?))
    }
}

const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";

struct Keeper {
    stream: Messages,
    leases: Vec<i64>,
    next: usize,
}

impl Keeper {
    async fn new(channel: &Connection, arguments: &Keepalive) -> anyhow::Result<Self> {
        let mut client = pb::lease_client::LeaseClient::new(channel.clone());
        let mut leases = Vec::with_capacity(arguments.leases_per_client);
        for _ in 0..arguments.leases_per_client.max(1) {
            let grant = pb::LeaseGrantRequest { ttl: arguments.ttl, id: 0 };
            leases.push(client.lease_grant(grant).await?.into_inner().id);
        }
        // etcd answers the stream only with the first request.
        let mut stream = channel.stream(KEEP_ALIVE, &[pb::LeaseKeepAliveRequest { id: leases[0] }]).await?;
        stream.message::<pb::LeaseKeepAliveResponse>().await?;
        Ok(Self { stream, leases, next: 0 })
    }
}

impl Client for Keeper {
    async fn request(&mut self, _: u64) -> anyhow::Result<u64> {
        let id = self.leases[self.next % self.leases.len()];
        self.next += 1;
        self.stream.send(&pb::LeaseKeepAliveRequest { id })?;
        let answer = tokio::time::timeout(Duration::from_secs(10), self.stream.message()).await;
        let answer: pb::LeaseKeepAliveResponse = answer.context("no answer for 10 s")??;
        anyhow::ensure!(answer.id == id && answer.ttl > 0, "lease {id:x} has expired");
        Ok(0)
    }
}
