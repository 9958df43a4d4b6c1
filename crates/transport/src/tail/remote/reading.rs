//! Reading history at remote sources.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tailwater_api::tail as wire;
use tailwater_eventlog::{
    EventKind, HistoryChunk, HistoryError, HistoryEvent, HistoryPoint, KeyRange, Revision, StateChunk, StateQuery,
};
use tonic::{Code, Status};

use super::Shared;
use crate::tail::codec::{CodecError, PROTOCOL_VERSION, event_in, range_out};
use crate::tail::uplink::Connected;

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

pub(super) struct Read<'a> {
    pub(super) ranges: &'a [KeyRange],
    pub(super) from: HistoryPoint,
    pub(super) to: Revision,
    pub(super) with_prev: bool,
    pub(super) bytes_max: usize,
}

/// Why one attempt failed.
enum Failed {
    Compacted(Revision),
    Status(Status),
    Codec(CodecError),
    Silent,
}

impl From<Status> for Failed {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<CodecError> for Failed {
    fn from(error: CodecError) -> Self {
        Self::Codec(error)
    }
}

/// Events.
pub(super) async fn read(shared: &Shared, read: &Read<'_>) -> Result<HistoryChunk, HistoryError> {
    ask_around(shared, async |source| ask(shared, source, read).await).await
}

/// What was live at a revision.
pub(super) async fn state_at(shared: &Shared, query: &StateQuery) -> Result<StateChunk, HistoryError> {
    ask_around(shared, async |source| ask_state(shared, source, query).await).await
}

/// Asks one source after the other, for as long as a source may be silent: who waits for this would have to go elsewhere.
async fn ask_around<T>(shared: &Shared, ask: impl AsyncFn(&Connected) -> Result<T, Failed>) -> Result<T, HistoryError> {
    let mut reason = "no source can be reached".to_owned();
    let until = Instant::now() + shared.config.silence_max;
    while let Some(source) = shared.uplink.connected_within(until.saturating_duration_since(Instant::now())).await {
        match ask(&source).await {
            Ok(chunk) => return Ok(chunk),
            Err(Failed::Compacted(at)) => return Err(HistoryError::Compacted(at)),
            // It is only behind.
            Err(Failed::Status(status)) if status.code() == Code::OutOfRange => {
                status.message().clone_into(&mut reason);
            }
            Err(failed) => {
                reason = match failed {
                    Failed::Status(status) => status.message().to_owned(),
                    Failed::Codec(error) => error.to_string(),
                    Failed::Silent | Failed::Compacted(_) => "the source is silent".into(),
                };
                shared.uplink.leave(&source, &reason);
            }
        }
        if Instant::now() >= until {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(HistoryError::Unavailable(reason))
}

async fn ask(shared: &Shared, source: &Connected, read: &Read<'_>) -> Result<HistoryChunk, Failed> {
    let request = wire::HistoryRequest {
        protocol_version: PROTOCOL_VERSION,
        ranges: read.ranges.iter().map(range_out).collect(),
        from: read.from.revision.0,
        from_sub: read.from.sub,
        to: read.to.0,
        with_prev: read.with_prev,
        bytes_max: read.bytes_max as u64,
        cluster_id: shared.config.cluster_id,
        state: None,
    };
    let silence_max = shared.config.bulk_silence_max;
    let in_time = |_| Failed::Silent;
    let mut client = source.client.clone();
    let answer = tokio::time::timeout(silence_max, client.history(request)).await.map_err(in_time)??;
    let mut messages = answer.into_inner();
    let mut chunk = HistoryChunk { events: Vec::new(), next: None, compacted: Revision(0) };
    loop {
        let message = tokio::time::timeout(silence_max, messages.message()).await.map_err(in_time)??;
        let message = message.ok_or(CodecError::Missing("end"))?;
        add(&mut chunk, read, message.rows, message.previous_rows)?;
        let Some(end) = message.end else { continue };
        let compacted = Revision(end.compacted_revision);
        if end.compacted {
            return Err(Failed::Compacted(compacted));
        }
        chunk.compacted = compacted;
        chunk.next = (end.next != 0).then_some(HistoryPoint { revision: Revision(end.next), sub: end.next_sub });
        return match chunk.next {
            // A reader that is sent back would never come to an end.
            Some(next) if next <= read.from => Err(CodecError::Order(format!("history goes on at {next:?}")).into()),
            _ => Ok(chunk),
        };
    }
}

async fn ask_state(shared: &Shared, source: &Connected, query: &StateQuery) -> Result<StateChunk, Failed> {
    let state = wire::StatePart {
        after: query.after.clone().unwrap_or_default(),
        keys_max: query.keys_max as u64,
        count: query.count,
    };
    let request = wire::HistoryRequest {
        protocol_version: PROTOCOL_VERSION,
        ranges: vec![range_out(&query.range)],
        from: query.at.0,
        from_sub: 0,
        to: query.at.0,
        with_prev: false,
        bytes_max: query.bytes_max as u64,
        cluster_id: shared.config.cluster_id,
        state: Some(state),
    };
    let silence_max = shared.config.bulk_silence_max;
    let in_time = |_| Failed::Silent;
    let mut client = source.client.clone();
    let answer = tokio::time::timeout(silence_max, client.history(request)).await.map_err(in_time)??;
    let mut messages = answer.into_inner();
    let mut chunk = StateChunk::default();
    loop {
        let message = tokio::time::timeout(silence_max, messages.message()).await.map_err(in_time)??;
        let message = message.ok_or(CodecError::Missing("end"))?;
        add_live(&mut chunk, query, message.rows)?;
        let Some(end) = message.end else { continue };
        if end.compacted {
            return Err(Failed::Compacted(Revision(end.compacted_revision)));
        }
        chunk.rest = usize::try_from(end.rest).map_err(|_| CodecError::Unknown("rest", end.rest))?;
        chunk.resume_after = Some(end.resume_after).filter(|after| !after.is_empty());
        // A reader that is sent back would never come to an end.
        let last = chunk.events.last().map(|event| event.key());
        return match &chunk.resume_after {
            Some(after) if last.is_some_and(|last| last != after.as_ref()) => {
                Err(CodecError::Order("a state goes on at another key".into()).into())
            }
            Some(_) if last.is_none() && query.keys_max > 0 => {
                Err(CodecError::Order("a state goes on without a key".into()).into())
            }
            _ => Ok(chunk),
        };
    }
}

fn add_live(chunk: &mut StateChunk, query: &StateQuery, rows: Vec<Bytes>) -> Result<(), CodecError> {
    for (at, row) in rows.into_iter().enumerate() {
        let event = event_in(at, row)?;
        let last = chunk.events.last().map(|event| event.key()).or(query.after.as_ref().map(Bytes::as_ref));
        let is_next = event.kind() == EventKind::Put
            && event.revision() <= query.at
            && query.range.contains(event.key())
            && chunk.events.len() < query.keys_max
            && last.is_none_or(|last| last < event.key());
        if !is_next {
            return Err(CodecError::Order(format!("a key of the state at {}", query.at)));
        }
        chunk.events.push(Arc::new(event));
    }
    Ok(())
}

fn add(chunk: &mut HistoryChunk, read: &Read<'_>, rows: Vec<Bytes>, prevs: Vec<Bytes>) -> Result<(), CodecError> {
    let mut prevs = prevs.into_iter();
    for (at, row) in rows.into_iter().enumerate() {
        let event = event_in(at, row)?;
        let prev = prevs.next().filter(|prev| !prev.is_empty());
        let prev = prev.map(|prev| event_in(at, prev)).transpose()?;
        let place = HistoryPoint { revision: event.revision(), sub: event.sub() };
        let last = chunk.events.last().map(|last| (last.event.revision(), last.event.sub()));
        let is_next = place >= read.from
            && place.revision <= read.to
            && last.is_none_or(|last| last < (place.revision, place.sub))
            && prev.as_ref().is_none_or(|prev| prev.key() == event.key() && prev.revision() < event.revision());
        if !is_next {
            return Err(CodecError::Order(format!("history at {place:?}")));
        }
        chunk.events.push(HistoryEvent { event: Arc::new(event), prev: prev.map(Arc::new) });
    }
    Ok(())
}
