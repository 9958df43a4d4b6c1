//! One replica of the group: raft-rs behind a synchronous core, and the threads that drive it.
//!
//! * [`core`]: what raft decides, without IO, clock or threads.
//! * `driver`: the replica thread; `log`: append and sync; `apply`: machine, event log, tail, answers; `upkeep`: flush,
//!   trim, fold. They report progress in atomics and a wake token, so none of them ever waits for the replica thread;
//!   `queue` and `progress` are what they hand over with.

pub(crate) mod apply;
pub(crate) mod core;
pub(crate) mod driver;
pub(crate) mod lessor;
pub(crate) mod log;
pub(crate) mod progress;
pub(crate) mod queue;
pub(crate) mod shared;
pub(crate) mod upkeep;

pub use self::core::CatchUp;

#[cfg(test)]
mod tests;
