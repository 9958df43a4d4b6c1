//! Watch responses of a replica, read only as far as their head, and given another watch id.
//!
//! Every encoder writes the fields of a message in the order of their numbers, and `events` have the highest: what is
//! in front of them is short, and they are passed on as they are.

use bytes::{Bytes, BytesMut};
use tailwater_api::{grpc, wire};

const HEADER: u64 = 1;
const WATCH_ID: u64 = 2;
const CREATED: u64 = 3;
const CANCELED: u64 = 4;
const COMPACT_REVISION: u64 = 5;
const FRAGMENT: u64 = 7;
const EVENTS: u64 = 11;
const HEADER_REVISION: u64 = 3;
/// A message whose rest is no longer than this is copied into one piece.
const COPY_BYTES_MAX: usize = 4 << 10;

/// The head of a response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ResponseHead {
    /// Of the header.
    pub(super) revision: i64,
    pub(super) watch_id: i64,
    pub(super) is_created: bool,
    pub(super) is_canceled: bool,
    pub(super) compact_revision: i64,
    pub(super) is_fragment: bool,
    /// Where the watch id's field stands, or would: its bytes.
    id_start: usize,
    id_end: usize,
}

impl ResponseHead {
    /// Reads what stands in front of the events; `None` when the message is not a response.
    pub(super) fn parse(message: &[u8]) -> Option<Self> {
        let mut head = Self::default();
        let mut at = 0;
        while at < message.len() {
            let start = at;
            let tag = varint(message, &mut at)?;
            let (field, kind) = (tag >> 3, tag & 7);
            if field >= EVENTS {
                break;
            }
            match kind {
                0 => {
                    let value = varint(message, &mut at)?;
                    head.set(field, value);
                }
                2 => {
                    let len = usize::try_from(varint(message, &mut at)?).ok()?;
                    let inner = message.get(at..at.checked_add(len)?)?;
                    if field == HEADER {
                        head.revision = header_revision(inner)?;
                        head.id_start = at + len;
                        head.id_end = at + len;
                    }
                    at += len;
                }
                _ => return None,
            }
            if field == WATCH_ID {
                (head.id_start, head.id_end) = (start, at);
            }
        }
        Some(head)
    }

    fn set(&mut self, field: u64, value: u64) {
        match field {
            WATCH_ID => self.watch_id = signed(value),
            CREATED => self.is_created = value != 0,
            CANCELED => self.is_canceled = value != 0,
            COMPACT_REVISION => self.compact_revision = signed(value),
            FRAGMENT => self.is_fragment = value != 0,
            _ => {}
        }
    }

    /// Whether it says how far the whole stream has come.
    pub(super) fn is_progress_of_all(&self) -> bool {
        self.watch_id == -1 && !self.is_created && !self.is_canceled
    }
}

/// `message` with its prefix and this watch id, in one or two pieces.
pub(super) fn with_id(message: &Bytes, head: &ResponseHead, watch_id: i64) -> [Option<Bytes>; 2] {
    let id_len = wire::int_field_len(2, watch_id);
    let len = message.len() - (head.id_end - head.id_start) + id_len;
    let rest = message.slice(head.id_end..);
    let is_copied = rest.len() <= COPY_BYTES_MAX;
    let room = grpc::PREFIX_BYTES + head.id_start + id_len + if is_copied { rest.len() } else { 0 };
    let mut out = BytesMut::with_capacity(room);
    grpc::put_prefix(&mut out, len);
    out.extend_from_slice(&message[..head.id_start]);
    wire::put_int_field(&mut out, 2, watch_id);
    if is_copied {
        out.extend_from_slice(&rest);
        return [Some(out.freeze()), None];
    }
    [Some(out.freeze()), Some(rest)]
}

fn header_revision(mut header: &[u8]) -> Option<i64> {
    let mut revision = 0;
    while !header.is_empty() {
        let mut at = 0;
        let tag = varint(header, &mut at)?;
        if tag & 7 != 0 {
            return None;
        }
        let value = varint(header, &mut at)?;
        if tag >> 3 == HEADER_REVISION {
            revision = signed(value);
        }
        header = &header[at..];
    }
    Some(revision)
}

fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[expect(clippy::cast_possible_wrap, reason = "int64 travels as its two's complement")]
fn signed(value: u64) -> i64 {
    value as i64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;
    use prost::Message;
    use tailwater_api::etcdserverpb as pb;
    use tailwater_api::mvccpb::{Event, KeyValue};

    use super::*;

    fn response() -> impl Strategy<Value = pb::WatchResponse> {
        let header = (any::<u64>(), any::<u64>(), any::<i64>(), any::<u64>());
        let numbers = (any::<i64>(), any::<bool>(), any::<bool>(), any::<i64>(), any::<bool>());
        let values = prop::collection::vec(0usize..6000, 0..4);
        (prop::option::of(header), numbers, "[a-z]{0,9}", values).prop_map(
            |(header, numbers, cancel_reason, values)| {
                let (watch_id, created, canceled, compact_revision, fragment) = numbers;
                let kv = |len: usize| KeyValue { key: "k".into(), value: vec![7; len].into(), ..Default::default() };
                let events = values.into_iter().map(|len| Event { kv: Some(kv(len)), ..Default::default() }).collect();
                let header = header.map(|(cluster_id, member_id, revision, raft_term)| pb::ResponseHeader {
                    cluster_id,
                    member_id,
                    revision,
                    raft_term,
                });
                pb::WatchResponse {
                    header,
                    watch_id,
                    created,
                    canceled,
                    compact_revision,
                    cancel_reason,
                    fragment,
                    events,
                }
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_response_keeps_all_but_its_watch_id(response in response(), watch_id in any::<i64>()) {
            let message = Bytes::from(response.encode_to_vec());
            let head = ResponseHead::parse(&message).unwrap();
            let numbers = (head.watch_id, head.is_created, head.is_canceled, head.compact_revision, head.is_fragment);
            let expected =
                (response.watch_id, response.created, response.canceled, response.compact_revision, response.fragment);
            prop_assert_eq!(numbers, expected);
            prop_assert_eq!(head.revision, response.header.as_ref().map_or(0, |header| header.revision));
            let renamed = pb::WatchResponse { watch_id, ..response }.encode_to_vec();
            let mut framed = BytesMut::new();
            grpc::put_prefix(&mut framed, renamed.len());
            framed.extend_from_slice(&renamed);
            let pieces = with_id(&message, &head, watch_id).into_iter().flatten().collect::<Vec<_>>();
            prop_assert_eq!(pieces.concat(), framed.to_vec());
        }

        #[test]
        fn random_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let bytes = Bytes::from(bytes);
            if let Some(head) = ResponseHead::parse(&bytes) {
                with_id(&bytes, &head, 5);
            }
        }
    }
}
