//! One run: the operations of one seed, sent to both servers and compared.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use futures_util::StreamExt;
use prost::Message;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::watch_request::RequestUnion;
use tailwater_tests::{Failure, RawClient};

use crate::answer::{Answer, Names, same};
use crate::generate::{Generator, Revisions, STREAMS};
use crate::operation::Operation;
use crate::stream::WatchStream;
use crate::watchers::{History, Watcher};

/// How long an answer that must come may take.
pub(crate) const ANSWER: Duration = Duration::from_secs(5);
/// How long silence must last to count as no answer.
const SILENCE: Duration = Duration::from_millis(30);
/// After this a watcher that replays history is live; etcd looks for such watchers every 100 ms.
const LIVE_AFTER: Duration = Duration::from_millis(250);
const SETTLE_OPERATIONS: usize = 100;

/// The two servers answered differently, or one broke a rule. The text says all.
#[derive(Debug)]
pub(crate) struct Difference(pub(crate) String);

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Difference {}

/// One of the two servers in one run.
pub(crate) struct Side {
    client: RawClient,
    names: Arc<Mutex<Names>>,
    /// The highest revision that may be seen.
    pub(crate) bound: Arc<AtomicI64>,
    /// Sees every event of the run.
    pub(crate) all: WatchStream,
    pub(crate) streams: [Option<WatchStream>; STREAMS],
}

impl Side {
    async fn new(url: &str) -> anyhow::Result<Self> {
        let client = RawClient::new(url)?;
        let status = client.unary("/etcdserverpb.Maintenance/Status", Bytes::new()).await.map_err(failed)?;
        let header = pb::StatusResponse::decode(status)?.header.context("a status without header")?;
        let names = Names { cluster: header.cluster_id, member: header.member_id, leases: Vec::new() };
        let (names, bound) = (Arc::new(Mutex::new(names)), Arc::new(AtomicI64::new(i64::MAX)));
        let all = WatchStream::open(&client, names.clone(), bound.clone());
        Ok(Self { client, names, bound, all, streams: [const { None }; STREAMS] })
    }

    pub(crate) fn stream(&mut self, index: usize) -> &WatchStream {
        let (client, names, bound) = (&self.client, &self.names, &self.bound);
        self.streams[index].get_or_insert_with(|| WatchStream::open(client, names.clone(), bound.clone()))
    }

    async fn call(&self, path: &str, body: Bytes) -> Result<Bytes, Failure> {
        if path.ends_with("/LeaseKeepAlive") {
            let answers = self.client.streaming(path, futures_util::stream::iter([body])).await?;
            let first = answers.into_inner().next().await;
            return first
                .unwrap_or_else(|| Err(tonic::Status::cancelled("ended without an answer")))
                .map_err(Into::into);
        }
        self.client.unary(path, body).await
    }

    async fn perform(&self, operation: &Operation) -> anyhow::Result<Answer> {
        let names = self.names.lock().unwrap().clone();
        let Some((path, body)) = operation.call(&|id| names.lease_here(id)) else { return Ok(Answer::Silence) };
        let result = self.call(path, body).await;
        let answer = names.answer(operation, result)?;
        if let (Operation::GrantAssigned { id, .. }, Answer::Grant(grant)) = (operation, &answer) {
            self.names.lock().unwrap().leases.push((*id, grant.id));
        }
        Ok(answer)
    }

    /// Empties the store: no lease, no key. Returns the revision.
    async fn clear(&self) -> anyhow::Result<i64> {
        let body = self.call("/etcdserverpb.Lease/LeaseLeases", Bytes::new()).await.map_err(failed)?;
        for lease in pb::LeaseLeasesResponse::decode(body)?.leases {
            let request = pb::LeaseRevokeRequest { id: lease.id };
            // It fails when the lease has expired meanwhile.
            drop(self.call("/etcdserverpb.Lease/LeaseRevoke", request.encode_to_vec().into()).await);
        }
        let every = Bytes::from_static(b"\0");
        let request = pb::DeleteRangeRequest { key: every.clone(), range_end: every, prev_kv: false };
        let body = self.call("/etcdserverpb.KV/DeleteRange", request.encode_to_vec().into()).await.map_err(failed)?;
        Ok(pb::DeleteRangeResponse::decode(body)?.header.context("no header")?.revision)
    }

    async fn put(&self, key: &'static str) -> anyhow::Result<()> {
        let request = pb::PutRequest { key: key.into(), ..Default::default() };
        self.call("/etcdserverpb.KV/Put", request.encode_to_vec().into()).await.map_err(failed)?;
        Ok(())
    }
}

fn failed(failure: Failure) -> anyhow::Error {
    anyhow::anyhow!("{failure:?}")
}

/// One seed's run.
pub(crate) struct Run {
    pub(crate) reference: Side,
    pub(crate) subject: Side,
    pub(crate) at: Revisions,
    pub(crate) watchers: Vec<Watcher>,
    pub(crate) history: History,
}

/// Runs `operations` operations of `seed` on both endpoints.
///
/// # Errors
/// A [`Difference`], or what kept the run from going on.
pub(crate) async fn run(reference: &str, subject: &str, seed: u64, operations: usize) -> anyhow::Result<()> {
    let mut run = Run::start(reference, subject).await?;
    let mut generator = Generator::new(seed);
    for number in 0..operations {
        let operation = generator.next(run.at);
        if let Err(error) = run.step(number, &operation).await {
            let context = format!("seed {seed}, operation {number} of {operations}:\n  {operation:?}\n{error:#}");
            return match error.downcast::<Difference>() {
                Ok(_) => Err(Difference(context).into()),
                Err(error) => Err(error.context(context)),
            };
        }
    }
    run.settle().await.map_err(|error| match error.downcast::<Difference>() {
        Ok(difference) => Difference(format!("seed {seed}, at the end:\n{difference}")).into(),
        Err(error) => error,
    })
}

impl Run {
    /// Brings both servers to the same state: empty, at one revision, compacted there.
    pub(crate) async fn start(reference: &str, subject: &str) -> anyhow::Result<Self> {
        let (reference, subject) = (Side::new(reference).await?, Side::new(subject).await?);
        let (mut a, mut b) = (reference.clear().await?, subject.clear().await?);
        while a != b {
            let (behind, revision) = if a < b { (&reference, &mut a) } else { (&subject, &mut b) };
            behind.put("pad").await?;
            *revision += 1;
        }
        for side in [&reference, &subject] {
            side.put("pad").await?;
        }
        let (first, other) = (reference.clear().await?, subject.clear().await?);
        if first != other {
            return Err(Difference(format!("the same deletes ended at revisions {first} and {other}")).into());
        }
        let compact = pb::CompactionRequest { revision: first, physical: true };
        for side in [&reference, &subject] {
            side.call("/etcdserverpb.KV/Compact", compact.encode_to_vec().into()).await.map_err(failed)?;
            side.bound.store(first, Ordering::SeqCst);
            let every = Bytes::from_static(b"\0");
            let all =
                pb::WatchCreateRequest { key: every.clone(), range_end: every, prev_kv: true, ..Default::default() };
            side.all.send(RequestUnion::CreateRequest(all)).await;
            let created = side.all.wait(ANSWER, |arrived| arrived.created.pop_front()).await;
            created.context("a watch of every key was not created")?;
        }
        let at = Revisions { first, current: first, compacted: first, last_delete: first };
        Ok(Self { reference, subject, at, watchers: Vec::new(), history: History::beginning(first, "pad") })
    }

    pub(crate) async fn step(&mut self, number: usize, operation: &Operation) -> anyhow::Result<()> {
        // A compaction may overtake the reading of history for a watcher, and of previous values: both are allowed.
        if matches!(operation, Operation::Compact(_)) || number.is_multiple_of(SETTLE_OPERATIONS) {
            self.settle().await?;
        }
        if matches!(operation, Operation::Compact(_)) {
            self.wait_until_live(|_| true).await;
        }
        match operation {
            Operation::Watch { stream, request } => self.watch(*stream, request).await,
            Operation::CancelWatch { stream, id } => self.cancel(*stream, *id).await,
            Operation::Progress { stream } => self.progress(*stream).await,
            Operation::CloseStream { stream } => {
                self.settle().await?;
                self.watchers.retain(|watcher| watcher.stream != *stream);
                (self.reference.streams[*stream], self.subject.streams[*stream]) = (None, None);
                Ok(())
            }
            _ => self.call(operation).await,
        }
    }

    async fn call(&mut self, operation: &Operation) -> anyhow::Result<()> {
        for side in [&self.reference, &self.subject] {
            side.bound.store(self.at.current + 1, Ordering::SeqCst);
        }
        let both = async { tokio::try_join!(self.reference.perform(operation), self.subject.perform(operation)) };
        let Ok(both) = tokio::time::timeout(ANSWER * 3, both).await else { bail!("no answer within {:?}", ANSWER * 3) };
        let (reference, subject) = both?;
        self.note(operation, &reference);
        for side in [&self.reference, &self.subject] {
            side.bound.store(self.at.current, Ordering::SeqCst);
        }
        expect_same(operation, &reference, &subject)
    }

    /// Follows the revisions.
    fn note(&mut self, operation: &Operation, answer: &Answer) {
        let header = match answer {
            Answer::Put(answer) => answer.header,
            Answer::Delete(answer) => answer.header,
            Answer::Txn(answer) => answer.header,
            Answer::Revoke(answer) => answer.header,
            Answer::Compact(answer) => answer.header,
            _ => None,
        };
        let revision = header.map_or(0, |header| header.revision);
        if matches!(answer, Answer::Delete(delete) if delete.deleted > 0) {
            self.at.last_delete = revision;
        }
        if let (Operation::Compact(request), Answer::Compact(_)) = (operation, answer) {
            self.at.compacted = self.at.compacted.max(request.revision);
        }
        self.at.current = self.at.current.max(revision);
    }

    async fn watch(&mut self, stream: usize, request: &pb::WatchCreateRequest) -> anyhow::Result<()> {
        let create = RequestUnion::CreateRequest(request.clone());
        let mut answers = Vec::new();
        for side in [&mut self.reference, &mut self.subject] {
            let watch_stream = side.stream(stream);
            watch_stream.send(create.clone()).await;
            let created = watch_stream.wait(ANSWER, |arrived| arrived.created.pop_front()).await;
            answers.push(created.map_or(Answer::Silence, Answer::Watch));
        }
        let operation = Operation::Watch { stream, request: request.clone() };
        expect_same(&operation, &answers[0], &answers[1])?;
        let Answer::Watch(created) = &answers[0] else { bail!("neither server created the watch") };
        if !created.canceled {
            let now = created.header.map_or(0, |header| header.revision);
            self.watchers.push(Watcher::new(stream, created.watch_id, request, now, self.at.compacted));
        }
        Ok(())
    }

    async fn cancel(&mut self, stream: usize, id: i64) -> anyhow::Result<()> {
        // Events on their way may be dropped by a cancel, so there must be none.
        self.settle().await?;
        let known = self.watchers.iter().any(|watcher| watcher.stream == stream && watcher.id == id);
        let mut patience = if known { ANSWER } else { SILENCE };
        let mut answers = Vec::new();
        for side in [&mut self.reference, &mut self.subject] {
            let watch_stream = side.stream(stream);
            watch_stream.send(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: id })).await;
            let canceled = watch_stream.wait(patience, |arrived| arrived.canceled.get_mut(&id)?.pop()).await;
            if canceled.is_some() {
                patience = ANSWER;
            }
            answers.push(canceled.map_or(Answer::Silence, Answer::Watch));
        }
        self.watchers.retain(|watcher| watcher.stream != stream || watcher.id != id);
        expect_same(&Operation::CancelWatch { stream, id }, &answers[0], &answers[1])
    }

    async fn progress(&mut self, stream: usize) -> anyhow::Result<()> {
        self.settle().await?;
        let mine = || self.watchers.iter().filter(|watcher| watcher.stream == stream);
        // etcd never answers on a stream with a watcher that a compaction has ended, and with one of the future
        // it may answer late or not at all.
        if mine().any(|watcher| watcher.compacted || watcher.next > self.at.current + 1) {
            return Ok(());
        }
        let mut patience = if mine().next().is_none() { SILENCE } else { ANSWER };
        self.wait_until_live(|watcher| watcher.stream == stream).await;
        let mut answers = Vec::new();
        for side in [&mut self.reference, &mut self.subject] {
            let watch_stream = side.stream(stream);
            watch_stream.send(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
            let progress = watch_stream.wait(patience, |arrived| arrived.progress.pop_front()).await;
            if progress.is_some() {
                patience = ANSWER;
            }
            answers.push(progress.map_or(Answer::Silence, Answer::Watch));
        }
        expect_same(&Operation::Progress { stream }, &answers[0], &answers[1])
    }

    /// Gives watchers that replay history, and had none to deliver, the time to become live.
    async fn wait_until_live(&self, which: impl Fn(&Watcher) -> bool) {
        let replaying = self.watchers.iter().filter(|watcher| watcher.replays && which(watcher));
        let wait = replaying.map(|watcher| LIVE_AFTER.saturating_sub(watcher.created.elapsed())).max();
        tokio::time::sleep(wait.unwrap_or_default()).await;
    }

    /// Since when a watcher exists, for [`LIVE_AFTER`].
    pub(crate) fn now() -> Instant {
        Instant::now()
    }
}

pub(crate) fn expect_same(operation: &Operation, reference: &Answer, subject: &Answer) -> anyhow::Result<()> {
    if same(operation, reference, subject) {
        return Ok(());
    }
    Err(Difference(format!("  reference: {reference:?}\n  subject:   {subject:?}")).into())
}
