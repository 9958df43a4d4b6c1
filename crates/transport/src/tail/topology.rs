//! Who reads from a node now.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tailwater_eventlog::{Cursor, MemberId};

use super::description::NodeDescription;

/// The readers of one node; clones share it. As many as streams are served, so it needs no bound of its own.
#[derive(Clone, Debug, Default)]
pub struct Topology {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    last_number: u64,
    readers: BTreeMap<u64, NodeDescription>,
}

impl Topology {
    /// A reader has come; it is known until the answer is dropped.
    #[must_use]
    pub fn enter(&self, reader: NodeDescription) -> Reader {
        let mut inner = self.inner.lock();
        inner.last_number += 1;
        let number = inner.last_number;
        let id = reader.id;
        inner.readers.insert(number, reader);
        Reader { topology: self.clone(), number, id }
    }

    /// The readers now, in the order of their ids. One that reads again before its earlier stream was found broken is
    /// there once, as it came last.
    #[must_use]
    pub fn readers(&self) -> Vec<NodeDescription> {
        let inner = self.inner.lock();
        let newest: BTreeMap<_, _> = inner.readers.values().map(|reader| (reader.id, reader.clone())).collect();
        newest.into_values().collect()
    }
}

/// A reader that is here.
#[derive(Debug)]
pub struct Reader {
    topology: Topology,
    number: u64,
    id: MemberId,
}

impl Reader {
    /// Of the node that reads.
    #[must_use]
    pub fn id(&self) -> MemberId {
        self.id
    }

    /// Everything up to here was sent to it.
    pub fn reached(&self, cursor: Cursor) {
        if let Some(reader) = self.topology.inner.lock().readers.get_mut(&self.number) {
            reader.reached = cursor;
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.topology.inner.lock().readers.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use tailwater_eventlog::Revision;

    use super::*;

    fn node(id: u64, name: &str) -> NodeDescription {
        NodeDescription { id: MemberId(id), name: name.into(), ..Default::default() }
    }

    #[test]
    fn a_reader_is_known_while_it_reads() {
        let topology = Topology::default();
        let one = topology.enter(node(2, "one"));
        let other = topology.enter(node(1, "other"));
        one.reached(Cursor { revision: Revision(9), ..Default::default() });
        let readers = topology.readers();
        assert_eq!(readers.iter().map(|reader| reader.id.0).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(readers[1].reached.revision, Revision(9));
        drop(one);
        assert_eq!(topology.readers(), [node(1, "other")]);
        drop(other);
        assert!(topology.readers().is_empty());
    }

    #[test]
    fn one_that_came_back_is_there_once() {
        let topology = Topology::default();
        let old = topology.enter(node(1, "old"));
        let new = topology.enter(node(1, "new"));
        assert_eq!(topology.readers(), [node(1, "new")]);
        drop(old);
        assert_eq!(topology.readers(), [node(1, "new")]);
        drop(new);
    }
}
