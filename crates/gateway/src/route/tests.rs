#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;

fn info(id: u64, ranges: &[(&'static str, &'static str)]) -> ReplicaInfo {
    ReplicaInfo {
        id,
        url: format!("http://127.0.0.1:{}", 40000 + id),
        ranges: ranges.iter().map(|&(start, end)| KeyRange::Span(start.into(), end.into())).collect(),
        is_ready: true,
        ..Default::default()
    }
}

fn key(key: &'static str) -> KeyRange {
    KeyRange::Key(key.into())
}

fn picked(forwarder: &Forwarder, ranges: &[KeyRange]) -> Option<u64> {
    forwarder.pick(ranges, &[]).map(|replica| replica.id())
}

/// Connections are opened when they are used, and that needs a runtime from the start.
#[tokio::test]
async fn the_replica_with_the_least_to_do_is_chosen_among_those_that_hold_the_ranges() {
    let forwarder = Forwarder::new(1 << 20, None);
    assert_eq!(picked(&forwarder, &[]), None);
    let member = ReplicaInfo { is_member: true, ..info(1, &[]) };
    let busy = ReplicaInfo { streams: 9, ..info(2, &[]) };
    let away = ReplicaInfo { is_ready: false, ..info(3, &[]) };
    forwarder.update(vec![member.clone(), busy.clone(), away.clone(), info(4, &[("a", "b")])]);
    assert_eq!(picked(&forwarder, &[key("a")]), Some(4));
    assert_eq!(picked(&forwarder, &[key("a"), key("c")]), Some(2));
    assert_eq!(picked(&forwarder, &[KeyRange::all()]), Some(2));
    assert_eq!(forwarder.pick(&[key("c")], &[2]).map(|replica| replica.id()), Some(1));
    assert!(forwarder.pick(&[key("c")], &[1, 2]).is_none());
    forwarder.update(vec![member, ReplicaInfo { streams: 1, ..away }, busy]);
    assert_eq!(picked(&forwarder, &[key("a")]), Some(2));
    forwarder.drain();
    assert!(!forwarder.is_ready());
}

#[tokio::test]
async fn equal_replicas_take_turns_and_those_that_stay_keep_their_connections() {
    let forwarder = Forwarder::new(1 << 20, None);
    forwarder.update(vec![info(1, &[]), info(2, &[]), info(3, &[])]);
    let mut chosen: Vec<_> = (0..3).filter_map(|_| picked(&forwarder, &[])).collect();
    chosen.sort_unstable();
    assert_eq!(chosen, [1, 2, 3]);
    let before = forwarder.pick(&[], &[1, 2]).unwrap();
    forwarder.update(vec![info(3, &[]), info(4, &[])]);
    assert!(Arc::ptr_eq(&before, &forwarder.pick(&[], &[4]).unwrap()));
    // One that comes back with another scope is another replica.
    forwarder.update(vec![info(3, &[("a", "b")])]);
    assert!(!before.covers(&[]) || !Arc::ptr_eq(&before, &forwarder.pick(&[], &[]).unwrap()));
    assert_eq!(picked(&forwarder, &[key("c")]), None);
}

#[tokio::test]
async fn a_replica_that_cannot_be_reached_is_left_until_it_is_heard_of_again() {
    let forwarder = Forwarder::new(1 << 20, None);
    forwarder.update(vec![ReplicaInfo { url: "http://127.0.0.1:1".into(), ..info(1, &[]) }]);
    let mut request = Request::new(Body::from(framed(&Bytes::new())));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = http::Uri::from_static("/etcdserverpb.KV/Put");
    let answer = forwarder.call(request).await;
    assert_eq!(answer.headers()["grpc-status"], "14");
    assert!(!forwarder.is_ready());
}

#[test]
fn only_what_a_replica_says_of_itself_is_asked_elsewhere() {
    let headers = |code: &'static str, text: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-status", HeaderValue::from_static(code));
        headers.insert("grpc-message", HeaderValue::from_static(text));
        headers
    };
    assert!(is_elsewhere(&headers("14", "tailwater: the state is being transferred")));
    assert!(is_elsewhere(&headers("14", "etcdserver: server stopped")));
    assert!(!is_elsewhere(&headers("14", "etcdserver: no leader")));
    assert!(!is_elsewhere(&headers("8", "etcdserver: too many requests")));
    assert!(!is_elsewhere(&HeaderMap::new()));
}

#[test]
fn headers_of_the_connection_stay_behind() {
    let mut headers = HeaderMap::new();
    for (name, value) in [("host", "h"), ("hasleader", "true"), ("grpc-timeout", "5S"), ("te", "x"), ("token", "t")] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let kept = call_headers(&headers);
    assert_eq!((kept.get("host"), kept["te"].as_bytes(), kept.len()), (None, &b"trailers"[..], 4));
}
