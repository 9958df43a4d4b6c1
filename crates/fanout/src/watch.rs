//! A watch stream as the gateway sees it.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tailwater_eventlog::{KeyRange, Revision};

/// Events that a watcher doesn't want.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WatchFilter {
    /// Leave out puts.
    pub no_put: bool,
    /// Leave out deletes.
    pub no_delete: bool,
}

/// etcd's WatchCreateRequest, decoded. All of its checks happen in [`WatchControl::create`].
#[derive(Clone, Debug)]
pub struct CreateWatch {
    /// The keys; an empty range is refused in band.
    pub range: KeyRange,
    /// 0: from now on; negative: refused in band, as etcd does.
    pub start: Revision,
    /// Wants periodic progress.
    pub progress_notify: bool,
    /// Left out.
    pub filter: WatchFilter,
    /// Wants the previous version with each event.
    pub prev_kv: bool,
    /// 0: assigned.
    pub watch_id: i64,
    /// Allows large responses to be split.
    pub fragment: bool,
}

/// How the server ends a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// The client closed its side: what is queued is dropped, the stream ends OK.
    ClientClosed,
    /// With this gRPC code and text.
    Status(i32, String),
}

/// Takes a stream's requests. Never waits for the client.
pub struct WatchControl {}

impl WatchControl {
    /// Adds a watcher; the created (or refused) answer is queued on the stream, in request order.
    /// `denied`: the cancel reason when the gateway's auth check refused it.
    pub fn create(&self, _create: CreateWatch, _denied: Option<String>) {
        todo!()
    }

    /// Ends a watcher; unknown ids get no answer.
    pub fn cancel(&self, _watch_id: i64) {
        todo!()
    }

    /// A progress request for the whole stream (watch id -1 in the answer).
    pub fn progress(&self) {
        todo!()
    }

    /// Ends the stream.
    pub fn end(&self, _end: StreamEnd) {
        todo!()
    }
}

/// Yields what goes to the client: gRPC frames (5-byte prefix and an encoded WatchResponse), whole or in pieces, in
/// the order in which they must be sent. It is pulled: nothing is prepared before the transport has room.
pub struct WatchStream {}

impl WatchStream {
    /// The next piece. `None` after [`StreamEnd`]; [`WatchStream::status`] then says how it ended.
    pub fn poll_next(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        todo!()
    }

    /// gRPC code and message after the end; (0, "") for OK.
    #[must_use]
    pub fn status(&self) -> (i32, String) {
        todo!()
    }
}
