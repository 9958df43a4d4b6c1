//! Ranges inside a txn, with etcd's order of fetching, filtering, sorting and cutting.

use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::range_request::{SortOrder, SortTarget};
use tailwater_api::mvccpb::KeyValue;
use tailwater_eventlog::{KeyMeta, KeyRange, Revision, StorageError};

use super::kv::{Step, key_value};
use super::{Machine, MachineError, Values, header};
use crate::ApplyError;

impl Machine {
    /// A range's revision must be readable, seen from before the txn.
    pub(super) fn check_range(&self, request: &pb::RangeRequest) -> Result<(), MachineError> {
        if request.revision == 0 {
            return Ok(());
        }
        if request.revision > self.state.revision.0 {
            return Err(ApplyError::FutureRevision.into());
        }
        // Before the first compaction etcd's compacted revision is -1.
        if self.state.compacted.0 > 0 && request.revision < self.state.compacted.0 {
            return Err(ApplyError::Compacted.into());
        }
        Ok(())
    }

    /// Reads a range as the txn sees it now.
    pub(super) fn range_step(
        &self,
        values: &dyn Values,
        step: &Step,
        request: &pb::RangeRequest,
    ) -> Result<pb::RangeResponse, StorageError> {
        let range = KeyRange::from_etcd(request.key.clone(), request.range_end.clone());
        let current = step.revision();
        let at = if request.revision > 0 { Revision(request.revision) } else { current };
        let mut response = pb::RangeResponse { header: header(current), ..Default::default() };
        response.count = i64::try_from(self.index.count(&range, at)).expect("fewer keys than i64::MAX");
        if request.count_only {
            return Ok(response);
        }
        let limit = usize::try_from(request.limit).unwrap_or(0);
        let mut found = self.index.range(&range, at, fetch_limit(request, limit));
        found.retain(|meta| passes(request, meta));
        let mut kvs = Vec::with_capacity(found.len());
        let by_value = sort_target(request) == SortTarget::Value && sort_order(request).is_some();
        for meta in &found {
            let event = match request.keys_only && !by_value {
                true => None,
                false => Some(self.event(values, &meta.key, meta.mod_revision, meta.sub)?),
            };
            kvs.push(key_value(meta, event.as_deref()));
        }
        sort(request, &mut kvs);
        if limit > 0 && kvs.len() > limit {
            kvs.truncate(limit);
            response.more = true;
        }
        if request.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = bytes::Bytes::new());
        }
        response.kvs = kvs;
        Ok(response)
    }
}

/// How many keys to look at: one above the limit shows whether there are more; an order or a filter needs them all.
/// A target without an order does not count as an order here, so it sorts only the lowest keys: etcd's quirk.
fn fetch_limit(request: &pb::RangeRequest, limit: usize) -> usize {
    let filtered = request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0;
    if limit == 0 || filtered || request.sort_order() != SortOrder::None { 0 } else { limit.saturating_add(1) }
}

/// The revision filters; bounds are inclusive and 0 is no bound.
fn passes(request: &pb::RangeRequest, meta: &KeyMeta) -> bool {
    let within = |value: i64, min: i64, max: i64| (min == 0 || value >= min) && (max == 0 || value <= max);
    within(meta.mod_revision.0, request.min_mod_revision, request.max_mod_revision)
        && within(meta.create_revision.0, request.min_create_revision, request.max_create_revision)
}

fn sort_target(request: &pb::RangeRequest) -> SortTarget {
    request.sort_target()
}

/// `None` where the order of the index is what is asked for.
fn sort_order(request: &pb::RangeRequest) -> Option<SortOrder> {
    match (request.sort_order(), sort_target(request)) {
        (SortOrder::None | SortOrder::Ascend, SortTarget::Key) => None,
        (SortOrder::None | SortOrder::Ascend, _) => Some(SortOrder::Ascend),
        (SortOrder::Descend, _) => Some(SortOrder::Descend),
    }
}

fn sort(request: &pb::RangeRequest, kvs: &mut [KeyValue]) {
    let Some(order) = sort_order(request) else { return };
    match sort_target(request) {
        SortTarget::Key => kvs.sort_by(|a, b| a.key.cmp(&b.key)),
        SortTarget::Version => kvs.sort_by_key(|kv| kv.version),
        SortTarget::Create => kvs.sort_by_key(|kv| kv.create_revision),
        SortTarget::Mod => kvs.sort_by_key(|kv| kv.mod_revision),
        SortTarget::Value => kvs.sort_by(|a, b| a.value.cmp(&b.value)),
    }
    if order == SortOrder::Descend {
        kvs.reverse();
    }
}
