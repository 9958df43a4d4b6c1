//! The read plane: an in-memory store built from a tail, reads at a revision, the watcher registry, delivery and flow
//! control.
//!
//! It proposes nothing, votes for nothing, and never holds back the tail because a client is slow. Start at
//! [`Fanout`]; a client's watch RPC is one [`WatchStream`].

mod config;
mod handle;
mod read;
mod watch;

pub use config::FanoutConfig;
pub use handle::{Fanout, ReadSnapshot};
pub use read::{RangeAnswer, RangeQuery, ReadError, SortBy};
pub use watch::{CreateWatch, StreamEnd, WatchControl, WatchFilter, WatchStream};
