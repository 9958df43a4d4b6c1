//! `KV.RangeStream`: a list in messages of their own, each read when the transport has room for it.
//!
//! As in etcd 3.7 all messages show one revision; header, `more` and `count` stand in the last, so that the messages
//! merged are what `KV.Range` answers. How many keys share a message is not part of the contract.

use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::write::Caller;
use tailwater_consensus::{Auth, AuthError, Right};
use tailwater_eventlog::{KeyRange, Revision};
use tailwater_fanout::{ListChunk, ListQuery, ListStream};

use super::{RangeChunks, RangeMessage};
use crate::Gateway;
use crate::auth::{AuthView, Credentials};
use crate::body::Chunks;
use crate::checks;
use crate::status::Fault;

impl Gateway {
    /// `KV.RangeStream`.
    pub(crate) async fn range_stream(
        &self,
        credentials: &Credentials,
        request: pb::RangeRequest,
    ) -> Result<RangeStreamCall, Fault> {
        checks::range_stream(&request)?;
        let start = Instant::now();
        let call = self.begin_list(credentials, request).await;
        self.calls().range(start.elapsed(), call.is_ok());
        call
    }

    async fn begin_list(&self, credentials: &Credentials, request: pb::RangeRequest) -> Result<RangeStreamCall, Fault> {
        self.settle(request.serializable).await?;
        let range = (request.key.clone(), request.range_end.clone());
        let (_, view) = self.authorize_here(credentials, may_read(&range))?;
        let keys_only = request.keys_only;
        let list = self.fanout().list(ListQuery {
            range: KeyRange::from_etcd(request.key, request.range_end),
            revision: (request.revision > 0).then_some(Revision(request.revision)),
            limit: usize::try_from(request.limit).unwrap_or(0),
            keys_only,
            count_only: request.count_only,
        })?;
        // The root that the list began at is no newer than the one that is visible now.
        self.remember(self.fanout().snapshot().cursor.position);
        let guard = Guard { credentials: credentials.clone(), range, view };
        Ok(RangeStreamCall { gateway: self.clone(), list, keys_only, guard, message: None, fault: None })
    }
}

/// Whether a caller may read a range, given as etcd's pair.
fn may_read((key, range_end): &(Bytes, Bytes)) -> impl Fn(&Auth, &Caller) -> Result<(), AuthError> {
    |rules, caller| rules.check_range(caller, Right::Read, key, range_end)
}

/// Whose list it is, and the state that it was permitted by last.
struct Guard {
    credentials: Credentials,
    range: (Bytes, Bytes),
    view: Arc<AuthView>,
}

impl Guard {
    /// A right that is lost ends the list; the token was looked at when it began.
    fn check(&mut self, gateway: &Gateway) -> Result<(), Fault> {
        if !gateway.is_auth_at(&self.view) {
            (_, self.view) = gateway.authorize_here(&self.credentials, may_read(&self.range))?;
        }
        Ok(())
    }
}

/// One list RPC.
pub(crate) struct RangeStreamCall {
    gateway: Gateway,
    list: ListStream,
    keys_only: bool,
    guard: Guard,
    /// The message that is on its way.
    message: Option<RangeChunks>,
    fault: Option<Fault>,
}

impl RangeStreamCall {
    fn begin(&self, chunk: ListChunk) -> Result<RangeChunks, Fault> {
        let message = RangeMessage {
            header: chunk.end.map(|end| self.gateway.header(end.header_revision)),
            events: chunk.events,
            keys_only: self.keys_only,
            more: chunk.end.is_some_and(|end| end.more),
            count: chunk.end.map_or(0, |end| end.count),
            permit: None,
        };
        message.into_wrapped_chunks()
    }
}

impl Chunks for RangeStreamCall {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if let Some(piece) = self.message.as_mut().and_then(RangeChunks::next_chunk) {
                return Poll::Ready(Some(piece));
            }
            self.message = None;
            if self.fault.is_some() {
                return Poll::Ready(None);
            }
            let chunk = match ready!(self.list.poll_chunk(cx)) {
                Ok(Some(chunk)) => self.guard.check(&self.gateway).and_then(|()| self.begin(chunk)),
                Ok(None) => return Poll::Ready(None),
                Err(error) => Err(error.into()),
            };
            match chunk {
                Ok(message) => self.message = Some(message),
                Err(fault) => self.fault = Some(fault),
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
