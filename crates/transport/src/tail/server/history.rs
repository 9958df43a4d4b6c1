//! One read of history.

use bytes::Bytes;
use tailwater_api::tail as wire;
use tailwater_eventlog::{
    Event, HistoryChunk, HistoryError, HistoryPoint, KeyRange, Revision, Source, StateChunk, StateQuery,
};
use tonic::Status;

use super::{Inner, covers};
use crate::tail::codec::range_in;
use crate::tail::pieces::PIECE_BYTES;
use crate::tail::serving::{Gone, Sink, bytes_of};

/// A reader that wants more asks again: so much is in memory at a time for each.
const READ_BYTES_MAX: u64 = 8 << 20;

pub(super) fn serve(
    inner: &Inner,
    request: wire::HistoryRequest,
    sink: &mut Sink<wire::HistoryResponse>,
) -> Result<(), Gone> {
    let source = (inner.source)();
    let ranges: Vec<KeyRange> = request.ranges.into_iter().map(range_in).collect();
    covers(&*source, &ranges).map_err(|status| sink.fail(status))?;
    let from = HistoryPoint { revision: Revision(request.from), sub: request.from_sub };
    let to = Revision(request.to);
    // What this source does not have yet would be missing without a word.
    if source.transfer_end() < to {
        return Err(sink.fail(Status::out_of_range("this source has not reached the end of what is asked")));
    }
    let bytes_max = usize::try_from(request.bytes_max.min(READ_BYTES_MAX)).unwrap_or(usize::MAX);
    // Given back before the reader is waited for.
    let turn = sink.turn(&inner.history_turns)?;
    let sent = match request.state {
        Some(part) => match ranges.as_slice() {
            [range] => state_at(&*source, range, from.revision, bytes_max, part).map(|chunk| {
                drop(turn);
                send_state(chunk, sink)
            }),
            _ => return Err(sink.fail(Status::invalid_argument("a state is read of one range"))),
        },
        None => source.read(&ranges, from, to, request.with_prev, bytes_max).map(|chunk| {
            drop(turn);
            send(chunk, request.with_prev, sink)
        }),
    };
    let end = match sent {
        Ok(end) => end?,
        Err(HistoryError::Compacted(at)) => {
            wire::HistoryEnd { compacted_revision: at.0, compacted: true, ..Default::default() }
        }
        Err(error @ HistoryError::Storage(_)) => return Err(sink.fail(Status::internal(error.to_string()))),
        Err(error @ HistoryError::Unavailable(_)) => return Err(sink.fail(Status::unavailable(error.to_string()))),
    };
    sink.send(wire::HistoryResponse { end: Some(end), ..Default::default() })
}

fn state_at(
    source: &dyn Source,
    range: &KeyRange,
    at: Revision,
    bytes_max: usize,
    part: wire::StatePart,
) -> Result<StateChunk, HistoryError> {
    source.state_at(&StateQuery {
        range: range.clone(),
        after: Some(part.after).filter(|after| !after.is_empty()),
        at,
        keys_max: usize::try_from(part.keys_max).unwrap_or(usize::MAX),
        bytes_max,
        count: part.count,
    })
}

fn send_state(chunk: StateChunk, sink: &mut Sink<wire::HistoryResponse>) -> Result<wire::HistoryEnd, Gone> {
    let mut message = wire::HistoryResponse::default();
    let mut bytes = 0;
    for event in chunk.events {
        let row = Event::to_row(&event);
        bytes += row.len();
        message.rows.push(row.into());
        if bytes >= PIECE_BYTES {
            sink.send_rows(std::mem::take(&mut message), std::mem::take(&mut bytes))?;
        }
    }
    sink.send_rows(message, bytes)?;
    Ok(wire::HistoryEnd {
        resume_after: chunk.resume_after.unwrap_or_default(),
        rest: chunk.rest as u64,
        ..Default::default()
    })
}

fn send(
    chunk: HistoryChunk,
    with_prev: bool,
    sink: &mut Sink<wire::HistoryResponse>,
) -> Result<wire::HistoryEnd, Gone> {
    let mut message = wire::HistoryResponse::default();
    let mut bytes = 0;
    for event in chunk.events {
        message.rows.push(event.event.to_row().into());
        if with_prev {
            message.previous_rows.push(event.prev.map_or_else(Bytes::new, |prev| prev.to_row().into()));
        }
        bytes += event.event.bytes().len() + message.previous_rows.last().map_or(0, Bytes::len);
        if bytes >= PIECE_BYTES {
            let full = std::mem::take(&mut message);
            sink.send_rows(full, std::mem::take(&mut bytes))?;
        }
    }
    let left = bytes_of(&message.rows);
    sink.send_rows(message, left)?;
    let next = chunk.next.unwrap_or(HistoryPoint { revision: Revision(0), sub: 0 });
    Ok(wire::HistoryEnd {
        compacted_revision: chunk.compacted.0,
        compacted: false,
        next: next.revision.0,
        next_sub: next.sub,
        ..Default::default()
    })
}
