//! The Lease service.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use prost::Message;
use rand::Rng;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::grpc::RequestStream;
use tailwater_api::write::Caller;
use tailwater_api::write::command::Command;
use tailwater_consensus::{Answer, Auth, Right};
use tailwater_eventlog::LeaseId;

use crate::Gateway;
use crate::auth::{Credentials, is_stale};
use crate::body::{Chunks, framed};
use crate::kv::mismatched;
use crate::methods::Method;
use crate::status::Fault;

/// Granting again with another id when a random one was taken; twice in a row does not happen by chance.
const ID_ATTEMPTS_MAX: usize = 4;

impl Gateway {
    /// `Lease.LeaseGrant`. Id 0 asks for a random one.
    pub(crate) async fn lease_grant(
        &self,
        credentials: &Credentials,
        mut request: pb::LeaseGrantRequest,
    ) -> Result<pb::LeaseGrantResponse, Fault> {
        let is_chosen = request.id != 0;
        for attempt in 1.. {
            if !is_chosen {
                request.id = rand::rng().random_range(1..=i64::MAX);
            }
            match self.propose(credentials, request.encoded_len(), Command::LeaseGrant(request)).await {
                Err(Fault::LeaseExists) if !is_chosen && attempt < ID_ATTEMPTS_MAX => {}
                Err(fault) => return Err(fault),
                Ok(Answer::LeaseGrant(mut response)) => {
                    response.header = self.complete(response.header);
                    return Ok(response);
                }
                Ok(other) => mismatched("lease grant", &other),
            }
        }
        unreachable!("the last attempt returns")
    }

    /// `Lease.LeaseRevoke`.
    pub(crate) async fn lease_revoke(
        &self,
        credentials: &Credentials,
        request: pb::LeaseRevokeRequest,
    ) -> Result<pb::LeaseRevokeResponse, Fault> {
        match self.propose(credentials, request.encoded_len(), Command::LeaseRevoke(request)).await? {
            Answer::LeaseRevoke(mut response) => {
                response.header = self.complete(response.header);
                Ok(response)
            }
            other => mismatched("lease revoke", &other),
        }
    }

    /// `Lease.LeaseTimeToLive`; an unknown lease has a TTL of -1. Its keys are told to who may read all of them.
    pub(crate) async fn lease_time_to_live(
        &self,
        credentials: &Credentials,
        request: pb::LeaseTimeToLiveRequest,
    ) -> Result<pb::LeaseTimeToLiveResponse, Fault> {
        let info = self.write_plane().lease_time_to_live(LeaseId(request.id), request.keys).await?;
        self.settle(true).await?;
        if let Some(info) = &info {
            let may_read = |rules: &Auth, caller: &Caller| {
                let of_lease = info.keys.iter().map(|key| rules.check_range(caller, Right::Read, key, &[]));
                of_lease.into_iter().find(Result::is_err).unwrap_or(Ok(()))
            };
            self.authorize(credentials, may_read).await?;
        }
        let header = Some(self.current_header());
        Ok(match info {
            None => pb::LeaseTimeToLiveResponse { header, id: request.id, ttl: -1, granted_ttl: 0, keys: vec![] },
            Some(info) => pb::LeaseTimeToLiveResponse {
                header,
                id: request.id,
                ttl: info.remaining_ttl,
                granted_ttl: info.granted_ttl,
                keys: info.keys,
            },
        })
    }

    /// `Lease.LeaseLeases`: for who may read the keys of all of them.
    pub(crate) async fn lease_leases(&self, credentials: &Credentials) -> Result<pb::LeaseLeasesResponse, Fault> {
        self.settle(true).await?;
        self.check_lease(credentials, Right::Read, None).await?;
        let leases = self.write_plane().leases().await?.into_iter().map(|id| pb::LeaseStatus { id: id.0 }).collect();
        Ok(pb::LeaseLeasesResponse { header: Some(self.current_header()), leases })
    }

    /// Which keys a lease has is known where leases are kept.
    async fn check_lease(&self, credentials: &Credentials, right: Right, id: Option<LeaseId>) -> Result<(), Fault> {
        let (caller, view) = self.authorize(credentials, Auth::check_known).await?;
        if !view.rules.is_enabled() || view.rules.check_root(&caller).is_ok() {
            return Ok(());
        }
        match self.write_plane().check_lease(caller, right, id).await {
            Err(error) if is_stale(&error) => {
                self.settle(false).await?;
                let (caller, _) = self.authorize(credentials, Auth::check_known).await?;
                Ok(self.write_plane().check_lease(caller, right, id).await?)
            }
            checked => Ok(checked?),
        }
    }

    /// For who may write its keys.
    async fn keep_alive(self, credentials: Credentials, id: i64) -> Result<pb::LeaseKeepAliveResponse, Fault> {
        self.settle(true).await?;
        self.check_lease(&credentials, Right::Write, Some(LeaseId(id))).await?;
        // Before the renewal, as in etcd: its revision is one that the lease was known at.
        let header = Some(self.current_header());
        let ttl = self.write_plane().lease_keep_alive(LeaseId(id)).await?;
        if ttl.is_some() {
            self.calls().lease_renewed();
        }
        Ok(pb::LeaseKeepAliveResponse { header, id, ttl: ttl.unwrap_or(0) })
    }
}

/// One keepalive RPC: each request is answered before the next is read.
pub(crate) struct KeepAliveCall {
    gateway: Gateway,
    method: Method,
    credentials: Credentials,
    requests: RequestStream<axum::body::Body>,
    pending: Option<Pending>,
    fault: Option<Fault>,
}

type Pending = Pin<Box<dyn Future<Output = Result<pb::LeaseKeepAliveResponse, Fault>> + Send>>;

impl KeepAliveCall {
    pub(crate) fn open(gateway: Gateway, method: Method, credentials: Credentials, body: axum::body::Body) -> Self {
        let requests = RequestStream::new(body, gateway.config().message_bytes_max());
        Self { gateway, method, credentials, requests, pending: None, fault: None }
    }

    fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Fault>> {
        loop {
            if let Some(pending) = &mut self.pending {
                let response = ready!(pending.as_mut().poll(cx));
                self.pending = None;
                return Poll::Ready(Ok(Some(framed(&response?))));
            }
            let Some(message) = ready!(self.requests.poll_message(cx))? else { return Poll::Ready(Ok(None)) };
            self.gateway.calls().received(&self.method, message.len());
            let request =
                pb::LeaseKeepAliveRequest::decode(message).map_err(|error| Fault::malformed_in_stream(&error))?;
            self.pending = Some(Box::pin(self.gateway.clone().keep_alive(self.credentials.clone(), request.id)));
        }
    }
}

impl Chunks for KeepAliveCall {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        match ready!(self.poll_response(cx)) {
            Ok(chunk) => Poll::Ready(chunk),
            Err(fault) => {
                self.fault = Some(fault);
                Poll::Ready(None)
            }
        }
    }

    fn status(&self) -> (i32, String) {
        match &self.fault {
            Some(fault) => (fault.status().0 as i32, fault.status().1.to_owned()),
            None => (0, String::new()),
        }
    }
}
