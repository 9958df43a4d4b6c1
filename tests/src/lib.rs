//! Shared support for the tests of the whole system: processes, ports and clients.
