//! Matching and encoding alone, for measurements.

use std::sync::Arc;

use bytes::BytesMut;
use tailwater_eventlog::{KeyRange, Revision, Term};

use crate::WatchFilter;
use crate::encode::{Head, NodeIds};
use crate::group::GroupKey;
use crate::inbox::Inbox;
use crate::registry::Registry;

/// Watchers, and who of them an event is for.
#[derive(Default)]
pub struct Matching {
    registry: Registry,
    hits: Vec<usize>,
}

impl Matching {
    /// Adds a watcher.
    pub fn watch(&mut self, range: &KeyRange) {
        let key = GroupKey::new(range, WatchFilter::default(), false);
        self.registry.acquire(key, 0, &Arc::new(Inbox::new(1)));
    }

    /// How many ranges the key lies in.
    pub fn find(&mut self, key: &[u8]) -> usize {
        self.hits.clear();
        self.registry.find(key, &mut self.hits);
        self.hits.len()
    }
}

/// Appends what stands in front of the events of a response.
pub fn put_head(out: &mut BytesMut, revision: Revision) {
    let head = Head { revision, term: Term(2), watch_id: 3, ..Head::default() };
    head.put(out, NodeIds { cluster_id: 1 << 60, member_id: 1 << 61 }, 512);
}
