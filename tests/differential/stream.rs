//! One watch stream of one server, and the rules that hold for it whatever the other server does.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use prost::Message;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::mvccpb::Event;
use tailwater_tests::{Failure, RawClient};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

use crate::answer::Names;

/// What has arrived and was not taken yet.
#[derive(Debug, Default)]
pub(crate) struct Arrived {
    pub(crate) created: VecDeque<pb::WatchResponse>,
    /// Answers to progress requests.
    pub(crate) progress: VecDeque<pb::WatchResponse>,
    pub(crate) canceled: BTreeMap<i64, Vec<pb::WatchResponse>>,
    pub(crate) events: BTreeMap<i64, Vec<Event>>,
    /// Broken rules, in words.
    pub(crate) violations: Vec<String>,
    pub(crate) ended: Option<Failure>,
    rules: BTreeMap<i64, Rules>,
    progress_all: i64,
}

/// Where one watcher's stream stands.
#[derive(Clone, Copy, Debug, Default)]
struct Rules {
    last: i64,
    progress: i64,
    fragment: bool,
}

/// The stream; it ends when dropped.
#[derive(Debug)]
pub(crate) struct WatchStream {
    requests: mpsc::Sender<Bytes>,
    arrived: Arc<Mutex<Arrived>>,
    changed: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl WatchStream {
    /// Opens a stream. `bound` is the highest revision that the server can have reached.
    pub(crate) fn open(client: &RawClient, names: Arc<Mutex<Names>>, bound: Arc<AtomicI64>) -> Self {
        let (requests, bodies) = mpsc::channel(64);
        let arrived = Arc::new(Mutex::new(Arrived::default()));
        let changed = Arc::new(Notify::new());
        let (client, sink, wake) = (client.clone(), arrived.clone(), changed.clone());
        let task = tokio::spawn(async move {
            let failure = match client.streaming("/etcdserverpb.Watch/Watch", ReceiverStream::new(bodies)).await {
                Ok(answers) => {
                    let mut answers = answers.into_inner();
                    loop {
                        match answers.next().await {
                            Some(Ok(body)) => {
                                let bound = bound.load(Ordering::SeqCst);
                                let names = names.lock().unwrap().clone();
                                sink.lock().unwrap().take(body, bound, &names);
                                wake.notify_waiters();
                            }
                            Some(Err(status)) => break status.into(),
                            None => break Failure { code: 0, message: String::new() },
                        }
                    }
                }
                Err(status) => status.into(),
            };
            sink.lock().unwrap().ended = Some(failure);
            wake.notify_waiters();
        });
        Self { requests, arrived, changed, task }
    }

    pub(crate) async fn send(&self, request: pb::watch_request::RequestUnion) {
        let request = pb::WatchRequest { request_union: Some(request) };
        // A stream that ended says so in `Arrived::ended`.
        drop(self.requests.send(request.encode_to_vec().into()).await);
    }

    /// Waits until `take` finds what it looks for; none when it did not within `limit`.
    pub(crate) async fn wait<T>(&self, limit: Duration, mut take: impl FnMut(&mut Arrived) -> Option<T>) -> Option<T> {
        let search = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if let Some(found) = take(&mut self.arrived.lock().unwrap()) {
                    return found;
                }
                changed.await;
            }
        };
        tokio::time::timeout(limit, search).await.ok()
    }

    /// Runs `read` on what has arrived.
    pub(crate) fn with<T>(&self, read: impl FnOnce(&mut Arrived) -> T) -> T {
        read(&mut self.arrived.lock().unwrap())
    }
}

impl Arrived {
    fn take(&mut self, body: Bytes, bound: i64, names: &Names) {
        let mut answer = match pb::WatchResponse::decode(body) {
            Ok(answer) => answer,
            Err(error) => return self.violations.push(format!("not a WatchResponse: {error}")),
        };
        names.header(&mut answer.header);
        for event in &mut answer.events {
            event.kv.iter_mut().chain(&mut event.prev_kv).for_each(|kv| names.kv(kv));
        }
        let revision = answer.header.map_or(0, |header| header.revision);
        if revision > bound {
            self.violations.push(format!("revision {revision} when at most {bound} was reached: {answer:?}"));
        }
        if answer.created {
            self.rules.insert(answer.watch_id, Rules::default());
            self.created.push_back(answer);
        } else if answer.canceled {
            self.canceled.entry(answer.watch_id).or_default().push(answer);
        } else if answer.events.is_empty() && answer.watch_id == -1 {
            self.progress_all = self.progress_all.max(revision);
            self.progress.push_back(answer);
        } else if answer.events.is_empty() {
            let rules = self.rules.entry(answer.watch_id).or_default();
            rules.progress = rules.progress.max(revision);
        } else {
            self.take_events(answer, revision);
        }
    }

    fn take_events(&mut self, answer: pb::WatchResponse, revision: i64) {
        let rules = self.rules.entry(answer.watch_id).or_default();
        let progress = rules.progress;
        let revisions = || answer.events.iter().map(|event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision));
        let (first, last) = (revisions().next().unwrap_or(0), revisions().last().unwrap_or(0));
        let mut broken = Vec::new();
        if !revisions().is_sorted() || first < rules.last {
            broken.push("events out of order");
        }
        if first == rules.last && !rules.fragment {
            broken.push("a revision was split, or came twice");
        }
        if first <= progress {
            broken.push("an event after the progress that covers it");
        }
        if revision < last {
            broken.push("a header behind its events");
        }
        *rules = Rules { last, progress, fragment: answer.fragment };
        self.violations.extend(broken.into_iter().map(|rule| format!("{rule}: {answer:?}")));
        self.events.entry(answer.watch_id).or_default().extend(answer.events);
    }

    /// The latest revision in the events of `id`.
    pub(crate) fn last_revision(&self, id: i64) -> i64 {
        self.rules.get(&id).map_or(0, |rules| rules.last)
    }
}
