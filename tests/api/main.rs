//! Tests through the public API, each named after where its case comes from.
