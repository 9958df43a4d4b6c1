//! A call of many messages, written without a task of its own and read without copying.
//!
//! tonic sends requests from a body that another task asks, and copies each frame of the answers into a buffer of its own.
//! Where one core is a thousand clients, that core is what is measured then.

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use http::HeaderMap;
use prost::Message;
use tailwater_api::grpc::{self, FrameDecoder};

/// As other clients of large lists take.
const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// A call; it ends when this is dropped.
pub(crate) struct Messages {
    answers: RecvStream,
    requests: SendStream<Bytes>,
    /// What came and is not read yet.
    came: FrameDecoder,
}

/// Requests as they are sent.
pub(crate) fn framed<T: Message>(requests: &[T]) -> Bytes {
    let mut out = BytesMut::new();
    for request in requests {
        grpc::put_prefix(&mut out, request.encoded_len());
        request.encode(&mut out).expect("the buffer grows");
    }
    out.freeze()
}

impl Messages {
    pub(crate) fn new(answers: RecvStream, requests: SendStream<Bytes>) -> Self {
        Self { answers, requests, came: FrameDecoder::new(MESSAGE_BYTES_MAX) }
    }

    /// Sends one more request.
    ///
    /// # Errors
    /// The call has ended.
    pub(crate) fn send<T: Message>(&mut self, request: &T) -> anyhow::Result<()> {
        Ok(self.requests.send_data(framed(std::slice::from_ref(request)), false)?)
    }

    /// The next message; an error when the call has ended. May be dropped and called again.
    pub(crate) async fn message<T: Message + Default>(&mut self) -> anyhow::Result<T> {
        loop {
            if let Some(message) = self.came.next_message()? {
                return Ok(T::decode(message)?);
            }
            let Some(data) = self.answers.data().await else { return Err(self.end().await) };
            let data = data?;
            self.answers.flow_control().release_capacity(data.len())?;
            self.came.push(data);
        }
    }

    async fn end(&mut self) -> anyhow::Error {
        match self.answers.trailers().await {
            Ok(trailers) => ended(&trailers.unwrap_or_default()),
            Err(error) => error.into(),
        }
    }
}

/// Why a call ended.
pub(crate) fn ended(trailers: &HeaderMap) -> anyhow::Error {
    let status = tonic::Status::from_header_map(trailers).context("a call ended without a status");
    status.map_or_else(|error| error, |status| anyhow::Error::from(status).context("a stream ended"))
}
