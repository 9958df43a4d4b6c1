//! Messages as JSON: what is read is the same when it is written and read again, and streams are cut where values end.

use prost::Message as _;
use prost_reflect::{DynamicMessage, MessageDescriptor, SerializeOptions};
use serde::de::IgnoredAny;
use tailwater_api::etcdserverpb as pb;
use tailwater_gateway::fuzzing;

/// A value of a stream is no longer here, so that the bound does not depend on how it is cut.
const STREAM_BYTES_MAX: usize = 1 << 10;

/// The first byte names the method, the second what the rest is: a request, an answer, a stream.
pub(crate) fn check(data: &[u8]) -> bool {
    let [method, kind, rest @ ..] = data else { return false };
    let path = path(usize::from(*method));
    match kind % 3 {
        0 => request(path, rest),
        1 => answer(path, rest),
        _ => stream(rest, usize::from(*method)),
    }
}

fn path(at: usize) -> &'static str {
    let paths: Vec<_> = fuzzing::methods().collect();
    paths[at % paths.len()]
}

fn descriptors(path: &str) -> (MessageDescriptor, MessageDescriptor) {
    let (service, name) = path[1..].split_once('/').expect("a path names service and method");
    let service = crate::messages::POOL.get_service_by_name(service).expect("every service is in the descriptors");
    let method = service.methods().find(|method| method.name() == name).expect("every method is in the descriptors");
    (method.input(), method.output())
}

fn request(path: &str, json: &[u8]) -> bool {
    let Some(bytes) = fuzzing::json_request(path, json) else { return false };
    let message = DynamicMessage::decode(descriptors(path).0, bytes.as_slice()).expect("a message");
    for (proto_names, text_numbers) in [(true, true), (false, false)] {
        let options = SerializeOptions::new().use_proto_field_name(proto_names).stringify_64_bit_integers(text_numbers);
        let mut written = Vec::new();
        message
            .serialize_with_options(&mut serde_json::Serializer::new(&mut written), &options)
            .expect("a message can be written");
        let again = fuzzing::json_request(path, &written).expect("what was written can be read");
        let again = DynamicMessage::decode(descriptors(path).0, again.as_slice()).expect("a message");
        assert!(again == message, "{again:?} where it was {message:?}");
    }
    true
}

fn answer(path: &str, bytes: &[u8]) -> bool {
    let Some(json) = fuzzing::json_answer(path, bytes) else { return false };
    let mut input = serde_json::Deserializer::from_slice(&json);
    let message = DynamicMessage::deserialize(descriptors(path).1, &mut input).expect("an answer is a message");
    let again = fuzzing::json_answer(path, &message.encode_to_vec()).expect("a message");
    assert_eq!(String::from_utf8_lossy(&again), String::from_utf8_lossy(&json));
    true
}

fn stream(data: &[u8], piece_bytes: usize) -> bool {
    if data.len() > STREAM_BYTES_MAX {
        return false;
    }
    let whole = fuzzing::json_values(data, data.len());
    assert_eq!(fuzzing::json_values(data, piece_bytes), whole, "pieces of {piece_bytes} bytes");
    let mut values = serde_json::Deserializer::from_slice(data).into_iter::<IgnoredAny>();
    let mut expected = Vec::new();
    loop {
        let begin = values.byte_offset();
        match values.next() {
            Some(Ok(_)) => {
                let value = data[begin..values.byte_offset()].trim_ascii();
                if !matches!(value.first(), Some(b'{' | b'[')) {
                    return false;
                }
                expected.push(value);
            }
            Some(Err(_)) => return false,
            None => break,
        }
    }
    assert_eq!((whole.0, whole.1), (expected.iter().map(|value| value.to_vec().into()).collect(), true));
    !expected.is_empty()
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let at = |path: &str| {
        let at = fuzzing::methods().position(|known| known == path).expect("a method");
        u8::try_from(at).expect("there are few")
    };
    let seed = |path: &str, kind: u8, rest: &[u8]| [&[at(path), kind][..], rest].concat();
    let txn = br#"{"compare":[{"target":"VALUE","result":"EQUAL","key":"YQ==","value":"MQ=="}],
        "success":[{"request_put":{"key":"YQ==","value":"Mg==","lease":"7","prev_kv":true}}],
        "failure":[{"requestRange":{"key":"YQ==","rangeEnd":"Yg==","limit":5,"sortOrder":"DESCEND"}}]}"#;
    let watch = br#"{"create_request":{"key":"YQ==","filters":["NOPUT"],"start_revision":"3"}}"#;
    let header = pb::ResponseHeader { cluster_id: 1, member_id: 2, revision: 3, raft_term: 4 };
    let kvs =
        vec![tailwater_api::mvccpb::KeyValue { key: "k\u{e9}".into(), value: vec![0xff].into(), ..Default::default() }];
    let range = pb::RangeResponse { header: Some(header), kvs, more: true, count: 9 };
    vec![
        seed("/etcdserverpb.KV/Txn", 0, txn),
        seed("/etcdserverpb.Watch/Watch", 0, watch),
        seed("/etcdserverpb.KV/Range", 1, &range.encode_to_vec()),
        seed("/etcdserverpb.KV/Put", 2, b" {\"a\":\"}\\\"\"}{\"b\":[{}]}\n\n{}  "),
    ]
}
