//! A client that means well: it puts, gets and watches all the time, and is served within a bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use futures_util::StreamExt as _;
use prost::Message;
use tailwater_api::etcdserverpb as pb;
use tailwater_tests::{Failure, RawClient};
use tokio::task::JoinHandle;
use tonic::Streaming;

/// On a machine that does other things too, with a server that is not optimised.
const SERVED_MAX: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(10);
const KEYS: u64 = 8;
/// What a client tries again: another writer was faster, or there were too many.
const TRANSIENT: [&str; 2] = ["etcdserver: revision of auth store is old", "etcdserver: too many requests"];

/// How it was served.
#[derive(Debug, Default)]
pub(crate) struct Served {
    /// Of a put, a get and the event, each in order.
    times: [Vec<Duration>; 3],
}

impl Served {
    pub(crate) fn count(&self) -> usize {
        self.times[0].len()
    }

    /// The 99th percentile and the longest, of puts, gets and events.
    pub(crate) fn tails(&self) -> [(Duration, Duration); 3] {
        [0, 1, 2].map(|at| {
            let mut times = self.times[at].clone();
            times.sort_unstable();
            let last = times.last().copied().unwrap_or_default();
            (times.get(times.len() * 99 / 100).copied().unwrap_or(last), last)
        })
    }
}

/// At work until it is told to stop.
pub(crate) struct Witness {
    stop: Arc<AtomicBool>,
    task: JoinHandle<anyhow::Result<Served>>,
}

impl Witness {
    pub(crate) async fn start(client: RawClient) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let events = watch(&client).await?;
        let task = tokio::spawn(work(client, events, Arc::clone(&stop)));
        Ok(Self { stop, task })
    }

    /// Whether it has given up.
    pub(crate) fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// # Errors
    /// It was not served.
    pub(crate) async fn finish(self) -> anyhow::Result<Served> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?
    }
}

async fn watch(client: &RawClient) -> anyhow::Result<Streaming<Bytes>> {
    let create = pb::WatchCreateRequest { key: "witness/".into(), range_end: "witness0".into(), ..Default::default() };
    let create = pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) };
    let requests = futures_util::stream::iter([create.encode_to_vec().into()]).chain(futures_util::stream::pending());
    let mut events = client.streaming("/etcdserverpb.Watch/Watch", requests).await?.into_inner();
    let created = events.next().await.context("the watch has ended")??;
    ensure!(pb::WatchResponse::decode(created)?.created, "the watch was not created");
    Ok(events)
}

async fn work(client: RawClient, mut events: Streaming<Bytes>, stop: Arc<AtomicBool>) -> anyhow::Result<Served> {
    let mut served = Served::default();
    let mut seen = 0;
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = Bytes::from(format!("witness/{}", number % KEYS));
        let value = Bytes::from(number.to_string());
        let begun = Instant::now();
        let put = pb::PutRequest { key: key.clone(), value: value.clone(), ..Default::default() };
        let put: pb::PutResponse = served_in_time(&client, "Put", &put).await?.context("a put is never too old")?;
        served.times[0].push(begun.elapsed());
        let revision = put.header.context("a header")?.revision;

        let begun = Instant::now();
        // Others may have deleted or compacted meanwhile, but not changed what was.
        let at = pb::RangeRequest { key: key.clone(), revision, ..Default::default() };
        if let Some(found) = served_in_time::<pb::RangeResponse>(&client, "Range", &at).await? {
            let found = found.kvs.first().map(|kv| kv.value.clone());
            ensure!(found.as_ref() == Some(&value), "{key:?} at {revision} is {found:?} where {value:?} was put");
        }
        served.times[1].push(begun.elapsed());

        let begun = Instant::now();
        while seen < revision {
            let next = tokio::time::timeout(SERVED_MAX, events.next()).await;
            let next = next.with_context(|| format!("no event of revision {revision} within {SERVED_MAX:?}"))?;
            let response = pb::WatchResponse::decode(next.context("the watch has ended")??)?;
            ensure!(!response.canceled, "the watch was canceled: {response:?}");
            for event in response.events {
                let at = event.kv.context("an event has a key")?.mod_revision;
                ensure!(at >= seen, "an event of {at} behind one of {seen}");
                seen = at;
            }
        }
        served.times[2].push(begun.elapsed());
        tokio::time::sleep(PAUSE).await;
    }
    Ok(served)
}

/// The answer of a method of KV; `None`: the revision was compacted.
async fn served_in_time<A: Message + Default>(
    client: &RawClient,
    method: &str,
    request: &impl Message,
) -> anyhow::Result<Option<A>> {
    let begun = Instant::now();
    let path = format!("/etcdserverpb.KV/{method}");
    while begun.elapsed() < SERVED_MAX {
        let call = client.unary(&path, request.encode_to_vec().into());
        match tokio::time::timeout(SERVED_MAX, call).await {
            Err(_) => break,
            Ok(Ok(answer)) => return Ok(Some(A::decode(answer)?)),
            Ok(Err(Failure { message, .. })) if message.contains("required revision has been compacted") => {
                return Ok(None);
            }
            Ok(Err(failure)) if TRANSIENT.contains(&failure.message.as_str()) => tokio::time::sleep(PAUSE).await,
            Ok(Err(failure)) => bail!("a client that means well is refused: {method}: {failure:?}"),
        }
    }
    bail!("a client that means well is not served: {method} within {SERVED_MAX:?}")
}
