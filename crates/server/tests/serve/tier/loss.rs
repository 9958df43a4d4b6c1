//! What a fanout does when what it follows goes away, or is not what it was.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fanout_goes_on_at_another_source_without_a_gap() {
    let mut members = Members::start(3);
    let mut server = members.fanout("f", &[]);
    server.wait_ready();
    let mut stream = watch(&server, "k", 0).await;
    let mut kv = server.kv().await;
    let mut last = 1;
    for round in 0..3 {
        for _ in 0..10 {
            let header = eventually("a put", async || kv.put(put("k", "v")).await.ok()).await.into_inner().header;
            let revision = header.unwrap().revision;
            // A put whose outcome was unknown may have been one more.
            let seen = revisions(&mut stream, usize::try_from(revision - last).unwrap()).await;
            assert_eq!(seen, (last + 1..=revision).collect::<Vec<_>>());
            last = revision;
        }
        members.kill(round);
        members.restart(round, &[]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fanout_without_a_live_tail_sends_its_clients_elsewhere_until_it_has_one() {
    let mut members = Members::start(1);
    let mut server = members.fanout("f", &[]);
    server.wait_ready();
    let mut kv = server.kv().await;
    kv.put(put("k", "v")).await.unwrap();
    let mut stream = watch(&server, "k", 0).await;
    members.kill(0);
    let killed = Instant::now();
    let ended = end(&mut stream).await;
    assert_eq!(ended.code(), Code::Unavailable, "{ended}");
    // Three election timeouts, and not much less: a short absence is no reason.
    assert!(killed.elapsed() > Duration::from_millis(1200), "{:?}", killed.elapsed());
    let ready = get(server.port, "/readyz");
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains("no live tail"), "{}", ready.body);
    for serializable in [false, true] {
        let refused = kv.range(pb::RangeRequest { serializable, ..range("k") }).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    }
    members.restart(0, &[]);
    eventually("ready again", async || (get(server.port, "/readyz").status == 200).then_some(())).await;
    assert_eq!(kv.range(range("k")).await.unwrap().into_inner().kvs[0].value, "v");
    let mut stream = watch(&server, "k", 2).await;
    assert_eq!(revisions(&mut stream, 1).await, [2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_history_is_taken_over_whole() {
    let mut members = Members::start(1);
    let mut server = members.fanout("f", &[]);
    server.wait_ready();
    let mut kv = server.kv().await;
    for _ in 0..5 {
        kv.put(put("k", "v")).await.unwrap();
    }
    let mut stream = watch(&server, "k", 0).await;
    let history = || get(server.port, "/status").body.split("\"history_id\":\"").nth(1).unwrap()[..8].to_owned();
    let before = history();
    members.kill(0);
    members.restart(0, &["--force-new-cluster"]);
    assert_eq!(end(&mut stream).await.code(), Code::Unavailable);
    eventually("the new history", async || (history() != before).then_some(())).await;
    eventually("a read", async || kv.range(range("k")).await.ok()).await;
    let revision = kv.put(put("k", "new")).await.unwrap().into_inner().header.unwrap().revision;
    let answer = kv.range(range("k")).await.unwrap().into_inner();
    assert_eq!((answer.kvs[0].value.as_ref(), answer.kvs[0].mod_revision), (&b"new"[..], revision));
}

#[test]
fn two_clusters_are_not_followed_as_one() {
    let (one, other) = (Members::start(1), Members::start(1));
    let upstream = format!("--upstream={},{}", one.url(0), other.url(0));
    let listen = format!("http://127.0.0.1:{}", free_port());
    let (code, log) = outcome(tailwater(&[
        "serve",
        "--roles=fanout,gateway",
        &upstream,
        &format!("--listen-client-urls={listen}"),
        &format!("--advertise-client-urls={listen}"),
    ]));
    assert_eq!(code, Some(1));
    let reason = log.lines().last().unwrap().split("\"reason\":\"").nth(1);
    let reason = reason.or_else(|| log.split("\"reason\":\"").last()).unwrap();
    assert!(reason.contains("name nodes of one cluster"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminated_fanout_sends_its_watches_elsewhere_and_ends_in_time() {
    let members = Members::start(1);
    let mut server = members.fanout("f", &[]);
    server.wait_ready();
    let mut stream = watch(&server, "k", 0).await;
    let begun = Instant::now();
    server.signal("TERM");
    assert_eq!(end(&mut stream).await.code(), Code::Unavailable);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}
