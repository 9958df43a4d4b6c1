//! Answers against the truth.

use std::sync::Arc;

use tailwater_api::{etcdserverpb as pb, mvccpb};
use tailwater_consensus::Answer;
use tailwater_eventlog::{Event, EventKind, KeyRange, Revision};
use tailwater_fanout::RangeAnswer;

use super::Oracle;
use super::truth::{Truth, show};
use crate::operation::{Kind, Operation, value};
use crate::violation::{Checked, Guarantee, broken, check};

/// What a write is answered with, taken apart.
struct Told<'a> {
    revision: Revision,
    operation: &'a Operation,
}

impl Told<'_> {
    fn check(&self, holds: bool, what: impl FnOnce() -> String) -> Checked {
        check(holds, Guarantee::Linearizable, || {
            let Self { revision, operation } = self;
            format!("operation {} ({:?}) answered at revision {revision}: {}", operation.id, operation.kind, what())
        })
    }
}

fn header(header: Option<&pb::ResponseHeader>) -> Revision {
    Revision(header.map_or(0, |header| header.revision))
}

impl Oracle {
    /// An answer of the leader to a write.
    pub(crate) fn answered(&mut self, operation: &Operation, answer: &Answer) -> Checked {
        let (revision, changed) = match (&operation.kind, answer) {
            (Kind::Put { .. }, Answer::Put(answer)) => (self.put(operation, answer)?, true),
            (Kind::Delete { range, .. }, Answer::DeleteRange(answer)) => self.delete(operation, range, answer)?,
            (Kind::Swap { .. } | Kind::Together { .. }, Answer::Txn(answer)) => self.txn(operation, answer)?,
            (Kind::Compact { at, .. }, Answer::Compact(answer)) => {
                self.compacted = self.compacted.max(*at);
                (header(answer.header.as_ref()), false)
            }
            (Kind::Grant { .. }, Answer::LeaseGrant(answer)) => (header(answer.header.as_ref()), false),
            (Kind::Revoke { lease }, Answer::LeaseRevoke(answer)) => {
                let revision = header(answer.header.as_ref());
                let left: Vec<_> = self.truth.leased(*lease).filter(|e| e.revision() <= revision).cloned().collect();
                check(left.is_empty(), Guarantee::Lease, || {
                    format!("lease {lease} was revoked at revision {revision}, and there is {}", show(&left))
                })?;
                (revision, false)
            }
            _ => return broken(Guarantee::Linearizable, format!("{operation:?} was answered with {answer:?}")),
        };
        self.in_time(operation, revision, changed)
    }

    /// Whoever asks later is told no less.
    fn in_time(&mut self, operation: &Operation, revision: Revision, changed: bool) -> Checked {
        let floor = operation.floor;
        let told = Told { revision, operation };
        told.check(revision > floor || revision == floor && !changed, || {
            format!("somebody had been told of revision {floor} before it was asked")
        })?;
        told.check(revision <= self.truth.revision(), || "no member is there".to_owned())?;
        self.tell(revision);
        Ok(())
    }

    /// The record must be these puts and deletes.
    fn expect_record(&self, told: &Told<'_>, puts: &[(&[u8], usize)], deletes: &[Arc<Event>]) -> Checked {
        let record = self.truth.at(told.revision);
        let mut left: Vec<_> = record.iter().collect();
        for (key, n) in puts {
            let value = value(told.operation.id, *n);
            let at = left.iter().position(|event| {
                event.kind() == EventKind::Put && event.key() == *key && event.value() == value.as_ref()
            });
            let Some(at) = at else { return told.check(false, || format!("the record is {}", show(record))) };
            left.remove(at);
        }
        for delete in deletes {
            let at = left.iter().position(|event| event.kind() == EventKind::Delete && event.key() == delete.key());
            let Some(at) = at else { return told.check(false, || format!("the record is {}", show(record))) };
            left.remove(at);
        }
        told.check(left.is_empty(), || format!("the record is {}", show(record)))
    }

    fn put(&self, operation: &Operation, answer: &pb::PutResponse) -> Checked<Revision> {
        let Kind::Put { key, lease, prev_kv } = &operation.kind else { return Ok(Revision(0)) };
        let told = Told { revision: header(answer.header.as_ref()), operation };
        self.expect_record(&told, &[(key, 0)], &[])?;
        let record = self.truth.at(told.revision);
        told.check(record[0].lease() == *lease, || format!("its lease is {}", record[0].lease()))?;
        if *prev_kv {
            let before = self.truth.live(key, Revision(told.revision.0 - 1));
            told.check(same_kv(before, answer.prev_kv.as_ref()), || {
                format!(
                    "prev_kv is {:?} and was {:?}",
                    answer.prev_kv,
                    before.map(|event| show(std::slice::from_ref(event)))
                )
            })?;
        }
        Ok(told.revision)
    }

    fn delete(
        &self,
        operation: &Operation,
        range: &KeyRange,
        answer: &pb::DeleteRangeResponse,
    ) -> Checked<(Revision, bool)> {
        let told = Told { revision: header(answer.header.as_ref()), operation };
        let Kind::Delete { prev_kv, .. } = &operation.kind else { return Ok((told.revision, false)) };
        let changed = answer.deleted > 0;
        let before = Revision(told.revision.0 - i64::from(changed));
        let gone: Vec<_> = self.truth.range(range, before).cloned().collect();
        let count = i64::try_from(gone.len()).expect("few");
        told.check(count == answer.deleted, || {
            format!("it deleted {}, but there was {}", answer.deleted, show(&gone))
        })?;
        if changed {
            self.expect_record(&told, &[], &gone)?;
        }
        if *prev_kv {
            let same = gone.len() == answer.prev_kvs.len()
                && gone.iter().zip(&answer.prev_kvs).all(|(event, kv)| same_kv(Some(event), Some(kv)));
            told.check(same, || format!("prev_kvs are {:?}, but there was {}", answer.prev_kvs, show(&gone)))?;
        }
        Ok((told.revision, changed))
    }

    fn txn(&self, operation: &Operation, answer: &pb::TxnResponse) -> Checked<(Revision, bool)> {
        let told = Told { revision: header(answer.header.as_ref()), operation };
        let before = Revision(told.revision.0 - 1);
        match &operation.kind {
            Kind::Together { puts, delete } => {
                let gone: Vec<_> = self.truth.live(delete, before).cloned().into_iter().collect();
                self.expect_record(&told, &[(&puts[0], 0), (&puts[1], 1)], &gone)?;
                Ok((told.revision, true))
            }
            Kind::Swap { key, seen } if answer.succeeded => {
                let was = mod_revision(&self.truth, key, before);
                told.check(was == *seen, || format!("the key was at revision {was}"))?;
                self.expect_record(&told, &[(key, 0)], &[])?;
                Ok((told.revision, true))
            }
            Kind::Swap { key, seen } => {
                let is = mod_revision(&self.truth, key, told.revision);
                told.check(is != *seen, || "the key was at the revision that was asked for".to_owned())?;
                let found = answer.responses.first().and_then(|op| op.response.as_ref());
                let Some(pb::response_op::Response::ResponseRange(found)) = found else {
                    return told
                        .check(false, || format!("it has no range: {answer:?}"))
                        .map(|()| (told.revision, false));
                };
                let live = self.truth.live(key, told.revision);
                told.check(same_kv(live, found.kvs.first()), || format!("it read {found:?}"))?;
                Ok((told.revision, false))
            }
            _ => Ok((told.revision, false)),
        }
    }

    /// An answer to a read. A serializable one may be old, but not older than what its node had answered before.
    pub(crate) fn read(&mut self, operation: &Operation, answer: &RangeAnswer, node_floor: Revision) -> Checked {
        let Kind::Read { range, at, serializable, limit } = &operation.kind else { return Ok(()) };
        let revision = answer.header_revision;
        let told = Told { revision, operation };
        let floor = if *serializable { node_floor } else { operation.floor.max(node_floor) };
        told.check(revision >= floor, || format!("somebody had been told of revision {floor} before it was asked"))?;
        told.check(revision <= self.truth.revision(), || "no member is there".to_owned())?;
        let at = at.unwrap_or(revision);
        told.check(*serializable || at >= operation.compacted, || {
            format!("it read at {at}, and {} had been compacted before it was asked", operation.compacted)
        })?;
        let live: Vec<_> = self.truth.range(range, at).collect();
        let count = i64::try_from(live.len()).expect("few");
        let shown = if *limit == 0 { live.len() } else { live.len().min(*limit) };
        let same = answer.count == count
            && answer.more == (shown < live.len())
            && answer.events.len() == shown
            && answer.events.iter().zip(&live).all(|(a, b)| a.bytes() == b.bytes());
        told.check(same, || {
            let live: Vec<_> = live.into_iter().cloned().collect();
            format!(
                "it read {} keys of {} at {at}: {}; but there was {}",
                shown,
                answer.count,
                show(&answer.events),
                show(&live)
            )
        })?;
        self.tell(revision);
        Ok(())
    }
}

fn mod_revision(truth: &Truth, key: &[u8], at: Revision) -> Revision {
    truth.live(key, at).map_or(Revision(0), |event| event.revision())
}

/// Whether a client was given this version.
pub(crate) fn same_kv(event: Option<&Arc<Event>>, kv: Option<&mvccpb::KeyValue>) -> bool {
    match (event, kv) {
        (None, None) => true,
        (Some(event), Some(kv)) => {
            let envelope = event.envelope();
            event.key() == kv.key
                && event.value() == kv.value
                && envelope.revision.0 == kv.mod_revision
                && envelope.create_revision.0 == kv.create_revision
                && envelope.version == kv.version
                && envelope.lease.0 == kv.lease
        }
        _ => false,
    }
}
