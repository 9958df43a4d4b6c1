//! A way to a server's client port that can be held and cut.

use std::net::SocketAddr;

use anyhow::Context;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use super::links::{Link, join};

/// A proxy in front of one client URL, both directions under the test's control; it and its connections end when dropped.
#[derive(Debug)]
pub struct Gate {
    url: String,
    link: watch::Sender<Link>,
    task: AbortHandle,
}

impl Gate {
    /// An open way to `upstream`, for example `http://127.0.0.1:2379`, which need not be served yet.
    ///
    /// # Errors
    /// When no port is free, or `upstream` is not an `http://` URL of an address.
    pub async fn start(upstream: &str) -> anyhow::Result<Self> {
        let upstream: SocketAddr = upstream.strip_prefix("http://").context("not an http URL")?.parse()?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let link = watch::Sender::new(Link::Open);
        let state = link.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { continue };
                        connections.spawn(forward(stream, upstream, state.subscribe(), state.subscribe()));
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(Self { url, link, task: task.abort_handle() })
    }

    /// What clients use instead of the server's URL.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Sets what happens to bytes of both directions.
    pub fn set(&self, link: Link) {
        self.link.send_replace(link);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(
    stream: TcpStream,
    upstream: SocketAddr,
    there: watch::Receiver<Link>,
    back: watch::Receiver<Link>,
) -> std::io::Result<()> {
    if *there.borrow() == Link::Cut {
        return Ok(());
    }
    join(stream, upstream, there, back).await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_gate_holds_and_cuts() {
        let server = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let gate = Gate::start(&format!("http://{}", server.local_addr().expect("bound"))).await.expect("a gate");
        let mut client = TcpStream::connect(gate.url().trim_start_matches("http://")).await.expect("a connection");
        let (mut there, _) = server.accept().await.expect("a connection");
        gate.set(Link::Held);
        client.write_u8(1).await.expect("connected");
        let held = tokio::time::timeout(Duration::from_millis(100), there.read_u8()).await;
        assert!(held.is_err(), "held");
        gate.set(Link::Open);
        assert_eq!(there.read_u8().await.expect("it was kept"), 1);
        gate.set(Link::Cut);
        assert!(there.read_u8().await.is_err(), "the connection ends");
    }
}
