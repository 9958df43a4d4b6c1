//! The read plane: an in-memory store built from a tail, reads at a revision, the watcher registry, delivery and flow
//! control.
//!
//! It proposes nothing, votes for nothing, and never holds back the tail because a client is slow. Start at
//! [`Fanout`]; a client's watch RPC is one [`WatchStream`]. [`Fanout::source`] feeds other fanouts from its memory.

mod admission;
mod census;
mod commit_times;
mod config;
mod core;
mod delivery;
mod encode;
mod follow;
mod group;
mod handle;
mod history;
mod inbox;
mod interval;
mod keys;
mod list;
mod load;
pub mod measuring;
mod member_source;
pub mod metrics;
mod pages;
mod range;
mod read;
mod registry;
mod sockets;
mod source;
mod store;
mod version;
mod wakeups;
mod watch;
mod window;

#[doc(hidden)]
pub use crate::core::Clock;
pub use census::PrefixLoad;
pub use config::FanoutConfig;
pub use handle::{Fanout, ReadSnapshot};
#[doc(hidden)]
pub use handle::{FanoutParts, assemble};
pub use list::{ListChunk, ListEnd, ListQuery, ListStream};
pub use load::{FanoutLoad, StreamLoad};
pub use member_source::MemberSource;
pub use read::{ListPermit, RangeAnswer, RangeQuery, ReadError, SortBy};
pub use sockets::SocketShare;
pub use watch::{CreateWatch, StreamEnd, WatchControl, WatchFilter, WatchStream};
