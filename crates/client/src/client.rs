//! Calls to whichever endpoint answers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::kv_client::KvClient;
use tailwater_tls::{ClientTls, TlsConfig};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::Error;
use crate::auth::Auth;
use crate::config::Builder;
use crate::connections::{Backoff, Connections, Node};
use crate::informer::InformerBuilder;
use crate::object::BoxError;
use crate::range::KeyRange;

/// Servers' limits on messages are their own business; this client takes what they send.
pub(crate) const MESSAGE_BYTES_MAX: usize = 1 << 31;

/// A client of one cluster. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    config: Builder,
    tls: Option<ClientTls>,
    auth: Auth,
    connections: Connections,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

/// Which calls may be sent again after a failure.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    /// Any: it changes nothing.
    Always,
    /// Only what no server has seen, or what one has refused for its token.
    Unseen,
}

impl Client {
    /// Begins with the endpoints: URLs like `http://10.0.0.1:2379`. They are tried in a random order; the one that
    /// answers is kept until it fails.
    pub fn builder<U: Into<String>>(endpoints: impl IntoIterator<Item = U>) -> Builder {
        Builder::new(endpoints.into_iter().map(Into::into).collect())
    }

    pub(crate) fn new(config: Builder) -> Result<Self, Error> {
        let tls = config.tls.clone().map(|files| ClientTls::new(TlsConfig::from(files)));
        if let Some(tls) = &tls {
            tls.check()?;
        }
        let connections = Connections::new(&config, tls.as_ref())?;
        let auth = Auth::new(config.user.clone());
        Ok(Self { inner: Arc::new(Inner { config, tls, auth, connections }) })
    }

    /// A cache of `range`, to be started. `decode` makes an object of a key and its value.
    pub fn informer<T, E>(
        &self,
        range: KeyRange,
        decode: impl Fn(&[u8], Bytes) -> Result<T, E> + Send + Sync + 'static,
    ) -> InformerBuilder<T>
    where
        T: Send + Sync + 'static,
        E: Into<BoxError>,
    {
        InformerBuilder::new(self.clone(), range, Arc::new(move |key, value| decode(key, value).map_err(Into::into)))
    }

    /// Reads keys. On a failure of an endpoint the next one is asked.
    ///
    /// # Errors
    /// A server refuses, or none answers.
    pub async fn range(&self, request: pb::RangeRequest) -> Result<pb::RangeResponse, Error> {
        self.call(request, Again::Always, |mut kv, request| async move { kv.range(request).await }).await
    }

    /// Writes a key. Sent to another endpoint only when no server has seen it.
    ///
    /// # Errors
    /// A server refuses, or none answers. After [`Error::Timeout`], or a connection that broke, the write may be done
    /// or not.
    pub async fn put(&self, request: pb::PutRequest) -> Result<pb::PutResponse, Error> {
        self.call(request, Again::Unseen, |mut kv, request| async move { kv.put(request).await }).await
    }

    /// Deletes keys; as [`Client::put`].
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn delete_range(&self, request: pb::DeleteRangeRequest) -> Result<pb::DeleteRangeResponse, Error> {
        self.call(request, Again::Unseen, |mut kv, request| async move { kv.delete_range(request).await }).await
    }

    /// Compares, then reads and writes; as [`Client::put`].
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn txn(&self, request: pb::TxnRequest) -> Result<pb::TxnResponse, Error> {
        self.call(request, Again::Unseen, |mut kv, request| async move { kv.txn(request).await }).await
    }

    /// Writes a key if its newest write is still the one at `mod_revision`; 0: if there is no such key. The revision of
    /// the write, or none when the key has changed.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn compare_and_put(&self, put: pb::PutRequest, mod_revision: i64) -> Result<Option<i64>, Error> {
        let compare = unchanged(&put.key, mod_revision);
        self.compare_and(compare, pb::request_op::Request::RequestPut(put)).await
    }

    /// Deletes a key if its newest write is still the one at `mod_revision`. The revision of the delete, or none when the
    /// key has changed.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn compare_and_delete(&self, key: impl Into<Bytes>, mod_revision: i64) -> Result<Option<i64>, Error> {
        let key = key.into();
        let compare = unchanged(&key, mod_revision);
        let delete = pb::DeleteRangeRequest { key, ..Default::default() };
        self.compare_and(compare, pb::request_op::Request::RequestDeleteRange(delete)).await
    }

    async fn compare_and(&self, compare: pb::Compare, op: pb::request_op::Request) -> Result<Option<i64>, Error> {
        let success = vec![pb::RequestOp { request: Some(op) }];
        let answer = self.txn(pb::TxnRequest { compare: vec![compare], success, failure: vec![] }).await?;
        let revision = answer.header.map_or(0, |header| header.revision);
        Ok(answer.succeeded.then_some(revision))
    }

    /// The servers' revision, confirmed by a quorum.
    pub(crate) async fn current_revision(&self, range: &KeyRange) -> Result<i64, Error> {
        let answer = self.range(range.revision_request()).await?;
        Ok(answer.header.map_or(0, |header| header.revision))
    }

    pub(crate) fn config(&self) -> &Builder {
        &self.inner.config
    }

    pub(crate) fn auth(&self) -> &Auth {
        &self.inner.auth
    }

    /// Connections for a user of its own.
    pub(crate) fn connections(&self) -> Result<Connections, Error> {
        Connections::new(&self.inner.config, self.inner.tls.as_ref())
    }

    /// Calls the endpoint in use, and the next ones when it fails.
    async fn call<Q, A, F>(
        &self,
        message: Q,
        again: Again,
        call: impl Fn(KvClient<Channel>, Request<Q>) -> F,
    ) -> Result<A, Error>
    where
        Q: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let connections = &self.inner.connections;
        let mut backoff = Backoff::new(connections.len(), self.inner.config.backoff_max);
        // Each endpoint, once more each for what a new token or connection heals.
        for attempts_left in (0..connections.len() * 2).rev() {
            let node = connections.current();
            let error = match self.call_at(&node, message.clone(), &call).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let is_stale = error.is_stale_token() && self.inner.auth.has_user();
            if !is_stale && error.is_of_endpoint() {
                connections.leave(&node);
            }
            let may_repeat = is_stale || error.is_never_sent() || (again == Again::Always && error.is_of_endpoint());
            if !may_repeat || attempts_left == 0 {
                return Err(error);
            }
            backoff.pause().await;
        }
        Err(Error::NoEndpoints)
    }

    async fn call_at<Q, A, F>(
        &self,
        node: &Arc<Node>,
        message: Q,
        call: &impl Fn(KvClient<Channel>, Request<Q>) -> F,
    ) -> Result<A, Error>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let answered = async {
            let mut request = Request::new(message);
            let token = self.inner.auth.sign(node, &mut request).await?;
            let answer = call(kv(node), request).await.map_err(|status| Error::call(&node.url, status));
            self.inner.auth.judge(token, answer.as_ref().err()).await;
            Ok(answer?.into_inner())
        };
        in_time(node, self.inner.config.request_timeout, answered).await
    }
}

/// Whether the newest write of a key is the one at `mod_revision`; 0: there is no such key.
fn unchanged(key: &Bytes, mod_revision: i64) -> pb::Compare {
    pb::Compare {
        key: key.clone(),
        target: pb::compare::CompareTarget::Mod as i32,
        result: pb::compare::CompareResult::Equal as i32,
        target_union: Some(pb::compare::TargetUnion::ModRevision(mod_revision)),
        ..Default::default()
    }
}

/// The KV service of an endpoint.
pub(crate) fn kv(node: &Node) -> KvClient<Channel> {
    KvClient::new(node.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// Gives `answered` so much time.
pub(crate) async fn in_time<A>(
    node: &Node,
    timeout: Duration,
    answered: impl Future<Output = Result<A, Error>>,
) -> Result<A, Error> {
    let timed_out = |_| Error::Timeout { endpoint: node.url.clone(), waited: timeout };
    tokio::time::timeout(timeout, answered).await.map_err(timed_out)?
}
