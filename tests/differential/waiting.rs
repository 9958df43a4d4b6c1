//! Calls of locks and elections that wait, and those who observe; and when all of them have come to rest.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::bail;
use bytes::Bytes;
use prost::Message;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::mvccpb::KeyValue;
use tailwater_api::v3electionpb::{LeaderRequest, LeaderResponse};
use tailwater_tests::{Failure, RawClient};
use tokio::task::JoinHandle;

use crate::recipes::{Side, own_key};

const PAUSE: Duration = Duration::from_millis(2);

/// A call that ends when its key is the first one.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) key: Vec<u8>,
    prefix: Vec<u8>,
    /// What its key holds once it waits.
    value: Option<Vec<u8>>,
    /// Of its key, once it was seen.
    create_revision: Option<i64>,
    task: JoinHandle<String>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Waiting {
    /// Begins the call of somebody, by name, lease and what is campaigned with; `tell` makes its answer a text.
    pub(crate) fn begin(
        client: &RawClient,
        path: &'static str,
        request: &impl Message,
        (name, lease, value): (&str, i64, Option<&str>),
        tell: impl FnOnce(Result<Bytes, Failure>) -> String + Send + 'static,
    ) -> Self {
        let (client, body) = (client.clone(), request.encode_to_vec());
        let task = tokio::spawn(async move { tell(client.unary(path, body.into()).await) });
        let value = value.map(|value| value.as_bytes().to_vec());
        Self { key: own_key(name, lease), prefix: format!("{name}/").into_bytes(), value, create_revision: None, task }
    }

    /// Whether the key that it waits with is still there.
    pub(crate) fn has_key(&self, keys: &pb::RangeResponse) -> bool {
        keys.kvs.iter().any(|kv| kv.key == self.key && Some(kv.create_revision) == self.create_revision)
    }

    /// Whether the server is known to let it wait.
    fn waits(&mut self, keys: &pb::RangeResponse) -> bool {
        let own = keys.kvs.iter().find(|kv| kv.key == self.key);
        if self.create_revision.is_none()
            && own.is_some_and(|kv| self.value.as_ref().is_none_or(|value| kv.value == *value))
        {
            self.create_revision = own.map(|kv| kv.create_revision);
        }
        let is_before = |kv: &KeyValue| Some(kv.create_revision) < self.create_revision;
        keys.kvs.iter().any(|kv| kv.key.starts_with(&self.prefix) && is_before(kv))
    }

    /// Goes away, and waits until the server has taken its key back.
    pub(crate) async fn end(mut self, side: &Side) -> anyhow::Result<()> {
        self.task.abort();
        // Its end makes sure that the call is given up before anything else is asked.
        drop((&mut self.task).await);
        let begin = Instant::now();
        while self.has_key(&side.keys().await?) {
            if begin.elapsed() > crate::run::ANSWER {
                bail!("the key of a call that was given up stays");
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }
}

/// Somebody who observes an election.
#[derive(Debug)]
pub(crate) struct Observer {
    prefix: Vec<u8>,
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

/// What an observer was shown and nobody has looked at, and the last of all.
#[derive(Debug, Default)]
struct Seen {
    fresh: Vec<String>,
    last: Option<KeyValue>,
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Observer {
    pub(crate) fn open(client: &RawClient, name: &str) -> Self {
        let request = LeaderRequest { name: name.into() };
        let (client, seen) = (client.clone(), Arc::new(Mutex::new(Seen::default())));
        let sink = seen.clone();
        let task = tokio::spawn(async move {
            let body = futures_util::stream::iter([Bytes::from(request.encode_to_vec())]);
            let end = match client.streaming("/v3electionpb.Election/Observe", body).await {
                Ok(answers) => {
                    let mut answers = answers.into_inner();
                    loop {
                        match answers.message().await {
                            Ok(Some(body)) => sink.lock().unwrap().take(body),
                            Ok(None) => break "ended".to_owned(),
                            Err(status) => break format!("{:?}", Failure::from(status)),
                        }
                    }
                }
                Err(status) => format!("{:?}", Failure::from(status)),
            };
            sink.lock().unwrap().fresh.push(end);
        });
        Self { prefix: format!("{name}/").into_bytes(), seen, task }
    }

    /// Whether it has seen who leads; nobody needs not be seen.
    fn is_up_to_date(&self, keys: &pb::RangeResponse) -> bool {
        let leader = keys.kvs.iter().find(|kv| kv.key.starts_with(&self.prefix));
        leader.is_none_or(|leader| self.seen.lock().unwrap().last.as_ref() == Some(leader))
    }
}

impl Seen {
    fn take(&mut self, body: Bytes) {
        let Ok(LeaderResponse { header, kv }) = LeaderResponse::decode(body) else {
            return self.fresh.push("not a LeaderResponse".to_owned());
        };
        self.fresh.push(format!("{kv:?} at {:?}", header.map(|header| header.revision)));
        self.last = kv;
    }
}

/// Waits until each call has ended or is known to wait, and each observer has seen who leads. What ended and what was
/// observed, and the keys then.
pub(crate) async fn rest(side: &mut Side, limit: Duration) -> anyhow::Result<(Vec<String>, pb::RangeResponse)> {
    let begin = Instant::now();
    let mut told = Vec::new();
    loop {
        let keys = side.keys().await?;
        let mut is_at_rest = true;
        let mut waiting = Vec::new();
        for mut call in std::mem::take(&mut side.waiting) {
            if call.task.is_finished() {
                let key = String::from_utf8_lossy(&call.key).into_owned();
                told.push(format!("{key}: {}", (&mut call.task).await?));
                // Its key may be newer than what was read.
                is_at_rest = false;
                continue;
            }
            is_at_rest &= call.waits(&keys);
            waiting.push(call);
        }
        side.waiting = waiting;
        is_at_rest &= side.observers.iter().all(|observer| observer.is_up_to_date(&keys));
        if !is_at_rest && begin.elapsed() > limit {
            told.push("some go on that should have ended, or see less than there is".to_owned());
            is_at_rest = true;
        }
        if is_at_rest {
            // Several end at once, in no order.
            told.sort();
            for observer in &side.observers {
                told.push(format!("seen: {:?}", std::mem::take(&mut observer.seen.lock().unwrap().fresh)));
            }
            return Ok((told, keys));
        }
        tokio::time::sleep(PAUSE).await;
    }
}
