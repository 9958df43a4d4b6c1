//! Calls over gRPC as a client library makes them, with any message and any metadata.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tailwater_tests::BytesCodec;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::guard::is_harmless;
use crate::messages::{self, Method};
use crate::random::Random;
use crate::run::World;

/// A call that waits for nothing must be answered by then, on a machine that does other things too.
const ANSWER_MAX: Duration = Duration::from_secs(45);
/// Those that may wait are waited for as long.
const PATIENCE_MAX_MS: u64 = 400;
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Metadata, and values that may mean something.
const METADATA: [(&str, &[&str]); 9] = [
    ("hasleader", &["true", "false", ""]),
    ("client-api-version", &["3.6.0", "", "x"]),
    ("grpc-timeout", &["1S", "10m", "1n", "99999999H", "", "x", "-1S", "5", "999999999S"]),
    ("grpc-encoding", &["gzip", "identity", "zstd", "?"]),
    ("grpc-accept-encoding", &["gzip", "identity,gzip", ","]),
    ("authorization", &["Bearer x", "tw1.AAAA.AAAA", "eyJhbGciOiJub25lIn0.e30.", ""]),
    ("tailwater-position-min", &["1/1", "0/18446744073709551615", "x", "99999999999999999999/1"]),
    ("grpcgateway-accept", &["1"]),
    ("x-noise", &["~", "a,b;c=d"]),
];

pub(crate) fn connect(url: &str) -> anyhow::Result<Channel> {
    Ok(Endpoint::from_shared(url.to_owned())?.tcp_nodelay(true).connect_lazy())
}

fn request<T>(world: &World, random: &mut Random, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    if let Some(token) = random.pick(&world.tokens).as_ref().and_then(|token| token.parse().ok()) {
        metadata.insert("token", token);
    }
    while random.one_in(4) {
        let (name, values) = random.pick(&METADATA);
        let value = random.pick(values);
        let name = AsciiMetadataKey::from_static(name);
        if let Ok(value) = AsciiMetadataValue::try_from(*value) {
            metadata.append(name, value);
        }
    }
    request
}

/// One call. What comes of it is the server's affair, but that something comes.
///
/// # Errors
/// Nothing has come.
pub(crate) async fn any(world: &World, random: &mut Random, channel: &Channel) -> anyhow::Result<()> {
    let method = random.pick(&world.methods).clone();
    if method.client_streams {
        return stream(world, random, channel, &method).await;
    }
    let bytes = messages::bytes(random, &method.input);
    if !is_harmless(&method.path, &bytes, world.with_auth, world.member) {
        return Ok(());
    }
    let shown = format!("{} {:02x?}", method.path, &bytes[..bytes.len().min(400)]);
    let request = request(world, random, Bytes::from(bytes));
    let mut grpc = tonic::client::Grpc::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
    let path = method.path.parse().expect("a path");
    let answers_taken = random.below(20);
    let call = async {
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut answers = grpc.server_streaming(request, path, BytesCodec).await?.into_inner();
        for _ in 0..answers_taken {
            if answers.next().await.transpose()?.is_none() {
                break;
            }
        }
        Ok::<_, Status>(())
    };
    if method.may_wait() {
        let patience = Duration::from_millis(random.below(usize::try_from(PATIENCE_MAX_MS)?) as u64);
        let _ended = tokio::time::timeout(patience, call).await;
        return Ok(());
    }
    let _answer = tokio::time::timeout(ANSWER_MAX, call)
        .await
        .map_err(|_| anyhow::anyhow!("no answer within {ANSWER_MAX:?} to {shown}"))?;
    Ok(())
}

/// A stream of requests that is dropped at some moment.
async fn stream(world: &World, random: &mut Random, channel: &Channel, method: &Method) -> anyhow::Result<()> {
    let count = random.below(12);
    let bodies: Vec<_> = (0..count).map(|_| Bytes::from(messages::bytes(random, &method.input))).collect();
    let pauses: Vec<_> = bodies.iter().map(|_| Duration::from_millis(random.below(20) as u64)).collect();
    let bodies = futures_util::stream::iter(bodies.into_iter().zip(pauses)).then(|(body, pause)| async move {
        tokio::time::sleep(pause).await;
        body
    });
    // Some end their side, others leave it open. Not for ever: the library would keep the call until the requests end.
    let open = usize::from(!random.one_in(3));
    let (call_is_over, until) = tokio::sync::oneshot::channel::<()>();
    let bodies = bodies.chain(futures_util::stream::pending().take(open)).take_until(until);
    let request = request(world, random, bodies);
    let mut grpc = tonic::client::Grpc::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
    let path = method.path.parse()?;
    let is_read = !random.one_in(4);
    let patience = Duration::from_millis(random.below(usize::try_from(PATIENCE_MAX_MS)?) as u64);
    let call = async {
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut answers = grpc.streaming(request, path, BytesCodec).await?.into_inner();
        while is_read && answers.next().await.transpose()?.is_some() {}
        // Open, and not read.
        tokio::time::sleep(patience).await;
        Ok::<_, Status>(())
    };
    let _ended = tokio::time::timeout(patience, call).await;
    drop(call_is_over);
    Ok(())
}
