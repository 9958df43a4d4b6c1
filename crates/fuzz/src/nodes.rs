//! What nodes send each other, beside the log's commands.

use std::sync::Arc;

use prost::Message as _;
use protobuf::Message as _;
use raft::eraftpb;
use tailwater_api::peer::Hello;
use tailwater_api::write::{self, FailureCode, write_response::Response};
use tailwater_api::{etcdserverpb as pb, tail};
use tailwater_eventlog::MemberId;
use tailwater_transport::{Directory, Greeter, RefusalReason, fuzzing};
use tonic::Status;

/// Messages of a tail.
pub(crate) fn tail(data: &[u8]) -> bool {
    fuzzing::frames(data)
}

pub(crate) fn tail_seeds() -> Vec<Vec<u8>> {
    fuzzing::frame_seeds()
}

/// The first byte says what the rest is.
pub(crate) fn others(data: &[u8]) -> bool {
    let Some((&kind, rest)) = data.split_first() else { return false };
    match kind % 7 {
        0 => raft_message(rest),
        1 => fuzzing::members(rest),
        2 => hello(rest),
        3 => RefusalReason::of(&Status::with_details(tonic::Code::FailedPrecondition, "", rest.to_vec().into()))
            .is_some(),
        4 => fuzzing::write_answer(rest),
        5 => fuzzing::description(rest),
        _ => fuzzing::fact(rest),
    }
}

/// Appends are told from the rest without decoding them.
fn raft_message(data: &[u8]) -> bool {
    // For its errors: it may be given anything.
    let _lane = fuzzing::is_append(data);
    let mut message = eraftpb::Message::default();
    if message.merge_from_bytes(data).is_err() {
        return false;
    }
    let is_append = message.msg_type == eraftpb::MessageType::MsgAppend as i32;
    let encoded = message.write_to_bytes().expect("a message can be encoded");
    assert_eq!(fuzzing::is_append(&encoded), is_append, "the lane of {message:?}");
    let mut again = eraftpb::Message::default();
    again.merge_from_bytes(&encoded).expect("just encoded");
    assert_eq!(again, message);
    true
}

/// A refusal says why, in words that the other side understands.
fn hello(data: &[u8]) -> bool {
    let Ok(hello) = Hello::decode(data) else { return false };
    let greeter = Greeter::new(MemberId(2), Arc::new(Directory::new(9)));
    match greeter.check(Some(&hello)) {
        Ok(from) => assert_eq!((from.0, hello.to, hello.cluster_id), (hello.from, 2, 9)),
        Err(refusal) => assert!(RefusalReason::of(&refusal).is_some_and(|reason| reason != RefusalReason::Unknown)),
    }
    true
}

pub(crate) fn other_seeds() -> Vec<Vec<u8>> {
    let entry = eraftpb::Entry { term: 2, index: 3, data: vec![1, 2], context: vec![3], ..Default::default() };
    let append = eraftpb::Message {
        msg_type: eraftpb::MessageType::MsgAppend as i32,
        to: 1,
        from: 2,
        term: 2,
        entries: vec![entry],
        ..Default::default()
    };
    let members = br#"[{"id":7,"peerURLs":["http://a:1"],"isLearner":true,"name":"n","clientURLs":["http://b:2"]}]"#;
    let hello = Hello { protocol_version: 1, cluster_id: 9, from: 1, to: 2, peer_urls: vec!["http://a:1".into()] };
    let refusal = tailwater_api::peer::Refusal { reason: 3, cluster_id: 8, ..Default::default() };
    let answer = |response| write::WriteResponse { request_id: 3, response: Some(response) }.encode_to_vec();
    let failure = |code: FailureCode| {
        let failure = write::Failure { code: code as i32, leader: 1, text: "t".into(), formats: vec![1, 2] };
        answer(Response::Failure(failure))
    };
    let put = write::applied::Answer::Put(pb::PutResponse::default());
    let lease = write::LeaseInfo { id: -1, granted_ttl_seconds: 5, remaining_ttl_seconds: -1, keys: vec!["k".into()] };
    let range = tail::KeyRange { start: "a".into(), end: vec![0].into() };
    let node = tail::Node { id: 5, name: "n".into(), ranges: vec![range], path: vec![1, 5], ..Default::default() };
    let description = tail::DescribeResponse { self_: Some(node), ..Default::default() };
    let seed = |kind: u8, rest: &[u8]| [&[kind][..], rest].concat();
    let mut seeds = vec![
        seed(0, &append.write_to_bytes().expect("encodes")),
        seed(1, members),
        seed(2, &hello.encode_to_vec()),
        seed(3, &refusal.encode_to_vec()),
        seed(4, &failure(FailureCode::StorageFormat)),
        seed(4, &failure(FailureCode::NotLeader)),
        seed(4, &answer(Response::Applied(write::Applied { position: 9, answer: Some(put) }))),
        seed(4, &answer(Response::TimeToLive(write::LeaseRemaining { lease: Some(lease) }))),
        seed(5, &description.encode_to_vec()),
    ];
    seeds.extend(fuzzing::fact_seeds().iter().map(|fact| seed(6, fact)));
    seeds
}

/// Watch responses that are handed on; the first byte is their new id, of any sign.
pub(crate) fn watch_heads(data: &[u8]) -> bool {
    let Some((&id, rest)) = data.split_first() else { return false };
    tailwater_gateway::fuzzing::watch_head(rest, i64::from(id) - 128)
}

pub(crate) fn watch_head_seeds() -> Vec<Vec<u8>> {
    let header = pb::ResponseHeader { cluster_id: u64::MAX, member_id: 2, revision: 300, raft_term: 4 };
    let event = tailwater_api::mvccpb::Event::default();
    let responses = [
        pb::WatchResponse { header: Some(header), watch_id: 5, events: vec![event], ..Default::default() },
        pb::WatchResponse { header: Some(header), watch_id: -1, ..Default::default() },
        pb::WatchResponse {
            canceled: true,
            compact_revision: 7,
            cancel_reason: "reason".into(),
            fragment: true,
            ..Default::default()
        },
    ];
    responses.iter().map(|response| [vec![130], response.encode_to_vec()].concat()).collect()
}
