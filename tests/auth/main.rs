//! Auth as clients meet it, on a member and on a fanout: every method for every kind of caller, and what etcd's advisories
//! are about.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod advisories;
mod client;
mod table;
mod tokens;
mod watches;
