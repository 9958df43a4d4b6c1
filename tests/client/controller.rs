//! The example of the crate, as a process of its own.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use tailwater_client::Client;
use tailwater_client::api::{DeleteRangeRequest, PutRequest, RangeRequest};
use tailwater_tests::{Options, Server};

use crate::kinds;
use crate::support::{PATIENCE, client, put};

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// `target/<profile>/examples/controller`, seen from `target/<profile>/deps/<this test>`.
fn built() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a file");
    let path = test.ancestors().nth(2).expect("two folders").join("examples/controller");
    assert!(path.is_file(), "no example beside this test: run `cargo build -p tailwater-client --examples`");
    path
}

fn start(url: &str) -> Running {
    Running(Command::new(built()).arg(url).stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts"))
}

async fn value(client: &Client, key: &str) -> Option<String> {
    let answer = client.range(RangeRequest { key: key.to_owned().into(), ..Default::default() }).await.unwrap();
    answer.kvs.first().map(|kv| String::from_utf8(kv.value.to_vec()).unwrap())
}

/// Waits until a key has this value, or is gone.
async fn becomes(client: &Client, key: &str, wanted: Option<String>) {
    let until = Instant::now() + PATIENCE;
    loop {
        let value = value(client, key).await;
        if value == wanted {
            return;
        }
        assert!(Instant::now() < until, "{key} is {value:?}, not {wanted:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

async fn delete(client: &Client, key: &str) {
    client.delete_range(DeleteRangeRequest { key: key.to_owned().into(), ..Default::default() }).await.unwrap();
}

#[tokio::test]
async fn the_example_keeps_statuses_as_specs_ask() {
    for kind in kinds("the client's example on etcd") {
        let server = Server::start(kind, &Options::default()).await.unwrap();
        let client = client(server.url());
        let status = |revision, replicas| Some(format!(r#"{{"observed_revision":{revision},"replicas":{replicas}}}"#));
        let a = put(&client, "spec/a", r#"{"replicas": 3}"#).await;
        put(&client, "status/gone", r#"{"observed_revision": 1, "replicas": 1}"#).await;
        let controller = start(server.url());
        becomes(&client, "status/a", status(a, 3)).await;
        becomes(&client, "status/gone", None).await;
        let b = put(&client, "spec/b", r#"{"replicas": 1}"#).await;
        becomes(&client, "status/b", status(b, 1)).await;
        // Somebody else's write is put right.
        put(&client, "status/b", r#"{"observed_revision": 0, "replicas": 9}"#).await;
        becomes(&client, "status/b", status(b, 1)).await;
        // What can't be read counts as gone, until it can.
        put(&client, "spec/b", "three").await;
        becomes(&client, "status/b", None).await;
        drop(controller);
        // Changes while it is away.
        delete(&client, "spec/a").await;
        let b = put(&client, "spec/b", r#"{"replicas": 2}"#).await;
        let _controller = start(server.url());
        becomes(&client, "status/a", None).await;
        becomes(&client, "status/b", status(b, 2)).await;
        let put = PutRequest { key: "spec/b".into(), ..Default::default() };
        assert!(client.compare_and_put(put, b - 1).await.unwrap().is_none(), "it has changed since");
    }
}
