//! A gRPC client whose messages are bytes.

use bytes::{Buf, BufMut, Bytes};
use futures_util::Stream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};

/// Large enough for every answer of these tests; the default of 4 MiB is not.
pub(crate) const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// A codec that passes message bytes through.
#[derive(Clone, Copy, Debug, Default)]
pub struct BytesCodec;

impl Codec for BytesCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, input: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let len = input.remaining();
        Ok(Some(input.copy_to_bytes(len)))
    }
}

/// Why a call failed, as the server sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// gRPC's number of the code.
    pub code: i32,
    /// The text, byte for byte.
    pub message: String,
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self { code: status.code() as i32, message: status.message().to_owned() }
    }
}

/// Calls any method of one endpoint over one connection.
#[derive(Clone, Debug)]
pub struct RawClient {
    channel: Channel,
    token: Option<AsciiMetadataValue>,
}

impl RawClient {
    /// A client of `url`, for example `http://127.0.0.1:2379`; it connects with the first call.
    ///
    /// # Errors
    /// When `url` is not a URL.
    pub fn new(url: &str) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_shared(url.to_owned())?
            .tcp_nodelay(true)
            .initial_connection_window_size(16 << 20)
            .initial_stream_window_size(4 << 20);
        Ok(Self { channel: endpoint.connect_lazy(), token: None })
    }

    /// The same connection, for calls that show this token.
    ///
    /// # Errors
    /// When `token` can't stand in a header.
    pub fn with_token(&self, token: &str) -> anyhow::Result<Self> {
        Ok(Self { channel: self.channel.clone(), token: Some(token.parse()?) })
    }

    /// The token of `from` on the connection of `to`.
    #[must_use]
    pub fn moved(from: &Self, to: &Self) -> Self {
        Self { channel: to.channel.clone(), token: from.token.clone() }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.clone());
        }
        request
    }

    /// The connection, for typed clients.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Sends one message to `path` (`/package.Service/Method`) and waits for one message.
    ///
    /// # Errors
    /// What the server answered.
    pub async fn unary(&self, path: &str, body: Bytes) -> Result<Bytes, Failure> {
        let mut grpc = self.grpc().await?;
        let path = path.parse().map_err(|_| Status::internal("not a path"))?;
        Ok(grpc.unary(self.request(body), path, BytesCodec).await?.into_inner())
    }

    /// Sends the messages of `bodies` to `path`. Returns when the server has sent its headers, which may be only
    /// with its first message.
    ///
    /// # Errors
    /// What the server answered instead of messages.
    pub async fn streaming<S>(&self, path: &str, bodies: S) -> Result<Response<Streaming<Bytes>>, Status>
    where
        S: Stream<Item = Bytes> + Send + 'static,
    {
        let mut grpc = self.grpc().await?;
        let path = path.parse().map_err(|_| Status::internal("not a path"))?;
        grpc.streaming(self.request(bodies), path, BytesCodec).await
    }

    async fn grpc(&self) -> Result<tonic::client::Grpc<Channel>, Status> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(grpc)
    }
}
