//! From an HTTP request to a method and back: the front of every gRPC call.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use prost::Message;
use tailwater_api::{etcdserverpb as pb, grpc};
use tailwater_eventlog::MemberId;

use crate::Gateway;
use crate::admin::HealthWatch;
use crate::auth::Credentials;
use crate::body::{Answer, CallBody};
use crate::lease::KeepAliveCall;
use crate::methods::{self, Kind, Method};
use crate::metrics::Observation;
use crate::route::is_routed;
use crate::route::position::{POSITION, POSITION_MIN, Place};
use crate::snapshot::SnapshotCall;
use crate::status::{Code, Fault};
use crate::watch::WatchCall;

const AUTH: &str = "etcdserverpb.Auth";
const RANGE: &str = "/etcdserverpb.KV/Range";
/// What a member without a vote answers, of ranges the serializable ones; etcd's rule.
const SERVED_BY_LEARNERS: &[&str] = &[
    RANGE,
    "/etcdserverpb.Maintenance/Status",
    "/etcdserverpb.Maintenance/Snapshot",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
];

/// What a node answers that is not ready: what it is, not what it holds.
const SERVED_UNREADY: &[&str] =
    &["/etcdserverpb.Maintenance/Status", "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"];

impl Gateway {
    /// Serves one HTTP request of a client: gRPC is HTTP/2 with its content type, everything else plain HTTP.
    pub async fn serve(&self, request: Request<Body>) -> Response<Body> {
        let content_type = request.headers().get(http::header::CONTENT_TYPE);
        let is_grpc = content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
        if is_grpc && request.version() == http::Version::HTTP_2 {
            // What another replica has sent here is not sent on: that could go in a circle.
            let is_first = !request.headers().contains_key(POSITION_MIN);
            return match self.forwarder().filter(|_| is_first && is_routed(request.uri().path())) {
                Some(forwarder) => Box::pin(forwarder.call(self.vouch(request))).await,
                None => self.call(request).await,
            };
        }
        Box::pin(crate::http::serve(self, request)).await
    }

    /// Serves one HTTP request on a listener for metrics and health alone.
    pub async fn serve_metrics(&self, request: Request<Body>) -> Response<Body> {
        let (head, _) = request.into_parts();
        crate::http::serve_metrics(self, &head.method, &head.uri).await
    }

    /// Answers a gRPC call from the fanout of this process and the write plane.
    pub(crate) async fn call(&self, request: Request<Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        if head.method != http::Method::POST {
            let text = format!("Received a HEADERS frame with :method {:?} which should be POST", head.method.as_str());
            return http_refusal(StatusCode::METHOD_NOT_ALLOWED, text);
        }
        let limit = match timeout(&head.headers) {
            Ok(limit) => limit,
            Err(reason) => {
                return http_refusal(StatusCode::BAD_REQUEST, format!("malformed grpc-timeout: transport: {reason}"));
            }
        };
        let method = match methods::find(head.uri.path()) {
            Ok(method) => method,
            Err(text) => return refusal(&Fault::Other(Code::Unimplemented, text)),
        };
        let mut observation = Observation::start(self.clone(), method);
        let answer = match limit {
            Some(limit) if method.kind == Kind::Unary => {
                let answer = self.answer(&method, &head, body, &mut observation);
                tokio::time::timeout(limit, answer).await.unwrap_or(Err(Fault::DeadlineExceeded))
            }
            _ => self.answer(&method, &head, body, &mut observation).await,
        };
        match answer {
            Ok(answer) => {
                // An answer that is there already is not cut off; a stream goes on until its client's deadline.
                let limit = limit.filter(|_| method.kind != Kind::Unary);
                let mut response = Response::new(Body::new(CallBody::new(answer, limit, observation)));
                mark_as_grpc(response.headers_mut());
                if head.headers.contains_key(POSITION_MIN) {
                    response.headers_mut().insert(POSITION, self.place().to_header());
                }
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
        head: &Parts,
        body: Body,
        observation: &mut Observation,
    ) -> Result<Answer, Fault> {
        let headers = &head.headers;
        self.count_client(method, headers)?;
        refuse_encoding(headers)?;
        if let Some(reason) = self.unready().filter(|_| !SERVED_UNREADY.contains(&method.path)) {
            return Err(Fault::Other(Code::Unavailable, reason.into()));
        }
        let requires_leader = headers.get("hasleader").is_some_and(|value| value == "true");
        let snapshot = self.fanout().snapshot();
        if requires_leader && snapshot.leader.is_none() {
            return Err(Fault::NoLeader);
        }
        // As the tail says: the write plane's own status is behind a lock that its threads need.
        let own = MemberId(self.config().member_id);
        let is_learner = snapshot.members.iter().any(|member| member.id == own && member.is_learner);
        if is_learner && !SERVED_BY_LEARNERS.contains(&method.path) {
            return Err(Fault::NotSupportedForLearner);
        }
        // Another replica may have shown this client more than what is visible here.
        if let Some(place) = headers.get(POSITION_MIN).and_then(Place::parse) {
            self.reach_place(place).await?;
        }
        let credentials = Credentials::of(head);
        self.admit(method, &credentials).await?;
        if method.kind == Kind::BidiStream {
            return Ok(Answer::Stream(match method.path {
                "/etcdserverpb.Watch/Watch" => {
                    let peer = head.extensions.get::<SocketAddr>().copied();
                    Box::new(WatchCall::open(self.clone(), *method, credentials, body, requires_leader, peer))
                }
                _ => Box::new(KeepAliveCall::open(self.clone(), *method, credentials, body)),
            }));
        }
        let message = grpc::collect_unary(body, self.config().message_bytes_max()).await?;
        observation.received(message.len());
        if is_learner && method.path == RANGE {
            // Decoded twice, which only a learner's clients pay for.
            let request: pb::RangeRequest = decode(message.clone())?;
            if !request.serializable {
                return Err(Fault::NotSupportedForLearner);
            }
        }
        match method.service() {
            "v3electionpb.Election" | "v3lockpb.Lock" => self.dispatch_recipe(method, head, message).await,
            _ => self.dispatch(method, &credentials, message).await,
        }
    }

    /// What consists of other calls.
    async fn dispatch_recipe(&self, method: &Method, head: &Parts, message: bytes::Bytes) -> Result<Answer, Fault> {
        Ok(match method.path {
            "/v3electionpb.Election/Campaign" => Answer::message(&self.campaign(head, decode(message)?).await?),
            "/v3electionpb.Election/Proclaim" => Answer::message(&self.proclaim(head, decode(message)?).await?),
            "/v3electionpb.Election/Leader" => Answer::message(&self.leader(head, &decode(message)?).await?),
            "/v3electionpb.Election/Observe" => Answer::Stream(Box::new(self.observe(head, &decode(message)?))),
            "/v3electionpb.Election/Resign" => Answer::message(&self.resign(head, decode(message)?).await?),
            "/v3lockpb.Lock/Lock" => Answer::message(&self.lock(head, decode(message)?).await?),
            "/v3lockpb.Lock/Unlock" => Answer::message(&self.unlock(head, decode(message)?).await?),
            _ => return Err(Fault::unserved(method.service(), method.name())),
        })
    }

    async fn dispatch(
        &self,
        method: &Method,
        credentials: &Credentials,
        message: bytes::Bytes,
    ) -> Result<Answer, Fault> {
        if method.service() == AUTH {
            return self.dispatch_auth(method, credentials, message).await;
        }
        let by = credentials;
        Ok(match method.path {
            RANGE => Answer::Range(Box::new(self.range(by, decode(message)?).await?)),
            "/etcdserverpb.KV/RangeStream" => match decode::<pb::RangeRequest>(message)? {
                request if request.sort_target == 0 || request.count_only => {
                    Answer::Stream(Box::new(self.range_stream(by, request).await?))
                }
                request => Answer::Range(Box::new(self.sorted_range_stream(by, request).await?)),
            },
            "/etcdserverpb.KV/Put" => Answer::message(&self.put(by, decode(message)?).await?),
            "/etcdserverpb.KV/DeleteRange" => Answer::message(&self.delete_range(by, decode(message)?).await?),
            "/etcdserverpb.KV/Txn" => self.txn(by, decode(message)?).await?,
            "/etcdserverpb.KV/Compact" => Answer::message(&self.compact(by, decode(message)?).await?),
            "/etcdserverpb.Lease/LeaseGrant" => Answer::message(&self.lease_grant(by, decode(message)?).await?),
            "/etcdserverpb.Lease/LeaseRevoke" => Answer::message(&self.lease_revoke(by, decode(message)?).await?),
            "/etcdserverpb.Lease/LeaseTimeToLive" => {
                Answer::message(&self.lease_time_to_live(by, decode(message)?).await?)
            }
            "/etcdserverpb.Lease/LeaseLeases" => Answer::message(&self.lease_leases(by).await?),
            "/etcdserverpb.Cluster/MemberAdd" => Answer::message(&self.member_add(by, decode(message)?).await?),
            "/etcdserverpb.Cluster/MemberRemove" => Answer::message(&self.member_remove(by, decode(message)?).await?),
            "/etcdserverpb.Cluster/MemberUpdate" => Answer::message(&self.member_update(by, decode(message)?).await?),
            "/etcdserverpb.Cluster/MemberPromote" => Answer::message(&self.member_promote(by, decode(message)?).await?),
            "/etcdserverpb.Maintenance/MoveLeader" => Answer::message(&self.move_leader(decode(message)?).await?),
            "/etcdserverpb.Cluster/MemberList" => Answer::message(&self.member_list(decode(message)?).await?),
            "/etcdserverpb.Maintenance/Status" => Answer::message(&self.status().await?),
            "/etcdserverpb.Maintenance/HashKV" => Answer::message(&self.hash_kv(decode(message)?).await?),
            "/etcdserverpb.Maintenance/Hash" => Answer::message(&self.hash(decode(message)?).await?),
            "/etcdserverpb.Maintenance/Defragment" => Answer::message(&self.defragment(decode(message)?).await?),
            "/etcdserverpb.Maintenance/Downgrade" => Answer::message(&self.downgrade(by, decode(message)?).await?),
            "/etcdserverpb.Maintenance/Snapshot" => {
                let _: pb::SnapshotRequest = decode(message)?;
                Answer::Stream(Box::new(SnapshotCall::new(self.snapshot().await?)))
            }
            "/etcdserverpb.Maintenance/Alarm" => Answer::message(&self.alarm(by, decode(message)?).await?),
            "/grpc.health.v1.Health/Check" => Answer::message(&self.health_check(&decode(message)?)?),
            "/grpc.health.v1.Health/Watch" => Answer::Stream(Box::new(HealthWatch::open(self, &decode(message)?))),
            _ => return Err(Fault::unserved(method.service(), method.name())),
        })
    }

    async fn dispatch_auth(&self, method: &Method, by: &Credentials, message: bytes::Bytes) -> Result<Answer, Fault> {
        Ok(match method.name() {
            "AuthStatus" => Answer::message(&self.auth_status().await?),
            "Authenticate" => Answer::message(&self.authenticate(decode(message)?).await?),
            "AuthEnable" => Answer::message(&self.auth_enable(by).await?),
            "AuthDisable" => Answer::message(&self.auth_disable(by, decode(message)?).await?),
            "UserAdd" => Answer::message(&self.user_add(by, decode(message)?).await?),
            "UserGet" => Answer::message(&self.user_get(by, &decode(message)?).await?),
            "UserList" => Answer::message(&self.user_list(by).await?),
            "UserDelete" => Answer::message(&self.user_delete(by, decode(message)?).await?),
            "UserChangePassword" => Answer::message(&self.user_change_password(by, decode(message)?).await?),
            "UserGrantRole" => Answer::message(&self.user_grant_role(by, decode(message)?).await?),
            "UserRevokeRole" => Answer::message(&self.user_revoke_role(by, decode(message)?).await?),
            "RoleAdd" => Answer::message(&self.role_add(by, decode(message)?).await?),
            "RoleGet" => Answer::message(&self.role_get(by, &decode(message)?).await?),
            "RoleList" => Answer::message(&self.role_list(by).await?),
            "RoleDelete" => Answer::message(&self.role_delete(by, decode(message)?).await?),
            "RoleGrantPermission" => Answer::message(&self.role_grant_permission(by, decode(message)?).await?),
            "RoleRevokePermission" => Answer::message(&self.role_revoke_permission(by, decode(message)?).await?),
            _ => return Err(Fault::unserved(method.service(), method.name())),
        })
    }

    fn count_client(&self, method: &Method, headers: &HeaderMap) -> Result<(), Fault> {
        let version = match headers.get("client-api-version") {
            None => "unknown",
            Some(value) => std::str::from_utf8(value.as_bytes()).map_err(|_| Fault::InvalidClientApiVersion)?,
        };
        self.calls().client(method.kind == Kind::Unary, version);
        Ok(())
    }
}

fn decode<M: Message + Default>(message: bytes::Bytes) -> Result<M, Fault> {
    M::decode(message).map_err(|error| Fault::malformed(&error))
}

/// Requests are read as they are; a client that would compress them is told so before it sends any.
fn refuse_encoding(headers: &HeaderMap) -> Result<(), Fault> {
    match headers.get("grpc-encoding") {
        Some(encoding) if encoding != "identity" => {
            let encoding = String::from_utf8_lossy(encoding.as_bytes());
            let text = format!("grpc: Decompressor is not installed for grpc-encoding {encoding:?}");
            Err(Fault::Other(Code::Unimplemented, text))
        }
        _ => Ok(()),
    }
}

fn mark_as_grpc(headers: &mut HeaderMap) {
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
}

/// An answer that consists of its status alone.
pub(crate) fn refusal(fault: &Fault) -> Response<Body> {
    let (code, text) = fault.status();
    let mut response = Response::new(Body::empty());
    *response.headers_mut() = grpc::trailers(code as i32, text);
    mark_as_grpc(response.headers_mut());
    response
}

/// The refusal of a request that isn't gRPC as the transport knows it.
pub(crate) fn http_refusal(status: StatusCode, text: String) -> Response<Body> {
    let mut response = refusal(&Fault::Other(Code::Internal, text));
    *response.status_mut() = status;
    response
}

/// gRPC's `grpc-timeout`: up to eight digits and a unit; the error is grpc-go's sentence.
pub(crate) fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, String> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let text = String::from_utf8_lossy(value.as_bytes());
    match text.len() {
        0 | 1 => return Err(format!("timeout string is too short: {text:?}")),
        2..=9 => {}
        _ => return Err(format!("timeout string is too long: {text:?}")),
    }
    let Some((digits, unit)) = text.split_at_checked(text.len() - 1) else {
        return Err(format!("timeout unit is not recognized: {text:?}"));
    };
    let unit = match unit {
        "H" => Duration::from_secs(3600),
        "M" => Duration::from_secs(60),
        "S" => Duration::from_secs(1),
        "m" => Duration::from_millis(1),
        "u" => Duration::from_micros(1),
        "n" => Duration::from_nanos(1),
        _ => return Err(format!("timeout unit is not recognized: {text:?}")),
    };
    let count = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<u32>().ok()).flatten();
    match count {
        Some(count) => Ok(Some(unit * count)),
        None => Err(format!("strconv.ParseUint: parsing {digits:?}: invalid syntax")),
    }
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
        assert_eq!(parse("5S"), Ok(Some(Duration::from_secs(5))));
        assert_eq!(parse("99999999H"), Ok(Some(Duration::from_secs(99_999_999 * 3600))));
        assert_eq!(parse("250m"), Ok(Some(Duration::from_millis(250))));
        let refused = [
            ("S", "timeout string is too short: \"S\""),
            ("999999999S", "timeout string is too long: \"999999999S\""),
            ("5x", "timeout unit is not recognized: \"5x\""),
            ("-5S", "strconv.ParseUint: parsing \"-5\": invalid syntax"),
        ];
        for (text, reason) in refused {
            assert_eq!(parse(text), Err(reason.to_owned()));
        }
        assert_eq!(timeout(&HeaderMap::new()), Ok(None));
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
