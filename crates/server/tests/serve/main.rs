//! The built server over real sockets: HTTP and gRPC at their edges, flags, and how a process ends.
//!
//! Expected texts are what etcd 3.6.16 answers to the same bytes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod etcd_name;
mod flags;
mod grpc;
mod http;
mod lifecycle;
mod lists;
mod route;
mod stalled;
mod support;
mod tier;
mod tls;
mod ui;
