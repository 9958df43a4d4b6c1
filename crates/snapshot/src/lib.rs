//! etcd's snapshot files, written in one stream and read page by page.
//!
//! A snapshot is a bbolt database and the 32 bytes of its SHA-256 behind it. `etcdctl snapshot save` stores what a
//! server streams to it, `etcdutl` checks and restores the file; so this is the way from etcd to Tailwater and back.
//!
//! * [`SnapshotWriter`] takes the rows of one revision, in the order of their revisions, and writes the file to any
//!   sink while they come. Its size is known before, from a pass over the rows' lengths ([`SnapshotPlanner`]).
//! * [`SnapshotReader`] gives history, leases and [`Facts`] of a snapshot, or of the `member/snap/db` of a data
//!   directory, also one whose etcd was killed. It trusts no byte.
//! * [`bolt`] below them knows pages and trees, [`schema`] which rows etcd keeps in them.
//!
//! ```
//! use tailwater_snapshot::{Facts, RowRevision, SnapshotPlanner, SnapshotReader, SnapshotWriter};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let facts = Facts { storage_version: Some("3.6.0".to_owned()), term: 2, ..Facts::default() };
//! let at = RowRevision { main: 2, sub: 0 };
//! // key "k", create_revision 2, mod_revision 2, version 1, value "v"
//! let key_value = b"\n\x01k\x10\x02\x18\x02\x20\x01*\x01v";
//!
//! let mut planner = SnapshotPlanner::new(&facts)?;
//! planner.put(at, key_value.len())?;
//! planner.end_history(2)?;
//! let plan = planner.finish()?;
//!
//! let mut writer = SnapshotWriter::new(Vec::new(), plan, &facts)?;
//! writer.put(at, key_value)?;
//! writer.end_history(2)?;
//! let snapshot = writer.finish()?;
//! assert_eq!(snapshot.len() as u64, plan.snapshot_bytes());
//!
//! let reader = SnapshotReader::open(snapshot, Default::default())?;
//! reader.verify_trailer()?;
//! assert_eq!(reader.status()?.keys, 1);
//! # Ok(())
//! # }
//! ```
//!
//! Why not a bbolt crate: what there is (`bbolt-rs`, a port of the whole database) maps the file into memory through
//! `unsafe` code, takes a damaged page for a broken promise and panics, and writes by transactions into a file that it
//! seeks in. A file that is written once needs none of the machinery that makes a database hard, and a reader of
//! backups must above all survive bad ones.
//!
//! This crate does not know where rows come from or go to, and opens no file or socket.

pub mod bolt;
mod reader;
pub mod schema;
mod status;
#[cfg(test)]
mod tests;

mod writer;

pub use bolt::{Limits, ReadAt, ReadError, WriteError};
pub use reader::{Change, History, Leases, SnapshotError, SnapshotReader};
pub use schema::{Auth, ConfState, Downgrade, Facts, Member, RowError, RowKey, RowRevision};
pub use status::SnapshotStatus;
pub use tailwater_api::leasepb::Lease;
pub use writer::{SnapshotPlan, SnapshotPlanner, SnapshotWriter, TRAILER_BYTES};
