//! Watch responses as bytes: the head is written here, events are copied or referenced as they are.

use bytes::{BufMut, Bytes, BytesMut};
use tailwater_api::{grpc, wire};
use tailwater_eventlog::{Event, Revision, Term};

/// Numbers of `etcdserverpb.WatchResponse`'s fields.
mod field {
    pub(super) const HEADER: u32 = 1;
    pub(super) const WATCH_ID: u32 = 2;
    pub(super) const CREATED: u32 = 3;
    pub(super) const CANCELED: u32 = 4;
    pub(super) const COMPACT_REVISION: u32 = 5;
    pub(super) const CANCEL_REASON: u32 = 6;
    pub(super) const FRAGMENT: u32 = 7;
    pub(super) const EVENTS: u32 = 11;
}
/// Number of `mvccpb.Event.prev_kv`.
const PREV_KV: u32 = 3;

/// Bytes that the head of a response with events takes at most: gRPC's prefix, header, watch id, fragment.
pub(crate) const HEAD_BYTES_MAX: usize = grpc::PREFIX_BYTES + 2 + 4 * 11 + 11 + 2;

/// What is the same in every response of a node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodeIds {
    pub(crate) cluster_id: u64,
    pub(crate) member_id: u64,
}

/// All of a response but its events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) revision: Revision,
    pub(crate) term: Term,
    pub(crate) watch_id: i64,
    pub(crate) created: bool,
    pub(crate) canceled: bool,
    pub(crate) compact_revision: Revision,
    pub(crate) cancel_reason: String,
    pub(crate) fragment: bool,
}

impl Head {
    /// Appends gRPC's prefix and everything in front of `events_bytes` bytes of events, which the caller appends.
    pub(crate) fn put(&self, out: &mut BytesMut, ids: NodeIds, events_bytes: usize) {
        let header_len = wire::uint_field_len(1, ids.cluster_id)
            + wire::uint_field_len(2, ids.member_id)
            + wire::int_field_len(3, self.revision.0)
            + wire::uint_field_len(4, self.term.0);
        let reason_len = if self.cancel_reason.is_empty() {
            0
        } else {
            wire::bytes_field_len(field::CANCEL_REASON, self.cancel_reason.len())
        };
        let len = wire::bytes_field_len(field::HEADER, header_len)
            + wire::int_field_len(field::WATCH_ID, self.watch_id)
            + 2 * (usize::from(self.created) + usize::from(self.canceled) + usize::from(self.fragment))
            + wire::int_field_len(field::COMPACT_REVISION, self.compact_revision.0)
            + reason_len;
        grpc::put_prefix(out, len + events_bytes);
        wire::put_bytes_header(out, field::HEADER, header_len);
        wire::put_uint_field(out, 1, ids.cluster_id);
        wire::put_uint_field(out, 2, ids.member_id);
        wire::put_int_field(out, 3, self.revision.0);
        wire::put_uint_field(out, 4, self.term.0);
        wire::put_int_field(out, field::WATCH_ID, self.watch_id);
        wire::put_uint_field(out, field::CREATED, u64::from(self.created));
        wire::put_uint_field(out, field::CANCELED, u64::from(self.canceled));
        wire::put_int_field(out, field::COMPACT_REVISION, self.compact_revision.0);
        wire::put_bytes_field(out, field::CANCEL_REASON, self.cancel_reason.as_bytes());
        wire::put_uint_field(out, field::FRAGMENT, u64::from(self.fragment));
    }
}

fn event_len(event: &Event, prev: Option<&Event>) -> usize {
    event.bytes().len() + prev.map_or(0, |prev| wire::bytes_field_len(PREV_KV, prev.key_value().len()))
}

/// Bytes of an event as a field of a watch response.
pub(crate) fn event_field_len(event: &Event, prev: Option<&Event>) -> usize {
    wire::bytes_field_len(field::EVENTS, event_len(event, prev))
}

/// Appends an event as a field of a watch response.
pub(crate) fn put_event_field(out: &mut BytesMut, event: &Event, prev: Option<&Event>) {
    debug_assert!(event.is_whole() && prev.is_none_or(Event::is_whole), "no value is left out of what is sent");
    wire::put_bytes_header(out, field::EVENTS, event_len(event, prev));
    out.put_slice(event.bytes());
    if let Some(prev) = prev {
        let key_value = prev.key_value();
        wire::put_bytes_header(out, PREV_KV, key_value.len());
        out.put_slice(&key_value);
    }
}

/// As [`put_event_field`], in parts that reference the event's bytes: for events that are larger than a piece.
pub(crate) fn event_field_parts(event: &Event, prev: Option<&Event>) -> [Bytes; 4] {
    let mut head = BytesMut::new();
    wire::put_bytes_header(&mut head, field::EVENTS, event_len(event, prev));
    let (mut prev_head, mut prev_bytes) = (BytesMut::new(), Bytes::new());
    if let Some(prev) = prev {
        prev_bytes = prev.key_value();
        wire::put_bytes_header(&mut prev_head, PREV_KV, prev_bytes.len());
    }
    [head.freeze(), event.bytes().clone(), prev_head.freeze(), prev_bytes]
}
