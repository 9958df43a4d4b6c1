#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use bytes::Bytes;
use tailwater_api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use tailwater_api::etcdserverpb::range_request::{SortOrder, SortTarget};
use tailwater_api::etcdserverpb::request_op::Request;
use tailwater_api::etcdserverpb::response_op::Response;
use tailwater_api::write;

use super::*;

mod auth;

const TTL_ABOVE_MAX: i64 = 9_000_000_001;

/// Rows by (revision, sub), and the state rows.
#[derive(Default)]
struct Memory {
    events: HashMap<(Revision, u32), Arc<Event>>,
    state: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Values for Memory {
    fn event(&self, _key: &[u8], revision: Revision, sub: u32) -> Result<Option<Arc<Event>>, StorageError> {
        Ok(self.events.get(&(revision, sub)).cloned())
    }
}

struct World {
    machine: Machine,
    memory: Memory,
    last: Output,
}

impl World {
    fn new() -> Self {
        let machine = Machine::load(KeyIndex::default(), LogState::default(), []).unwrap();
        let mut world = Self { machine, memory: Memory::default(), last: Output::default() };
        let members = vec![tailwater_api::tail::Member { id: 7, ..Default::default() }];
        let bootstrap = write::Bootstrap { history_id: 5, cluster_id: 9, members, ..Default::default() };
        world.run(Command::Bootstrap(bootstrap)).unwrap();
        world
    }

    fn run(&mut self, command: Command) -> Result<Answer, ApplyError> {
        self.run_as(None, command)
    }

    fn run_as(&mut self, caller: Option<Caller>, command: Command) -> Result<Answer, ApplyError> {
        let position = Position(self.machine.state().applied.0 + 1);
        self.machine.advance(position, Term(1));
        let answer = match self.machine.apply(&self.memory, caller.as_ref(), Some(command), true) {
            Ok(answer) => Ok(answer),
            Err(MachineError::Refused(refused)) => Err(refused),
            Err(error) => panic!("{error}"),
        };
        self.last = self.machine.take_output();
        for event in &self.last.write.events {
            self.memory.events.insert((event.envelope().revision, event.envelope().sub), Arc::clone(event));
        }
        for (key, value) in &self.last.write.state {
            match value {
                Some(value) => self.memory.state.insert(key.clone(), value.clone()),
                None => self.memory.state.remove(key),
            };
        }
        answer
    }

    fn put(&mut self, key: &'static str, value: &'static str) -> pb::PutResponse {
        match self.run(Command::Put(put(key, value))) {
            Ok(Answer::Put(response)) => response,
            other => panic!("{other:?}"),
        }
    }

    fn txn(&mut self, txn: pb::TxnRequest) -> Result<pb::TxnResponse, ApplyError> {
        self.run(Command::Txn(txn)).map(|answer| match answer {
            Answer::Txn(response) => response,
            other => panic!("{other:?}"),
        })
    }

    fn range(&mut self, range: pb::RangeRequest) -> pb::RangeResponse {
        let response = self.txn(then([Request::RequestRange(range)])).unwrap();
        match response.responses.into_iter().next().unwrap().response {
            Some(Response::ResponseRange(range)) => range,
            other => panic!("{other:?}"),
        }
    }

    fn revision(&self) -> i64 {
        self.machine.state().revision.0
    }
}

fn put(key: &'static str, value: &'static str) -> pb::PutRequest {
    pb::PutRequest { key: key.into(), value: value.into(), ..Default::default() }
}

fn delete(key: &'static str, end: &'static str) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: key.into(), range_end: end.into(), prev_kv: true }
}

fn all() -> pb::RangeRequest {
    pb::RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() }
}

fn then<const N: usize>(ops: [Request; N]) -> pb::TxnRequest {
    let success = ops.into_iter().map(|op| pb::RequestOp { request: Some(op) }).collect();
    pb::TxnRequest { success, ..Default::default() }
}

fn keys(response: &pb::RangeResponse) -> Vec<String> {
    response.kvs.iter().map(|kv| String::from_utf8(kv.key.to_vec()).unwrap()).collect()
}

#[test]
fn first_write_of_a_history_makes_revision_two() {
    let mut world = World::new();
    assert_eq!(world.revision(), 1);
    assert_eq!(world.put("a", "1").header.unwrap().revision, 2);
    let request = pb::PutRequest { prev_kv: true, ..put("a", "2") };
    let Ok(Answer::Put(response)) = world.run(Command::Put(request)) else { panic!("a put") };
    let previous = response.prev_kv.unwrap();
    assert_eq!((previous.value.as_ref(), previous.version, previous.mod_revision), (&b"1"[..], 1, 2));
    assert_eq!(world.last.write.events[0].envelope().prev, Some((Revision(2), 0)));
}

#[test]
fn deleting_nothing_makes_no_revision() {
    let mut world = World::new();
    world.put("a", "1");
    world.run(Command::DeleteRange(delete("b", ""))).unwrap();
    world.run(Command::DeleteRange(delete("z", "a"))).unwrap();
    assert_eq!(world.revision(), 2);
    let Ok(Answer::DeleteRange(response)) = world.run(Command::DeleteRange(delete("a", "z"))) else { panic!() };
    assert_eq!((response.deleted, response.prev_kvs.len(), response.header.unwrap().revision), (1, 1, 3));
}

#[test]
fn ops_see_earlier_ops_and_prev_looks_below_the_revision() {
    let mut world = World::new();
    world.put("a", "old");
    let nested = then([Request::RequestDeleteRange(delete("a", ""))]);
    let response = world
        .txn(then([
            Request::RequestPut(put("a", "new")),
            Request::RequestRange(all()),
            Request::RequestTxn(nested),
            Request::RequestRange(all()),
        ]))
        .unwrap();
    assert_eq!(response.header.unwrap().revision, 3);
    let Some(Response::ResponseRange(seen)) = &response.responses[1].response else { panic!() };
    assert_eq!((seen.kvs[0].value.as_ref(), seen.header.as_ref().unwrap().revision), (&b"new"[..], 3));
    let Some(Response::ResponseRange(gone)) = &response.responses[3].response else { panic!() };
    assert_eq!(gone.count, 0);
    let events = &world.last.write.events;
    assert_eq!(events.len(), 2);
    assert_eq!(events[1].envelope().sub, 1);
    assert_eq!(events[1].envelope().prev, Some((Revision(2), 0)), "not the put of the same revision");
}

#[test]
fn a_key_deleted_and_made_again_in_one_revision_has_no_previous_version() {
    let mut world = World::new();
    world.put("a", "old");
    world.txn(then([Request::RequestDeleteRange(delete("a", "")), Request::RequestPut(put("a", "new"))])).unwrap();
    let prev: Vec<_> = world.last.write.events.iter().map(|event| event.envelope().prev).collect();
    assert_eq!(prev, [Some((Revision(2), 0)), None]);
    assert_eq!(world.last.write.events[1].envelope().create_revision, Revision(3));
}

#[test]
fn nested_compares_see_the_state_before_the_txn() {
    let mut world = World::new();
    let missing = pb::Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Mod as i32,
        key: "a".into(),
        target_union: Some(TargetUnion::ModRevision(0)),
        ..Default::default()
    };
    let mut nested = then([Request::RequestPut(put("b", "yes"))]);
    nested.compare.push(missing);
    world.txn(then([Request::RequestPut(put("a", "1")), Request::RequestTxn(nested)])).unwrap();
    assert_eq!(keys(&world.range(all())), ["a", "b"]);
}

#[test]
fn value_compare_of_a_missing_key_never_holds() {
    let mut world = World::new();
    for result in [CompareResult::Equal, CompareResult::NotEqual, CompareResult::Less] {
        let compare = pb::Compare {
            result: result as i32,
            target: CompareTarget::Value as i32,
            key: "a".into(),
            target_union: Some(TargetUnion::Value(Bytes::new())),
            ..Default::default()
        };
        let txn = pb::TxnRequest { compare: vec![compare], ..Default::default() };
        assert!(!world.txn(txn).unwrap().succeeded);
    }
}

#[test]
fn a_failed_check_leaves_nothing_behind() {
    let mut world = World::new();
    let orphan = pb::PutRequest { lease: 99, ..put("b", "1") };
    let result = world.txn(then([Request::RequestPut(put("a", "1")), Request::RequestPut(orphan)]));
    assert_eq!(result, Err(ApplyError::LeaseNotFound));
    let future = pb::RangeRequest { revision: 2, ..all() };
    let result = world.txn(then([Request::RequestPut(put("a", "1")), Request::RequestRange(future)]));
    assert_eq!(result, Err(ApplyError::FutureRevision));
    let keep = pb::PutRequest { ignore_value: true, ..put("c", "") };
    assert_eq!(world.run(Command::Put(keep)), Err(ApplyError::KeyNotFound));
    assert_eq!((world.revision(), world.last.write.events.len()), (1, 0));
}

#[test]
fn the_first_op_that_fails_a_check_names_the_error() {
    let mut world = World::new();
    let orphan = || Request::RequestPut(pb::PutRequest { lease: 99, ..put("a", "1") });
    let future = || Request::RequestRange(pb::RangeRequest { revision: 2, ..all() });
    let nested = |op| Request::RequestTxn(then([op]));
    assert_eq!(world.txn(then([orphan(), future()])), Err(ApplyError::LeaseNotFound));
    assert_eq!(world.txn(then([future(), orphan()])), Err(ApplyError::FutureRevision));
    assert_eq!(world.txn(then([nested(future()), orphan()])), Err(ApplyError::FutureRevision));
    assert_eq!(world.txn(then([orphan(), nested(future())])), Err(ApplyError::LeaseNotFound));
}

#[test]
fn a_target_without_an_order_sorts_only_the_lowest_keys() {
    let mut world = World::new();
    for key in ["c", "b", "a"] {
        world.put(key, "1");
    }
    let by_mod = pb::RangeRequest { limit: 1, sort_target: SortTarget::Mod as i32, ..all() };
    let response = world.range(by_mod.clone());
    assert_eq!((keys(&response), response.more, response.count), (vec!["b".to_owned()], true, 3));
    let ascending = pb::RangeRequest { sort_order: SortOrder::Ascend as i32, ..by_mod };
    assert_eq!(keys(&world.range(ascending)), ["c"]);
    let filtered = pb::RangeRequest { min_mod_revision: 3, ..all() };
    let response = world.range(filtered);
    assert_eq!((keys(&response), response.count), (vec!["a".to_owned(), "b".to_owned()], 3));
    let keys_only = world.range(pb::RangeRequest { keys_only: true, ..all() });
    assert!(keys_only.kvs.iter().all(|kv| kv.value.is_empty() && kv.version == 1));
}

#[test]
fn compaction_bounds_are_etcds() {
    let mut world = World::new();
    for _ in 0..4 {
        world.put("a", "1");
    }
    let compact = |revision| Command::Compact(pb::CompactionRequest { revision, physical: false });
    assert_eq!(world.run(compact(6)), Err(ApplyError::FutureRevision));
    assert_eq!(world.run(compact(-1)), Err(ApplyError::Compacted));
    world.run(compact(0)).unwrap();
    assert_eq!(world.run(compact(0)), Err(ApplyError::Compacted));
    world.run(compact(4)).unwrap();
    assert_eq!(world.last.facts, [Fact::Compacted(Revision(4))]);
    assert_eq!(world.run(compact(0)), Err(ApplyError::Compacted));
    assert_eq!(world.run(compact(4)), Err(ApplyError::Compacted));
    let below = then([Request::RequestRange(pb::RangeRequest { revision: 3, ..all() })]);
    assert_eq!(world.txn(below), Err(ApplyError::Compacted));
    assert_eq!(world.range(pb::RangeRequest { revision: 4, ..all() }).kvs[0].mod_revision, 4);
    while !world.machine.index_step(1) {}
    assert_eq!(world.range(pb::RangeRequest { revision: 4, ..all() }).kvs[0].mod_revision, 4);
}

#[test]
fn revoking_deletes_attached_keys_in_order_in_one_revision() {
    let mut world = World::new();
    let grant = |id| Command::LeaseGrant(pb::LeaseGrantRequest { id, ttl: 10 });
    world.run(grant(-3)).unwrap();
    assert_eq!(world.run(grant(-3)), Err(ApplyError::LeaseExists));
    for key in ["z", "b", "moved"] {
        world.run(Command::Put(pb::PutRequest { lease: -3, ..put(key, "1") })).unwrap();
    }
    world.put("moved", "2");
    assert_eq!(world.machine.lease_keys(LeaseId(-3)).unwrap(), ["b", "z"]);
    let revoke = Command::LeaseRevoke(pb::LeaseRevokeRequest { id: -3 });
    world.run(revoke.clone()).unwrap();
    let deleted: Vec<_> = world.last.write.events.iter().map(|event| event.key().to_vec()).collect();
    assert_eq!(deleted, [b"b".to_vec(), b"z".to_vec()]);
    assert_eq!(world.revision(), 6);
    assert_eq!(world.run(revoke), Err(ApplyError::LeaseNotFound));
}

#[test]
fn keys_come_to_a_lease_and_leave_it_as_in_etcd() {
    let mut world = World::new();
    let grant = |id, ttl| Command::LeaseGrant(pb::LeaseGrantRequest { id, ttl });
    for id in [1, 2] {
        world.run(grant(id, 10)).unwrap();
    }
    // The TTL is checked before the id.
    assert_eq!(world.run(grant(1, TTL_ABOVE_MAX)), Err(ApplyError::LeaseTtlTooLarge));
    world.run(grant(3, TTL_ABOVE_MAX - 1)).unwrap();
    let leased = |key, lease| Command::Put(pb::PutRequest { lease, ..put(key, "1") });
    let keys = |world: &World, id| world.machine.lease_keys(LeaseId(id)).unwrap();
    for key in ["a", "b", "c", "d"] {
        world.run(leased(key, 1)).unwrap();
    }
    world.put("a", "2");
    world.run(leased("b", 2)).unwrap();
    world.run(Command::DeleteRange(delete("c", ""))).unwrap();
    let kept = pb::PutRequest { ignore_lease: true, ..put("d", "2") };
    world.run(Command::Put(kept)).unwrap();
    assert_eq!((keys(&world, 1), keys(&world, 2)), (vec![Bytes::from("d")], vec![Bytes::from("b")]));
    assert_eq!(world.run(leased("a", 9)), Err(ApplyError::LeaseNotFound));
    // In a txn: out of one lease and into another, and out by a delete.
    let moved = pb::PutRequest { lease: 2, ..put("d", "3") };
    world.txn(then([Request::RequestPut(moved), Request::RequestDeleteRange(delete("b", ""))])).unwrap();
    assert_eq!((keys(&world, 1), keys(&world, 2)), (vec![], vec![Bytes::from("d")]));
    // A lease without keys goes without a revision.
    let before = world.revision();
    world.run(Command::LeaseRevoke(pb::LeaseRevokeRequest { id: 1 })).unwrap();
    assert_eq!(world.revision(), before);
    // Expiry is a revision for each lease that had keys; one that is gone already is passed over.
    world.run(leased("e", 3)).unwrap();
    world.run(Command::LeaseExpire(write::LeaseExpire { ids: vec![3, 1, 2] })).unwrap();
    let deleted: Vec<_> = world.last.write.events.iter().map(|event| (event.key(), event.revision().0)).collect();
    assert_eq!(deleted, [(&b"e"[..], before + 2), (&b"d"[..], before + 3)]);
    assert!(world.machine.leases().is_empty());
}

#[test]
fn no_space_forbids_what_needs_space_and_nothing_else() {
    let mut world = World::new();
    world.put("a", "1");
    let alarm = |action, kind| Command::Alarm(pb::AlarmRequest { action, member_id: 7, alarm: kind });
    world.run(alarm(1, 1)).unwrap();
    assert_eq!(world.run(Command::Put(put("a", "2"))), Err(ApplyError::NoSpace));
    assert_eq!(world.txn(then([Request::RequestPut(put("a", "2"))])), Err(ApplyError::NoSpace));
    world.run(Command::DeleteRange(delete("a", ""))).unwrap();
    world.run(alarm(2, 1)).unwrap();
    let Ok(Answer::Alarm(left)) = world.run(alarm(0, 0)) else { panic!() };
    assert!(left.alarms.is_empty());
    world.put("a", "3");
}

#[test]
fn stored_state_rebuilds_the_same_machine() {
    let mut world = World::new();
    world.run(Command::LeaseGrant(pb::LeaseGrantRequest { id: 4, ttl: 60 })).unwrap();
    world.run(Command::Put(pb::PutRequest { lease: 4, ..put("k", "1") })).unwrap();
    world.run(Command::SetClusterVersion(write::SetClusterVersion { version: "3.6.0".into() })).unwrap();
    world.run(Command::Compact(pb::CompactionRequest::default())).unwrap();
    world.run(Command::Alarm(pb::AlarmRequest { action: 1, member_id: 7, alarm: 2 })).unwrap();
    let mut index = KeyIndex::default();
    let mut events: Vec<_> = world.memory.events.values().cloned().collect();
    events.sort_by_key(|event| (event.envelope().revision, event.envelope().sub));
    events.iter().for_each(|event| index.insert(event));
    let rows = world.memory.state.iter().map(|(key, value)| (key.clone().into(), value.clone().into()));
    let loaded = Machine::load(index, world.machine.state(), rows).unwrap();
    assert_eq!(loaded.leases(), world.machine.leases());
    assert_eq!(loaded.facts(), world.machine.facts());
    assert_eq!(loaded.group(), world.machine.group());
    assert_eq!(loaded.cluster_id, 9);
    assert!(loaded.compacted_at_zero);
    let torn = Machine::load(KeyIndex::default(), LogState::default(), [("lease/x".into(), "y".into())]);
    assert!(torn.is_err());
}
