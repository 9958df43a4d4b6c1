//! The connection to one of several sources, kept up by a task.

use std::time::{Duration, Instant};

use tailwater_api::tail as wire;
use tailwater_api::tail::tail_client::TailClient;
use tailwater_eventlog::{KeyRange, MemberId, Scope};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tonic::transport::Channel;

use super::codec::{MESSAGE_BYTES_MAX, PROTOCOL_VERSION};
use super::description::Description;
use super::metrics;
use crate::{Backoff, LinkConfig, connect};

/// A source that was good for so long is tried again without the pauses of the failures before.
const STABLE: Duration = Duration::from_secs(5);

/// Between two log lines about sources that can't be reached.
const TELL_INTERVAL: Duration = Duration::from_secs(30);

/// Between two looks at the others while a better source is wanted.
const SEEK_PAUSE: Duration = Duration::from_millis(500);

/// A connection that is up.
#[derive(Clone)]
pub(super) struct Connected {
    /// Grows with each connection.
    pub(super) number: u64,
    pub(super) url: String,
    pub(super) client: TailClient<Channel>,
}

/// Ends with the last reference.
pub(super) struct Uplink {
    connected: watch::Sender<Option<Connected>>,
    /// Number of the connection that a better one is looked for; 0: none is.
    unloved: watch::Sender<u64>,
    sources: usize,
    task: AbortHandle,
}

impl Uplink {
    pub(super) fn start(runtime: &Handle, urls: Vec<String>, config: LinkConfig, wishes: Wishes) -> Self {
        let (connected, unloved) = (watch::Sender::new(None), watch::Sender::new(0));
        let sources = urls.len();
        let keeper = Keeper {
            urls,
            config,
            wishes,
            connected: connected.clone(),
            unloved: unloved.subscribe(),
            at: 0,
            number: 0,
        };
        let task = runtime.spawn(keeper.run()).abort_handle();
        Self { connected, unloved, sources, task }
    }

    /// Whether there is another source to go to.
    pub(super) fn has_others(&self) -> bool {
        self.sources > 1
    }

    /// The connection, as soon as there is one. Cancel safe.
    pub(super) async fn connected(&self) -> Connected {
        let mut connected = self.connected.subscribe();
        match connected.wait_for(Option::is_some).await {
            Ok(connected) => connected.clone().expect("it was waited for"),
            // The sender is a part of this.
            Err(_) => std::future::pending().await,
        }
    }

    /// The connection, if it comes about within `timeout`.
    pub(super) async fn connected_within(&self, timeout: Duration) -> Option<Connected> {
        tokio::time::timeout(timeout, self.connected()).await.ok()
    }

    /// Whether this connection is the one of now.
    pub(super) fn is_current(&self, connected: &Connected) -> bool {
        self.connected.borrow().as_ref().is_some_and(|current| current.number == connected.number)
    }

    /// Whether another source would be better than that of this connection. As long as it would, others are looked at,
    /// and one that is better becomes the one of now. Until then there is this one, which is better than none.
    pub(super) fn seek(&self, connected: &Connected, reason: Option<&str>) {
        let wanted = reason.map_or(0, |_| connected.number);
        let is_new = self.unloved.send_if_modified(|unloved| std::mem::replace(unloved, wanted) != wanted);
        if is_new && let Some(reason) = reason {
            tracing::info!(source = connected.url, reason, "looking for a better source of the tail");
        }
    }

    /// Goes to the next source, unless this connection was left already.
    pub(super) fn leave(&self, left: &Connected, reason: &str) {
        let is_left = self.connected.send_if_modified(|connected| {
            let is_current = connected.as_ref().is_some_and(|current| current.number == left.number);
            if is_current {
                *connected = None;
            }
            is_current
        });
        if is_left {
            ::metrics::counter!(metrics::SOURCES_LEFT).increment(1);
            tracing::info!(source = left.url, reason, "leaving the source of the tail");
        }
    }
}

impl Drop for Uplink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A client for a connection, with this protocol's limits.
pub(super) fn client(channel: Channel) -> TailClient<Channel> {
    TailClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// Who reads, and what its sources must be able to do.
#[derive(Clone)]
pub(super) struct Wishes {
    /// A source whose path to the core leads through this node only knows what this node knows.
    pub(super) reader_id: MemberId,
    pub(super) cluster_id: u64,
    /// None: every key.
    pub(super) ranges: Vec<KeyRange>,
    /// A source that heard of the core longer ago is taken when there is no other.
    pub(super) core_age_max: Duration,
    /// A source that does not say what it is for so long is judged when it is followed.
    pub(super) answer_max: Duration,
}

/// What a source is worth.
#[derive(Debug, PartialEq, Eq)]
enum Worth {
    Good,
    /// When there is no other.
    Last(&'static str),
    Never(&'static str),
}

impl Wishes {
    /// Asked before anything else: a transfer is long, and the leader has others to serve.
    async fn judge(&self, mut client: TailClient<Channel>) -> Worth {
        let request = wire::DescribeRequest { protocol_version: PROTOCOL_VERSION, cluster_id: self.cluster_id };
        match tokio::time::timeout(self.answer_max, client.describe(request)).await {
            Ok(Ok(answer)) => self.worth(&Description::from_wire(answer.into_inner())),
            // It may be able to serve all the same.
            _ => Worth::Good,
        }
    }

    fn worth(&self, source: &Description) -> Worth {
        let Description { node, leader, .. } = source;
        if node.path.contains(&self.reader_id.0) {
            Worth::Never("its path to the core leads through this node")
        } else if !Scope::new(&node.ranges).covers_all(&self.ranges) {
            Worth::Never("it does not hold what is wanted here")
        } else if !node.ready || node.path.is_empty() || node.core_age > self.core_age_max {
            Worth::Last("it is not up to date")
        } else if leader.is_none() {
            Worth::Last("it knows no leader")
        } else if *leader == Some(node.id) {
            Worth::Last("it is the leader, which has enough to do")
        } else {
            Worth::Good
        }
    }
}

/// Connects to one source after the other. What is worth less than others may be is passed over, until all others were
/// tried.
struct Keeper {
    urls: Vec<String>,
    config: LinkConfig,
    wishes: Wishes,
    connected: watch::Sender<Option<Connected>>,
    unloved: watch::Receiver<u64>,
    /// Which of the urls is next.
    at: usize,
    /// Of the newest connection.
    number: u64,
}

impl Keeper {
    async fn run(mut self) {
        let mut backoff = Backoff::new(self.config.backoff.0, self.config.backoff.1);
        let mut told = None;
        // How many of the urls were tried since one was good.
        let mut tried = 0;
        loop {
            let url = self.urls[self.at].clone();
            self.at = (self.at + 1) % self.urls.len();
            tried += 1;
            match connect(&url, &self.config).await {
                Ok(channel) => {
                    let client = client(channel);
                    match self.wishes.judge(client.clone()).await {
                        Worth::Last(reason) if tried <= self.urls.len() && self.urls.len() > 1 => {
                            tracing::debug!(source = url, reason, "passing over a source of the tail");
                            continue;
                        }
                        Worth::Never(reason) => {
                            tracing::debug!(source = url, reason, "passing over a source of the tail");
                            // One by one they are as fast as connections are made.
                            tokio::time::sleep(backoff.pause()).await;
                            continue;
                        }
                        Worth::Good | Worth::Last(_) => tried = 0,
                    }
                    let since = Instant::now();
                    self.hold(url, client).await;
                    if since.elapsed() >= STABLE {
                        backoff.reset();
                    }
                }
                Err(error) if told.is_none_or(|told: Instant| told.elapsed() >= TELL_INTERVAL) => {
                    told = Some(Instant::now());
                    tracing::warn!(source = url, %error, "a source of the tail can't be reached");
                }
                Err(error) => tracing::debug!(source = url, %error, "a source of the tail can't be reached"),
            }
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    /// Until the source is left. While a better one is wanted, the others are looked at.
    async fn hold(&mut self, mut url: String, client: TailClient<Channel>) {
        self.give_out(&url, client);
        let mut left = self.connected.subscribe();
        // The sender is held by this task, so it does not end.
        let mut is_left = std::pin::pin!(async move { drop(left.wait_for(Option::is_none).await) });
        loop {
            let number = self.number;
            let mut unloved = self.unloved.clone();
            let better = async {
                // An error means that nobody reads any more; then this task ends with the uplink.
                if unloved.wait_for(|unloved| *unloved == number).await.is_err() {
                    std::future::pending::<()>().await;
                }
                let better = self.better_than(&url).await;
                if better.is_none() {
                    tokio::time::sleep(SEEK_PAUSE).await;
                }
                better
            };
            tokio::select! {
                () = &mut is_left => return,
                better = better => if let Some((at, client)) = better {
                    url.clone_from(&self.urls[at]);
                    self.at = (at + 1) % self.urls.len();
                    ::metrics::counter!(metrics::SOURCES_LEFT).increment(1);
                    tracing::info!(source = url, "going to a better source of the tail");
                    self.give_out(&url, client);
                },
            }
        }
    }

    fn give_out(&mut self, url: &str, client: TailClient<Channel>) {
        self.number += 1;
        tracing::debug!(source = url, "connected to a source of the tail");
        self.connected.send_replace(Some(Connected { number: self.number, url: url.to_owned(), client }));
    }

    /// The first of the others that is good.
    async fn better_than(&self, url: &str) -> Option<(usize, TailClient<Channel>)> {
        for (at, other) in self.urls.iter().enumerate().filter(|(_, other)| *other != url) {
            let Ok(channel) = connect(other, &self.config).await else { continue };
            let client = client(channel);
            if self.wishes.judge(client.clone()).await == Worth::Good {
                return Some((at, client));
            }
        }
        None
    }
}
