//! The write plane between nodes: what gateways ask of the leader.
//!
//! One stream from a gateway's node to the leader carries everything, in both directions in batches of what waited;
//! answers come in any order and carry the id of their request.

mod barriers;
mod codec;
pub(crate) mod fuzzing;
mod leader_stream;
mod leader_watch;
mod permit;
mod router;
mod service;
#[cfg(test)]
mod tests;

pub use self::router::{Router, RouterConfig};
pub use self::service::{WriteService, WriteServiceConfig};
