//! Health, version and metrics.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use crate::support::{Server, get, request};

const TEXT: &str = "text/plain; charset=utf-8";
const HEALTHY: &str = r#"{"health":"true","reason":""}"#;
const NOT_FOUND: &str = "404 page not found\n";

#[test]
fn every_path_answers_what_etcd_answers() {
    let server = Server::start(&[]);
    let version = r#"{"etcdserver":"3.7.3","etcdcluster":"3.7.0","storage":"3.7.0"}"#;
    let ready = "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n[+]non_learner ok\nok\n";
    let cases = [
        ("/health", 200, TEXT, HEALTHY),
        ("/health?serializable=true", 200, TEXT, HEALTHY),
        ("/health?exclude=NOSPACE", 200, TEXT, HEALTHY),
        ("/livez", 200, TEXT, "ok\n"),
        ("/livez?verbose", 200, TEXT, "[+]serializable_read ok\nok\n"),
        ("/livez/serializable_read?verbose", 200, TEXT, "[+]serializable_read ok\nok\n"),
        ("/readyz", 200, TEXT, "ok\n"),
        // etcd prints the same lines, in any order.
        ("/readyz?verbose", 200, TEXT, ready),
        ("/readyz?exclude=data_corruption&exclude=non_learner&exclude=nope&verbose=1", 200, TEXT, {
            "[+]serializable_read ok\n[+]linearizable_read ok\nok\n"
        }),
        ("/readyz/linearizable_read", 200, TEXT, "ok\n"),
        ("/version", 200, "application/json", version),
        ("/", 404, TEXT, NOT_FOUND),
        ("/nope", 404, TEXT, NOT_FOUND),
        ("/health/", 404, TEXT, NOT_FOUND),
        ("/livez/nope", 404, TEXT, NOT_FOUND),
        ("/readyz/", 404, TEXT, NOT_FOUND),
    ];
    for (path, status, content_type, body) in cases {
        let answer = get(server.port, path);
        assert_eq!((answer.status, answer.body.as_str()), (status, body), "{path}");
        assert_eq!(answer.header("content-type"), Some(content_type), "{path}");
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"), "{path}");
        // etcd's mux and probes set it; /health and /version do not.
        let is_sniffable = path.starts_with("/health?") || path == "/health" || path == "/version";
        assert_eq!(answer.header("x-content-type-options").is_none(), is_sniffable, "{path}");
    }
}

#[test]
fn other_methods_are_refused_as_by_etcd() {
    let server = Server::start(&[]);
    for method in ["POST", "PUT", "DELETE", "HEAD"] {
        for path in ["/health", "/livez", "/readyz", "/readyz/non_learner", "/version"] {
            let answer = request(server.port, method, path, "");
            assert_eq!((answer.status, answer.header("allow")), (405, Some("GET")), "{method} {path}");
            let body = if method == "HEAD" { "" } else { "Method Not Allowed\n" };
            assert_eq!(answer.body, body, "{method} {path}");
        }
        assert_eq!(request(server.port, method, "/metrics", "").status, 200, "{method} /metrics");
    }
    let preflight = request(server.port, "OPTIONS", "/v3/kv/range", "Origin: http://x\r\n");
    assert_eq!((preflight.status, preflight.body.as_str()), (200, ""));
    for (name, value) in [
        ("access-control-allow-headers", "accept, content-type, authorization"),
        ("access-control-allow-methods", "POST, GET, OPTIONS, PUT, DELETE"),
        ("access-control-allow-origin", "*"),
    ] {
        assert_eq!(preflight.header(name), Some(value));
    }
    // gRPC needs HTTP/2; over HTTP/1.1 there is no such page.
    let over_http1 = request(server.port, "POST", "/etcdserverpb.KV/Range", "Content-Type: application/grpc\r\n");
    assert_eq!((over_http1.status, over_http1.body.as_str()), (404, NOT_FOUND));
}

#[tokio::test]
async fn the_metrics_port_serves_metrics_and_health_alone() {
    let server = Server::start(&[]);
    for path in ["/health", "/livez", "/readyz", "/metrics"] {
        let answer = get(server.metrics_port, path);
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, None), "{path}");
    }
    for path in ["/version", "/"] {
        assert_eq!(get(server.metrics_port, path).status, 404, "{path}");
    }
    let url = format!("http://127.0.0.1:{}", server.metrics_port);
    let mut kv = tailwater_api::etcdserverpb::kv_client::KvClient::connect(url).await.unwrap();
    let refused = kv.range(tailwater_api::etcdserverpb::RangeRequest::default()).await.unwrap_err();
    assert!(refused.message().contains("404 Not Found"), "{refused}");
}

/// Name and type of every metric that etcd's dashboards and alerts, and Kubernetes's, read on one member.
const READ_BY_DASHBOARDS: &[(&str, &str)] = &[
    ("etcd_cluster_version", "gauge"),
    ("etcd_debugging_mvcc_compact_revision", "gauge"),
    ("etcd_debugging_mvcc_current_revision", "gauge"),
    ("etcd_disk_backend_commit_duration_seconds", "histogram"),
    ("etcd_disk_wal_fsync_duration_seconds", "histogram"),
    ("etcd_mvcc_db_total_size_in_bytes", "gauge"),
    ("etcd_mvcc_db_total_size_in_use_in_bytes", "gauge"),
    ("etcd_network_client_grpc_received_bytes_total", "counter"),
    ("etcd_network_client_grpc_sent_bytes_total", "counter"),
    ("etcd_server_client_requests_total", "counter"),
    ("etcd_server_has_leader", "gauge"),
    ("etcd_server_health_failures", "counter"),
    ("etcd_server_health_success", "counter"),
    ("etcd_server_healthcheck", "gauge"),
    ("etcd_server_healthchecks_total", "counter"),
    ("etcd_server_id", "gauge"),
    ("etcd_server_is_leader", "gauge"),
    ("etcd_server_is_learner", "gauge"),
    ("etcd_server_leader_changes_seen_total", "counter"),
    ("etcd_server_proposals_applied_total", "gauge"),
    ("etcd_server_proposals_committed_total", "gauge"),
    ("etcd_server_proposals_failed_total", "counter"),
    ("etcd_server_proposals_pending", "gauge"),
    ("etcd_server_quota_backend_bytes", "gauge"),
    ("etcd_server_range_duration_seconds", "histogram"),
    ("etcd_server_version", "gauge"),
    ("grpc_server_handled_total", "counter"),
    ("grpc_server_msg_received_total", "counter"),
    ("grpc_server_msg_sent_total", "counter"),
    ("grpc_server_started_total", "counter"),
    ("os_fd_limit", "gauge"),
    ("os_fd_used", "gauge"),
    ("process_cpu_seconds_total", "counter"),
    ("process_max_fds", "gauge"),
    ("process_open_fds", "gauge"),
    ("process_resident_memory_bytes", "gauge"),
    ("process_start_time_seconds", "gauge"),
    ("process_virtual_memory_bytes", "gauge"),
];

#[tokio::test]
async fn metrics_parse_and_have_etcds_names() {
    let server = Server::start(&[]);
    let mut kv = server.kv().await;
    let put = tailwater_api::etcdserverpb::PutRequest { key: "k".into(), value: "v".into(), ..Default::default() };
    kv.put(put).await.unwrap();
    kv.range(tailwater_api::etcdserverpb::RangeRequest { key: "k".into(), ..Default::default() }).await.unwrap();
    assert_eq!(get(server.port, "/readyz").status, 200);
    // The write plane sets its gauges at each tick of 100 ms.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let answer = get(server.port, "/metrics");
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8; escaping=underscores"));
    for (name, kind) in READ_BY_DASHBOARDS {
        let line = format!("# TYPE {name} {kind}");
        assert!(answer.body.lines().any(|found| found == line), "no {line:?}");
    }
    let mut names = std::collections::HashSet::new();
    for line in answer.body.lines().filter(|line| !line.is_empty()) {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            assert!(names.insert(kind.split(' ').next().unwrap()), "declared twice: {line}");
        } else if !line.starts_with('#') {
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert_eq!(series.contains('{'), series.ends_with('}'), "{line}");
        }
    }
    let labels =
        |method: &str| format!("{{grpc_type=\"unary\",grpc_service=\"etcdserverpb.KV\",grpc_method=\"{method}\"");
    for name in ["grpc_server_started_total", "grpc_server_msg_received_total", "grpc_server_msg_sent_total"] {
        assert_eq!(server.metric(&format!("{name}{}}}", labels("Put"))), 1.0, "{name}");
    }
    assert_eq!(server.metric(&format!("grpc_server_handled_total{},grpc_code=\"OK\"}}", labels("Range"))), 1.0);
    // The put's six bytes and the list's three.
    assert_eq!(server.metric("etcd_network_client_grpc_received_bytes_total "), 9.0);
    assert_eq!(server.metric("etcd_server_range_duration_seconds_count{success=\"true\"}"), 1.0);
    assert_eq!(server.metric("etcd_server_healthcheck{type=\"readyz\",name=\"linearizable_read\"}"), 1.0);
}

/// Frames of HTTP/2 that a connection is answered with until it ends or nothing comes: (type, flags, payload).
fn frames(port: u16, sent: &[u8]) -> Vec<(u8, u8, Vec<u8>)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    stream.write_all(sent).unwrap();
    let mut found = Vec::new();
    let mut head = [0; 9];
    while stream.read_exact(&mut head).is_ok() {
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        stream.read_exact(&mut payload).unwrap();
        found.push((head[3], head[4], payload));
    }
    found
}

/// etcd answers the same bytes in the same way.
#[test]
fn a_client_that_pings_too_often_is_sent_away_and_one_connection_has_so_many_streams() {
    let server = Server::start(&["--max-concurrent-streams=7"]);
    let opening = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
    let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    let few = frames(server.port, &[opening.clone(), ping.repeat(3)].concat());
    assert!(few.iter().all(|(kind, ..)| *kind != 7), "{few:?}");
    assert_eq!(few.iter().filter(|(kind, flags, _)| (*kind, *flags) == (6, 1)).count(), 3, "{few:?}");
    let (_, _, settings) = few.iter().find(|(kind, ..)| *kind == 4).unwrap();
    assert!(settings.chunks(6).any(|setting| setting == [0, 3, 0, 0, 0, 7]), "{settings:?}");
    let many = frames(server.port, &[opening.clone(), ping.repeat(9)].concat());
    let (kind, _, payload) = many.last().unwrap();
    assert_eq!((*kind, payload.as_slice()), (7, b"\0\0\0\0\0\0\0\x0btoo_many_pings".as_slice()), "{many:?}");
    let lenient = Server::start(&["--grpc-keepalive-min-time=0s"]);
    let all = frames(lenient.port, &[opening, ping.repeat(9)].concat());
    assert_eq!(all.iter().filter(|(kind, flags, _)| (*kind, *flags) == (6, 1)).count(), 9, "{all:?}");
}
