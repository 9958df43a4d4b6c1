//! Put and DeleteRange, alone and as steps of a txn.

use tailwater_api::etcdserverpb as pb;
use tailwater_api::mvccpb;
use tailwater_eventlog::{Envelope, Event, EventKind, KeyMeta, KeyRange, LeaseId, Revision, StorageError};

use super::{Machine, MachineError, Values, header};
use crate::{Answer, ApplyError};

/// The revision in the making: what its next event is called.
pub(super) struct Step {
    /// The revision before it.
    pub(super) begin: Revision,
    /// Sub-revision of the next event; also the number of events so far.
    pub(super) sub: u32,
}

impl Step {
    /// The revision that a reader inside sees: the new one once something was written.
    pub(super) fn revision(&self) -> Revision {
        if self.sub == 0 { self.begin } else { self.begin.next() }
    }
}

impl Machine {
    /// A revision in the making.
    pub(super) fn begin(&self) -> Step {
        Step { begin: self.state.revision, sub: 0 }
    }

    /// Makes the step's revision current if it holds an event.
    pub(super) fn end(&mut self, step: &Step) -> Revision {
        self.state.revision = step.revision();
        self.state.revision
    }

    pub(super) fn put(
        &mut self,
        values: &dyn Values,
        request: pb::PutRequest,
        waiting: bool,
    ) -> Result<Answer, MachineError> {
        // The order of the two checks is etcd's.
        self.check_lease(request.lease)?;
        self.check_exists(&request)?;
        let mut step = self.begin();
        let mut response = self.put_step(values, &mut step, request, waiting)?;
        response.header = header(self.end(&step));
        Ok(Answer::Put(response))
    }

    /// A put of an unknown lease is refused.
    pub(super) fn check_lease(&self, lease: i64) -> Result<(), MachineError> {
        if lease != 0 && !self.leases.contains_key(&LeaseId(lease)) {
            return Err(ApplyError::LeaseNotFound.into());
        }
        Ok(())
    }

    /// A put that keeps the value or the lease needs a key that has one.
    pub(super) fn check_exists(&self, request: &pb::PutRequest) -> Result<(), MachineError> {
        if (request.ignore_value || request.ignore_lease) && self.index.latest(&request.key).is_none() {
            return Err(ApplyError::KeyNotFound.into());
        }
        Ok(())
    }

    /// Writes one key; the header is the caller's.
    pub(super) fn put_step(
        &mut self,
        values: &dyn Values,
        step: &mut Step,
        request: pb::PutRequest,
        waiting: bool,
    ) -> Result<pb::PutResponse, StorageError> {
        let previous = self.index.latest(&request.key);
        let mut value = request.value;
        let mut lease = LeaseId(request.lease);
        let mut response = pb::PutResponse::default();
        if let Some(meta) = &previous {
            if request.ignore_lease {
                lease = meta.lease;
            }
            if request.ignore_value || (request.prev_kv && waiting) {
                let event = self.event(values, &meta.key, meta.mod_revision, meta.sub)?;
                if request.ignore_value {
                    value = bytes::Bytes::copy_from_slice(event.value());
                }
                if request.prev_kv && waiting {
                    response.prev_kv = Some(key_value(meta, Some(&event)));
                }
            }
        }
        let revision = step.begin.next();
        let envelope = Envelope {
            kind: EventKind::Put,
            revision,
            sub: step.sub,
            create_revision: previous.as_ref().map_or(revision, |meta| meta.create_revision),
            version: previous.as_ref().map_or(1, |meta| meta.version + 1),
            lease,
            // A put that creates the key has none, also where this very revision deleted it.
            prev: previous.as_ref().and_then(|meta| self.before(step, meta)),
        };
        let old_lease = previous.map_or(LeaseId(0), |meta| meta.lease);
        self.record(Event::put(envelope, &request.key, &value));
        step.sub += 1;
        self.attach(&request.key, old_lease, lease);
        Ok(response)
    }

    pub(super) fn delete_range(
        &mut self,
        values: &dyn Values,
        request: pb::DeleteRangeRequest,
        waiting: bool,
    ) -> Result<Answer, MachineError> {
        let mut step = self.begin();
        let mut response = self.delete_step(values, &mut step, request, waiting)?;
        response.header = header(self.end(&step));
        Ok(Answer::DeleteRange(response))
    }

    /// Deletes what lives in a range, in key order; the header is the caller's.
    pub(super) fn delete_step(
        &mut self,
        values: &dyn Values,
        step: &mut Step,
        request: pb::DeleteRangeRequest,
        waiting: bool,
    ) -> Result<pb::DeleteRangeResponse, StorageError> {
        let range = KeyRange::from_etcd(request.key, request.range_end);
        let found = self.index.range(&range, step.begin.next(), 0);
        let mut response = pb::DeleteRangeResponse::default();
        // Read before the first delete: a failed read must leave nothing behind.
        if request.prev_kv && waiting {
            for meta in &found {
                let event = self.event(values, &meta.key, meta.mod_revision, meta.sub)?;
                response.prev_kvs.push(key_value(meta, Some(&event)));
            }
        }
        response.deleted = i64::try_from(found.len()).expect("fewer keys than i64::MAX");
        for meta in &found {
            self.delete_key(step, meta);
        }
        Ok(response)
    }

    /// Deletes one live key.
    pub(super) fn delete_key(&mut self, step: &mut Step, meta: &KeyMeta) {
        let prev = self.before(step, meta);
        self.record(Event::delete(step.begin.next(), step.sub, &meta.key, prev));
        step.sub += 1;
        self.attach(&meta.key, meta.lease, LeaseId(0));
    }

    /// Where a key's newest version below the revision in the making is, given its newest of all.
    fn before(&self, step: &Step, newest: &KeyMeta) -> Option<(Revision, u32)> {
        if newest.mod_revision <= step.begin {
            return Some((newest.mod_revision, newest.sub));
        }
        self.index.get(&newest.key, step.begin).map(|meta| (meta.mod_revision, meta.sub))
    }
}

/// The message of a version, with its value when its event is given.
pub(super) fn key_value(meta: &KeyMeta, event: Option<&Event>) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: meta.key.clone(),
        create_revision: meta.create_revision.0,
        mod_revision: meta.mod_revision.0,
        version: meta.version,
        value: event.map_or_else(bytes::Bytes::new, |event| bytes::Bytes::copy_from_slice(event.value())),
        lease: meta.lease.0,
    }
}
