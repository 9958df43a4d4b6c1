//! `/ui` of running processes.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;
use tailwater_api::etcdserverpb as pb;

use crate::route::with_auth;
use crate::support::{Server, free_port, get, request};

/// Far beyond what anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pages that are open at a time.
const STREAMS_MAX: usize = 16;

/// An open stream of events.
struct Events {
    reader: BufReader<TcpStream>,
    status: String,
}

impl Events {
    fn open(port: u16) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET /ui/events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut reader = BufReader::new(stream);
        let mut status = String::new();
        reader.read_line(&mut status).unwrap();
        Self { reader, status }
    }

    fn is_open(&self) -> bool {
        self.status.contains(" 200 ")
    }

    /// The next frame; `None`: the stream has ended.
    fn next(&mut self) -> Option<Value> {
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            if let Some(json) = line.strip_prefix("data: ") {
                return Some(serde_json::from_str(json).unwrap());
            }
        }
    }

    /// Reads until a frame is as wanted.
    fn wait_for(&mut self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let frame = self.next().expect("the stream goes on");
            if is_it(&frame) {
                return frame;
            }
            assert!(begun.elapsed() < PATIENCE, "not in time: {what}: {frame}");
        }
    }
}

async fn watch(server: &Server, key: &str) -> tonic::Streaming<pb::WatchResponse> {
    let end = format!("{}0", key.trim_end_matches('/'));
    let create = pb::WatchCreateRequest {
        key: key.as_bytes().to_vec().into(),
        range_end: end.into_bytes().into(),
        ..Default::default()
    };
    let union = pb::watch_request::RequestUnion::CreateRequest(create);
    let requests = tokio_stream::StreamExt::chain(
        tokio_stream::iter([pb::WatchRequest { request_union: Some(union) }]),
        tokio_stream::pending(),
    );
    let mut stream =
        pb::watch_client::WatchClient::new(server.channel().await).watch(requests).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().unwrap().created);
    stream
}

#[test]
fn the_page_is_there_on_every_port_that_speaks_http() {
    let server = Server::start(&[]);
    for port in [server.port, server.metrics_port] {
        let page = get(port, "/ui");
        assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
        assert!(page.header("content-security-policy").unwrap().contains("default-src 'none'"));
        // Unlike the API's answers: a page of elsewhere may not read this one.
        assert_eq!(page.header("access-control-allow-origin"), None);
        assert!(page.body.starts_with("<!doctype html>") && page.body.len() < 40_000);
        for (method, path) in [("POST", "/ui"), ("GET", "/ui/"), ("GET", "/ui/nope"), ("POST", "/ui/events")] {
            assert_eq!(request(port, method, path, "").status, 404, "{method} {path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_tells_of_the_cluster_every_second() {
    let server = Server::start(&["--name=one"]);
    let mut events = Events::open(server.port);
    assert!(events.is_open(), "{}", events.status);
    let first = events.next().unwrap();
    assert_eq!((&first["served_by"], &first["nodes"][0]["kind"]), (&"one".into(), &"member".into()), "{first}");
    assert_eq!((&first["nodes"][0]["is_leader"], &first["nodes"][0]["state"]), (&true.into(), &"leader".into()));
    let mut stream = watch(&server, "/kept/secret/").await;
    let put = pb::PutRequest { key: "/kept/secret/a".into(), value: "v".into(), ..Default::default() };
    server.kv().await.put(put).await.unwrap();
    assert_eq!(stream.message().await.unwrap().unwrap().events.len(), 1);
    let frame = events.wait_for("the watcher", |frame| frame["prefixes"][0]["prefix"] == "/kept/secret/");
    assert_eq!(frame["prefixes"][0]["watchers"], 1);
    let node = &frame["nodes"][0];
    assert_eq!((&node["watchers"], &node["events"], &frame["revision"]), (&1.into(), &1.into(), &2.into()), "{frame}");
    let begun = Instant::now();
    for _ in 0..2 {
        events.next().unwrap();
    }
    assert!(begun.elapsed() > Duration::from_millis(900), "frames came within {:?}", begun.elapsed());
}

/// On the port for metrics alone never, on the client port until there are users; `/status` likewise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_shown_to_nobody_who_may_not_read_them() {
    let server = Server::start(&["--host-whitelist=localhost"]);
    let _watching = watch(&server, "/kept/secret/").await;
    let mut open = Events::open(server.port);
    open.wait_for("the watcher's prefix", |frame| frame.to_string().contains("secret"));
    let is_told = |body: String| {
        assert!(body.contains("\"watchers\":1"), "{body}");
        body.contains("secret")
    };
    assert!(is_told(get(server.port, "/status").body));
    let mut plain = Events::open(server.metrics_port);
    assert!(!is_told(plain.next().unwrap().to_string()));
    assert!(!is_told(get(server.metrics_port, "/status").body));
    // By a name that was made to resolve to this server.
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    write!(stream, "GET /status HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
    assert!(!is_told(answer));

    with_auth(&server).await;
    open.wait_for("the end of openness", |frame| frame["prefixes"].is_null());
    for _ in 0..2 {
        assert!(!is_told(open.next().unwrap().to_string()));
    }
    assert!(!is_told(get(server.port, "/status").body));
}

#[test]
fn as_many_look_as_may_and_one_that_leaves_makes_room() {
    let server = Server::start(&[]);
    let mut open: Vec<_> = (0..STREAMS_MAX).map(|_| Events::open(server.port)).collect();
    assert!(open.iter().all(Events::is_open));
    let refused = get(server.metrics_port, "/ui/events");
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")));
    // All of them are told.
    for events in &mut open {
        events.next().unwrap();
    }
    open.pop();
    let begun = Instant::now();
    while !Events::open(server.port).is_open() {
        assert!(begun.elapsed() < PATIENCE, "the place of one that has left stays taken");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn an_open_page_does_not_hold_up_the_end() {
    let mut server = Server::start(&["--drain-grace=20s"]);
    let mut open = [Events::open(server.port), Events::open(server.metrics_port)];
    for events in &mut open {
        events.next().unwrap();
    }
    let begun = Instant::now();
    server.signal("TERM");
    for events in &mut open {
        while events.next().is_some() {}
    }
    assert!(server.wait().success());
    assert!(begun.elapsed() < Duration::from_secs(15), "it took {:?}", begun.elapsed());
    assert!(!server.log().contains("clients did not leave in time"), "{}", server.log());
}

/// A gateway and a fanout without a group find the cluster by their upstream, as soon as it is there.
#[test]
fn nodes_without_a_replica_show_the_cluster_too() {
    let home = tempfile::tempdir().unwrap();
    let peer = format!("http://127.0.0.1:{}", free_port());
    let arguments = |name: &str, roles: &str, port: u16| {
        let url = format!("http://127.0.0.1:{port}");
        let mut arguments = vec!["serve".to_owned(), format!("--name={name}"), format!("--roles={roles}")];
        arguments.push(format!("--upstream={peer}"));
        arguments.extend(["listen", "advertise"].map(|kind| format!("--{kind}-client-urls={url}")));
        arguments
    };
    let spawn = |name: &str, roles: &str| {
        let port = free_port();
        Server::spawn(port, home.path().join(name), &arguments(name, roles, port))
    };
    let (mut fanout, mut gateway) = (spawn("f", "fanout,gateway"), spawn("g", "gateway"));
    fanout.wait_for("serving client traffic");
    gateway.wait_for("serving client traffic");
    let mut seen = [&fanout, &gateway].map(|server| Events::open(server.port));
    for events in &mut seen {
        let frame = events.next().unwrap();
        assert!(frame["nodes"].as_array().unwrap().is_empty() && frame["leader"] == "", "{frame}");
    }
    let member = [
        "serve".to_owned(),
        "--name=m".into(),
        "--roles=consensus".into(),
        format!("--data-dir={}", home.path().join("data").display()),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=m={peer}"),
    ];
    let mut member = Server::spawn(0, home.path().join("m"), &member);
    member.wait_ready();
    seen = seen.map(|mut events| {
        let frame = events.wait_for("both nodes", |frame| {
            let nodes = frame["nodes"].as_array().unwrap();
            nodes.len() == 2 && nodes.iter().all(|node| node["state"] == "leader" || node["state"] == "ready")
        });
        let shown = frame["nodes"].as_array().unwrap().iter();
        let shown: Vec<_> =
            shown.map(|node| (node["name"].as_str().unwrap(), node["kind"].as_str().unwrap())).collect();
        assert_eq!(shown, [("m", "member"), ("f", "fanout")]);
        events
    });
    let mut of_member = Events::open(member.metrics_port);
    assert_eq!(of_member.next().unwrap()["nodes"].as_array().unwrap().len(), 2);
    drop(seen);
}
