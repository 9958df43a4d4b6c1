//! What a stream of the service does, on a thread of its own: it reads the source, which blocks, and waits for its
//! reader, which may take long.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tailwater_eventlog::{Background, Cursor, Event, EventKind, KeyRange};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, mpsc, watch};
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::Status;

use super::metrics;
use super::rate::ByteRate;

/// Messages between a stream's thread and its connection.
const MESSAGES_MAX: usize = 1;

/// The stream has ended: nobody reads it, or it was said why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gone;

/// What a reader takes from.
pub(super) type Messages<T> = tokio_stream::wrappers::ReceiverStream<Result<T, Status>>;

/// The thread's side of a stream.
pub(super) struct Sink<T> {
    messages: mpsc::Sender<Result<T, Status>>,
    runtime: Handle,
    stopping: watch::Receiver<bool>,
    rate: Option<Arc<ByteRate>>,
    /// A reader that takes nothing for so long is left; without it, it may take forever.
    stall_max: Option<Duration>,
    kind: &'static str,
    _permit: OwnedSemaphorePermit,
}

/// How a stream is served.
pub(super) struct Serving {
    pub(super) kind: &'static str,
    /// When it is not as urgent as the threads of the write plane.
    pub(super) background: Option<Background>,
    pub(super) permit: OwnedSemaphorePermit,
    /// Let go of last.
    pub(super) thread: TaskTrackerToken,
    pub(super) stopping: watch::Receiver<bool>,
    pub(super) rate: Option<Arc<ByteRate>>,
    pub(super) stall_max: Option<Duration>,
}

/// Runs `serve` on a thread of its own; its messages are the stream.
pub(super) fn spawn<T: Send + 'static>(
    serving: Serving,
    serve: impl FnOnce(&mut Sink<T>) -> Result<(), Gone> + Send + 'static,
) -> Result<Messages<T>, Status> {
    let (messages, receiver) = mpsc::channel(MESSAGES_MAX);
    let Serving { kind, background, permit, thread, stopping, rate, stall_max } = serving;
    let mut sink = Sink { messages, runtime: Handle::current(), stopping, rate, stall_max, kind, _permit: permit };
    let run = move || {
        background.into_iter().for_each(Background::lower_this_thread);
        let streams = ::metrics::gauge!(metrics::STREAMS, "kind" => kind);
        streams.increment(1.0);
        // An end without a word is the reader's.
        let _ = serve(&mut sink);
        streams.decrement(1.0);
        drop(sink);
        drop(thread);
    };
    std::thread::Builder::new()
        .name(format!("tail-{kind}"))
        .spawn(run)
        .map_err(|error| Status::resource_exhausted(format!("a thread can't be started: {error}")))?;
    Ok(receiver.into())
}

impl<T: Send> Sink<T> {
    /// Waits until there is room for a message.
    pub(super) fn ready(&mut self) -> Result<(), Gone> {
        self.wait_for_room().map(drop)
    }

    /// Waits for a turn, unless the stream ends.
    pub(super) fn turn<'a>(&mut self, turns: &'a Semaphore) -> Result<SemaphorePermit<'a>, Gone> {
        let Self { messages, runtime, stopping, .. } = self;
        runtime.block_on(async {
            tokio::select! {
                turn = turns.acquire() => turn.map_err(|_| Gone),
                () = messages.closed() => Err(Gone),
                () = stopped(stopping) => Err(Gone),
            }
        })
    }

    /// Waits for room and hands a message over.
    pub(super) fn send(&mut self, message: T) -> Result<(), Gone> {
        self.wait_for_room()?.send(Ok(message));
        Ok(())
    }

    /// As [`Sink::send`], and counts `bytes` of rows, at the stream's rate.
    pub(super) fn send_rows(&mut self, message: T, bytes: usize) -> Result<(), Gone> {
        let wait = self.rate.as_ref().map_or(Duration::ZERO, |rate| rate.take(bytes, Instant::now()));
        self.sleep(wait)?;
        ::metrics::counter!(metrics::SENT_BYTES, "kind" => self.kind).increment(bytes as u64);
        self.send(message)
    }

    /// Ends the stream with a reason.
    pub(super) fn fail(&mut self, status: Status) -> Gone {
        // A reader that is gone needs none.
        if let Ok(room) = self.wait_for_room() {
            room.send(Err(status));
        }
        Gone
    }

    /// Waits, unless the stream ends.
    pub(super) fn sleep(&mut self, wait: Duration) -> Result<(), Gone> {
        if wait.is_zero() {
            return Ok(());
        }
        let Self { messages, runtime, stopping, .. } = self;
        runtime.block_on(async {
            tokio::select! {
                () = tokio::time::sleep(wait) => Ok(()),
                () = messages.closed() => Err(Gone),
                () = stopped(stopping) => Ok(()),
            }
        })
    }

    fn wait_for_room(&mut self) -> Result<mpsc::Permit<'_, Result<T, Status>>, Gone> {
        let Self { messages, runtime, stopping, stall_max, kind, .. } = self;
        runtime.block_on(async {
            let stalled = async {
                match stall_max {
                    Some(stall_max) => tokio::time::sleep(*stall_max).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stopped(stopping) => {
                    // The reader may be gone too.
                    drop(messages.try_send(Err(Status::unavailable("the source is shutting down"))));
                    Err(Gone)
                }
                room = messages.reserve() => room.map_err(|_| Gone),
                () = stalled => {
                    tracing::warn!(kind, "a reader takes nothing; leaving it");
                    Err(Gone)
                }
            }
        })
    }
}

/// Resolves when the service stops, or is gone.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    drop(stopping.wait_for(|stopping| *stopping).await);
}

/// Bytes of rows.
pub(super) fn bytes_of(rows: &[bytes::Bytes]) -> usize {
    rows.iter().map(bytes::Bytes::len).sum()
}

/// The ranges of a transfer that are left behind `after`, in order.
pub(super) fn ranges_left(ranges: &[KeyRange], after: Option<&bytes::Bytes>) -> Vec<KeyRange> {
    let mut ranges = if ranges.is_empty() { vec![KeyRange::all()] } else { ranges.to_vec() };
    ranges.sort_unstable_by(|a, b| a.start().cmp(b.start()));
    ranges.retain(|range| after.is_none_or(|after| !range.ends_before(after)));
    ranges
}

/// Whether a transferred row may come next: live keys in order.
pub(super) fn is_next_row(event: &Event, after: Option<&[u8]>) -> bool {
    event.kind() == EventKind::Put && after.is_none_or(|after| after < event.key())
}

/// Where a reader is behind these frames.
pub(super) fn behind(cursor: Cursor, frames: &[Arc<tailwater_eventlog::Frame>]) -> Cursor {
    let last = frames.last().map_or((cursor.revision, cursor.position), |frame| (frame.revision, frame.position));
    Cursor { revision: last.0, position: last.1, ..cursor }
}
