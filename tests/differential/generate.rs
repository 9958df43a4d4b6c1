//! Random operations. The choices depend on the seed alone, so a seed replays; revisions are drawn relative to
//! what the reference has reached.

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::compare::TargetUnion;
use tailwater_api::etcdserverpb::request_op::Request as Op;

use crate::operation::{ASSIGNED_LEASES, Operation};

/// Few keys, so that operations meet; bytes at both ends of the order, and keys that are prefixes of others.
const KEYS: [&[u8]; 20] = [
    b"a",
    b"a\0",
    b"a/",
    b"a/b",
    b"a/b/c",
    b"a/c",
    b"a0",
    b"b",
    b"b/1",
    b"b/2",
    b"b/3",
    b"b/4",
    b"c",
    b"\0",
    b"\0\0",
    b"\xff",
    b"\xff\xff",
    b"k\xff",
    b"l",
    b"zz",
];
const VALUES: [&[u8]; 6] = [b"", b"0", b"1", b"v", b"value", b"\xff\x00"];
const PATHS: [&str; 9] = [
    "/etcdserverpb.KV/Range",
    "/etcdserverpb.KV/Put",
    "/etcdserverpb.KV/DeleteRange",
    "/etcdserverpb.KV/Txn",
    "/etcdserverpb.KV/Compact",
    "/etcdserverpb.Lease/LeaseGrant",
    "/etcdserverpb.Lease/LeaseRevoke",
    "/etcdserverpb.KV/Nothing",
    "/nobody.Service/Method",
];
/// Long enough that no lease of a run expires in it.
const TTLS: [i64; 4] = [5_000, 60_000, 9_000_000_000, 9_000_000_001];
pub(crate) const STREAMS: usize = 3;

/// What the choices are relative to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Revisions {
    /// Where the run began.
    pub(crate) first: i64,
    pub(crate) current: i64,
    pub(crate) compacted: i64,
    pub(crate) last_delete: i64,
}

/// The operations of one seed.
pub(crate) struct Generator {
    rng: StdRng,
    assigned: i64,
    at: Revisions,
}

impl Generator {
    pub(crate) fn new(seed: u64) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), assigned: ASSIGNED_LEASES, at: Revisions::default() }
    }

    pub(crate) fn next(&mut self, at: Revisions) -> Operation {
        let compacted = at.compacted > self.at.compacted;
        self.at = at;
        // A watch from the compacted revision, soon after: where bugs have been.
        if compacted && self.one_in(2) {
            let request = pb::WatchCreateRequest { start_revision: at.compacted, filters: vec![], ..self.watch() };
            let request = if self.one_in(2) {
                let every = Bytes::from_static(b"\0");
                pb::WatchCreateRequest { key: every.clone(), range_end: every, ..request }
            } else {
                request
            };
            return Operation::Watch { stream: self.stream(), request };
        }
        match self.rng.random_range(0..1000) {
            0..280 => Operation::Put(self.put()),
            280..480 => Operation::Range(self.range()),
            480..560 => Operation::Delete(self.delete()),
            560..700 => Operation::Txn(without_panic(self.txn(0))),
            700..720 => Operation::Compact(self.compact()),
            720..750 => self.grant(),
            750..765 => Operation::Revoke(self.lease()),
            765..780 => Operation::KeepAlive(self.lease()),
            780..800 => Operation::TimeToLive { id: self.lease(), keys: self.one_in(2) },
            800..805 => Operation::Leases,
            805..810 => Operation::Members { linearizable: self.one_in(2) },
            810..815 => Operation::Status,
            815..820 => Operation::Alarms,
            820..850 => self.raw(),
            850..940 => Operation::Watch { stream: self.stream(), request: self.watch() },
            940..975 => Operation::CancelWatch { stream: self.stream(), id: self.rng.random_range(-1..12) },
            975..994 => Operation::Progress { stream: self.stream() },
            _ => Operation::CloseStream { stream: self.stream() },
        }
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.rng.random_range(0..n) == 0
    }

    fn stream(&mut self) -> usize {
        self.rng.random_range(0..STREAMS)
    }

    fn key(&mut self) -> Bytes {
        if self.one_in(100) {
            return Bytes::new();
        }
        Bytes::from_static(KEYS[self.rng.random_range(0..KEYS.len())])
    }

    fn value(&mut self) -> Bytes {
        Bytes::from_static(VALUES[self.rng.random_range(0..VALUES.len())])
    }

    fn range_end(&mut self, key: &Bytes) -> Bytes {
        match self.rng.random_range(0..8) {
            0..3 => Bytes::new(),
            3 | 4 => prefix_end(key),
            5 => Bytes::from_static(b"\0"),
            _ => self.key(),
        }
    }

    fn lease(&mut self) -> i64 {
        match self.rng.random_range(0..10) {
            0 => -5,
            1 => 999,
            2 | 3 if self.assigned > ASSIGNED_LEASES => self.rng.random_range(ASSIGNED_LEASES..self.assigned),
            _ => self.rng.random_range(1..6),
        }
    }

    /// Mostly one that can be read; also compacted, future and negative ones.
    fn revision(&mut self) -> i64 {
        let Revisions { first, current, compacted, last_delete } = self.at;
        let low = compacted.max(first).min(current);
        match self.rng.random_range(0..20) {
            0 => -1,
            1 => current + self.rng.random_range(1..5),
            2 | 3 => (compacted - self.rng.random_range(0..3)).max(1),
            4 | 5 => compacted.max(1),
            6 | 7 => last_delete.max(1),
            8..12 => 0,
            _ => self.rng.random_range(low..=current),
        }
    }

    fn bound(&mut self) -> i64 {
        if self.one_in(6) { self.revision() } else { 0 }
    }

    fn put(&mut self) -> pb::PutRequest {
        let (ignore_value, ignore_lease) = (self.one_in(15), self.one_in(15));
        let value = if ignore_value && !self.one_in(4) { Bytes::new() } else { self.value() };
        let with_lease = self.one_in(4) && (!ignore_lease || self.one_in(4));
        let lease = if with_lease { self.lease() } else { 0 };
        pb::PutRequest { key: self.key(), value, lease, prev_kv: self.one_in(3), ignore_value, ignore_lease }
    }

    fn range(&mut self) -> pb::RangeRequest {
        let key = self.key();
        let (sort_order, sort_target) = match self.rng.random_range(0..40) {
            0 => (3, 0),
            1 => (1, 5),
            2 => (-1, 0),
            3..20 => (self.rng.random_range(0..3), self.rng.random_range(0..5)),
            _ => (0, 0),
        };
        pb::RangeRequest {
            range_end: self.range_end(&key),
            key,
            limit: if self.one_in(3) { self.rng.random_range(-1..6) } else { 0 },
            revision: if self.one_in(2) { self.revision() } else { 0 },
            sort_order,
            sort_target,
            serializable: self.one_in(3),
            keys_only: self.one_in(4),
            count_only: self.one_in(8),
            min_mod_revision: self.bound(),
            max_mod_revision: self.bound(),
            min_create_revision: self.bound(),
            max_create_revision: self.bound(),
        }
    }

    fn delete(&mut self) -> pb::DeleteRangeRequest {
        let key = self.key();
        // Whole-range deletes empty the store, so most are of one key.
        let range_end = if self.one_in(3) { self.range_end(&key) } else { Bytes::new() };
        pb::DeleteRangeRequest { key, range_end, prev_kv: self.one_in(2) }
    }

    fn compact(&mut self) -> pb::CompactionRequest {
        let Revisions { current, compacted, last_delete, .. } = self.at;
        let revision = match self.rng.random_range(0..10) {
            0 => self.revision(),
            1 => current,
            2..6 => last_delete,
            _ => self.rng.random_range(compacted.min(current)..=current),
        };
        pb::CompactionRequest { revision, physical: self.one_in(4) }
    }

    fn txn(&mut self, depth: u32) -> pb::TxnRequest {
        if depth == 0 && self.one_in(40) {
            let op = pb::RequestOp { request: Some(Op::RequestRange(self.range())) };
            let len = self.rng.random_range(127..131);
            return pb::TxnRequest { success: vec![op; len], ..Default::default() };
        }
        let compares = self.rng.random_range(0..3);
        pb::TxnRequest {
            compare: (0..compares).map(|_| self.compare()).collect(),
            success: self.ops(depth),
            failure: self.ops(depth),
        }
    }

    fn ops(&mut self, depth: u32) -> Vec<pb::RequestOp> {
        let len = self.rng.random_range(0..4);
        (0..len)
            .map(|_| {
                let request = match self.rng.random_range(0..40) {
                    0 => None,
                    1..14 => Some(Op::RequestRange(self.range())),
                    14..28 => Some(Op::RequestPut(self.put())),
                    28..34 => Some(Op::RequestDeleteRange(self.delete())),
                    _ if depth < 3 => Some(Op::RequestTxn(self.txn(depth + 1))),
                    _ => Some(Op::RequestPut(self.put())),
                };
                pb::RequestOp { request }
            })
            .collect()
    }

    fn compare(&mut self) -> pb::Compare {
        let key = self.key();
        let target = self.rng.random_range(0..5);
        let kind = if self.one_in(20) { self.rng.random_range(0..5) } else { target };
        let union = match kind {
            0 => TargetUnion::Version(self.rng.random_range(0..4)),
            1 => TargetUnion::CreateRevision(self.bound()),
            2 => TargetUnion::ModRevision(self.revision()),
            3 => TargetUnion::Value(self.value()),
            _ => TargetUnion::Lease(if self.one_in(2) { 0 } else { self.lease() }),
        };
        let result = if self.one_in(30) { 7 } else { self.rng.random_range(0..4) };
        // Of an id that each server chose itself it is known only whether a key has it: EQUAL and NOT_EQUAL.
        let is_assigned = matches!(union, TargetUnion::Lease(id) if id >= ASSIGNED_LEASES);
        let result = match result {
            1 if is_assigned => 0,
            2 if is_assigned => 3,
            _ => result,
        };
        pb::Compare {
            result,
            target: if self.one_in(60) { 9 } else { target },
            range_end: if self.one_in(3) { self.range_end(&key) } else { Bytes::new() },
            key,
            target_union: if self.one_in(20) { None } else { Some(union) },
        }
    }

    fn grant(&mut self) -> Operation {
        let ttl = if self.one_in(8) { TTLS[3] } else { TTLS[self.rng.random_range(0..3)] };
        if self.one_in(4) {
            self.assigned += 1;
            return Operation::GrantAssigned { ttl, id: self.assigned - 1 };
        }
        let id = if self.one_in(8) { -5 } else { self.rng.random_range(1..6) };
        Operation::Grant(pb::LeaseGrantRequest { ttl, id })
    }

    /// Bytes that are no message, a message that is too large, and methods that do not exist.
    fn raw(&mut self) -> Operation {
        let path = PATHS[self.rng.random_range(0..PATHS.len())];
        let body = match self.rng.random_range(0..8) {
            0 => Bytes::from_static(b"\x0a\xff"),
            1 => Bytes::from_static(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
            2 => Bytes::from_static(b"\x0a\x05ab"),
            // Not for leases: an empty grant makes one that nobody can name.
            3 if path.contains("KV/") => Bytes::new(),
            4 if path.ends_with("/Put") => large_put(1_600_000),
            5 if path.ends_with("/Put") => large_put(2_200_000),
            _ => Bytes::from_static(b"\x0b\x0c\x0f"),
        };
        Operation::Raw { path, body }
    }

    fn watch(&mut self) -> pb::WatchCreateRequest {
        let key = self.key();
        let start_revision = match self.rng.random_range(0..10) {
            0..4 => 0,
            4 | 5 => self.at.compacted.max(1),
            _ => self.revision(),
        };
        let filters = match self.rng.random_range(0..10) {
            0 => vec![0],
            1 => vec![1],
            2 => vec![0, 1],
            _ => vec![],
        };
        let range_end = self.range_end(&key);
        let (progress_notify, prev_kv) = (self.one_in(6), self.one_in(2));
        let watch_id = if self.one_in(3) { self.rng.random_range(-2..10) } else { 0 };
        pb::WatchCreateRequest {
            range_end,
            key,
            start_revision,
            // Notifications of a watcher -1 look like answers to progress requests, and come when they like.
            progress_notify: progress_notify && watch_id != -1,
            filters,
            prev_kv,
            watch_id,
            fragment: self.one_in(5),
        }
    }
}

/// A put that keeps the value or the lease of a key that its own txn has deleted makes etcd panic, at each restart
/// again. No such put is sent where anything is deleted.
fn without_panic(mut txn: pb::TxnRequest) -> pb::TxnRequest {
    let mut deletes = false;
    each_op(&mut txn, &mut |op| deletes |= matches!(op, Op::RequestDeleteRange(_)));
    each_op(&mut txn, &mut |op| {
        if let Op::RequestPut(put) = op {
            put.ignore_value &= !deletes;
            put.ignore_lease &= !deletes;
        }
    });
    txn
}

/// Every operation of both branches, nested txns' included.
fn each_op(txn: &mut pb::TxnRequest, visit: &mut dyn FnMut(&mut Op)) {
    for op in txn.success.iter_mut().chain(&mut txn.failure).filter_map(|op| op.request.as_mut()) {
        visit(op);
        if let Op::RequestTxn(inner) = op {
            each_op(inner, visit);
        }
    }
}

fn large_put(len: usize) -> Bytes {
    use prost::Message;
    let put = pb::PutRequest { key: "large".into(), value: vec![b'x'; len].into(), ..Default::default() };
    put.encode_to_vec().into()
}

/// The end of the range of keys that begin with `prefix`; an open end where there is none.
fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end.into();
        }
    }
    Bytes::from_static(b"\0")
}
