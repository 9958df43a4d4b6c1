//! Connections and calls that the workloads share.

use std::sync::LazyLock;
use std::time::Instant;

use bytes::Bytes;
use hdrhistogram::Histogram;
use tailwater_api::etcdserverpb as pb;

use crate::connection::{Access, Connection};
use crate::messages::Messages;

/// A client of the KV service.
pub(crate) type Kv = pb::kv_client::KvClient<Connection>;

/// A client on this connection.
pub(crate) fn kv(channel: &Connection) -> Kv {
    Kv::new(channel.clone()).max_decoding_message_size(1 << 30)
}

/// A value of this length, another for each number.
pub(crate) fn value(length: usize, number: u64) -> Bytes {
    let mut value = Vec::with_capacity(length);
    fill(&mut value, length, number);
    value.into()
}

/// Lengthens a value to `length` with bytes that don't compress: what a server compresses would cost it less than it will.
pub(crate) fn fill(value: &mut Vec<u8>, length: usize, number: u64) {
    const NOISE_BYTES: usize = 1 << 20;
    static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
        // xorshift64 (Marsaglia 2003).
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        };
        (0..NOISE_BYTES / 8).flat_map(|_| next()).collect()
    });
    // A prime, so that neighbours differ.
    let mut begin = usize::try_from(number.wrapping_mul(4099) % NOISE_BYTES as u64).unwrap_or_default();
    while value.len() < length {
        let end = NOISE_BYTES.min(begin + length - value.len());
        value.extend_from_slice(&NOISE[begin..end]);
        begin = 0;
    }
}

/// Opens `count` connections to a server without TLS or users.
pub(crate) async fn connect(endpoint: &str, count: usize) -> anyhow::Result<Vec<Connection>> {
    Access::default().connect(&[endpoint.to_owned()], count).await
}

const WATCH: &str = "/etcdserverpb.Watch/Watch";

/// A stream with these watches; all of them are created.
///
/// # Errors
/// One is refused, or the stream ends.
pub(crate) async fn watch(channel: &Connection, creates: Vec<pb::WatchCreateRequest>) -> anyhow::Result<Messages> {
    let requests: Vec<_> = creates
        .into_iter()
        .map(|create| pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) })
        .collect();
    let mut stream = channel.stream(WATCH, &requests).await?;
    // Watches that begin now are all created before there is an event; one that begins before is alone on its stream.
    for _ in requests {
        let created: pb::WatchResponse = stream.message().await?;
        anyhow::ensure!(created.created && !created.canceled, "a watch was refused: {}", created.cancel_reason);
    }
    Ok(stream)
}

/// A watch of the prefix that the writers use, from `start_revision` on (0: from now); `created` has been read.
pub(crate) async fn open_watch(channel: &Connection, start_revision: i64) -> anyhow::Result<Messages> {
    let (key, range_end) = ("/watch/".into(), "/watch0".into());
    watch(channel, vec![pb::WatchCreateRequest { key, range_end, start_revision, ..Default::default() }]).await
}

/// Microseconds, three digits.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000, 3).expect("constant bounds are valid")
}

/// Microseconds since then, at least 1.
pub(crate) fn micros(since: Instant) -> u64 {
    micros_between(since, Instant::now())
}

/// Microseconds between two moments, at least 1.
pub(crate) fn micros_between(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_micros()).unwrap_or(u64::MAX).max(1)
}
