//! A transfer from remote sources: begun at one, resumed at that or another by key when a stream breaks.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tailwater_api::tail as wire;
use tailwater_api::tail::resync::Reason;
use tailwater_eventlog::{Cursor, Event, Fact, KeyRange, LiveChunk, Revision, SourceError};
use tonic::Streaming;

use super::Shared;
use crate::tail::codec::{CodecError, PROTOCOL_VERSION, cursor_in, cursor_out, event_in, fact_in, range_out};
use crate::tail::metrics;
use crate::tail::serving::{bytes_of, is_next_row};
use crate::tail::uplink::Connected;

/// How long one call waits; then its caller looks whether it still wants to.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);

/// The state between two calls.
#[derive(Default)]
pub(super) struct Transferring {
    stream: Option<Stream>,
    /// B, once a transfer has begun.
    begin: Option<Cursor>,
    /// The highest that any source had reached when it sent rows.
    reached: Revision,
}

struct Stream {
    source: Connected,
    /// What was asked for.
    range: KeyRange,
    messages: Streaming<wire::TransferResponse>,
    /// The last key that was handed out.
    last: Option<Bytes>,
    heard: Instant,
}

fn unavailable(reason: impl ToString) -> SourceError {
    SourceError::Unavailable(reason.to_string())
}

impl Transferring {
    pub(super) fn reached(&self) -> Revision {
        self.reached
    }

    /// Begins anew, whatever was before.
    pub(super) async fn begin(&mut self, shared: &Shared) -> Result<(Cursor, Vec<Fact>), SourceError> {
        *self = Self::default();
        shared.transferred_rows.store(0, Ordering::Relaxed);
        shared.transferred_bytes.store(0, Ordering::Relaxed);
        note(shared);
        // What its reader asks for first, as a rule.
        let range = shared.config.ranges.first().cloned().unwrap_or_else(KeyRange::all);
        let (stream, first) = open(shared, None, &range, None).await?;
        let at = first.at.as_ref().map(cursor_in).ok_or_else(|| broken(shared, &stream, CodecError::Missing("at")))?;
        let facts: Result<Vec<Fact>, _> = first.facts.into_iter().map(fact_in).collect();
        let facts = facts.map_err(|error| broken(shared, &stream, error))?;
        (self.stream, self.begin, self.reached) = (Some(stream), Some(at), at.revision);
        Ok((at, facts))
    }

    /// The next rows behind `after` that lie in `range`.
    pub(super) async fn chunk(
        &mut self,
        shared: &Shared,
        range: &KeyRange,
        after: Option<&Bytes>,
    ) -> Result<LiveChunk, SourceError> {
        let begin = self.begin.ok_or_else(|| SourceError::Restart("no transfer has begun".into()))?;
        // What a failure leaves behind does not go on.
        let goes_on = |stream: &Stream| stream.range == *range && stream.last.as_ref() == after;
        let mut stream = match self.stream.take().filter(goes_on) {
            Some(stream) => stream,
            None => open(shared, Some(begin), range, after).await?.0,
        };
        loop {
            let message = match tokio::time::timeout(CALL_TIMEOUT, stream.messages.message()).await {
                Ok(Ok(Some(message))) => message,
                Ok(Ok(None)) => return Err(left(shared, &stream, "the transfer has broken off")),
                Ok(Err(status)) => return Err(left(shared, &stream, status.message())),
                Err(_) if stream.heard.elapsed() < shared.config.bulk_silence_max => {
                    self.stream = Some(stream);
                    return Err(unavailable("the source takes its time"));
                }
                Err(_) => return Err(left(shared, &stream, "the source is silent")),
            };
            stream.heard = Instant::now();
            self.reached = self.reached.max(Revision(message.reached));
            count(shared, &message.rows);
            let mut chunk = LiveChunk::default();
            for (at, row) in message.rows.into_iter().enumerate() {
                let event = event_in(at, row).map_err(|error| broken(shared, &stream, error))?;
                let last = chunk.events.last().map(|last: &Arc<Event>| last.key()).or(stream.last.as_deref());
                if !is_next_row(&event, last) || !range.contains(event.key()) {
                    let key = event.key().escape_ascii().to_string();
                    return Err(broken(shared, &stream, CodecError::Order(format!("live key {key}"))));
                }
                chunk.events.push(Arc::new(event));
            }
            if message.done {
                return Ok(chunk);
            }
            if let Some(last) = chunk.events.last() {
                stream.last = Some(Bytes::copy_from_slice(last.key()));
                chunk.resume_after.clone_from(&stream.last);
                self.stream = Some(stream);
                return Ok(chunk);
            }
        }
    }
}

/// Counts rows that have come.
fn count(shared: &Shared, rows: &[Bytes]) {
    let bytes = bytes_of(rows);
    shared.transferred_rows.fetch_add(rows.len() as u64, Ordering::Relaxed);
    shared.transferred_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    note(shared);
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floating point; 2^53 is beyond what they show")]
fn note(shared: &Shared) {
    ::metrics::gauge!(metrics::TRANSFERRED_ROWS).set(shared.transferred_rows.load(Ordering::Relaxed) as f64);
    ::metrics::gauge!(metrics::TRANSFERRED_BYTES).set(shared.transferred_bytes.load(Ordering::Relaxed) as f64);
}

/// Opens a stream and takes its first message.
async fn open(
    shared: &Shared,
    resume_at: Option<Cursor>,
    range: &KeyRange,
    after: Option<&Bytes>,
) -> Result<(Stream, wire::TransferResponse), SourceError> {
    let source = shared.uplink.connected_within(CALL_TIMEOUT).await;
    let mut source = source.ok_or_else(|| unavailable("no source can be reached"))?;
    let request = wire::TransferRequest {
        protocol_version: PROTOCOL_VERSION,
        reader_id: shared.config.reader_id.0,
        // Not a range at all is what a source is asked for that knows of none.
        ranges: Some(range).filter(|range| **range != KeyRange::all()).map(range_out).into_iter().collect(),
        resume_at: resume_at.map(cursor_out),
        resume_after: after.cloned().unwrap_or_default(),
        cluster_id: shared.config.cluster_id,
    };
    let opening = async {
        let mut messages = source.client.transfer(request).await?.into_inner();
        let first = messages.message().await?;
        Ok::<_, tonic::Status>((messages, first))
    };
    let opened = tokio::time::timeout(shared.config.silence_max, opening).await;
    let (messages, first) = match opened {
        Ok(Ok((messages, Some(first)))) => (messages, first),
        Ok(Ok((_, None))) => return Err(left_source(shared, &source, "the transfer has ended at once")),
        Ok(Err(status)) => return Err(left_source(shared, &source, status.message())),
        Err(_) => return Err(left_source(shared, &source, "the source does not answer")),
    };
    if let Some(resync) = first.resync {
        return Err(SourceError::Restart(match resync.reason() {
            Reason::OtherHistory => "the source has another history".into(),
            Reason::Compacted | Reason::Unknown => "the source has no log any more where it began".into(),
        }));
    }
    let stream = Stream { source, range: range.clone(), messages, last: after.cloned(), heard: Instant::now() };
    Ok((stream, first))
}

fn left(shared: &Shared, stream: &Stream, reason: &str) -> SourceError {
    left_source(shared, &stream.source, reason)
}

fn left_source(shared: &Shared, source: &Connected, reason: &str) -> SourceError {
    shared.uplink.leave(source, reason);
    unavailable(reason)
}

fn broken(shared: &Shared, stream: &Stream, error: CodecError) -> SourceError {
    tracing::error!(source = stream.source.url, %error, "a source sends what it must not");
    left(shared, stream, &error.to_string())
}
