//! Copying another member's state.

use std::time::{Duration, Instant};

use tailwater_api::tail as wire;
use tailwater_eventlog::{CopyStep, MemberId, Position, Revision, Staged, Staging, StateRow, StorageError};
use tonic::{Status, Streaming};

use super::codec::{PROTOCOL_VERSION, numbers_in, point_in, point_out};
use super::serving::bytes_of;
use super::{metrics, uplink};
use crate::{Backoff, ConnectError, LinkConfig, connect};

/// How a member copies.
#[derive(Clone, Debug)]
pub struct CopyConfig {
    /// This member.
    pub reader_id: MemberId,
    /// Of this member: a source of another cluster is not copied. 0: not checked.
    pub cluster_id: u64,
    /// A source without a message for so long is left. Default 60 s.
    pub silence_max: Duration,
    /// Attempts without any progress after which the copy is given up. Default 20.
    pub attempts_max: usize,
    /// Between two log lines about the progress. Default 5 s.
    pub report_interval: Duration,
    /// Connections.
    pub link: LinkConfig,
}

impl CopyConfig {
    /// With the defaults.
    #[must_use]
    pub fn new(reader_id: MemberId) -> Self {
        Self {
            reader_id,
            cluster_id: 0,
            silence_max: Duration::from_secs(60),
            attempts_max: 20,
            report_interval: Duration::from_secs(5),
            link: LinkConfig::default(),
        }
    }
}

/// There is no copy. What was received stays where it is; the next copy goes on from there if it can.
#[derive(Debug, thiserror::Error)]
pub enum CopyFailed {
    /// No source could give it; the last reason.
    #[error("no source gives a copy of the state: {0}")]
    Unavailable(String),
    /// The own storage failed.
    #[error(transparent)]
    Storage(StorageError),
}

/// Why one attempt ended.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("{0}")]
    Status(#[from] Status),
    #[error("the source is silent")]
    Silent,
    #[error("the source sends what it must not: {0}")]
    Source(String),
    #[error(transparent)]
    Storage(StorageError),
}

/// Copies the state of one of the sources, until its position is at least `position`, and opens it: ready for
/// [`EventLog::replace`](tailwater_eventlog::EventLog::replace). A connection that breaks is taken up where it was, first
/// at the same source, then at the next. Dropping the future ends it; what was received is kept.
///
/// # Errors
/// See [`CopyFailed`].
pub async fn copy_member_state(
    urls: &[String],
    staging: Staging,
    position: Position,
    config: &CopyConfig,
) -> Result<Staged, CopyFailed> {
    let mut copy = Copy { staging: Some(staging), position, config, received: 0, reported: Instant::now() };
    let mut backoff = Backoff::new(config.link.backoff.0, config.link.backoff.1);
    let mut reason = "none is known".to_owned();
    let mut failures = 0;
    // Each twice: most breaks are over when one looks again.
    for url in urls.iter().flat_map(|url| [url, url]).cycle() {
        let before = copy.received;
        match copy.attempt(url).await {
            Ok(()) => return copy.finish().await,
            Err(Broken::Storage(error)) => return Err(CopyFailed::Storage(error)),
            Err(broken) => {
                tracing::warn!(source = url, error = %broken, "the copy of the state has broken off");
                reason = format!("{url}: {broken}");
            }
        }
        if copy.received > before {
            failures = 0;
            backoff.reset();
        }
        failures += 1;
        if failures >= config.attempts_max {
            break;
        }
        tokio::time::sleep(backoff.pause()).await;
    }
    Err(CopyFailed::Unavailable(reason))
}

struct Copy<'a> {
    /// Away only while a thread works on it.
    staging: Option<Staging>,
    position: Position,
    config: &'a CopyConfig,
    /// Bytes of rows.
    received: u64,
    reported: Instant,
}

impl Copy<'_> {
    /// One connection, until everything has come.
    async fn attempt(&mut self, url: &str) -> Result<(), Broken> {
        let channel = connect(url, &self.config.link).await?;
        let request = self.request();
        let mut client = uplink::client(channel);
        let silence_max = self.config.silence_max;
        let answer = tokio::time::timeout(silence_max, client.copy(request)).await.map_err(|_| Broken::Silent)??;
        let mut messages = answer.into_inner();
        let first = self.next(&mut messages).await?;
        let begin = first.begin.as_ref().map(point_in).ok_or_else(|| Broken::Source("no beginning".into()))?;
        self.staged(move |staging| staging.begin(begin).map(drop)).await?;
        loop {
            let message = self.next(&mut messages).await?;
            if message.done {
                return Ok(());
            }
            let state_bytes: usize = message.state.iter().map(|row| row.key.len() + row.value.len()).sum();
            let bytes = bytes_of(&message.base) + bytes_of(&message.log) + state_bytes;
            self.staged(move |staging| add(staging, message)).await?;
            self.progress(url, bytes);
        }
    }

    fn request(&self) -> wire::CopyRequest {
        let staging = self.staging();
        let request = wire::CopyRequest {
            protocol_version: PROTOCOL_VERSION,
            reader_id: self.config.reader_id.0,
            cluster_id: self.config.cluster_id,
            position: self.position.0,
            point: Some(point_out(staging.point())),
            ..Default::default()
        };
        match staging.next_step() {
            CopyStep::Base { after } => wire::CopyRequest { base_after: after.unwrap_or_default(), ..request },
            CopyStep::Log { after: (Revision(log_revision), log_sub) } => {
                wire::CopyRequest { base_done: true, log_revision, log_sub, ..request }
            }
        }
    }

    async fn next(&self, messages: &mut Streaming<wire::CopyResponse>) -> Result<wire::CopyResponse, Broken> {
        let message = tokio::time::timeout(self.config.silence_max, messages.message()).await;
        let message = message.map_err(|_| Broken::Silent)??;
        message.ok_or_else(|| Broken::Source("the copy has ended early".into()))
    }

    fn staging(&self) -> &Staging {
        self.staging.as_ref().expect("no thread works on it")
    }

    /// Works on the copy where blocking is allowed.
    async fn staged(
        &mut self,
        work: impl FnOnce(&mut Staging) -> Result<(), StorageError> + Send + 'static,
    ) -> Result<(), Broken> {
        let mut staging = self.staging.take().expect("no thread works on it");
        let work = tokio::task::spawn_blocking(move || {
            let done = work(&mut staging);
            (staging, done)
        });
        let (staging, done) = match work.await {
            Ok(worked) => worked,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        self.staging = Some(staging);
        done.map_err(|error| match error {
            // Rows are judged before they are written.
            StorageError::Row { .. } | StorageError::Inconsistent(_) => Broken::Source(error.to_string()),
            StorageError::Engine(_) | StorageError::Format { .. } => Broken::Storage(error),
        })
    }

    fn progress(&mut self, url: &str, bytes: usize) {
        self.received += bytes as u64;
        ::metrics::counter!(metrics::COPIED_BYTES).increment(bytes as u64);
        if self.reported.elapsed() >= self.config.report_interval {
            self.reported = Instant::now();
            let (bytes, revision) = (self.received, self.staging().complete().0);
            tracing::info!(source = url, bytes, revision, "copying the state of another member");
        }
    }

    /// Opens what was copied; reads it all.
    async fn finish(mut self) -> Result<Staged, CopyFailed> {
        let staging = self.staging.take().expect("no thread works on it");
        tracing::info!(bytes = self.received, "the state of another member is copied; opening it");
        match tokio::task::spawn_blocking(move || staging.finish()).await {
            Ok(staged) => staged.map_err(CopyFailed::Storage),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

fn add(staging: &mut Staging, message: wire::CopyResponse) -> Result<(), StorageError> {
    if message.base_done || !message.base.is_empty() {
        staging.add_base(&message.base, message.base_done)?;
    }
    if message.complete > 0 {
        staging.add_log(&message.log, Revision(message.complete))?;
    }
    if let Some(numbers) = &message.numbers {
        let history = staging.point().history;
        staging.begin_state(numbers_in(history, numbers))?;
    }
    let rows = message.state.into_iter();
    let rows: Vec<StateRow> = rows.map(|row| StateRow { key: row.key, value: row.value }).collect();
    if rows.is_empty() { Ok(()) } else { staging.add_state(&rows) }
}
