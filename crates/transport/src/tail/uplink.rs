//! The connection to one of several sources, kept up by a task.

use std::time::{Duration, Instant};

use tailwater_api::tail::tail_client::TailClient;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tonic::transport::Channel;

use super::codec::MESSAGE_BYTES_MAX;
use super::metrics;
use crate::{Backoff, LinkConfig, connect};

/// A source that was good for so long is tried again without the pauses of the failures before.
const STABLE: Duration = Duration::from_secs(5);

/// Between two log lines about sources that can't be reached.
const TELL_INTERVAL: Duration = Duration::from_secs(30);

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
    sources: usize,
    task: AbortHandle,
}

impl Uplink {
    pub(super) fn start(runtime: &Handle, urls: Vec<String>, config: LinkConfig) -> Self {
        let connected = watch::Sender::new(None);
        let sources = urls.len();
        let task = runtime.spawn(keep(urls, config, connected.clone())).abort_handle();
        Self { connected, sources, task }
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

async fn keep(urls: Vec<String>, config: LinkConfig, connected: watch::Sender<Option<Connected>>) {
    let mut backoff = Backoff::new(config.backoff.0, config.backoff.1);
    let (mut number, mut told) = (0, None);
    for url in urls.iter().cycle() {
        match connect(url, &config).await {
            Ok(channel) => {
                number += 1;
                tracing::debug!(source = url, "connected to a source of the tail");
                let since = Instant::now();
                let mut left = connected.subscribe();
                connected.send_replace(Some(Connected { number, url: url.clone(), client: client(channel) }));
                // The sender is held by this task, so it does not end.
                drop(left.wait_for(Option::is_none).await);
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
