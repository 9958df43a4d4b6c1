//! Calls that the gateway makes in a client's name: what elections and locks are made of, and what JSON stands for.
//!
//! They take the way of every other call, with the client's credentials, so that whatever is checked, routed or forwarded
//! for a client is so for them.

use std::pin::Pin;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, header, request};
use http_body_util::BodyExt as _;
use prost::Message;
use tailwater_api::grpc::{self, FrameDecoder};

use crate::Gateway;
use crate::route::position::POSITION_MIN;
use crate::status::{Code, Fault};

/// An answer to come.
pub(crate) type Answering = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// Makes calls as the client of another call.
#[derive(Clone)]
pub(crate) struct Caller {
    gateway: Gateway,
    headers: HeaderMap,
    extensions: http::Extensions,
}

impl Caller {
    /// As the client of the call with this head.
    pub(crate) fn of(gateway: &Gateway, head: &request::Parts) -> Self {
        let mut headers = head.headers.clone();
        // Of the call itself, not of who makes it.
        for name in [header::CONTENT_LENGTH.as_str(), "grpc-timeout", POSITION_MIN] {
            headers.remove(name);
        }
        Self { gateway: gateway.clone(), headers, extensions: head.extensions.clone() }
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// As the method refuses.
    pub(crate) async fn unary<A: Message + Default>(
        &self,
        path: &'static str,
        request: &impl Message,
    ) -> Result<A, Fault> {
        let mut answers = self.stream(path, request).await?;
        let answer = answers.next().await?.ok_or(Fault::Stopped)?;
        answers.end().await?;
        A::decode(answer).map_err(|error| Fault::Other(Code::Internal, error.to_string()))
    }

    /// Asks, and takes the answers as they come.
    ///
    /// # Errors
    /// As the method refuses at once.
    pub(crate) async fn stream(&self, path: &'static str, request: &impl Message) -> Result<Answers, Fault> {
        let mut call = call_of(path, framed_body(&request.encode_to_vec()));
        call.headers_mut().extend(self.headers.clone());
        *call.extensions_mut() = self.extensions.clone();
        Answers::of(answer(self.gateway.clone(), call).await)
    }
}

/// Boxed, since some calls make calls.
pub(crate) fn answer(gateway: Gateway, call: Request<Body>) -> Answering {
    Box::pin(async move { gateway.serve(call).await })
}

/// A gRPC call without headers of its client's.
pub(crate) fn call_of(path: &'static str, body: Body) -> Request<Body> {
    let mut call = Request::new(body);
    *call.method_mut() = http::Method::POST;
    *call.version_mut() = http::Version::HTTP_2;
    *call.uri_mut() = http::Uri::from_static(path);
    call.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    call.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
    call
}

/// A body of one message.
pub(crate) fn framed_body(message: &[u8]) -> Body {
    let mut body = BytesMut::with_capacity(grpc::PREFIX_BYTES + message.len());
    grpc::put_prefix(&mut body, message.len());
    body.extend_from_slice(message);
    Body::from(body.freeze())
}

/// The messages of an answer, as they come.
pub(crate) struct Answers {
    body: Body,
    decoder: FrameDecoder,
    /// How the answer has ended.
    ended: Option<Result<(), Fault>>,
}

impl Answers {
    /// # Errors
    /// The answer is its status alone, and that is a refusal.
    pub(crate) fn of(response: Response<Body>) -> Result<Self, Fault> {
        let (head, body) = response.into_parts();
        if let Some(status) = status_of(&head.headers) {
            status?;
        }
        Ok(Self { body, decoder: FrameDecoder::new(usize::MAX), ended: None })
    }

    /// The next message; none behind the last.
    ///
    /// # Errors
    /// The answer ended with a refusal.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        loop {
            if let Some(message) = self.decoder.next_message()? {
                return Ok(Some(message));
            }
            if let Some(ended) = &self.ended {
                return ended.clone().map(|()| None);
            }
            match self.body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.decoder.push(data),
                    Err(frame) => self.ended = frame.trailers_ref().and_then(status_of),
                },
                Some(Err(error)) => self.ended = Some(Err(Fault::Other(Code::Unavailable, error.to_string()))),
                None => {
                    self.ended = Some(Err(Fault::Other(
                        Code::Internal,
                        "server closed the stream without sending trailers".to_owned(),
                    )));
                }
            }
        }
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// The answer ended with a refusal.
    async fn end(&mut self) -> Result<(), Fault> {
        while self.next().await?.is_some() {}
        Ok(())
    }
}

/// What these headers say of how the call went; `None` when they say nothing.
fn status_of(headers: &HeaderMap) -> Option<Result<(), Fault>> {
    let code = headers.get("grpc-status")?.to_str().ok().and_then(|code| code.parse().ok());
    if code == Some(0) {
        return Some(Ok(()));
    }
    let text = headers.get("grpc-message").map(|text| grpc::percent_decode(text.as_bytes())).unwrap_or_default();
    Some(Err(Fault::Other(code.map_or(Code::Unknown, Code::from_number), text)))
}
