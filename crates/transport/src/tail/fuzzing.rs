//! What must hold of messages of the tail, whatever bytes come.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use tailwater_api::tail as wire;
use tailwater_eventlog::{
    Cursor, Envelope, Event, EventKind, Fact, Frame, HistoryId, LeaseId, Position, Revision, Term,
};

use super::codec::{CodecError, fact_in, fact_out, sealed};
use super::description::Description;
use super::pieces::{Assembly, PIECE_BYTES, Pieces};

/// Where a reader of [`frames`] stands before.
const BEGIN: Cursor = Cursor { history: HistoryId(5), revision: Revision(1), position: Position(1) };
const TERM: Term = Term(1);
const ROW_CHECKSUM_BYTES: usize = 4;

/// A message for a follower. Of the first byte, bit 0 says that checksums are made to fit, bit 1 that the reader has ranges.
/// What is put together survives being cut into other pieces. `true` when it was.
///
/// # Panics
/// It does not.
#[must_use]
pub fn frames(data: &[u8]) -> bool {
    let Some((&flags, rest)) = data.split_first() else { return false };
    let Ok(message) = wire::FollowResponse::decode(rest) else { return false };
    let is_whole = flags & 2 == 0;
    let frames = message.frames.into_iter();
    let frames = if flags & 1 == 1 { frames.map(resealed).collect() } else { frames.collect() };
    let mut assembly = Assembly::new(BEGIN, is_whole, TERM);
    let Ok(found) = assembly.add(frames) else { return false };
    check_order(&found);
    for piece_bytes in [1, 64, PIECE_BYTES] {
        let mut again = Assembly::new(BEGIN, is_whole, TERM);
        let mut frames = Vec::new();
        for piece in Pieces::new(&found, &[], piece_bytes) {
            let piece = wire::FollowResponse { frames: piece, ..Default::default() }.encode_to_vec();
            let piece = wire::FollowResponse::decode(piece.as_slice()).expect("just encoded");
            frames.extend(again.add(piece.frames).expect("pieces of whole frames"));
        }
        assert_eq!(content(&frames), content(&found), "pieces of {piece_bytes} bytes");
        assert_eq!((again.cursor(), again.term()), (assembly.cursor(), assembly.term()));
    }
    !found.is_empty()
}

fn check_order(frames: &[Arc<Frame>]) {
    let mut last = (BEGIN.revision, u32::MAX);
    let mut reached = (BEGIN.position, BEGIN.revision);
    for frame in frames {
        assert!(frame.position >= reached.0 && frame.revision >= reached.1, "{frame:?} behind {reached:?}");
        reached = (frame.position, frame.revision);
        for event in &frame.events {
            let next = (event.revision(), event.sub());
            assert!(next > last && next.0 <= frame.revision, "{next:?} behind {last:?} in {frame:?}");
            last = next;
        }
    }
}

fn content(frames: &[Arc<Frame>]) -> (Vec<Arc<Event>>, Vec<Fact>) {
    let events = frames.iter().flat_map(|frame| frame.events.iter().cloned()).collect();
    (events, frames.iter().flat_map(|frame| frame.facts.iter().cloned()).collect())
}

/// With the checksums that belong to its rows and to itself.
fn resealed(mut frame: wire::Frame) -> wire::Frame {
    for row in &mut frame.rows {
        let Some(body_len) = row.len().checked_sub(ROW_CHECKSUM_BYTES) else { continue };
        let body = &row[..body_len];
        *row = [body, &crc32c::crc32c(body).to_le_bytes()].concat().into();
    }
    sealed(frame)
}

/// What a node tells of itself and its readers.
///
/// # Panics
/// It is another when it is told again.
#[must_use]
pub fn description(data: &[u8]) -> bool {
    let Ok(message) = wire::DescribeResponse::decode(data) else { return false };
    let found = Description::from_wire(message);
    let again = wire::DescribeResponse::decode(found.to_wire().encode_to_vec().as_slice()).expect("just encoded");
    assert_eq!(Description::from_wire(again), found);
    true
}

/// A fact.
///
/// # Panics
/// It is another when it is told again.
#[must_use]
pub fn fact(data: &[u8]) -> bool {
    let found: Result<Fact, CodecError> = match wire::Fact::decode(data) {
        Ok(message) => fact_in(message),
        Err(_) => return false,
    };
    found.is_ok_and(|found| {
        assert_eq!(fact_in(fact_out(&found)).expect("just made"), found);
        true
    })
}

/// Messages as a source sends them, as inputs for [`frames`].
#[must_use]
pub fn frame_seeds() -> Vec<Vec<u8>> {
    let put = |revision: i64, sub: u32, key: &[u8], value: &[u8]| {
        let envelope = Envelope {
            kind: EventKind::Put,
            revision: Revision(revision),
            sub,
            create_revision: Revision(revision),
            version: 1,
            lease: LeaseId(0),
            prev: None,
        };
        Arc::new(Event::put(envelope, key, value))
    };
    let delete = Arc::new(Event::delete(Revision(4), 0, b"a", Some((Revision(2), 0))));
    let frame = |position: u64, revision: i64, events: Vec<Arc<Event>>, facts: Vec<Fact>| {
        Arc::new(Frame { position: Position(position), revision: Revision(revision), events, facts, applied_at_ms: 7 })
    };
    let leader = Fact::Leader(Some(tailwater_eventlog::MemberId(1)), Term(2));
    let frames = [
        frame(2, 2, vec![put(2, 0, b"a", b"1"), put(2, 1, b"b", b"")], vec![]),
        frame(3, 2, vec![], vec![leader, Fact::ClusterVersion("3.6.0".into())]),
        frame(5, 4, vec![put(3, 0, b"c", b"3"), delete], vec![Fact::Compacted(Revision(2))]),
    ];
    let message = |piece_bytes: usize| {
        let frames = Pieces::new(&frames, &[], piece_bytes).flatten().collect();
        wire::FollowResponse { frames, ..Default::default() }.encode_to_vec()
    };
    let seed = |flags: u8, message: Vec<u8>| [vec![flags], message].concat();
    vec![seed(0, message(PIECE_BYTES)), seed(1, message(1)), seed(3, message(64))]
}

/// Facts as a source sends them, as inputs for [`fact`].
#[must_use]
pub fn fact_seeds() -> Vec<Vec<u8>> {
    let auth = tailwater_eventlog::AuthFacts {
        enabled: true,
        revision: 3,
        users: vec![Bytes::from_static(b"\n\x01u")],
        roles: vec![Bytes::from_static(b"\n\x01r")],
        token_secret: Bytes::from_static(b"secret"),
    };
    let alarm = tailwater_eventlog::Alarm {
        member: tailwater_eventlog::MemberId(9),
        kind: tailwater_eventlog::AlarmKind::Corrupt,
    };
    let facts = [Fact::Auth(auth), Fact::Alarms(vec![alarm]), Fact::Compacted(Revision(3))];
    facts.iter().map(|fact| fact_out(fact).encode_to_vec()).collect()
}
