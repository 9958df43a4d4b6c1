//! From an HTTP request to a method and back: the front of every gRPC call.

use std::time::Duration;

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Request, Response};
use prost::Message;
use tailwater_api::grpc;

use crate::Gateway;
use crate::admin::HealthWatch;
use crate::body::{Answer, CallBody};
use crate::lease::KeepAliveCall;
use crate::methods::{self, Kind, Method};
use crate::metrics::Observation;
use crate::status::{Code, Fault};
use crate::watch::WatchCall;

impl Gateway {
    /// Serves one HTTP request: gRPC by its content type, everything else as HTTP.
    pub async fn serve(&self, request: Request<Body>) -> Response<Body> {
        let content_type = request.headers().get(http::header::CONTENT_TYPE);
        if content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc")) {
            self.call(request).await
        } else {
            let (head, _) = request.into_parts();
            crate::http::serve(self, &head.method, &head.uri).await
        }
    }

    async fn call(&self, request: Request<Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let method = match methods::find(head.uri.path()) {
            Ok(method) => method,
            Err(text) => return refusal(&Fault::Other(Code::Unimplemented, text)),
        };
        let mut observation = Observation::start(self.clone(), method);
        let answer = match timeout(&head.headers) {
            Some(limit) if method.kind == Kind::Unary => {
                let answer = self.answer(&method, &head.headers, body, &mut observation);
                tokio::time::timeout(limit, answer).await.unwrap_or(Err(Fault::DeadlineExceeded))
            }
            _ => self.answer(&method, &head.headers, body, &mut observation).await,
        };
        match answer {
            Ok(answer) => {
                let mut response = Response::new(Body::new(CallBody::new(answer, observation)));
                mark_as_grpc(response.headers_mut());
                response
            }
            Err(fault) => {
                observation.end(fault.status().0 as i32);
                refusal(&fault)
            }
        }
    }

    /// Checks the metadata, then answers.
    async fn answer(
        &self,
        method: &Method,
        headers: &HeaderMap,
        body: Body,
        observation: &mut Observation,
    ) -> Result<Answer, Fault> {
        self.count_client(method, headers)?;
        let requires_leader = headers.get("hasleader").is_some_and(|value| value == "true");
        if requires_leader && self.fanout().snapshot().leader.is_none() {
            return Err(Fault::NoLeader);
        }
        if method.kind == Kind::BidiStream {
            return Ok(Answer::Stream(match method.path {
                "/etcdserverpb.Watch/Watch" => Box::new(WatchCall::open(self.clone(), body, requires_leader)),
                _ => Box::new(KeepAliveCall::open(self.clone(), body)),
            }));
        }
        let message = grpc::collect_unary(body, self.config().message_bytes_max()).await?;
        observation.received(message.len());
        self.dispatch(method, message).await
    }

    async fn dispatch(&self, method: &Method, message: bytes::Bytes) -> Result<Answer, Fault> {
        Ok(match method.path {
            "/etcdserverpb.KV/Range" => Answer::Range(Box::new(self.range(decode(message)?).await?)),
            "/etcdserverpb.KV/Put" => Answer::message(&self.put(decode(message)?).await?),
            "/etcdserverpb.KV/DeleteRange" => Answer::message(&self.delete_range(decode(message)?).await?),
            "/etcdserverpb.KV/Txn" => self.txn(decode(message)?).await?,
            "/etcdserverpb.KV/Compact" => Answer::message(&self.compact(decode(message)?).await?),
            "/etcdserverpb.Lease/LeaseGrant" => Answer::message(&self.lease_grant(decode(message)?).await?),
            "/etcdserverpb.Lease/LeaseRevoke" => Answer::message(&self.lease_revoke(decode(message)?).await?),
            "/etcdserverpb.Lease/LeaseTimeToLive" => Answer::message(&self.lease_time_to_live(decode(message)?).await?),
            "/etcdserverpb.Lease/LeaseLeases" => Answer::message(&self.lease_leases().await?),
            "/etcdserverpb.Cluster/MemberList" => Answer::message(&self.member_list(decode(message)?).await?),
            "/etcdserverpb.Maintenance/Status" => Answer::message(&self.status().await?),
            "/etcdserverpb.Maintenance/Alarm" => Answer::message(&self.alarm(decode(message)?).await?),
            "/grpc.health.v1.Health/Check" => Answer::message(&self.health_check(&decode(message)?)?),
            "/grpc.health.v1.Health/Watch" => Answer::Stream(Box::new(HealthWatch::open(self, &decode(message)?))),
            _ => return Err(Fault::unserved(method.service(), method.name())),
        })
    }

    fn count_client(&self, method: &Method, headers: &HeaderMap) -> Result<(), Fault> {
        let version = match headers.get("client-api-version") {
            None => "unknown",
            Some(value) => std::str::from_utf8(value.as_bytes()).map_err(|_| Fault::InvalidClientApiVersion)?,
        };
        self.calls().client(if method.kind == Kind::Unary { "unary" } else { "stream" }, version);
        Ok(())
    }
}

fn decode<M: Message + Default>(message: bytes::Bytes) -> Result<M, Fault> {
    M::decode(message).map_err(|error| Fault::malformed(&error))
}

fn mark_as_grpc(headers: &mut HeaderMap) {
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
}

/// An answer that consists of its status alone.
fn refusal(fault: &Fault) -> Response<Body> {
    let (code, text) = fault.status();
    let mut response = Response::new(Body::empty());
    *response.headers_mut() = grpc::trailers(code as i32, text);
    mark_as_grpc(response.headers_mut());
    response
}

/// gRPC's `grpc-timeout`: up to eight digits and a unit.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_digits_and_a_unit() {
        let parse = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", HeaderValue::from_static(text));
            timeout(&headers)
        };
        assert_eq!(parse("5S"), Some(Duration::from_secs(5)));
        assert_eq!(parse("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(parse("250m"), Some(Duration::from_millis(250)));
        for text in ["", "S", "5", "5x", "-5S", "999999999S"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_refusal_is_trailers_only() {
        let response = refusal(&Fault::unserved("etcdserverpb.Auth", "AuthEnable"));
        assert_eq!(response.headers()["grpc-status"], "12");
        assert_eq!(response.headers()["content-type"], "application/grpc");
        let text = "tailwater: etcdserverpb.Auth/AuthEnable is not served by this version";
        assert_eq!(response.headers()["grpc-message"], text);
    }
}
