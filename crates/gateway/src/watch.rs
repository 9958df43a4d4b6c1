//! The Watch RPC: requests are read, and responses pulled, by one body.
//!
//! The body reads a request only when the transport has room for an answer. So a client that sends and doesn't
//! receive holds back itself and nothing else, and no stream needs a task or a queue of its own.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use prost::Message;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::watch_create_request::FilterType;
use tailwater_api::etcdserverpb::watch_request::RequestUnion;
use tailwater_api::grpc::{FrameError, RequestStream};
use tailwater_api::write::Caller;
use tailwater_consensus::{Auth, Right};
use tailwater_eventlog::{KeyRange, Revision};
use tailwater_fanout::{CreateWatch, WatchControl, WatchFilter, WatchStream};
use tokio::time::{Interval, MissedTickBehavior};

use crate::Gateway;
use crate::auth::{AuthView, Credentials};
use crate::body::Chunks;
use crate::methods::Method;
use crate::status::Fault;

/// Requests read in one turn, so that a flood of them can't keep events back.
const REQUESTS_PER_TURN: usize = 64;
/// Election timeouts without a leader after which a stream that requires one ends, as in etcd.
const LEADERLESS_TICKS_MAX: u32 = 3;

/// One watch RPC.
pub(crate) struct WatchCall {
    gateway: Gateway,
    method: Method,
    credentials: Credentials,
    /// The state that all watchers were permitted by.
    view: Arc<AuthView>,
    /// Who the stream's watchers were permitted for; a token counts while they are created.
    caller: Option<Caller>,
    requests: RequestStream<axum::body::Body>,
    /// Whether the client has ended its side; its watches go on, as in etcd.
    half_closed: bool,
    control: WatchControl,
    stream: Pin<Box<WatchStream>>,
    /// A create that waits until its start is not behind what this gateway has answered.
    waiting: Option<Waiting>,
    leader: Option<LeaderWatch>,
    /// Why the stream ends on our side.
    fault: Option<Fault>,
}

struct Waiting {
    reached: Pin<Box<dyn Future<Output = Result<(), Fault>> + Send>>,
    create: CreateWatch,
}

/// For streams with the metadata `hasleader`.
struct LeaderWatch {
    interval: Interval,
    leaderless_ticks: u32,
}

impl WatchCall {
    /// Opens the stream.
    pub(crate) fn open(
        gateway: Gateway,
        method: Method,
        credentials: Credentials,
        body: axum::body::Body,
        requires_leader: bool,
        peer: Option<SocketAddr>,
    ) -> Self {
        let (control, stream) = gateway.fanout().open_stream_for(peer);
        let leader = requires_leader.then(|| {
            let mut interval = tokio::time::interval(gateway.config().election_timeout);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            LeaderWatch { interval, leaderless_ticks: 0 }
        });
        Self {
            requests: RequestStream::new(body, gateway.config().message_bytes_max()),
            view: gateway.auth(),
            gateway,
            method,
            credentials,
            caller: None,
            half_closed: false,
            control,
            stream: Box::pin(stream),
            waiting: None,
            leader,
            fault: None,
        }
    }

    /// Reads and hands over requests until none is there.
    fn poll_requests(&mut self, cx: &mut Context<'_>) -> Result<(), Fault> {
        for _ in 0..REQUESTS_PER_TURN {
            if let Some(waiting) = &mut self.waiting {
                match waiting.reached.as_mut().poll(cx) {
                    Poll::Pending => return Ok(()),
                    Poll::Ready(reached) => reached?,
                }
                if let Some(waiting) = self.waiting.take() {
                    self.begin(waiting.create);
                }
            }
            if self.half_closed {
                return Ok(());
            }
            match self.requests.poll_message(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(None)) => self.half_closed = true,
                Poll::Ready(Ok(Some(message))) => self.request(message)?,
                Poll::Ready(Err(FrameError::Transport(_))) => return Err(Fault::WatchCanceled),
                Poll::Ready(Err(error)) => return Err(error.into()),
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    fn request(&mut self, message: Bytes) -> Result<(), Fault> {
        self.gateway.calls().received(&self.method, message.len());
        let request = pb::WatchRequest::decode(message).map_err(|error| Fault::malformed_in_stream(&error))?;
        match request.request_union {
            Some(RequestUnion::CreateRequest(request)) => self.create(request),
            Some(RequestUnion::CancelRequest(request)) => self.control.cancel(request.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => self.control.progress(),
            // A kind of request that a newer client may know; etcd passes over it too.
            None => {}
        }
        Ok(())
    }

    fn create(&mut self, request: pb::WatchCreateRequest) {
        let create = decode_create(request);
        let answered = self.gateway.answered();
        if self.gateway.is_visible(answered) {
            self.begin(create);
            return;
        }
        let gateway = self.gateway.clone();
        let reached = Box::pin(async move { gateway.reach(answered).await });
        self.waiting = Some(Waiting { reached, create });
    }

    /// A watcher begins if its range may be read now.
    fn begin(&mut self, create: CreateWatch) {
        self.recheck();
        let (key, range_end) = create.range.to_etcd();
        let may = |rules: &Auth, caller: &Caller| rules.check_range(caller, Right::Read, &key, &range_end);
        let denied = match self.gateway.authorize_here(&self.credentials, may) {
            Ok((caller, _)) => {
                self.caller = Some(caller);
                None
            }
            Err(fault) => Some(fault.in_band()),
        };
        self.control.create(create, denied);
    }

    /// Ends the watchers whose ranges may not be read any more, before anything more is given to them. Which state counts
    /// is the one at what is visible; etcd goes on with them.
    fn recheck(&mut self) {
        if self.gateway.is_auth_at(&self.view) {
            return;
        }
        self.view = self.gateway.auth();
        let Some(caller) = &mut self.caller else { return };
        let rules = &self.view.rules;
        if caller.user.is_empty() {
            // Auth was off when the watchers began.
            *caller = self.gateway.identify(&self.view, &self.credentials).unwrap_or_default();
        } else {
            // The user is known since then; what it may is what counts now.
            caller.auth_revision = rules.revision();
        }
        self.control.deny(&|range| {
            let (key, range_end) = range.to_etcd();
            let checked = rules.check_range(caller, Right::Read, &key, &range_end);
            checked.err().map(|error| Fault::from(error).in_band())
        });
    }

    fn poll_leader(&mut self, cx: &mut Context<'_>) -> Result<(), Fault> {
        let Some(leader) = &mut self.leader else { return Ok(()) };
        while leader.interval.poll_tick(cx).is_ready() {
            let is_known = self.gateway.fanout().snapshot().leader.is_some();
            leader.leaderless_ticks = if is_known { 0 } else { leader.leaderless_ticks + 1 };
            if leader.leaderless_ticks >= LEADERLESS_TICKS_MAX {
                self.control.end_without_leader();
                return Err(Fault::NoLeader);
            }
        }
        Ok(())
    }
}

impl Chunks for WatchCall {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Err(fault) = self.poll_requests(cx).and_then(|()| self.poll_leader(cx)) {
            self.fault = Some(fault);
            return Poll::Ready(None);
        }
        self.recheck();
        self.stream.as_mut().poll_next(cx)
    }

    fn status(&self) -> (i32, String) {
        match &self.fault {
            Some(fault) => (fault.status().0 as i32, fault.status().1.to_owned()),
            None => self.stream.status(),
        }
    }
}

/// From the wire: an empty key means the lowest one.
fn decode_create(request: pb::WatchCreateRequest) -> CreateWatch {
    let key = if request.key.is_empty() { Bytes::from_static(&[0]) } else { request.key };
    let has = |kind: FilterType| request.filters.contains(&(kind as i32));
    CreateWatch {
        range: KeyRange::from_etcd(key, request.range_end),
        start: Revision(request.start_revision),
        progress_notify: request.progress_notify,
        filter: WatchFilter { no_put: has(FilterType::Noput), no_delete: has(FilterType::Nodelete) },
        prev_kv: request.prev_kv,
        watch_id: request.watch_id,
        fragment: request.fragment,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_create_request_is_decoded_as_etcd_reads_it() {
        let create = decode_create(pb::WatchCreateRequest {
            range_end: vec![0].into(),
            filters: vec![FilterType::Nodelete as i32, 9],
            start_revision: -4,
            watch_id: 3,
            ..Default::default()
        });
        assert_eq!(create.range, KeyRange::From(vec![0].into()));
        assert_eq!(create.filter, WatchFilter { no_put: false, no_delete: true });
        assert_eq!((create.start, create.watch_id), (Revision(-4), 3));
    }
}
