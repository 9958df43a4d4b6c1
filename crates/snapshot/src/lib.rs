//! etcd's snapshot files.

#![allow(missing_docs)]
pub mod bolt;
