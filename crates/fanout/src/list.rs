//! A list that is sent in pieces, at one revision.
//!
//! Each piece is read when the transport asks for it, from the root that is published then, and the next one continues
//! behind its last key. So a client that dawdles holds one piece: no root, no key, no version. What keeps its revision
//! readable is what keeps any revision readable: the window, and the source's history until it is compacted.
//!
//! Invariant: what came, and what is behind `after`, is together what was live at `at`.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tailwater_eventlog::{Event, HistoryId, KeyRange, Revision, StateQuery};
use tokio::task::JoinHandle;

use crate::ReadError;
use crate::core::Core;
use crate::range::{count_rest, held, nodes, restore, signed};
use crate::store::Published;

/// Keys looked at in one turn, live at the revision or not, so that a turn stays short.
const KEYS_PER_TURN: usize = 4096;

/// What to list.
#[derive(Clone, Debug)]
pub struct ListQuery {
    /// The keys.
    pub range: KeyRange,
    /// At this revision; `None`: the newest when the list begins.
    pub revision: Option<Revision>,
    /// At most so many keys; 0: all.
    pub limit: usize,
    /// The caller wants no values, so that more keys fit a piece.
    pub keys_only: bool,
    /// Only the number of keys.
    pub count_only: bool,
}

/// A piece of a list. Only the last one may be without events.
#[derive(Debug)]
pub struct ListChunk {
    /// The next keys' versions, in key order; where only keys are wanted perhaps without their values.
    pub events: Vec<Arc<Event>>,
    /// There in the last piece.
    pub end: Option<ListEnd>,
}

/// What is known at the end of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListEnd {
    /// The newest revision when the list began: the header's revision.
    pub header_revision: Revision,
    /// Whether the limit cut something off.
    pub more: bool,
    /// Keys alive in the range at the revision, whatever the limit cut off.
    pub count: i64,
}

/// A list on its way. It is pulled: a piece is read when it is asked for.
pub struct ListStream {
    core: Arc<Core>,
    query: ListQuery,
    at: Revision,
    header_revision: Revision,
    /// Whose revisions these are.
    history: HistoryId,
    /// The last key that was looked at.
    after: Option<Bytes>,
    /// Keys that came.
    sent: usize,
    /// Bytes of the last piece, which the transport holds until it asks for the next.
    held: usize,
    job: Option<JoinHandle<Result<Found, ReadError>>>,
    is_done: bool,
}

/// What one turn found.
struct Found {
    events: Vec<Arc<Event>>,
    bytes: usize,
    /// Where the next turn goes on.
    after: Option<Bytes>,
    rest: Rest,
}

/// What is known of the keys behind those that were found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// Some were not looked at.
    Unknown,
    /// So many are live; known at the limit and at the end of the range.
    Keys(usize),
}

impl ListStream {
    pub(crate) fn new(core: Arc<Core>, query: ListQuery) -> Result<Self, ReadError> {
        let published = core.published.load();
        let history = published.snapshot.cursor.history;
        let header_revision = published.revision();
        let at = query.revision.filter(|revision| revision.0 > 0).unwrap_or(header_revision);
        if at > header_revision {
            return Err(ReadError::FutureRevision);
        }
        if at < published.snapshot.compacted {
            return Err(ReadError::Compacted);
        }
        drop(published);
        core.memory.lists.fetch_add(1, Ordering::Relaxed);
        Ok(Self { core, query, at, header_revision, history, after: None, sent: 0, held: 0, job: None, is_done: false })
    }

    /// The next piece; `None` after the last. A piece is at most as large as a watch stream's, unless its one event is
    /// larger; it counts as held until the next call.
    ///
    /// # Errors
    /// [`ReadError::Compacted`] when compaction has passed the list's revision meanwhile: what came stands. No more calls
    /// after an error.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<ListChunk>, ReadError>> {
        if self.is_done {
            self.hold(0);
            return Poll::Ready(Ok(None));
        }
        let found = match &mut self.job {
            Some(job) => {
                let found = ready!(Pin::new(job).poll(cx));
                self.job = None;
                match found {
                    Ok(found) => Some(found?),
                    // A read that panics has met a broken invariant; its caller must not take it for the list's end.
                    Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                    Err(_) => return Poll::Ready(Err(ReadError::Stopped)),
                }
            }
            None => {
                self.hold(0);
                self.find()?
            }
        };
        let Some(found) = found else { return self.find_at_source(cx) };
        match self.take(found) {
            Some(chunk) => Poll::Ready(Ok(Some(chunk))),
            None => {
                // A stretch of keys that were not live then; others have their turn first.
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }

    /// Keys that may still come.
    fn left(&self) -> usize {
        match (self.query.count_only, self.query.limit) {
            (true, _) => 0,
            (false, 0) => usize::MAX,
            (false, limit) => limit - self.sent,
        }
    }

    /// Looks in memory. `None`: it does not reach back to the revision, lacks the next value, or there is more to count than
    /// fits a turn.
    fn find(&self) -> Result<Option<Found>, ReadError> {
        let published = self.core.published.load_full();
        if !self.core.is_serving() || published.snapshot.cursor.history != self.history {
            return Err(ReadError::Stopped);
        }
        if self.at < published.snapshot.compacted {
            return Err(ReadError::Compacted);
        }
        if self.core.window.floor() > self.at {
            return Ok(None);
        }
        let found = self.walk(&published);
        // Checked after the walk: what was read under a floor that is still low enough is true.
        Ok(found.filter(|_| self.core.window.floor() <= self.at))
    }

    fn walk(&self, published: &Published) -> Option<Found> {
        let (room, left) = (self.core.chunk_bytes(), self.left());
        let mut found = Found { events: Vec::new(), bytes: 0, after: self.after.clone(), rest: Rest::Unknown };
        if left > 0 {
            let after = self.after.as_ref().map(Bytes::as_ref);
            let mut last = None;
            let mut is_cut = false;
            for (seen, node) in nodes(published, &self.query.range, after, self.at).enumerate() {
                if found.events.len() == left {
                    break;
                }
                if seen == KEYS_PER_TURN {
                    is_cut = true;
                    break;
                }
                if let Some(event) = node.live_at(self.at) {
                    if !event.is_whole() && !self.query.keys_only {
                        last?;
                        is_cut = true;
                        break;
                    }
                    let bytes = held(&event, self.query.keys_only);
                    if found.bytes + bytes > room && !found.events.is_empty() {
                        is_cut = true;
                        break;
                    }
                    found.bytes += bytes;
                    found.events.push(event);
                }
                last = Some(node);
            }
            if let Some(node) = last {
                found.after = Some(Bytes::copy_from_slice(node.newest().key()));
            }
            if is_cut {
                return Some(found);
            }
            if found.events.len() < left {
                found.rest = Rest::Keys(0);
                return Some(found);
            }
        }
        found.rest = Rest::Keys(count_rest(&self.core, published, &self.query.range, found.after.as_ref(), self.at)?);
        Some(found)
    }

    /// Looks where blocking is allowed: at the source, or, when only the count was too much, in memory.
    fn find_at_source(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<ListChunk>, ReadError>> {
        let core = self.core.clone();
        let left = self.left();
        let mut query = StateQuery {
            range: self.query.range.clone(),
            after: self.after.clone(),
            at: self.at,
            keys_max: left,
            bytes_max: core.chunk_bytes(),
            count: false,
        };
        let keys_only = self.query.keys_only;
        self.job = Some(tokio::task::spawn_blocking(move || {
            // Asked for when it matters: where the limit may be reached.
            let counts = left != usize::MAX;
            let counted = || count_rest(&core, &core.published.load(), &query.range, query.after.as_ref(), query.at);
            let counted = if counts { counted() } else { None };
            query.count = counts && counted.is_none();
            let chunk = core.source.state_at(&query)?;
            restore(&core, &chunk.events);
            let is_end = chunk.resume_after.is_none();
            let mut found = Found { events: chunk.events, bytes: 0, after: chunk.resume_after, rest: Rest::Unknown };
            if found.events.len() == left {
                found.rest = Rest::Keys(counted.map_or(chunk.rest, |counted| counted - found.events.len()));
            } else if is_end {
                found.rest = Rest::Keys(0);
            }
            found.fit(query.bytes_max, keys_only);
            Ok(found)
        }));
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Makes a piece of what was found; `None` when it is neither a key nor the end.
    fn take(&mut self, found: Found) -> Option<ListChunk> {
        self.sent += found.events.len();
        self.after = found.after;
        let end = match found.rest {
            Rest::Unknown if found.events.is_empty() => return None,
            Rest::Unknown => None,
            Rest::Keys(rest) => Some(ListEnd {
                header_revision: self.header_revision,
                more: rest > 0 && !self.query.count_only,
                count: signed(self.sent + rest),
            }),
        };
        self.is_done = end.is_some();
        self.hold(found.bytes);
        Some(ListChunk { events: found.events, end })
    }

    fn hold(&mut self, bytes: usize) {
        let memory = &self.core.memory;
        memory.held.fetch_add(bytes, Ordering::Relaxed);
        memory.held.fetch_sub(self.held, Ordering::Relaxed);
        self.held = bytes;
    }
}

impl Drop for ListStream {
    fn drop(&mut self) {
        self.hold(0);
        self.core.memory.lists.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Found {
    /// Gives back what is above `room`: a source reads about as much as it is asked for.
    fn fit(&mut self, room: usize, keys_only: bool) {
        let mut kept = 0;
        for event in &self.events {
            let bytes = held(event, keys_only);
            if kept > 0 && self.bytes + bytes > room {
                break;
            }
            (kept, self.bytes) = (kept + 1, self.bytes + bytes);
        }
        if kept < self.events.len() {
            self.events.truncate(kept);
            self.rest = Rest::Unknown;
        }
        self.after = self.events.last().map(|event| Bytes::copy_from_slice(event.key())).or(self.after.take());
    }
}
