//! Rows of the machine's own state for a store that is made without a machine: a restored one.

use bytes::Bytes;
use tailwater_eventlog::{Alarm, EventLog, LeaseId, StorageError};

use super::{LeaseRecord, encode};

/// Key and value.
pub(crate) type Row = (Vec<u8>, Vec<u8>);

pub(crate) fn lease(id: LeaseId, lease: &LeaseRecord) -> Row {
    (encode::lease_key(id), encode::lease(lease))
}

pub(crate) fn alarm(alarm: Alarm) -> Row {
    (encode::alarm_key(alarm), vec![encode::FORMAT])
}

/// What was restored.
pub(crate) fn restored(digest: &[u8]) -> Row {
    (encode::RESTORED.to_vec(), [&[encode::FORMAT], digest].concat())
}

/// Empty: nothing was.
pub(crate) fn restored_digest(events: &EventLog) -> Result<Bytes, StorageError> {
    let value = events.state_get(encode::RESTORED)?;
    Ok(value.map(|value| value.slice(1.min(value.len())..)).unwrap_or_default())
}
