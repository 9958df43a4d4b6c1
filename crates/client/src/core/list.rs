//! A list that is being taken, and its difference from the state before.

use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdMap;
use tailwater_api::etcdserverpb::{RangeRequest, RangeResponse};
use tailwater_api::mvccpb::KeyValue;

use super::{Batch, Core, decoded};
use crate::object::{Change, Object, RelistCause, Snapshot, Stamp, Undecodable};

/// An answer to a list that can't be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadList {
    /// It does not say which revision it is of.
    #[error("the list has no revision")]
    NoRevision,
    /// A key does not come after the one before it.
    #[error("the list is not in the order of keys")]
    Order,
    /// It says that there is more, and has nothing.
    #[error("the list says that there is more, and has nothing")]
    Empty,
    /// It is of an older revision than what is held: history was lost, and what is held must not be taken for the same.
    #[error("the list is of an older revision than the cache")]
    Older,
}

/// What has come so far.
pub(super) struct Listing<T> {
    /// None: it is the first.
    cause: Option<RelistCause>,
    /// Of its first answer that tells one; 0 before.
    revision: i64,
    /// The key that the next page begins behind.
    last: Option<Bytes>,
    objects: OrdMap<Bytes, Arc<Object<T>>>,
    undecodable: OrdMap<Bytes, Arc<Undecodable>>,
}

impl<T> Listing<T> {
    pub(super) fn new(cause: Option<RelistCause>) -> Self {
        Self { cause, revision: 0, last: None, objects: OrdMap::new(), undecodable: OrdMap::new() }
    }

    /// Whether what is held is the same write as what was listed. Two histories may have different writes of one stamp.
    fn is_same(&self, held: Stamp, listed: Stamp) -> bool {
        held == listed && !matches!(self.cause, Some(RelistCause::HistoryLost { .. }))
    }
}

impl<T> Core<T> {
    /// The list begins anew: it broke, or its revision was compacted.
    pub(crate) fn restart_list(&mut self) {
        if let Some(listing) = &mut self.listing {
            *listing = Listing::new(listing.cause);
        }
    }

    /// Whether a part of the list is here, at a revision that the rest can be read at, by any server.
    pub(crate) fn is_between_pages(&self) -> bool {
        self.listing.as_ref().is_some_and(|listing| listing.revision != 0)
    }

    /// The request for the whole range as a stream.
    pub(crate) fn list_request(&self) -> RangeRequest {
        RangeRequest { key: self.range.key.clone(), range_end: self.range.end.clone(), ..Default::default() }
    }

    /// The request for the next page: the first at the servers' newest revision, the others at that of the first.
    pub(crate) fn page_request(&self) -> RangeRequest {
        let mut request = RangeRequest { limit: self.page_size, ..self.list_request() };
        if let Some(Listing { revision, last: Some(last), .. }) = &self.listing {
            request.key = [last, &b"\0"[..]].concat().into();
            request.revision = *revision;
        }
        request
    }

    /// A page. The new state when it is the last one.
    ///
    /// # Errors
    /// It can't be right; the list has to begin anew.
    pub(crate) fn on_page(&mut self, page: RangeResponse) -> Result<Option<Batch<T>>, BadList> {
        let (is_empty, has_more) = (page.kvs.is_empty(), page.more);
        self.on_piece(page)?;
        match (has_more, is_empty) {
            (true, true) => Err(BadList::Empty),
            (true, false) if self.is_between_pages() => Ok(None),
            (true, false) => Err(BadList::NoRevision),
            (false, _) => self.on_list_end().map(Some),
        }
    }

    /// A piece of a streamed list; one of them, the last, tells the revision.
    ///
    /// # Errors
    /// As [`Core::on_page`].
    pub(crate) fn on_piece(&mut self, piece: RangeResponse) -> Result<(), BadList> {
        let Some(mut listing) = self.listing.take() else { return Ok(()) };
        if let Some(header) = piece.header.filter(|_| listing.revision == 0) {
            listing.revision = header.revision;
        }
        let added = piece.kvs.into_iter().try_for_each(|kv| self.add(&mut listing, kv));
        self.listing = Some(listing);
        added
    }

    fn add(&self, listing: &mut Listing<T>, kv: KeyValue) -> Result<(), BadList> {
        if listing.last.as_ref().is_some_and(|last| kv.key <= *last) {
            return Err(BadList::Order);
        }
        listing.last = Some(kv.key.clone());
        let stamp = Stamp::of(&kv);
        // What is held already is neither decoded nor stored twice.
        if let Some(held) = self.state.get(&kv.key).filter(|held| listing.is_same(held.stamp, stamp)) {
            listing.objects.insert(kv.key, held.clone());
            return Ok(());
        }
        let held = self.state.undecodable.get(&kv.key).filter(|held| listing.is_same(held.stamp, stamp));
        match held.map_or_else(|| decoded(&self.decode, kv), |held| Err(held.clone())) {
            Ok(object) => drop(listing.objects.insert(object.key.clone(), object)),
            Err(what) => drop(listing.undecodable.insert(what.key.clone(), what)),
        }
        Ok(())
    }

    /// The list is complete: the new state, and how it differs.
    ///
    /// # Errors
    /// As [`Core::on_page`].
    pub(crate) fn on_list_end(&mut self) -> Result<Batch<T>, BadList> {
        let Some(listing) = self.listing.take_if(|listing| listing.revision != 0) else {
            return Err(BadList::NoRevision);
        };
        let revision = listing.revision;
        if revision < self.state.revision && !matches!(listing.cause, Some(RelistCause::HistoryLost { .. })) {
            self.listing = Some(Listing::new(Some(RelistCause::HistoryLost { revision })));
            return Err(BadList::Older);
        }
        let is_first = self.state.revision == 0;
        let mut changes = Vec::new();
        if let Some(cause) = listing.cause.filter(|_| !is_first) {
            changes.push(Change::Relisted { cause, since: self.state.revision });
            self.difference(&listing, &mut changes);
            changes.push(Change::Synced { revision });
        }
        self.state = Snapshot { revision, objects: listing.objects, undecodable: listing.undecodable };
        Ok(Batch { changes, state: self.state.clone(), is_first })
    }

    /// How the list differs from the state: deletes in the order of keys, then changes in the order of revisions.
    fn difference(&self, listing: &Listing<T>, changes: &mut Vec<Change<T>>) {
        let is_gone = |key: &Bytes| !listing.objects.contains_key(key) && !listing.undecodable.contains_key(key);
        let gone = self.state.iter().filter(|old| is_gone(&old.key));
        changes.extend(gone.map(|old| Change::Deleted { old: old.clone(), revision: listing.revision }));
        // Whether it was told before.
        let is_told = |key: &Bytes, stamp| self.state.stamp(key).is_some_and(|held| listing.is_same(held, stamp));
        let mut changed: Vec<(i64, Change<T>)> = Vec::new();
        for new in listing.objects.values().filter(|new| !is_told(&new.key, new.stamp)) {
            let old = self.state.get(&new.key).cloned();
            changed.push((new.mod_revision(), Change::Applied { old, new: new.clone() }));
        }
        for what in listing.undecodable.values().filter(|what| !is_told(&what.key, what.stamp)) {
            let old = self.state.get(&what.key).cloned();
            changed.push((what.stamp.mod_revision, Change::Undecodable { what: what.clone(), old }));
        }
        changed.sort_by_key(|(revision, _)| *revision);
        changes.extend(changed.into_iter().map(|(_, change)| change));
    }
}
