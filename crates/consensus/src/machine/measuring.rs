//! The state machine alone, for measurements.

use std::sync::Arc;

use bytes::Bytes;
use tailwater_api::etcdserverpb::PutRequest;
use tailwater_api::write::Bootstrap;
use tailwater_api::{tail, write::command::Command};
use tailwater_eventlog::{Event, KeyIndex, LogState, Position, Revision, StorageError, Term};

use super::{Machine, Values};

/// Commands of a batch.
const BATCH: u64 = 64;

/// A member that writes nothing.
pub struct Applying {
    machine: Machine,
}

/// A put reads nothing.
struct Nothing;

impl Values for Nothing {
    fn event(&self, _key: &[u8], _revision: Revision, _sub: u32) -> Result<Option<Arc<Event>>, StorageError> {
        Ok(None)
    }
}

impl Default for Applying {
    fn default() -> Self {
        let machine = Machine::load(KeyIndex::default(), LogState::default(), std::iter::empty()).expect("no rows");
        let mut applying = Self { machine };
        let members = vec![tail::Member { id: 7, ..Default::default() }];
        applying.apply(Command::Bootstrap(Bootstrap { history_id: 5, cluster_id: 9, members, ..Default::default() }));
        applying
    }
}

impl Applying {
    /// Applies a put; what a batch has gathered is dropped where a member would write it.
    ///
    /// # Panics
    /// The machine refuses it.
    pub fn put(&mut self, key: Bytes, value: Bytes) {
        self.apply(Command::Put(PutRequest { key, value, ..Default::default() }));
    }

    fn apply(&mut self, command: Command) {
        let position = Position(self.machine.state().applied.0 + 1);
        self.machine.advance(position, Term(1));
        self.machine.apply(&Nothing, None, Some(command), true).expect("a command that is let through");
        if position.0.is_multiple_of(BATCH) {
            self.machine.take_output();
        }
    }
}
