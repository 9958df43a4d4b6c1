//! Shared support for the tests of the whole system: processes, ports and clients.

mod disk;
mod node;

pub use disk::{Cut, SyncedDisk};
pub use node::{Node, copy_tree, tailwater_binary};
