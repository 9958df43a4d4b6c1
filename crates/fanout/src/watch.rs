//! A watch stream as the gateway sees it.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use parking_lot::Mutex;
use tailwater_eventlog::{Event, EventKind, KeyRange, Revision};

use crate::core::Core;
use crate::delivery::{Delivery, Next, UNAVAILABLE, text};
use crate::inbox::Inbox;
use crate::metrics::Ended;

/// Events that a watcher doesn't want.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WatchFilter {
    /// Leave out puts.
    pub no_put: bool,
    /// Leave out deletes.
    pub no_delete: bool,
}

impl WatchFilter {
    pub(crate) fn wants(self, event: &Event) -> bool {
        match event.kind() {
            EventKind::Put => !self.no_put,
            EventKind::Delete => !self.no_delete,
        }
    }
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

/// What both halves share; the last one to go frees it.
pub(crate) struct Shared {
    core: Arc<Core>,
    /// The client, where it is known.
    pub(crate) peer: Option<SocketAddr>,
    inbox: Arc<Inbox>,
    /// Held for one request or one piece; never by the tail thread or the delivery worker.
    delivery: Mutex<Delivery>,
    held: Arc<Held>,
    /// Bytes of the pieces that must follow the one that was handed out last.
    under_way: AtomicUsize,
}

/// What the transport holds of a stream: pieces that were handed out and have not left for the socket's buffer yet. How
/// many it takes ahead is its own affair, so each piece tells when it is dropped.
struct Held {
    core: Arc<Core>,
    inbox: Arc<Inbox>,
    bytes: AtomicUsize,
    /// The stream waits for room.
    is_waiting: AtomicBool,
}

/// A piece in the transport's hands.
struct HeldPiece {
    piece: Bytes,
    held: Arc<Held>,
}

impl AsRef<[u8]> for HeldPiece {
    fn as_ref(&self) -> &[u8] {
        &self.piece
    }
}

impl Drop for HeldPiece {
    fn drop(&mut self) {
        let (held, bytes) = (&self.held, self.piece.len());
        held.core.memory.held.fetch_sub(bytes, Ordering::Relaxed);
        // Before the flag is read: a stream sets it before it looks.
        held.bytes.fetch_sub(bytes, Ordering::SeqCst);
        if held.is_waiting.swap(false, Ordering::SeqCst) {
            held.inbox.wake();
        }
    }
}

impl Held {
    fn hand_out(self: &Arc<Self>, piece: Bytes) -> Bytes {
        self.core.memory.held.fetch_add(piece.len(), Ordering::Relaxed);
        self.bytes.fetch_add(piece.len(), Ordering::SeqCst);
        Bytes::from_owner(HeldPiece { piece, held: self.clone() })
    }

    /// Whether the transport holds so much that it gets no more; then the stream is woken when there is room.
    fn is_full(&self, bytes_max: usize) -> bool {
        if self.bytes.load(Ordering::Relaxed) < bytes_max {
            return false;
        }
        self.is_waiting.store(true, Ordering::SeqCst);
        self.bytes.load(Ordering::SeqCst) >= bytes_max
    }
}

impl Shared {
    pub(crate) fn held_bytes(&self) -> usize {
        self.held.bytes.load(Ordering::Relaxed) + self.under_way.load(Ordering::Relaxed)
    }

    /// The range of the watcher that is furthest behind; `None` without any.
    pub(crate) fn furthest_behind(&self) -> Option<KeyRange> {
        self.delivery.lock().furthest_behind()
    }

    fn set_under_way(&self, bytes: usize) {
        let memory = &self.core.memory;
        memory.held.fetch_add(bytes, Ordering::Relaxed);
        memory.held.fetch_sub(self.under_way.swap(bytes, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Frees everything that the stream holds; may be called twice.
    fn close(&self, ended: Ended) {
        self.core.wakeups.remove_stream(self.inbox.stream());
        self.delivery.lock().close(ended);
    }
}

/// Takes a stream's requests. Never waits for the client.
pub struct WatchControl {
    shared: Arc<Shared>,
}

impl WatchControl {
    /// Adds a watcher; the created (or refused) answer is queued on the stream, in request order.
    /// `denied`: the cancel reason when the gateway's auth check refused it.
    pub fn create(&self, create: CreateWatch, denied: Option<String>) {
        self.shared.delivery.lock().create(create, denied);
    }

    /// Ends a watcher; unknown ids get no answer.
    pub fn cancel(&self, watch_id: i64) {
        self.shared.delivery.lock().cancel(watch_id);
    }

    /// Ends the watchers for whose range `reason` gives one: they are cancelled with it, and given nothing more.
    pub fn deny(&self, reason: &dyn Fn(&KeyRange) -> Option<String>) {
        self.shared.delivery.lock().deny(reason);
    }

    /// A progress request for the whole stream (watch id -1 in the answer).
    pub fn progress(&self) {
        self.shared.delivery.lock().request_progress();
    }

    /// Answers that wait for the client to read them. A caller that stops taking requests while this is large gives
    /// the client back-pressure; beyond 16,384 the stream ends with RESOURCE_EXHAUSTED.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.shared.delivery.lock().backlog()
    }

    /// Ends the stream.
    pub fn end(&self, end: StreamEnd) {
        self.shared.inbox.end(end);
    }

    /// The gateway ends the stream by itself, with a status of its own: because its client asked for a leader and there is
    /// none. Frees everything at once.
    pub fn end_without_leader(&self) {
        self.shared.close(Ended::NoLeader);
    }
}

impl Drop for WatchControl {
    fn drop(&mut self) {
        self.shared.inbox.end(StreamEnd::ClientClosed);
        self.shared.close(Ended::Closed);
    }
}

/// Yields what goes to the client: gRPC frames (5-byte prefix and an encoded WatchResponse), whole or in pieces, in
/// the order in which they must be sent. It is pulled: nothing is prepared before the transport has room.
pub struct WatchStream {
    shared: Arc<Shared>,
    ended: Option<StreamEnd>,
}

impl WatchStream {
    /// The next piece. `None` after [`StreamEnd`]; [`WatchStream::status`] then says how it ended.
    pub fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.ended.is_some() {
            return Poll::Ready(None);
        }
        // The waker is left before anything is looked at: what comes later wakes it.
        if !self.shared.inbox.leave(cx.waker()) && self.shared.held.is_full(self.shared.core.chunk_bytes()) {
            return Poll::Pending;
        }
        let mut mail = self.shared.inbox.take();
        let (next, under_way) = {
            let mut delivery = self.shared.delivery.lock();
            let next = delivery.next(&mut mail);
            self.shared.inbox.stands(delivery.oldest_wanted(), mail);
            (next, delivery.under_way_bytes())
        };
        // Counted while the stream waits, too: what is under way is held until the client takes it.
        self.shared.set_under_way(under_way);
        match next {
            Next::Piece(piece) => Poll::Ready(Some(self.shared.held.hand_out(piece))),
            Next::Idle => Poll::Pending,
            Next::Again => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Next::Ended(end) => {
                self.shared.close(Ended::by(&end));
                self.ended = Some(end);
                Poll::Ready(None)
            }
        }
    }

    /// gRPC code and message after the end; (0, "") for OK.
    #[must_use]
    pub fn status(&self) -> (i32, String) {
        match &self.ended {
            Some(StreamEnd::Status(code, message)) => (*code, message.clone()),
            Some(StreamEnd::ClientClosed) | None => (0, String::new()),
        }
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        self.shared.set_under_way(0);
        self.shared.core.memory.streams.fetch_sub(1, Ordering::Relaxed);
        self.shared.close(Ended::Closed);
    }
}

/// Opens a stream on `core`.
pub(crate) fn open(core: &Arc<Core>, peer: Option<SocketAddr>) -> (WatchControl, WatchStream) {
    static NEXT_ID: AtomicU64 = AtomicU64::new(1);
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    let inbox = Arc::new(Inbox::new(id));
    core.memory.streams.fetch_add(1, Ordering::Relaxed);
    let delivery = Mutex::new(Delivery::new(core.clone(), inbox.clone()));
    let held = Held {
        core: core.clone(),
        inbox: inbox.clone(),
        bytes: AtomicUsize::new(0),
        is_waiting: AtomicBool::new(false),
    };
    let (held, under_way) = (Arc::new(held), AtomicUsize::new(0));
    let shared = Arc::new(Shared { core: core.clone(), peer, inbox: inbox.clone(), delivery, held, under_way });
    let first_tick = core.now() + core.progress_interval();
    core.wakeups.add_stream(id, inbox.clone(), Arc::downgrade(&shared), first_tick);
    // Looked at after the stream is known to the worker: whoever comes later ends it there.
    if core.is_stopped() {
        inbox.end(StreamEnd::Status(UNAVAILABLE, text::STOPPED.into()));
    } else if !core.is_serving() {
        inbox.end(StreamEnd::Status(UNAVAILABLE, text::UNAVAILABLE.into()));
    }
    (WatchControl { shared: shared.clone() }, WatchStream { shared, ended: None })
}
