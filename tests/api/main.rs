//! Tests through the public API of one server process, each named after where its case comes from.
//!
//! They run on a tailwater; `API_SERVER=etcd` runs them on an etcd, which tests the tests. `API_FULL=1` or `ACCEPTANCE=1`
//! takes the full counts. `API_ENDPOINT` is the URL of a running, empty server to use instead.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod client;
mod compaction;
mod fairness;
mod fanout;
mod json;
mod lists;
mod recipes;
mod snapshots;
mod status;
mod watching;
