//! Forwarding to replicas in this process.
