//! What one informer does without faults of the network: lists, waits, subscribers, and a server that leaves a change out.

use std::time::{Duration, Instant};

use tailwater_client::{Change, Error, KeyRange, Phase, RelistCause};
use tailwater_tests::proxy::{Deviation, Proxy};
use tailwater_tests::{Kind, Options, Server};

use crate::kinds;
use crate::support::{PATIENCE, cached, client, listed, put, texts, until};

/// Streamed by a Tailwater, in pages by an etcd before 3.7, which answers that it does not know the method.
#[tokio::test]
async fn a_list_is_whole_streamed_or_in_pages() {
    for kind in kinds("lists of the client on etcd") {
        let server = Server::start(kind, &Options::default()).await.unwrap();
        let client = client(server.url());
        for number in 0..250 {
            put(&client, &format!("/c/{number:03}"), "value").await;
        }
        put(&client, "/d", "of another range").await;
        let decode = |_: &[u8], value: bytes::Bytes| String::from_utf8(value.to_vec());
        let informer = client.informer(KeyRange::prefix("/c/"), decode).page_size(100).start().unwrap();
        let snapshot = informer.synced().await.unwrap();
        assert_eq!((cached(&snapshot), snapshot.len()), (listed(&client).await.unwrap(), 250), "{kind:?}");
        let some: Vec<String> =
            snapshot.prefix(b"/c/24").map(|o| String::from_utf8_lossy(&o.key).into_owned()).collect();
        assert_eq!((some.len(), some[9].as_str()), (10, "/c/249"));
        // A second one, of a client that knows by now how lists come here.
        assert_eq!(texts(&client).synced().await.unwrap().len(), 250);
    }
}

#[tokio::test]
async fn a_consistent_read_has_what_was_written_before_and_does_not_wait_for_changes() {
    for kind in kinds("consistent reads of the client on etcd") {
        let server = Server::start(kind, &Options::default()).await.unwrap();
        let client = client(server.url());
        let informer = texts(&client);
        informer.synced().await.unwrap();
        for number in 0..30 {
            let key = format!("/c/{number}");
            let revision = put(&client, &key, "mine").await;
            let snapshot = informer.consistent().await.unwrap();
            assert!(snapshot.revision() >= revision && snapshot.get(key.as_bytes()).is_some(), "{kind:?}");
            // Nothing of this range changes: only progress can tell.
            let (elsewhere, begin) = (put(&client, "/other", "").await, Instant::now());
            assert!(informer.consistent().await.unwrap().revision() >= elsewhere);
            assert!(begin.elapsed() < Duration::from_secs(2), "{kind:?}: {:?}", begin.elapsed());
        }
        let error = informer.wait_for(i64::MAX).await.unwrap_err();
        assert!(matches!(error, Error::Behind { wanted: i64::MAX, is_held_back: false, .. }), "{error}");
    }
}

#[tokio::test]
async fn a_slow_subscriber_holds_back_its_informer_and_no_other() {
    for kind in kinds("subscribers of the client on etcd") {
        let server = Server::start(kind, &Options::default()).await.unwrap();
        let client = client(server.url());
        let decode = |_: &[u8], value: bytes::Bytes| String::from_utf8(value.to_vec());
        let slow = client.informer(KeyRange::prefix("/c/"), decode).queue_changes_max(8).start().unwrap();
        let prompt = texts(&client);
        slow.synced().await.unwrap();
        let mut changes = slow.subscribe();
        // More than sockets and windows take: of the slow one the server has to keep the most.
        let value = "x".repeat(100_000);
        let mut last = 0;
        for number in 0..200 {
            last = put(&client, &format!("/c/{:02}", number % 20), &value).await;
        }
        assert!(prompt.consistent().await.unwrap().revision() >= last, "{kind:?}");
        until(&slow, |status| status.phase == Phase::HeldBack).await;
        // It is read as it is; what is not there yet can't be waited for.
        let held = slow.snapshot();
        assert!(held.revision() < last, "{kind:?}: at {} of {last}", held.revision());
        let error = slow.wait_for(last).await.unwrap_err();
        assert!(matches!(error, Error::Behind { is_held_back: true, .. }), "{error}");
        // Queue, one answer, and what is not told of it.
        let revisions = told_until(&mut changes, last).await;
        assert!(revisions.windows(2).all(|two| two[1] == two[0] + 1), "{kind:?}: {revisions:?}");
        assert_eq!(revisions.len(), 200);
        assert_eq!(cached(&slow.wait_for(last).await.unwrap()), cached(&prompt.snapshot()));
        assert_eq!(slow.status().borrow().relists, 0);
    }
}

/// The revisions of the changes up to the last one.
async fn told_until(changes: &mut tailwater_client::Subscription<String>, last: i64) -> Vec<i64> {
    let mut revisions = Vec::new();
    while revisions.last() != Some(&last) {
        match tokio::time::timeout(PATIENCE, changes.next()).await.unwrap().unwrap() {
            Change::Applied { new, .. } => revisions.push(new.mod_revision()),
            Change::Synced { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    revisions
}

#[tokio::test]
async fn who_subscribes_late_is_told_the_state_and_what_follows() {
    let server = Server::start(Kind::Tailwater, &Options::default()).await.unwrap();
    let client = client(server.url());
    let informer = texts(&client);
    let mut early = informer.subscribe();
    for number in 0..5 {
        put(&client, &format!("/c/{number}"), "before").await;
    }
    informer.consistent().await.unwrap();
    let mut late = informer.subscribe();
    let mut keys = Vec::new();
    loop {
        match late.next().await.unwrap() {
            Change::Applied { old: None, new } => keys.push(new.key.clone()),
            Change::Synced { revision } => break assert_eq!(revision, informer.snapshot().revision()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(keys, ["/c/0", "/c/1", "/c/2", "/c/3", "/c/4"]);
    let last = put(&client, "/c/3", "after").await;
    let next = late.next().await.unwrap();
    assert!(matches!(&next, Change::Applied { old: Some(old), new } if old.value == "before" && new.value == "after"));
    let told = told_until(&mut early, last).await;
    assert_eq!(told.len(), 6);
    // Both end with the informer.
    drop(informer);
    assert!(late.next().await.is_none() && early.next().await.is_none());
}

#[tokio::test]
async fn what_no_server_has_seen_goes_to_another_endpoint() {
    let mut server = Server::start(Kind::Tailwater, &Options::default()).await.unwrap();
    let gone = {
        let mut gone = Server::start(Kind::Tailwater, &Options::default()).await.unwrap();
        gone.kill().unwrap();
        gone.url().to_owned()
    };
    // In a random order: some of these begin with the one that is gone.
    for number in 0..20 {
        let client = crate::support::builder([server.url().to_owned(), gone.clone()]).build().unwrap();
        put(&client, &format!("/c/{number:02}"), "written").await;
        assert_eq!(texts(&client).synced().await.unwrap().len(), number + 1);
    }
    server.kill().unwrap();
    let client = crate::support::builder([server.url().to_owned(), gone]).build().unwrap();
    let begin = Instant::now();
    assert!(client.put(Default::default()).await.is_err());
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

/// The watch begins again at the version that it holds, and finds what is missing with the next change of that key.
#[tokio::test]
async fn a_change_that_a_server_leaves_out_is_noticed_and_mended() {
    for deviation in [Deviation::EventDropped, Deviation::EventDoubled, Deviation::EventReordered] {
        let server = Server::start(Kind::Tailwater, &Options::default()).await.unwrap();
        let proxy = Proxy::start(server.url(), deviation).await.unwrap();
        let client = client(server.url());
        let informer = texts(&crate::support::client(proxy.url()));
        informer.synced().await.unwrap();
        let mut changes = informer.subscribe();
        for number in 0..60 {
            let revision = put(&client, &format!("/c/{}", number % 3), &number.to_string()).await;
            // Each in an answer of its own.
            informer.wait_for(revision).await.ok();
        }
        // With progress behind an event that was held back or left out, the cache is behind or wrong until the next one.
        put(&client, "/c/0", "60").await;
        put(&client, "/c/1", "61").await;
        put(&client, "/c/2", "62").await;
        let status = until(&informer, |status| status.gaps > 0).await;
        assert_eq!((status.gaps, status.relists), (1, 1), "{deviation:?}");
        assert_eq!(cached(&informer.consistent().await.unwrap()), listed(&client).await.unwrap(), "{deviation:?}");
        let cause = loop {
            if let Change::Relisted { cause, .. } = changes.next().await.unwrap() {
                break cause;
            }
        };
        assert!(matches!(cause, RelistCause::Gap { .. }), "{deviation:?}: {cause:?}");
    }
}
