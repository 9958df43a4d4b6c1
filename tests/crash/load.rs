//! Writers that know what was acknowledged, a watcher that resumes, and the check of both against the server.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::mvccpb;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint};

const WRITERS: usize = 16;

/// What one writer knows of its two keys, which are always written by one transaction.
#[derive(Clone, Debug, Default)]
struct Writer {
    /// Number of the last write that was sent.
    sent: u64,
    /// Number and revision of the last write that was acknowledged.
    acknowledged: Option<(u64, i64)>,
}

/// An event as the watcher saw it: revision, key, value; `None` is a delete.
type Seen = (i64, Bytes, Option<Bytes>);

/// Everything that clients have been told, over all lives of the server.
pub(crate) struct Load {
    writers: Vec<Writer>,
    /// Each acknowledged revision, and who wrote what with it.
    revisions: BTreeMap<i64, (usize, u64)>,
    /// What the resuming watcher has been sent.
    seen: Vec<Seen>,
    seed: u64,
}

/// What a writer ends with: its index, what it knows, and each acknowledged revision with the write's number.
type Ended = (usize, Writer, Vec<(i64, u64)>);

/// The load while it runs.
pub(crate) struct Running {
    writers: JoinSet<Ended>,
    watcher: tokio::task::JoinHandle<()>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

/// One connection.
pub(crate) async fn connect(endpoint: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(endpoint.to_owned())?;
    Ok(endpoint.connect_timeout(Duration::from_secs(5)).timeout(Duration::from_secs(20)).connect().await?)
}

/// A client of the KV service.
pub(crate) fn kv(channel: &Channel) -> pb::kv_client::KvClient<Channel> {
    pb::kv_client::KvClient::new(channel.clone()).max_decoding_message_size(1 << 30)
}

fn key(writer: usize, part: char) -> Bytes {
    Bytes::from(format!("crash/{writer:02}/{part}"))
}

fn value(number: u64, seed: u64) -> Bytes {
    // Values of different lengths, so that torn ends fall everywhere.
    let length = usize::try_from((number.wrapping_mul(2_654_435_761) ^ seed) % 700).expect("below 700");
    Bytes::from(format!("{number:020}{}", "x".repeat(length)))
}

fn number(value: &[u8]) -> anyhow::Result<u64> {
    Ok(std::str::from_utf8(value.get(..20).context("a value begins with its number")?)?.parse()?)
}

fn put(key: Bytes, value: Bytes) -> pb::RequestOp {
    let put = pb::PutRequest { key, value, ..Default::default() };
    pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }
}

async fn write(index: usize, mut writer: Writer, channel: Channel, seed: u64) -> Ended {
    let mut kv = kv(&channel);
    let mut acknowledged = Vec::new();
    loop {
        writer.sent += 1;
        let value = value(writer.sent, seed);
        let request = pb::TxnRequest {
            success: vec![put(key(index, 'a'), value.clone()), put(key(index, 'b'), value)],
            ..Default::default()
        };
        let Ok(answer) = kv.txn(request).await else { return (index, writer, acknowledged) };
        let Some(header) = answer.into_inner().header else { return (index, writer, acknowledged) };
        writer.acknowledged = Some((writer.sent, header.revision));
        acknowledged.push((header.revision, writer.sent));
    }
}

async fn open_watch(channel: Channel, start_revision: i64) -> anyhow::Result<tonic::Streaming<pb::WatchResponse>> {
    open_watch_of(channel, "crash/", "crash0", start_revision).await
}

/// A watch of one range on a stream of its own.
pub(crate) async fn open_watch_of(
    channel: Channel,
    key: &'static str,
    range_end: &'static str,
    start_revision: i64,
) -> anyhow::Result<tonic::Streaming<pb::WatchResponse>> {
    let create =
        pb::WatchCreateRequest { key: key.into(), range_end: range_end.into(), start_revision, ..Default::default() };
    let request = pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) };
    let requests = tokio_stream::iter([request]).chain(tokio_stream::pending());
    let mut client = pb::watch_client::WatchClient::new(channel).max_decoding_message_size(1 << 30);
    Ok(client.watch(requests).await?.into_inner())
}

fn seen(event: mvccpb::Event) -> Option<Seen> {
    let kv = event.kv?;
    let put = event.r#type == i32::from(mvccpb::event::EventType::Put);
    Some((kv.mod_revision, kv.key, put.then_some(kv.value)))
}

impl Load {
    /// Nothing written yet.
    pub(crate) fn new(seed: u64) -> Self {
        Self { writers: vec![Writer::default(); WRITERS], revisions: BTreeMap::new(), seen: Vec::new(), seed }
    }

    /// Writes acknowledged so far.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.revisions.len() as u64
    }

    /// Starts the writers, and the watcher where it was.
    pub(crate) async fn begin(&self, endpoint: &str) -> anyhow::Result<Running> {
        let channel = connect(endpoint).await?;
        let mut writers = JoinSet::new();
        for (index, writer) in self.writers.iter().enumerate() {
            writers.spawn(write(index, writer.clone(), channel.clone(), self.seed));
        }
        let resume = self.seen.last().map_or(1, |(revision, ..)| revision + 1);
        let mut stream = open_watch(connect(endpoint).await?, resume).await?;
        let collected = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&collected);
        let watcher = tokio::spawn(async move {
            while let Some(Ok(response)) = stream.next().await {
                let events = response.events.into_iter().filter_map(seen);
                sink.lock().expect("nobody panics with the lock").extend(events);
            }
        });
        Ok(Running { writers, watcher, seen: collected })
    }

    /// Compares what clients were told with what the server has.
    pub(crate) async fn check(&self, endpoint: &str) -> anyhow::Result<()> {
        let channel = connect(endpoint).await?;
        let range = pb::RangeRequest { key: "crash/".into(), range_end: "crash0".into(), ..Default::default() };
        let answer = kv(&channel).range(range).await?.into_inner();
        let revision = answer.header.context("an answer has a header")?.revision;
        for (index, writer) in self.writers.iter().enumerate() {
            self.check_writer(index, writer, &answer.kvs)?;
        }
        if let Some((&newest, _)) = self.revisions.last_key_value() {
            anyhow::ensure!(revision >= newest, "revision {newest} was acknowledged, the server is at {revision}");
        }
        let history = read_history(channel, revision).await?;
        self.check_history(&history)
    }

    fn check_writer(&self, index: usize, writer: &Writer, kvs: &[mvccpb::KeyValue]) -> anyhow::Result<()> {
        let find = |part| kvs.iter().find(|kv| kv.key == key(index, part));
        let Some((acknowledged, revision)) = writer.acknowledged else { return Ok(()) };
        let (Some(a), Some(b)) = (find('a'), find('b')) else {
            anyhow::bail!("writer {index}: write {acknowledged} was acknowledged and is gone");
        };
        let have = number(&a.value)?;
        anyhow::ensure!(
            have >= acknowledged && have <= writer.sent,
            "writer {index}: has {have}, acknowledged {acknowledged}, sent {}",
            writer.sent
        );
        anyhow::ensure!(a.value == b.value && a.mod_revision == b.mod_revision, "writer {index}: a torn transaction");
        anyhow::ensure!(a.value == value(have, self.seed), "writer {index}: write {have} has a wrong value");
        anyhow::ensure!(
            have != acknowledged || a.mod_revision == revision,
            "writer {index}: write {have} moved from revision {revision} to {}",
            a.mod_revision
        );
        Ok(())
    }

    /// `history` holds every event from revision 2 on.
    fn check_history(&self, history: &[Seen]) -> anyhow::Result<()> {
        let mut by_revision: BTreeMap<i64, Vec<&Seen>> = BTreeMap::new();
        for event in history {
            by_revision.entry(event.0).or_default().push(event);
        }
        for (revision, events) in &by_revision {
            anyhow::ensure!(events.len() == 2, "revision {revision} has {} of 2 events", events.len());
        }
        for (revision, (index, count)) in &self.revisions {
            let events = by_revision.get(revision).with_context(|| format!("revision {revision} is gone"))?;
            let expected = value(*count, self.seed);
            anyhow::ensure!(
                events[0].1 == key(*index, 'a') && events[0].2.as_ref() == Some(&expected),
                "revision {revision} was acknowledged for another write: it was used twice"
            );
        }
        anyhow::ensure!(
            history.get(..self.seen.len()).is_some_and(|same| same == self.seen.as_slice()),
            "the resuming watcher saw something else than the history says"
        );
        Ok(())
    }
}

/// Every event up to `revision`.
async fn read_history(channel: Channel, revision: i64) -> anyhow::Result<Vec<Seen>> {
    let mut history: Vec<Seen> = Vec::new();
    let mut stream = open_watch(channel, 1).await?;
    while revision > 1 && history.last().is_none_or(|(newest, ..)| *newest < revision) {
        let next = tokio::time::timeout(Duration::from_secs(20), stream.next()).await;
        let response = next.context("the history does not reach the current revision")?;
        let response = response.context("the watch ended")??;
        anyhow::ensure!(!response.canceled, "the watch was canceled: {}", response.cancel_reason);
        history.extend(response.events.into_iter().filter_map(seen));
    }
    Ok(history)
}

impl Running {
    /// After the crash: what the clients were told until then.
    pub(crate) async fn end(mut self, load: &mut Load) -> anyhow::Result<()> {
        while let Some(done) = self.writers.join_next().await {
            let (index, writer, acknowledged) = done?;
            load.writers[index] = writer;
            for (revision, count) in acknowledged {
                if let Some(other) = load.revisions.insert(revision, (index, count)) {
                    anyhow::bail!("revision {revision} was acknowledged to {other:?} and to {:?}", (index, count));
                }
            }
        }
        self.watcher.await?;
        let mut collected = self.seen.lock().expect("nobody panics with the lock");
        load.seen.append(&mut collected);
        Ok(())
    }
}
