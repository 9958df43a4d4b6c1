//! How a process ends, and what the next one finds.

use std::time::{Duration, Instant};

use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::watch_request::RequestUnion;
use tokio_stream::StreamExt;
use tonic::Code;

use crate::support::{Server, free_port, outcome, serve_flags, tailwater};

fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest {
        key: key.as_bytes().to_vec().into(),
        value: value.as_bytes().to_vec().into(),
        ..Default::default()
    }
}

// Two threads: the client answers while this one waits for the process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminated_server_sends_its_watches_elsewhere_and_ends_in_time() {
    for signal in ["TERM", "INT"] {
        let mut server = Server::start(&[]);
        let mut streams = Vec::new();
        for _ in 0..3 {
            let create = pb::WatchCreateRequest { key: "k".into(), ..Default::default() };
            let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
            let requests = tokio_stream::iter([request]).chain(tokio_stream::pending());
            let mut watch = pb::watch_client::WatchClient::new(server.channel().await);
            let mut stream = watch.watch(requests).await.unwrap().into_inner();
            assert!(stream.message().await.unwrap().unwrap().created);
            streams.push(stream);
        }
        let begun = Instant::now();
        server.signal(signal);
        for stream in &mut streams {
            // Never a canceled response in band: a client takes that for the end of the watch.
            let ended = stream.message().await.unwrap_err();
            assert_eq!(ended.code(), Code::Unavailable, "{ended}");
        }
        let status = server.wait();
        assert_eq!(status.code(), Some(0), "{}", server.log());
        assert!(begun.elapsed() < Duration::from_secs(10), "{signal} took {:?}", begun.elapsed());
        let log = server.log();
        assert!(log.contains("received signal; shutting down"), "{log}");
        assert!(log.contains("server stopped"), "{log}");
    }
}

/// A connection that has grown old is told to go and its watches end like those of a server that goes: a client resumes
/// them on a new one. What is under way ends by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_connection_sends_its_watches_elsewhere() {
    let server = Server::start(&["--max-connection-age=2s", "--max-connection-age-grace=5s"]);
    let channel = server.channel().await;
    let mut kv = pb::kv_client::KvClient::new(channel.clone());
    let mut revision = 1;
    let mut seen = 1;
    for round in 0..3 {
        let mut watch = pb::watch_client::WatchClient::new(channel.clone());
        let begun = Instant::now();
        let mut stream = loop {
            let create = pb::WatchCreateRequest { key: "k".into(), start_revision: seen + 1, ..Default::default() };
            let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
            match watch.watch(tokio_stream::iter([request]).chain(tokio_stream::pending())).await {
                Ok(answer) => break answer.into_inner(),
                Err(status) => assert_unsent(&status),
            }
        };
        let ended = loop {
            // Calls beside it never notice, save those that this client had not sent when it was told to go.
            while let Err(status) = kv.put(put("k", &format!("{round}"))).await {
                assert_unsent(&status);
            }
            revision += 1;
            match tokio::time::timeout(Duration::from_millis(50), stream.message()).await {
                Ok(Ok(Some(response))) => {
                    assert!(!response.canceled, "{response:?}");
                    for event in response.events {
                        seen += 1;
                        assert_eq!(event.kv.unwrap().mod_revision, seen);
                    }
                }
                Ok(Ok(None)) => panic!("a watch ends with a status"),
                Ok(Err(status)) => break status,
                Err(_) => assert!(begun.elapsed() < Duration::from_secs(20), "it never ends"),
            }
        };
        assert_eq!(ended.code(), Code::Unavailable, "{ended}");
        if round > 0 {
            assert!(begun.elapsed() > Duration::from_millis(1000), "after {:?}", begun.elapsed());
        }
    }
    assert!(seen > 1 && seen <= revision);
}

/// This client gives up what it had not sent when it was told to go, where others send it on the next connection.
fn assert_unsent(status: &tonic::Status) {
    let late = format!("{status:?}").contains("GoAway(b\"\", NO_ERROR, Remote)");
    assert!(late || status.message() == "operation was canceled", "{status:?}");
}

#[tokio::test]
async fn a_killed_server_has_what_it_acknowledged() {
    let home = tempfile::tempdir().unwrap();
    let mut revision = 1;
    for round in 0..3 {
        let mut server = Server::start_in(home.path(), &[]);
        let mut kv = server.kv().await;
        for key in 0..20 {
            let answer = kv.put(put(&format!("k/{key:02}"), &format!("round {round}"))).await.unwrap().into_inner();
            revision += 1;
            assert_eq!(answer.header.unwrap().revision, revision);
        }
        let all = pb::RangeRequest { key: "k/".into(), range_end: "k0".into(), ..Default::default() };
        let answer = kv.range(all).await.unwrap().into_inner();
        assert_eq!(answer.count, 20);
        assert!(answer.kvs.iter().all(|kv| kv.value == format!("round {round}") && kv.version == round + 1));
        server.signal("KILL");
        server.wait();
    }
}

#[test]
fn an_identity_that_is_missing_or_changed_is_refused_by_name() {
    let home = tempfile::tempdir().unwrap();
    drop(Server::start_in(home.path(), &[]));
    let data_dir = home.path().join("data");
    let identity = data_dir.join("IDENTITY");
    let good = std::fs::read_to_string(&identity).unwrap();
    let start = || {
        let arguments = serve_flags(free_port(), &data_dir);
        outcome(tailwater(&arguments.iter().map(String::as_str).collect::<Vec<_>>()))
    };
    let digit =
        if good.contains("\"member_id\":\"8") { ("\"8", "\"9") } else { ("\"member_id\":\"", "\"member_id\":\"1") };
    std::fs::write(&identity, good.replacen(digit.0, digit.1, 1)).unwrap();
    let (code, log) = start();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains(&format!("{}: its checksum does not fit", identity.display())), "{log}");

    std::fs::remove_file(&identity).unwrap();
    let (code, log) = start();
    assert_eq!(code, Some(1), "{log}");
    // What is found without an identity is somebody's data.
    assert!(log.contains(&format!("data directory {} holds", data_dir.display())), "{log}");
    assert!(!identity.exists(), "no new identity is made beside old data");

    std::fs::write(&identity, &good).unwrap();
    drop(Server::start_in(home.path(), &[]));
}

/// On a busy core flushes go before compactions, else memtables fill until writes must wait for them, and both before those who
/// catch up on history.
#[test]
fn what_writes_wait_for_goes_before_what_may_take_its_time() {
    let server = Server::start(&[]);
    let threads = server.threads();
    let nice = |name: &str| {
        let found = threads.iter().find(|(thread, _)| thread.starts_with(name));
        found.unwrap_or_else(|| panic!("no {name} in {threads:?}")).1
    };
    let own = nice("replica");
    assert_eq!([nice("log"), nice("apply"), nice("clients"), nice("fanout-tail")], [own; 4]);
    let (flush, history, compaction) = (nice("rocksdb:high"), nice("fanout-history"), nice("rocksdb:low"));
    assert!(own < flush && flush < compaction && compaction < history, "{threads:?}");
}
