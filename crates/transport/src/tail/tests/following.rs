//! A remote source against a local one, over loopback.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tailwater_api::tail as wire;
use tailwater_eventlog::{
    History, HistoryError, HistoryPoint, KeyRange, MemberId, Source, SourceError, StateQuery, TailError,
};

use super::*;
use crate::tail::codec;

fn remote(nodes: &[&Node]) -> RemoteSource {
    let mut config = RemoteSourceConfig::new(nodes.iter().map(|node| node.url()).collect(), MemberId(50));
    config.link.backoff = (Duration::from_millis(1), Duration::from_millis(20));
    RemoteSource::new(config).unwrap()
}

/// Asks until the source can be reached.
fn ask<T>(mut ask: impl FnMut() -> Result<T, SourceError>) -> T {
    let begin = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(SourceError::Unavailable(reason)) => assert!(begin.elapsed() < Duration::from_secs(20), "{reason}"),
            Err(error) => panic!("{error}"),
        }
    }
}

fn follow_to(source: &dyn Source, mut cursor: Cursor, end: Cursor) -> (Cursor, Vec<Arc<Event>>) {
    let mut events = Vec::new();
    wait_until("the reader has come to the end", || {
        for frame in source.follow(cursor, 1 << 20, Duration::from_millis(50)).unwrap() {
            events.extend(frame.events.iter().cloned());
            cursor = Cursor { revision: frame.revision, position: frame.position, ..cursor };
        }
        cursor.position >= end.position
    });
    (cursor, events)
}

fn begin() -> Cursor {
    Cursor { history: HISTORY, revision: Revision(1), position: Position(0) }
}

#[test]
fn a_record_far_larger_than_a_message_comes_whole_and_small_ones_in_order() {
    let mut writer = Writer::new();
    let node = Node::start(&writer, TailServiceConfig::default());
    let remote = remote(&[&node]);
    let keys: Vec<String> = (0..3000).map(|n| format!("large/{n:04}")).collect();
    let value = vec![1; 2000];
    writer.fill(50, 10);
    writer.write(&keys.iter().map(|key| (key.as_str(), Some(&value[..]))).collect::<Vec<_>>());
    writer.fill(50, 10);
    let (cursor, events) = follow_to(&remote, begin(), writer.tail.end());
    assert_eq!(cursor, writer.tail.end());
    let (_, local) = follow_to(&writer.source(), begin(), writer.tail.end());
    assert!(events == local && events.len() == 3100, "{} events", events.len());
    // What comes now comes at once.
    writer.fill(1, 10);
    assert_eq!(follow_to(&remote, cursor, writer.tail.end()).1.len(), 1);
    assert!(remote.core_word().is_some_and(|word| word.path == [1, 50]));
}

#[test]
fn a_source_with_an_old_word_is_kept_until_there_is_a_better_one() {
    let mut writer = Writer::new();
    writer.fill(10, 10);
    let old = Node::start_with(&writer, TailServiceConfig::default(), || CoreWord {
        path: vec![1],
        age: Duration::from_secs(60),
    });
    let word = || CoreWord { path: vec![2], age: Duration::ZERO };
    let other = Node::start_with(&writer, TailServiceConfig::default(), word);
    let ready = Arc::new(AtomicBool::new(false));
    let told = ready.clone();
    other.service.describe_with(Box::new(move || {
        let node = NodeDescription { path: vec![2], ready: told.load(Ordering::SeqCst), ..Default::default() };
        Description { node, leader: Some(MemberId(9)), ..Default::default() }
    }));
    let remote = remote(&[&old, &other]);
    let path = || remote.core_word().map(|word| word.path).unwrap_or_default();
    let (mut cursor, begun) = (begin(), Instant::now());
    while begun.elapsed() < Duration::from_millis(1500) {
        writer.fill(1, 10);
        let (reached, events) = follow_to(&remote, cursor, writer.tail.end());
        assert!(!events.is_empty());
        cursor = reached;
        assert_eq!(path(), [1, 50]);
        assert!(remote.silence().is_some_and(|silence| silence < Duration::from_secs(1)));
    }
    ready.store(true, Ordering::SeqCst);
    wait_until("the better source is followed", || {
        writer.fill(1, 10);
        let (reached, events) = follow_to(&remote, cursor, writer.tail.end());
        assert!(!events.is_empty());
        cursor = reached;
        path() == [2, 50]
    });
}

#[test]
fn a_transfer_is_resumed_by_key_at_another_source() {
    let mut writer = Writer::new();
    for n in 0..600 {
        writer.write(&[(&format!("key/{n:04}"), Some(&[7; 10_000]))]);
    }
    let nodes =
        [Node::start(&writer, TailServiceConfig::default()), Node::start(&writer, TailServiceConfig::default())];
    let remote = remote(&[&nodes[0], &nodes[1]]);
    let (at, _) = ask(|| remote.transfer_begin());
    assert_eq!(at, writer.tail.end());
    let [first, _second] = nodes;
    let mut first = Some(first);
    let (mut events, mut after, mut calls) = (Vec::new(), None::<Bytes>, 0);
    loop {
        let chunk = ask(|| remote.transfer(&KeyRange::all(), after.as_ref(), 1 << 20));
        events.extend(chunk.events);
        calls += 1;
        if calls == 2 {
            first.take();
            // Newer than B, and above what the first source had reached.
            writer.write(&[("key/0599", Some(b"newer"))]);
        }
        after = chunk.resume_after;
        if after.is_none() {
            break;
        }
    }
    assert!(calls > 4, "{calls} calls");
    let live = writer.log.live(&KeyRange::all(), None, usize::MAX, None).unwrap().events;
    assert_eq!(events, live);
    assert_eq!(remote.transfer_end(), writer.log.state().revision);
}

#[test]
fn a_transfer_that_nobody_can_go_on_with_says_so() {
    let mut writer = Writer::new();
    for n in 0..400 {
        writer.write(&[(&format!("key/{n:04}"), Some(&[7; 10_000]))]);
    }
    let mut nodes = vec![Node::start(&writer, TailServiceConfig::default())];
    nodes.push(Node::start(&writer, TailServiceConfig::default()));
    let remote = remote(&[&nodes[0], &nodes[1]]);
    ask(|| remote.transfer_begin());
    let chunk = ask(|| remote.transfer(&KeyRange::all(), None, 1 << 20));
    drop(nodes.remove(0));
    writer.fill(50, 10);
    // The holds of the first source's transfer go with its thread.
    wait_until("the log is folded", || {
        writer.compact(440);
        writer.log.state().fold_point == Revision(439)
    });
    let since = Instant::now();
    let failed = loop {
        match remote.transfer(&KeyRange::all(), chunk.resume_after.as_ref(), 1 << 20) {
            Err(SourceError::Restart(reason)) => break reason,
            Ok(_) | Err(SourceError::Unavailable(_)) => assert!(since.elapsed() < Duration::from_secs(20)),
            Err(error) => panic!("{error}"),
        }
    };
    assert!(failed.contains("no log"), "{failed}");
    let behind =
        remote.follow(Cursor { revision: Revision(9), position: Position(8), ..begin() }, 1, Duration::from_secs(9));
    assert!(matches!(behind, Err(TailError::Behind(_))), "{behind:?}");
    let other = remote.follow(Cursor { history: HistoryId(1), ..writer.tail.end() }, 1, Duration::from_secs(9));
    assert!(matches!(other, Err(TailError::OtherHistory)), "{other:?}");
}

#[test]
fn history_is_the_same_and_refused_where_it_is_not_whole() {
    let mut writer = Writer::new();
    writer.fill(300, 500);
    writer.compact(100);
    let node = Node::start(&writer, TailServiceConfig::default());
    let (remote, local) = (remote(&[&node]), writer.source());
    let range = KeyRange::Span(Bytes::from_static(b"key/1"), Bytes::from_static(b"key/3"));
    for (ranges, with_prev, bytes_max) in
        [(vec![], true, 4000), (vec![range.clone()], false, 1 << 30), (vec![range], true, 100)]
    {
        let mut point = Some(HistoryPoint { revision: Revision(100), sub: 0 });
        while let Some(from) = point {
            let read = |source: &dyn History| source.read(&ranges, from, Revision(290), with_prev, bytes_max).unwrap();
            let (there, here) = (read(&remote), read(&local));
            let flat = |chunk: &tailwater_eventlog::HistoryChunk| -> Vec<_> {
                chunk.events.iter().map(|found| (found.event.clone(), found.prev.clone())).collect()
            };
            assert_eq!(flat(&there), flat(&here));
            assert_eq!((there.next, there.compacted), (here.next, here.compacted));
            point = there.next;
        }
    }
    let from = HistoryPoint { revision: Revision(99), sub: 0 };
    let below = remote.read(&[], from, Revision(290), false, 1000);
    assert!(matches!(below, Err(HistoryError::Compacted(Revision(100)))), "{below:?}");
    let from = HistoryPoint { revision: Revision(200), sub: 0 };
    let ahead = remote.read(&[], from, Revision(9999), false, 1000);
    assert!(matches!(ahead, Err(HistoryError::Unavailable(_))), "what is not there yet is not left out: {ahead:?}");
}

#[test]
fn an_older_state_is_the_same_and_refused_where_it_is_gone() {
    let mut writer = Writer::new();
    writer.fill(300, 500);
    writer.compact(100);
    let node = Node::start(&writer, TailServiceConfig::default());
    let (remote, local) = (remote(&[&node]), writer.source());
    let state = |source: &dyn History, query: &StateQuery| {
        let chunk = source.state_at(query)?;
        Ok::<_, HistoryError>((chunk.events, chunk.resume_after, chunk.rest))
    };
    for (range, at, keys_max, bytes_max) in [
        (KeyRange::all(), 100, usize::MAX, 3000),
        (KeyRange::all(), 250, 3, 1 << 20),
        (KeyRange::Span(Bytes::from_static(b"key/1"), Bytes::from_static(b"key/3")), 177, usize::MAX, 1 << 30),
        (KeyRange::all(), 177, 0, 1000),
    ] {
        let at = Revision(at);
        let mut query = StateQuery { range, after: None, at, keys_max, bytes_max, count: true };
        loop {
            let (there, here) = (state(&remote, &query).unwrap(), state(&local, &query).unwrap());
            assert_eq!(there, here);
            query.after = there.1;
            if query.after.is_none() || keys_max == 0 {
                break;
            }
        }
    }
    let mut query =
        StateQuery { range: KeyRange::all(), after: None, at: Revision(99), keys_max: 9, bytes_max: 9, count: false };
    let below = state(&remote, &query);
    assert!(matches!(below, Err(HistoryError::Compacted(Revision(100)))), "{below:?}");
    query.at = Revision(9999);
    let ahead = state(&remote, &query);
    assert!(matches!(ahead, Err(HistoryError::Unavailable(_))), "what is not there yet is not left out: {ahead:?}");
}

#[test]
fn a_reader_of_ranges_is_told_how_far_the_log_is_when_nothing_matches() {
    let mut writer = Writer::new();
    writer.fill(100, 10);
    let node = Node::start(&writer, TailServiceConfig::default());
    let mut config = RemoteSourceConfig::new(vec![node.url()], MemberId(50));
    let range = KeyRange::Span(Bytes::from_static(b"other/"), Bytes::from_static(b"other0"));
    config.ranges = vec![range.clone()];
    let remote = RemoteSource::new(config).unwrap();
    let (_, events) = follow_to(&remote, begin(), writer.tail.end());
    assert!(events.is_empty());
    writer.write(&[("key/99", Some(b"x")), ("other/1", Some(b"y"))]);
    writer.fill(3, 10);
    let (cursor, events) = follow_to(&remote, begin(), writer.tail.end());
    assert_eq!(cursor, writer.tail.end());
    assert_eq!(events.iter().map(|event| event.key()).collect::<Vec<_>>(), [b"other/1"]);
    ask(|| remote.transfer_begin());
    let chunk = ask(|| remote.transfer(&range, None, 1 << 20));
    assert_eq!(chunk.events.iter().map(|event| event.key()).collect::<Vec<_>>(), [b"other/1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_does_not_read_costs_its_source_one_message() {
    let mut writer = Writer::new();
    let node = Node::start(&writer, TailServiceConfig::default());
    let channel = crate::connect(&node.url(), &crate::LinkConfig::default()).await.unwrap();
    let mut client = uplink::client(channel);
    let request = wire::FollowRequest {
        protocol_version: codec::PROTOCOL_VERSION,
        cursor: Some(codec::cursor_out(begin())),
        ..Default::default()
    };
    let stalled = client.follow(request).await.unwrap().into_inner();
    let written = tokio::task::spawn_blocking(move || {
        // Each frame is a megabyte; what the source holds of them shows in references to their events.
        let value = vec![1; 1 << 20];
        let mut weak = Vec::new();
        for n in 0..40 {
            writer.write(&[(&format!("key/{n}"), Some(&value))]);
            let Cursor { position, revision, history } = writer.tail.end();
            let before = Cursor { position: Position(position.0 - 1), revision: Revision(revision.0 - 1), history };
            let frames = writer.tail.read(before, 1);
            weak.push(Arc::downgrade(&frames.unwrap()[0].events[0]));
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(200));
        let held = weak.iter().filter(|weak| weak.strong_count() > 0).count();
        // The hot end keeps the newest; the stream may hold the frame that it hands over.
        assert!(held <= 3, "{held} frames are held");
        writer
    });
    let writer = written.await.unwrap();
    // It wakes up, and has missed nothing.
    let mut stream = stalled;
    let mut assembly = crate::tail::pieces::Assembly::new(begin(), true, tailwater_eventlog::Term(0));
    let mut events = 0;
    while assembly.cursor().position < writer.tail.end().position {
        let message = stream.message().await.unwrap().unwrap();
        assert!(message.resync.is_none());
        events += assembly.add(message.frames).unwrap().iter().map(|frame| frame.events.len()).sum::<usize>();
    }
    assert_eq!(events, 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_beyond_the_bound_and_of_another_version_are_refused() {
    let writer = Writer::new();
    let config = TailServiceConfig { followers_max: 1, cluster_id: 5, ..TailServiceConfig::default() };
    let node = Node::start(&writer, config);
    let channel = crate::connect(&node.url(), &crate::LinkConfig::default()).await.unwrap();
    let mut client = uplink::client(channel);
    let request = |protocol_version| wire::FollowRequest {
        protocol_version,
        cursor: Some(codec::cursor_out(begin())),
        ..Default::default()
    };
    let other = client.follow(request(9)).await.err().unwrap();
    assert_eq!(other.code(), tonic::Code::FailedPrecondition);
    let stranger = wire::FollowRequest { cluster_id: 6, ..request(codec::PROTOCOL_VERSION) };
    let other = client.follow(stranger).await.err().unwrap();
    assert!(other.message().contains("of cluster 5"), "{other}");
    let first = client.follow(request(codec::PROTOCOL_VERSION)).await.unwrap();
    let second = client.follow(request(codec::PROTOCOL_VERSION)).await.err().unwrap();
    assert_eq!(second.code(), tonic::Code::ResourceExhausted);
    drop(first);
    let mut again = client.follow(request(codec::PROTOCOL_VERSION)).await;
    for _ in 0..200 {
        if again.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        again = client.follow(request(codec::PROTOCOL_VERSION)).await;
    }
    let mut stream = again.unwrap().into_inner();
    node.service.stop();
    let ended = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => break tonic::Code::Unavailable,
            Err(status) => break status.code(),
        }
    };
    assert_eq!(ended, tonic::Code::Unavailable);
}
