//! `Maintenance.Snapshot`: the store of a member at one revision, as a file that etcd's tools take.
//!
//! A thread reads the store twice, once for lengths and once to write, and hands over pieces as the client takes them. So
//! a snapshot costs a bounded amount of memory whatever its size, and no write waits for it. The way back, from such a
//! file or one of etcd to a store, is [`restore`](mod@restore).

use std::io::{self, Write};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tailwater_api::etcdserverpb as pb;
use tailwater_consensus::StoredState;
use tailwater_eventlog::{Background, Backup, BackupConfig, CopyError, Event, EventKind, EventLog};
use tailwater_snapshot::{Facts, Lease, RowRevision, SnapshotPlan, SnapshotPlanner, SnapshotWriter, WriteError};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::body::{Chunks, framed};
use crate::metrics::SNAPSHOT_SECONDS;
use crate::status::{Code, Fault};

mod facts;
mod restore;

use facts::facts;
pub use restore::{RestoreError, Restored, Restoring, restore};

/// Bytes of a message, as etcd has it.
const PIECE_BYTES: usize = 32 << 10;
/// Messages between the thread and the client's connection.
const PIECES_MAX: usize = 4;
/// Snapshots under way at a time.
const SNAPSHOTS_MAX: usize = 4;
/// A client that takes nothing for so long is left.
const STALL_MAX: Duration = Duration::from_secs(300);
/// When the state is replaced or folded on under a snapshot's feet, it begins again as long as nothing was sent.
const ATTEMPTS_MAX: usize = 3;
/// What readers of the file find as the version of its schema; every etcd since 3.5 reads it.
const STORAGE_VERSION: &str = "3.6.0";

/// The messages of a snapshot as they come.
pub type SnapshotPieces = mpsc::Receiver<Result<pb::SnapshotResponse, Fault>>;

/// Makes snapshots of a store; clones share the bound on how many at a time.
#[derive(Clone)]
pub struct Snapshots {
    log: EventLog,
    slots: Arc<Semaphore>,
}

/// Why a snapshot ends early.
enum Ended {
    /// Nobody takes it.
    Gone,
    /// The store's state moved on under its feet; another attempt may succeed.
    Moved(CopyError),
    /// The client is told.
    Failed(Fault),
}

impl Snapshots {
    /// Of this store.
    #[must_use]
    pub fn new(log: EventLog) -> Self {
        Self { log, slots: Arc::new(Semaphore::new(SNAPSHOTS_MAX)) }
    }

    /// Begins one of this moment. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// Too many are under way.
    pub fn open(&self) -> Result<SnapshotPieces, Fault> {
        let slot = Arc::clone(&self.slots).try_acquire_owned();
        let slot =
            slot.map_err(|_| Fault::Other(Code::ResourceExhausted, Fault::TooManyRequests.status().1.to_owned()))?;
        let (pieces, receiver) = mpsc::channel(PIECES_MAX);
        let thread = SnapshotThread { log: self.log.clone(), pieces, runtime: Handle::current(), _slot: slot };
        let spawned = std::thread::Builder::new().name("snapshot".into()).spawn(move || {
            Background::Transfer.lower_this_thread();
            thread.run();
        });
        spawned.map_err(|error| Fault::Other(Code::ResourceExhausted, format!("no thread for a snapshot: {error}")))?;
        Ok(receiver)
    }
}

struct SnapshotThread {
    log: EventLog,
    pieces: mpsc::Sender<Result<pb::SnapshotResponse, Fault>>,
    runtime: Handle,
    _slot: OwnedSemaphorePermit,
}

impl SnapshotThread {
    fn run(self) {
        tracing::info!("sending database snapshot to client");
        let begin = Instant::now();
        let fault = match self.send() {
            Ok(bytes) => {
                metrics::histogram!(SNAPSHOT_SECONDS).record(begin.elapsed());
                return tracing::info!(bytes, took = ?begin.elapsed(), "sent database snapshot to client");
            }
            Err(Ended::Gone) => return tracing::warn!("a client left its database snapshot"),
            Err(Ended::Moved(error)) => unknown(error),
            Err(Ended::Failed(fault)) => fault,
        };
        tracing::warn!(reason = fault.status().1, "failed to send database snapshot");
        // The client may be gone as well.
        let _ = self.runtime.block_on(self.pieces.send_timeout(Err(fault), STALL_MAX));
    }

    fn send(&self) -> Result<u64, Ended> {
        let mut attempts = 1;
        let planned = loop {
            match Planned::new(&self.log) {
                Err(Ended::Moved(_)) if attempts < ATTEMPTS_MAX => attempts += 1,
                other => break other?,
            }
        };
        let sink = Pieces { thread: self, buffer: BytesMut::new(), left: planned.plan.database_bytes() };
        let mut sink = planned.write(sink)?;
        sink.send().map_err(|_| Ended::Gone)?;
        Ok(planned.plan.snapshot_bytes())
    }

    /// Waits until the client takes a message.
    fn hand_over(&self, piece: pb::SnapshotResponse) -> Result<(), Ended> {
        let sent = self.runtime.block_on(self.pieces.send_timeout(Ok(piece), STALL_MAX));
        sent.map_err(|_| Ended::Gone)
    }
}

/// A snapshot after its first pass, over lengths.
struct Planned {
    backup: Backup,
    facts: Facts,
    leases: Vec<Lease>,
    plan: SnapshotPlan,
}

impl Planned {
    fn new(log: &EventLog) -> Result<Self, Ended> {
        let backup = log.backup(&BackupConfig::default())?;
        let numbers = *backup.numbers();
        let stored = StoredState::from_rows(numbers, backup.state()).map_err(|error| Ended::Failed(unknown(error)))?;
        let (facts, leases) = facts(&stored, &numbers);
        let mut planner = SnapshotPlanner::new(&facts)?;
        each_event(&backup, |at, event| match event.kind() {
            EventKind::Put => planner.put(at, event.key_value().len()),
            EventKind::Delete => planner.delete(at, event.key().len()),
        })?;
        planner.end_history(numbers.revision.0)?;
        for lease in &leases {
            planner.lease(lease)?;
        }
        let plan = planner.finish()?;
        Ok(Self { backup, facts, leases, plan })
    }

    /// The second pass.
    fn write<W: Write>(&self, sink: W) -> Result<W, Ended> {
        let mut writer = SnapshotWriter::new(sink, self.plan, &self.facts)?;
        each_event(&self.backup, |at, event| match event.kind() {
            EventKind::Put => writer.put(at, &event.key_value()),
            EventKind::Delete => writer.delete(at, event.key()),
        })?;
        writer.end_history(self.backup.numbers().revision.0)?;
        for lease in &self.leases {
            writer.lease(lease)?;
        }
        Ok(writer.finish()?)
    }
}

fn each_event(
    backup: &Backup,
    mut each: impl FnMut(RowRevision, &Event) -> Result<(), WriteError>,
) -> Result<(), Ended> {
    let mut events = backup.events().map_err(CopyError::from)?;
    while let Some(event) = events.next()? {
        let at = RowRevision { main: event.revision().0, sub: i64::from(event.sub()) };
        each(at, &event)?;
    }
    Ok(())
}

/// Where a snapshot is written to: messages, of which the trailer is one of its own.
struct Pieces<'a> {
    thread: &'a SnapshotThread,
    buffer: BytesMut,
    /// Bytes of the database that were not handed over yet.
    left: u64,
}

impl Pieces<'_> {
    fn send(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let blob = self.buffer.split().freeze();
        self.left = self.left.saturating_sub(blob.len() as u64);
        let piece = pb::SnapshotResponse {
            header: None,
            remaining_bytes: self.left,
            blob,
            version: STORAGE_VERSION.to_owned(),
        };
        self.thread.hand_over(piece).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Up to the end of a message, and of the database.
        let end = PIECE_BYTES.min(usize::try_from(self.left).unwrap_or(PIECE_BYTES));
        let room = end.saturating_sub(self.buffer.len());
        let taken = if self.left == 0 { bytes.len() } else { bytes.len().min(room) };
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.left > 0 && self.buffer.len() == end {
            self.send()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl From<WriteError> for Ended {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Sink(error) if error.kind() == io::ErrorKind::BrokenPipe => Self::Gone,
            error => Self::Failed(unknown(error)),
        }
    }
}

impl From<CopyError> for Ended {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Moved(_) => Self::Moved(error),
            CopyError::Storage(error) => Self::Failed(unknown(error)),
        }
    }
}

fn unknown(error: impl std::fmt::Display) -> Fault {
    Fault::Other(Code::Unknown, format!("tailwater: {error}"))
}

/// The answer to the call.
pub(crate) struct SnapshotCall {
    pieces: SnapshotPieces,
    fault: Option<Fault>,
}

impl SnapshotCall {
    pub(crate) fn new(pieces: SnapshotPieces) -> Self {
        Self { pieces, fault: None }
    }
}

impl Chunks for SnapshotCall {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        Poll::Ready(match ready!(self.pieces.poll_recv(cx)) {
            Some(Ok(piece)) => Some(framed(&piece)),
            Some(Err(fault)) => {
                self.fault = Some(fault);
                None
            }
            None => None,
        })
    }

    fn status(&self) -> (i32, String) {
        match &self.fault {
            Some(fault) => (fault.status().0 as i32, fault.status().1.to_owned()),
            None => (0, String::new()),
        }
    }
}
