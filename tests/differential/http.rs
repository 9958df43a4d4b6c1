//! HTTP/1.1 as far as the JSON gateway needs it: a request per connection, answers whole or line by line, and a proxy that
//! plants a deviation.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// How long a server may take for its next byte.
const PATIENCE: Duration = Duration::from_secs(10);
/// Headers that say how an answer travels, or when.
const TRANSPORT: [&str; 4] = ["date", "content-length", "transfer-encoding", "connection"];

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

/// An answer on its way.
#[derive(Debug)]
pub(crate) struct Arriving {
    socket: TcpStream,
    raw: Vec<u8>,
    has_ended: bool,
}

/// Sends a request to `url`, and waits for nothing.
pub(crate) async fn begin(url: &str, method: &str, path: &str, body: &[u8]) -> anyhow::Result<Arriving> {
    let host = url.strip_prefix("http://").context("a URL of http")?;
    let mut socket = TcpStream::connect(host).await?;
    socket.set_nodelay(true)?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    socket.write_all(&[head.as_bytes(), body].concat()).await?;
    Ok(Arriving { socket, raw: Vec::new(), has_ended: false })
}

/// Sends a request and waits for the whole answer.
pub(crate) async fn ask(url: &str, method: &str, path: &str, body: &[u8]) -> anyhow::Result<Answer> {
    let mut arriving = begin(url, method, path, body).await?;
    while arriving.more().await? {}
    arriving.so_far()?.with_context(|| format!("{method} {path}: the answer ends within its head"))
}

impl Arriving {
    /// Waits for more of the answer; false at its end.
    pub(crate) async fn more(&mut self) -> anyhow::Result<bool> {
        let read = self.socket.read_buf(&mut self.raw);
        let count = tokio::time::timeout(PATIENCE, read).await.context("no answer comes, and no end")??;
        self.has_ended |= count == 0;
        Ok(!self.has_ended)
    }

    /// What has come of the answer; none before its head is there.
    pub(crate) fn so_far(&self) -> anyhow::Result<Option<Answer>> {
        let Some(end) = find(&self.raw, b"\r\n\r\n") else { return Ok(None) };
        let head = std::str::from_utf8(&self.raw[..end])?;
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("no status")?.parse()?;
        let mut headers = BTreeMap::new();
        for line in lines {
            let (name, value) = line.split_once(':').with_context(|| format!("{line:?} is no header"))?;
            headers.insert(name.to_lowercase(), value.trim().to_owned());
        }
        let rest = &self.raw[end + 4..];
        let is_chunked = headers.get("transfer-encoding").is_some_and(|value| value == "chunked");
        let body = if is_chunked { unchunked(rest)? } else { rest.to_vec() };
        headers.retain(|name, _| !TRANSPORT.contains(&name.as_str()));
        Ok(Some(Answer { status, headers, body: String::from_utf8(body)? }))
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// The bytes of all chunks that are there whole.
fn unchunked(mut rest: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(end) = find(rest, b"\r\n") {
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..end])?, 16)?;
        let Some(chunk) = rest.get(end + 2..end + 2 + length) else { break };
        body.extend_from_slice(chunk);
        rest = rest.get(end + 4 + length..).unwrap_or_default();
    }
    Ok(body)
}

/// A proxy in front of a server; it ends when dropped.
pub(crate) struct Proxy {
    pub(crate) url: String,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Forwards requests to `upstream`, and passes the bodies of whole answers through `change`. Streams go by untouched.
pub(crate) async fn proxy(upstream: &str, change: fn(String) -> String) -> anyhow::Result<Proxy> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let upstream = upstream.to_owned();
    let task = tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let upstream = upstream.clone();
            // What fails here, fails for the client as well.
            tokio::spawn(async move { drop(forward(socket, &upstream, change).await) });
        }
    });
    Ok(Proxy { url, task })
}

async fn forward(mut socket: TcpStream, upstream: &str, change: fn(String) -> String) -> anyhow::Result<()> {
    let mut request = Vec::new();
    let (head, body) = loop {
        ensure!(socket.read_buf(&mut request).await? > 0, "the request ends within its head");
        let Some(end) = find(&request, b"\r\n\r\n") else { continue };
        let head = std::str::from_utf8(&request[..end])?.to_owned();
        let length = head.split("\r\n").find_map(|line| line.strip_prefix("Content-Length: "));
        let length: usize = length.context("no length")?.parse()?;
        let body = request.get(end + 4..end + 4 + length);
        if let Some(body) = body {
            break (head, body.to_vec());
        }
    };
    let mut words = head.split(' ');
    let (method, path) = (words.next().context("no method")?, words.next().context("no path")?);
    if path.ends_with("/watch") {
        let mut arriving = begin(upstream, method, path, &body).await?;
        tokio::io::copy_bidirectional(&mut socket, &mut arriving.socket).await?;
        return Ok(());
    }
    let answer = ask(upstream, method, path, &body).await?;
    let body = change(answer.body);
    let mut head = format!("HTTP/1.1 {} -\r\nContent-Length: {}\r\n", answer.status, body.len());
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    socket.write_all(format!("{head}\r\n{body}").as_bytes()).await?;
    Ok(())
}
