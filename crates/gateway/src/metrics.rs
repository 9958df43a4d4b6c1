//! Names of the gateway's metrics, and what is counted per call. Names and labels are etcd's.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use metrics::{Counter, counter, gauge};

use crate::Gateway;
use crate::methods::{METHODS, Method};
use crate::status::code_name;

/// Calls that began; labels grpc_type, grpc_service, grpc_method.
pub(crate) const STARTED: &str = "grpc_server_started_total";
/// Calls that ended; also grpc_code.
pub(crate) const HANDLED: &str = "grpc_server_handled_total";
/// Bytes of responses to clients.
pub(crate) const SENT_BYTES: &str = "etcd_network_client_grpc_sent_bytes_total";
/// Bytes of unary requests from clients.
pub(crate) const RECEIVED_BYTES: &str = "etcd_network_client_grpc_received_bytes_total";
/// Calls by the client's version; labels type (unary, stream) and client_api_version.
pub(crate) const CLIENT_REQUESTS: &str = "etcd_server_client_requests_total";
/// Health checks that found the server well, and that did not.
pub(crate) const HEALTH_SUCCESS: &str = "etcd_server_health_success";
/// See [`HEALTH_SUCCESS`].
pub(crate) const HEALTH_FAILURES: &str = "etcd_server_health_failures";
/// Different client versions that are counted apart; later ones count as "other", so that a client can't make labels.
const CLIENT_VERSIONS_MAX: u64 = 32;

/// Counters of every method, looked up once.
pub(crate) struct Calls {
    methods: Vec<MethodCounters>,
    sent_bytes: Counter,
    received_bytes: Counter,
    client_versions: parking_lot::Mutex<std::collections::HashSet<String>>,
}

struct MethodCounters {
    started: Counter,
    succeeded: Counter,
}

impl Calls {
    pub(crate) fn new() -> Self {
        let methods = METHODS.iter().enumerate().map(|(index, &(path, kind))| {
            let method = Method { index, path, kind };
            MethodCounters { started: started(&method), succeeded: handled(&method, 0) }
        });
        Self {
            methods: methods.collect(),
            sent_bytes: counter!(SENT_BYTES),
            received_bytes: counter!(RECEIVED_BYTES),
            client_versions: parking_lot::Mutex::default(),
        }
    }

    /// Counts `bytes` of a unary request.
    pub(crate) fn received(&self, bytes: usize) {
        self.received_bytes.increment(bytes as u64);
    }

    /// Counts a call by its client's version.
    pub(crate) fn client(&self, kind: &'static str, version: &str) {
        let mut versions = self.client_versions.lock();
        let is_counted = versions.contains(version)
            || ((versions.len() as u64) < CLIENT_VERSIONS_MAX && versions.insert(version.to_owned()));
        let version = if is_counted { version } else { "other" };
        counter!(CLIENT_REQUESTS, "type" => kind, "client_api_version" => version.to_owned()).increment(1);
    }
}

fn started(method: &Method) -> Counter {
    let (kind, service, name) = (method.kind.label(), method.service(), method.name());
    counter!(STARTED, "grpc_type" => kind, "grpc_service" => service, "grpc_method" => name)
}

fn handled(method: &Method, code: i32) -> Counter {
    let (kind, service, name) = (method.kind.label(), method.service(), method.name());
    counter!(HANDLED, "grpc_type" => kind, "grpc_service" => service, "grpc_method" => name,
        "grpc_code" => code_name(code))
}

/// One call from its start to its end; dropped before [`Observation::end`] it counts as cancelled.
pub(crate) struct Observation {
    gateway: Gateway,
    method: Method,
    start: Instant,
    request_bytes: usize,
    sent_bytes: AtomicU64,
    is_ended: bool,
}

impl Observation {
    pub(crate) fn start(gateway: Gateway, method: Method) -> Self {
        gateway.calls().methods[method.index].started.increment(1);
        let sent_bytes = AtomicU64::new(0);
        Self { gateway, method, start: Instant::now(), request_bytes: 0, sent_bytes, is_ended: false }
    }

    pub(crate) fn received(&mut self, bytes: usize) {
        self.request_bytes = bytes;
        self.gateway.calls().received(bytes);
    }

    pub(crate) fn sent(&mut self, bytes: usize) {
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.gateway.calls().sent_bytes.increment(bytes as u64);
    }

    pub(crate) fn end(mut self, code: i32) {
        self.finish(code);
    }

    fn finish(&mut self, code: i32) {
        self.is_ended = true;
        if code == 0 {
            self.gateway.calls().methods[self.method.index].succeeded.increment(1);
        } else {
            handled(&self.method, code).increment(1);
        }
        let duration = self.start.elapsed();
        if self.method.kind == crate::methods::Kind::Unary && duration > self.gateway.config().slow_request {
            self.warn(duration, code);
        }
    }

    fn warn(&self, duration: Duration, code: i32) {
        tracing::warn!(
            method = self.method.path,
            duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
            request_bytes = self.request_bytes,
            response_bytes = self.sent_bytes.load(Ordering::Relaxed),
            code = code_name(code),
            "request stats"
        );
    }
}

impl Drop for Observation {
    fn drop(&mut self) {
        if !self.is_ended {
            self.finish(1);
        }
    }
}

/// Sets the gauges that are read rather than counted; called before they are rendered.
#[expect(clippy::cast_precision_loss, reason = "gauges are floating point; 2^53 is beyond what they show")]
pub(crate) fn refresh_gauges(gateway: &Gateway) {
    let status = gateway.consensus().status();
    let snapshot = gateway.fanout().snapshot();
    let config = gateway.config();
    let flag = |is_set: bool| f64::from(u8::from(is_set));
    gauge!("etcd_server_has_leader").set(flag(status.leader.0 != 0));
    gauge!("etcd_server_is_leader").set(flag(status.leader.0 == config.member_id));
    gauge!("etcd_server_is_learner").set(flag(status.is_learner));
    gauge!("etcd_server_proposals_committed_total").set(status.committed as f64);
    gauge!("etcd_server_proposals_applied_total").set(status.applied.0 as f64);
    gauge!("etcd_server_quota_backend_bytes").set(config.quota_bytes as f64);
    gauge!("etcd_mvcc_db_total_size_in_bytes").set(status.disk_bytes as f64);
    gauge!("etcd_mvcc_db_total_size_in_use_in_bytes").set(status.disk_bytes_in_use as f64);
    gauge!("etcd_debugging_mvcc_current_revision").set(snapshot.cursor.revision.0 as f64);
    gauge!("etcd_debugging_mvcc_compact_revision").set(snapshot.compacted.0 as f64);
    gauge!("etcd_server_version", "server_version" => config.reported_version.clone()).set(1.0);
    gauge!("etcd_server_id", "server_id" => format!("{:x}", config.member_id)).set(1.0);
    if !snapshot.cluster_version.is_empty() {
        gauge!("etcd_cluster_version", "cluster_version" => snapshot.cluster_version.clone()).set(1.0);
    }
}
