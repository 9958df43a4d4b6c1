//! What the operating system may hold for clients' connections, as a part of the bound.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::core::Core;

/// Buffers of one connection: large enough for a fast client far away, and what is left of them when there are many.
const SOCKET_BYTES_MAX: usize = 128 << 10;
const SOCKET_BYTES_MIN: usize = 16 << 10;
/// The kernel keeps twice what is asked for, for its own bookkeeping.
const KERNEL_FACTOR: usize = 2;

/// The share of one connection; given back when dropped.
pub struct SocketShare {
    core: Arc<Core>,
    bytes: usize,
}

impl SocketShare {
    /// A share of the quarter of the bound that is meant for sockets.
    pub(crate) fn take(core: &Arc<Core>) -> Self {
        let left = (core.config.watch_memory_bytes_max / 4).saturating_sub(core.memory.sockets.load(Ordering::Relaxed));
        let bytes = (left / 64).clamp(SOCKET_BYTES_MIN, SOCKET_BYTES_MAX);
        core.memory.sockets.fetch_add(KERNEL_FACTOR * bytes, Ordering::Relaxed);
        Self { core: core.clone(), bytes }
    }

    /// To ask of the kernel as the size of the send buffer.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for SocketShare {
    fn drop(&mut self) {
        self.core.memory.sockets.fetch_sub(KERNEL_FACTOR * self.bytes, Ordering::Relaxed);
    }
}
