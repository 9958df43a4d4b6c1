//! Shared support for the tests of the whole system: server processes, a disk that forgets what was not synced, a client
//! that sends raw bytes, and a proxy that plants one deviation.
//!
//! * [`Server`] starts a Tailwater or an etcd on free loopback ports with a fresh data directory.
//! * [`Node`] is a Tailwater that is killed and started again on the same directory.
//! * [`cluster`] starts several members and puts faults between and into them.
//! * [`SyncedDisk`] keeps what a power cut would leave of that directory.
//! * [`RawClient`] calls any method with any bytes, so that malformed requests can be sent.
//! * [`proxy`] forwards every call and changes answers in one chosen way; it shows that a test can fail.

pub mod cluster;
mod disk;
mod node;
mod process;
pub mod proxy;
mod raw;

pub use disk::{Cut, SyncedDisk, written_end};
pub use node::{Node, copy_tree};
pub use process::{Kind, Options, Server, free_port, left_out, program, tool};
pub use raw::{BytesCodec, Failure, RawClient};
