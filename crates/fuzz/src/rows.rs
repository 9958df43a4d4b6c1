//! Rows of the event log and of the machine's state.

use bytes::Bytes;
use prost::Message as _;
use tailwater_api::mvccpb;
use tailwater_eventlog::fuzzing as eventlog;
use tailwater_eventlog::{Envelope, Event, EventKind, LeaseId, Revision};

const CHECKSUM_BYTES: usize = 4;

/// The first byte says what the rest is: a row, a row whose checksum is made to fit, an event's bytes, one of the small
/// values.
pub(crate) fn check(data: &[u8]) -> bool {
    let Some((&kind, rest)) = data.split_first() else { return false };
    match kind % 4 {
        0 => row(Bytes::copy_from_slice(rest)),
        1 => row([rest, &crc32c::crc32c(rest).to_le_bytes()].concat().into()),
        2 => event(rest),
        _ => eventlog::state_values(rest),
    }
}

fn row(row: Bytes) -> bool {
    let Ok(event) = Event::from_row(row.clone()) else { return false };
    let again = Event::from_row(event.to_row().into()).expect("just written");
    assert_eq!(again, event);
    assert_eq!(event.clone().detached(), event);
    // All but the place of a version that there is none of.
    if event.prev().is_some() {
        assert_eq!(event.to_row(), row, "a row has one encoding");
    }
    agree(&event);
    true
}

/// Event bytes are taken exactly when they are the one encoding that protobuf's encoders make.
fn event(bytes: &[u8]) -> bool {
    let found = Event::from_encoded(Bytes::copy_from_slice(bytes), 0, None);
    let message = mvccpb::Event::decode(bytes).ok().filter(|message| message.encode_to_vec() == bytes);
    let is_one = message.is_some_and(|message| match (&message.kv, &message.prev_kv) {
        (Some(_), None) if message.r#type == 0 => true,
        (Some(kv), None) if message.r#type == 1 => {
            let of_delete =
                mvccpb::KeyValue { key: kv.key.clone(), mod_revision: kv.mod_revision, ..Default::default() };
            *kv == of_delete
        }
        _ => false,
    });
    assert_eq!(found.is_ok(), is_one, "{found:?}");
    found.is_ok_and(|event| {
        agree(&event);
        true
    })
}

/// What the getters tell is what the message says.
fn agree(event: &Event) {
    let message = mvccpb::Event::decode(event.bytes().clone()).expect("an event's bytes are a message");
    let kv = message.kv.expect("an event has a key");
    let envelope = event.envelope();
    assert_eq!((event.key(), event.value()), (&kv.key[..], &kv.value[..]));
    assert_eq!(mvccpb::KeyValue::decode(event.key_value()).expect("a message"), kv);
    assert_eq!(i32::from(event.kind() == EventKind::Delete), message.r#type);
    let told = (envelope.revision.0, envelope.create_revision.0, envelope.version, envelope.lease.0);
    assert_eq!(told, (kv.mod_revision, kv.create_revision, kv.version, kv.lease));
    let prev = event.prev();
    let made = match event.kind() {
        EventKind::Put => Event::put(envelope, event.key(), event.value()),
        EventKind::Delete => Event::delete(envelope.revision, envelope.sub, event.key(), prev),
    };
    assert_eq!(made.bytes(), event.bytes(), "an event has one encoding");
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let envelope = Envelope {
        kind: EventKind::Put,
        revision: Revision(300),
        sub: 1,
        create_revision: Revision(2),
        version: 3,
        lease: LeaseId(-4),
        prev: Some((Revision(299), 0)),
    };
    let put = Event::put(envelope, b"key", b"value");
    let delete = Event::delete(Revision(301), 0, b"key", None);
    let mut seeds = Vec::new();
    for event in [put, delete] {
        let row = event.to_row();
        seeds.push([&[0][..], &row[..]].concat());
        seeds.push([&[1][..], &row[..row.len() - CHECKSUM_BYTES]].concat());
        seeds.push([&[2][..], &event.bytes()[..]].concat());
        seeds.push([&[3, 6][..], &row[..]].concat());
    }
    seeds.extend(eventlog::state_value_seeds().iter().map(|value| [&[3][..], &value[..]].concat()));
    seeds
}

/// Rows of the machine's state: the length of a key, the key, the length of a value (two bytes), the value, and so on.
pub(crate) fn state(data: &[u8]) -> bool {
    let mut rest = data;
    let mut rows = Vec::new();
    while let Some((key, value, behind)) = next_row(rest) {
        rows.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        rest = behind;
    }
    tailwater_consensus::fuzzing::stored_rows(&rows) && !rows.is_empty()
}

fn next_row(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (&key_len, rest) = data.split_first()?;
    let (key, rest) = rest.split_at_checked(usize::from(key_len))?;
    let (value_len, rest) = rest.split_first_chunk::<2>()?;
    let (value, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*value_len)))?;
    Some((key, value, rest))
}

pub(crate) fn state_seeds() -> Vec<Vec<u8>> {
    let rows = tailwater_consensus::fuzzing::written_rows(crate::commands::batch().commands);
    let encoded = |(key, value): &(Bytes, Bytes)| {
        let key_len = u8::try_from(key.len()).expect("keys are short");
        let value_len = u16::try_from(value.len()).expect("values are short");
        [&[key_len][..], &key[..], &value_len.to_le_bytes(), &value[..]].concat()
    };
    let alone = rows.iter().map(encoded);
    alone.chain([rows.iter().flat_map(encoded).collect()]).collect()
}
