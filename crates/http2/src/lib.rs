//! HTTP/2 for the client port: connections on which many small calls, and many streams that are seldom at rest, are
//! answered by one task.
//!
//! A call costs a gateway little; what it costs to get there was most of it with a general HTTP/2 server, which has a task,
//! a lock and a few hand-offs for each stream, and a write for each frame. Here all streams of a connection are polled by the
//! connection's own task: requests that arrive together are read together, answers that become ready together (a batch of
//! writes is answered at once, an event goes to many watches) are gathered and leave in one write, and whoever wakes a
//! stream wakes the task once for all of them. An idle connection has no buffers.
//!
//! ```text
//!   socket → parse → streams ─ Call (the service's future) → Body (pulled as the client takes it) → Out → socket
//!                       ↑ Woken: slots of streams that have something to do
//! ```
//!
//! [`Connection`] is the whole of it: a future that ends with the connection. What it does not have: server push, priorities,
//! CONNECT and trailers of requests (they are passed over). Bounds: headers by [`Config::headers_bytes_max`], request bodies
//! by the two windows, answers by what the client takes and 64 KiB gathered, control frames by not reading while 256 KiB
//! wait to be written.
//!
//! Rules are those of RFC 9113 and RFC 7541; limits on pings and the two GOAWAYs of an end in good order are grpc-go's.

mod body;
mod connection;
mod frame;
mod head;
mod hpack;
mod out;
mod pings;
mod stream;
mod wake;

pub use body::{Abandoned, Incoming};
pub use connection::{Config, Connection, ConnectionError};
pub use frame::Reason;
pub use stream::{Call, Service};

/// What a client sends before its first frame.
pub const PREFACE: &[u8] = frame::PREFACE;
