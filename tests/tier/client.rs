//! Short forms of what clients ask.

use std::time::Duration;

use anyhow::Context;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::watch_request::RequestUnion;
use tailwater_api::mvccpb::{Event, KeyValue};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

/// How long a watch may be silent where something must come.
const SILENCE_SECONDS_MAX: u64 = 30;

/// A client of the KV service that takes long answers.
pub(crate) fn kv(channel: &Channel) -> pb::kv_client::KvClient<Channel> {
    pb::kv_client::KvClient::new(channel.clone()).max_decoding_message_size(1 << 30)
}

/// The range of everything under `prefix`.
pub(crate) fn prefix(prefix: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: prefix.to_owned().into(), range_end: end_of(prefix).into(), ..Default::default() }
}

/// The end of the range of everything under `prefix`, whose last byte is not 0xff.
pub(crate) fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().expect("a prefix is not empty") += 1;
    end
}

/// The revision of an answer.
///
/// # Errors
/// When it has no header.
pub(crate) fn revision(header: Option<&pb::ResponseHeader>) -> anyhow::Result<i64> {
    Ok(header.context("an answer has a header")?.revision)
}

/// Puts; the revision.
///
/// # Errors
/// The server's.
pub(crate) async fn put(channel: &Channel, key: &str, value: &str) -> anyhow::Result<i64> {
    let put = pb::PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() };
    let answer = kv(channel).put(put).await?.into_inner();
    revision(answer.header.as_ref())
}

/// Deletes one key; the revision.
///
/// # Errors
/// The server's.
pub(crate) async fn delete(channel: &Channel, key: &str) -> anyhow::Result<i64> {
    let delete = pb::DeleteRangeRequest { key: key.to_owned().into(), ..Default::default() };
    let answer = kv(channel).delete_range(delete).await?.into_inner();
    revision(answer.header.as_ref())
}

/// Lists; the pairs, and the revision of the list.
///
/// # Errors
/// The server's.
pub(crate) async fn list(channel: &Channel, range: pb::RangeRequest) -> anyhow::Result<(Vec<KeyValue>, i64)> {
    let answer = kv(channel).range(range).await?.into_inner();
    let at = revision(answer.header.as_ref())?;
    Ok((answer.kvs, at))
}

/// A watch stream with one watch.
pub(crate) struct Watch {
    requests: mpsc::Sender<pb::WatchRequest>,
    answers: Streaming<pb::WatchResponse>,
}

impl Watch {
    /// Opens a watch of `range` from `start` on (0: from now on) and takes the `created` answer.
    ///
    /// # Errors
    /// When the stream breaks before; a gRPC status is inside.
    pub(crate) async fn open(channel: &Channel, range: pb::RangeRequest, start: i64) -> anyhow::Result<Self> {
        let create = pb::WatchCreateRequest {
            key: range.key,
            range_end: range.range_end,
            start_revision: start,
            prev_kv: true,
            ..Default::default()
        };
        let (requests, bodies) = mpsc::channel(4);
        requests.try_send(request(RequestUnion::CreateRequest(create)))?;
        let mut client = pb::watch_client::WatchClient::new(channel.clone()).max_decoding_message_size(1 << 30);
        let mut answers = client.watch(ReceiverStream::new(bodies)).await?.into_inner();
        let first = answers.message().await?.context("the stream ended")?;
        anyhow::ensure!(first.created && !first.canceled, "the watch was not created: {first:?}");
        Ok(Self { requests, answers })
    }

    /// The next answer.
    ///
    /// # Errors
    /// When the stream ends, or nothing comes for 30 s.
    pub(crate) async fn next(&mut self) -> anyhow::Result<pb::WatchResponse> {
        let next = tokio::time::timeout(Duration::from_secs(SILENCE_SECONDS_MAX), self.answers.message()).await;
        next.context("nothing came for 30 s")??.context("the stream ended")
    }

    /// The events of the next answer that has some.
    ///
    /// # Errors
    /// As [`Watch::next`], or when the watch is canceled.
    pub(crate) async fn events(&mut self) -> anyhow::Result<Vec<Event>> {
        loop {
            let answer = self.next().await?;
            anyhow::ensure!(!answer.canceled, "the watch was canceled: {answer:?}");
            if !answer.events.is_empty() {
                return Ok(answer.events);
            }
        }
    }

    /// Asks for progress.
    ///
    /// # Errors
    /// When earlier questions have not left yet.
    pub(crate) fn ask_for_progress(&self) -> anyhow::Result<()> {
        Ok(self.requests.try_send(request(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})))?)
    }
}

fn request(union: RequestUnion) -> pb::WatchRequest {
    pb::WatchRequest { request_union: Some(union) }
}
