//! Rows of the machine's own state for a store that is made without a machine: a restored one.

use bytes::Bytes;
use prost::{DecodeError, Message as _};
use tailwater_api::authpb;
use tailwater_eventlog::{Alarm, AuthFacts, EventLog, LeaseId, StorageError};

use super::{LeaseRecord, encode};
use crate::Auth;

/// Key and value.
pub(crate) type Row = (Vec<u8>, Vec<u8>);

pub(crate) fn lease(id: LeaseId, lease: &LeaseRecord) -> Row {
    (encode::lease_key(id), encode::lease(lease))
}

pub(crate) fn alarm(alarm: Alarm) -> Row {
    (encode::alarm_key(alarm), vec![encode::FORMAT])
}

pub(crate) fn auth(auth: &AuthFacts) -> Result<Vec<Row>, DecodeError> {
    let mut state = Auth::default();
    state.set_enabled(auth.enabled);
    state.set_revision(auth.revision);
    state.set_token_secret(auth.token_secret.clone());
    let mut rows = vec![(encode::AUTH.to_vec(), encode::auth(&state))];
    for user in &auth.users {
        let name = authpb::User::decode(user.clone())?.name;
        rows.push((encode::user_key(&name), encode::sealed(user.to_vec())));
    }
    for role in &auth.roles {
        let name = authpb::Role::decode(role.clone())?.name;
        rows.push((encode::role_key(&name), encode::sealed(role.to_vec())));
    }
    Ok(rows)
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
