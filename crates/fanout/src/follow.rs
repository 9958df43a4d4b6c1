//! The tail thread: transfers the state, then follows frames and publishes each batch.
//!
//! The order of a batch matters: versions and window first, then the groups' shared chunks, then the root, and last
//! the wake-ups. So whoever sees a revision as published finds everything that belongs to it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tailwater_eventlog::{
    Cursor, Frame, HistoryId, Position, Revision, Source, SourceError, StorageError, Tail, TailConfig, TailError,
};

use crate::core::Core;
use crate::delivery::{UNAVAILABLE, text};
use crate::group::SharedGroup;
use crate::metrics;
use crate::registry::{Batch, Matched, ShareBounds};
use crate::store::{Published, Store, segment_bytes};
use crate::version::UnreadValues;
use crate::{FanoutConfig, StreamEnd};

/// Bytes of frames taken from the tail at once, and of rows in one step of a transfer.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// How long one wait for frames takes at most: bounds how late a stop is noticed.
const FOLLOW_TIMEOUT: Duration = Duration::from_millis(100);
/// Between two attempts to reach a source that is away; it has pauses of its own, this is the least.
const UNAVAILABLE_PAUSE: Duration = Duration::from_millis(20);
/// A read that has waited so long for a position makes the source look whether another has it.
const AWAITED_MAX: Duration = Duration::from_millis(500);
/// Shared chunks are kept this long for streams that are just behind; later they read the window.
const CHUNK_LIFETIME: Duration = Duration::from_secs(1);

/// What became visible.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reached {
    pub(crate) position: Position,
    pub(crate) ready: bool,
    pub(crate) stopped: bool,
}

/// Why following ended.
enum Ended {
    Tail(TailError),
    Storage(StorageError),
    Restart(String),
    Stopped,
}

/// The tail thread's state.
pub(crate) struct Follower {
    core: Arc<Core>,
    reached: tokio::sync::watch::Sender<Reached>,
    store: Store,
    recent: RecentChunks,
    phase: Phase,
    /// A position that reads wait for, and since when.
    awaited: Option<(Position, Instant)>,
}

/// What the next step does.
enum Phase {
    /// Begins a transfer.
    Begin,
    /// Reads the rows of a part of the scope after this key.
    Rows(usize, Option<Bytes>),
    /// Follows until the tail has passed what the rows showed.
    Settle,
    Follow,
}

impl Follower {
    pub(crate) fn new(core: Arc<Core>, reached: tokio::sync::watch::Sender<Reached>) -> Self {
        Self {
            core,
            reached,
            store: Store::default(),
            recent: RecentChunks::default(),
            phase: Phase::Begin,
            awaited: None,
        }
    }

    /// Runs until the fanout stops or its tail ends.
    pub(crate) fn run(mut self) {
        while self.turn(FOLLOW_TIMEOUT) {}
    }

    /// One step, which waits up to `timeout` for frames. `false` when the fanout has stopped or its tail has ended.
    pub(crate) fn turn(&mut self, timeout: Duration) -> bool {
        let Err(ended) = self.step(timeout) else { return true };
        let reason = match ended {
            Ended::Tail(TailError::Behind(cursor)) => {
                tracing::warn!(revision = cursor.revision.0, "tail has left this fanout behind; transferring again");
                self.begin_again();
                return true;
            }
            Ended::Restart(reason) => {
                tracing::warn!(reason, "transferring again");
                self.begin_again();
                return true;
            }
            Ended::Tail(TailError::OtherHistory) => {
                tracing::warn!("source has another history; transferring again");
                self.lose();
                self.begin_again();
                return true;
            }
            Ended::Tail(TailError::Closed) => "tail closed".to_owned(),
            Ended::Tail(error @ TailError::Storage(_)) => error.to_string(),
            Ended::Storage(error) => error.to_string(),
            Ended::Stopped => "stopped".to_owned(),
        };
        tracing::info!(reason, "fanout has ended");
        self.core.stop();
        self.reached.send_modify(|reached| reached.stopped = true);
        false
    }

    /// What is published stays, but whoever wants what is newest waits for the state to be whole again.
    fn begin_again(&mut self) {
        self.phase = Phase::Begin;
        self.reached.send_modify(|reached| reached.ready = false);
    }

    /// Transfers the state, follows until it is whole and publishes it as one, then follows.
    fn step(&mut self, timeout: Duration) -> Result<(), Ended> {
        if self.core.is_stopped() {
            return Err(Ended::Stopped);
        }
        match &self.phase {
            Phase::Begin => {
                let Some((begin, facts)) = self.ask(timeout, |source| source.transfer_begin())? else { return Ok(()) };
                let least = self.published().filter(|published| published.history == begin.history);
                if least.is_none() {
                    self.lose();
                }
                let unread = UnreadValues { bytes_min: self.core.config.unread_value_bytes_min };
                self.store = Store::at(begin, &facts, least, unread);
                self.phase = Phase::Rows(0, None);
            }
            Phase::Rows(part, after) => {
                let Some(range) = self.core.scope.spans().get(*part) else {
                    self.settled();
                    return Ok(());
                };
                let rows = |source: &dyn Source| match self.core.config.unread_value_bytes_min {
                    Some(min) => source.transfer_leaving_values(range, after.as_ref(), BATCH_BYTES_MAX, min),
                    None => source.transfer(range, after.as_ref(), BATCH_BYTES_MAX),
                };
                let Some(rows) = self.ask(timeout, rows)? else { return Ok(()) };
                let part = *part + usize::from(rows.resume_after.is_none());
                rows.events.into_iter().for_each(|event| self.store.load(event));
                // Asked after the rows were read.
                self.store.transferred(self.core.source.transfer_end());
                self.phase = Phase::Rows(part, rows.resume_after);
            }
            Phase::Settle => {
                for frame in self.frames(timeout)? {
                    for event in frame.events.iter().filter(|event| self.core.scope.contains(event.key())) {
                        self.store.settle(event.clone());
                    }
                    self.frame(&frame);
                }
                self.settled();
            }
            Phase::Follow => self.follow(timeout)?,
        }
        Ok(())
    }

    /// Where what readers see stands, if they see anything.
    fn published(&self) -> Option<Cursor> {
        let cursor = self.core.published.load().snapshot.cursor;
        (cursor.history != HistoryId(0)).then_some(cursor)
    }

    /// What is published is not the truth any more, until another history is there.
    fn lose(&self) {
        let published = self.core.published.load();
        if published.serves {
            let Published { snapshot, keys, .. } = &**published;
            let lost = Published { snapshot: snapshot.clone(), keys: keys.clone(), serves: false };
            self.core.published.store(Arc::new(lost));
            self.reached.send_modify(|reached| reached.ready = false);
            self.core.awaited.store(0, Ordering::Relaxed);
            self.core.wakeups.end(StreamEnd::Status(UNAVAILABLE, text::UNAVAILABLE.into()));
        }
    }

    /// Asks the source; `None` when it can't be reached, after a pause of at most `timeout`.
    fn ask<T>(
        &self,
        timeout: Duration,
        ask: impl FnOnce(&dyn Source) -> Result<T, SourceError>,
    ) -> Result<Option<T>, Ended> {
        match ask(&*self.core.source) {
            Ok(answer) => Ok(Some(answer)),
            Err(SourceError::Unavailable(reason)) => {
                tracing::debug!(reason, "the source of the state can't be reached");
                std::thread::sleep(UNAVAILABLE_PAUSE.min(timeout));
                Ok(None)
            }
            Err(SourceError::Restart(reason)) => Err(Ended::Restart(reason)),
            Err(SourceError::Storage(error)) => Err(Ended::Storage(error)),
        }
    }

    /// All rows are read: follows until the store is whole, then gives it out.
    fn settled(&mut self) {
        self.phase = Phase::Settle;
        if self.store.is_whole() {
            self.start_history();
            self.phase = Phase::Follow;
        }
    }

    /// Own history begins here: whatever groups shared before is to be read from the source.
    fn start_history(&mut self) {
        let (core, revision) = (&self.core, self.store.cursor().revision);
        core.window.reset(revision);
        self.recent = RecentChunks::default();
        let mut registry = core.registry.lock();
        let from = registry.matched().next();
        registry.all().for_each(|group| group.reset(from, revision));
        registry.set_matched(revision);
        let groups: Vec<SharedGroup> = registry.all().cloned().collect();
        drop(registry);
        if !core.published.load().serves {
            core.reads.forget();
        }
        core.published.store(Arc::new(self.store.publish()));
        self.start_ring();
        core.wakeups.published(groups);
        let position = self.store.cursor().position;
        self.reached.send_modify(|reached| (reached.position, reached.ready) = (position, true));
    }

    /// What readers of this fanout follow goes on here.
    fn start_ring(&self) {
        let (cursor, facts) = (self.store.cursor(), self.store.facts());
        let old = self.core.ring.load_full();
        match old {
            Some(ring) if ring.end().history == cursor.history => ring.restart(cursor, &facts),
            old => {
                let config = TailConfig { hot_bytes_max: self.core.config.relay_bytes_max };
                self.core.ring.store(Some(Arc::new(Tail::new(config, cursor, facts))));
                if let Some(old) = old {
                    old.close();
                }
            }
        }
        if self.core.is_stopped()
            && let Some(ring) = &*self.core.ring.load()
        {
            ring.close();
        }
    }

    /// Tells the source when reads wait long for a position.
    fn look_behind(&mut self, now: Instant) {
        let awaited = Position(self.core.awaited.load(Ordering::Relaxed));
        let reached = self.store.cursor().position;
        match self.awaited {
            Some((position, since)) if position > reached => {
                if now.duration_since(since) >= AWAITED_MAX {
                    self.core.source.is_awaited(position);
                    self.awaited = Some((position, now));
                }
            }
            _ => self.awaited = (awaited > reached).then_some((awaited, now)),
        }
    }

    fn follow(&mut self, timeout: Duration) -> Result<(), Ended> {
        let frames = self.frames(timeout)?;
        let now = self.core.now();
        self.look_behind(now);
        if !frames.is_empty() {
            self.batch(&frames, now);
        }
        self.recent.shrink(self.core.config.watch_memory_bytes_max / 8, now);
        self.core.memory.shared.store(self.recent.bytes, Ordering::Relaxed);
        Ok(())
    }

    fn batch(&mut self, frames: &[Arc<Frame>], now: Instant) {
        let core = self.core.clone();
        let FanoutConfig { window_bytes_max, stream_chunk_bytes, watch_memory_bytes_max, .. } = core.config;
        // An eighth of the memory for what groups shared before, an eighth for what this batch adds.
        self.recent.shrink(watch_memory_bytes_max / 8, now);
        let bounds = ShareBounds { chunk_bytes: stream_chunk_bytes, batch_bytes: watch_memory_bytes_max / 8 };
        let mut events = Vec::new();
        for frame in frames {
            let held = frame.events.iter().filter(|event| core.scope.contains(event.key()));
            events.extend(held.map(|event| self.store.apply(event.clone())));
            self.frame(frame);
        }
        let Cursor { revision, position, .. } = self.store.cursor();
        let committed = committed(frames, now);
        core.times.note(revision, committed);
        let batch = Batch { events: &events, last: revision, compacted: self.store.compacted(), committed };
        let (matched, pairs) = core.registry.lock().match_batch(batch, bounds);
        metrics::batch(events.len(), pairs);
        core.window.append(events, segment_bytes(window_bytes_max));
        let groups = self.recent.keep(matched, now);
        core.memory.shared.store(self.recent.bytes, Ordering::Relaxed);
        core.published.store(Arc::new(self.store.publish()));
        // Behind what is published, which a reader's transfer takes its rows from.
        if let Some(ring) = &*core.ring.load() {
            ring.pass_on(frames.to_vec());
        }
        self.reached.send_modify(|reached| reached.position = position);
        core.wakeups.published(groups);
        self.store.evict(&core.window, window_bytes_max);
        metrics::window(core.window.bytes(), revision.0);
    }

    /// Facts and cursor of a frame.
    fn frame(&mut self, frame: &Frame) {
        frame.facts.iter().for_each(|fact| self.store.fact(fact));
        let history = self.store.cursor().history;
        self.store.reach(Cursor { history, revision: frame.revision, position: frame.position });
    }

    fn frames(&self, timeout: Duration) -> Result<Vec<Arc<Frame>>, Ended> {
        self.core.source.follow(self.store.cursor(), BATCH_BYTES_MAX, timeout).map_err(Ended::Tail)
    }
}

/// When the oldest of some frames was applied, by this process's clock; their own arrival where that is not known.
fn committed(frames: &[Arc<Frame>], now: Instant) -> Instant {
    let Some(applied_at_ms) = frames.iter().map(|frame| frame.applied_at_ms).find(|ms| *ms > 0) else { return now };
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Another machine's clock may be ahead.
    let ago = wall.saturating_sub(Duration::from_millis(applied_at_ms));
    now.checked_sub(ago).unwrap_or(now)
}

/// A chunk that a group holds.
struct Shared {
    since: Instant,
    bytes: usize,
    last: Revision,
    group: SharedGroup,
}

/// Which groups hold shared chunks, oldest first: bounds them in bytes and in time.
#[derive(Default)]
struct RecentChunks {
    chunks: VecDeque<Shared>,
    bytes: usize,
}

impl RecentChunks {
    /// Hands each group its chunks; returns the groups.
    fn keep(&mut self, matched: Vec<Matched>, now: Instant) -> Vec<SharedGroup> {
        let mut groups = Vec::with_capacity(matched.len());
        for Matched { group, chunks, dropped } in matched {
            for chunk in &chunks {
                let (bytes, last) = (chunk.memory_bytes(), chunk.last());
                self.bytes += bytes;
                self.chunks.push_back(Shared { since: now, bytes, last, group: group.clone() });
            }
            group.append(chunks, dropped);
            groups.push(group);
        }
        groups
    }

    fn shrink(&mut self, bytes_max: usize, now: Instant) {
        let is_due =
            |bytes: usize, shared: &mut Shared| bytes > bytes_max || now.duration_since(shared.since) >= CHUNK_LIFETIME;
        while let Some(shared) = self.chunks.pop_front_if(|shared| is_due(self.bytes, shared)) {
            shared.group.drop_until(shared.last);
            self.bytes -= shared.bytes;
        }
    }
}
