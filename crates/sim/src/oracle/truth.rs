//! The history that the members agree on, as the first of them to apply a revision showed it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tailwater_eventlog::{Event, EventKind, KeyRange, LeaseId, Revision};

use crate::violation::{Checked, Guarantee, broken, check};

/// All records, none of them ever compacted.
///
/// A member shows a record when it has applied it, so it was committed: every other member must show the same bytes, and
/// whatever a client is told must fit to it.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    /// Of revision 2 on.
    records: Vec<Vec<Arc<Event>>>,
    /// Each key's events, oldest first.
    keys: BTreeMap<Bytes, Vec<Arc<Event>>>,
    /// The newest compaction that any member has shown.
    compacted: Revision,
}

fn index(revision: Revision) -> Option<usize> {
    usize::try_from(revision.0 - 2).ok()
}

impl Truth {
    /// The newest revision.
    pub(crate) fn revision(&self) -> Revision {
        Revision(1 + i64::try_from(self.records.len()).expect("memory holds fewer"))
    }

    pub(crate) fn compacted(&self) -> Revision {
        self.compacted
    }

    pub(crate) fn compact(&mut self, at: Revision) {
        self.compacted = self.compacted.max(at);
    }

    /// What a member showed as one revision. `true` when it is new.
    pub(crate) fn record(&mut self, member: usize, events: &[Arc<Event>]) -> Checked<bool> {
        let revision = events[0].revision();
        let at = index(revision).unwrap_or(usize::MAX);
        if let Some(known) = self.records.get(at) {
            let same = known.len() == events.len()
                && known
                    .iter()
                    .zip(events)
                    .all(|(a, b)| a.bytes() == b.bytes() && a.sub() == b.sub() && a.prev() == b.prev());
            check(same, Guarantee::Identical, || {
                format!(
                    "member {member} has another record at revision {revision}: {} but it was {}",
                    show(events),
                    show(known)
                )
            })?;
            return Ok(false);
        }
        check(at == self.records.len(), Guarantee::Identical, || {
            format!("member {member} shows revision {revision} after {}", self.revision())
        })?;
        for (sub, event) in (0..).zip(events) {
            check(event.sub() == sub, Guarantee::Identical, || {
                format!("member {member}: event {} of revision {revision} stands at {sub}", event.sub())
            })?;
            let prev = self.live(event.key(), Revision(revision.0 - 1)).map(|prev| prev.revision());
            let made = event.kind() == EventKind::Put && event.envelope().create_revision == revision;
            let named = event.prev().map(|(revision, _)| revision);
            check(named == prev || (made && named.is_none()), Guarantee::PrevKv, || {
                format!("revision {revision} names {named:?} as the key's previous one, which is {prev:?}")
            })?;
        }
        for event in events {
            self.keys.entry(Bytes::copy_from_slice(event.key())).or_default().push(event.clone());
        }
        self.records.push(events.to_vec());
        Ok(true)
    }

    /// The events of a revision; none for revision 1 and what is not there yet.
    pub(crate) fn at(&self, revision: Revision) -> &[Arc<Event>] {
        index(revision).and_then(|at| self.records.get(at)).map_or(&[], Vec::as_slice)
    }

    /// The key's version at a revision, if it is alive there.
    pub(crate) fn live(&self, key: &[u8], at: Revision) -> Option<&Arc<Event>> {
        let versions = self.keys.get(key)?;
        let count = versions.partition_point(|event| event.revision() <= at);
        versions[..count].last().filter(|event| event.kind() == EventKind::Put)
    }

    /// What is alive in a range at a revision, in key order.
    pub(crate) fn range<'a>(&'a self, range: &'a KeyRange, at: Revision) -> impl Iterator<Item = &'a Arc<Event>> {
        let keys = self.keys.range(range.start().clone()..).map(|(key, _)| key);
        keys.take_while(|key| !range.ends_before(key)).filter_map(move |key| self.live(key, at))
    }

    /// Events of a range from one revision to another, both included.
    pub(crate) fn events<'a>(
        &'a self,
        range: &'a KeyRange,
        from: Revision,
        to: Revision,
    ) -> impl Iterator<Item = &'a Arc<Event>> {
        let end = index(to).map_or(0, |at| at + 1).min(self.records.len());
        let begin = index(from).unwrap_or(0).min(end);
        self.records[begin..end].iter().flatten().filter(|event| range.contains(event.key()))
    }

    /// Keys alive now that are attached to a lease.
    pub(crate) fn leased(&self, lease: LeaseId) -> impl Iterator<Item = &Arc<Event>> {
        let versions = self.keys.values().filter_map(|versions| versions.last());
        versions.filter(move |event| event.kind() == EventKind::Put && event.lease() == lease)
    }

    /// The records a store must hold above its compacted revision, or a word about the first that differs.
    pub(crate) fn compare(&self, member: usize, from: Revision, found: &[Arc<Event>]) -> Checked {
        let all = KeyRange::all();
        let mut expected = self.events(&all, from, self.revision());
        for event in found {
            match expected.next() {
                Some(known) if known.bytes() == event.bytes() => {}
                known => {
                    let known = known.map(|event| show(std::slice::from_ref(event)));
                    return broken(
                        Guarantee::Identical,
                        format!(
                            "member {member} stores {} but the record is {known:?}",
                            show(std::slice::from_ref(event))
                        ),
                    );
                }
            }
        }
        match expected.next() {
            None => Ok(()),
            Some(missing) => {
                broken(Guarantee::Durable, format!("member {member} lacks {}", show(std::slice::from_ref(missing))))
            }
        }
    }
}

/// Events for people.
pub(crate) fn show(events: &[Arc<Event>]) -> String {
    let one = |event: &Arc<Event>| {
        let (key, value) = (event.key().escape_ascii(), event.value().escape_ascii());
        let at = format!("{}.{}", event.revision(), event.sub());
        match event.kind() {
            EventKind::Put => format!("{at} put {key}={value}"),
            EventKind::Delete => format!("{at} delete {key}"),
        }
    };
    format!("[{}]", events.iter().map(one).collect::<Vec<_>>().join(", "))
}
