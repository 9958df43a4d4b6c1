#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use tailwater_api::mvccpb::KeyValue;
use tailwater_eventlog::{Envelope, EventKind, LeaseId};

use super::*;

fn event(kv: &KeyValue) -> Arc<Event> {
    let envelope = Envelope {
        kind: EventKind::Put,
        revision: Revision(kv.mod_revision),
        sub: 0,
        create_revision: Revision(kv.create_revision),
        version: kv.version,
        lease: LeaseId(kv.lease),
        prev: None,
    };
    Arc::new(Event::put(envelope, &kv.key, &kv.value))
}

fn key_values() -> impl Strategy<Value = Vec<KeyValue>> {
    let value = prop_oneof![
        8 => prop::collection::vec(any::<u8>(), 0..200),
        1 => prop::collection::vec(any::<u8>(), 10_000..40_000),
    ];
    let key = prop::collection::vec(any::<u8>(), 1..40);
    let kv = (key, value, 1i64..1 << 40, 0i64..1000, 1i64..1000, any::<i64>());
    let kv = kv.prop_map(|(key, value, create, later, version, lease)| KeyValue {
        key: key.into(),
        value: value.into(),
        create_revision: create,
        mod_revision: create + later,
        version,
        lease,
    });
    prop::collection::vec(kv, 0..60)
}

fn collect(mut chunks: RangeChunks) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(chunk) = chunks.next_chunk() {
        assert!(!chunk.is_empty(), "an empty chunk would be an empty data frame");
        out.extend_from_slice(&chunk);
    }
    out
}

proptest! {
    /// Hand-written bytes against the generated encoder, whole and keys only, chunked and in one piece.
    #[test]
    fn bytes_equal_the_generated_encoding(
        kvs in key_values(),
        keys_only in any::<bool>(),
        more in any::<bool>(),
        count in 0i64..1 << 50,
    ) {
        let header = pb::ResponseHeader { cluster_id: u64::MAX, member_id: 7, revision: 12, raft_term: 0 };
        let events: Vec<_> = kvs.iter().map(event).collect();
        let answer = RangeAnswer { header_revision: Revision(12), events, more, count, permit: Arc::default() };
        let mut kvs = kvs;
        if keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        let expected = pb::RangeResponse { header: Some(header), kvs, more, count }.encode_to_vec();

        let message = RangeMessage::new(header, answer, keys_only);
        let mut whole = BytesMut::new();
        message.write(&mut whole);
        prop_assert_eq!(message.encoded_len(), expected.len());
        prop_assert_eq!(&whole[..], &expected[..]);

        let mut framed = Vec::new();
        grpc::put_prefix(&mut framed, expected.len());
        framed.extend_from_slice(&expected);
        prop_assert_eq!(collect(message.into_chunks().unwrap()), framed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The messages of a list in pieces, merged, are the answer in one message.
    #[test]
    fn a_message_of_a_stream_holds_the_response(kvs in key_values(), keys_only in any::<bool>(), is_last in any::<bool>()) {
        let header = pb::ResponseHeader { cluster_id: 3, member_id: 7, revision: 12, raft_term: 9 };
        let message = RangeMessage {
            header: is_last.then_some(header),
            events: kvs.iter().map(event).collect(),
            keys_only,
            more: is_last,
            count: if is_last { 77 } else { 0 },
            permit: None,
        };
        let mut kvs = kvs;
        if keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        let response =
            pb::RangeResponse { header: message.header, kvs, more: message.more, count: message.count };
        let expected = pb::RangeStreamResponse { range_response: Some(response) }.encode_to_vec();
        let mut framed = Vec::new();
        grpc::put_prefix(&mut framed, expected.len());
        framed.extend_from_slice(&expected);
        prop_assert_eq!(collect(message.into_wrapped_chunks().unwrap()), framed);
    }
}

#[test]
fn a_large_value_leaves_uncopied() {
    let kv = KeyValue { key: "k".into(), value: vec![1; SHARED_BYTES_MIN].into(), version: 1, ..Default::default() };
    let stored = event(&kv);
    let answer = RangeAnswer {
        header_revision: Revision(2),
        events: vec![stored.clone()],
        more: false,
        count: 1,
        permit: Arc::default(),
    };
    let mut chunks = RangeMessage::new(pb::ResponseHeader::default(), answer, false).into_chunks().unwrap();
    chunks.next_chunk().unwrap();
    assert_eq!(chunks.next_chunk().unwrap().as_ptr(), stored.bytes().as_ptr());
}

#[test]
fn a_sort_target_without_an_order_sorts_what_the_limit_left() {
    let mut request = pb::RangeRequest { limit: 3, sort_target: SortTarget::Mod as i32, ..Default::default() };
    assert_eq!(Plan::of(&request), Plan { limit: 3, sort: None, sort_after: Some(SortBy::Mod) });
    request.max_mod_revision = 9;
    assert_eq!(Plan::of(&request), Plan { limit: 3, sort: Some((SortBy::Mod, false)), sort_after: None });
    request.sort_order = SortOrder::Descend as i32;
    assert_eq!(Plan::of(&request), Plan { limit: 3, sort: Some((SortBy::Mod, true)), sort_after: None });
    let request = pb::RangeRequest { limit: -1, sort_order: SortOrder::Ascend as i32, ..Default::default() };
    assert_eq!(Plan::of(&request), Plan { limit: 0, sort: None, sort_after: None });
}
