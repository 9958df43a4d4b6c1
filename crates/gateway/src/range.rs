//! Lists: a checked request becomes a query, and the answer is written from event bytes that exist already.
//!
//! A put event's bytes *are* a `RangeResponse.kvs` field, so no `mvccpb` message is built: the body is the header, the
//! stored bytes one after the other, and the last fields. The total length is known before the first byte leaves.

use std::sync::Arc;
use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::range_request::{SortOrder, SortTarget};
use tailwater_api::write::Caller;
use tailwater_api::{grpc, wire};
use tailwater_consensus::{Auth, Right};
use tailwater_eventlog::{Event, KeyRange, Revision};
use tailwater_fanout::{ListPermit, RangeAnswer, RangeQuery, SortBy};

use crate::Gateway;
use crate::auth::Credentials;
use crate::checks;
use crate::status::{Code, Fault};

mod stream;

/// Small events are gathered up to this, so that one write carries many.
const CHUNK_BYTES: usize = 48 * 1024;
/// An event of this size or more leaves by reference, uncopied.
const SHARED_BYTES_MIN: usize = 16 * 1024;
/// Fields of `RangeResponse`.
const FIELD_HEADER: u32 = 1;
const FIELD_KVS: u32 = 2;
const FIELD_MORE: u32 = 3;
const FIELD_COUNT: u32 = 4;
/// The one field of `RangeStreamResponse`.
const FIELD_RANGE_RESPONSE: u32 = 1;

impl Gateway {
    /// `KV.Range`.
    pub(crate) async fn range(
        &self,
        credentials: &Credentials,
        request: pb::RangeRequest,
    ) -> Result<RangeChunks, Fault> {
        checks::range(&request)?;
        let start = Instant::now();
        let message = self.list(credentials, &request).await;
        self.calls().range(start.elapsed(), message.is_ok());
        message?.into_chunks()
    }

    /// `KV.RangeStream` with a sort target but no order, which etcd does not refuse: the one message is sorted by it, as
    /// `KV.Range`'s answer is. (etcd sorts each of its messages by itself.)
    pub(crate) async fn sorted_range_stream(
        &self,
        credentials: &Credentials,
        request: pb::RangeRequest,
    ) -> Result<RangeChunks, Fault> {
        checks::range_stream(&request)?;
        let start = Instant::now();
        let message = self.list(credentials, &request).await;
        self.calls().range(start.elapsed(), message.is_ok());
        message?.into_wrapped_chunks()
    }

    async fn list(&self, credentials: &Credentials, request: &pb::RangeRequest) -> Result<RangeMessage, Fault> {
        self.settle(request.serializable).await?;
        let may =
            |rules: &Auth, caller: &Caller| rules.check_range(caller, Right::Read, &request.key, &request.range_end);
        let (_, view) = self.authorize_here(credentials, may)?;
        let revision = (request.revision > 0).then_some(Revision(request.revision));
        let answer = self.read(request, revision).await?;
        self.recheck(&view, credentials, may)?;
        // The snapshot that was read is no newer than the one that is visible now.
        self.remember(self.fanout().snapshot().cursor.position);
        let header = self.header(answer.header_revision);
        Ok(RangeMessage::new(header, answer, request.keys_only))
    }

    /// Reads what `request` asks for at `revision`.
    pub(crate) async fn read(
        &self,
        request: &pb::RangeRequest,
        revision: Option<Revision>,
    ) -> Result<RangeAnswer, Fault> {
        let plan = Plan::of(request);
        let query = RangeQuery {
            range: KeyRange::from_etcd(request.key.clone(), request.range_end.clone()),
            revision,
            limit: if plan.sort_after.is_some() { plan.limit + 1 } else { plan.limit },
            sort: plan.sort,
            count_only: request.count_only,
            keys_only: request.keys_only,
            revision_bounds: (
                request.min_mod_revision,
                request.max_mod_revision,
                request.min_create_revision,
                request.max_create_revision,
            ),
        };
        let mut answer = self.fanout().range(query).await?;
        if let Some(by) = plan.sort_after {
            sort(&mut answer.events, by);
            answer.more = answer.events.len() > plan.limit;
            answer.events.truncate(plan.limit);
        }
        Ok(answer)
    }
}

/// How a request's limit and order are served.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    limit: usize,
    sort: Option<(SortBy, bool)>,
    /// A sort target without an order: etcd takes the lowest `limit + 1` *keys* and sorts those.
    sort_after: Option<SortBy>,
}

impl Plan {
    fn of(request: &pb::RangeRequest) -> Self {
        let limit = usize::try_from(request.limit).unwrap_or(0);
        let by = match SortTarget::try_from(request.sort_target) {
            Ok(SortTarget::Version) => SortBy::Version,
            Ok(SortTarget::Create) => SortBy::Create,
            Ok(SortTarget::Mod) => SortBy::Mod,
            Ok(SortTarget::Value) => SortBy::Value,
            Ok(SortTarget::Key) | Err(_) => SortBy::Key,
        };
        let bounded = request.min_mod_revision != 0
            || request.max_mod_revision != 0
            || request.min_create_revision != 0
            || request.max_create_revision != 0;
        let (sort, sort_after) = match (SortOrder::try_from(request.sort_order), by) {
            (Ok(SortOrder::Descend), by) => (Some((by, true)), None),
            (_, SortBy::Key) => (None, None),
            (Ok(SortOrder::Ascend), by) => (Some((by, false)), None),
            (_, by) if limit == 0 || bounded || request.count_only => (Some((by, false)), None),
            (_, by) => (None, Some(by)),
        };
        Self { limit, sort, sort_after }
    }
}

/// Ascending by one field; equal ones stay in key order.
fn sort(events: &mut [Arc<Event>], by: SortBy) {
    match by {
        SortBy::Key => {}
        SortBy::Version => events.sort_by_key(|event| event.envelope().version),
        SortBy::Create => events.sort_by_key(|event| event.envelope().create_revision),
        SortBy::Mod => events.sort_by_key(|event| event.revision()),
        SortBy::Value => events.sort_by(|one, other| one.value().cmp(other.value())),
    }
}

/// A `RangeResponse` that is not encoded yet.
pub(crate) struct RangeMessage {
    /// Only the last message of a list in pieces has one.
    header: Option<pb::ResponseHeader>,
    events: Vec<Arc<Event>>,
    keys_only: bool,
    more: bool,
    count: i64,
    permit: Option<Arc<ListPermit>>,
}

impl RangeMessage {
    pub(crate) fn new(header: pb::ResponseHeader, answer: RangeAnswer, keys_only: bool) -> Self {
        Self {
            header: Some(header),
            events: answer.events,
            keys_only,
            more: answer.more,
            count: answer.count,
            permit: Some(answer.permit),
        }
    }

    /// What the answer counts for; whoever holds its bytes holds this as long.
    pub(crate) fn permit(&self) -> Option<Arc<ListPermit>> {
        self.permit.clone()
    }

    /// Bytes of the encoded message.
    pub(crate) fn encoded_len(&self) -> usize {
        let kvs: usize = self.events.iter().map(|event| self.field_len(event)).sum();
        let header = self.header.as_ref();
        header.map_or(0, |header| wire::bytes_field_len(FIELD_HEADER, header.encoded_len()))
            + kvs
            + wire::uint_field_len(FIELD_MORE, u64::from(self.more))
            + wire::int_field_len(FIELD_COUNT, self.count)
    }

    /// Appends the encoded message.
    pub(crate) fn write(&self, out: &mut BytesMut) {
        self.write_head(out);
        for event in &self.events {
            self.write_field(event, out);
        }
        self.write_end(out);
    }

    /// The message as the chunks of an answer.
    ///
    /// # Errors
    /// Above what gRPC can send in one message.
    pub(crate) fn into_chunks(self) -> Result<RangeChunks, Fault> {
        self.framed(false)
    }

    /// The same for a `RangeStreamResponse` that holds the message.
    ///
    /// # Errors
    /// See [`RangeMessage::into_chunks`].
    pub(crate) fn into_wrapped_chunks(self) -> Result<RangeChunks, Fault> {
        self.framed(true)
    }

    fn framed(mut self, is_wrapped: bool) -> Result<RangeChunks, Fault> {
        let inner = self.encoded_len();
        let len = if is_wrapped { wire::bytes_field_len(FIELD_RANGE_RESPONSE, inner) } else { inner };
        let len_max = i32::MAX as usize;
        if len > len_max {
            let text = format!("grpc: trying to send message larger than max ({len} vs. {len_max})");
            return Err(Fault::Other(Code::ResourceExhausted, text));
        }
        let events = std::mem::take(&mut self.events).into_iter();
        let wrapped = is_wrapped.then_some(inner);
        // A list that is held as a whole leaves in pieces. A message of a list in pieces is small, and one that has begun
        // must not keep the versions behind its bytes.
        let piece_bytes = if self.permit.is_some() { CHUNK_BYTES } else { usize::MAX };
        Ok(RangeChunks { message: self, events, len, wrapped, piece_bytes, state: ChunkState::Head })
    }

    fn field_len(&self, event: &Event) -> usize {
        if self.keys_only { wire::bytes_field_len(FIELD_KVS, key_only_len(event)) } else { event.bytes().len() }
    }

    fn write_head(&self, out: &mut BytesMut) {
        if let Some(header) = &self.header {
            wire::put_bytes_header(out, FIELD_HEADER, header.encoded_len());
            header.encode(out).expect("the buffer grows");
        }
    }

    fn write_field(&self, event: &Event, out: &mut BytesMut) {
        if self.keys_only {
            write_key_only(event, out);
        } else {
            out.put_slice(event.bytes());
        }
    }

    fn write_end(&self, out: &mut BytesMut) {
        wire::put_uint_field(out, FIELD_MORE, u64::from(self.more));
        wire::put_int_field(out, FIELD_COUNT, self.count);
    }
}

/// Bytes of a `KeyValue` without its value.
fn key_only_len(event: &Event) -> usize {
    event.key_value_without_value().iter().map(|part| part.len()).sum()
}

/// Appends a `kvs` field without its value. The lease stays, as in etcd 3.6.
fn write_key_only(event: &Event, out: &mut BytesMut) {
    let [before, behind] = event.key_value_without_value();
    wire::put_bytes_header(out, FIELD_KVS, before.len() + behind.len());
    out.put_slice(before);
    out.put_slice(behind);
}

/// Room for the field that makes a piece full; one that is longer lets the buffer grow.
const KEY_ONLY_BYTES: usize = 512;

/// A list on its way to the client. Chunks are made when the transport asks for them, and what has left is let go.
pub(crate) struct RangeChunks {
    /// Without its events.
    message: RangeMessage,
    events: std::vec::IntoIter<Arc<Event>>,
    len: usize,
    /// Bytes of the `RangeResponse` inside a `RangeStreamResponse`.
    wrapped: Option<usize>,
    /// A gathered piece is about this large.
    piece_bytes: usize,
    state: ChunkState,
}

#[derive(PartialEq, Eq)]
enum ChunkState {
    Head,
    Events,
    Ended,
}

impl RangeChunks {
    /// The next piece of the framed message.
    pub(crate) fn next_chunk(&mut self) -> Option<Bytes> {
        if self.state == ChunkState::Ended {
            return None;
        }
        if self.state == ChunkState::Events
            && let Some(event) = self.events.as_slice().first()
            && self.is_shared(event)
        {
            return self.events.next().map(|event| event.bytes().clone());
        }
        let mut out = BytesMut::with_capacity(self.capacity(self.events.as_slice()));
        if self.state == ChunkState::Head {
            grpc::put_prefix(&mut out, self.len);
            if let Some(inner) = self.wrapped {
                wire::put_bytes_header(&mut out, FIELD_RANGE_RESPONSE, inner);
            }
            self.message.write_head(&mut out);
            self.state = ChunkState::Events;
        }
        while let Some(event) = self.events.as_slice().first() {
            if out.len() >= self.piece_bytes || self.is_shared(event) {
                return Some(out.freeze());
            }
            self.message.write_field(event, &mut out);
            self.events.next();
        }
        self.message.write_end(&mut out);
        self.state = ChunkState::Ended;
        // Empty when a shared event was the last and neither `more` nor `count` is written.
        (!out.is_empty()).then(|| out.freeze())
    }

    fn is_shared(&self, event: &Event) -> bool {
        !self.message.keys_only && event.bytes().len() >= SHARED_BYTES_MIN
    }

    /// What the next gathered chunk will hold at most, so that its buffer is allocated once.
    fn capacity(&self, left: &[Arc<Event>]) -> usize {
        if self.message.keys_only {
            return self.len.min(self.piece_bytes).saturating_add(KEY_ONLY_BYTES);
        }
        let mut sum = 128;
        for event in left {
            if sum >= self.piece_bytes || self.is_shared(event) {
                break;
            }
            sum += self.message.field_len(event);
        }
        sum
    }
}

#[cfg(test)]
mod tests;
