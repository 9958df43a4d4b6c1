#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use prost::Message;
use tailwater_api::{etcdserverpb, mvccpb};

use super::*;

fn envelopes() -> impl Strategy<Value = Envelope> {
    let small_or_any = || prop_oneof![0..300i64, any::<i64>()];
    let sub = || prop_oneof![0..300u32, 0..(1u32 << 31)];
    let prev = proptest::option::of((1..i64::MAX, any::<u32>()));
    (small_or_any(), sub(), small_or_any(), small_or_any(), small_or_any(), prev).prop_map(
        |(revision, sub, create, version, lease, prev)| Envelope {
            kind: EventKind::Put,
            revision: Revision(revision),
            sub,
            create_revision: Revision(create),
            version,
            lease: LeaseId(lease),
            prev: prev.map(|(revision, sub)| (Revision(revision), sub)),
        },
    )
}

fn payloads() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![proptest::collection::vec(any::<u8>(), 0..40), proptest::collection::vec(any::<u8>(), 100..300)]
}

fn message_of(envelope: &Envelope, key: &[u8], value: &[u8]) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: key.to_vec().into(),
        create_revision: envelope.create_revision.0,
        mod_revision: envelope.revision.0,
        version: envelope.version,
        value: value.to_vec().into(),
        lease: envelope.lease.0,
    }
}

proptest! {
    #[test]
    fn put_is_the_official_encoding(envelope in envelopes(), key in payloads(), value in payloads()) {
        let event = Event::put(envelope, &key, &value);
        let kv = message_of(&envelope, &key, &value);
        let message = mvccpb::Event { r#type: 0, kv: Some(kv.clone()), prev_kv: None };
        prop_assert_eq!(event.bytes().to_vec(), message.encode_to_vec());
        let range = etcdserverpb::RangeResponse { kvs: vec![kv.clone()], ..Default::default() };
        prop_assert_eq!(event.bytes().to_vec(), range.encode_to_vec());
        prop_assert_eq!(event.key_value().to_vec(), kv.encode_to_vec());
        prop_assert_eq!(event.key(), key.as_slice());
        prop_assert_eq!(event.value(), value.as_slice());
        prop_assert_eq!(event.envelope(), envelope);
        let key_only = mvccpb::KeyValue { value: Bytes::new(), ..kv };
        prop_assert_eq!(event.key_value_without_value().concat(), key_only.encode_to_vec());
        let rest = event.without_value();
        prop_assert_eq!(rest.key_value_without_value(), event.key_value_without_value());
    }

    #[test]
    fn delete_is_the_official_encoding(envelope in envelopes(), key in payloads()) {
        let event = Event::delete(envelope.revision, envelope.sub, &key, envelope.prev);
        let kv = mvccpb::KeyValue { key: key.clone().into(), mod_revision: envelope.revision.0, ..Default::default() };
        let message = mvccpb::Event { r#type: 1, kv: Some(kv.clone()), prev_kv: None };
        prop_assert_eq!(event.bytes().to_vec(), message.encode_to_vec());
        prop_assert_eq!(event.key_value().to_vec(), kv.encode_to_vec());
        prop_assert_eq!(event.key(), key.as_slice());
        prop_assert_eq!(event.value(), b"".as_slice());
        let expected = Envelope {
            kind: EventKind::Delete,
            create_revision: Revision(0),
            version: 0,
            lease: LeaseId(0),
            ..envelope
        };
        prop_assert_eq!(event.envelope(), expected);
    }

    #[test]
    fn prev_kv_appended_by_hand_is_the_official_encoding(
        envelope in envelopes(), key in payloads(), value in payloads(), old in payloads(),
    ) {
        let (event, prev) = (Event::put(envelope, &key, &value), Event::put(envelope, &key, &old));
        let mut bytes = event.bytes().to_vec();
        wire::put_bytes_header(&mut bytes, 3, prev.key_value().len());
        bytes.extend_from_slice(&prev.key_value());
        let message = mvccpb::Event {
            r#type: 0,
            kv: Some(message_of(&envelope, &key, &value)),
            prev_kv: Some(message_of(&envelope, &key, &old)),
        };
        prop_assert_eq!(bytes, message.encode_to_vec());
    }

    #[test]
    fn row_returns_the_event(envelope in envelopes(), key in payloads(), value in payloads()) {
        for event in [
            Event::put(envelope, &key, &value),
            Event::delete(envelope.revision, envelope.sub, &key, envelope.prev),
        ] {
            prop_assert_eq!(Event::from_row(event.to_row().into()).unwrap(), event);
        }
    }

    #[test]
    fn without_its_value_the_rest_is_the_same(envelope in envelopes(), key in payloads(), value in payloads()) {
        let event = Event::put(envelope, &key, &value);
        let rest = event.without_value();
        prop_assert!(event.is_whole() && !rest.is_whole());
        prop_assert_eq!((rest.envelope(), rest.key(), rest.sub()), (event.envelope(), event.key(), event.sub()));
        prop_assert!(rest.value().is_empty());
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        // Nothing may panic, and what is accepted as an event must be what this type would have written.
        let _ = Event::from_row(bytes.clone().into());
        if let Ok(event) = Event::from_encoded(bytes.clone().into(), 0, None) {
            let again = match event.kind() {
                EventKind::Put => Event::put(event.envelope(), event.key(), event.value()),
                EventKind::Delete => Event::delete(event.revision(), 0, event.key(), None),
            };
            prop_assert_eq!(again.bytes().as_ref(), bytes.as_slice());
        }
    }
}

fn golden_events() -> Vec<Event> {
    let envelope = Envelope {
        kind: EventKind::Put,
        revision: Revision(1_000_000),
        sub: 7,
        create_revision: Revision(300),
        version: 12,
        lease: LeaseId(-2),
        prev: Some((Revision(999_000), 1)),
    };
    let bare = Envelope {
        revision: Revision(2),
        sub: 0,
        create_revision: Revision(2),
        version: 1,
        lease: LeaseId(0),
        prev: None,
        ..envelope
    };
    vec![
        Event::put(envelope, b"/registry/pods/default/web-0", &[0xa5; 200]),
        Event::put(bare, b"k", b""),
        Event::delete(Revision(1_000_001), 3, b"/registry/pods/default/web-0", Some((Revision(1_000_000), 7))),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The rows of format 1 as they were first written: a change of the format must get a new number.
#[test]
fn rows_equal_the_golden_file() {
    let golden = include_str!("../../testdata/rows-format-1.hex");
    let events = golden_events();
    assert_eq!(golden.lines().count(), events.len());
    for (line, event) in golden.lines().zip(events) {
        assert_eq!(line, hex(&event.to_row()), "row of {event:?}");
    }
}

#[test]
fn every_flipped_bit_is_found() {
    for event in golden_events() {
        let row = event.to_row();
        for bit in 0..row.len() * 8 {
            let mut bad = row.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(Event::from_row(bad.into()), Err(RowError::Checksum { .. })), "bit {bit}");
        }
    }
}

#[test]
fn row_of_another_format_is_refused_by_number() {
    let mut row = golden_events()[0].to_row();
    row[0] = 9;
    let body = row.len() - 4;
    let checksum = crc32c::crc32c(&row[..body]).to_le_bytes();
    row[body..].copy_from_slice(&checksum);
    assert_eq!(Event::from_row(row.into()), Err(RowError::Format(9)));
}

#[test]
fn cut_row_is_refused() {
    let row = golden_events()[0].to_row();
    for len in 0..row.len() {
        assert!(Event::from_row(row[..len].to_vec().into()).is_err(), "length {len}");
    }
}

#[test]
fn event_is_small() {
    assert!(size_of::<Event>() <= 72, "{} bytes", size_of::<Event>());
}
