//! What must hold of the machine, whatever commands and rows it is given. Called by the fuzz targets and by the tests that
//! replay what those have found.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tailwater_api::write::{Bootstrap, Caller, Command as Sent};
use tailwater_api::{tail, write::command::Command};
use tailwater_eventlog::{Event, KeyIndex, LogState, Position, Revision, StorageError, Term};

use super::{Machine, MachineError, Values};
use crate::{RestoredState, StoredState};

/// Keys that the index looks at in one step.
const INDEX_KEYS: usize = 3;

/// A member without a disk.
struct Member {
    machine: Machine,
    events: BTreeMap<(Revision, u32), Arc<Event>>,
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// The events that a member has written.
struct Written<'a>(&'a BTreeMap<(Revision, u32), Arc<Event>>);

impl Values for Written<'_> {
    fn event(&self, _key: &[u8], revision: Revision, sub: u32) -> Result<Option<Arc<Event>>, StorageError> {
        Ok(self.0.get(&(revision, sub)).cloned())
    }
}

impl Member {
    fn new() -> Self {
        let machine = loaded(KeyIndex::default(), LogState::default(), &BTreeMap::new());
        Self { machine, events: BTreeMap::new(), rows: BTreeMap::new() }
    }

    /// Applies one command, writes what it did, and tells all of it as text.
    fn apply(&mut self, caller: Option<&Caller>, command: Option<Command>) -> String {
        let position = Position(self.machine.state().applied.0 + 1);
        self.machine.advance(position, Term(1));
        let answer = match self.machine.apply(&Written(&self.events), caller, command, true) {
            Err(MachineError::Storage(error)) => panic!("memory has every event: {error}"),
            answer => answer,
        };
        let output = self.machine.take_output();
        for event in &output.write.events {
            assert!(event.revision() <= output.write.log_state.revision, "an event from later: {event:?}");
            self.events.insert((event.revision(), event.sub()), Arc::clone(event));
        }
        for (key, value) in &output.write.state {
            match value {
                Some(value) => self.rows.insert(key.clone(), value.clone()),
                None => self.rows.remove(key),
            };
        }
        let state = self.machine.state();
        assert!(state.compacted <= state.revision, "compacted above the revision: {state:?}");
        format!("{answer:?} {output:?}")
    }

    /// As after a restart: from what was written alone.
    fn restart(&mut self) {
        let mut index = KeyIndex::default();
        self.events.values().for_each(|event| index.insert(event));
        self.machine = loaded(index, self.machine.state(), &self.rows);
    }
}

fn loaded(index: KeyIndex, state: LogState, rows: &BTreeMap<Vec<u8>, Vec<u8>>) -> Machine {
    let rows = rows.iter().map(|(key, value)| (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
    Machine::load(index, state, rows).expect("rows as they were written")
}

/// Applies commands on two members, of which one forgets what no read can see, and the other begins anew from what it has
/// written after each `restart_every` commands. Both do the same, or this panics. Of commands that come from clients only
/// those may be given that a gateway lets through. `true` when something was applied.
///
/// # Panics
/// The members differ, or an invariant of the machine is broken.
#[must_use]
pub fn same_everywhere(commands: Vec<Sent>, restart_every: usize) -> bool {
    let (mut one, mut other) = (Member::new(), Member::new());
    let members = vec![tail::Member { id: 7, ..Default::default() }];
    let begin = Command::Bootstrap(Bootstrap { history_id: 5, cluster_id: 9, members, ..Default::default() });
    assert_eq!(one.apply(None, Some(begin.clone())), other.apply(None, Some(begin)));
    let before = one.machine.state().revision;
    for (at, sent) in commands.into_iter().enumerate() {
        let answers = [&mut one, &mut other].map(|member| member.apply(sent.caller.as_ref(), sent.command.clone()));
        assert_eq!(answers[0], answers[1], "two members after {sent:?}");
        one.machine.index_step(INDEX_KEYS);
        if at % restart_every.max(1) == 0 {
            other.restart();
        }
    }
    one.machine.state().revision > before
}

/// Rows of a machine's state, as a backup has them: what can be read is the same when it is written and read again.
///
/// # Panics
/// It is not.
#[must_use]
pub fn stored_rows(rows: &[(Bytes, Bytes)]) -> bool {
    let Ok(stored) = StoredState::from_rows(LogState::default(), rows) else { return false };
    let (leases, alarms, auth) = (stored.leases.clone(), stored.alarms.clone(), stored.auth.clone());
    let restored = RestoredState { leases, alarms, auth, digest: b"digest".to_vec() };
    let again = restored.to_rows().expect("users and roles were read").into_iter();
    let again: Vec<(Bytes, Bytes)> = again.map(|(key, value)| (key.into(), value.into())).collect();
    let again = StoredState::from_rows(LogState::default(), &again).expect("just written");
    let auth = |state: &StoredState| tailwater_eventlog::AuthFacts { token_secret: Bytes::new(), ..state.auth.clone() };
    assert_eq!((&again.leases, &again.alarms, auth(&again)), (&stored.leases, &stored.alarms, auth(&stored)));
    true
}

/// Rows as a machine writes them.
#[must_use]
pub fn written_rows(commands: Vec<Sent>) -> Vec<(Bytes, Bytes)> {
    let mut member = Member::new();
    for sent in commands {
        member.apply(None, sent.command);
    }
    member.rows.into_iter().map(|(key, value)| (key.into(), value.into())).collect()
}
