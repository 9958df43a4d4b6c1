//! Clients that write and read a few keys through any member, and note what they were told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tailwater_api::etcdserverpb as pb;
use tailwater_tests::cluster::{Cluster, connect};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::history::{Action, Answer, Clock, Operation, Outcome, Version};

/// Where all keys of the workload are.
pub(crate) const PREFIX: &str = "kv/";
/// The end of that range.
pub(crate) const PREFIX_END: &str = "kv0";
/// After this long an operation's outcome is unknown.
const PATIENCE: Duration = Duration::from_secs(2);
/// After so long all go to other keys: the search for a linear order of a key's operations costs the square of their number.
const EPOCH_NANOSECONDS: u64 = 20_000_000_000;
/// How long a client waits after a failure.
const AFTER_FAILURE: Duration = Duration::from_millis(30);

/// How much is done.
#[derive(Clone, Debug)]
pub(crate) struct Amount {
    pub(crate) clients: usize,
    pub(crate) keys: usize,
    /// The longest pause between two operations of a client.
    pub(crate) think: Duration,
    /// Bytes that values are filled up to.
    pub(crate) value_bytes: usize,
    pub(crate) seed: u64,
}

/// The clients while they run.
pub(crate) struct Workload {
    stop: watch::Sender<bool>,
    clients: JoinSet<Vec<Operation>>,
    /// The latest call time among the acknowledged writes.
    newest: Arc<AtomicU64>,
    clock: Clock,
}

impl Workload {
    /// Starts the clients on all members.
    pub(crate) fn start(cluster: &Cluster, amount: &Amount, clock: Clock) -> anyhow::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let newest = Arc::new(AtomicU64::new(0));
        let mut clients = JoinSet::new();
        for client in 0..amount.clients {
            let one = Client::new(client, cluster.urls(), amount, clock, Arc::clone(&newest))?;
            clients.spawn(one.run(stopped.clone()));
        }
        Ok(Self { stop, clients, newest, clock })
    }

    /// Waits until a write that began from now on is acknowledged; how long that took.
    ///
    /// # Errors
    /// After `limit` without one.
    pub(crate) async fn next_write(&self, limit: Duration) -> anyhow::Result<Duration> {
        let begin = self.clock.now();
        let waited = || Duration::from_nanos(self.clock.now() - begin);
        while self.newest.load(Ordering::Relaxed) < begin {
            anyhow::ensure!(waited() < limit, "no write was acknowledged for {limit:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(waited())
    }

    /// Stops the clients; everything that they did.
    pub(crate) async fn end(self) -> anyhow::Result<Vec<Operation>> {
        self.stop.send_replace(true);
        let mut operations = Vec::new();
        let mut clients = self.clients;
        while let Some(done) = clients.join_next().await {
            operations.extend(done?);
        }
        operations.sort_by_key(|operation| operation.call);
        Ok(operations)
    }
}

struct Client {
    index: usize,
    channels: Vec<Channel>,
    slot: usize,
    /// Whether it goes to the next member after a failure, as etcd's client does, or stays, to see what that one says.
    roams: bool,
    keys: usize,
    think: Duration,
    value_bytes: usize,
    clock: Clock,
    random: StdRng,
    newest: Arc<AtomicU64>,
    /// The mod_revision of each key of the epoch that it saw last.
    seen: Vec<i64>,
    epoch: u64,
    done: Vec<Operation>,
}

impl Client {
    fn new(
        index: usize,
        urls: Vec<String>,
        amount: &Amount,
        clock: Clock,
        newest: Arc<AtomicU64>,
    ) -> anyhow::Result<Self> {
        let channels = urls.iter().map(|url| connect(url)).collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Self {
            index,
            slot: index % channels.len(),
            channels,
            roams: index % 2 == 1,
            keys: amount.keys,
            think: amount.think,
            value_bytes: amount.value_bytes,
            clock,
            random: StdRng::seed_from_u64(amount.seed.wrapping_add(index as u64)),
            newest,
            seen: vec![0; amount.keys],
            epoch: 0,
            done: Vec::new(),
        })
    }

    async fn run(mut self, stopped: watch::Receiver<bool>) -> Vec<Operation> {
        while !*stopped.borrow() {
            let (action, keys) = self.choose();
            let failed = self.perform(action, keys).await;
            if failed {
                tokio::time::sleep(AFTER_FAILURE).await;
                if self.roams {
                    self.slot = (self.slot + 1) % self.channels.len();
                }
            }
            let think = self.think.mul_f64(self.random.random());
            tokio::time::sleep(think).await;
        }
        self.done
    }

    fn choose(&mut self) -> (Action, Vec<usize>) {
        let epoch = self.clock.now() / EPOCH_NANOSECONDS;
        if epoch != self.epoch {
            self.epoch = epoch;
            self.seen.fill(0);
        }
        let key = self.random.random_range(0..self.keys);
        let mut value = format!("{}-{}", self.index, self.done.len());
        let fill = self.value_bytes.saturating_sub(value.len());
        value.extend(std::iter::repeat_n('.', fill));
        let action = match self.random.random_range(0..100) {
            0..25 => Action::Read { serializable: false },
            25..35 => Action::Read { serializable: true },
            35..65 => Action::Put { value },
            65..90 => Action::Swap { expected: self.seen[key], value },
            _ => Action::Delete,
        };
        let several = matches!(action, Action::Put { .. }) && self.keys > 1 && self.random.random_bool(0.3);
        let keys = if several { vec![key, (key + 1) % self.keys] } else { vec![key] };
        (action, keys)
    }

    /// Whether it failed.
    async fn perform(&mut self, action: Action, keys: Vec<usize>) -> bool {
        let names: Vec<String> = keys.iter().map(|key| format!("{PREFIX}{}/{key}", self.epoch)).collect();
        let call = self.clock.now();
        let channel = self.channels[self.slot].clone();
        let answer = tokio::time::timeout(PATIENCE, ask(channel, &action, &names)).await;
        let outcome = match answer {
            Ok(Ok(answer)) => Outcome::Ok(answer),
            Ok(Err(error)) if error.downcast_ref::<Status>().is_some_and(is_refusal) => Outcome::Refused,
            Ok(Err(_)) | Err(_) => Outcome::Unknown,
        };
        let operation = Operation { client: self.index, keys: names, action, call, end: self.clock.now(), outcome };
        let failed = operation.answer().is_none();
        if let Some(answer) = operation.answer() {
            self.learn(&operation, answer, &keys);
        }
        self.done.push(operation);
        failed
    }

    fn learn(&mut self, operation: &Operation, answer: &Answer, keys: &[usize]) {
        if answer.wrote {
            self.newest.fetch_max(operation.call, Ordering::Relaxed);
        }
        let left = match (&operation.action, answer.wrote) {
            (Action::Delete, _) => 0,
            (_, true) => answer.revision,
            (_, false) => answer.found.as_ref().map_or(0, |version| version.revision),
        };
        keys.iter().for_each(|key| self.seen[*key] = left);
    }
}

/// Whether an error says for sure that nothing was done.
fn is_refusal(status: &Status) -> bool {
    matches!(status.code(), Code::InvalidArgument | Code::FailedPrecondition | Code::Unimplemented)
        || (status.code() == Code::ResourceExhausted && status.message() == "etcdserver: too many requests")
}

/// Performs one operation.
pub(crate) async fn ask(channel: Channel, action: &Action, keys: &[String]) -> anyhow::Result<Answer> {
    let mut kv = pb::kv_client::KvClient::new(channel);
    let key = keys.first().context("an operation has a key")?;
    match action {
        Action::Read { serializable } => {
            let request = pb::RangeRequest { serializable: *serializable, ..range(key) };
            answer_of_range(kv.range(request).await?.into_inner())
        }
        Action::Put { value } if keys.len() == 1 => {
            let answer = kv.put(put(key, value)).await?.into_inner();
            Ok(Answer { revision: revision(answer.header)?, wrote: true, found: None })
        }
        Action::Put { value } => {
            let success = keys.iter().map(|key| op(pb::request_op::Request::RequestPut(put(key, value)))).collect();
            let answer = kv.txn(pb::TxnRequest { success, ..Default::default() }).await?.into_inner();
            Ok(Answer { revision: revision(answer.header)?, wrote: true, found: None })
        }
        Action::Swap { expected, value } => answer_of_swap(kv.txn(swap(key, *expected, value)).await?.into_inner()),
        Action::Delete => {
            let request = pb::DeleteRangeRequest { key: key.clone().into(), ..Default::default() };
            let answer = kv.delete_range(request).await?.into_inner();
            Ok(Answer { revision: revision(answer.header)?, wrote: answer.deleted > 0, found: None })
        }
    }
}

fn swap(key: &str, expected: i64, value: &str) -> pb::TxnRequest {
    let compare = pb::Compare {
        result: pb::compare::CompareResult::Equal.into(),
        target: pb::compare::CompareTarget::Mod.into(),
        key: key.to_owned().into(),
        target_union: Some(pb::compare::TargetUnion::ModRevision(expected)),
        ..Default::default()
    };
    pb::TxnRequest {
        compare: vec![compare],
        success: vec![op(pb::request_op::Request::RequestPut(put(key, value)))],
        failure: vec![op(pb::request_op::Request::RequestRange(range(key)))],
    }
}

fn answer_of_swap(answer: pb::TxnResponse) -> anyhow::Result<Answer> {
    if answer.succeeded {
        return Ok(Answer { revision: revision(answer.header)?, wrote: true, found: None });
    }
    let response = answer.responses.into_iter().next().and_then(|response| response.response);
    let Some(pb::response_op::Response::ResponseRange(found)) = response else {
        anyhow::bail!("a failed swap reads the key")
    };
    let found = found.kvs.first().map(Version::of);
    Ok(Answer { revision: revision(answer.header)?, wrote: false, found })
}

fn answer_of_range(answer: pb::RangeResponse) -> anyhow::Result<Answer> {
    Ok(Answer { revision: revision(answer.header)?, wrote: false, found: answer.kvs.first().map(Version::of) })
}

fn revision(header: Option<pb::ResponseHeader>) -> anyhow::Result<i64> {
    Ok(header.context("an answer has a header")?.revision)
}

fn range(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.to_owned().into(), ..Default::default() }
}

fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() }
}

fn op(request: pb::request_op::Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}
