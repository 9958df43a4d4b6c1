//! Whether what a server told was right, checked while it is measured: every event once, in order, atomic, with the
//! right previous version; reads that are linearizable by revision.
//!
//! Every write carries a number of its own in its value. The first watcher of a range that gets an event sets it down;
//! all others are compared with that, and that with what writers were answered. What everybody has passed is forgotten,
//! so that memory grows with how far watchers are apart, not with the length of the run.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use bytes::Bytes;
use parking_lot::Mutex;
use tailwater_api::{etcdserverpb as pb, mvccpb};

/// Violations that are told in words; more are only counted.
const TOLD_MAX: usize = 20;
/// Bytes at the begin of a value that tell which write it is of.
pub(crate) const MARK_BYTES: usize = 16;

/// Which write a value is of, and when it was sent, in microseconds since the run began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) number: u64,
    pub(crate) sent: u64,
}

impl Mark {
    /// A value of this length, or of the mark's if that is longer.
    pub(crate) fn value(self, length: usize) -> Bytes {
        let mut value = Vec::with_capacity(length.max(MARK_BYTES));
        value.extend(self.number.to_be_bytes());
        value.extend(self.sent.to_be_bytes());
        crate::load::fill(&mut value, length, self.number);
        value.into()
    }

    /// Of a value that was made so.
    pub(crate) fn of(value: &[u8]) -> Option<Self> {
        let number = u64::from_be_bytes(value.get(..8)?.try_into().ok()?);
        let sent = u64::from_be_bytes(value.get(8..16)?.try_into().ok()?);
        Some(Self { number, sent })
    }
}

/// What a range's watchers have in common.
pub(crate) type GroupId = usize;

/// One watcher.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WatcherId {
    group: GroupId,
    watcher: usize,
}

/// What was known when a read began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadBegin {
    of_key: i64,
    revision: i64,
}

/// Shared by writers, readers and watchers.
#[derive(Default)]
pub(crate) struct Validator {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    groups: Vec<Group>,
    /// Writes whose answer was an error: they may have happened.
    unknown: HashSet<u64>,
    /// The newest acknowledged revision, and of each key.
    revision: i64,
    of_key: HashMap<Bytes, i64>,
    violations: Violations,
}

#[derive(Default)]
struct Violations {
    count: u64,
    told: Vec<String>,
}

impl Violations {
    fn add(&mut self, text: impl FnOnce() -> String) {
        self.count += 1;
        if self.told.len() < TOLD_MAX {
            self.told.push(text());
        }
    }
}

/// An event as it is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    revision: i64,
    key: Bytes,
    /// 0 for a delete.
    number: u64,
    version: i64,
    previous: Option<(i64, u64)>,
}

struct Group {
    /// Keys from the first up to the second.
    range: (Bytes, Bytes),
    with_prev: bool,
    /// Set down by whoever was first; the first has this number.
    events: VecDeque<Seen>,
    first: u64,
    /// The newest version of each key, its number and its version; 0 when it was deleted.
    newest: HashMap<Bytes, (i64, u64, i64)>,
    /// Acknowledged and not seen yet.
    awaited: BTreeMap<(i64, Bytes), u64>,
    /// Seen and not acknowledged yet.
    early: BTreeMap<(i64, Bytes), u64>,
    watchers: Vec<Watcher>,
}

struct Watcher {
    /// The number of the event that comes next.
    next: u64,
    /// Of its last response.
    revision: i64,
}

impl Group {
    fn covers(&self, key: &[u8]) -> bool {
        *self.range.0 <= *key && *key < *self.range.1
    }

    fn end(&self) -> u64 {
        self.first + self.events.len() as u64
    }

    /// Sets down what nobody has seen before.
    fn set_down(&mut self, seen: &Seen, violations: &mut Violations) {
        let last = self.events.back().map_or(0, |last| last.revision);
        if seen.revision < last {
            violations.add(|| format!("order: {seen:?} comes after revision {last}"));
        }
        let before = self.newest.get(&seen.key).copied();
        if let Some((revision, number, version)) = before {
            if revision >= seen.revision {
                violations.add(|| format!("unique: {seen:?} comes after the key's revision {revision}"));
            }
            let right = if number == 0 { None } else { Some((revision, number)) };
            if self.with_prev && seen.previous != right {
                violations.add(|| format!("prev_kv: {seen:?} should have {right:?}"));
            }
            if seen.number != 0 && seen.version != version + 1 {
                violations.add(|| format!("version: {seen:?} comes after version {version}"));
            }
        }
        let version = if seen.number == 0 { 0 } else { seen.version };
        self.newest.insert(seen.key.clone(), (seen.revision, seen.number, version));
        let place = (seen.revision, seen.key.clone());
        match self.awaited.remove(&place) {
            Some(number) if number != seen.number => {
                violations.add(|| format!("value: {seen:?} should be write {number}"));
            }
            Some(_) => {}
            None => drop(self.early.insert(place, seen.number)),
        }
        // Everything below is there, or never comes.
        while let Some(entry) = self.awaited.first_entry()
            && entry.key().0 < seen.revision
        {
            let (key, number) = entry.remove_entry();
            violations
                .add(|| format!("reliable: write {number} of {key:?} was acknowledged, and {seen:?} came without it"));
        }
    }

    fn forget(&mut self) {
        let passed = self.watchers.iter().map(|watcher| watcher.next).min().unwrap_or(self.first);
        // The last one stays: the next is compared with it.
        while self.first < passed && self.events.len() > 1 {
            self.events.pop_front();
            self.first += 1;
        }
    }
}

impl Validator {
    /// Watchers of the keys from `range.0` up to `range.1`, of which none was written yet or all are known to the first.
    pub(crate) fn group(&self, range: (Bytes, Bytes), with_prev: bool) -> GroupId {
        let mut state = self.state.lock();
        state.groups.push(Group {
            range,
            with_prev,
            events: VecDeque::new(),
            first: 0,
            newest: HashMap::new(),
            awaited: BTreeMap::new(),
            early: BTreeMap::new(),
            watchers: Vec::new(),
        });
        state.groups.len() - 1
    }

    /// A watcher that begins where the group does.
    pub(crate) fn watcher(&self, group: GroupId) -> WatcherId {
        let watchers = &mut self.state.lock().groups[group].watchers;
        watchers.push(Watcher { next: 0, revision: 0 });
        WatcherId { group, watcher: watchers.len() - 1 }
    }

    /// A write with this number was acknowledged; 0 for a delete.
    pub(crate) fn acknowledged(&self, key: &Bytes, revision: i64, number: u64) {
        let mut state = self.state.lock();
        let State { groups, revision: newest, of_key, violations, .. } = &mut *state;
        *newest = revision.max(*newest);
        let of_key = of_key.entry(key.clone()).or_default();
        *of_key = revision.max(*of_key);
        for group in groups.iter_mut().filter(|group| group.covers(key) && !group.watchers.is_empty()) {
            let place = (revision, key.clone());
            match group.early.remove(&place) {
                Some(seen) if seen != number => {
                    violations.add(|| format!("value: write {number} of {place:?} was seen as {seen}"));
                }
                Some(_) => {}
                None if group.events.back().is_some_and(|last| last.revision > revision) => {
                    violations.add(|| format!("reliable: write {number} of {place:?} was passed over"));
                }
                None => drop(group.awaited.insert(place, number)),
            }
        }
    }

    /// A write with this number may have happened.
    pub(crate) fn unknown(&self, number: u64) {
        self.state.lock().unknown.insert(number);
    }

    /// A response of a watch.
    pub(crate) fn received(&self, id: WatcherId, response: &pb::WatchResponse) {
        let mut state = self.state.lock();
        let State { groups, violations, .. } = &mut *state;
        let group = &mut groups[id.group];
        if response.canceled {
            violations.add(|| format!("a watch was cancelled: {}", response.cancel_reason));
        }
        let before = group.watchers[id.watcher].revision;
        for event in &response.events {
            let Some(seen) = seen(event) else {
                violations.add(|| "an event without a key or a mark".to_owned());
                continue;
            };
            if seen.revision <= before {
                violations.add(|| format!("atomic: {seen:?} comes in a response after revision {before}"));
            }
            let next = group.watchers[id.watcher].next;
            if next >= group.end() {
                group.set_down(&seen, violations);
                group.events.push_back(seen.clone());
            } else if next >= group.first {
                let right = usize::try_from(next - group.first).ok().and_then(|at| group.events.get(at));
                if right != Some(&seen) {
                    violations.add(|| format!("a watcher got {seen:?}, another one {right:?}"));
                }
            }
            let watcher = &mut group.watchers[id.watcher];
            watcher.next += 1;
            watcher.revision = watcher.revision.max(seen.revision);
        }
        if group.events.len() > 1024 {
            group.forget();
        }
    }

    /// To be asked before a linearizable read leaves.
    pub(crate) fn begin_read(&self, key: &[u8]) -> ReadBegin {
        let state = self.state.lock();
        ReadBegin { of_key: state.of_key.get(key).copied().unwrap_or_default(), revision: state.revision }
    }

    /// What it was answered.
    pub(crate) fn end_read(&self, begin: ReadBegin, key: &[u8], answer: &pb::RangeResponse) {
        let revision = answer.header.as_ref().map_or(0, |header| header.revision);
        let of_key = answer.kvs.first().map_or(0, |kv| kv.mod_revision);
        let mut state = self.state.lock();
        if revision < begin.revision {
            let known = begin.revision;
            state
                .violations
                .add(|| format!("linearizable: a read that began after revision {known} was of {revision}"));
        }
        // A deleted key has none.
        if of_key < begin.of_key && of_key != 0 {
            let (known, key) = (begin.of_key, key.escape_ascii());
            state.violations.add(|| format!("linearizable: {key} was read at {of_key} after {known} was acknowledged"));
        }
    }

    /// Whether every watcher has everything that was acknowledged.
    pub(crate) fn is_settled(&self) -> bool {
        let state = self.state.lock();
        state
            .groups
            .iter()
            .all(|group| group.awaited.is_empty() && group.watchers.iter().all(|watcher| watcher.next == group.end()))
    }

    /// How many events watchers have got, all together.
    pub(crate) fn events_seen(&self) -> u64 {
        let state = self.state.lock();
        state.groups.iter().flat_map(|group| &group.watchers).map(|watcher| watcher.next).sum()
    }

    /// What was wrong, in words, and how much in all; after the last write was answered and watchers had their time.
    pub(crate) fn finish(&self) -> (u64, Vec<String>) {
        let mut state = self.state.lock();
        let State { groups, unknown, violations, .. } = &mut *state;
        for group in groups {
            let end = group.end();
            for (place, number) in std::mem::take(&mut group.awaited) {
                violations.add(|| format!("reliable: write {number} of {place:?} was acknowledged and never seen"));
            }
            for (place, number) in std::mem::take(&mut group.early) {
                if number != 0 && !unknown.contains(&number) {
                    violations.add(|| format!("write {number} of {place:?} was seen, and nobody sent it"));
                }
            }
            for watcher in group.watchers.iter().filter(|watcher| watcher.next < end) {
                let missing = end - watcher.next;
                violations.add(|| format!("reliable: a watcher lacks the last {missing} events"));
            }
        }
        (violations.count, std::mem::take(&mut violations.told))
    }
}

fn seen(event: &mvccpb::Event) -> Option<Seen> {
    let kv = event.kv.as_ref()?;
    let is_delete = event.r#type == i32::from(mvccpb::event::EventType::Delete);
    let number = if is_delete { 0 } else { Mark::of(&kv.value)?.number };
    let previous = event.prev_kv.as_ref().and_then(|prev| Some((prev.mod_revision, Mark::of(&prev.value)?.number)));
    Some(Seen { revision: kv.mod_revision, key: kv.key.clone(), number, version: kv.version, previous })
}

#[cfg(test)]
mod tests;
