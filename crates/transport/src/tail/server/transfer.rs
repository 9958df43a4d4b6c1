//! One transfer: the live keys in key order.

use std::time::Duration;

use bytes::Bytes;
use tailwater_api::tail as wire;
use tailwater_api::tail::resync::Reason;
use tailwater_eventlog::{Cursor, Source, SourceError};
use tonic::Status;

use super::{Hold, Inner, covers};
use crate::tail::codec::{cursor_in, cursor_out, fact_out, range_in};
use crate::tail::pieces::PIECE_BYTES;
use crate::tail::serving::{Gone, Sink, bytes_of, ranges_left};

/// Between two looks whether a source has come to where a resumed transfer began, and how many.
const BEHIND_PAUSE: Duration = Duration::from_millis(50);
const BEHIND_LOOKS: u32 = 40;

pub(super) fn serve(
    inner: &Inner,
    request: wire::TransferRequest,
    sink: &mut Sink<wire::TransferResponse>,
) -> Result<(), Gone> {
    let source = (inner.source)();
    let hold = inner.log.as_ref().map(|log| Hold::take(log, &inner.config));
    let ranges: Vec<_> = request.ranges.into_iter().map(range_in).collect();
    covers(&*source, &ranges).map_err(|status| sink.fail(status))?;
    let resume = request.resume_at.as_ref().map(cursor_in);
    let mut after = resume.and(Some(request.resume_after).filter(|after| !after.is_empty()));
    let begin = match resume {
        None => begin(&*source, sink)?,
        Some(at) => resumed(inner, &*source, at, sink)?,
    };
    sink.send(begin)?;
    for range in ranges_left(&ranges, after.as_ref()) {
        loop {
            let chunk = source.transfer(&range, after.as_ref(), PIECE_BYTES).map_err(|error| failed(error, sink))?;
            let last = chunk.events.last().map(|event| Bytes::copy_from_slice(event.key()));
            let rows: Vec<Bytes> = chunk.events.iter().map(|event| event.to_row().into()).collect();
            // Asked after the rows were read.
            let reached = source.transfer_end().0;
            let bytes = bytes_of(&rows);
            sink.send_rows(wire::TransferResponse { rows, reached, ..Default::default() }, bytes)?;
            if let Some(hold) = &hold {
                hold.renew();
            }
            after = last.or(after);
            match chunk.resume_after {
                Some(resume_after) => after = Some(resume_after),
                None => break,
            }
        }
    }
    let reached = source.transfer_end().0;
    sink.send(wire::TransferResponse { reached, done: true, ..Default::default() })?;
    if let Some(hold) = hold {
        // Its reader follows next, from where the transfer began.
        hold.linger();
    }
    Ok(())
}

fn begin(source: &dyn Source, sink: &mut Sink<wire::TransferResponse>) -> Result<wire::TransferResponse, Gone> {
    let (at, facts) = source.transfer_begin().map_err(|error| failed(error, sink))?;
    Ok(wire::TransferResponse {
        at: Some(cursor_out(at)),
        facts: facts.iter().map(fact_out).collect(),
        ..Default::default()
    })
}

/// A transfer that began elsewhere goes on here only when this source is not behind where it began, so that no row is
/// older than that, and still has the log from there on.
fn resumed(
    inner: &Inner,
    source: &dyn Source,
    at: Cursor,
    sink: &mut Sink<wire::TransferResponse>,
) -> Result<wire::TransferResponse, Gone> {
    for _ in 0..BEHIND_LOOKS {
        let (here, _) = source.transfer_begin().map_err(|error| failed(error, sink))?;
        let folded = inner.log.as_ref().map(|log| log.state().fold_point);
        if here.history != at.history || folded.is_some_and(|folded| folded > at.revision) {
            let reason = if here.history == at.history { Reason::Compacted } else { Reason::OtherHistory };
            let resync = Some(wire::Resync { reason: reason.into() });
            sink.send(wire::TransferResponse { resync, ..Default::default() })?;
            return Err(Gone);
        }
        if here.position >= at.position && source.transfer_end() >= at.revision {
            return Ok(wire::TransferResponse { at: Some(cursor_out(at)), ..Default::default() });
        }
        sink.sleep(BEHIND_PAUSE)?;
    }
    Err(sink.fail(Status::unavailable("this source is behind where the transfer began")))
}

fn failed(error: SourceError, sink: &mut Sink<wire::TransferResponse>) -> Gone {
    sink.fail(match error {
        SourceError::Unavailable(_) | SourceError::Restart(_) => Status::unavailable(error.to_string()),
        SourceError::Storage(_) => Status::internal(error.to_string()),
    })
}
