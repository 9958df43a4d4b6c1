//! The rows of etcd's database, as etcd 3.6 writes and 3.5 to 3.7 read them.
//!
//! | bucket | key | value |
//! |---|---|---|
//! | `key` | revision: main (8 bytes, big endian), `_`, sub (8, big endian), and `t` when the key was deleted | `mvccpb.KeyValue`; of a delete only its `key`. An empty value stands for no change: `etcdutl snapshot restore --bump-revision` writes such a row at the revision that it jumps to |
//! | `lease` | id (8, big endian) | `leasepb.Lease` |
//! | `alarm` | `etcdserverpb.AlarmMember` | empty |
//! | `auth` | `authEnabled`, `authRevision` | 1 byte, 0 or 1; 8 bytes, big endian |
//! | `authUsers`, `authRoles` | name | `authpb.User`, `authpb.Role` |
//! | `members` | id, 16 hexadecimal digits as text, fewer when it begins with 0 | JSON, see [`Member`] |
//! | `members_removed` | id, as above | `removed` |
//! | `cluster` | `clusterVersion`, `downgrade` | version as text; JSON, see [`Downgrade`] |
//! | `meta` | `consistent_index`, `term` | 8 bytes, big endian |
//! | | `confState` | JSON, see [`ConfState`] |
//! | | `scheduledCompactRev`, `finishedCompactRev` | a revision as in `key`, sub 0 |
//! | | `storageVersion` | version as text |
//!
//! All ten buckets are written, the empty ones too: etcd's tools take some of them for granted. Rows that are not in
//! this table are passed over when reading.

mod facts;
mod members;
mod revision;

pub use facts::{Auth, Facts};
pub(crate) use facts::{FactRows, FactsReader};
pub use members::{ConfState, Downgrade, Member};
pub use revision::{RowKey, RowRevision};

use std::fmt;

/// The buckets by name.
pub(crate) mod bucket {
    pub(crate) const ALARM: &str = "alarm";
    pub(crate) const AUTH: &str = "auth";
    pub(crate) const AUTH_ROLES: &str = "authRoles";
    pub(crate) const AUTH_USERS: &str = "authUsers";
    pub(crate) const CLUSTER: &str = "cluster";
    pub(crate) const KEY: &str = "key";
    pub(crate) const LEASE: &str = "lease";
    pub(crate) const MEMBERS: &str = "members";
    pub(crate) const MEMBERS_REMOVED: &str = "members_removed";
    pub(crate) const META: &str = "meta";
    /// Those that [`super::Facts`] holds.
    pub(crate) const FACTS: [&str; 8] = [ALARM, AUTH, AUTH_ROLES, AUTH_USERS, CLUSTER, MEMBERS, MEMBERS_REMOVED, META];
}

/// A row that is not what etcd writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bucket {bucket}, row {key}: {what}")]
pub struct RowError {
    /// The bucket.
    pub bucket: &'static str,
    /// The row's key, escaped.
    pub key: String,
    /// What is wrong with it.
    pub what: String,
}

impl RowError {
    pub(crate) fn new(bucket: &'static str, key: &[u8], what: impl fmt::Display) -> Self {
        // A key is up to 32 KiB long; a message need not be.
        let shown = &key[..key.len().min(64)];
        Self { bucket, key: shown.escape_ascii().to_string(), what: what.to_string() }
    }
}
