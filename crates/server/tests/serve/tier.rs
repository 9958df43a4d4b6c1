//! Members and fanouts as processes of their own, seen by a client.

use std::path::Path;
use std::time::{Duration, Instant};

use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::watch_request::RequestUnion;
use tempfile::TempDir;
use tokio_stream::StreamExt;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::support::{Server, free_port, get, outcome, tailwater};

mod loss;
mod serving;

/// Far beyond what anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Short, so that what takes three of these does not take long.
const TIMES: [&str; 2] = ["--heartbeat-interval=50", "--election-timeout=500"];

/// Members without an API for clients.
struct Members {
    home: TempDir,
    peer_ports: Vec<u16>,
    servers: Vec<Server>,
}

impl Members {
    fn start(count: usize) -> Self {
        let home = tempfile::tempdir().unwrap();
        let peer_ports: Vec<u16> = (0..count).map(|_| free_port()).collect();
        let mut members = Self { home, peer_ports, servers: Vec::new() };
        for at in 0..count {
            let server = members.spawn(at, &[]);
            members.servers.push(server);
        }
        members.servers.iter_mut().for_each(Server::wait_ready);
        members
    }

    fn url(&self, at: usize) -> String {
        format!("http://127.0.0.1:{}", self.peer_ports[at])
    }

    fn urls(&self) -> String {
        (0..self.peer_ports.len()).map(|at| self.url(at)).collect::<Vec<_>>().join(",")
    }

    fn spawn(&self, at: usize, flags: &[&str]) -> Server {
        let named: Vec<String> = (0..self.peer_ports.len()).map(|at| format!("m{at}={}", self.url(at))).collect();
        let mut arguments = vec![
            "serve".to_owned(),
            format!("--name=m{at}"),
            "--roles=consensus".to_owned(),
            format!("--data-dir={}", self.home.path().join(format!("m{at}")).display()),
            format!("--listen-peer-urls={}", self.url(at)),
            format!("--initial-advertise-peer-urls={}", self.url(at)),
            format!("--initial-cluster={}", named.join(",")),
        ];
        arguments.extend(TIMES.iter().chain(flags).map(|&flag| flag.to_owned()));
        Server::spawn(0, self.home.path().join(format!("m{at}.log")), &arguments)
    }

    fn kill(&mut self, at: usize) {
        self.servers[at].signal("KILL");
        self.servers[at].wait();
    }

    fn restart(&mut self, at: usize, flags: &[&str]) {
        self.servers[at] = self.spawn(at, flags);
        self.servers[at].wait_ready();
    }

    /// A fanout of these; it is not waited for.
    fn fanout(&self, name: &str, flags: &[&str]) -> Server {
        fanout(self.home.path(), name, &self.urls(), flags)
    }
}

/// A fanout that follows `upstream`; it is not waited for.
fn fanout(home: &Path, name: &str, upstream: &str, flags: &[&str]) -> Server {
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}");
    let mut arguments = vec![
        "serve".to_owned(),
        format!("--name={name}"),
        "--roles=fanout,gateway".to_owned(),
        format!("--upstream={upstream}"),
        format!("--listen-client-urls={url}"),
        format!("--advertise-client-urls={url}"),
    ];
    arguments.extend(TIMES.iter().chain(flags).map(|&flag| flag.to_owned()));
    Server::spawn(port, home.join(format!("{name}.log")), &arguments)
}

fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest {
        key: key.as_bytes().to_vec().into(),
        value: value.as_bytes().to_vec().into(),
        ..Default::default()
    }
}

fn range(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.as_bytes().to_vec().into(), ..Default::default() }
}

/// A watch of every key with this prefix from a revision on, created.
async fn watch(server: &Server, prefix: &str, start: i64) -> Streaming<pb::WatchResponse> {
    let mut stream = try_watch(server.channel().await, prefix, start).await.unwrap();
    assert!(stream.message().await.unwrap().unwrap().created);
    stream
}

async fn try_watch(channel: Channel, prefix: &str, start: i64) -> Result<Streaming<pb::WatchResponse>, Status> {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().unwrap() += 1;
    let create = pb::WatchCreateRequest {
        key: prefix.as_bytes().to_vec().into(),
        range_end: end.into(),
        start_revision: start,
        ..Default::default()
    };
    let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let requests = tokio_stream::iter([request]).chain(tokio_stream::pending());
    Ok(pb::watch_client::WatchClient::new(channel).watch(requests).await?.into_inner())
}

/// Revisions of the next events, until there are `count`.
async fn revisions(stream: &mut Streaming<pb::WatchResponse>, count: usize) -> Vec<i64> {
    let mut found = Vec::new();
    while found.len() < count {
        let response = tokio::time::timeout(PATIENCE, stream.message()).await.unwrap().unwrap().unwrap();
        found.extend(response.events.iter().map(|event| event.kv.as_ref().unwrap().mod_revision));
    }
    found
}

/// How a stream ends.
async fn end(stream: &mut Streaming<pb::WatchResponse>) -> Status {
    tokio::time::timeout(PATIENCE, async {
        loop {
            match stream.message().await {
                // Never in band: clients take that for the end of the watch.
                Ok(Some(response)) => assert!(!response.canceled, "{response:?}"),
                Ok(None) => panic!("ended without a reason"),
                Err(status) => return status,
            }
        }
    })
    .await
    .unwrap()
}

/// Asks until the answer is as wanted.
async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
