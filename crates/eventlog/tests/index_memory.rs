//! What the key index costs. A process of its own: the resident set is what is measured, so nothing else may run beside.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use tailwater_eventlog::{Envelope, Event, EventKind, KeyIndex, LeaseId, Revision};

const KEYS: i64 = 50_000;
/// Length of each key, a common one in Kubernetes.
const KEY_BYTES: u64 = 60;
/// Bytes that a key with one version may take beside its own bytes; 131 were measured.
const PER_KEY_MAX: u64 = 200;
/// Bytes of each further version that is not compacted; 68 were measured.
const PER_VERSION_MAX: u64 = 120;

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

/// Puts every key once more; the n-th key's revision is `begin + n`.
fn put_all(index: &mut KeyIndex, begin: i64, version: i64) {
    for n in 0..KEYS {
        // Neighbours in time are not neighbours in order.
        let key = format!("/registry/pods/{:045}", n * 7919 % KEYS);
        let revision = Revision(begin + n);
        let prev = (version > 1).then(|| (Revision(begin + n - KEYS), 0));
        let create_revision = if version > 1 { Revision(2 + n) } else { revision };
        let kind = EventKind::Put;
        let envelope = Envelope { kind, revision, sub: 0, create_revision, version, lease: LeaseId(0), prev };
        index.insert(&Event::put(envelope, key.as_bytes(), b"v"));
    }
}

#[test]
fn a_key_costs_a_bounded_number_of_bytes() {
    let keys = u64::try_from(KEYS).unwrap();
    let mut index = KeyIndex::default();
    let empty = resident_bytes();
    put_all(&mut index, 2, 1);
    let one = resident_bytes();
    let per_key = (one - empty) / keys;
    eprintln!("{per_key} bytes per key");
    assert!(per_key > KEY_BYTES, "{per_key} bytes per key: nothing was measured");
    assert!(per_key <= KEY_BYTES + PER_KEY_MAX, "{per_key} bytes per key");

    for version in 2..=4 {
        put_all(&mut index, 2 + (version - 1) * KEYS, version);
    }
    let per_version = (resident_bytes() - one) / keys / 3;
    eprintln!("{per_version} bytes per version");
    assert!(per_version <= PER_VERSION_MAX, "{per_version} bytes per version");

    // What compaction frees is used again: memory follows what is not compacted, not what was ever written.
    let full = resident_bytes();
    for version in 5..=8 {
        let begin = 2 + (version - 1) * KEYS;
        while !index.compact_step(Revision(begin - 1), 1000) {}
        put_all(&mut index, begin, version);
    }
    let grown = resident_bytes().saturating_sub(full) / keys;
    eprintln!("{grown} bytes per key after compactions");
    assert!(grown <= 32, "grew by {grown} bytes per key");
}
