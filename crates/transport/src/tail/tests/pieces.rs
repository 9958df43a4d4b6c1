//! Codec, pieces and assembly, without a connection.

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message as _;
use tailwater_api::tail as wire;
use tailwater_eventlog::{Alarm, AlarmKind, AuthFacts, CopyPoint, KeyRange, LogState, Member, MemberId, Term};

use super::*;
use crate::tail::codec::{self, CodecError};
use crate::tail::pieces::{Assembly, Pieces};

fn bytes(len: usize) -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..len).prop_map(Bytes::from)
}

fn fact() -> impl Strategy<Value = Fact> {
    let alarm = (any::<u64>(), any::<bool>()).prop_map(|(member, space)| Alarm {
        member: MemberId(member),
        kind: if space { AlarmKind::NoSpace } else { AlarmKind::Corrupt },
    });
    let urls = || prop::collection::vec(".{0,8}", 0..3);
    let member = (any::<u64>(), ".{0,8}", urls(), urls(), any::<bool>()).prop_map(
        |(id, name, peer_urls, client_urls, is_learner)| Member {
            id: MemberId(id),
            name,
            peer_urls,
            client_urls,
            is_learner,
        },
    );
    let messages = || prop::collection::vec(bytes(9), 0..3);
    prop_oneof![
        any::<i64>().prop_map(|revision| Fact::Compacted(Revision(revision))),
        (any::<bool>(), any::<u64>(), messages(), messages(), bytes(40)).prop_map(
            |(enabled, revision, users, roles, token_secret)| {
                Fact::Auth(AuthFacts { enabled, revision, users, roles, token_secret })
            }
        ),
        prop::collection::vec(alarm, 0..4).prop_map(Fact::Alarms),
        prop::collection::vec(member, 0..4).prop_map(Fact::Members),
        (any::<Option<u64>>(), any::<u64>()).prop_map(|(leader, term)| {
            Fact::Leader(leader.filter(|leader| *leader != 0).map(MemberId), Term(term))
        }),
        ".{0,9}".prop_map(Fact::ClusterVersion),
        ".{0,9}".prop_map(Fact::Downgrade),
    ]
}

/// Frames of one history from revision 2 on, as a source gives them: sizes of values by record and event.
fn frames(records: &[Vec<u16>], facts: &[Fact]) -> Vec<Arc<Frame>> {
    let mut revision = Revision(1);
    let frame = |(position, sizes): (usize, &Vec<u16>)| {
        if !sizes.is_empty() {
            revision = revision.next();
        }
        let events = (0..).zip(sizes).map(|(sub, size)| {
            let envelope = Envelope {
                kind: EventKind::Put,
                revision,
                sub,
                create_revision: revision,
                version: 1,
                lease: LeaseId(i64::from(*size)),
                prev: (*size % 2 == 0).then_some((Revision(1), sub)),
            };
            Arc::new(Event::put(envelope, &[b'a' + u8::try_from(size % 20).unwrap()], &vec![7; usize::from(*size)]))
        });
        let facts = facts.get(position).cloned().into_iter().collect();
        Arc::new(Frame {
            position: Position(position as u64 + 1),
            revision,
            events: events.collect(),
            facts,
            applied_at_ms: 1000 + position as u64,
        })
    };
    records.iter().enumerate().map(frame).collect()
}

fn flat(frames: &[Arc<Frame>]) -> (Vec<Event>, Vec<Fact>, Option<(Position, Revision)>) {
    let events = frames.iter().flat_map(|frame| frame.events.iter().map(|event| Event::clone(event)));
    let facts = frames.iter().flat_map(|frame| frame.facts.clone());
    (events.collect(), facts.collect(), frames.last().map(|frame| (frame.position, frame.revision)))
}

fn begin() -> Cursor {
    Cursor { history: HISTORY, revision: Revision(1), position: Position(0) }
}

proptest! {
    #[test]
    fn facts_come_back_as_they_were(fact in fact()) {
        let encoded = codec::fact_out(&fact).encode_to_vec();
        let decoded = wire::Fact::decode(&encoded[..]).unwrap();
        prop_assert_eq!(codec::fact_in(decoded).unwrap(), fact);
    }

    #[test]
    fn ranges_hold_the_same_keys_afterwards(
        start in bytes(3), end in bytes(3), kind in 0..3, keys in prop::collection::vec(bytes(4), 1..40),
    ) {
        let range = match kind {
            0 => KeyRange::Key(start.clone()),
            1 => KeyRange::Span(start.clone(), end.clone()),
            _ => KeyRange::From(start.clone()),
        };
        let there = codec::range_in(codec::range_out(&range));
        for key in keys.iter().chain([&start, &end, &Bytes::new(), &Bytes::from_static(&[0])]) {
            prop_assert_eq!(there.contains(key), range.contains(key), "{:?} {:?}", range, key);
        }
    }

    #[test]
    fn numbers_come_back_as_they_were(n in any::<[u64; 4]>(), r in any::<[i64; 3]>()) {
        let cursor = Cursor { history: HistoryId(n[0]), revision: Revision(r[0]), position: Position(n[1]) };
        prop_assert_eq!(codec::cursor_in(&codec::cursor_out(cursor)), cursor);
        let point = CopyPoint { history: HistoryId(n[0]), fold_point: Revision(r[1]), compacted: Revision(r[2]) };
        prop_assert_eq!(codec::point_in(&codec::point_out(point)), point);
        let state = LogState {
            history: HistoryId(n[0]),
            revision: Revision(r[0]),
            compacted: Revision(r[1]),
            fold_point: Revision(r[2]),
            applied: Position(n[2]),
            applied_term: Term(n[3]),
        };
        prop_assert_eq!(codec::numbers_in(state.history, &codec::numbers_out(&state)), state);
    }

    #[test]
    fn frames_in_pieces_are_put_together(
        records in prop::collection::vec(prop::collection::vec(0u16..600, 0..12), 0..20),
        facts in prop::collection::vec(fact(), 0..20),
        piece_bytes in 1usize..3000,
        filtered in any::<bool>(),
    ) {
        let facts: Vec<_> = facts.into_iter().filter(|fact| !matches!(fact, Fact::Leader(..))).collect();
        let frames = frames(&records, &facts);
        let range = KeyRange::Span(Bytes::from_static(b"c"), Bytes::from_static(b"g"));
        let ranges = if filtered { vec![range.clone()] } else { Vec::new() };
        let mut assembly = Assembly::new(begin(), !filtered, Term(0));
        let mut received = Vec::new();
        for message in Pieces::new(&frames, &ranges, piece_bytes) {
            // No larger than it must be.
            let sizes: Vec<_> = message.iter().flat_map(|frame| frame.rows.iter().map(Bytes::len)).collect();
            let all_but_last: usize = sizes.iter().rev().skip(1).sum();
            prop_assert!(all_but_last <= piece_bytes, "{:?} in {}", sizes, piece_bytes);
            let encoded = wire::FollowResponse { frames: message, ..Default::default() }.encode_to_vec();
            let there = wire::FollowResponse::decode(&encoded[..]).unwrap();
            for frame in assembly.add(there.frames).unwrap() {
                // Whole, or not there.
                let original = frames.iter().find(|original| original.position == frame.position).unwrap();
                let wanted = original.events.iter().filter(|e| !filtered || range.contains(e.key())).count();
                prop_assert_eq!(frame.events.len(), wanted);
                received.push(frame);
            }
        }
        let (mut events, facts, end) = flat(&frames);
        events.retain(|event| !filtered || range.contains(event.key()));
        prop_assert_eq!(flat(&received), (events, facts, end));
        if let Some((position, revision)) = end {
            prop_assert_eq!(assembly.cursor(), Cursor { position, revision, ..begin() });
        }
    }

    #[test]
    fn random_bytes_are_refused_without_a_panic(input in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(message) = wire::FollowResponse::decode(&input[..]) {
            let _ = Assembly::new(begin(), true, Term(0)).add(message.frames);
        }
        if let Ok(fact) = wire::Fact::decode(&input[..]) {
            let _ = codec::fact_in(fact);
        }
        let _ = codec::event_in(0, input.into());
    }

    #[test]
    fn a_changed_message_gives_the_same_events_or_an_error(
        records in prop::collection::vec(prop::collection::vec(0u16..30, 1..4), 1..5),
        at in any::<prop::sample::Index>(),
        bit in 0u32..8,
    ) {
        let frames = frames(&records, &[]);
        let message = Pieces::new(&frames, &[], 1 << 20).next().unwrap();
        let mut encoded = wire::FollowResponse { frames: message, ..Default::default() }.encode_to_vec();
        let at = at.index(encoded.len());
        encoded[at] ^= 1u8 << bit;
        let Ok(there) = wire::FollowResponse::decode(&encoded[..]) else { return Ok(()) };
        let Ok(received) = Assembly::new(begin(), true, Term(0)).add(there.frames) else { return Ok(()) };
        let (original, _, _) = flat(&frames);
        let (events, _, _) = flat(&received);
        prop_assert!(original.starts_with(&events), "flipped bit {} of byte {}", bit, at);
    }
}

#[test]
fn what_does_not_follow_is_refused() {
    let all = frames(&[vec![1], vec![2, 3], vec![4]], &[]);
    let wire: Vec<_> = Pieces::new(&all, &[], 1).flatten().collect();
    let refused = |frames: &[wire::Frame]| {
        let added = Assembly::new(begin(), true, Term(0)).add(frames.to_vec());
        assert!(matches!(added, Err(CodecError::Order(_))), "{added:?}");
    };
    let whole = Pieces::new(&all, &[], 1 << 20).next().unwrap();
    refused(&whole[1..]);
    refused(&[whole[0].clone(), whole[2].clone()]);
    refused(&[whole[0].clone(), whole[1].clone(), whole[0].clone()]);
    let cut = wire::Frame { rows: whole[1].rows[1..].to_vec(), ..whole[1].clone() };
    let added = Assembly::new(begin(), true, Term(0)).add(vec![whole[0].clone(), cut.clone()]);
    assert!(matches!(added, Err(CodecError::Checksum { .. })), "{added:?}");
    refused(&[whole[0].clone(), codec::sealed(cut)]);
    refused(&[codec::sealed(wire::Frame { revision: 9, ..whole[0].clone() })]);
    assert_eq!(Assembly::new(begin(), true, Term(0)).add(wire).unwrap().len(), 3);
}

#[test]
fn an_older_term_of_another_source_is_not_told() {
    let leader = |leader, term| codec::fact_out(&Fact::Leader(leader, Term(term)));
    let frame = |facts| codec::sealed(wire::Frame { position: 0, revision: 1, facts, ..Default::default() });
    let mut assembly = Assembly::new(begin(), true, Term(5));
    let frames = assembly.add(vec![
        frame(vec![leader(Some(MemberId(1)), 4)]),
        frame(vec![leader(None, 5)]),
        frame(vec![leader(Some(MemberId(2)), 6), leader(Some(MemberId(1)), 5)]),
    ]);
    let (_, facts, _) = flat(&frames.unwrap());
    assert_eq!(facts, [Fact::Leader(None, Term(5)), Fact::Leader(Some(MemberId(2)), Term(6))]);
    assert_eq!(assembly.term(), Term(6));
}
