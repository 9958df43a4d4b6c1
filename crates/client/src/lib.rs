//! A client of the etcd v3 API for operators: a typed cache of a range of keys that follows every change.
//!
//! An [`Informer`] lists a range and then watches it, at Tailwater or etcd alike. Its cache is read without waiting
//! ([`Informer::snapshot`]); its changes are read in order, each once ([`Informer::subscribe`]); and
//! [`Informer::consistent`] is the cache with everything in it that was written before. When an endpoint fails, it goes on
//! at another with the next revision that it needs, and takes a new list only when that is compacted.
//!
//! ```no_run
//! use tailwater_client::{Change, Client, KeyRange};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::builder(["http://10.0.0.1:2379", "http://10.0.0.2:2379"]).build()?;
//! let services = client
//!     .informer(KeyRange::prefix("/services/"), |_key, value| String::from_utf8(value.to_vec()))
//!     .start()?;
//! let mut changes = services.subscribe();
//! while let Some(change) = changes.next().await {
//!     match change {
//!         Change::Applied { new, .. } => println!("{:?} is {}", new.key, new.value),
//!         Change::Deleted { old, .. } => println!("{:?} is gone", old.key),
//!         Change::Undecodable { what, .. } => eprintln!("{:?}: {}", what.key, what.error),
//!         Change::Relisted { cause, .. } => println!("changes were lost ({cause:?}); what follows is the difference"),
//!         Change::Synced { revision } => println!("all {} of revision {revision}", services.snapshot().len()),
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Writes go through [`Client::compare_and_put`] and the like; `examples/controller.rs` is a whole controller.
//!
//! What it holds: the range's objects once, and for each subscriber at most
//! [`queue_changes_max`](InformerBuilder::queue_changes_max) changes. A subscriber that does not take its changes holds
//! back its informer: the server keeps the rest. Each informer has connections of its own, so nothing else is held back.
//!
//! Not here: leases, locks and elections; filters of events.
//!
//! Start at [`Client::builder`] and [`Client::informer`].

mod auth;
mod client;
mod config;
mod connections;
mod core;
mod driver;
mod error;
mod informer;
mod object;
mod range;
mod subscription;

pub use crate::core::BadList;
pub use client::Client;
pub use config::{Builder, TlsFiles};
pub use error::Error;
pub use informer::{Informer, InformerBuilder, Phase, Status};
pub use object::{BoxError, Change, Object, RelistCause, Snapshot, Stamp, Undecodable};
pub use range::KeyRange;
pub use subscription::Subscription;
/// The messages of requests and answers.
pub use tailwater_api::etcdserverpb as api;

/// The examples of the guide are compiled with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/CLIENTS.md")]
mod guide {}
