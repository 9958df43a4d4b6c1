//! One follower: frames after its cursor, and heartbeats where there are none.

use std::time::Instant;

use tailwater_api::tail as wire;
use tailwater_api::tail::resync::Reason;
use tailwater_eventlog::{Cursor, Fact, KeyRange, TailError};
use tonic::Status;

use super::{Inner, covers};
use crate::tail::codec::{cursor_out, fact_out, sealed};
use crate::tail::pieces::{PIECE_BYTES, Pieces};
use crate::tail::serving::{Gone, Sink, behind, bytes_of};
use crate::tail::topology::Reader;

/// Until the reader goes, or can't be served.
pub(super) fn serve(
    inner: &Inner,
    reader: &Reader,
    mut cursor: Cursor,
    ranges: Vec<KeyRange>,
    sink: &mut Sink<wire::FollowResponse>,
) -> Result<(), Gone> {
    let source = (inner.source)();
    let id = format!("{:x}", reader.id().0);
    tracing::info!(reader = id, revision = cursor.revision.0, "serving the tail to a reader");
    covers(&*source, &ranges).map_err(|status| sink.fail(status))?;
    // A relay that has no state yet could only let its reader wait.
    let begin = source.transfer_begin().map_err(|error| sink.fail(Status::unavailable(error.to_string())))?;
    sink.send(greeting(inner, begin, cursor))?;
    let mut heartbeat = Instant::now();
    loop {
        // First: a reader that does not take what it has gets nothing read for it.
        sink.ready()?;
        let frames = match source.follow(cursor, PIECE_BYTES, inner.config.heartbeat_interval) {
            Ok(frames) => frames,
            Err(TailError::Behind(_)) => return resync(Reason::Compacted, sink),
            Err(TailError::OtherHistory) => return resync(Reason::OtherHistory, sink),
            Err(TailError::Closed) => return Err(sink.fail(Status::unavailable("the tail has ended"))),
            Err(error @ TailError::Storage(_)) => return Err(sink.fail(Status::internal(error.to_string()))),
        };
        for frames in Pieces::new(&frames, &ranges, PIECE_BYTES) {
            let bytes = frames.iter().map(|frame| bytes_of(&frame.rows)).sum();
            sink.send_rows(wire::FollowResponse { frames, ..Default::default() }, bytes)?;
        }
        cursor = behind(cursor, &frames);
        reader.reached(cursor);
        // Also while frames come: they do not tell how old the core's last word is.
        if frames.is_empty() || heartbeat.elapsed() >= inner.config.heartbeat_interval {
            heartbeat = Instant::now();
            let heartbeat = Some(word(inner, cursor));
            sink.send(wire::FollowResponse { heartbeat, ..Default::default() })?;
        }
    }
}

/// What a reader hears first: the word of the core, and the leader as this source knows it. Another source may have
/// told the reader of a leader at a position that it has passed.
fn greeting(inner: &Inner, (at, facts): (Cursor, Vec<Fact>), cursor: Cursor) -> wire::FollowResponse {
    let facts = if at.history == cursor.history { facts } else { Vec::new() };
    let facts: Vec<_> = facts.iter().filter(|fact| matches!(fact, Fact::Leader(..))).map(fact_out).collect();
    let frame = wire::Frame { position: cursor.position.0, revision: cursor.revision.0, facts, ..Default::default() };
    let frames = if frame.facts.is_empty() { Vec::new() } else { vec![sealed(frame)] };
    wire::FollowResponse { frames, heartbeat: Some(word(inner, cursor)), resync: None }
}

fn word(inner: &Inner, cursor: Cursor) -> wire::Heartbeat {
    let word = (inner.word)();
    wire::Heartbeat {
        reached: Some(cursor_out(cursor)),
        path: word.path,
        core_age_ms: u64::try_from(word.age.as_millis()).unwrap_or(u64::MAX),
    }
}

fn resync(reason: Reason, sink: &mut Sink<wire::FollowResponse>) -> Result<(), Gone> {
    let resync = Some(wire::Resync { reason: reason.into() });
    sink.send(wire::FollowResponse { resync, ..Default::default() })
}
