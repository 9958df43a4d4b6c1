//! Names of the gateway's metrics, and what is counted per call. Names and labels are etcd's.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use metrics::{Counter, Histogram, counter, gauge, histogram};
use parking_lot::Mutex;
use tailwater_api::grpc;
use tailwater_eventlog::{Alarm, AlarmKind};

use crate::Gateway;
use crate::methods::{METHODS, Method};
use crate::status::code_name;

/// Calls that began; labels grpc_type, grpc_service, grpc_method.
pub(crate) const STARTED: &str = "grpc_server_started_total";
/// Calls that ended; also grpc_code.
pub(crate) const HANDLED: &str = "grpc_server_handled_total";
/// Messages that clients sent; labels grpc_type, grpc_service, grpc_method.
pub(crate) const MESSAGES_RECEIVED: &str = "grpc_server_msg_received_total";
/// Messages that were handed to the transport; the same labels.
pub(crate) const MESSAGES_SENT: &str = "grpc_server_msg_sent_total";
/// Bytes of messages to clients, without their prefixes.
pub(crate) const SENT_BYTES: &str = "etcd_network_client_grpc_sent_bytes_total";
/// Bytes of messages from clients, without their prefixes.
pub(crate) const RECEIVED_BYTES: &str = "etcd_network_client_grpc_received_bytes_total";
/// Calls by the client's version; labels type (unary, stream) and client_api_version.
pub(crate) const CLIENT_REQUESTS: &str = "etcd_server_client_requests_total";
/// Health checks that found the server well, and that did not.
pub(crate) const HEALTH_SUCCESS: &str = "etcd_server_health_success";
/// See [`HEALTH_SUCCESS`].
pub(crate) const HEALTH_FAILURES: &str = "etcd_server_health_failures";
/// State of each check at its last run, 0 or 1; labels type (livez, readyz) and name.
pub(crate) const HEALTHCHECK: &str = "etcd_server_healthcheck";
/// Runs of checks; also the label status (success, error).
pub(crate) const HEALTHCHECKS: &str = "etcd_server_healthchecks_total";
/// Proposals that were not applied: no leader, no answer in time, or the server stops. A refusal is an answer.
pub(crate) const PROPOSALS_FAILED: &str = "etcd_server_proposals_failed_total";
/// Calls that a gateway without a store has passed on; label outcome (forwarded, refused).
pub(crate) const FORWARDED: &str = "tailwater_gateway_calls_total";
/// Replicas that a gateway without a store has heard of; label state (known, ready).
pub(crate) const REPLICAS: &str = "tailwater_gateway_replicas";
/// Seconds that lists take until their first byte is there; label success.
pub(crate) const RANGE_SECONDS: &str = "etcd_server_range_duration_seconds";
/// Seconds that calls take, with `--metrics=extensive`; labels grpc_type, grpc_service, grpc_method.
pub(crate) const HANDLING_SECONDS: &str = "grpc_server_handling_seconds";
/// Lists that were asked for here.
pub(crate) const RANGES: &str = "etcd_mvcc_range_total";
/// Renewals of leases that were asked for here.
const LEASES_RENEWED: &str = "etcd_debugging_lease_renewed_total";
/// Seconds that hashing the store takes.
pub(crate) const HASH_SECONDS: &str = "etcd_mvcc_hash_rev_duration_seconds";
/// Seconds that merging the files takes.
pub(crate) const DEFRAG_SECONDS: &str = "etcd_disk_backend_defrag_duration_seconds";
/// Whether files are being merged, 0 or 1.
pub(crate) const DEFRAG_INFLIGHT: &str = "etcd_disk_defrag_inflight";
/// Seconds that a snapshot takes until its client has all of it.
pub(crate) const SNAPSHOT_SECONDS: &str = "etcd_disk_backend_snapshot_duration_seconds";
/// Alarms, 0 or 1; labels server_id and alarm_type.
const ALARMS: &str = "etcd_debugging_server_alarms";
/// gRPC's codes.
const CODES: std::ops::RangeInclusive<i32> = 0..=16;
/// Whether this process would pass `/readyz` for all it knows without a read, 0 or 1.
const READY: &str = "tailwater_ready";
/// Different client versions that are counted apart; later ones count as "other", so that a client can't make labels.
const CLIENT_VERSIONS_MAX: usize = 32;

/// Counters of every method, looked up once.
pub(crate) struct Calls {
    methods: Vec<MethodCounters>,
    sent_bytes: Counter,
    received_bytes: Counter,
    proposals_failed: Counter,
    leases_renewed: Counter,
    ranges: Counter,
    range_seconds: [Histogram; 2],
    /// By the client's version; of streams, and of other calls.
    client_versions: [Mutex<BTreeMap<String, Counter>>; 2],
}

struct MethodCounters {
    started: Counter,
    succeeded: Counter,
    messages_received: Counter,
    messages_sent: Counter,
    /// With extensive metrics.
    seconds: Option<Histogram>,
}

impl Calls {
    /// With `is_extensive`, the duration of every call is recorded.
    pub(crate) fn new(is_extensive: bool) -> Self {
        let methods = METHODS.iter().enumerate().map(|(index, &(path, kind))| {
            let method = Method { index, path, kind };
            // All are there at zero, as in etcd: the rate of a counter that appears with its first failure misses it.
            for code in CODES {
                handled(&method, code).increment(0);
            }
            MethodCounters {
                started: per_method(STARTED, &method),
                succeeded: handled(&method, 0),
                messages_received: per_method(MESSAGES_RECEIVED, &method),
                messages_sent: per_method(MESSAGES_SENT, &method),
                seconds: is_extensive.then(|| handling_seconds(&method)),
            }
        });
        // Seen at zero before the first health check.
        for name in [HEALTH_SUCCESS, HEALTH_FAILURES, RANGES, LEASES_RENEWED] {
            counter!(name).increment(0);
        }
        Self {
            methods: methods.collect(),
            sent_bytes: counter!(SENT_BYTES),
            received_bytes: counter!(RECEIVED_BYTES),
            proposals_failed: counter!(PROPOSALS_FAILED),
            leases_renewed: counter!(LEASES_RENEWED),
            ranges: counter!(RANGES),
            range_seconds: ["false", "true"].map(|success| histogram!(RANGE_SECONDS, "success" => success)),
            client_versions: Default::default(),
        }
    }

    /// Counts a message of `bytes` from a client.
    pub(crate) fn received(&self, method: &Method, bytes: usize) {
        self.methods[method.index].messages_received.increment(1);
        self.received_bytes.increment(bytes as u64);
    }

    /// Counts a proposal that was not applied.
    pub(crate) fn proposal_failed(&self) {
        self.proposals_failed.increment(1);
    }

    /// Counts a lease that was renewed.
    pub(crate) fn lease_renewed(&self) {
        self.leases_renewed.increment(1);
    }

    /// Records how long a list took.
    pub(crate) fn range(&self, duration: Duration, is_success: bool) {
        self.ranges.increment(1);
        self.range_seconds[usize::from(is_success)].record(duration);
    }

    /// Counts a call by its client's version.
    pub(crate) fn client(&self, is_unary: bool, version: &str) {
        let kind = if is_unary { "unary" } else { "stream" };
        let counter =
            |version: &str| counter!(CLIENT_REQUESTS, "type" => kind, "client_api_version" => version.to_owned());
        let mut versions = self.client_versions[usize::from(is_unary)].lock();
        if let Some(known) = versions.get(version) {
            known.increment(1);
        } else if versions.len() < CLIENT_VERSIONS_MAX {
            versions.entry(version.to_owned()).or_insert_with(|| counter(version)).increment(1);
        } else {
            counter("other").increment(1);
        }
    }
}

fn per_method(metric: &'static str, method: &Method) -> Counter {
    let (kind, service, name) = (method.kind.label(), method.service(), method.name());
    counter!(metric, "grpc_type" => kind, "grpc_service" => service, "grpc_method" => name)
}

fn handling_seconds(method: &Method) -> Histogram {
    let (kind, service, name) = (method.kind.label(), method.service(), method.name());
    histogram!(HANDLING_SECONDS, "grpc_type" => kind, "grpc_service" => service, "grpc_method" => name)
}

fn handled(method: &Method, code: i32) -> Counter {
    let (kind, service, name) = (method.kind.label(), method.service(), method.name());
    counter!(HANDLED, "grpc_type" => kind, "grpc_service" => service, "grpc_method" => name,
        "grpc_code" => code_name(code))
}

/// Finds the messages in the pieces of an answer, however they are cut.
#[derive(Debug, Default)]
struct Meter {
    /// Bytes of the current prefix that have passed.
    prefix_bytes: usize,
    /// The length in the current prefix, as far as it has passed.
    len: usize,
    /// Bytes of the current message that are still to come.
    remaining: usize,
}

impl Meter {
    /// The messages that begin in `piece`, and the bytes of it that are not prefixes.
    fn push(&mut self, mut piece: &[u8]) -> (u64, u64) {
        let (mut messages, mut payload_bytes) = (0, 0);
        while let Some((&byte, rest)) = piece.split_first() {
            if self.remaining > 0 {
                let passed = self.remaining.min(piece.len());
                self.remaining -= passed;
                payload_bytes += passed as u64;
                piece = &piece[passed..];
                continue;
            }
            // The first byte is the flag, four of length follow.
            if self.prefix_bytes > 0 {
                self.len = self.len << 8 | usize::from(byte);
            }
            self.prefix_bytes += 1;
            if self.prefix_bytes == grpc::PREFIX_BYTES {
                messages += 1;
                *self = Self { remaining: self.len, ..Self::default() };
            }
            piece = rest;
        }
        (messages, payload_bytes)
    }
}

/// One call from its start to its end; dropped before [`Observation::end`] it counts as cancelled.
pub(crate) struct Observation {
    gateway: Gateway,
    method: Method,
    start: Instant,
    request_bytes: usize,
    sent_bytes: u64,
    sent: Meter,
    is_ended: bool,
}

impl Observation {
    pub(crate) fn start(gateway: Gateway, method: Method) -> Self {
        gateway.calls().methods[method.index].started.increment(1);
        Self {
            gateway,
            method,
            start: Instant::now(),
            request_bytes: 0,
            sent_bytes: 0,
            sent: Meter::default(),
            is_ended: false,
        }
    }

    pub(crate) fn received(&mut self, bytes: usize) {
        self.request_bytes = bytes;
        self.gateway.calls().received(&self.method, bytes);
    }

    /// Counts a piece of the answer.
    pub(crate) fn sent(&mut self, piece: &[u8]) {
        let (messages, payload_bytes) = self.sent.push(piece);
        self.sent_bytes += payload_bytes;
        let calls = self.gateway.calls();
        calls.sent_bytes.increment(payload_bytes);
        calls.methods[self.method.index].messages_sent.increment(messages);
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
        if let Some(seconds) = &self.gateway.calls().methods[self.method.index].seconds {
            seconds.record(duration);
        }
        if self.method.kind == crate::methods::Kind::Unary && duration > self.gateway.config().slow_request {
            self.warn(duration, code);
        }
    }

    fn warn(&self, duration: Duration, code: i32) {
        // etcd's names, blanks and all, so that what reads its log reads this one.
        tracing::warn!(
            "time spent" = format!("{duration:?}"),
            "response type" = self.method.path,
            "request size" = self.request_bytes,
            "response size" = self.sent_bytes,
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

/// Sets the gauge `tailwater_ready`.
pub fn tell_whether_ready(is_ready: bool) {
    gauge!(READY).set(f64::from(u8::from(is_ready)));
}

/// Sets the gauges that are read rather than counted; called before they are rendered.
#[expect(clippy::cast_precision_loss, reason = "gauges are floating point; 2^53 is beyond what they show")]
pub(crate) fn refresh_gauges(gateway: &Gateway) {
    let status = gateway.write_plane().status();
    let snapshot = gateway.fanout().snapshot();
    let config = gateway.config();
    let flag = |is_set: bool| f64::from(u8::from(is_set));
    tell_whether_ready(gateway.unready().is_none() && *gateway.serving().borrow());
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
    gauge!("etcd_debugging_auth_revision").set(snapshot.auth.revision as f64);
    if let Ok(keys) = gateway.fanout().range_here(crate::http::one_key(true)) {
        gauge!("etcd_debugging_mvcc_keys_total").set(keys.count as f64);
    }
    for member in &snapshot.members {
        for (kind, name) in [(AlarmKind::NoSpace, "NOSPACE"), (AlarmKind::Corrupt, "CORRUPT")] {
            let is_raised = snapshot.alarms.contains(&Alarm { member: member.id, kind });
            let id = format!("{:x}", member.id.0);
            gauge!(ALARMS, "server_id" => id, "alarm_type" => name).set(flag(is_raised));
        }
    }
    tell_cluster_version(&snapshot.cluster_version);
}

/// The version without its patch, as etcd labels it; the one before is shown as 0.
fn tell_cluster_version(version: &str) {
    static TOLD: Mutex<String> = Mutex::new(String::new());
    let label = version.rsplit_once('.').map_or(version, |(minor, _)| minor);
    let mut told = TOLD.lock();
    let show =
        |label: &str, value: f64| gauge!("etcd_cluster_version", "cluster_version" => label.to_owned()).set(value);
    if !told.is_empty() && *told != label {
        show(&told, 0.0);
    }
    if !label.is_empty() {
        show(label, 1.0);
        label.clone_into(&mut told);
    }
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut, BytesMut};

    use super::*;

    #[test]
    fn messages_are_counted_however_an_answer_is_cut() {
        let mut answer = BytesMut::new();
        for len in [3, 0, 700] {
            grpc::put_prefix(&mut answer, len);
            answer.put_bytes(9, len);
        }
        for step in 1..=answer.len() {
            let mut meter = Meter::default();
            let counts = answer.chunks(step).map(|piece| meter.push(piece));
            let total = counts.fold((0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
            assert_eq!(total, (3, 703), "step {step}");
        }
    }
}
