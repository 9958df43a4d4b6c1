//! How a range is read: which keys, at which revision, in which order, and what comes back.
//!
//! A read takes one published root and walks it without a lock. A revision that memory no longer reaches back to is read
//! at the source.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tailwater_eventlog::{Event, HistoryError, HistoryId, KeyRange, Revision, StateQuery};

use crate::admission::ListPermit;
use crate::core::Core;
use crate::store::Published;
use crate::version::KeyNode;
use crate::{RangeAnswer, RangeQuery, ReadError, SortBy};

/// Reads of about so many keys are done at once; larger ones go where blocking is allowed.
pub(crate) const INLINE_KEYS_MAX: usize = 2000;
/// A read of what is newest gives up when it was overtaken by compactions for so long.
const OVERTAKEN_MAX: Duration = Duration::from_secs(5);
/// Until it looks again.
const OVERTAKEN_PAUSE: Duration = Duration::from_millis(1);
/// Fewer keys are asked for by who wants a few, not by who lists many.
const PAGE_KEYS_MIN: usize = 100;
/// Bytes in one step of a read below the window.
const STATE_BYTES_MAX: usize = 1 << 20;
/// What an event in an answer costs beside its bytes; without its value, about what is sent of it beside its key.
pub(crate) const ENTRY_BYTES: usize = 40;

/// A read with everything settled that its answer depends on.
pub(crate) struct Plan {
    query: RangeQuery,
    published: Arc<Published>,
    at: Revision,
}

/// What memory says.
struct Found {
    events: Vec<Arc<Event>>,
    /// Not every key of the range was looked at.
    cut: bool,
    /// A value that is wanted is not there.
    lacks: bool,
}

impl Plan {
    /// Takes the newest root.
    pub(crate) fn new(core: &Core, query: RangeQuery) -> Result<Self, ReadError> {
        let published = core.published.load_full();
        let now = published.revision();
        let at = query.revision.filter(|revision| revision.0 > 0).unwrap_or(now);
        if at > now {
            return Err(ReadError::FutureRevision);
        }
        if at < published.snapshot.compacted {
            return Err(ReadError::Compacted);
        }
        Ok(Self { query, published, at })
    }

    /// Whether it is cheap enough to be done at once, as far as is known.
    pub(crate) fn is_small(&self, core: &Core) -> bool {
        if self.at < core.window.floor() {
            return false;
        }
        let limit = self.fetch_limit();
        let is_newest = self.at == self.published.revision();
        (is_newest && (self.query.count_only || limit <= INLINE_KEYS_MAX))
            || self.published.keys.count(&self.query.range) <= INLINE_KEYS_MAX
    }

    /// Reads from memory. `None`: memory does not reach back to the revision, or lacks a value.
    pub(crate) fn read_memory(&self, core: &Core) -> Option<Result<RangeAnswer, ReadError>> {
        if core.window.floor() > self.at {
            return None;
        }
        let counted = || self.count(core).unwrap_or_else(|| self.walk(usize::MAX, false).events.len());
        let (events, count) = if self.query.count_only {
            (Vec::new(), counted())
        } else {
            let by_value = matches!(self.query.sort, Some((SortBy::Value, _)));
            let found = self.walk(self.fetch_limit(), by_value || !self.query.keys_only);
            if found.lacks {
                return None;
            }
            let count = if found.cut { counted() } else { found.events.len() };
            (found.events, count)
        };
        // Checked after the walk: what was read under a floor that is still low enough is true.
        (core.window.floor() <= self.at).then(|| self.answer(core, events, count, core.lists.begin()))
    }

    /// Reads where blocking is allowed: from memory, else at the source.
    pub(crate) fn read(mut self, core: &Core) -> Result<RangeAnswer, ReadError> {
        let asked_newest = self.query.revision.is_none_or(|revision| revision.0 <= 0);
        let until = Instant::now() + OVERTAKEN_MAX;
        loop {
            if let Some(answer) = self.read_memory(core) {
                return answer;
            }
            match self.read_source(core) {
                // What was the newest is gone from the source: writes and a compaction have passed it. What is the newest
                // now is about to be published.
                Err(ReadError::Compacted) if asked_newest => {
                    if core.is_stopped() || Instant::now() >= until {
                        return Err(ReadError::Stopped);
                    }
                    std::thread::sleep(OVERTAKEN_PAUSE);
                    self = Self::new(core, self.query)?;
                }
                answer => return answer,
            }
        }
    }

    fn read_source(&self, core: &Core) -> Result<RangeAnswer, ReadError> {
        let limit = if self.query.count_only { 0 } else { self.fetch_limit() };
        // All will come, unless there is a limit.
        let counts = limit != usize::MAX;
        let counted = if counts { self.count(core) } else { None };
        let mut permit = core.lists.begin();
        let mut events = Vec::new();
        let mut after = None;
        loop {
            let query = StateQuery {
                range: self.query.range.clone(),
                after,
                at: self.at,
                keys_max: limit - events.len(),
                bytes_max: STATE_BYTES_MAX,
                count: counts && counted.is_none(),
            };
            let chunk = core.source.state_at(&query)?;
            restore(core, &chunk.events);
            // These are copies, so they are counted as they come, not when all are there. One key is no list.
            if !events.is_empty() || chunk.events.len() > 1 || chunk.resume_after.is_some() {
                core.lists.grow(&mut permit, chunk.events.iter().map(|event| self.held(event)).sum())?;
            }
            events.extend(chunk.events);
            if events.len() == limit || chunk.resume_after.is_none() {
                let count = counted.unwrap_or(events.len() + chunk.rest);
                return self.answer(core, events, count, permit);
            }
            after = chunk.resume_after;
        }
    }

    /// The keys of the range that were live at the revision, where that takes no look at each.
    fn count(&self, core: &Core) -> Option<usize> {
        let (range, at) = (&self.query.range, self.at);
        let is_page = self.is_page() && at != self.published.revision();
        let told = if is_page { core.pages.take(self.history(), at, range) } else { None };
        told.or_else(|| count_rest(core, &self.published, range, None, at))
    }

    /// Whether the rest of a list may be asked for, page by page.
    fn is_page(&self) -> bool {
        !self.query.count_only && self.query.limit >= PAGE_KEYS_MIN && self.fetch_limit() != usize::MAX
    }

    /// Whose revisions these are.
    fn history(&self) -> HistoryId {
        self.published.snapshot.cursor.history
    }

    /// What `event` counts in the memory of lists.
    fn held(&self, event: &Event) -> usize {
        held(event, self.query.keys_only)
    }

    /// The live versions at the revision in key order, at most `limit`.
    fn walk(&self, limit: usize, wants_values: bool) -> Found {
        let (range, at) = (&self.query.range, self.at);
        let mut events = Vec::new();
        for node in nodes(&self.published, range, None, at) {
            if let Some(event) = node.live_at(at) {
                if events.len() == limit {
                    return Found { events, cut: true, lacks: false };
                }
                if wants_values && !event.is_whole() {
                    return Found { events, cut: true, lacks: true };
                }
                events.push(event);
            }
        }
        Found { events, cut: false, lacks: false }
    }

    /// Keys to fetch before ordering: one more than the limit, or all when a filter or an order needs all.
    fn fetch_limit(&self) -> usize {
        let query = &self.query;
        let needs_all = query.revision_bounds != (0, 0, 0, 0)
            || query.sort.is_some_and(|(by, descending)| by != SortBy::Key || descending);
        if query.limit == 0 || needs_all { usize::MAX } else { query.limit.saturating_add(1) }
    }

    fn answer(
        &self,
        core: &Core,
        mut events: Vec<Arc<Event>>,
        count: usize,
        mut permit: ListPermit,
    ) -> Result<RangeAnswer, ReadError> {
        let query = &self.query;
        let (min_mod, max_mod, min_create, max_create) = query.revision_bounds;
        let within = |value: i64, min: i64, max: i64| (min == 0 || value >= min) && (max == 0 || value <= max);
        if query.revision_bounds != (0, 0, 0, 0) {
            events.retain(|event| {
                let envelope = event.envelope();
                within(envelope.revision.0, min_mod, max_mod)
                    && within(envelope.create_revision.0, min_create, max_create)
            });
        }
        if let Some((by, descending)) = query.sort {
            sort(&mut events, by, descending);
        }
        let more = query.limit > 0 && events.len() > query.limit;
        if more {
            events.truncate(query.limit);
            if self.is_page()
                && let Some(rest) = rest_of(&query.range, events.last().map(|last| last.key()))
            {
                core.pages.note(self.history(), self.at, &rest, count - events.len());
            }
        }
        // One key is no list, however large its value.
        if permit.is_new() && events.len() > 1 {
            core.lists.grow(&mut permit, events.iter().map(|event| self.held(event)).sum())?;
        }
        let header_revision = self.published.revision();
        Ok(RangeAnswer { header_revision, events, more, count: signed(count), permit: Arc::new(permit) })
    }
}

/// Keeps values that memory may have lacked.
pub(crate) fn restore(core: &Core, events: &[Arc<Event>]) {
    if core.config.unread_value_bytes_min.is_none() {
        return;
    }
    let published = core.published.load();
    for event in events {
        if let Some(node) = published.keys.get(event.key()) {
            node.restore(event);
        }
    }
}

/// What an answer that shows `event` holds for it.
pub(crate) fn held(event: &Event, keys_only: bool) -> usize {
    ENTRY_BYTES + if keys_only { event.key().len() } else { event.bytes().len() }
}

/// The nodes of the keys behind `after` in which a version may be live at `at`.
pub(crate) fn nodes<'a>(
    published: &'a Published,
    range: &'a KeyRange,
    after: Option<&'a [u8]>,
    at: Revision,
) -> Box<dyn Iterator<Item = &'a Arc<KeyNode>> + 'a> {
    if at == published.revision() {
        Box::new(published.keys.live_range_after(range, after))
    } else {
        Box::new(published.keys.range_after(range, after))
    }
}

/// How many keys of `range` behind `after` were live at `at`: those of now, less what has changed since. `None` when that would
/// cost more than to walk, or memory does not reach back to `at` any more.
pub(crate) fn count_rest(
    core: &Core,
    published: &Published,
    range: &KeyRange,
    after: Option<&Bytes>,
    at: Revision,
) -> Option<usize> {
    let Some(rest) = rest_of(range, after.map(Bytes::as_ref)) else { return Some(0) };
    let newest = published.revision();
    let keys = published.keys.count(&rest);
    let change = if at == newest { 0 } else { core.window.live_change(&rest, at, newest, keys.max(64))? };
    // Checked after the count, as after every walk.
    let reaches = core.window.floor() <= at;
    reaches.then(|| usize::try_from(signed(keys) - change).expect("live keys are not fewer than none"))
}

/// What of `range` lies behind `after`; `None` when nothing can.
fn rest_of(range: &KeyRange, after: Option<&[u8]>) -> Option<KeyRange> {
    let Some(after) = after else { return Some(range.clone()) };
    let next = || Bytes::from([after, &[0]].concat());
    match range {
        KeyRange::Key(_) => None,
        KeyRange::Span(_, end) => Some(KeyRange::Span(next(), end.clone())),
        KeyRange::From(_) => Some(KeyRange::From(next())),
    }
}

impl From<HistoryError> for ReadError {
    fn from(error: HistoryError) -> Self {
        match error {
            HistoryError::Compacted(_) => Self::Compacted,
            error => Self::History(error),
        }
    }
}

/// Ties keep their order by key.
fn sort(events: &mut [Arc<Event>], by: SortBy, descending: bool) {
    let order = |a: &Arc<Event>, b: &Arc<Event>| {
        let (x, y) = (a.envelope(), b.envelope());
        match by {
            SortBy::Key => a.key().cmp(b.key()),
            SortBy::Version => x.version.cmp(&y.version),
            SortBy::Create => x.create_revision.cmp(&y.create_revision),
            SortBy::Mod => x.revision.cmp(&y.revision),
            SortBy::Value => a.value().cmp(b.value()),
        }
    };
    if descending {
        events.sort_by(|a, b| order(b, a));
    } else {
        events.sort_by(order);
    }
}

pub(crate) fn signed(count: usize) -> i64 {
    i64::try_from(count).expect("memory holds fewer than 2^63 keys")
}
