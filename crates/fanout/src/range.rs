//! How a range is read: which keys, at which revision, in which order, and what comes back.
//!
//! A read takes one published root and walks it without a lock. Versions that memory no longer holds are put back
//! from the source's history: of each key the earliest event after the revision says what was there before it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use tailwater_eventlog::{Event, HistoryError, HistoryPoint, Revision};

use crate::core::Core;
use crate::store::Published;
use crate::{RangeAnswer, RangeQuery, ReadError, SortBy};

/// Reads of about so many keys are done at once; larger ones go where blocking is allowed.
pub(crate) const INLINE_KEYS_MAX: usize = 2000;
/// Bytes of history in one step of a read below the window.
const HISTORY_BYTES_MAX: usize = 1 << 20;

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

    /// Reads from memory. `None`: memory does not reach back to the revision.
    pub(crate) fn read_memory(&self, core: &Core) -> Option<RangeAnswer> {
        let range = &self.query.range;
        let counted = || {
            let (at, newest) = (self.at, self.published.revision());
            let keys = self.published.keys.count(range);
            let change = if at == newest { Some(0) } else { core.window.live_change(range, at, newest, keys.max(64)) };
            change.map(|change| signed(keys) - change)
        };
        let (found, count) = if self.query.count_only {
            match counted() {
                Some(count) => (Found { events: Vec::new(), cut: false }, count),
                None => (Found { events: Vec::new(), cut: false }, signed(self.walk(usize::MAX).events.len())),
            }
        } else {
            let found = self.walk(self.fetch_limit());
            let seen = signed(found.events.len());
            let count =
                if found.cut { counted().unwrap_or_else(|| signed(self.walk(usize::MAX).events.len())) } else { seen };
            (found, count)
        };
        // Checked after the walk: what was read under a floor that is still low enough is true.
        (core.window.floor() <= self.at).then(|| self.answer(found.events, count))
    }

    /// Reads where blocking is allowed: from memory, else with the source's help.
    pub(crate) fn read(&self, core: &Core) -> Result<RangeAnswer, ReadError> {
        if let Some(answer) = self.read_memory(core) {
            return Ok(answer);
        }
        let mut live: BTreeMap<Bytes, Arc<Event>> = BTreeMap::new();
        for event in self.walk(usize::MAX).events {
            live.insert(event.bytes().slice_ref(event.key()), event);
        }
        // Read after the walk: memory was complete from here on.
        let floor = core.window.floor();
        self.undo(core, floor, &mut live)?;
        let count = signed(live.len());
        let limit = if self.query.count_only { 0 } else { self.fetch_limit() };
        Ok(self.answer(live.into_values().take(limit).collect(), count))
    }

    /// Sets `live` back from what memory found to what was there at the revision.
    fn undo(&self, core: &Core, to: Revision, live: &mut BTreeMap<Bytes, Arc<Event>>) -> Result<(), ReadError> {
        let ranges = [self.query.range.clone()];
        let mut decided: BTreeSet<Bytes> = BTreeSet::new();
        let mut next = Some(HistoryPoint { revision: self.at.next(), sub: 0 });
        while let Some(from) = next {
            let chunk = core.source.read(&ranges, from, to, true, HISTORY_BYTES_MAX).map_err(|error| match error {
                HistoryError::Compacted(_) => ReadError::Compacted,
                error => ReadError::History(error),
            })?;
            if self.at < chunk.compacted {
                return Err(ReadError::Compacted);
            }
            for found in chunk.events {
                let key = found.event.bytes().slice_ref(found.event.key());
                if !decided.insert(key.clone()) {
                    continue;
                }
                match found.prev {
                    Some(prev) => live.insert(key, prev),
                    None => live.remove(&key),
                };
            }
            next = chunk.next;
        }
        Ok(())
    }

    /// The live versions at the revision in key order, at most `limit`.
    fn walk(&self, limit: usize) -> Found {
        let (range, at) = (&self.query.range, self.at);
        let mut events = Vec::new();
        let newest = at == self.published.revision();
        let keys: Box<dyn Iterator<Item = &Arc<crate::version::KeyNode>>> = if newest {
            Box::new(self.published.keys.live_range(range))
        } else {
            Box::new(self.published.keys.range(range))
        };
        for node in keys {
            if let Some(event) = node.live_at(at) {
                if events.len() == limit {
                    return Found { events, cut: true };
                }
                events.push(event);
            }
        }
        Found { events, cut: false }
    }

    /// Keys to fetch before ordering: one more than the limit, or all when a filter or an order needs all.
    fn fetch_limit(&self) -> usize {
        let query = &self.query;
        let needs_all = query.revision_bounds != (0, 0, 0, 0)
            || query.sort.is_some_and(|(by, descending)| by != SortBy::Key || descending);
        if query.limit == 0 || needs_all { usize::MAX } else { query.limit.saturating_add(1) }
    }

    fn answer(&self, mut events: Vec<Arc<Event>>, count: i64) -> RangeAnswer {
        let query = &self.query;
        let header_revision = self.published.revision();
        if query.count_only {
            return RangeAnswer { header_revision, events: Vec::new(), more: false, count };
        }
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
        }
        RangeAnswer { header_revision, events, more, count }
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

fn signed(count: usize) -> i64 {
    i64::try_from(count).expect("memory holds fewer than 2^63 keys")
}
