//! Short forms of what the tests of the client do.

use std::time::Duration;

use anyhow::Context;
use tailwater_client::api::{PutRequest, RangeRequest};
use tailwater_client::{Builder, Client, Informer, KeyRange, Status};

/// Far beyond what anything takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// What the informers of these tests cache.
pub(crate) const PREFIX: &str = "/c/";

/// A client that notices soon when a server is gone; servers must allow for that by [`ALLOW_PINGS`].
pub(crate) fn builder(urls: impl IntoIterator<Item = String>) -> Builder {
    let (interval, timeout) = (Duration::from_millis(500), Duration::from_millis(1500));
    let builder = Client::builder(urls).request_timeout(Duration::from_secs(2)).keepalive(interval, timeout);
    builder.connect_timeout(Duration::from_secs(1)).backoff_max(Duration::from_millis(500))
}

pub(crate) const ALLOW_PINGS: &str = "--grpc-keepalive-min-time=100ms";

pub(crate) fn client(url: &str) -> Client {
    builder([url.to_owned()]).build().expect("a good URL")
}

/// A cache of texts.
pub(crate) fn texts(client: &Client) -> Informer<String> {
    let decode = |_: &[u8], value: bytes::Bytes| String::from_utf8(value.to_vec());
    client.informer(KeyRange::prefix(PREFIX), decode).start().expect("good URLs")
}

/// Puts; the revision.
pub(crate) async fn put(client: &Client, key: &str, value: &str) -> i64 {
    let put = PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() };
    client.put(put).await.expect("a put").header.expect("an answer has a header").revision
}

/// Key and value of everything under [`PREFIX`], by a linearizable list.
pub(crate) async fn listed(client: &Client) -> anyhow::Result<Vec<(String, String)>> {
    let mut end = PREFIX.as_bytes().to_vec();
    *end.last_mut().context("a prefix is not empty")? += 1;
    let range = RangeRequest { key: PREFIX.into(), range_end: end.into(), ..Default::default() };
    let kvs = client.range(range).await?.kvs.into_iter();
    kvs.map(|kv| Ok((String::from_utf8(kv.key.to_vec())?, String::from_utf8(kv.value.to_vec())?))).collect()
}

/// The same, of a cache.
pub(crate) fn cached(snapshot: &tailwater_client::Snapshot<String>) -> Vec<(String, String)> {
    let pair = |o: &std::sync::Arc<tailwater_client::Object<String>>| {
        (String::from_utf8_lossy(&o.key).into_owned(), o.value.clone())
    };
    snapshot.iter().map(pair).collect()
}

/// Waits until an informer's status is so.
pub(crate) async fn until<T: Send + Sync + 'static>(informer: &Informer<T>, is_so: impl Fn(&Status) -> bool) -> Status {
    let mut status = informer.status();
    let waited = tokio::time::timeout(PATIENCE, status.wait_for(|status| is_so(status))).await;
    match waited {
        Ok(Ok(status)) => status.clone(),
        _ => panic!("still {:?}", informer.status().borrow()),
    }
}
