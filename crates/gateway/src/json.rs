//! The JSON gateway: every gRPC method as `POST /v3/…` with its messages as JSON, as etcd's grpc-gateway has it.
//!
//! A request becomes the gRPC call that it stands for and takes that way, with the caller's token; messages are read and
//! written by their descriptors. Streams are one JSON value per line, requests as well as answers. A certificate's common
//! name says nothing here, as in etcd, so a call is without it.

use std::net::SocketAddr;
use std::pin::Pin;

use axum::body::{Body, BodyDataStream};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header, request};
use tailwater_api::grpc;

use crate::caller::{Answering, Answers, call_of, framed_body};
use crate::methods::Kind;
use crate::status::{Code, Fault};

pub(crate) mod fuzzing;
mod messages;
mod routes;
mod split;
mod strict;

use messages::Codec;
use split::Splitter;

/// In front of headers that become those of the call.
const METADATA_PREFIX: &str = "grpc-metadata-";
/// What a message may be longer as JSON, where bytes are base64.
const JSON_PER_BYTE: usize = 2;

type Lines = Pin<Box<dyn Stream<Item = Result<Bytes, std::convert::Infallible>> + Send>>;

/// Whether a path is this module's.
pub(crate) fn is_json(path: &str) -> bool {
    path.starts_with("/v3/") || path.starts_with("/v3beta/")
}

/// Answers a request; `call` makes the call, of which a message is at most `message_bytes_max` long.
pub(crate) async fn serve(
    request: Request<Body>,
    message_bytes_max: usize,
    call: impl FnOnce(Request<Body>) -> Answering,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    let Some((path, kind)) = routes::find(head.uri.path()) else {
        return refusal(StatusCode::NOT_FOUND, &Fault::Other(Code::NotFound, "Not Found".to_owned()));
    };
    if head.method != Method::POST {
        let fault = Fault::Other(Code::Unimplemented, "Method Not Allowed".to_owned());
        return refusal(StatusCode::NOT_IMPLEMENTED, &fault);
    }
    let codec = Codec::of(path);
    let bytes_max = message_bytes_max.saturating_mul(JSON_PER_BYTE);
    let body = match kind {
        Kind::BidiStream => requests(body, codec.clone(), bytes_max),
        Kind::Unary | Kind::ServerStream => match one_request(body, &codec, bytes_max).await {
            Ok(message) => framed_body(&message),
            Err(fault) => return fault_response(&fault),
        },
    };
    let mut grpc_call = call_of(path, body);
    copy_metadata(&head, grpc_call.headers_mut());
    if let Some(peer) = head.extensions.get::<SocketAddr>() {
        grpc_call.extensions_mut().insert(*peer);
    }
    let answers = Answers::of(call(grpc_call).await);
    if kind == Kind::Unary { unary(answers, &codec).await } else { stream(answers, codec).await }
}

/// What of a request's headers goes along with the call.
fn copy_metadata(head: &request::Parts, call: &mut HeaderMap) {
    for name in ["authorization", "grpc-timeout"] {
        if let Some(value) = head.headers.get(name) {
            call.insert(name, value.clone());
        }
    }
    for (name, value) in &head.headers {
        let metadata = name.as_str().strip_prefix(METADATA_PREFIX).and_then(|name| HeaderName::try_from(name).ok());
        if let Some(name) = metadata.filter(|name| !is_transports(name)) {
            call.insert(name, value.clone());
        }
    }
}

/// Headers that say how a call travels, which is not the client's to say.
fn is_transports(name: &HeaderName) -> bool {
    name.as_str().starts_with("grpc-")
        || name.as_str().starts_with("tailwater-")
        || [header::TE, header::CONTENT_TYPE, header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION]
            .contains(name)
}

/// The one message of a request; nothing at all stands for an empty one.
async fn one_request(body: Body, codec: &Codec, bytes_max: usize) -> Result<Vec<u8>, Fault> {
    let json = axum::body::to_bytes(body, bytes_max).await.map_err(|_| {
        Fault::Other(Code::ResourceExhausted, format!("tailwater: a request of more than {bytes_max} bytes of JSON"))
    })?;
    codec.request(&json).map_err(bad_request)
}

fn bad_request(reason: String) -> Fault {
    Fault::Other(Code::InvalidArgument, reason)
}

async fn unary(answers: Result<Answers, Fault>, codec: &Codec) -> Response<Body> {
    let answer = async {
        let mut answers = answers?;
        let message = answers.next().await?.ok_or(Fault::Stopped)?;
        let json = codec.answer(message)?;
        // The status comes behind the message.
        while answers.next().await?.is_some() {}
        Ok(json)
    };
    match answer.await {
        Ok(json) => success(Body::from(json)),
        Err(fault) => fault_response(&fault),
    }
}

/// One line per message. The head waits for the first, since a refusal is told by it.
async fn stream(answers: Result<Answers, Fault>, codec: Codec) -> Response<Body> {
    let mut answers = match answers {
        Ok(answers) => answers,
        Err(fault) => return stream_refusal(&fault),
    };
    let first = match next_line(&mut answers, &codec).await {
        Ok(Some(first)) => Some(first),
        // Then there is nothing that a head could be about.
        Ok(None) => return Response::new(Body::empty()),
        Err(fault) => return stream_refusal(&fault),
    };
    let lines: Lines = Box::pin(futures_util::stream::unfold((first, Some((answers, codec))), |state| async move {
        // The first line is there, the others are waited for.
        let (line, rest) = match state {
            (Some(line), rest) => (line, rest),
            (None, None) => return None,
            (None, Some((mut answers, codec))) => match next_line(&mut answers, &codec).await {
                Ok(line) => (line?, Some((answers, codec))),
                Err(fault) => (error_line(&fault), None),
            },
        };
        Some((Ok(line), (None, rest)))
    }));
    success(Body::from_stream(lines))
}

async fn next_line(answers: &mut Answers, codec: &Codec) -> Result<Option<Bytes>, Fault> {
    let Some(message) = answers.next().await? else { return Ok(None) };
    let mut line = b"{\"result\":".to_vec();
    line.extend(codec.answer(message)?);
    line.extend_from_slice(b"}\n");
    Ok(Some(line.into()))
}

/// The messages of a stream of requests, as the call's body. Where they can't be read, the stream ends, as in etcd; where
/// the client is gone, it breaks off.
fn requests(body: Body, codec: Codec, bytes_max: usize) -> Body {
    let begin = Some(Requests { body: body.into_data_stream(), splitter: Some(Splitter::new(bytes_max)) });
    Body::from_stream(futures_util::stream::unfold(begin, move |requests| {
        let codec = codec.clone();
        async move {
            let mut requests = requests?;
            match requests.next(&codec).await {
                Ok(message) => {
                    let message = message?;
                    let mut framed = BytesMut::with_capacity(grpc::PREFIX_BYTES + message.len());
                    grpc::put_prefix(&mut framed, message.len());
                    framed.put_slice(&message);
                    Some((Ok(framed.freeze()), Some(requests)))
                }
                Err(gone) => Some((Err(gone), None)),
            }
        }
    }))
}

/// A stream of requests.
struct Requests {
    body: BodyDataStream,
    /// None behind what is no message.
    splitter: Option<Splitter>,
}

impl Requests {
    /// The next message; none at the end. Behind what is no message the rest is read and passed over: of a body that nobody
    /// reads nobody learns that its client is gone.
    ///
    /// # Errors
    /// The client is gone.
    async fn next(&mut self, codec: &Codec) -> Result<Option<Vec<u8>>, axum::Error> {
        if let Some(splitter) = &mut self.splitter {
            let mut gone = None;
            let mut pieces = self.body.by_ref().map(|piece| {
                piece.map_err(|error| {
                    gone = Some(error);
                    "the client is gone"
                })
            });
            let json = splitter.next(&mut pieces).await;
            if let Some(gone) = gone {
                return Err(gone);
            }
            match json.and_then(|json| json.map(|json| codec.request(&json)).transpose()) {
                Ok(message) => return Ok(message),
                Err(reason) => {
                    tracing::debug!(reason, "a stream of JSON can't be read on");
                    self.splitter = None;
                }
            }
        }
        while let Some(piece) = self.body.next().await {
            piece?;
        }
        Ok(None)
    }
}

fn success(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert("grpc-metadata-content-type", grpc);
    response
}

/// A refusal with the status that belongs to its code.
fn fault_response(fault: &Fault) -> Response<Body> {
    refusal(http_status(fault.status().0), fault)
}

fn refusal(status: StatusCode, fault: &Fault) -> Response<Body> {
    let mut response = Response::new(Body::from(status_json(fault)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let (code, text) = fault.status();
    if code == Code::Unauthenticated
        && let Ok(text) = HeaderValue::from_str(text)
    {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, text);
    }
    response
}

/// The refusal of a stream that has not begun.
fn stream_refusal(fault: &Fault) -> Response<Body> {
    let mut response = refusal(http_status(fault.status().0), fault);
    *response.body_mut() = Body::from(error_line(fault));
    response
}

fn error_line(fault: &Fault) -> Bytes {
    format!("{{\"error\":{}}}\n", status_json(fault)).into()
}

fn status_json(fault: &Fault) -> String {
    let (code, text) = fault.status();
    format!("{{\"code\":{},\"message\":{}}}", code as i32, serde_json::Value::from(text))
}

/// grpc-gateway's table.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Canceled => StatusCode::from_u16(499).expect("three digits are a status"),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    /// The messages' bytes, or that the stream breaks off.
    async fn read(pieces: Vec<Result<&'static str, std::io::Error>>) -> Result<Bytes, axum::Error> {
        let body = Body::from_stream(futures_util::stream::iter(pieces));
        Ok(requests(body, Codec::of("/etcdserverpb.Watch/Watch"), 64).collect().await?.to_bytes())
    }

    #[tokio::test]
    async fn a_client_that_is_gone_breaks_its_stream_off() {
        let create = r#"{"create_request":{"key":"YQ=="}}"#;
        let message = &b"\0\0\0\0\x05\n\x03\n\x01a"[..];
        for (sent, expected) in [("", &b""[..]), (create, message), ("xx", b""), ("{]", b""), ("{", b"")] {
            let whole = read(vec![Ok(sent), Ok("")]).await.expect("the client has ended its side");
            assert_eq!(whole, expected, "{sent}");
            let gone = || Err(std::io::ErrorKind::ConnectionReset.into());
            read(vec![Ok(sent), gone()]).await.expect_err("the client is gone");
            read(vec![Ok(sent), Ok("xx"), Ok("{}"), gone()]).await.expect_err("the client is gone");
        }
    }
}
