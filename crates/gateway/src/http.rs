//! Health, version and metrics over plain HTTP, on the client port and on `--listen-metrics-urls`.

use std::time::Duration;

use axum::body::Body;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Limited};
use metrics::{counter, gauge};
use serde::Serialize;
use tailwater_eventlog::{AlarmKind, KeyRange};
use tailwater_fanout::RangeQuery;

use crate::auth::PeerIdentity;
use crate::metrics::{HEALTH_FAILURES, HEALTH_SUCCESS, HEALTHCHECK, HEALTHCHECKS, refresh_gauges};
use crate::status::Fault;
use crate::{Gateway, OverTls, caller, json};

/// Of a body that nobody reads, so much is waited for, and so long.
const DRAINED_BYTES_MAX: usize = 64 << 10;
const DRAINED_WAIT: Duration = Duration::from_secs(1);
const TEXT: &str = "text/plain; charset=utf-8";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";
const LIVE_CHECKS: &[Check] = &[Check::SerializableRead];
const READY_CHECKS: &[Check] =
    &[Check::DataCorruption, Check::SerializableRead, Check::LinearizableRead, Check::NonLearner];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
}

impl Check {
    fn name(self) -> &'static str {
        match self {
            Self::DataCorruption => "data_corruption",
            Self::SerializableRead => "serializable_read",
            Self::LinearizableRead => "linearizable_read",
            Self::NonLearner => "non_learner",
        }
    }
}

/// Answers a client's request that is not gRPC.
pub(crate) async fn serve(gateway: &Gateway, request: Request<Body>) -> Response<Body> {
    let access = &gateway.config().access;
    // Whoever has the certificate is who it says; a name that was made to resolve here is not.
    if request.extensions().get::<OverTls>().is_none()
        && let Some(refused) = access.refuse_host(request.headers(), request.uri())
    {
        return behind_body(request, refused).await;
    }
    if let Some(refused) = refuse_named(gateway, &request) {
        return behind_body(request, refused).await;
    }
    let asked = request.headers().clone();
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let mut response = if method == Method::OPTIONS {
        Response::new(Body::empty())
    } else if gateway.config().json_gateway && json::is_json(uri.path()) {
        let call = gateway.clone();
        json::serve(request, gateway.config().message_bytes_max(), |request| caller::answer(call, request)).await
    } else if uri.path() == "/version" {
        only_get(&method).unwrap_or_else(|| version(gateway))
    } else {
        serve_metrics(gateway, &method, &uri).await
    };
    access.mark(&asked, response.headers_mut());
    response
}

impl Gateway {
    /// Whether everybody who reaches the client port may read every key now: there are no users, and this node answers.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.unready().is_none() && !self.auth().rules.is_enabled()
    }

    /// Whether a request calls this server by a name that it goes by; see [`crate::AccessControl::hosts`].
    #[must_use]
    pub fn admits(&self, request: &Request<Body>) -> bool {
        request.extensions().get::<OverTls>().is_some() || self.config().access.admits(request.headers(), request.uri())
    }
}

/// An answer that does not depend on the body, once that has come: some clients, curl among them, take the end of a
/// stream that they still send on for an error. Nobody is waited for long, and no large body is taken.
async fn behind_body(request: Request<Body>, answer: Response<Body>) -> Response<Body> {
    let drain = Limited::new(request.into_body(), DRAINED_BYTES_MAX).collect();
    // Whatever becomes of it.
    let _ = tokio::time::timeout(DRAINED_WAIT, drain).await;
    answer
}

/// Where certificates name users, JSON goes by tokens alone; who shows a name there is told so, as by etcd.
fn refuse_named(gateway: &Gateway, request: &Request<Body>) -> Option<Response<Body>> {
    let peer = request.extensions().get::<PeerIdentity>()?;
    peer.common_name.as_ref()?;
    if !gateway.config().json_gateway || !json::is_json(request.uri().path()) || !gateway.auth().rules.is_enabled() {
        return None;
    }
    let text = "CommonName of client sending a request against gateway will be ignored and not used as expected\n";
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Some(response)
}

/// Answers what is served on `--listen-metrics-urls` too: metrics and health.
pub(crate) async fn serve_metrics(gateway: &Gateway, method: &Method, uri: &Uri) -> Response<Body> {
    let path = uri.path();
    if path == "/metrics" {
        refresh_gauges(gateway);
        return response(StatusCode::OK, METRICS, gateway.render_metrics());
    }
    let query = Query::parse(uri.query().unwrap_or_default());
    let probe = match path {
        "/health" => {
            return match only_get(method) {
                Some(refused) => refused,
                None => health(gateway, &query).await,
            };
        }
        "/livez" => ("livez", LIVE_CHECKS),
        "/readyz" => ("readyz", READY_CHECKS),
        _ => match sub_check(path) {
            Some(found) => found,
            None => return plain(StatusCode::NOT_FOUND, "404 page not found\n".into()),
        },
    };
    match only_get(method) {
        Some(refused) => refused,
        None => run_checks(gateway, path, probe, &query).await,
    }
}

/// The refusal of every other method.
fn only_get(method: &Method) -> Option<Response<Body>> {
    if *method == Method::GET {
        return None;
    }
    let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n".into());
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
    Some(response)
}

/// The probe and the one check that a path like `/readyz/linearizable_read` names.
fn sub_check(path: &str) -> Option<(&'static str, &'static [Check])> {
    let (probe, checks, name) = if let Some(name) = path.strip_prefix("/livez/") {
        ("livez", LIVE_CHECKS, name)
    } else {
        ("readyz", READY_CHECKS, path.strip_prefix("/readyz/")?)
    };
    let at = checks.iter().position(|check| check.name() == name)?;
    Some((probe, &checks[at..=at]))
}

/// The parameters that health paths know.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Query {
    excluded: Vec<String>,
    serializable: bool,
    verbose: bool,
}

impl Query {
    pub(crate) fn parse(text: &str) -> Self {
        let mut query = Self::default();
        for pair in text.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match name {
                "exclude" => query.excluded.push(value.to_owned()),
                "serializable" => query.serializable = value == "true",
                "verbose" => query.verbose = true,
                _ => {}
            }
        }
        query
    }

    fn excludes(&self, name: &str) -> bool {
        self.excluded.iter().any(|excluded| excluded == name)
    }
}

#[derive(Serialize)]
struct Health {
    health: &'static str,
    reason: String,
}

async fn health(gateway: &Gateway, query: &Query) -> Response<Body> {
    let reason = unhealthy(gateway, query).await;
    let (status, health) = match &reason {
        None => (StatusCode::OK, "true"),
        Some(reason) => {
            tracing::warn!(%reason, "serving /health false");
            (StatusCode::SERVICE_UNAVAILABLE, "false")
        }
    };
    counter!(if reason.is_none() { HEALTH_SUCCESS } else { HEALTH_FAILURES }).increment(1);
    let body = Health { health, reason: reason.unwrap_or_default() };
    response(status, TEXT, serde_json::to_string(&body).expect("two strings are JSON"))
}

/// Alarms first, then the leader, then a read, as etcd looks at them.
async fn unhealthy(gateway: &Gateway, query: &Query) -> Option<String> {
    if let Some(reason) = gateway.unready() {
        return Some(reason.into());
    }
    let snapshot = gateway.fanout().snapshot();
    for alarm in &snapshot.alarms {
        let name = match alarm.kind {
            AlarmKind::NoSpace => "NOSPACE",
            AlarmKind::Corrupt => "CORRUPT",
        };
        if !query.excludes(name) {
            return Some(format!("ALARM {name}"));
        }
    }
    if !query.serializable && snapshot.leader.is_none() {
        return Some("RAFT NO LEADER".into());
    }
    let read = read_one(gateway, query.serializable).await;
    read.err().map(|fault| format!("RANGE ERROR:{}", fault.status().1))
}

/// A read of one key that is held here, without its value, to see whether reads work.
async fn read_one(gateway: &Gateway, serializable: bool) -> Result<(), Fault> {
    gateway.settle(serializable).await?;
    let Some(range) = gateway.fanout().scope().spans().first().cloned() else { return Ok(()) };
    gateway.fanout().range(RangeQuery { range, ..one_key(false) }).await?;
    Ok(())
}

/// Asks for any key without its value, or only how many there are.
pub(crate) fn one_key(count_only: bool) -> RangeQuery {
    RangeQuery {
        range: KeyRange::all(),
        revision: None,
        limit: 1,
        sort: None,
        count_only,
        keys_only: true,
        revision_bounds: (0, 0, 0, 0),
    }
}

/// Runs the checks of the probe (`livez` or `readyz`), or the one that `path` names.
async fn run_checks(
    gateway: &Gateway,
    path: &str,
    (probe, checks): (&'static str, &[Check]),
    query: &Query,
) -> Response<Body> {
    if let Some(reason) = gateway.unready() {
        // Alive, but of no use now: reads would wait for what is not there.
        return match probe {
            "livez" => plain(StatusCode::OK, "ok\n".into()),
            _ => plain(StatusCode::SERVICE_UNAVAILABLE, format!("[-]serving failed: {reason}\n")),
        };
    }
    let mut lines = String::new();
    let mut is_well = true;
    for check in checks.iter().filter(|check| !query.excludes(check.name())) {
        let name = check.name();
        let outcome = run(gateway, *check).await;
        let status = if outcome.is_ok() { "success" } else { "error" };
        gauge!(HEALTHCHECK, "type" => probe, "name" => name).set(f64::from(u8::from(outcome.is_ok())));
        counter!(HEALTHCHECKS, "type" => probe, "name" => name, "status" => status).increment(1);
        match outcome {
            Ok(()) => lines.push_str(&format!("[+]{name} ok\n")),
            Err(reason) => {
                is_well = false;
                lines.push_str(&format!("[-]{name} failed: {reason}\n"));
            }
        }
    }
    // A draining server takes no new work; kubelets and balancers learn it here.
    if path == "/readyz" && !*gateway.serving().borrow() {
        is_well = false;
        lines.push_str("[-]serving failed: server stopping\n");
    }
    if !is_well {
        tracing::warn!(path, "health check failed");
        return plain(StatusCode::SERVICE_UNAVAILABLE, lines);
    }
    plain(StatusCode::OK, if query.verbose { lines + "ok\n" } else { "ok\n".into() })
}

async fn run(gateway: &Gateway, check: Check) -> Result<(), String> {
    let read = match check {
        Check::SerializableRead => read_one(gateway, true).await,
        Check::LinearizableRead => read_one(gateway, false).await,
        Check::DataCorruption => {
            let is_corrupt = gateway.fanout().snapshot().alarms.iter().any(|alarm| alarm.kind == AlarmKind::Corrupt);
            return if is_corrupt { Err("alarm activated: CORRUPT".into()) } else { Ok(()) };
        }
        Check::NonLearner => {
            let is_learner = gateway.write_plane().status().is_learner;
            return if is_learner { Err("not supported for learner".into()) } else { Ok(()) };
        }
    };
    read.map_err(|fault| fault.status().1.to_owned())
}

#[derive(Serialize)]
struct Version {
    etcdserver: String,
    etcdcluster: String,
    storage: String,
}

fn version(gateway: &Gateway) -> Response<Body> {
    let decided = gateway.fanout().snapshot().cluster_version.clone();
    let version = Version {
        etcdserver: gateway.config().reported_version.clone(),
        etcdcluster: if decided.is_empty() { "not_decided".into() } else { decided },
        storage: gateway.config().storage_version(),
    };
    let body = serde_json::to_string(&version).expect("three strings are JSON");
    response(StatusCode::OK, "application/json", body)
}

fn plain(status: StatusCode, body: String) -> Response<Body> {
    let mut response = response(status, TEXT, body);
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn response(status: StatusCode, content_type: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_as_etcd_reads_them() {
        let query = Query::parse("exclude=NOSPACE&exclude=x&serializable=true&verbose");
        let excluded = vec!["NOSPACE".to_owned(), "x".to_owned()];
        assert_eq!(query, Query { excluded, serializable: true, verbose: true });
        assert!(!Query::parse("serializable=1").serializable);
    }

    #[test]
    fn a_sub_path_names_a_check_of_its_own_probe() {
        assert_eq!(sub_check("/readyz/non_learner"), Some(("readyz", &[Check::NonLearner][..])));
        assert_eq!(sub_check("/livez/non_learner"), None);
        assert_eq!(sub_check("/readyz/"), None);
        assert_eq!(sub_check("/health/x"), None);
    }
}
